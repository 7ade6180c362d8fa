"""Everything that a run leaves for somebody to read, piece by piece, and what is found in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from demo.airflow_api import AirflowApi

__all__ = ["answers", "columns", "files", "forms", "found"]


def forms(word: str) -> tuple[bytes, ...]:
    """The forms in which a word of letters and digits is looked for: as it is, and inside of anything in base64."""
    return (word.encode(), *(_in_base64(word.encode(), offset) for offset in range(3)))


def _in_base64(word: bytes, offset: int) -> bytes:
    """What base64 makes of a word that stands so many bytes behind a multiple of three, whatever is around it: each
    character tells 6 bits, and those that tell of neighbours are left out."""
    text = base64.b64encode(bytes(offset) + word + bytes(2))
    return text[-(-offset * 8 // 6) : (offset + len(word)) * 8 // 6]


def found(words: Collection[str], pieces: Iterable[tuple[str, bytes]]) -> list[str]:
    """Where some words are, with what stands around each; large and small letters count as the same, except in base64.
    ``pieces`` are texts with their places."""
    plain = {word.lower().encode(): word for word in words}
    coded = {form: word for word in words for form in forms(word)[1:]}
    return [
        f"{word} in {place}: {_around(text, at)!r}"
        for place, raw in pieces
        for text, wanted in ((raw.lower(), plain), (raw, coded))
        for form, word in wanted.items()
        if (at := text.find(form)) >= 0
    ]


def _around(text: bytes, at: int) -> bytes:
    return text[max(at - 120, 0) : at + 120]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All files below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield f"file {path.relative_to(folder)}", path.read_bytes()


def columns(name: str, dsn: str) -> Iterator[tuple[str, bytes]]:
    """All rows of all tables of a database, whatever their types, as the text that Postgres makes of them."""
    with psycopg.connect(dsn) as conn:
        # Bytes as characters, as far as they are some, and not as digits.
        conn.execute("set bytea_output = 'escape'")
        tables = conn.execute(
            "select table_schema, table_name from information_schema.tables"
            " where table_schema not in ('pg_catalog', 'information_schema') and table_type = 'BASE TABLE'"
        ).fetchall()
        for table in tables:
            text = sql.SQL("select t::text from {} as t").format(sql.Identifier(*table))
            for (row,) in conn.execute(text):
                yield f"{name} {'.'.join(table)}", row.encode()


def answers(api: AirflowApi, dag: str, run: str) -> Iterator[tuple[str, bytes]]:
    """What Airflow's REST API says of a run: its tasks with their rendered fields, XComs and logs; and all Variables,
    which are encrypted in the database."""
    places = [f"/dags/{dag}/dagRuns/{run}/taskInstances", f"/dags/{dag}/details", "/variables", "/eventLogs"]
    for task in api.task_instances(dag, run):
        own = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task.task_id}"
        places += [own, f"{own}/logs/1?full_content=true"]
        places += [f"{own}/xcomEntries/{entry}?deserialize=true" for entry in api.xcom_keys(dag, run, task.task_id)]
    for place in places:
        yield f"GET {place}", json.dumps(api.answer(place), ensure_ascii=False).encode()
