"""What a sweep costs that finds nothing: no row of the copy is written or locked, there is hardly any log, and many
records take no more memory than some.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import sql

from airflow_extract_provider.extract.store.connection import Connect, Connection
from tests.databases import lone_server
from tests.extract.scene import TOKENS, Scene
from tests.loopback import LoopbackApi

SOME, MANY, SIZE = 10_000, 50_000, 100
PAGED = {**TOKENS["pages"], "size": {"send": "limit", "max": SIZE}}
NESTED = {"lines": [{"sku": f"s{n}", "note": "x" * 60} for n in range(6)], "address": {"note": "y" * 200}}
ROWS = "select key, ctid::text, xmin::text, xmax::text from {} order by key"


@dataclass(frozen=True)
class Swept:
    """A sweep in a process of its own. ``written``: bytes of log, ``peak``: the most KiB that the process had."""

    report: dict[str, Any]
    counts: dict[str, int]
    written: int
    peak: int


@contextmanager
def filled(connect: Connect, conn: Connection, count: int) -> Iterator[Scene]:
    """So many records of 1 KB, backfilled, and nothing left to be tidied up in their table: whoever reads a row first
    notes in it that it is committed, which is logged where blocks have checksums."""
    rows = [{"id": f"k{number:08}", "n": number, **NESTED} for number in range(count)]
    with LoopbackApi(rows) as api:
        scene = Scene(api, connect, {**TOKENS, "pages": PAGED}, "extract")
        scene.migrate()
        assert scene.run().records == count
        conn.execute(sql.SQL("vacuum (analyze) {}").format(table_of(scene)))
        yield scene
        scene.close()


def table_of(scene: Scene) -> sql.Identifier:
    """The record table."""
    return sql.Identifier(*scene.source.table(scene.object))


def lsn(conn: Connection) -> int:
    """How many bytes of log the server has written since ever."""
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def swept(scene: Scene, conn: Connection, dsn: str) -> Swept:
    """A sweep behind a checkpoint, after which the first change of a block is logged as a whole block."""
    source = {"source": scene.name, "connection": "none", "objects": {scene.object: scene.spec}}
    asked = {"source": source, "object": scene.object, "dsn": dsn, "url": scene.api.url}
    command = [sys.executable, "-m", "tests.store.sweep_child", json.dumps(asked)]
    conn.execute("checkpoint")
    before = lsn(conn)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Swept(**json.loads(done.stdout), written=lsn(conn) - before)


@pytest.fixture
def dsn() -> Iterator[str]:
    """A database beside which nobody writes: the log is the server's as a whole, and its autovacuum's too."""
    with lone_server(autovacuum="off") as server:
        yield server.create_database("swept")


@pytest.fixture
def many(connect: Connect, conn: Connection) -> Iterator[Scene]:
    """50,000 records."""
    with filled(connect, conn, MANY) as scene:
        yield scene


def test_nothing_changed(
    many: Scene, connect: Connect, conn: Connection, dsn: str, measured: Callable[[str], None]
) -> None:
    """Each row stays where and as it was, its header too, which a lock would write; a record costs less than 50 bytes
    of log; five times the records take the same memory."""
    before = conn.execute(sql.SQL(ROWS).format(table_of(many))).fetchall()
    large = swept(many, conn, dsn)
    with filled(connect, conn, SOME) as some:
        small = swept(some, conn, dsn)
    for found, count in ((large, MANY), (small, SOME)):
        assert found.counts["unchanged"] == count
        assert [found.report[name] for name in ("stored", "seen", "absent", "changed")] == [count, count, 0, 0]
    measured(
        f"A sweep without news: {MANY:,} records with {large.written / MANY:.1f} bytes of WAL each and at most"
        f" {large.peak / 1024:.1f} MiB, {SOME:,} with {small.written / SOME:.1f} and {small.peak / 1024:.1f} MiB"
    )
    assert conn.execute(sql.SQL(ROWS).format(table_of(many))).fetchall() == before
    assert {row[3] for row in before} == {"0"}
    assert large.written / MANY < 50
    assert large.peak <= 1.1 * small.peak
