"""What a sweep has found, for people and programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["Report"]

_SHOWN = 20
"""Fields in a report; `extract.sweep` holds a hundred."""
_NAMED = 3
"""Fields in a line of a log."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a sweep has found, so far or in the end; its counts are written with the rows that they count.

    ``stored`` records were in the copy when the list had been read; ``absent`` of them had been there before the sweep
    began, and were not seen. ``seen`` counts keys.
    ``counts`` are by kind, see :meth:`as_dict`. ``fields`` are the paths of what has changed though the version had
    not, and how often, of at most a hundred of them.
    """

    number: int
    began_at: datetime
    ended_at: datetime | None
    complete_to: datetime | None
    stored: int | None
    seen: int | None
    absent: int | None
    counts: Mapping[str, int]
    fields: Mapping[str, int]

    def as_dict(self, *, private: bool = False) -> dict[str, Any]:
        """The report as JSON values.

        ``new``: records that the copy did not have; ``missed``: those of them that are older than what the incremental
        walk had called complete. ``changed``: records that differ from their copy; ``silent``: those of them whose
        version is the same, ``fields`` tells where; ``late``: those whose version is older than what the incremental
        walk had called complete. ``deleted``: by whatever proof; ``confirmed``: by a read by key. ``still_there``: not
        in the list, but there when read by key. ``unread``: not in the list, and not to be read by key; ``withheld``:
        not seen, but not deleted either, since that is no proof here. ``returned``: deleted before. ``private`` leaves
        the fields out.
        """
        told = {name: self.counts.get(name, 0) for name in _COUNTS}
        shown = sorted(self.fields.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
        return {
            "number": self.number,
            "began_at": self.began_at.isoformat(),
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "stored": self.stored,
            "seen": self.seen,
            "absent": self.absent,
            **told,
            "fields": {} if private else dict(shown),
        }

    def line(self, version: str | None, *, private: bool = False) -> str:
        """The report in a line; ``version`` is the field's name, None where the object has none."""
        told = self.as_dict(private=private)
        parts = [f"{self.seen:,} seen"] if self.seen is not None else []
        parts += list(_parts(told, version, [*told["fields"]][:_NAMED]))
        return " · ".join(parts)

    def table(self, version: str | None, *, private: bool = False) -> list[str]:
        """The report as lines of a table: what was found, how much of it."""
        told = self.as_dict(private=private)
        rows = [(told[name], what) for name, what in _ROWS if told[name] is not None]
        lines = [f"{count:>12,}  {what}" for count, what in rows]
        if version is not None:
            lines += [f"{count:>12,}  changed {field} without {version}" for field, count in told["fields"].items()]
        return lines


_COUNTS = (
    "new",
    "missed",
    "changed",
    "silent",
    "late",
    "deleted",
    "confirmed",
    "still_there",
    "unread",
    "withheld",
    "returned",
)

_ROWS = (
    ("stored", "in the copy"),
    ("seen", "seen"),
    ("new", "new"),
    ("missed", "of these the incremental walk had missed"),
    ("changed", "changed"),
    ("silent", "of these without a new version"),
    ("late", "of these the incremental walk had missed"),
    ("deleted", "deleted"),
    ("confirmed", "of these confirmed by key"),
    ("still_there", "not in the list, but there by key"),
    ("unread", "not in the list, and not to be read by key"),
    ("withheld", "not in the list, but not deleted: that alone is no proof here"),
    ("returned", "returned"),
)


def _parts(told: Mapping[str, Any], version: str | None, fields: list[str]) -> Iterator[str]:
    named = f" ({', '.join(fields)})" if fields else ""
    silent = f", {told['silent']:,} of them without {version}{named}" if told["silent"] else ""
    yield f"{told['changed']:,} changed{silent}"
    if told["new"]:
        yield f"{told['new']:,} new"
    if told["deleted"]:
        by_key = told["confirmed"]
        how = (
            "" if not by_key else ", confirmed by key" if by_key == told["deleted"] else f", {by_key:,} of them by key"
        )
        yield f"{told['deleted']:,} deleted{how}"
    if told["returned"]:
        yield f"{told['returned']:,} returned"
    if told["still_there"]:
        yield f"{told['still_there']:,} not in the list, but there by key"
    if told["unread"]:
        yield f"{told['unread']:,} not in the list, and not to be read by key"
    if told["withheld"]:
        yield f"{told['withheld']:,} not in the list, not deleted"
    if missed := told["missed"] + told["late"]:
        yield f"{missed:,} that the incremental walk had missed"
