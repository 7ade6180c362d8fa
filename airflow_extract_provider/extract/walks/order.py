"""The order that an API promises, checked record by record: as instants and numbers, never as texts."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal, InvalidOperation

import msgspec

from airflow_extract_provider.extract.errors import UnorderedStreamError
from airflow_extract_provider.extract.page import FieldPath, OrderValue, Record
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["checked_order", "order_value", "ordered_by"]


def ordered_by(object: ApiObject) -> str | None:
    """The name of the field that the records are ordered by."""
    return None if object.order is None else ".".join(object.order.field)


def checked_order(
    object: ApiObject, before: str | None, fresh: tuple[Record, ...], page: tuple[Record, ...]
) -> str | None:
    """The order field's value behind the new records of a page, as text.

    Raises UnorderedStreamError: a record comes before one that it should come after. A record without the field is
    passed over, since it promises nothing. Where the key settles ties, it must rise among equal values.
    """
    if object.order is None:
        return None
    last, last_key = None if before is None else order_value(before), None
    for record in fresh:
        value = record.order
        if value is None:
            continue
        tied = value == last and last_key is not None and _key_falls(object.order.then, last_key, record)
        if tied or (last is not None and _misplaced(last, value, object.order.falling)):
            raise UnorderedStreamError(
                f"the API promises records by {'falling' if object.order.falling else 'rising'} "
                f"`{ordered_by(object)}`{_then(object) if tied else ''}, but this one comes too late.",
                todo="Declare the order that the API really keeps, or leave `order` out.",
                record=1 + next(at for at, one in enumerate(page) if one is record),
                key=record.key,
            )
        last, last_key = value, record.key
    return None if last is None else json.dumps(last, ensure_ascii=False) if isinstance(last, str) else str(last)


def order_value(text: str) -> OrderValue:
    """The value that :func:`checked_order` wrote: a text in quotes, since it may look like a number or an instant."""
    if text.startswith('"'):
        found: str = json.loads(text)
        return found
    try:
        return Decimal(text)
    except InvalidOperation:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def _then(object: ApiObject) -> str:
    return "".join(f", then by `{'.'.join(path)}`" for path in object.order.then) if object.order else ""


def _misplaced(last: OrderValue, value: OrderValue, falling: bool) -> bool:
    if isinstance(last, datetime) and isinstance(value, datetime):
        return value > last if falling else value < last
    if isinstance(last, Decimal) and isinstance(value, Decimal):
        return value > last if falling else value < last
    if isinstance(last, datetime) or isinstance(value, datetime):
        return True
    return _text_falls(str(value), str(last)) if falling else _text_falls(str(last), str(value))


def _key_falls(then: tuple[FieldPath, ...], before: str, record: Record) -> bool:
    """Whether a record's key, where it settles ties, comes before the one it follows: numbers by value."""
    if not then:
        return False
    if _are_digits(before, record.key) and int(record.key) < int(before):
        value = msgspec.json.decode(record.raw)
        for name in then[0]:
            value = value[name]
        if not isinstance(value, str):
            return True
    return _text_falls(before, record.key)


def _text_falls(before: str, after: str) -> bool:
    """Databases order texts in many ways, those of digits by value among them: only what is wrong in each of the common
    ones is wrong."""
    if _are_digits(before, after) and int(after) >= int(before):
        return False
    return after < before and after.casefold() < before.casefold()


def _are_digits(*texts: str) -> bool:
    return all(text.lstrip("-").isdecimal() for text in texts)
