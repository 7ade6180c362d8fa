"""How a record is stored: the part of it that `data` keeps, its typed columns, and hashes that know of both.

Everything is taken from the record's own bytes; what is not needed is not parsed (law: fidelity).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import msgspec
import xxhash

from airflow_extract_provider.extract.hashes.record_hash import canonical_hash
from airflow_extract_provider.extract.instants import instant
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import Timestamps
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.storing import Column, ColumnType

__all__ = ["AS_IT_IS", "Shape", "picked"]

_NUMBER = re.compile(rb"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,4})?")
_ZERO = re.compile(rb"-?0(\.0*)?([eE].*)?")
_WHOLE_NUMBER = re.compile(rb"-?(0|[1-9]\d{0,18})")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOST_DIGITS, _MOST_DECIMALS = 131_072, 16_383
"""Of a `numeric`, before and behind the decimal point (PostgreSQL documentation, section 8.1)."""
_BIGINT = range(-(2**63), 2**63)
_Members = dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Shape:
    """How the records of an object are stored. ``keep``: the paths that `data` holds; None: all of the record.

    ``mark`` and ``kept_as`` are digests: of the whole shape, empty where records are stored as they are; of ``keep``.
    """

    keep: tuple[FieldPath, ...] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)
    timestamps: Timestamps = field(default_factory=Timestamps)
    mark: bytes = b""
    kept_as: bytes = b""

    @staticmethod
    def of(object: ApiObject) -> Shape:
        """The shape that an object's config asks for."""
        told: list[Any] = []
        if object.keep is not None:
            told.append(object.keep)
        if object.columns:
            told.append({name: (spec.path, spec.type) for name, spec in sorted(object.columns.items())})
        if object.fold:
            told.append([each.model_dump(mode="json") for each in object.fold])
        if any(spec.type == "timestamptz" for spec in object.columns.values()):
            told.append(object.timestamps.model_dump(mode="json"))
        mark = xxhash.xxh64_digest(msgspec.json.encode(told)) if told else b""
        kept_as = xxhash.xxh64_digest(msgspec.json.encode(object.keep))
        return Shape(object.keep, object.columns, object.timestamps, mark, kept_as)

    @property
    def whole(self) -> bool:
        """Whether `data` is the record, so that it tells by itself whether one has changed."""
        return self.keep is None

    def raw_hash(self, raw: bytes) -> bytes:
        """XXH3-128 of the record's own bytes, and the shape's mark: under another shape the row is written anew."""
        return xxhash.xxh3_128_digest(raw) + self.mark

    def marked(self, raw_hash: bytes) -> bool:
        """Whether a row with this hash is stored in this shape."""
        return raw_hash[16:] == self.mark

    def data(self, raw: bytes) -> str:
        """The JSON that `data` keeps of a record."""
        if self.keep is None:
            return raw.decode()
        return _reduced(raw, self.keep).decode()

    def canonical(self, raw: bytes) -> bytes | None:
        """What tells whether a record has changed when `data` keeps a part of it only, and which part that is; None:
        `data` does."""
        return None if self.whole else canonical_hash(raw) + self.kept_as

    def typed(self, raw: bytes) -> str | None:
        """A record's typed columns as one JSON object, each value as Postgres reads it into its type."""
        if not self.columns:
            return None
        values = picked(raw, [spec.path for spec in self.columns.values()])
        told = {name: _value(values[spec.path], spec.type, self.timestamps) for name, spec in self.columns.items()}
        return msgspec.json.encode(told).decode()

    def refusal(self, raw: bytes) -> str | None:
        """Why a record does not fit into its typed columns, in words without its values; None: it does."""
        if not self.columns or not raw.startswith(b"{"):
            return None
        values = picked(raw, [spec.path for spec in self.columns.values()])
        for name, spec in self.columns.items():
            try:
                _value(values[spec.path], spec.type, self.timestamps)
            except (ValueError, msgspec.MsgspecError):
                return f"`{'.'.join(spec.path)}` does not fit into the column {name} of type {spec.type}"
        return None


AS_IT_IS = Shape()
"""Records as they are, in `data` alone."""


