"""Taking webhooks out of the inbox: claimed by row locks, so that a run that dies has claimed nothing.

A delivery is claimed once. What of it could not be applied is parked by message, and tried again from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from psycopg import sql

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = ["Claims", "Due", "Left", "Parked", "Whose", "left", "question", "waiting"]

_FILE = "claims.sql"

Whose: TypeAlias = tuple[str, str]
"""Object and key."""


@dataclass(frozen=True, slots=True)
class Due:
    """A parked message that is to be tried again, by its place and number; how often it was tried."""

    place: int
    nth: int
    tries: int


@dataclass(frozen=True, slots=True)
class Parked:
    """A message that waits: after ``tries`` in vain, for ``reason``. ``wait``: until it is tried again; None: until
    those of its key before it are through. ``dead``: until a person has looked at it."""

    place: int
    nth: int
    object: str = ""
    key: str = ""
    tries: int = 0
    reason: str = ""
    wait: timedelta | None = None
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """How many deliveries wait, how many parked messages do, and how many are dead letters."""

    deliveries: int
    parked: int
    dead: int


@dataclass(frozen=True, slots=True)
class Claims:
    """The inbox of one endpoint, within a transaction of the caller's."""

    conn: Connection
    schema: str
    source: str
    endpoint: str

    def limit(self, idle: timedelta) -> None:
        """Bound how long this transaction may stand still, and wait for a lock."""
        self._run("limits", idle=f"{idle.total_seconds() * 1000:.0f}ms")

    def claim(self, limit: int, most_bytes: int, *, in_order: bool) -> list[tuple[Any, ...]]:
        """The oldest deliveries that wait, at most so many and so large (one at least), as (place, headers, body,
        received). ``in_order``: not past those that another run has claimed."""
        found = self._run("claim_in_order" if in_order else "claim", limit=limit)
        places: list[int] = []
        size = 0
        for place, length in found:
            if places and size + length > most_bytes:
                break
            places.append(place)
            size += length
        return self.fetch(places)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...]]:
        """Deliveries by their places."""
        return self._run("fetch", places=list(places)) if places else []

    def due(self, limit: int) -> list[Due]:
        """The parked messages that are due, the oldest first."""
        return [Due(*row) for row in self._run("due", limit=limit)]

    def blocked(self, keys: Iterable[Whose]) -> set[Whose]:
        """Those of the keys of which an older message is parked."""
        objects, texts = zip(*sorted(set(keys)), strict=True)
        return {(object, key) for object, key in self._run("blocked", objects=list(objects), keys=list(texts))}

    def done(self, places: Sequence[int]) -> None:
        """These deliveries are taken out."""
        if places:
            self._run("done", places=list(places))

    def park(self, parked: Sequence[Parked]) -> None:
        """Let messages wait."""
        if not parked:
            return
        self._run(
            "park",
            places=[each.place for each in parked],
            nths=[each.nth for each in parked],
            objects=[each.object for each in parked],
            keys=[each.key for each in parked],
            tries=[each.tries for each in parked],
            reasons=[each.reason for each in parked],
            waits=sparse([each.wait for each in parked]),
            dead=[each.dead for each in parked],
        )

    def unpark(self, done: Sequence[Due]) -> None:
        """These messages wait no more."""
        if done:
            self._run("unpark", places=[each.place for each in done], nths=[each.nth for each in done])

    def wake(self) -> None:
        """Let the first of each key be tried."""
        self._run("wake")

    def see(self, ids: Iterable[str]) -> set[str]:
        """Note ids of messages; returns those that had not come before."""
        ordered = sorted(set(ids))
        return {id for (id,) in self._run("see", ids=ordered)} if ordered else set()

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to the day's counts."""
        if told := sorted((+Counter(counts)).items()):
            self._run("count", kinds=[kind for kind, _ in told], counts=[count for _, count in told])

    def standing(self, objects: Iterable[str]) -> Mapping[str, tuple[bool, tuple[str, str] | None]]:
        """Of objects: whether a walk has ever begun, and the table that the store knows as theirs. They cannot be
        renamed until the transaction has ended."""
        asked = {"objects": sorted(set(objects))}
        self._run("keep_still", **asked)
        return {
            name: (begun, None if table is None else (schema, table))
            for name, begun, schema, table in self._run("standing", **asked)
        }

    def forwarded(self, ids: Iterable[str]) -> set[str]:
        """Which events of these ids are in the outbox already."""
        return {id for (id,) in self._run("forwarded", ids=list(ids))}

    def _run(self, name: str, **asked: Any) -> list[tuple[Any, ...]]:
        told = {"source": self.source, "endpoint": self.endpoint, **asked}
        found = self.conn.execute(statement(_FILE, name, self.schema), told, binary=True)
        return found.fetchall() if found.description else []


def left(conn: Connection, schema: str, source: str) -> Left:
    """What waits of a source."""
    row = conn.execute(statement(_FILE, "left", schema), {"source": source}).fetchone()
    assert row is not None
    return Left(*row)


def question(schema: str, source: str) -> tuple[sql.Composed, dict[str, Any]]:
    """The question whether anything of a source is to be done now, as a statement with its parameters: for connections
    of either kind. The row that answers it: whether; and two values that show that something new has come."""
    return statement(_FILE, "waiting", schema), {"source": source}


def waiting(conn: Connection, schema: str, source: str) -> tuple[bool, tuple[int, datetime | None]]:
    """Whether anything of a source is to be done now; and what shows that something new has come."""
    row = conn.execute(*question(schema, source)).fetchone()
    assert row is not None
    return row[0], (row[1], row[2])
