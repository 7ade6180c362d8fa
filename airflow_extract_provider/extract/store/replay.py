"""Replay: records of the quarantine are read once more, when the source file or this package has learned to read them.

They are old looks at the API, so nothing newer may be written over (law: newer wins). A record whose key is stored is
read again by key, where the API can do so; else its version decides, and where that cannot, it stays.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

import psycopg

from airflow_extract_provider.extract.cursor import Position, Whole
from airflow_extract_provider.extract.page import Record, SetAside
from airflow_extract_provider.extract.sinks.sink import Sink, check_sink
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import outbox, quarantine, refetch
from airflow_extract_provider.extract.store.apply import Batch, apply
from airflow_extract_provider.extract.store.birth import born
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Fence, Scope, acquire, holding, release
from airflow_extract_provider.extract.store.filled import check_filled
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.migrate import check
from airflow_extract_provider.extract.store.quarantine import Taken
from airflow_extract_provider.extract.store.storable import unstorable
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.store.unreadable import refused

__all__ = ["Read", "replay"]

Read: TypeAlias = Callable[[bytes], Record | SetAside]
"""Reads a record's own bytes, as the source file says now."""


def replay(
    connect: Connect,
    source: Source,
    object: str,
    schema: str,
    read: Read,
    *,
    limit: int | None = None,
    batch: int = 200,
    sink: Sink | None = None,
    take_over: bool = False,
    silent_after: timedelta = timedelta(minutes=5),
) -> Counter[str]:
    """Bring the quarantined records of an object that can be read now into its table, ``batch`` of them a transaction.

    Those that arrived, or that a newer look has overtaken, leave the quarantine; the others stay, with the reason found
    now. Events go to ``sink`` where the object publishes outside of Postgres, else into the outbox. Returns the changes
    by kind, with ``replayed`` (rows that left) and ``quarantined`` (rows that stay). No walk
    of the object runs meanwhile. The ledger tells of it as a walk named ``replay``.

    Raises WalkBusyError: a walk of the object is running. Raises FencedError: it was taken over from this one.
    Raises PositionMismatchError: the table was filled as another source file says.
    Raises SourceError, SchemaMissingError, StoreUnavailableError, StoreRightsError.
    """
    check_sink(source.object(object), sink)
    readable = source.object(object).by_key is not None
    target = Target.of(source, object, schema)
    totals: Counter[str] = Counter()
    with named_errors(source=source.source, object=object), connect() as conn:
        conn.autocommit = True
        with _held(conn, target, source, take_over, silent_after) as fence:
            check_filled(conn, schema, source, object, kept="everything; nothing was replayed.")
            target = Target.of(source, object, schema, born(conn, *target.whose))
            found = quarantine.ids(conn, schema, source.source, object, limit)
            for start in range(0, len(found), batch):
                with holding(conn, schema, fence):
                    totals += _replayed(conn, target, fence, read, found[start : start + batch], readable, sink)
            if totals["events"] and sink is None:
                outbox.announce(conn, schema)
    return totals


@contextmanager
def _held(
    conn: Connection, target: Target, source: Source, take_over: bool, silent_after: timedelta
) -> Iterator[Fence]:
    """The object's fence, which all of its walks ask for."""
    check(conn, target.schema, source, target.object)
    scope = Scope(target.source, target.object, "*")
    label = f"a replay of the quarantine, process {os.getpid()} on {socket.gethostname()}"
    runner = f"replay {uuid.uuid4().hex}"
    fence = acquire(conn, target.schema, scope, runner, label, silent_after=silent_after, take_over=take_over)
    try:
        yield fence
    finally:
        with suppress(psycopg.Error):
            if not conn.closed:
                release(conn, target.schema, fence)


@dataclass(slots=True)
class _Sorted:
    """What becomes of rows. ``arriving`` are applied, the last looks first; ``again`` are keys to be read by key."""

    arriving: list[tuple[Taken, Record]] = field(default_factory=list)
    again: set[str] = field(default_factory=set)
    overtaken: int = 0
    bad: list[tuple[Taken, SetAside]] = field(default_factory=list)


