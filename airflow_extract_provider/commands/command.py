"""What the commands `airflow extract ...` have in common: each tells lines, or ends with code 1 and says why."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from airflow_extract_provider.extract.errors import ExtractError, SourceError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store.connection import Connection

if TYPE_CHECKING:
    from airflow.sdk import Connection as StoredConnection

__all__ = [
    "NotUnderstood",
    "command",
    "connect",
    "duration",
    "printable",
    "rows_limit",
    "source_of",
    "sources_folder",
    "stored",
    "utc",
]

_Lines: TypeAlias = Callable[[Namespace], Iterator[str]]
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


class NotUnderstood(Exception):
    """An argument says nothing that can be done."""


def command(work: _Lines) -> Callable[[Namespace], None]:
    """A command that prints what ``work`` tells."""

    @wraps(work)
    def run(args: Namespace) -> None:
        try:
            for line in work(args):
                print(line)
        except ExtractError as exc:
            print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
            raise SystemExit(1) from None
        except NotUnderstood as exc:
            print(exc, file=sys.stderr)
            raise SystemExit(1) from None

    return run


def printable(text: str) -> str:
    """On one line, without characters that a terminal obeys."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def utc(at: datetime) -> str:
    """An instant as it is shown."""
    return f"{at.astimezone(timezone.utc).replace(tzinfo=None).isoformat()}Z"


def rows_limit(text: str) -> int:
    """How many rows to show. Raises NotUnderstood."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise NotUnderstood(f"--limit: {text!r} is no number of rows.")
    return int(text)


def duration(name: str, text: str) -> timedelta:
    """The duration that the argument ``name`` gives. Raises NotUnderstood."""
    found = re.fullmatch(r"([1-9]\d{0,4})([dhm])", text)
    if found is None:
        raise NotUnderstood(f"{name}: {text!r} is no duration; write days, hours or minutes, such as 30d, 12h or 90m.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def source_of(folder: str, name: str) -> Source:
    """A source out of a folder. Raises SourceError."""
    sources = load_sources(Path(folder))
    if name not in sources:
        raise SourceError(f"there is no source {name!r}.", todo=f"Choose one of: {', '.join(sources)}.")
    return sources[name]


def sources_folder(args: Namespace) -> str:
    """The folder with the source files: the one given, else `sources` beside the DAG files."""
    if args.sources is not None:
        return str(args.sources)
    from airflow.configuration import conf

    return str(Path(conf.get_mandatory_value("core", "dags_folder")) / "sources")


def connect(conn_id: str | None) -> Connection:
    """A connection to the store; None: to the one that Airflow's configuration names."""
    from airflow_extract_provider.config import store_conn_id
    from airflow_extract_provider.hooks.store import StoreHook

    conn_id = conn_id or store_conn_id()
    return StoreHook(conn_id, connection=stored(conn_id)).connect()


def stored(conn_id: str) -> StoredConnection | None:
    """An Airflow connection. A command runs beside Airflow's database: unlike in a task, that is where to look. None:
    there is none; what needs it says what to do about that."""
    from airflow.models.connection import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        return None
