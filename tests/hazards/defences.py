"""The engine's defences, each with what switches it off: one thing is put in the place of one thing.

Where a defence is the whole way in which pages are read, the naive way is put there: what most programs do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

import msgspec
import pytest
from msgspec.structs import replace as replace_place

from airflow_extract_provider.extract.api import client, record
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.paginators import by_instant, by_number
from airflow_extract_provider.extract.api.paginators.by_instant import FromInstant, Windowed
from airflow_extract_provider.extract.api.paginators.by_number import Counted, Overlapping
from airflow_extract_provider.extract.api.paginators.by_record import AfterRecord, LastKey
from airflow_extract_provider.extract.api.paginators.by_token import Token, told_next
from airflow_extract_provider.extract.api.paginators.turn import Ask, Turn, ask, request_refused, total
from airflow_extract_provider.extract.api.record import RecordReader
from airflow_extract_provider.extract.cursor import AfterKey, AfterToken, AtIndex, Position
from airflow_extract_provider.extract.errors import TiedPageError
from airflow_extract_provider.extract.instants import Reading, floored, reading, written
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import OffsetPages
from airflow_extract_provider.extract.reader import Reader
from airflow_extract_provider.extract.store import rows as store_rows
from airflow_extract_provider.extract.store.judge import Coming, Stored, Verdict, judge
from airflow_extract_provider.extract.walks import backfill, incremental, lap
from airflow_extract_provider.extract.walks.order import order_value

__all__ = ["DEFENCES"]

Off: TypeAlias = Callable[[pytest.MonkeyPatch], None]

DEFENCES: dict[str, Off] = {}


def _defence(name: str) -> Callable[[Off], Off]:
    def named(off: Off) -> Off:
        DEFENCES[name] = off
        return off

    return named


# Pages by number ------------------------------------------------------------------------------------------------------


@_defence("pages overlap by a record")
def _no_overlap(patch: pytest.MonkeyPatch) -> None:
    """The next page, or the next offset, is trusted."""

    def asked(self: Overlapping, place: AtIndex) -> Ask:
        assert self.pages.size is not None
        if isinstance(self.pages, OffsetPages):
            return ask("offset", place.seen, self.pages.send, self.pages.size)
        return ask("page", place.seen // self.pages.size.max + self.pages.first, self.pages.send, self.pages.size)

    def turn(self: Overlapping, place: AtIndex, page: Page) -> Turn:
        assert self.pages.size is not None
        # One page number after the other, one offset behind the rows that came.
        on = page.rows if isinstance(self.pages, OffsetPages) else self.pages.size.max
        return Turn(page.records, page.records, AtIndex(seen=place.seen + on), complete=not page.rows)

    patch.setattr(Overlapping, "ask", asked)
    patch.setattr(Overlapping, "turn", turn)


@_defence("a page that does not connect is not taken")
def _unconnected(patch: pytest.MonkeyPatch) -> None:
    right = Overlapping.turn

    def turn(self: Overlapping, place: AtIndex, page: Page) -> Turn:
        found = right(self, place, page)
        if not isinstance(found.place, AtIndex) or found.place.back <= place.back or not page.rows:
            return found
        begin = self._window(place)[0]
        taken = right(self, AtIndex(rows=place.rows), page)
        assert isinstance(taken.place, AtIndex)
        held = {"rows": place.rows, "beyond": False, "ending": 0}
        return replace(taken, place=replace_place(taken.place, seen=begin + page.rows, **held))

    patch.setattr(Overlapping, "turn", turn)


@_defence("the walk advances by rows seen")
def _rows_asked(patch: pytest.MonkeyPatch) -> None:
    def turn(self: Overlapping, place: AtIndex, page: Page) -> Turn:
        assert self.pages.size is not None
        moved = AtIndex(seen=place.seen + self.pages.size.max)
        return Turn(page.records, page.records, moved, complete=not page.rows)

    _no_overlap(patch)
    patch.setattr(Overlapping, "turn", turn)


@_defence("the server's page size is learned")
def _size_not_learned(patch: pytest.MonkeyPatch) -> None:
    def rows(self: Overlapping, place: AtIndex) -> int:
        assert self.pages.size is not None
        return self.pages.size.max

    patch.setattr(Overlapping, "_rows", rows)


@_defence("a short page is no end")
def _short_is_the_end(patch: pytest.MonkeyPatch) -> None:
    for kind in (Overlapping, LastKey, FromInstant, AfterRecord, Counted):
        _wrap_turn(patch, kind, lambda self, page: page.rows < self.pages.size.max)


@_defence("an empty page is no end by itself")
def _empty_is_the_end(patch: pytest.MonkeyPatch) -> None:
    for kind in (Overlapping, LastKey, FromInstant, AfterRecord):
        _wrap_turn(patch, kind, lambda _, page: not page.rows)


@_defence("an empty page with a token is no end")
def _empty_token_page_is_the_end(patch: pytest.MonkeyPatch) -> None:
    for kind in (Token, Windowed):
        _wrap_turn(patch, kind, lambda _, page: not page.rows)


@_defence("a page without anything new is no end")
def _nothing_new_is_the_end(patch: pytest.MonkeyPatch) -> None:
    for kind in (Overlapping, LastKey):
        _wrap_turn(patch, kind, lambda _, page: False, nothing_new=True)


@_defence("a page that is refused beyond the end is the end")
def _refused_for_good(patch: pytest.MonkeyPatch) -> None:
    def refused(self: Any, place: Any, refusal: Refused) -> Any:
        raise request_refused(refusal)

    for kind in (Overlapping, Counted, FromInstant):
        patch.setattr(kind, "refused", refused)


@_defence("the end is seen though it drifts")
def _end_must_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(by_number, "_DRIFTED", 10**6)


@_defence("an empty page behind the last record must be proven")
def _empty_behind_is_the_end(patch: pytest.MonkeyPatch) -> None:
    right = Overlapping._empty

    def empty(self: Overlapping, place: AtIndex, *more: Any) -> Turn:
        found = right(self, place, *more)
        return replace(found, complete=found.complete or place.beyond)

    patch.setattr(Overlapping, "_empty", empty)


@_defence("passes go on until two agree")
def _one_pass(patch: pytest.MonkeyPatch) -> None:
    for kind in (Overlapping, Counted):
        patch.setattr(kind, "sure", property(lambda self: True))


def _wrap_turn(
    patch: pytest.MonkeyPatch, kind: type[Any], ends: Callable[[Any, Page], bool], *, nothing_new: bool = False
) -> None:
    right = kind.turn

    def turn(self: Any, place: Any, page: Page) -> Turn:
        found: Turn = right(self, place, page)
        return replace(found, complete=found.complete or ends(self, page) or (nothing_new and not found.fresh))

    patch.setattr(kind, "turn", turn)


# Pages by a record, tokens --------------------------------------------------------------------------------------------


@_defence("a page after a lost key is not taken")
def _lost_key(patch: pytest.MonkeyPatch) -> None:
    right = LastKey.turn

    def turn(self: LastKey, place: AfterKey, page: Page) -> Turn:
        found = right(self, place, page)
        if not isinstance(found.place, AfterKey) or found.place.back <= place.back:
            return found
        return right(self, AfterKey(), page)

    def refused(self: LastKey, place: AfterKey, refusal: Refused) -> AfterKey:
        raise request_refused(refusal)

    patch.setattr(LastKey, "turn", turn)
    patch.setattr(LastKey, "refused", refused)


@_defence("a page that holds what it was asked after is refused")
def _anchor_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LastKey, "_check_anchor", lambda self, anchor, keys: None)


@_defence("the key goes with the version")
def _version_alone(patch: pytest.MonkeyPatch) -> None:
    right = AfterRecord.ask

    def asked(self: AfterRecord, place: Any) -> Ask:
        return right(self, replace_place(place, after="999999") if place.after else place)

    patch.setattr(AfterRecord, "ask", asked)


@_defence("the version is sent as the API wrote it")
def _version_rewritten(patch: pytest.MonkeyPatch) -> None:
    right = AfterRecord.ask

    def asked(self: AfterRecord, place: Any) -> Ask:
        return right(self, replace_place(place, version=f"{place.version[:19]}Z", after=None))

    patch.setattr(AfterRecord, "ask", asked)


@_defence("a token that comes again is refused")
def _tokens_not_watched(patch: pytest.MonkeyPatch) -> None:
    def turn(self: Token, place: AfterToken, page: Page) -> Turn:
        token = told_next(self.pages, page)
        if token is None:
            return Turn(page.records, page.records, place, complete=True)
        return Turn(page.records, page.records, AfterToken(token))

    patch.setattr(Token, "turn", turn)


@_defence("an expired token is taken up again at an instant")
def _not_taken_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lap, "_anchor", lambda object, position: None)


@_defence("an expired token is no end")
def _expired_is_the_end(patch: pytest.MonkeyPatch) -> None:
    right = Reader._fetched

    def fetched(self: Reader, request: Any) -> Any:
        reply = right(self, request)
        if not isinstance(reply, Refused):
            return reply
        return Page((), datetime.now(timezone.utc), {"next": msgspec.Raw(b"null"), "total": msgspec.Raw(b"0")})

    patch.setattr(Reader, "_fetched", fetched)


# Pages by time --------------------------------------------------------------------------------------------------------


@_defence("each page is asked for from the last instant")
def _page_after_page(patch: pytest.MonkeyPatch) -> None:
    def turn(self: FromInstant, place: Any, page: Page) -> Turn:
        following = self._following(place, page, [])
        moved = replace_place(place, inside=following)
        return Turn(page.records, page.records, moved, complete=following is None, again=True)

    patch.setattr(FromInstant, "turn", turn)


@_defence("two rounds over an instant must agree")
def _one_round(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FromInstant, "_agreed", lambda self, place, page, moved, border="": moved)


@_defence("a tie that fills a page is not passed")
def _tie_passed(patch: pytest.MonkeyPatch) -> None:
    right = FromInstant._only_since

    def only_since(self: FromInstant, *arguments: Any) -> str | None:
        try:
            return right(self, *arguments)
        except TiedPageError:
            return None

    patch.setattr(FromInstant, "_only_since", only_since)


@_defence("a page below the size asked for may be full")
def _full_as_asked(patch: pytest.MonkeyPatch) -> None:
    right = FromInstant._only_since

    def only_since(self: FromInstant, place: Any, page: Page, reached: Any) -> str | None:
        assert self.pages.size is not None
        beyond = bool(reached) and (place.anchor is None or max(reached) > place.anchor)
        if not beyond and page.rows < self.pages.size.max:
            return None
        return right(self, place, page, reached)

    patch.setattr(FromInstant, "_only_since", only_since)


@_defence("a page older than asked for is refused")
def _older_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FromInstant, "_asked", lambda self, anchor: datetime.min.replace(tzinfo=timezone.utc))


@_defence("windows are halved until each fits")
def _not_halved(patch: pytest.MonkeyPatch) -> None:
    right = Windowed.turn

    def turn(self: Windowed, place: Any, page: Page) -> Turn:
        boundless = Windowed(self.object, self.pages.model_copy(update={"cap": 1_000_000}))
        return right(boundless, place, page)

    patch.setattr(Windowed, "turn", turn)


@_defence("a window counts only with its total")
def _total_not_compared(patch: pytest.MonkeyPatch) -> None:
    right = Windowed.turn

    def turn(self: Windowed, place: Any, page: Page) -> Turn:
        found = right(self, place, page)
        if getattr(found.place, "tries", 0) <= place.tries:
            return found
        count = total(page, self.object.total)
        assert count is not None
        last = told_next(self.pages, page) is None or not page.rows
        return right(self, replace_place(place, total=count, rows=count - page.rows if last else place.rows), page)

    patch.setattr(Windowed, "turn", turn)


# Instants -------------------------------------------------------------------------------------------------------------


@_defence("the order is checked")
def _order_not_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lap, "checked_order", lambda *arguments: None)


@_defence("instants are compared as instants")
def _order_as_text(patch: pytest.MonkeyPatch) -> None:
    right = RecordReader._order

    def order(self: RecordReader, fields: Any, *rest: Any) -> Any:
        found = right(self, fields, *rest)
        assert self.order is not None
        return record._value(fields, self.order).decode() if isinstance(found, datetime) else found  # type: ignore[union-attr]

    patch.setattr(RecordReader, "_order", order)


@_defence("an instant's zone counts")
def _zone_ignored(patch: pytest.MonkeyPatch) -> None:
    def in_utc(format: str, zone: str | None) -> Reading:
        right = reading(format, "UTC")
        return lambda raw: right(raw[:-7] + b'Z"' if raw[-7:-6] in (b"+", b"-") else raw)

    patch.setattr(record, "reading", in_utc)
    # One is made for each config, and kept.
    patch.setattr(record, "_made", record._made.__wrapped__)


@_defence("filters are written in the API's zone")
def _zone_not_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lap, "written", lambda at, form, zone, unit: written(at, form, "Etc/GMT-14", unit))


@_defence("instants are sent rounded down")
def _rounded_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lap, "floored", lambda at, unit: floored(at + unit - timedelta(microseconds=1), unit))


@_defence("a filter with > is asked a unit earlier")
def _strict_as_it_is(patch: pytest.MonkeyPatch) -> None:
    _request_with(patch, lambda since: {"inclusive": True})


@_defence("the filter's own precision counts")
def _fine_precision(patch: pytest.MonkeyPatch) -> None:
    right, fine = by_instant._since, {"precision": timedelta(microseconds=1)}
    patch.setattr(by_instant, "_since", lambda object: right(object).model_copy(update=fine))
    _request_with(patch, lambda since: fine)


def _request_with(patch: pytest.MonkeyPatch, changes: Callable[[Any], Mapping[str, Any]]) -> None:
    right = lap._request

    def request(object: Any, *rest: Any) -> Any:
        since = object.since.model_copy(update=changes(object.since))
        return right(object.model_copy(update={"since": since}), *rest)

    patch.setattr(lap, "_request", request)


@_defence("the backfill asks without a filter")
def _backfill_filtered(patch: pytest.MonkeyPatch) -> None:
    right = lap._request

    def request(object: Any, pages: Any, position: Position) -> Any:
        since = position.since or object.since.start
        return right(object, pages, replace_place(position, since=since))

    patch.setattr(lap, "_request", request)


# Between runs ---------------------------------------------------------------------------------------------------------


@_defence("what may come late is waited for")
def _not_late(patch: pytest.MonkeyPatch) -> None:
    for walk in (backfill, incremental):
        right = walk.settled
        patch.setattr(walk, "settled", lambda position, late, right=right: right(position, timedelta(0)))


@_defence("each run looks back")
def _no_lookback(patch: pytest.MonkeyPatch) -> None:
    right = incremental._new_lap

    def new_lap(object: Any, position: Position) -> Position:
        return right(object.model_copy(update={"lookback": timedelta(0)}), position)

    patch.setattr(incremental, "_new_lap", new_lap)


@_defence("complete is up to when a run began, not the last instant seen")
def _up_to_the_last_seen(patch: pytest.MonkeyPatch) -> None:
    def settled(position: Position, late: timedelta) -> Any:
        found = None if position.order is None else order_value(position.order)
        return found if isinstance(found, datetime) else position.closed

    for walk in (backfill, incremental):
        patch.setattr(walk, "settled", settled)


@_defence("the first request's instant is handed over")
def _handed_over_late(patch: pytest.MonkeyPatch) -> None:
    right = lap._after

    def after(object: Any, position: Position, turn: Turn, page: Page) -> Position:
        return replace_place(right(object, position, turn, page), began_at=page.began_at)

    patch.setattr(lap, "_after", after)


@_defence("newest first is read down to the second's beginning")
def _down_to_the_instant(patch: pytest.MonkeyPatch) -> None:
    def lapped(object: Any, position: Position, below: Any, **how: Any) -> Any:
        return lap.lap(object, position, None if below is None else position.since, **how)

    patch.setattr(incremental, "lap", lapped)


@_defence("an equal version may hold another record")
def _equal_is_unchanged(patch: pytest.MonkeyPatch) -> None:
    def judged(coming: Coming, stored: Stored) -> Verdict:
        if coming.version is not None and coming.version == stored.version:
            return "unchanged"
        return judge(coming, stored)

    patch.setattr(store_rows, "judge", judged)


@_defence("time is told by the API's clock")
def _our_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client, "_began_at", lambda response, sent, took: sent)


@_defence("without a Date clocks may differ")
def _no_skew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client, "_MAX_SKEW", timedelta(0))


@_defence("what fails for a moment is asked again")
def _one_try(patch: pytest.MonkeyPatch) -> None:
    right = ApiClient._retrying

    def retrying(self: ApiClient, asked: Any) -> Any:
        self._tries = 1
        return right(self, asked)

    patch.setattr(ApiClient, "_retrying", retrying)
