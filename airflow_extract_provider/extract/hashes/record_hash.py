"""The hashes of a record: of its bytes as they were sent, and the canonical one, which all spellings of one JSON value
share (law: fidelity)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import msgspec
import xxhash

from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.storing import HashName

__all__ = ["DIGESTS", "Digest", "canonical_hash"]

Digest: TypeAlias = Callable[[bytes], bytes]
"""A hash function of 16 bytes."""


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _sha256(data: bytes) -> bytes:
    # Cut off at the end, as NIST SP 800-107 (section 5.1) allows it.
    return hashlib.sha256(data).digest()[:16]


def _blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


DIGESTS: Mapping[HashName, Digest] = {
    "xxh3": xxhash.xxh3_128_digest,
    "md5": _md5,
    "sha256": _sha256,
    "blake2b": _blake2b,
}
"""The hash functions by name."""

_LONGEST_EXPONENT = 9
"""Digits of an exponent; `jsonb` takes 6 at most, and Python reads no more than 4,300 of an int."""
_LONGEST = 4_300
"""Digits of the longest int that Python and msgspec read."""


def canonical_hash(raw: bytes, exclude: Iterable[FieldPath] = (), by: HashName = "xxh3") -> bytes:
    """16 bytes of a JSON text, equal exactly when `jsonb` calls the values equal; what stands at the paths of
    ``exclude`` is left out first.

    The order of names in an object, white space, escapes and the spelling of numbers (1, 1.0, 1e0; 0, -0) do not
    matter; the order of an array does, and true is not 1. Texts are equal if they are the same characters: an accent of
    its own is not the letter with the accent. What `jsonb` refuses has no hash to rely on. A path leads through objects
    only.

    Raises ValueError: it is no JSON.
    """
    try:
        value = _DECODER.decode(raw)
    except msgspec.MsgspecError:
        # An int that is too long for it, or no JSON: Python's own reader tells.
        value = json.loads(raw, parse_int=_number, parse_float=_number, parse_constant=_refused)
    for path in exclude:
        _leave_out(value, path)
    return DIGESTS[by](_ENCODER.encode(value))


def _leave_out(value: Any, path: FieldPath) -> None:
    *above, last = path
    for name in above:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value.pop(last, None)


def _number(text: str) -> int | str:
    """A number: an int where it is one, else its digits without zeros around them, and its power of ten.

    These are told from a text by the NUL before them, which no text in `jsonb` holds.
    """
    whole, _, fraction = text.partition(".")
    if fraction.isdigit() and fraction[-1] != "0" and whole[0] not in "-0":
        # As most prices are written: nothing is to be taken off, and it costs a third.
        return f"\0{whole}{fraction}e-{len(fraction)}"
    mantissa, _, exponent = text.lower().partition("e")
    if len(exponent.lstrip("+-0")) > _LONGEST_EXPONENT:
        return f"\0{text}"
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