def _replayed(
    conn: Connection,
    target: Target,
    fence: Fence,
    read: Read,
    ids: Sequence[int],
    readable: bool,
    sink: Sink | None,
) -> Counter[str]:
    """One transaction's rows."""
    rows = quarantine.take(conn, target.schema, ids)
    found = _sorted(conn, target, _read(conn, target, rows, read), readable)
    counts = Counter(stale=found.overtaken, refetch=len(found.again))
    refetch.note(conn, *target.whose, found.again, "replayed")
    if found.arriving:
        ledger = Ledger(target.schema, target.source, target.object, "replay")
        counts += apply(conn, target, fence, ledger, _batches(found.arriving), sink=sink).counts
    kept = {row.id for row, _ in found.bad}
    quarantine.keep(conn, target.schema, found.bad)
    quarantine.delete(conn, target.schema, [row.id for row in rows if row.id not in kept])
    return counts + Counter(replayed=len(rows) - len(kept), quarantined=len(kept))


def _read(conn: Connection, target: Target, rows: Sequence[Taken], read: Read) -> list[tuple[Taken, Record | SetAside]]:
    """The rows with what they are to the source file now: a record, or still bad and why."""
    found = [(row, read(row.raw)) for row in rows]
    good = [(row, record) for row, record in found if isinstance(record, Record)]
    whys = dict(refused(conn, [record.raw for _, record in good]))
    for at, (row, record) in enumerate(good):
        odd = None if record.deleted else target.shape.refusal(record.raw)
        if why := unstorable(record.raw) or whys.get(at) or odd:
            found[found.index((row, record))] = (row, SetAside(row.number, row.raw, why, record.key))
    return found


def _sorted(
    conn: Connection, target: Target, found: Sequence[tuple[Taken, Record | SetAside]], readable: bool
) -> _Sorted:
    """What to do with each, the last looks first: where versions cannot tell, the stored row is never written over by
    an older look. That a row was seen unchanged since leaves no trace, so it is read by key where that can be done."""
    told = _Sorted()
    good = [(row, record) for row, record in found if isinstance(record, Record)]
    told.bad = [(row, record) for row, record in found if isinstance(record, SetAside)]
    stored = quarantine.stored(conn, target.schema, target.table, [record.key for _, record in good])
    copies = Counter((record.key, row.sent_at) for row, record in good if record.version is None)
    met: set[str] = set()
    for row, record in good:
        key = record.key
        twice = copies[key, row.sent_at] > 1
        if readable and (twice or key in met or key in stored):
            told.again.add(key)
        elif twice:
            told.bad.append((row, SetAside(row.number, row.raw, _TWICE, key)))
        elif key in met and record.version is None:
            told.overtaken += 1
        elif key not in stored:
            told.arriving.append((row, record))
        else:
            _beside(told, row, record, *stored[key])
        met.add(key)
    return told


def _beside(told: _Sorted, row: Taken, record: Record, applied_at: datetime, version: datetime | None) -> None:
    """What to do with a record whose key is stored, where the API cannot be asked again."""
    if record.version is None or version is None:
        if applied_at >= row.sent_at:
            told.overtaken += 1
        else:
            told.arriving.append((row, record))
    elif record.version > version or (record.version == version and record.deleted):
        told.arriving.append((row, record))
    elif record.version < version:
        told.overtaken += 1
    else:
        told.bad.append((row, SetAside(row.number, row.raw, _EQUAL, record.key)))


_TWICE = "another record of its page has the same key, and no version tells which is newer"
_EQUAL = "another record with the same version is stored, and without `by_key` nothing tells which is newer"


def _batches(arriving: Sequence[tuple[Taken, Record]]) -> list[Batch]:
    """The records by page, with the instants at which the pages were asked for; a key's copies apart."""
    pages: defaultdict[tuple[int | None, datetime, int], list[Record]] = defaultdict(list)
    copies: Counter[tuple[int | None, datetime, str]] = Counter()
    for row, record in arriving:
        copy = copies[row.page, row.sent_at, record.key]
        copies[row.page, row.sent_at, record.key] += 1
        pages[row.page, row.sent_at, copy].append(record)
    return [
        Batch(
            tuple(records), sent_at, Entry("page", Position(Whole(), pages=page or 0), "replay", sent_at, len(records))
        )
        for (page, sent_at, _), records in pages.items()
    ]
