"""Sweeps: what an open one has seen, what it has found, and what of the copy it has not seen.

While a sweep is open, every walk of the object adds the keys on its pages to what was seen. A record is absent that was
stored before the sweep began and was not seen since (law: newer wins).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_extract_provider.extract.errors import TooManyDeletesError
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.refetch import Due
from airflow_extract_provider.extract.store.report import Report
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Last", "Sweep", "begin", "end", "found", "judge", "last", "now", "opened", "report", "see", "unseen"]

_FILE = "sweep.sql"


@dataclass(frozen=True, slots=True)
class Sweep:
    """An open sweep. ``began_at``: by Postgres's clock; ``looked_at``: before the API looked up what came first, which
    may have been earlier, for a cache. ``complete_to``: up to when the incremental walk had said that all is there.
    ``judged_at``: since then what it had not seen is noted."""

    number: int
    began_at: datetime
    looked_at: datetime
    complete_to: datetime | None
    judged_at: datetime | None

    @property
    def judged(self) -> bool:
        """Whether what it had not seen is noted."""
        return self.judged_at is not None


@dataclass(frozen=True, slots=True)
class Last:
    """When the last complete reading of an object began, by Postgres's clock, and which runner began it. ``number`` is
    that of a sweep; None: it was the backfill."""

    began_at: datetime
    cause: str
    number: int | None


def begin(
    conn: Connection, schema: str, source: str, object: str, number: int, cause: str, complete_to: datetime | None
) -> None:
    """Open a sweep, in the transaction of its ledger row, whose ``number`` it has. An open one is given up."""
    asked = {"source": source, "object": object, "number": number, "cause": cause, "complete_to": complete_to}
    conn.execute(statement(_FILE, "give_up", schema), asked)
    conn.execute(statement(_FILE, "begin", schema), asked)


def opened(conn: Connection, schema: str, source: str, object: str) -> Sweep | None:
    """The open sweep of an object, if there is one."""
    row = conn.execute(statement(_FILE, "open", schema), {"source": source, "object": object}).fetchone()
    return None if row is None else Sweep(*row)


def last(conn: Connection, schema: str, source: str, object: str) -> Last | None:
    """The last complete reading of an object whose backfill is complete: a sweep, or that backfill."""
    row = conn.execute(statement(_FILE, "last", schema), {"source": source, "object": object}).fetchone()
    return None if row is None else Last(*row)


def now(conn: Connection, schema: str) -> datetime:
    """Postgres's clock."""
    row = conn.execute(statement(_FILE, "clock", schema)).fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def see(
    conn: Connection,
    schema: str,
    source: str,
    object: str,
    sweep: Sweep,
    keys: Sequence[str],
    looked_at: datetime,
    *,
    own: bool = True,
) -> None:
    """Add keys to what was seen, in the transaction of their pages, the first of which was looked up at ``looked_at``;
    not ``own``: of another walk. What was noted as absent is not, if somebody sees it after all."""
    asked = {"source": source, "object": object, "sweep": sweep.number, "keys": keys, "looked_at": looked_at}
    if sweep.judged:
        conn.execute(statement(_FILE, "strike", schema), asked)
        return
    conn.execute(statement(_FILE, "see", schema), {**asked, "own": own})
    if looked_at < sweep.looked_at:
        conn.execute(statement(_FILE, "looked", schema), asked)


def found(conn: Connection, schema: str, sweep: Sweep, counts: Mapping[str, int], fields: Mapping[str, int]) -> None:
    """Add to a sweep's report, in the transaction that stores what was found."""
    asked = {"sweep": sweep.number, "counts": json.dumps(dict(counts)), "fields": json.dumps(dict(fields))}
    conn.execute(statement(_FILE, "found", schema), asked)


