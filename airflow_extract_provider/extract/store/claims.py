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

from airflow_extract_provider.extract.store.arrays import Numbers, Texts
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = ["Claims", "Due", "Left", "Parked", "Whose", "left", "question", "waiting"]

_FILE = "claims.sql"
_RUN = 20
"""How many messages of one key are tried again at once behind its first."""

Whose: TypeAlias = tuple[str, str]
"""Object and key."""


@dataclass(frozen=True, slots=True)
class Due:
    """A parked message that is to be tried again, by its place and number; how often it was tried. ``size`` is that of
    its delivery's body, in bytes; None: that is gone."""

    place: int
    nth: int
    tries: int
    object: str = ""
    key: str = ""
    size: int | None = 0

    @property
    def at(self) -> tuple[int, int]:
        """Its place and number."""
        return self.place, self.nth


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
    """How many deliveries wait, how many parked messages do, and how many are dead letters. ``elsewhere``: of the first
    two, those at addresses that nobody asked for."""

    deliveries: int
    parked: int
    dead: int
    elsewhere: int


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

    def claim(self, limit: int, most_bytes: int, *, in_order: bool, after: int = 0) -> list[tuple[Any, ...]]:
        """The oldest deliveries that wait, at most so many and so large (one at least), as (place, headers, body,
        received). ``in_order``: not past those that another run has claimed. ``after``: the last place that this run
        has taken; what stands before it is looked at only if nothing does behind it, unless ``in_order``.
        """
        found = self._claimed(limit, after, in_order=in_order)
        places: list[int] = []
        size = 0
        for place, length in found:
            if places and size + length > most_bytes:
                break
            places.append(place)
            size += length
        return self.fetch(places)

    def _claimed(self, limit: int, after: int, *, in_order: bool) -> list[tuple[Any, ...]]:
        if in_order:
            return self._run("claim_in_order", limit=limit)
        # While somebody holds an old snapshot, the front is full of what was done: each look there reads all of it. But
        # what others had claimed and gave back stands there, and what was committed late.
        found = self._run("claim", limit=limit, after=after)
        return found if found or not after else self._run("claim", limit=limit, after=0)

    def fetch(self, places: Sequence[int]) -> list[tuple[Any, ...]]:
        """Deliveries by their places."""
        return self._run("fetch", places=Numbers(places)) if places else []

    def due(self, limit: int, most_bytes: int) -> list[Due]:
        """The parked messages that are due, the longest due, and some that stand behind them; so many as fit, one at
        least."""
        heads = [Due(*row) for row in self._run("due", limit=limit)]
        keyed = [each for each in heads if each.key]
        behind: list[Due] = []
        if keyed:
            asked: dict[str, Any] = {"places": [each.place for each in keyed], "nths": [each.nth for each in keyed]}
            asked |= {"objects": [each.object for each in keyed], "keys": [each.key for each in keyed]}
            behind = [Due(*row) for row in self._run("behind", each=_RUN, **asked)]
        # A message comes only with all that stand before it: cut off at the end.
        found: list[Due] = []
        size, bodies = 0, set[int]()
        for each in sorted([*heads, *behind], key=lambda each: each.at):
            size += 0 if each.place in bodies else each.size or 0
            bodies.add(each.place)
            if found and (size > most_bytes or len(found) >= limit):
                break
            found.append(each)
        return found

    def blocked(self, keys: Iterable[Whose]) -> set[Whose]:
        """Those of the keys of which an older message is parked."""
        objects, texts = zip(*sorted(set(keys)), strict=True)
        return {(object, key) for object, key in self._run("blocked", objects=list(objects), keys=list(texts))}

    def wake_keys(self, keys: Iterable[Whose]) -> None:
        """Let the first of each of these keys be tried, if it only waits for those before it."""
        if ordered := sorted(set(keys)):
            objects, texts = zip(*ordered, strict=True)
            self._run("wake_keys", objects=list(objects), keys=list(texts))

    def done(self, places: Sequence[int]) -> None:
        """These deliveries are taken out."""
        if places:
            self._run("done", places=Numbers(places))

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
        return {id for (id,) in self._run("see", ids=Texts(ordered))} if ordered else set()

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


def left(conn: Connection, schema: str, source: str, endpoints: Iterable[str]) -> Left:
    """What waits of a source, at these addresses."""
    asked = {"source": source, "endpoints": list(endpoints)}
    row = conn.execute(statement(_FILE, "left", schema), asked).fetchone()
    assert row is not None
    return Left(*row)


def question(schema: str, source: str, endpoints: Sequence[str] | None = None) -> tuple[sql.Composed, dict[str, Any]]:
    """The question whether anything of a source is to be done now, as a statement with its parameters: for connections
    of either kind. The row that answers it: whether; and two values that show that something new has come.
    ``endpoints``: only at these addresses; None: at any, also one that no file describes any more."""
    told = None if endpoints is None else list(endpoints)
    return statement(_FILE, "waiting", schema), {"source": source, "endpoints": told}


def waiting(
    conn: Connection, schema: str, source: str, endpoints: Sequence[str] | None = None
) -> tuple[bool, tuple[int, datetime | None]]:
    """Whether anything of a source is to be done now; and what shows that something new has come."""
    row = conn.execute(*question(schema, source, endpoints)).fetchone()
    assert row is not None
    return row[0], (row[1], row[2])
