"""What webhooks were worth: which changes they brought first, which they told of late, and which they never told of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Changes", "Received", "Silence", "Waiting", "changes", "received", "silence", "today", "unapplied"]

_FILE = "webhook_audit.sql"
_SILENT = 5
"""So many changes in a row without a webhook are no accident of the network."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The stored changes of an object on a day (UTC): how many a ``webhook``, a ``poll``, a ``sweep`` or a ``refetch``
    brought. Of those that no webhook brought: it came ``late``; it never came, so it was ``missed``; it may still be
    ``expected``."""

    source: str
    object: str
    day: date
    webhook: int
    poll: int
    sweep: int
    refetch: int
    late: int
    missed: int
    expected: int


@dataclass(frozen=True, slots=True)
class Received:
    """What came to an address on a day (UTC), by kind; and when the last was counted."""

    source: str
    endpoint: str
    day: date
    counts: Mapping[str, int] = field(default_factory=dict)
    last_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """So many webhooks of a source wait in the inbox, the oldest ``since`` (aware), and nothing applies them: what they
    tell of counts as missed meanwhile."""

    source: str
    count: int
    since: datetime

    def __str__(self) -> str:
        wait = f"in the inbox are {self.count:,}, the oldest since {_at(self.since)}"
        todo = f"Unpause the DAG `{self.source}_webhooks`, or see why its runs fail."
        return f"webhooks have come, but nothing applies them: {wait}. {todo}"


@dataclass(frozen=True, slots=True)
class Silence:
    """Webhooks of an object no longer come, or never did: none ``since`` (aware; None: ever), and ``missed`` changes
    were found otherwise meanwhile. Or they come, and are ``waiting``."""

    since: datetime | None
    missed: int
    waiting: Waiting | None = None

    def __str__(self) -> str:
        if self.waiting is not None:
            return f"{self.waiting} Meanwhile {self.missed:,} changes were found by polling."
        since = "none has ever come" if self.since is None else f"the last came at {_at(self.since)}"
        found = f"{self.missed:,} changes were found by polling since"
        return f"webhooks have fallen silent: {since}, and {found}. Is the subscription still there?"


def changes(conn: Connection, schema: str, source: str | None = None, days: int = 7) -> list[Changes]:
    """Per day and object, the newest day first; of a source, or of all (None)."""
    asked = {"source": source, "days": days}
    return [Changes(*row) for row in conn.execute(statement(_FILE, "changes", schema), asked)]


def received(conn: Connection, schema: str, source: str | None = None, days: int = 7) -> list[Received]:
    """Per day and address, the newest day first."""
    asked = {"source": source, "days": days}
    counts: defaultdict[tuple[str, str, date], Counter[str]] = defaultdict(Counter)
    last: dict[tuple[str, str, date], datetime] = {}
    for name, endpoint, day, kind, count, at in conn.execute(statement(_FILE, "counts", schema), asked):
        counts[name, endpoint, day][kind] += count
        last[name, endpoint, day] = max(at, last.get((name, endpoint, day), at))
    return [Received(*whose, dict(told), last[whose]) for whose, told in counts.items()]


def today(conn: Connection, whose: Sequence[str]) -> Mapping[str, int]:
    """Of an object's changes since midnight (UTC): how many a webhook brought and how many anything else did, and of
    these how many webhooks came late, were missed, are expected. ``whose`` as of a target."""
    schema, source, object = whose
    row = conn.execute(statement(_FILE, "today", schema), {"source": source, "object": object}).fetchone()
    assert row is not None
    return dict(zip(("webhook", "otherwise", "late", "missed", "expected"), row, strict=True))


def silence(conn: Connection, whose: Sequence[str], endpoints: Collection[str] | None = None) -> Silence | None:
    """Whether webhooks of an object have stopped while polling finds changes, or are not applied; None: neither.
    ``endpoints``: the addresses that they come to; None: any of the source's."""
    since, missed, due_at = _silent(conn, whose)
    return None if missed < _SILENT else Silence(since, missed, _waiting(conn, whose, endpoints, due_at))


def unapplied(conn: Connection, whose: Sequence[str]) -> Waiting | None:
    """What waits of a source, if webhooks of an object are missed that may be among it; None: there are none such."""
    _, missed, due_at = _silent(conn, whose)
    return _waiting(conn, whose, None, due_at) if missed else None


def _silent(conn: Connection, whose: Sequence[str]) -> tuple[Any, ...]:
    schema, source, object = whose
    row = conn.execute(statement(_FILE, "silent", schema), {"source": source, "object": object}).fetchone()
    assert row is not None
    return row


def _waiting(
    conn: Connection, whose: Sequence[str], endpoints: Collection[str] | None, due_at: datetime
) -> Waiting | None:
    schema, source, _ = whose
    asked = {"source": source, "endpoints": None if endpoints is None else list(endpoints), "due_at": due_at}
    row = conn.execute(statement(_FILE, "waiting", schema), asked).fetchone()
    return None if row is None else Waiting(source, *row)


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S %Z}"
