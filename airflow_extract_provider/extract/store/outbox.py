"""The outbox: events wait here, stored in the transaction that stored their change (law: an event is a fact).

Sequence numbers are given before the commit and become visible out of order, so no reader may go by them. The writers
of one record exclude each other by its row's lock, so per key they are in order. Once committed, events get places, one
stamper at a time, in the order of their numbers: whoever reads by place misses none and keeps the order per key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg import sql

from airflow_extract_provider.extract.errors import EventRepeatedError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.store.arrays import Instants, Numbers, Texts
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = [
    "Placed",
    "Portion",
    "Wanted",
    "announce",
    "append",
    "appending",
    "channel",
    "event_of",
    "lock_head",
    "no_repeats",
    "prune",
    "read",
    "stamp",
]

_FILE = "outbox.sql"
_ONCE = "outbox_once"
_PRUNED_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events a consumer reads: those of a source, of an object, of some types. None: all."""

    source: str | None = None
    object: str | None = None
    types: tuple[str, ...] | None = None

    def parameters(self) -> dict[str, Any]:
        """The filter as parameters of a statement."""
        return {"source": self.source, "object": self.object, "types": None if self.types is None else [*self.types]}


@dataclass(frozen=True, slots=True)
class Placed:
    """An event with its place in the order of reading, and the sequence number that it was stored with."""

    place: int
    sequence: int
    event: Event

    @property
    def whose(self) -> tuple[str, str, str]:
        """Source, object and key: what the order holds for."""
        return self.event.source, self.event.object, self.event.key


@dataclass(frozen=True, slots=True)
class Portion:
    """What was read: events by place; all that are wanted up to the place ``upto`` are among them."""

    placed: tuple[Placed, ...]
    upto: int


def append(conn: Connection, schema: str, events: Sequence[Event]) -> None:
    """Store events, in this order, in the caller's transaction, which holds the locks of their records' rows.

    Raises EventRepeatedError: one of them is stored already; the transaction can only be rolled back.
    """
    if events:
        with no_repeats(events):
            conn.execute(*appending(schema, events))


def appending(schema: str, events: Sequence[Event]) -> tuple[sql.Composed, dict[str, Any]]:
    """The statement of :func:`append`, with its parameters, for who has something else to do by the same round trip."""
    return statement(_FILE, "append", schema), _columns(events)


@contextmanager
def no_repeats(events: Sequence[Event]) -> Iterator[None]:
    """Name the error of a statement that appends these events.

    Raises EventRepeatedError: as :func:`append`.
    """
    try:
        yield
    except psycopg.errors.UniqueViolation as exc:
        if exc.diag.constraint_name != _ONCE:
            raise
        raise _repeated(events, exc.diag.message_detail or "") from None


def announce(conn: Connection, schema: str) -> None:
    """Wake whoever listens on the channel. On a connection in no transaction, after the commit: in it, all commits of
    the server that announce something would wait for each other."""
    conn.execute(statement(_FILE, "announce", schema), {"channel": channel(schema)})


def channel(schema: str) -> str:
    """The name to LISTEN to; at most 63 bytes, as Postgres asks."""
    return schema.encode()[:56].decode(errors="ignore") + ".outbox"


def stamp(conn: Connection, schema: str, limit: int = 2_000, *, rounds: int | None = None) -> int:
    """Give committed events their places, ``limit`` in a transaction, in at most so many ``rounds``; returns how many.
    The connection is in no transaction.

    When nothing waits, nothing is locked or written.
    """
    given, most = 0, float("inf") if rounds is None else rounds * limit
    while given < most and conn.execute(statement(_FILE, "unplaced", schema)).fetchone() == (True,):
        with conn.transaction():
            lock_head(conn, schema)
            row = conn.execute(statement(_FILE, "stamp", schema), {"limit": limit}).fetchone()
        placed = row[0] if row else 0
        given += placed
        if placed < limit:
            break
    return given


