"""What an API of some kind is like, on its own side and as a source file describes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from airflow_extract_provider.testing.hostile import Kind as FaultName
from airflow_extract_provider.testing.hostile import Listing
from tests.hazards.kinds import KINDS

__all__ = ["SCHEMA", "FaultName", "Habits"]

SCHEMA = "history"
_UNITS = {"1us": timedelta(microseconds=1), "1ms": timedelta(milliseconds=1), "1s": timedelta(seconds=1)}


@dataclass(frozen=True)
class Habits:
    """What is drawn about an API beside its kind; ``late`` and ``lookback`` are what the source file says.

    ``fine``: the filter compares microseconds, though records show less.
    """

    kind: str
    precision: str = "1us"
    strict: bool = False
    page_max: int = 10
    total: bool = False
    more: bool = False
    moves: bool = False
    refuse: bool = False
    looks_ahead: bool = True
    past_end: Literal["empty", "refuse", "last"] = "empty"
    fine: bool = False
    late: str = "0s"
    lookback: str = "0s"

    @property
    def is_late(self) -> bool:
        """Whether changes may be shown late."""
        return (self.late, self.lookback) != ("0s", "0s")

    @property
    def tells_more(self) -> bool:
        """Whether the answer says that there is more, in words of its own."""
        return "more" in KINDS[self.kind].spec["pages"] or (self.more and self._may_tell)

    @property
    def _may_tell(self) -> bool:
        return KINDS[self.kind].spec["pages"]["by"] in ("page", "offset", "key", "position", "since")

    def served(self) -> Listing:
        """The API's side."""
        kind = KINDS[self.kind]
        over: dict[str, Any] = {
            "page_max": self.page_max,
            "total": self.total,
            "precision": _UNITS[self.precision],
            "looks_ahead": self.looks_ahead,
            "past_end": self._past_end,
            "filter_precision": _UNITS["1us"] if self.fine else None,
        }
        if kind.listing["filter"] and self.strict:
            over["filter"] = "strict"
        if self.tells_more:
            over["more"] = True
        over["moves"] = self.moves and not kind.listing["order"] and kind.listing["paging"] in ("page", "token")
        over["unknown_key"] = "refuse" if self.refuse else "restart"
        return kind.served(**over)

    @property
    def _past_end(self) -> str:
        """What lies behind the end: only those that count records or pages can ask for it. Where pages cannot overlap
        one that comes again is an error, so it is never the last one."""
        pages = KINDS[self.kind].spec["pages"]
        if pages["by"] not in ("page", "offset"):
            return "empty"
        return "refuse" if self.past_end == "last" and "size" not in pages else self.past_end

    def described(self) -> dict[str, Any]:
        """The source file's side."""
        kind = KINDS[self.kind]
        over: dict[str, Any] = {"late": self.late, "lookback": self.lookback, "schema": SCHEMA}
        over["by_key"] = {"path": "/things/{{ key }}"}
        if "since" in kind.spec:
            precision = "1us" if self.fine else self.precision
            over["since"] = {**kind.spec["since"], "inclusive": not self.strict, "precision": precision}
        if self.total:
            over["total"] = "total"
        if self.more and self._may_tell:
            over["pages"] = {**kind.spec["pages"], "more": "has_more"}
        return kind.described(**over)

    def faults(self) -> list[FaultName]:
        """What may go wrong such that the API's answers still tell it."""
        pages, spec = KINDS[self.kind].spec["pages"], KINDS[self.kind].spec
        by = pages["by"]
        told = by in ("token", "next_link", "link_header") or self.tells_more
        found: list[FaultName] = ["429", "503", "reset", "cut", "html", "truncated", "empty", "error_200"]
        if by in ("token", "next_link", "link_header"):
            found.append("repeat_token")
        # With a coarse version an old answer cannot be told from a new one.
        if self.precision == "1us" and by != "single":
            found.append("repeat_page")
        if "order" in spec:
            found.append("misorder")
        if by != "single" and (by != "since" or told):
            found.append("short_page")
        if told:
            found.append("empty_page")
        return found
