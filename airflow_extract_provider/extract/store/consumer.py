"""Consumers: who reads the outbox, up to where each has come, and what it could not handle (law: nothing is skipped).

An event that fails is parked, and so are the later ones of its key, behind it: the order per key is kept while the
other keys go on. Of a key's parked events only the first is due. After so many tries it is a dead letter: it waits for
a person, and the key goes on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from psycopg import sql

from airflow_extract_provider.extract.errors import FencedError
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.fence import Scope
from airflow_extract_provider.extract.store.outbox import Placed, Wanted, event_of, lock_head, stamp
from airflow_extract_provider.extract.store.statements import statement

__all__ = [
    "Consumer",
    "Dead",
    "Parked",
    "Start",
    "Waiting",
    "Whose",
    "ahead",
    "begin",
    "blocked",
    "consumers",
    "dead",
    "drop_consumer",
    "drop_dead",
    "dropped",
    "due",
    "replay_dead",
    "scope",
    "settle",
    "waiting",
    "wake",
]

Start: TypeAlias = Literal["beginning", "end"]
"""Where a new consumer begins: at the oldest event that is kept, or behind the newest."""

Whose: TypeAlias = tuple[str, str, str]
"""Source, object and key of a record."""

_log = logging.getLogger(__name__)

_FILE = "consumer.sql"
_LOOKED = 10_000


@dataclass(frozen=True, slots=True)
class Consumer:
    """A consumer, for people. ``behind`` counts the events that it has not come to, those that it will pass over
    included; ``oldest`` tells since when the oldest waits of those and of the parked ones."""

    name: str
    place: int
    behind: int
    parked: int
    dead: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter, for people. ``reason`` is how the last try failed; it may quote the record."""

    consumer: str
    place: int
    source: str
    object: str
    key: str
    type: str
    tries: int
    reason: str
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that is to be handled; ``tries`` have failed so far. ``parked``: it waits among the parked ones."""

    placed: Placed
    tries: int = 0
    parked: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """An event to be parked. It is due after ``wait``, or, when that is None, once those before it are through."""

    placed: Placed
    tries: int = 0
    reason: str = ""
    wait: timedelta | None = None
    dead: bool = False


def scope(name: str) -> Scope:
    """What the fence of a consumer guards."""
    return Scope("", name, "consumer")


def begin(conn: Connection, schema: str, name: str, start: Start = "beginning") -> int:
    """Make a consumer, if there is none of this name; returns the place up to which it has come. In no transaction."""
    row = conn.execute(statement(_FILE, "place", schema), {"consumer": name}).fetchone()
    if row is None:
        if start == "end":
            stamp(conn, schema)
        with conn.transaction():
            # Nothing is pruned meanwhile, or the consumer would begin in the middle.
            lock_head(conn, schema)
            conn.execute(statement(_FILE, "begin", schema), {"consumer": name, "at_end": start == "end"})
        row = conn.execute(statement(_FILE, "place", schema), {"consumer": name}).fetchone()
    return row[0] if row else 0


def due(conn: Connection, schema: str, name: str, limit: int) -> list[Waiting]:
    """Parked events to be tried now, by place: the first of each key that is due, and those that wait behind it."""
    rows = conn.execute(statement(_FILE, "due", schema), {"consumer": name, "limit": limit}, binary=True)
    return [Waiting(event_of(row[1:]), row[0], parked=True) for row in rows]


def ahead(conn: Connection, schema: str, name: str) -> set[int]:
    """Places of parked events that the consumer has not come to: at those a run was lost, and their try was counted.
    When it comes to them, they are parked already. Nearly always there are none."""
    return {row[0] for row in conn.execute(statement(_FILE, "ahead", schema), {"consumer": name})}


def blocked(conn: Connection, schema: str, name: str, keys: Iterable[Whose]) -> set[Whose]:
    """Which of these keys have parked events: later ones must wait behind them."""
    asked = {"consumer": name, **_columns(sorted(set(keys)))}
    return {(row[0], row[1], row[2]) for row in conn.execute(statement(_FILE, "blocked", schema), asked)}


def settle(
    conn: Connection,
    schema: str,
    name: str,
    place: int,
    handled: Sequence[Waiting],
    parked: Sequence[Parked],
) -> None:
    """In the caller's transaction, which holds the fence: move a consumer to a place, strike out what was parked and is
    handled now, park what failed, and make the next of those keys due.

    Raises FencedError: the consumer was dropped.
    """
    if conn.execute(statement(_FILE, "move", schema), {"consumer": name, "place": place}).fetchone() is None:
        raise dropped(name)
    if over := [each.placed.place for each in handled if each.parked]:
        conn.execute(statement(_FILE, "unpark", schema), {"consumer": name, "places": over})
    if parked:
        conn.execute(statement(_FILE, "park", schema), _parked(name, parked))
    touched = {each.placed.whose for each in handled if each.parked} | {each.placed.whose for each in parked}
    if touched:
        conn.execute(statement(_FILE, "wake_keys", schema), {"consumer": name, **_columns(sorted(touched))})


def wake(conn: Connection, schema: str, name: str) -> None:
    """Make the first parked event of each key due, if it is not: those before it may have been deleted by hand. One
    that the outbox does not hold any more is dropped, with a warning."""
    with conn.transaction():
        conn.execute(statement(_FILE, "lock", schema), {"consumer": name})
        gone = conn.execute(statement(_FILE, "orphans", schema), {"consumer": name}).fetchall()
        conn.execute(statement(_FILE, "wake", schema), {"consumer": name})
    if gone:
        first = ", ".join(str(row[0]) for row in sorted(gone)[:10])
        _log.warning(
            "consumer %s: %d parked events are in the outbox no more, and are dropped; places %s%s",
            *(name, len(gone), first, ", ..." if len(gone) > 10 else ""),
        )


def waiting(
    schema: str, name: str, wanted: Wanted | None = None, looked: int = _LOOKED
) -> tuple[sql.Composed, dict[str, Any]]:
    """The question whether a consumer has something to do, as a statement with its parameters: for connections of
    either kind, since who waits for events does it asynchronously.

    The row that answers it: whether; how many events were ever committed; when the last of the parked ones that are due
    became so, None if none is. That something new has come shows in the last two; not in the numbers of events, which
    are given before the commit: a lower one may come later. Of a consumer that was never begun, all events wait.
    ``looked`` events are looked at; where more wait, there is something to do.
    """
    return statement(_FILE, "waiting", schema), {
        "consumer": name,
        "looked": looked,
        **(wanted or Wanted()).parameters(),
    }


def dead(conn: Connection, schema: str, consumer: str | None = None, limit: int = 100) -> list[Dead]:
    """The dead letters of a consumer, or of all, by place."""
    rows = conn.execute(statement(_FILE, "dead", schema), {"consumer": consumer, "limit": limit})
    return [Dead(*row) for row in rows]


def replay_dead(conn: Connection, schema: str, consumer: str, places: Sequence[int] | None = None) -> int:
    """Put dead letters back, at these places or all of them: due now, with all their tries; returns how many.

    Events of their keys that came later and were handled are not handled again: a receiver that minds compares the
    revisions.
    """
    asked = {"consumer": consumer, "places": None if places is None else list(places)}
    with conn.transaction():
        conn.execute(statement(_FILE, "lock", schema), asked)
        count = conn.execute(statement(_FILE, "replay_dead", schema), asked).rowcount
        conn.execute(statement(_FILE, "wake", schema), asked)
    return count


def drop_dead(conn: Connection, schema: str, consumer: str, places: Sequence[int] | None = None) -> int:
    """Delete dead letters, at these places or all of them; returns how many."""
    asked = {"consumer": consumer, "places": None if places is None else list(places)}
    with conn.transaction():
        conn.execute(statement(_FILE, "lock", schema), asked)
        return conn.execute(statement(_FILE, "drop_dead", schema), asked).rowcount


def consumers(conn: Connection, schema: str, name: str | None = None) -> list[Consumer]:
    """The consumers, or the one of this name, and how far each has come."""
    asked = {"consumer": name, "looked": _LOOKED}
    return [Consumer(*row) for row in conn.execute(statement(_FILE, "consumers", schema), asked)]


def drop_consumer(conn: Connection, schema: str, name: str) -> bool:
    """Forget a consumer with all that it has parked; tells whether there was one. A run of it that is alive loses its
    fence: it commits nothing more."""
    with conn.transaction():
        conn.execute(statement(_FILE, "evict", schema), asdict(scope(name)))
        return conn.execute(statement(_FILE, "drop_consumer", schema), {"consumer": name}).rowcount == 1


def _columns(keys: Sequence[Whose]) -> dict[str, Any]:
    return {
        "sources": [source for source, _, _ in keys],
        "objects": [object for _, object, _ in keys],
        "keys": [key for _, _, key in keys],
    }


def _parked(name: str, parked: Sequence[Parked]) -> dict[str, Any]:
    return {
        "consumer": name,
        **_columns([each.placed.whose for each in parked]),
        "places": [each.placed.place for each in parked],
        "tries": [each.tries for each in parked],
        "reasons": [each.reason for each in parked],
        "waits": [each.wait for each in parked],
        "dead": [each.dead for each in parked],
    }


def dropped(name: str) -> FencedError:
    return FencedError(
        f"the consumer {name} was dropped while it ran.",
        kept="everything this run had committed before.",
        todo="Run it again, if it shall begin anew.",
        object=name,
    )
