"""The canonical hash of a record: one for all spellings of one JSON value (law: fidelity)."""

from __future__ import annotations

import json

import msgspec
import xxhash

__all__ = ["canonical_hash"]

_LONGEST = 4_300
"""Digits of the longest int that Python and msgspec read."""


def canonical_hash(raw: bytes) -> bytes:
    """16 bytes (xxh3-128) of a JSON text, equal exactly when `jsonb` calls the values equal.

    The order of names in an object, white space, escapes and the spelling of numbers (1, 1.0, 1e0; 0, -0) do not
    matter; the order of an array does, and true is not 1. What `jsonb` refuses has no hash to rely on.

    Raises ValueError: it is no JSON.
    """
    try:
        value = _DECODER.decode(raw)
    except msgspec.MsgspecError:
        # An int that is too long for it, or no JSON: Python's own reader tells.
        value = json.loads(raw, parse_int=_number, parse_float=_number, parse_constant=_refused)
    return xxhash.xxh3_128_digest(_ENCODER.encode(value))


def _number(text: str) -> int | str:
    """A number: an int where it is one, else its digits without zeros around them, and its power of ten.

    These are told from a text by the NUL before them, which no text in `jsonb` holds.
    """
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    bare = digits.rstrip("0")
    if not bare:
        return 0
    power = int(exponent or 0) - len(fraction) + len(digits) - len(bare)
    sign = "-" if text[0] == "-" else ""
    if 0 <= power <= _LONGEST - len(bare):
        return int(f"{sign}{bare}{'0' * power}")
    return f"\0{sign}{bare}e{power}"


def _refused(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_DECODER = msgspec.json.Decoder(float_hook=_number)
_ENCODER = msgspec.json.Encoder(order="deterministic")