def picked(raw: bytes, paths: Iterable[FieldPath]) -> Mapping[FieldPath, bytes | None]:
    """The undecoded values at some paths of a record; None: absent or null."""
    top = _members(raw)
    return {path: _at(top, path) for path in paths}


def _at(top: _Members, path: FieldPath) -> bytes | None:
    members, found = top, None
    for name in path:
        value = members.get(name)
        if value is None:
            return None
        found = bytes(value)
        members = _members(found)
    return None if found == b"null" else found


def _members(raw: bytes) -> _Members:
    if not raw.startswith(b"{"):
        return {}
    found: _Members = msgspec.json.decode(raw, type=_Members)
    return found


def _reduced(raw: bytes, paths: Iterable[FieldPath]) -> bytes:
    """The record with nothing but what stands at these paths; a path that is not there stays so."""
    below: dict[str, list[FieldPath]] = {}
    for path in paths:
        below.setdefault(path[0], []).append(path[1:])
    members = _members(raw)
    told = {}
    for name, rest in below.items():
        if name in members:
            value = bytes(members[name])
            told[name] = value if () in rest or not value.startswith(b"{") else _reduced(value, rest)
    return msgspec.json.encode({name: msgspec.Raw(value) for name, value in told.items()})


def _value(raw: bytes | None, type: ColumnType, timestamps: Timestamps) -> Any:
    """A value as Postgres reads it from JSON into a column of that type. Raises ValueError: it is none of the type."""
    if raw is None:
        return None
    return _READ[type](raw, timestamps)


def _text(raw: bytes, _: Timestamps) -> str:
    """A text as it is, everything else as its JSON."""
    if not raw.startswith(b'"'):
        return raw.decode()
    found = msgspec.json.decode(raw, type=str)
    if "\x00" in found:
        raise ValueError
    return found


def _matching(raw: bytes, pattern: re.Pattern[bytes]) -> msgspec.Raw:
    """A number, also one in quotes: APIs write amounts so to keep their digits."""
    bare = raw[1:-1] if raw.startswith(b'"') else raw
    if pattern.fullmatch(bare) is None:
        raise ValueError
    return msgspec.Raw(bare)


def _bigint(raw: bytes, _: Timestamps) -> msgspec.Raw:
    found = _matching(raw, _WHOLE_NUMBER)
    if int(bytes(found)) not in _BIGINT:
        raise ValueError
    return found


def _double(raw: bytes, _: Timestamps) -> msgspec.Raw:
    found = _matching(raw, _NUMBER)
    read = float(bytes(found))
    # Postgres refuses what is too large for the type, and what is so small that nothing would be left of it.
    if abs(read) == float("inf") or (read == 0 and _ZERO.fullmatch(bytes(found)) is None):
        raise ValueError
    return found


def _boolean(raw: bytes, _: Timestamps) -> msgspec.Raw:
    if raw not in (b"true", b"false"):
        raise ValueError
    return msgspec.Raw(raw)


def _timestamptz(raw: bytes, timestamps: Timestamps) -> str:
    found = instant(raw, timestamps)
    if found is None:
        raise ValueError
    at: datetime = found.astimezone(timezone.utc)
    return at.isoformat()


def _date(raw: bytes, _: Timestamps) -> str:
    text = msgspec.json.decode(raw, type=str)
    if _DATE.fullmatch(text) is None:
        raise ValueError
    return date.fromisoformat(text).isoformat()


def _numeric(raw: bytes, _: Timestamps) -> msgspec.Raw:
    found = _matching(raw, _NUMBER)
    read = Decimal(bytes(found).decode())
    if read and (read.adjusted() >= _MOST_DIGITS or int(read.as_tuple().exponent) < -_MOST_DECIMALS):
        raise ValueError
    return found


_READ: Mapping[ColumnType, Any] = {
    "text": _text,
    "bigint": _bigint,
    "numeric": _numeric,
    "double precision": _double,
    "boolean": _boolean,
    "timestamptz": _timestamptz,
    "date": _date,
    "jsonb": lambda raw, _: msgspec.Raw(raw),
}
