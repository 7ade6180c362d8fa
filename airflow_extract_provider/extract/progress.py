"""What a run says: log lines while it goes on, a summary at its end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.store.report import Report

__all__ = ["KINDS", "Progress", "Summary", "counted"]

_log = logging.getLogger(__name__)

KINDS = (
    "created",
    "updated",
    "undeleted",
    "deleted",
    "regressed",
    "unchanged",
    "stale",
    "refetch",
    "quarantined",
)
"""The kinds of change, in the order in which people read them."""


def counted(count: int, what: str) -> str:
    """A number with its noun: ``1 page``, ``1,200 pages``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    ``pages``, ``requests`` (retries included), ``records`` and ``counts`` (changes by kind, and ``events``) are those
    of the runner: of all tries and slices of a task instance, as its ledger rows add them up. ``seconds`` is the wall
    time of the last of them. ``complete``: the walk has reached the end, and the copy is complete up to ``complete_to``
    (aware; None before the end). ``cursor_before`` and ``cursor_after`` are positions as JSON. ``sweep`` is what the
    sweep has found that the run took part in, as :meth:`~.report.Report.as_dict` tells it. ``window`` is the window of
    time that was read. ``slice`` holds records, requests and changes by kind of the last slice alone, ``quota_left``
    the part of the API's quota, from 0 to 1, that it has left; None: not known. ``webhooks`` tells of the day's changes
    of an object that webhooks tell of, as :func:`~.webhook_audit.today` does.
    """

    source: str
    object: str
    walk: str
    complete: bool
    pages: int
    requests: int
    records: int
    counts: Mapping[str, int]
    seconds: float
    cursor_before: Mapping[str, Any]
    cursor_after: Mapping[str, Any]
    complete_to: datetime | None
    without_version: int = 0
    sweep: Mapping[str, Any] | None = None
    window: str | None = None
    slice: Mapping[str, int] = field(default_factory=dict)
    quota_left: float | None = None
    webhooks: Mapping[str, int] | None = None

    @property
    def lag_seconds(self) -> float | None:
        """How far the copy is behind now, by this machine's clock; None: not complete to any instant."""
        if self.complete_to is None:
            return None
        return round((datetime.now(timezone.utc) - self.complete_to).total_seconds(), 3)

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values, the changes by kind among them; small enough for XCom."""
        return {
            "source": self.source,
            "object": self.object,
            "walk": self.walk,
            "complete": self.complete,
            "pages": self.pages,
            "requests": self.requests,
            "records": self.records,
            **{kind: self.counts.get(kind, 0) for kind in KINDS},
            "events": self.counts.get("events", 0),
            "without_version": self.without_version,
            "seconds": round(self.seconds, 3),
            "cursor_before": dict(self.cursor_before),
            "cursor_after": dict(self.cursor_after),
            "complete_to": self.complete_to.isoformat() if self.complete_to else None,
            "lag_seconds": self.lag_seconds,
            **({} if self.sweep is None else {"sweep": dict(self.sweep)}),
            **({} if self.window is None else {"window": self.window}),
            **({} if self.webhooks is None else {"webhooks": dict(self.webhooks)}),
        }


@dataclass(slots=True)
class Progress:
    """Counts a run's pages and says how far it is: at the first page, every ``every`` seconds, at the end.

    ``private``: the place, which may hold a key, is not said. ``left`` tells which part of the quota is left, from 0 to
    1, or None. ``version`` is the name of the records' version, None where they have none.
    """

    what: str
    every: float
    private: bool = False
    left: Callable[[], float | None] = lambda: None
    version: str | None = None
    pages: int = 0
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    _said: float = float("-inf")

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.monotonic() - self.began

    def add(self, records: Sequence[int], counts: Mapping[str, int], position: Position) -> None:
        """Count the records of each page that was committed, and the changes; say it if it is time."""
        self.pages += len(records)
        self.records += sum(records)
        self.counts.update(counts)
        if time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            rate = self.records / max(self.seconds, 1e-6)
            parts = [
                f"page {position.pages}",
                f"{position.records:,} records",
                self._changes(),
                f"{rate:,.0f} records/s",
            ]
            left = self.left()
            quota = [] if left is None else [f"quota {left * 100:.0f} % left"]
            _log.info("%s   %s", self.what, " · ".join([*parts, *self._place(position), *quota]))

    def end(self, position: Position, stopped: str, *, complete: bool, found: Report | None = None) -> None:
        """Say how the run ended; ``stopped`` tells why when the walk is not ``complete``. ``found``: by its sweep."""
        if complete and found is not None:
            _log.info("%s   done: %s", self.what, found.line(self.version, private=self.private))
            for line in found.table(self.version, private=self.private):
                _log.info("%s   %s", self.what, line)
            return
        if complete and not self.pages:
            at = f": complete to {_second(position.closed)}; `reset` reads everything again" if position.closed else ""
            _log.info("%s   nothing to do%s", self.what, at)
            return
        read = [counted(self.records, "record"), counted(self.pages, "page")]
        read.append(counted(self.counts["requests"], "request"))
        parts = [f"{', '.join(read)}, {self.seconds:.1f} s", self._changes()]
        if position.nulls:
            parts.append(f"{position.nulls:,} without the version")
        if complete and position.closed:
            parts.append(f"complete to {_second(position.closed)}")
        elif not complete:
            parts += [*self._place(position), "goes on from here"]
        _log.info("%s   %s: %s", self.what, "done" if complete else stopped, " · ".join(parts))

    def _place(self, position: Position) -> list[str]:
        """The place, where it means something to a person; a page token means nothing, and could be a secret."""
        if self.private:
            return []
        after = getattr(position.place, "after", None)
        at = [] if position.order is None else [f"at {position.order.replace('+00:00', 'Z').replace(' ', 'T')}"]
        return at if after is None else [*at, f"after {after}"]

    def _changes(self) -> str:
        told = " ".join(f"{self.counts[kind]:,} {kind}" for kind in KINDS if self.counts[kind])
        events = f" · {counted(self.counts['events'], 'event')}" if self.counts["events"] else ""
        return (told or "no change") + events


def _second(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"
