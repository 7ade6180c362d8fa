"""What webhooks were worth: which changes they brought first, which they told of late, and which they never told of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Changes", "Received", "Silence", "changes", "received", "silence", "today"]

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
class Silence:
    """Webhooks of an object no longer come, or never did: none ``since`` (aware; None: ever), and ``missed`` changes
    were found otherwise meanwhile."""

    since: datetime | None
    missed: int

    def __str__(self) -> str:
        since = "none has ever come" if self.since is None else f"the last came at {self.since:%Y-%m-%d %H:%M:%S %Z}"
        return f"{since}, and {self.missed:,} changes were found by polling since. Is the subscription still there?"


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


def silence(conn: Connection, whose: Sequence[str]) -> Silence | None:
    """Whether webhooks of an object have stopped while polling finds changes; None: not so."""
    schema, source, object = whose
    row = conn.execute(statement(_FILE, "silent", schema), {"source": source, "object": object}).fetchone()
    return None if row is None or row[1] < _SILENT else Silence(*row)
