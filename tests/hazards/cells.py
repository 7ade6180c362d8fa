"""The table: every cell, kind by kind. See `cell.py` for what a cell is, `defences.py` for what is switched off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from airflow_extract_provider.extract.errors import (
    RepeatedPageError,
    TiedPageError,
    TokenExpiredError,
    UnorderedStreamError,
)
from tests.hazards import moving, timing
from tests.hazards.cell import Cell
from tests.hazards.kinds import KINDS

__all__ = ["CELLS"]

_OVERLAP = "pages overlap by a record"
_CONNECT = "a page that does not connect is not taken"
_SEEN = "the walk advances by rows seen"
_SHORT = "a short page is no end"
_EMPTY = "an empty page is no end by itself"
_EMPTY_TOKEN = "an empty page with a token is no end"
_REFUSED_END = "a page that is refused beyond the end is the end"
_DRIFTING = "the end is seen though it drifts"
_PROVEN_END = "an empty page behind the last record must be proven"
_NOTHING_NEW = "a page without anything new is no end"
_PASSES = "passes go on until two agree"
_LEARNED = "the server's page size is learned"
_LOST_KEY = "a page after a lost key is not taken"
_ANCHOR = "a page that holds what it was asked after is refused"
_TOKEN = "a token that comes again is refused"
_TAKEN_UP = "an expired token is taken up again at an instant"
_EXPIRED = "an expired token is no end"
_FROM = "each page is asked for from the last instant"
_ROUNDS = "two rounds over an instant must agree"
_TIE = "a tie that fills a page is not passed"
_FULL = "a page below the size asked for may be full"
_OLDER = "a page older than asked for is refused"
_HALVED = "windows are halved until each fits"
_TOTAL = "a window counts only with its total"
_ORDER = "the order is checked"
_AS_INSTANTS = "instants are compared as instants"
_ZONE = "an instant's zone counts"
_ZONE_SENT = "filters are written in the API's zone"
_DOWN = "instants are sent rounded down"
_STRICT = "a filter with > is asked a unit earlier"
_PRECISION = "the filter's own precision counts"
_UNFILTERED = "the backfill asks without a filter"
_LATE = "what may come late is waited for"
_LOOKBACK = "each run looks back"
_CLOSED = "complete is up to when a run began, not the last instant seen"
_HANDED = "the first request's instant is handed over"
_WHOLE_SECONDS = "newest first is read down to the second's beginning"
_EQUAL = "an equal version may hold another record"
_CLOCK = "time is told by the API's clock"
_SKEW = "without a Date clocks may differ"
_AGAIN = "what fails for a moment is asked again"
_KEY = "the key goes with the version"
_AS_WRITTEN = "the version is sent as the API wrote it"

_SECOND = timedelta(seconds=1)
_NO_SIZE = {"pages": {"by": "page", "send": "page"}}
_DEFAULT_10 = {"page_default": 10}


def _since(kind: str, **changes: Any) -> dict[str, Any]:
    return {"since": {**KINDS[kind].spec["since"], **changes}}


def _strict(kind: str, **spec: Any) -> dict[str, Any]:
    """A filter with `>` that compares whole seconds, while records show microseconds."""
    return {
        "listing": {"filter": "strict", "filter_precision": _SECOND},
        "spec": {**_since(kind, inclusive=False, precision="1s"), **spec},
    }


def _cells() -> Iterator[Cell]:
    yield from _by_number()
    yield from _ends_by_number()
    yield from _by_record()
    yield from _by_token()
    yield from _by_instant()
    yield from _search()
    yield from _between_runs()
    yield from _instants()


def _by_number() -> Iterator[Cell]:
    for kind in ("page updated", "page id", "page newest", "offset updated", "offset id", "offset created falling"):
        yield Cell(kind, moving.deleted_before, _OVERLAP)
    for kind in ("page updated", "page newest", "offset updated", "offset id", "offset created falling"):
        yield Cell(kind, moving.page_deleted, _CONNECT)
    for kind in ("page updated", "offset updated"):
        yield Cell(kind, moving.moved_by_update, _OVERLAP)
        yield Cell(kind, moving.deleted_in_changes, _OVERLAP, "stale")
        yield Cell(kind, moving.anchor_deleted, _OVERLAP)
    for kind in ("page newest", "offset created falling"):
        yield Cell(kind, moving.page_inserted, _NOTHING_NEW)
        yield Cell(kind, moving.inserted_and_deleted, _CONNECT)
    for kind in ("page updated", "page unordered"):
        yield Cell(kind, moving.capped_size, _LEARNED, "stopped", listing={"page_max": 7}, note="7 of 10")
    for kind in ("page updated", "page id", "page newest", "page unordered"):
        yield Cell(kind, moving.capped_size, _LEARNED, "stopped", listing={"page_max": 4}, note="4 of 10")
    for kind in ("offset id", "offset created falling"):
        yield Cell(kind, moving.capped_size, _SEEN, listing={"page_max": 4}, note="4 of 10")
    yield Cell("offset updated", moving.capped_size, _SHORT, listing={"page_max": 4}, note="4 of 10")
    for kind in ("offset updated", "offset created falling"):
        yield Cell(kind, timing.tied_in_any_order, _OVERLAP, listing={"ties": "shuffled"})
    yield Cell("page id", moving.short_page, _SHORT)
    yield Cell("offset updated", moving.empty_page, _EMPTY)
    yield Cell("page newest", moving.empty_page, _EMPTY)
    yield Cell("page unordered", moving.moved_silently, _PASSES, listing={"moves": True})
    unsized: Mapping[str, Any] = {"spec": _NO_SIZE, "listing": _DEFAULT_10, "note": "no page size to send"}
    yield Cell(
        "page unordered",
        moving.moved_silently,
        _PASSES,
        spec=_NO_SIZE,
        listing={**_DEFAULT_10, "moves": True},
        note="no page size to send",
    )
    yield Cell("page unordered", moving.deleted_before, _PASSES, **unsized)
    yield Cell("page id", moving.empty_page, _PASSES, **unsized)
    yield Cell("page updated", moving.empty_page, _EMPTY, **unsized)
    yield Cell("page updated", moving.deleted_before, _FROM, **unsized)
    yield Cell("page updated", moving.moved_by_update, _FROM, **unsized)
    yield Cell("page updated", timing.tied_and_deleted, _ROUNDS, **unsized)
    yield Cell("page updated", moving.transient, _AGAIN, "stopped")


def _ends_by_number() -> Iterator[Cell]:
    refuses: Mapping[str, Any] = {"listing": {"past_end": "refuse"}}
    for kind in ("page id", "page newest", "offset id", "page without size", "page alone"):
        yield Cell(kind, moving.refused_end, _REFUSED_END, "stopped", **refuses)
    yield Cell("offset created falling", moving.grows_at_the_head, _DRIFTING, "stopped")
    yield Cell("offset id", moving.shrinks_at_the_end, _PROVEN_END)


def _by_record() -> Iterator[Cell]:
    refuse: Mapping[str, Any] = {"listing": {"unknown_key": "refuse"}, "note": "the API refuses it"}
    yield Cell("last key", moving.anchor_deleted, _LOST_KEY, "stopped", **refuse)
    yield Cell("last key", moving.page_deleted, _LOST_KEY, "stopped", note="the API begins anew")
    yield Cell("last key", moving.repeated_page, _ANCHOR, "unnoticed", RepeatedPageError)
    yield Cell("last key", moving.capped_size, _SHORT, listing={"page_max": 4}, note="4 of 10")
    yield Cell("key filter", moving.misordered, _ORDER, "unnoticed", UnorderedStreamError)
    yield Cell("key filter", moving.repeated_page, _ORDER, "unnoticed", UnorderedStreamError)
    yield Cell("key filter", moving.inserted_into_read, _HANDED, keys="text")
    yield Cell("key filter", timing.undated, _UNFILTERED)
    yield Cell("key filter", moving.short_page, _SHORT)
    for kind in ("key filter", "position"):
        yield Cell(kind, moving.empty_page, _EMPTY)
    yield Cell("position", timing.tied, _KEY)
    yield Cell("position", timing.tied_in_changes, _AS_WRITTEN, "stopped")
    yield Cell("position", moving.misordered, _ORDER, "unnoticed", UnorderedStreamError)
    yield Cell("position", moving.short_page, _SHORT)


def _by_token() -> Iterator[Cell]:
    for kind in ("token updated", "header token", "next link"):
        yield Cell(kind, timing.tokens_expired, _TAKEN_UP, "stopped")
    yield Cell("token updated", moving.repeating_tokens, _TOKEN, "stopped")
    for kind in ("header token", "next link"):
        yield Cell(kind, moving.repeating_tokens, _TAKEN_UP, "stopped")
    yield Cell("token unordered", moving.repeated_token, _TOKEN, "unnoticed", RepeatedPageError)
    yield Cell("token unordered", moving.repeated_page, _TOKEN, "unnoticed", RepeatedPageError)
    yield Cell("token unordered", timing.tokens_expired_in_changes, _TAKEN_UP, "stopped")
    yield Cell("token unordered", timing.tokens_expired_for_good, _EXPIRED, "unnoticed", TokenExpiredError)
    yield Cell("token updated", timing.tokens_expired_in_changes, _EXPIRED, "stale")
    yield Cell("token updated", moving.misordered, _ORDER, "unnoticed", UnorderedStreamError)
    yield Cell("token updated", moving.empty_page, _EMPTY_TOKEN)
    yield Cell("next link", moving.empty_page, _EMPTY_TOKEN)
    yield Cell("header token", moving.transient, _AGAIN, "stopped")


def _by_instant() -> Iterator[Cell]:
    for kind in ("token in disguise", "next link by number", "link header"):
        yield Cell(kind, moving.deleted_before, _FROM)
        yield Cell(kind, timing.tied_and_deleted, _ROUNDS)
        yield Cell(kind, moving.repeated_page, _OLDER, "unnoticed", RepeatedPageError)
    yield Cell("link header", moving.moved_in_changes, _FROM, "stale")
    yield Cell("link header", moving.misordered, _ORDER, "unnoticed", UnorderedStreamError)
    yield Cell("link header", timing.crowded_second, _PRECISION, **_strict("link header"))
    yield Cell("token in disguise", timing.tied_and_moved, _ROUNDS)
    yield Cell("since only", timing.tied_for_good, _TIE, "unnoticed", TiedPageError)
    yield Cell("since only", timing.tied_for_good_in_changes, _TIE, "unnoticed", TiedPageError)
    four: Mapping[str, Any] = {"listing": {"page_max": 4}, "note": "4 of 10"}
    yield Cell("since only", timing.tied_for_good, _FULL, "unnoticed", TiedPageError, **four)
    yield Cell("since only", moving.misordered, _ORDER, "unnoticed", UnorderedStreamError)
    yield Cell("since only", timing.tied_at_the_end, _STRICT, **_strict("since only"))
    yield Cell("since only", moving.short_page, _SHORT)
    yield Cell("since only", moving.empty_page, _EMPTY)
    yield Cell("since only", moving.repeated_page, _OLDER, "stopped", RepeatedPageError)


def _search() -> Iterator[Cell]:
    yield Cell("search", timing.over_the_cap, _HALVED, "stopped")
    yield Cell("search", timing.leaving_window, _TOTAL)
    yield Cell("search", moving.empty_page, _EMPTY_TOKEN)
    yield Cell("search", timing.changed_between, _CLOCK)


def _between_runs() -> Iterator[Cell]:
    for kind in ("page updated", "token updated", "link header", "search", "position", "page newest"):
        yield Cell(kind, timing.late_commit, _LATE, spec={"late": "60s"}, note="settled for 60 s")
    for kind in ("offset updated", "token unordered", "since only", "key filter"):
        yield Cell(kind, timing.late_commit, _LOOKBACK, spec={"lookback": "60s"}, note="looked back for 60 s")
    yield Cell("key filter", timing.late_in_backfill, _LATE, "stale", spec={"late": "60s"})
    for kind in ("token unordered", "key filter"):
        yield Cell(kind, timing.hand_off, _HANDED, "stale")
    for kind in ("offset updated", "token in disguise", "position"):
        yield Cell(kind, timing.late_commit, _CLOSED, spec={"late": "60s"})
    for kind in ("page updated", "token updated", "position"):
        yield Cell(kind, timing.changed_between, _CLOCK)
    yield Cell("link header", timing.undated_answers, _SKEW, "stale")


def _instants() -> Iterator[Cell]:
    for kind in ("token updated", "link header", "since only", "offset updated"):
        strict = _strict(kind, late="500ms")
        yield Cell(kind, timing.same_second, _STRICT, "stale", **strict)
    seconds: Mapping[str, Any] = {"listing": {"precision": _SECOND}, "note": "whole seconds shown"}
    for kind in ("token updated", "page newest", "link header"):
        yield Cell(kind, timing.second_update, _EQUAL, "stale", **seconds)
    yield Cell("page newest", timing.same_second, _WHOLE_SECONDS, "stale", spec={"late": "500ms"}, **seconds)
    berlin: Mapping[str, Any] = {"listing": {"zone": "Europe/Berlin"}, "note": "Europe/Berlin"}
    yield Cell("token updated", timing.autumn, _AS_INSTANTS, "stopped", **berlin)
    yield Cell("link header", timing.autumn, _ZONE, **berlin)
    yield from _written_otherwise()


def _written_otherwise() -> Iterator[Cell]:
    """Local times without a zone, unix seconds and milliseconds."""
    for kind in ("page updated", "link header"):
        local: Mapping[str, Any] = {
            "listing": {"unit": "naive", "zone": "America/New_York"},
            "spec": {
                **_since(kind, format="%Y-%m-%d %H:%M:%S.%f"),
                "timestamps": {"format": "%Y-%m-%d %H:%M:%S.%f", "zone": "America/New_York"},
            },
            "note": "local times of New York",
        }
        yield Cell(kind, timing.changed_between, _ZONE_SENT, **local)
    yield Cell("token in disguise", timing.changed_between, _ZONE, "stopped", **local)
    for kind in ("offset updated", "token unordered"):
        spec = {**_since(kind, precision="1s"), "timestamps": {"format": "unix"}, "late": "500ms"}
        yield Cell(kind, timing.same_second, _DOWN, "stale", listing={"unit": "unix"}, spec=spec, note="unix seconds")
    yield Cell(
        "next link by number",
        timing.second_update,
        _EQUAL,
        "stale",
        listing={"unit": "unix"},
        spec={**_since("next link by number", precision="1s"), "timestamps": {"format": "unix"}},
        note="unix seconds",
    )
    milli = {"timestamps": {"format": "unix_ms"}, **_since("token in disguise", precision="1ms")}
    yield Cell(
        "token in disguise", timing.tied_and_deleted, _ROUNDS, listing={"unit": "unix_ms"}, spec=milli, note="unix ms"
    )


CELLS: tuple[Cell, ...] = tuple(_cells())
