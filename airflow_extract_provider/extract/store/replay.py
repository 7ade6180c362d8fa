"""Replay: records of the quarantine are read once more, when the source file or this package has learned to read them.

They are old looks at the API, so nothing newer may be written over (law: newer wins). With versions apply sees to that.
Without, a record whose key is stored is read again by key, where the API can do so.
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
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import quarantine, refetch
from airflow_extract_provider.extract.store.apply import Batch, Target, apply, refusal
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Fence, Scope, acquire, holding, release
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.migrate import check
from airflow_extract_provider.extract.store.quarantine import Taken
from airflow_extract_provider.extract.store.storable import unstorable

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
    take_over: bool = False,
    silent_after: timedelta = timedelta(minutes=5),
) -> Counter[str]:
    """Bring the quarantined records of an object that can be read now into its table, ``batch`` of them a transaction.

    Those that arrived, or that a newer look has overtaken, leave the quarantine; the others stay, with the reason found
    now. Returns the changes by kind, with ``replayed`` (rows that left) and ``quarantined`` (rows that stay). No walk
    of the object runs meanwhile. The ledger tells of it as a walk named ``replay``.

    Raises WalkBusyError: a walk of the object is running. Raises FencedError: it was taken over from this one.
    Raises SourceError, SchemaMissingError, StoreUnavailableError, StoreRightsError.
    """
    readable = source.object(object).by_key is not None
    target = Target(schema, source.source, object, source.table(object))
    totals: Counter[str] = Counter()
    with named_errors(source=source.source, object=object), connect() as conn:
        conn.autocommit = True
        with _held(conn, target, take_over, silent_after) as fence:
            found = quarantine.ids(conn, schema, source.source, object, limit)
            for start in range(0, len(found), batch):
                with holding(conn, schema, fence):
                    totals += _replayed(conn, target, fence, read, found[start : start + batch], readable)
    return totals


@contextmanager
def _held(conn: Connection, target: Target, take_over: bool, silent_after: timedelta) -> Iterator[Fence]:
    """The object's fence, which all of its walks ask for."""
    check(conn, target.schema, target.table)
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
    conn: Connection, target: Target, fence: Fence, read: Read, ids: Sequence[int], readable: bool
) -> Counter[str]:
    """One transaction's rows."""
    rows = quarantine.take(conn, target.schema, ids)
    found = _sorted(conn, target, [(row, _read(conn, row, read)) for row in rows], readable)
    counts = Counter(stale=found.overtaken, refetch=len(found.again))
    refetch.note(conn, *target.whose, found.again, "replayed")
    if found.arriving:
        ledger = Ledger(target.schema, target.source, target.object, "replay")
        counts += apply(conn, target, fence, ledger, _batches(found.arriving)).counts
    kept = {row.id for row, _ in found.bad}
    quarantine.keep(conn, target.schema, found.bad)
    quarantine.delete(conn, target.schema, [row.id for row in rows if row.id not in kept])
    return counts + Counter(replayed=len(rows) - len(kept), quarantined=len(kept))


def _read(conn: Connection, row: Taken, read: Read) -> Record | SetAside:
    record = read(row.raw)
    if isinstance(record, SetAside):
        return record
    why = unstorable(record.raw) or refusal(conn, record.raw)
    return record if why is None else SetAside(row.number, row.raw, why, record.key)


def _sorted(
    conn: Connection, target: Target, found: Sequence[tuple[Taken, Record | SetAside]], readable: bool
) -> _Sorted:
    """What to do with each, the last looks first: where versions cannot tell, the stored row is never written over by
    an older look. That a row was seen unchanged since leaves no trace, so it is read by key where that can be done."""
    told = _Sorted()
    good = [(row, record) for row, record in found if isinstance(record, Record)]
    told.bad = [(row, record) for row, record in found if isinstance(record, SetAside)]
    unversioned = [(row, record) for row, record in good if record.version is None]
    stored = quarantine.stored(conn, target.schema, target.table, [record.key for _, record in unversioned])
    copies = Counter((record.key, row.sent_at) for row, record in unversioned)
    met: set[str] = set()
    for row, record in good:
        key, twice = record.key, copies[record.key, row.sent_at] > 1
        if record.version is not None:
            told.arriving.append((row, record))
        elif readable and (twice or key in met or key in stored):
            told.again.add(key)
        elif twice:
            told.bad.append((row, SetAside(row.number, row.raw, _TWICE, key)))
        elif key in met or (key in stored and stored[key] >= row.sent_at):
            told.overtaken += 1
        else:
            told.arriving.append((row, record))
        met.add(key)
    return told


_TWICE = "another record of its page has the same key, and no version tells which is newer"


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
