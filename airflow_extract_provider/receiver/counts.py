"""What comes in, counted: for Prometheus, and for the table `inbox_count`, which outlives the process."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import Any, TypeAlias

import psycopg

from airflow_extract_provider.extract.store import inbox_count
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["BOUNDS", "Counted", "Tally", "row_kind"]

_Key: TypeAlias = tuple[str, str, str]
_Row: TypeAlias = tuple[str, str, date, str]

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of what is told of how long an answer took, in seconds."""

_ROW_KINDS = {"stored": "received", "duplicate": "duplicate", "forged": "forged", "old": "forged", "future": "forged"}


def row_kind(kind: str) -> str:
    """What an outcome counts as in the table: received, duplicate, forged (its signature, or its time), refused."""
    return _ROW_KINDS.get(kind, "refused")


@dataclass(slots=True)
class Counted:
    """Numbers that only grow: outcomes by source, endpoint and kind; seconds by source and endpoint, as how many were
    within each of the bounds, beyond the last, and their sum."""

    outcomes: Counter[_Key] = field(default_factory=Counter)
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, other: Counted) -> None:
        """Count what another has counted too."""
        self.outcomes.update(other.outcomes)
        for place, found in other.seconds.items():
            known = self.seconds.setdefault(place, [0] * len(found))
            known[:] = [one + more for one, more in zip(known, found, strict=True)]


class Tally:
    """The receiver's counts. :meth:`count` is all that a delivery pays for; others look at the sums now and then."""

    def __init__(self, today: Callable[[], date] | None = None) -> None:
        self.counted = Counted()
        self._today = today or (lambda: datetime.now(timezone.utc).date())
        self._taken: Counter[_Key] = Counter()
        self._rows: Counter[_Row] = Counter()

    def count(self, source: str, endpoint: str, kind: str, seconds: float | None = None) -> None:
        """Count a delivery by its outcome, and how long its answer took."""
        counted = self.counted
        counted.outcomes[source, endpoint, kind] += 1
        if seconds is not None:
            try:
                found = counted.seconds[source, endpoint]
            except KeyError:
                found = counted.seconds[source, endpoint] = [0] * (len(BOUNDS) + 2)
            found[bisect_left(BOUNDS, seconds)] += 1
            found[-1] += seconds

    def expect(self, kinds: Iterable[_Key]) -> None:
        """Show these from the beginning, as 0: who looks for an increase sees none where a number begins at 1."""
        self.counted.outcomes.update(dict.fromkeys(kinds, 0))

    def take(self) -> None:
        """Put what has come since the last time under today's date."""
        today = self._today()
        for (source, endpoint, kind), total in list(self.counted.outcomes.items()):
            key = (source, endpoint, kind)
            # At a path that is no endpoint's there is no source.
            if source and (fresh := total - self._taken[key]):
                self._taken[key] = total
                self._rows[source, endpoint, today, row_kind(kind)] += fresh

    @property
    def unwritten(self) -> bool:
        """Whether there is something for the table."""
        self.take()
        return bool(self._rows)

    async def write(self, conn: psycopg.AsyncConnection[Any], schema: str) -> None:
        """Add what has come to the table, in one statement. Raises psycopg's errors: then it is kept for the next time.

        A process that is killed between the commit and its end counts some twice; counts are no proof.
        """
        self.take()
        # What comes meanwhile is counted beside it.
        rows, self._rows = self._rows, Counter()
        try:
            if rows:
                await conn.execute(statement("inbox.sql", "count", schema), inbox_count.parameters(rows))
        except BaseException:
            self._rows.update(rows)
            raise