def judge(
    conn: Connection,
    schema: str,
    source: str,
    object: str,
    table: tuple[str, str],
    sweep: Sweep,
    before: datetime,
    allowed: Callable[[int], int],
    *,
    insist: bool = False,
    provable: bool = True,
    dated: bool = False,
) -> int:
    """Note what a sweep that has read everything has not seen, of what was stored ``before`` an instant, in the current
    transaction. ``allowed`` tells how many of so many stored records its list may lack; ``insist``: a person said so,
    and it may lack all. Not ``provable``: that it has not seen them does not tell that they are gone, and none is
    noted, unless a person insists; ``dated``: nor is one without a version. Returns how many are left so.

    Raises TooManyDeletesError: the list lacks more. Nothing must be committed then.
    """
    asked: dict[str, Any] = {"source": source, "object": object, "sweep": sweep.number, "before": before, "own": False}
    noted = provable or insist
    asked["dated"] = True if dated and noted and not insist else None
    conn.execute(statement(_FILE, "impatient", schema))
    ((stored, seen, beside),) = conn.execute(statement(_FILE, "stored", schema, table), asked).fetchall()
    most = allowed(stored) if seen or insist else 0
    if beside or not noted:
        # What others have seen is there: all the more reason to doubt a list that lacks it.
        _check(_absent(conn, schema, table, {**asked, "own": True}), stored, seen, most)
    if noted:
        absent = conn.execute(statement(_FILE, "note_absent", schema, table), {**asked, "most": most + 1}).rowcount
        if absent > most:
            _check(_absent(conn, schema, table, asked), stored, seen, most)
        withheld = _absent(conn, schema, table, {**asked, "dated": False}) if asked["dated"] else 0
    else:
        absent, withheld = 0, _absent(conn, schema, table, asked)
    _judged(conn, schema, sweep, {"stored": stored, "seen": seen, "absent": absent + withheld}, withheld)
    return withheld


def _judged(conn: Connection, schema: str, sweep: Sweep, told: Mapping[str, int], withheld: int) -> None:
    found(conn, schema, sweep, {"withheld": withheld} if withheld else {}, {})
    conn.execute(statement(_FILE, "judge", schema), {"sweep": sweep.number, **told})


def _check(absent: int, stored: int, seen: int, most: int) -> None:
    """See that a list does not lack more than it may. Raises TooManyDeletesError."""
    if absent > most:
        raise _too_many(absent, stored, seen, most)


def _absent(conn: Connection, schema: str, table: tuple[str, str], asked: Mapping[str, Any]) -> int:
    row = conn.execute(statement(_FILE, "absent", schema, table), asked).fetchone()
    assert row is not None
    return int(row[0])


def _too_many(absent: int, stored: int, seen: int, most: int) -> TooManyDeletesError:
    what = (
        f"the API's list no longer holds {absent:,} of {stored:,} stored records; a sweep may delete {most:,} of them."
    )
    if not seen:
        what = f"the API's list was empty, and {stored:,} records are stored."
    return TooManyDeletesError(
        what,
        kept="everything; nothing was deleted. All that the list held is stored.",
        todo="Look whether the API hides records (rights of the login, a filter, a trouble of its own) and read again "
        f"with `reset`. If they are gone, raise sweep.max_deletes, or run once with max_deletes: {absent}.",
    )


def unseen(conn: Connection, schema: str, source: str, object: str, limit: int) -> list[Due]:
    """The records to be deleted next, those noted first coming first."""
    asked = {"source": source, "object": object, "limit": limit}
    return [Due(key, number) for key, number in conn.execute(statement(_FILE, "unseen", schema), asked)]


def end(conn: Connection, schema: str, sweep: Sweep) -> int:
    """Close a sweep, in the transaction of its last ledger row. What it has seen is forgotten. Returns how many absent
    records could not be read by key: they stay noted."""
    left = conn.execute(statement(_FILE, "end", schema), {"sweep": sweep.number}).rowcount
    if left:
        found(conn, schema, sweep, {"unread": left}, {})
    return left


def report(conn: Connection, schema: str, number: int) -> Report:
    """What a sweep has found so far."""
    row = conn.execute(statement(_FILE, "report", schema), {"sweep": number}).fetchone()
    assert row is not None
    return Report(*row)
