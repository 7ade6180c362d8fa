"""One reading of a list, from where a position stands to its end: what backfill and incremental have in common.

Generators without I/O. A list whose pages move and that has no order is read until two passes agree; one that ends
short of the total that the API gives is read again, and then refused.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators import Paginator, Turn, checked_place, paginator
from airflow_extract_provider.extract.api.paginators.turn import total, with_keys
from airflow_extract_provider.extract.api.templates import request
from airflow_extract_provider.extract.cursor import AfterKey, AfterToken, AtIndex, AtInstant, InWindow, Pass, Position
from airflow_extract_provider.extract.errors import (
    AnchorLostError,
    ExtractError,
    MovingListError,
    RepeatedPageError,
    ShortOfTotalError,
    TokenExpiredError,
)
from airflow_extract_provider.extract.instants import floored, written
from airflow_extract_provider.extract.page import Page, Record, Refused, Reply, Request, SetAside
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.order import checked_order, order_value, ordered_by
from airflow_extract_provider.extract.walks.step import Answer, Step

__all__ = ["Lap", "Read", "lap", "settled"]

_PASSES = 20
_SHORT = 3
_RESTARTS = 3
_USED_UP = (AnchorLostError, MovingListError, ShortOfTotalError)
_FAR = datetime(9000, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class Read:
    """What a page brought: its records, what was set aside, and the position after it."""

    position: Position
    records: tuple[Record, ...] = ()
    bad: tuple[SetAside, ...] = ()


Lap: TypeAlias = Generator[Step, Reply | Answer, Read]


def lap(object: ApiObject, position: Position, below: datetime | None = None, above: datetime | None = None) -> Lap:
    """Read a list to its end; returns the last page, which no step has told of yet.

    ``below``: in a falling order, a record older than this instant is the end. ``above``: in a rising one, a record of
    this instant or a later one is.

    Raises what the object's paginator raises when it cannot go on without a gap, UnorderedStreamError, MovingListError,
    ShortOfTotalError; each error names the page, and leaves the position where it was.
    """
    pages = paginator(object)
    checked_place(position, pages.start())
    read, done = Read(position), False
    while not done:
        reply = yield Step(read.records, read.position, _request(object, pages, read.position), bad=read.bad)
        assert not isinstance(reply, Answer)
        position = read.position
        try:
            elsewhere = pages.refused(position.place, reply) if isinstance(reply, Refused) else None
            if elsewhere is not None:
                read = Read(replace(position, place=elsewhere, pages=position.pages + 1))
                continue
            page = _absent(position) if isinstance(reply, Refused) else reply
            turn = pages.turn(position.place, page)
            moved = _after(object, position, turn, page)
            read = Read(moved, turn.records, page.bad)
            if turn.complete or _is_below(turn, below) or _is_above(turn, above):
                again = _again(object, pages, moved)
                read, done = Read(again or moved, read.records, read.bad), again is None
        except ExtractError as exc:
            taken_up = _taken_up(object, pages, position, exc)
            if taken_up is None:
                anew = _anew(pages, read.position, exc)
                if anew is not None:
                    # The tries are used up: without this the next run would stop at once, and each one after it.
                    records, bad = (read.records, read.bad) if read.position is not position else ((), ())
                    yield Step(records, anew, _request(object, pages, anew), bad=bad)
                raise exc.at(page=position.pages + 1, position=position.as_json()) from None
            read = Read(taken_up)
    return read


def _absent(position: Position) -> Page:
    """What stands for a page that the API has refused, since it lies behind the last one."""
    assert position.began_at is not None  # it is never the first page
    return Page((), position.began_at, absent=True)


def _anew(pages: Paginator, position: Position, exc: ExtractError) -> Position | None:
    """Where the next run begins after an error that came of too many tries: with all of them again, at the same place,
    the instant or window that is being read, or at the beginning of the list. None: where it stands."""
    place = position.place
    if isinstance(exc, RepeatedPageError) and isinstance(place, AtIndex | AfterKey):
        return replace(position, place=replace(place, beyond=False, ending=0, idle=0))
    if not isinstance(exc, _USED_UP) and (pages.sure or not isinstance(exc, RepeatedPageError)):
        return None
    if isinstance(place, AtInstant):
        place = AtInstant(place.anchor, largest=place.largest, met=place.met)
    elif isinstance(place, InWindow):
        place = InWindow(place.start, place.until, place.later)
    anew = _from_start(pages, position, Pass())
    return replace(anew, place=place) if isinstance(place, AtInstant | InWindow) else anew


def _from_start(pages: Paginator, position: Position, one: Pass) -> Position:
    """Before the first page of the list, or of what has changed, in a pass of its own."""
    place = pages.start(position.since, position.largest)
    return replace(position, place=place, order=None, lap=one, taken_up=None, restarts=0)


def _request(object: ApiObject, pages: Paginator, position: Position) -> Request:
    asked = pages.ask(position.place)
    number = position.pages + 1
    values: dict[str, Any] = {"size": None, "token": None, "page": None, "offset": None, "after": None, **asked.values}
    send = dict(asked.send)
    since = object.since
    if since is not None:
        base = asked.since or position.taken_up or position.since
        values["since"] = floored(base or since.start, since.precision)
        if not since.inclusive:
            # A filter with > leaves out the instant itself: asked from one unit earlier, it is in.
            values["since"] -= since.precision
        until = asked.until or position.until
        values["until"] = until or _FAR
        stamps = object.timestamps
        form = (since.format or stamps.format, stamps.zone, since.precision)
        if since.send and base is not None:
            send[since.send] = written(values["since"], *form)
        if since.until and until is not None:
            send[since.until] = written(until, *form, upper=True)
    return request(object, values, send, number, asked.link)


def _taken_up(object: ApiObject, pages: Paginator, position: Position, exc: ExtractError) -> Position | None:
    """Where to go on though a page token has expired, or leads to pages that were read: at an instant before which
    everything has been read. None: there is none, or that has not brought the walk on often enough."""
    if isinstance(exc, RepeatedPageError) and not pages.sure and position.restarts < _RESTARTS:
        # Where pages move, one may come again since a page of others came before it: another pass will tell.
        restarts = position.restarts + 1
        return replace(_from_start(pages, position, Pass()), pages=position.pages + 1, restarts=restarts)
    if not isinstance(position.place, AfterToken) or not isinstance(exc, TokenExpiredError | RepeatedPageError):
        return None
    anchor = _anchor(object, position)
    if anchor is None:
        return None
    before = position.taken_up or position.since
    moved = before is None or anchor > before
    if not moved and position.restarts >= _RESTARTS:
        return None
    return replace(
        position,
        place=pages.start(anchor, position.largest),
        pages=position.pages + 1,
        taken_up=anchor,
        order=None,
        restarts=0 if moved else position.restarts + 1,
    )


def _anchor(object: ApiObject, position: Position) -> datetime | None:
    """An instant before which everything has been read in this lap; None: nothing says so."""
    if object.since is None:
        return None
    if object.since_ordered and position.order is not None and position.ordered_by == ordered_by(object):
        last = order_value(position.order)
        if isinstance(last, datetime):
            return floored(last, object.since.precision)
    return position.taken_up or position.since


def _after(object: ApiObject, position: Position, turn: Turn, page: Page) -> Position:
    known = position.ordered_by == ordered_by(object) and not turn.again
    told = total(page, object.total)
    one = position.lap
    if _filtered(position):
        told = None  # what a filter gives is not what the total counts
    return replace(
        position,
        place=turn.place,
        pages=position.pages + 1,
        records=position.records + len(turn.fresh),
        # The first page's instant, for the whole lap: whatever changes after it is for the walks that come later.
        began_at=position.began_at or page.began_at,
        order=_order(object, position.order if known else None, position.order, turn),
        ordered_by=ordered_by(object),
        lap=replace(
            one,
            pages=one.pages + 1,
            rows=one.rows + len(turn.fresh) + len(page.bad),
            keys=with_keys(one.keys, (record.key for record in turn.fresh)),
            total=min((each for each in (one.total, told) if each is not None), default=None),
        ),
        largest=max(position.largest, getattr(turn.place, "largest", 0)),
        nulls=position.nulls + _nulls(object, turn.fresh),
    )


def _order(object: ApiObject, known: str | None, before: str | None, turn: Turn) -> str | None:
    """The value of the order that the next page is checked against."""
    read = turn.fresh if turn.overlap is None else (turn.overlap, *turn.fresh)
    found = checked_order(object, known, read, turn.records)
    if found is None and turn.again:
        # It begins before the place, and holds nothing new: what comes next comes after its own records.
        found = checked_order(object, None, turn.records[-1:], turn.records)
    return found or before


def _filtered(position: Position) -> bool:
    """Whether a position's page is asked for from an instant on."""
    anchor = getattr(position.place, "anchor", None)
    return position.since is not None or position.taken_up is not None or anchor is not None


