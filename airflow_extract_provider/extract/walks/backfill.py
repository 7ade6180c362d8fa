"""The walk from the beginning of an object to its end, resumable after every page."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal, InvalidOperation

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators import Turn, checked_place, paginator
from airflow_extract_provider.extract.cursor import Place, Position
from airflow_extract_provider.extract.errors import ExtractError, UnorderedStreamError
from airflow_extract_provider.extract.page import OrderValue, Page, Record, Refused, Request
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.step import Step, Walk

__all__ = ["backfill", "beginning"]


def beginning(object: ApiObject, made: str | None = None) -> Position:
    """The position before the first request; ``made`` as :meth:`Source.made` tells it."""
    return Position(paginator(object).start(), key=", ".join(".".join(path) for path in object.key), made=made)


def backfill(object: ApiObject, position: Position) -> Walk:
    """Read an object from a position to its end, in the API's own order.

    Raises what the object's paginator raises when it cannot go on without a gap, and UnorderedStreamError; each error
    names the page, and leaves the position where it was.
    """
    pages = paginator(object)
    place = checked_place(position, pages.start())
    records: tuple[Record, ...] = ()
    while not position.complete:
        reply = yield Step(records, position, _request(object, place, position))
        try:
            if isinstance(reply, Refused):
                place = pages.refused(place, reply)
                records, position = (), replace(position, place=place, pages=position.pages + 1)
            else:
                turn = pages.turn(place, reply)
                records, place, position = turn.records, turn.place, _after(object, position, turn, reply)
        except ExtractError as exc:
            raise exc.at(page=position.pages + 1, position=position.as_json()) from None
    yield Step(records, position, None)


def _request(object: ApiObject, place: Place, position: Position) -> Request:
    return Request(object.path, {**object.params, **paginator(object).params(place)}, position.pages + 1)


def _after(object: ApiObject, position: Position, turn: Turn, page: Page) -> Position:
    before = position.order if position.ordered_by == _ordered_by(object) else None
    return replace(
        position,
        place=turn.place,
        pages=position.pages + 1,
        records=position.records + len(turn.fresh),
        complete=turn.complete,
        # The first page's instant, for good: whatever changes after it is for the walks that come later.
        began_at=position.began_at or page.began_at,
        order=_checked_order(object, None if turn.again else before, turn),
        ordered_by=_ordered_by(object),
    )


def _ordered_by(object: ApiObject) -> str | None:
    return None if object.order is None else ".".join(object.order.field)


def _checked_order(object: ApiObject, before: str | None, turn: Turn) -> str | None:
    """The order field's value behind a page's new records, as text.

    Raises UnorderedStreamError: a record comes before one that it should come after. Values are compared as instants or
    numbers, never as texts; a record without the field is passed over, since it promises nothing.
    """
    if object.order is None:
        return None
    last = None if before is None else _order_value(before)
    for number, record in enumerate(turn.fresh, start=1 + len(turn.records) - len(turn.fresh)):
        value = record.order
        if value is None:
            continue
        if last is not None and _misplaced(last, value, object.order.falling):
            raise UnorderedStreamError(
                f"the API promises records by {'falling' if object.order.falling else 'rising'} "
                f"`{'.'.join(object.order.field)}`, but this one comes too late.",
                todo="Declare the order that the API really keeps, or leave `order` out.",
                record=number,
                key=record.key,
            )
        last = value
    return None if last is None else str(last)


def _misplaced(last: OrderValue, value: OrderValue, falling: bool) -> bool:
    if isinstance(last, datetime) and isinstance(value, datetime):
        return value > last if falling else value < last
    if isinstance(last, Decimal) and isinstance(value, Decimal):
        return value > last if falling else value < last
    return True


def _order_value(text: str) -> OrderValue:
    try:
        return Decimal(text)
    except InvalidOperation:
        return datetime.fromisoformat(text)
