"""Appliers for the store's tests: each a connection with a fence and a ledger of its own, as a run has them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from msgspec.structs import replace

from airflow_extract_provider.extract.cursor import AfterKey, Position
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.apply import Batch, apply
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.fence import Fence, Scope, acquire
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.target import Target

__all__ = ["EPOCH", "SOURCE", "Applier", "a_record", "a_tombstone", "clock", "in_thread", "wait_until_blocked"]

EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)

SOURCE = Source.model_validate(
    {
        "source": "shop",
        "connection": "shop",
        "defaults": {"records": "data", "key": "id", "pages": {"by": "last_key", "send": "starting_after"}},
        "objects": {"things": {"path": "/keyed", "version": "updated_at"}, "plain": {"path": "/keyed"}},
    }
)

_BLOCKED = """
with sessions as materialized (select pid from pg_stat_activity where datname = current_database())
select count(*) from sessions
where cardinality(pg_blocking_pids(pid)) > 0 and (pid = %(pid)s or %(pid)s not in (select pid from sessions))
"""

T = TypeVar("T")


def a_tombstone(key: str, version: int | None = None) -> Record:
    """What an API tells of a deleted record."""
    record = a_record(key, "deleted", version)
    return replace(record, deleted=True)


def a_record(key: str, value: Any = 0, version: int | None = None) -> Record:
    """A record with a value and, in minutes, a version."""
    instant = None if version is None else EPOCH + timedelta(minutes=version)
    told = {} if instant is None else {"updated_at": instant.isoformat()}
    return Record(key, json.dumps({"id": key, "value": value, **told}).encode(), instant)


def clock(conn: Connection) -> datetime:
    """Postgres's clock."""
    row = conn.execute("select clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


class Applier:
    """One runner: applies pages as a run of ``walk`` would."""

    def __init__(
        self, connect: Connect, object: str = "plain", walk: str = "backfill", source: Source = SOURCE
    ) -> None:
        self.conn = connect()
        self.conn.autocommit = True
        self.target = Target.of(source, object, "extract")
        self.ledger = Ledger("extract", source.source, object, walk)
        self.fence: Fence = acquire(
            self.conn, "extract", Scope(source.source, object, walk), walk, walk, silent_after=timedelta(minutes=5)
        )

    @property
    def pid(self) -> int:
        """The server process behind the connection."""
        return self.conn.info.backend_pid

    def apply(
        self,
        *pages: Sequence[Record],
        sent_at: datetime | None = None,
        quarantine: bool = False,
        sink: Sink | None = None,
        **more: Any,
    ) -> dict[str, int]:
        """Apply pages in one transaction, sent just now unless told otherwise; returns the changes by kind.

        ``more`` are fields of each page's batch.
        """
        sent = sent_at or clock(self.conn)
        where = Position(AfterKey("x"), pages=1)
        batches = [Batch(tuple(page), sent, Entry("page", where, "test", sent, len(page)), **more) for page in pages]
        given = (self.conn, self.target, self.fence, self.ledger, batches)
        return dict(+apply(*given, quarantine=quarantine, sink=sink).counts)

    def apply_each(self, looks: Sequence[tuple[Record | None, str]]) -> None:
        """Apply in one transaction what was found one after the other: records, or that there is none of a key."""
        where, batches = Position(AfterKey("x"), pages=1), []
        for record, key in looks:
            page, gone = ((record,), ()) if record is not None else ((), (key,))
            sent = clock(self.conn)
            batches.append(Batch(page, sent, Entry("page", where, "test", sent, len(page)), gone=gone))
        apply(self.conn, self.target, self.fence, self.ledger, batches)

    def table(self) -> dict[str, tuple[Any, int]]:
        """Value and revision of each stored record by key."""
        rows = self.conn.execute(f"select key, data -> 'value', revision from shop.{self.target.object}")
        return {key: (value, revision) for key, value, revision in rows}

    def rows(self) -> dict[str, tuple[Any, int, bool]]:
        """Value, revision and whether it is deleted, of each row by key."""
        asked = f"select key, data -> 'value', revision, deleted_at is not null from shop.{self.target.object}"
        return {key: (value, revision, deleted) for key, value, revision, deleted in self.conn.execute(asked)}

    def noted(self) -> Mapping[str, int]:
        """The keys to be read again, with the numbers of their notes."""
        return dict(self.conn.execute("select key, number from extract.refetch").fetchall())


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Begin some work in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_until_blocked(conn: Connection, pid: int, seconds: float = 10) -> None:
    """Wait until a server process waits for a lock that another one holds; of a connection through a pooler, whose
    process is not known, any process of the database."""
    until = time.monotonic() + seconds
    while conn.execute(_BLOCKED, {"pid": pid}).fetchone() == (0,):
        conn.execute("select pg_stat_clear_snapshot()")
        assert time.monotonic() < until, "nothing waits"
        time.sleep(0.005)
