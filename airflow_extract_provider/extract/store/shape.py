"""How a record is stored: the part of it that `data` keeps, its typed columns, and hashes that know of both.

Everything is taken from the record's own bytes; what is not needed is not parsed (law: fidelity).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import msgspec
import xxhash

from airflow_extract_provider.extract.hashes.record_hash import DIGESTS, Digest, canonical_hash
from airflow_extract_provider.extract.instants import instant
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import Timestamps
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.storing import Column, ColumnType, HashName

__all__ = ["AS_IT_IS", "Shape", "picked"]

_NUMBER = re.compile(rb"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,4})?")
_ZERO = re.compile(rb"-?0(\.0*)?([eE].*)?")
_WHOLE_NUMBER = re.compile(rb"-?(0|[1-9]\d{0,18})")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOST_DIGITS, _MOST_DECIMALS = 131_072, 16_383
"""Of a `numeric`, before and behind the decimal point (PostgreSQL documentation, section 8.1)."""
_BIGINT = range(-(2**63), 2**63)
_ALL_KEPT = xxhash.xxh64_digest(b"null")
_USUAL: HashName = "xxh3"
_HASH, _KEPT = slice(16), slice(16, 24)
"""Of a stored canonical hash: the hash, and `kept_as`; behind them stands `counted_as`. The usual is left out from the
end: that all fields count, by the usual hash function, and that all are kept."""
_Members = dict[str, msgspec.Raw]


def _counters(exclude: tuple[FieldPath, ...]) -> Mapping[bytes, HashName]:
    """The hash functions by what ``counted_as`` is with each of them."""
    told = {name: msgspec.json.encode([name, exclude]) for name in DIGESTS}
    return {b"" if (name, exclude) == (_USUAL, ()) else xxhash.xxh64_digest(text): name for name, text in told.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """How the records of an object are stored. ``keep``: the paths that `data` holds; None: all of the record.
    ``by``: the hash function; ``exclude``: the paths of which a change is none.

    ``kept_as`` and ``counted_as`` are digests: of ``keep``; of what counts and by which function, empty where that is
    the usual. ``counters``: the functions by what ``counted_as`` is with each of them. ``mark`` is a digest of all that
    is stored of a record, empty where that is the record as it is; behind it stands how it is hashed, if unusually.
    """

    keep: tuple[FieldPath, ...] | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)
    timestamps: Timestamps = field(default_factory=Timestamps)
    mark: bytes = b""
    kept_as: bytes = _ALL_KEPT
    by: HashName = _USUAL
    exclude: tuple[FieldPath, ...] = ()
    counted_as: bytes = b""
    counters: Mapping[bytes, HashName] = field(default_factory=lambda: _counters(()))
    digest: Digest = DIGESTS[_USUAL]

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
        by, exclude = object.hash.by, tuple(sorted(set(object.hash.exclude)))
        kept_as = xxhash.xxh64_digest(msgspec.json.encode(object.keep))
        counters = _counters(exclude)
        counted_as = next(counted for counted, name in counters.items() if name == by)
        mark = xxhash.xxh64_digest(msgspec.json.encode(told)) if told else b""
        if object.keep is not None:
            # Without the whole record at hand: hashed anew while most still are as they were, not when they change.
            mark += counted_as
        elif by != _USUAL:
            mark += by.encode()
        shape = (object.keep, object.columns, object.timestamps, mark, kept_as)
        return Shape(*shape, by, exclude, counted_as, counters, DIGESTS[by])

    @property
    def whole(self) -> bool:
        """Whether `data` is the record, and all of it counts: it tells by itself whether one has changed."""
        return self.keep is None and not self.exclude

    def raw_hash(self, raw: bytes) -> bytes:
        """The hash of the record's own bytes, and the shape's mark: under another shape the row is written anew."""
        return self.digest(raw) + self.mark

    def marked(self, raw_hash: bytes) -> bool:
        """Whether a row with this hash is stored in this shape, however it was hashed."""
        return _stored_as(raw_hash[16:]) == _stored_as(self.mark)

    def data(self, raw: bytes) -> str:
        """The JSON that `data` keeps of a record."""
        if self.keep is None:
            return raw.decode()
        return _reduced(raw, self.keep).decode()

    def canonical(self, raw: bytes) -> bytes:
        """The canonical hash as it is stored: with what `data` keeps beside it, and what counts."""
        return canonical_hash(raw, self.exclude, self.by) + self.identity

    @property
    def identity(self) -> bytes:
        """What stands behind a canonical hash: without it two of them cannot be compared."""
        if self.counted_as:
            return self.kept_as + self.counted_as
        return b"" if self.whole else self.kept_as

    def kept_otherwise(self, canonical: bytes | None) -> bool:
        """Whether `data` beside this hash may lack fields that it would hold now."""
        return _keeps_part(canonical) and canonical is not None and canonical[_KEPT] != self.kept_as

    def tells(self, raw: bytes, raw_hash: bytes, canonical: bytes | None) -> bool:
        """Whether a change since these hashes were stored is found in any field: not where others counted, and `data`
        holds only a part."""
        return not _keeps_part(canonical) or self._counter(canonical) is not None or self._same_bytes(raw, raw_hash)

    def differs(
        self, raw: bytes, now: bytes, raw_hash: bytes, canonical: bytes | None, data: str | None
    ) -> bool | None:
        """Whether a record, whose canonical hash is ``now``, is another one than the stored, with its hashes and
        `data`; None: `data` holds all of it and all of it counts, so that Postgres can compare them.

        Where other fields counted when it was stored, the records themselves are compared, by what counts now: as far
        as `data` holds them.
        """
        if self._same_bytes(raw, raw_hash):
            return False
        by = self._counter(canonical)
        if by is not None and canonical is not None:
            told = now[_HASH] if by == self.by else canonical_hash(raw, self.exclude, by)
            return told != canonical[_HASH]
        if self.whole and not _keeps_part(canonical):
            return None
        assert data is not None
        stored = data.encode()
        if _keeps_part(canonical):
            paths = tuple(_leaves(stored)) if self.kept_otherwise(canonical) else self.keep or ()
            raw, stored = _reduced(raw, paths), _reduced(stored, paths)
        return self._counted(raw) != self._counted(stored)

    def agrees(self, raw: bytes, raw_hash: bytes, canonical: bytes | None, data: str) -> bool:
        """Whether a record is the stored one, with its hashes and `data`, as far as it counts; in whatever spelling."""
        told = self.differs(raw, self.canonical(raw), raw_hash, canonical, data)
        return not (self._counted(raw) != self._counted(data.encode()) if told is None else told)

    def _same_bytes(self, raw: bytes, raw_hash: bytes) -> bool:
        """Whether these very bytes were stored in another shape, or hashed by another function."""
        another = raw_hash[16:] != self.mark
        return another and any(digest(raw) == raw_hash[:16] for digest in DIGESTS.values())

    def _counted(self, raw: bytes) -> bytes:
        return canonical_hash(raw, self.exclude, self.by)

    def _counter(self, canonical: bytes | None) -> HashName | None:
        """The hash function that made this hash, if the same fields counted; else None."""
        return None if canonical is None else self.counters.get(canonical[_KEPT.stop :])

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


def _stored_as(mark: bytes) -> bytes:
    """A mark without how records are hashed: alone, that is the name of a function, shorter than a digest."""
    return mark[:8] if len(mark) >= 8 else b""


def _keeps_part(canonical: bytes | None) -> bool:
    """Whether `data` beside this hash is a part of the record; without one, it is all."""
    return canonical is not None and canonical[_KEPT] not in (b"", _ALL_KEPT)


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


def _leaves(raw: bytes, above: FieldPath = ()) -> Iterator[FieldPath]:
    """The paths of the values of a record; of an object, those in it. Of an empty one nothing is known but that it is
    there: what was in it may have been left out."""
    for name, value in _members(raw).items():
        path, held = (*above, name), bytes(value)
        if held.startswith(b"{"):
            yield from _leaves(held, path)
        else:
            yield path


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