def _nulls(object: ApiObject, records: tuple[Record, ...]) -> int:
    if object.version is None:
        return 0
    return sum(1 for record in records if record.version is None)


def _is_below(turn: Turn, below: datetime | None) -> bool:
    if below is None:
        return False
    return any(isinstance(record.order, datetime) and record.order < below for record in turn.fresh)


def _is_above(turn: Turn, above: datetime | None) -> bool:
    if above is None or getattr(turn.place, "torn", False):
        return False
    if isinstance(turn.place, AtInstant):
        # Until two rounds over an instant agree, what lies behind it proves nothing.
        return turn.place.anchor is not None and turn.place.anchor >= above
    # In an order by position that is the version.
    told = (record.since or record.version for record in turn.fresh)
    return any(at is not None and at >= above for at in told)


def _again(object: ApiObject, pages: Paginator, position: Position) -> Position | None:
    """The position at which the list is read once more, since nothing proves yet that all was seen; None: it does."""
    one = position.lap
    short = one.total is not None and one.rows < one.total and not _totals_apart(object)
    if short and one.number + 1 >= _SHORT:
        raise ShortOfTotalError(
            f"the API says that there are {one.total:,} records, but {one.rows:,} came to the end of its list, "
            f"{_SHORT} times.",
            todo="Ask the API's vendor whether the list is cut off (many end at 10,000), and declare windows "
            "(pages.cap); or correct `total` if it counts something else.",
        )
    sure = pages.sure and not getattr(position.place, "torn", False)
    if not short and (sure or one.pages == 1 or one.keys == one.before):
        return None
    if one.number + 1 >= _PASSES:
        raise MovingListError(
            f"the list was read {_PASSES} times, and no two readings agreed.",
            todo="Declare the order that the API keeps, or a page size that it can be asked for; or run when less is "
            "written at the API.",
        )
    return _from_start(pages, position, Pass(number=one.number + 1, before=one.keys))


def _totals_apart(object: ApiObject) -> bool:
    """Whether the totals are those of windows, which are compared one by one."""
    return getattr(object.pages, "cap", None) is not None


def settled(position: Position, late: timedelta) -> datetime | None:
    """Up to when a lap that has ended makes the copy complete: what came before it began, less what may come late."""
    if position.began_at is None:
        return position.closed
    closed = position.began_at - late
    return closed if position.closed is None else max(closed, position.closed)