def lock_head(conn: Connection, schema: str) -> None:
    """Keep stamping, pruning and the beginning of consumers apart, until the transaction ends.

    A second statement then sees what was committed before.
    """
    conn.execute(statement(_FILE, "impatient", schema))
    conn.execute(statement(_FILE, "lock_head", schema))


def read(conn: Connection, schema: str, after: int, limit: int, wanted: Wanted = Wanted()) -> Portion:
    """Up to ``limit`` wanted events behind the place ``after``.

    Only so many rows are looked at for it, so that a rare type does not cost a long scan: a portion without events may
    still lead on. Where ``upto`` is ``after``, there is nothing more. Places may be missing, where rows that somebody
    else has parked have outlived the others: behind the last row ``upto`` is the last place that was given.
    """
    looked = limit if wanted == Wanted() else limit * 10
    asked = {"after": after, "limit": limit, "looked": looked, **wanted.parameters()}
    rows = conn.execute(statement(_FILE, "read", schema), asked, binary=True).fetchall()
    placed = tuple(event_of(row[1:]) for row in rows if row[1] is not None)
    if len(placed) == limit:
        return Portion(placed, placed[-1].place)
    return Portion(placed, rows[0][0] if rows else after)


def prune(
    conn: Connection, schema: str, keep_for: timedelta, limit: int = 10_000, *, though_unread: bool = False
) -> int:
    """Delete up to ``limit`` events that all consumers have passed, that none has parked, and that were stored longer
    than ``keep_for`` ago; returns how many. While there is no consumer all are kept, unless they are to go
    ``though_unread``."""
    pruned = 0
    while pruned < limit:
        most = min(_PRUNED_AT_ONCE, limit - pruned)
        with conn.transaction():
            lock_head(conn, schema)
            asked = {"limit": most, "keep_for": keep_for, "though_unread": though_unread}
            deleted = conn.execute(statement(_FILE, "prune", schema), asked).rowcount
        pruned += deleted
        if deleted < most:
            break
    return pruned


def event_of(row: Sequence[Any]) -> Placed:
    """A row of the statements that read events."""
    place, sequence, id, source, object, type, key, time, revision, baseline, data = row
    aware: datetime = time.replace(tzinfo=timezone.utc)
    told = None if data is None else data.encode()
    return Placed(place, sequence, Event(id, source, object, type, key, aware, revision, told, baseline))


def _columns(events: Sequence[Event]) -> dict[str, Any]:
    """Events as columns. What is the same for all is told once: those of one transaction are of one object."""
    first = events[0]
    several = any(event.source != first.source or event.object != first.object for event in events)
    data = [event.data.decode() for event in events if event.data is not None]
    return {
        "source": first.source,
        "object": first.object,
        "sources": [event.source for event in events] if several else [],
        "objects": [event.object for event in events] if several else [],
        "ids": Texts([event.id for event in events]),
        "keys": Texts([event.key for event in events]),
        "types": Texts([event.type for event in events]),
        "times": Instants([event.time for event in events]),
        "revisions": Numbers([event.revision for event in events]),
        "baselines": sparse([event.baseline for event in events]),
        "data": Texts(data) if len(data) == len(events) else [event.data and event.data.decode() for event in events],
    }


def _repeated(events: Sequence[Event], detail: str) -> EventRepeatedError:
    """The server's detail holds the id, in whatever language it is written."""
    found = next((event for event in events if event.id in detail), None)
    which = f"the event {found.type} of this record, revision {found.revision}," if found else "one of the events"
    place = {"source": events[0].source, "object": events[0].object, "key": found.key if found else None}
    return EventRepeatedError(
        f"{which} is in the outbox already: rows of the record table were deleted or changed by hand, and revisions "
        f"that were told of come again.",
        kept="what was committed before; nothing of this transaction.",
        todo="Start the object's backfill over with `reset`: its events get new ids from then on.",
        **place,
    )
