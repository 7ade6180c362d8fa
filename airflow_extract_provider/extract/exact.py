"""JSON values with all their digits: read, compared and written again (law: fidelity)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from typing import Any, TypeGuard

import msgspec

__all__ = ["EXACT", "exact", "is_number", "read", "same", "written"]

EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""Arithmetic that rounds nothing; not for division."""
_FARTHEST = 200_000
"""Powers of ten beyond those that `jsonb` holds: adding such a number to 1 would fill the memory."""
_MOST_DIGITS = 4_000
"""Python refuses to read longer texts as an int."""
_INT64 = 1 << 63
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def read(raw: bytes | str) -> Any:
    """A JSON text as dict, list, str, bool, None, and int or Decimal for numbers.

    Raises ValueError: it is no JSON, or holds a number that `jsonb` cannot hold.
    """
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeError):
        # A number that is too long for it, or no JSON: Python's own reader, three times slower, tells.
        return json.loads(raw, parse_int=_integer, parse_float=_decimal, parse_constant=_refused)


def is_number(value: Any) -> TypeGuard[int | Decimal]:
    """Whether it is a JSON number, as `read` reads one; true and false are none."""
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON: 1 is 1.0, but not true, at any depth."""
    return bool(one == other) and _alike(one, other)


def _alike(one: Any, other: Any) -> bool:
    """Whether values that are equal to Python are equal as JSON: only true is 1 to Python, and false 0."""
    kind = type(one)
    if kind is str or one is None:
        return True
    if kind is dict:
        return all(_alike(value, other[name]) for name, value in one.items())
    if kind is list:
        return all(map(_alike, one, other))
    return (kind is bool) == (type(other) is bool)


def exact(value: Any) -> Any:
    """A value from Python or YAML as `read` would have read it; a float counts as the digits it is shown with.

    Raises ValueError: it is nothing that `jsonb` holds.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (int, float, Decimal)):
        return _finite(value)
    if isinstance(value, (list, tuple)):
        return [exact(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {_text(name): exact(each) for name, each in value.items()}
    raise ValueError(f"a value of type {type(value).__name__} is no JSON")


def written(value: Any) -> bytes:
    """A value as JSON text, to the last digit.

    Raises ValueError: it is nothing that `jsonb` holds.
    """
    return _ENCODER.encode(_sendable(exact(value)))


def _sendable(value: Any) -> Any:
    """The value with integers beyond 64 bits as decimals, which the encoder writes in full."""
    if isinstance(value, dict):
        return {name: _sendable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_sendable(each) for each in value]
    wide = is_number(value) and isinstance(value, int) and not -_INT64 <= value < _INT64
    return Decimal(value) if wide else value


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) < _MOST_DIGITS else _decimal(text)


def _decimal(text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation:
        raise ValueError("a number is beyond all measure") from None
    if not found:
        return Decimal(0)
    if abs(found.adjusted()) > _FARTHEST:
        raise ValueError("a number is beyond all measure")
    return found


def _finite(value: float | Decimal) -> int | Decimal:
    if isinstance(value, int):
        return value
    found = Decimal(repr(value)) if isinstance(value, float) else value
    if not found.is_finite() or abs(found.adjusted()) > _FARTHEST:
        raise ValueError("a number is not finite")
    return found


def _text(value: str) -> str:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value if not value.isascii()):
        raise ValueError("a text holds what no text in `jsonb` holds: a NUL character or half a surrogate pair")
    return str(value)


def _refused(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_DECODER = msgspec.json.Decoder(float_hook=_decimal)
