"""Who may commit for a walk: one runner at a time (law: one runner per walk).

The fence is a row with a number that grows with every takeover. Each transaction of a walk updates it first, with the
number it was given; whoever has lost the walk finds no row and commits nothing. Session locks would not do: they do not
survive a pooler, and a stopped process would hold them for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg

from airflow_extract_provider.extract.errors import FencedError, WalkBusyError
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Fence", "Scope", "acquire", "hold", "holding", "idle_limit", "release"]

_FILE = "fence.sql"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a fence guards. ``walk`` is ``*`` for all walks of an object: only one of them runs at a time."""

    source: str
    object: str
    walk: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to commit for a scope, as long as ``number`` is the newest.

    ``idle_timeout`` is how long Postgres lets a transaction live whose process has stopped in the middle of it.
    """

    scope: Scope
    number: int
    idle_timeout: timedelta = timedelta(seconds=60)

    def parameters(self) -> dict[str, Any]:
        """The fence as parameters of its statements."""
        return {**asdict(self.scope), "number": self.number}


def acquire(
    conn: Connection,
    schema: str,
    scope: Scope,
    runner: str,
    label: str,
    *,
    silent_after: timedelta,
    take_over: bool = False,
    idle_timeout: timedelta = timedelta(seconds=60),
) -> Fence:
    """Take the fence: when it is free, when the same ``runner`` (a retry of the task) held it, when its holder has been
    silent for longer than ``silent_after``, or in any case with ``take_over``. The connection is in no transaction: a
    process that stops in the middle of one must not keep the row locked.

    Raises WalkBusyError: somebody else holds it and is alive, or is in the middle of a transaction.
    """
    asked = {**asdict(scope), "runner": runner, "label": label, "silent_after": silent_after, "take_over": take_over}
    row = None
    with suppress(psycopg.errors.LockNotAvailable), conn.transaction():
        conn.execute(statement(_FILE, "impatient", schema))
        row = conn.execute(statement(_FILE, "acquire", schema), asked).fetchone()
    if row is not None:
        return Fence(scope, row[0], idle_timeout)
    holder = conn.execute(statement(_FILE, "holder", schema), asdict(scope)).fetchone()
    raise _busy(scope, holder, silent_after)


@contextmanager
def holding(conn: Connection, schema: str, fence: Fence) -> Iterator[datetime]:
    """A transaction that only the fence's holder can commit. Gives Postgres's clock.

    The fence comes first: everything after it is written by the one who may (law: one runner per walk). If the process
    stops in the middle of it, Postgres ends it: its locks would keep the next runner out for ever.

    Raises FencedError: the walk was taken over.
    """
    with conn.transaction():
        asked = {**fence.parameters(), "idle": idle_limit(fence)}
        yield _told(conn.execute(statement(_FILE, "enter", schema), asked), fence)


def idle_limit(fence: Fence) -> str:
    """How long Postgres lets a transaction live whose process has stopped, as it reads it."""
    return f"{fence.idle_timeout.total_seconds() * 1000:.0f}ms"


def hold(conn: Connection, schema: str, fence: Fence) -> datetime:
    """Take part in the current transaction: beat, and lock the row against a takeover. Returns Postgres's clock.

    Raises FencedError: the walk was taken over.
    """
    return _told(conn.execute(statement(_FILE, "hold", schema), fence.parameters()), fence)


def _told(held: psycopg.Cursor[tuple[Any, ...]], fence: Fence) -> datetime:
    """Postgres's clock, if the fence is still ours.

    Raises FencedError: the walk was taken over.
    """
    row = held.fetchone()
    if row is None:
        scope = fence.scope
        raise FencedError(
            "this run has lost the walk: another run has taken it over.",
            kept="everything this run had committed; nothing after the takeover.",
            todo="Nothing: the other run goes on from the same place.",
            source=scope.source,
            object=scope.object,
        )
    found: datetime = row[0]
    return found


def release(conn: Connection, schema: str, fence: Fence) -> None:
    """Give the fence back, if it is still ours."""
    conn.execute(statement(_FILE, "release", schema), fence.parameters())


def _busy(scope: Scope, holder: tuple[Any, ...] | None, silent_after: timedelta) -> WalkBusyError:
    label, heartbeat, silent = holder or ("a run that has just ended", None, timedelta())
    seen = f", last seen {silent.total_seconds():.0f} s ago ({heartbeat:%Y-%m-%d %H:%M:%S %Z})" if heartbeat else ""
    return WalkBusyError(
        f"the walk is held by {label}{seen}.",
        kept="nothing was read or written by this run.",
        todo=f"Wait for it; or, if it is dead, run with `take_over`, or try again once it has been silent for "
        f"{silent_after.total_seconds():.0f} s.",
        source=scope.source,
        object=scope.object,
    )
