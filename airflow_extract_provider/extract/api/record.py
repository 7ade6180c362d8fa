"""From a record's bytes to a `Record`: its key, its instants, whether it is a tombstone. The rest is skipped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.instants import Reading, reading
from airflow_extract_provider.extract.page import FieldPath, OrderValue, Record
from airflow_extract_provider.extract.paging import Timestamps
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["RecordReader", "bad_record", "key_reader", "kind", "reader", "told_reader"]

_LONGEST_KEY = 2400  # bytes; Postgres indexes no more than 2,704, and notes for refetch hold source and object too
_KINDS = {
    ord("{"): "an object",
    ord("["): "a list",
    ord('"'): "a text",
    ord("t"): "true",
    ord("f"): "false",
    ord("n"): "null",
}
_PLAIN_KEY = re.compile(rb'"[ !#-\[\]-~]+"')
"""As most keys are written: what stands there is the text."""
_UNITS = {"unix": "seconds", "unix_ms": "milliseconds", "unix_us": "microseconds"}
# A zero, in quotes or not, an instant of zeros, a word for no: what databases hold where there is none.
_NOTHING = re.compile(rb'"?(?:[-+0.:\s]*|0000-00-00T[0:.]+Z?|(?i:false|f|no|n|null|none))"?|\[\s*\]|\{\s*\}')

_Ways: TypeAlias = tuple[FieldPath, FieldPath]
"""A field's path, for messages, and the attributes that lead to it."""


def kind(raw: bytes) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(raw[0], "a number")


def bad_record(number: int, what: str, key: str | None = None) -> BadRecordError:
    """The error for a record that cannot be read; ``number`` counts from 1 on its page."""
    return BadRecordError(
        f"{what}.", todo="Correct the object's config, or ask the API's vendor.", record=number, key=key
    )


def reader(object: ApiObject) -> RecordReader:
    """What reads an object's records. One is made for each config, and kept."""
    order = None if object.order is None else object.order.field
    return _made(object.key, object.version, object.deleted, order, object.since_field, object.timestamps)


def told_reader(object: ApiObject) -> RecordReader:
    """What reads a record out of a webhook: what orders the API's lists need not be in it."""
    return _made(object.key, object.version, object.deleted, None, None, object.timestamps)


def key_reader(paths: tuple[FieldPath, ...]) -> RecordReader:
    """What reads nothing but a key, from these places."""
    return _made(paths, None, None, None, None, Timestamps())


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads some fields of a record and skips the rest: several times cheaper than parsing it."""

    decoder: msgspec.json.Decoder[Any]
    key: tuple[_Ways, ...]
    version: _Ways | None
    deleted: _Ways | None
    order: _Ways | None
    since: _Ways | None
    timestamps: Timestamps
    instant: Reading
    plain: bool
    """There is nothing to read but key and version."""

    def record(self, raw: bytes, number: int) -> Record:
        """The record in these bytes, the ``number``-th of its page.

        Raises BadRecordError: it is no object, or its key, version, order field or what `since` compares cannot be
        read.
        """
        if not raw.startswith(b"{"):
            raise BadRecordError(f"the record is {kind(raw)}, not an object.", todo="Correct `records`.", record=number)
        try:
            fields = self.decoder.decode(raw)
        except msgspec.DecodeError:
            raise bad_record(number, f"one of {self._names()} lies below something that is no object") from None
        key = self._key(fields, number)
        version = None if self.version is None else self._version(_value(fields, self.version), number, key)
        if self.plain:
            return Record(key, raw, version)
        since = version if self.since == self.version else self._since(fields, number, key)
        return Record(
            key=key,
            raw=raw,
            version=version,
            order=self._order(fields, version, since, number, key),
            deleted=self.deleted is not None and _says_deleted(_value(fields, self.deleted)),
            since=since if self.since is not None else None,
        )

    def _names(self) -> str:
        ways = (*self.key, self.version, self.deleted, self.order, self.since)
        return ", ".join(dict.fromkeys(_name(way) for way in ways if way is not None))

    def _key(self, fields: Any, number: int) -> str:
        if len(self.key) == 1:
            (way,) = self.key
            key = _key_text(_value(fields, way), way, number)
        else:
            parts = [_key_text(_value(fields, way), way, number) for way in self.key]
            key = msgspec.json.encode(parts).decode()
        if len(key) * 4 > _LONGEST_KEY and len(key.encode()) > _LONGEST_KEY:
            raise bad_record(number, f"the key is longer than {_LONGEST_KEY} bytes")
        return key

    def _version(self, raw: bytes | None, number: int, key: str) -> datetime | None:
        """The instant of the last change; None when the record has none."""
        found = None if raw is None else self.instant(raw)
        if raw is not None and found is None:
            assert self.version is not None
            raise bad_record(number, f"the version `{_name(self.version)}` is {_no_instant(self.timestamps)}", key)
        return found

    def _since(self, fields: Any, number: int, key: str) -> datetime | None:
        if self.since is None:
            return None
        raw = _value(fields, self.since)
        found = None if raw is None else self.instant(raw)
        if raw is not None and found is None:
            what = f"`{_name(self.since)}`, which `since` compares, is {_no_instant(self.timestamps)}"
            raise bad_record(number, what, key)
        return found

    def _order(
        self, fields: Any, version: datetime | None, since: datetime | None, number: int, key: str
    ) -> OrderValue | None:
        """What the record stands at in the promised order; None: it has no value. A key that is a text stays one."""
        if self.order is None or self.order in (self.version, self.since):
            return None if self.order is None else version if self.order == self.version else since
        raw = _value(fields, self.order)
        if raw is None:
            return None
        if self.order in self.key and raw.startswith(b'"'):
            return _key_text(raw, self.order, number)
        found = _number(raw) if raw[:1] in b"-0123456789" else self.instant(raw)
        if found is None:
            what = f"`{_name(self.order)}`, which `order` names, is neither a number nor {_an_instant(self.timestamps)}"
            raise bad_record(number, what, key)
        return found


@lru_cache(maxsize=256)
def _made(
    key: tuple[FieldPath, ...],
    version: FieldPath | None,
    deleted: FieldPath | None,
    order: FieldPath | None,
    since: FieldPath | None,
    timestamps: Timestamps,
) -> RecordReader:
    paths = dict.fromkeys([*key, *(path for path in (version, deleted, order, since) if path is not None)])
    made, attributes = _struct(tuple(paths))

    def way(path: FieldPath | None) -> _Ways | None:
        return None if path is None else (path, attributes[path])

    return RecordReader(
        decoder=msgspec.json.Decoder(made),
        key=tuple((path, attributes[path]) for path in key),
        version=way(version),
        deleted=way(deleted),
        order=way(order),
        since=way(since),
        timestamps=timestamps,
        instant=reading(timestamps.format, timestamps.zone),
        plain=deleted is None and order is None and since is None,
    )


def _struct(paths: tuple[FieldPath, ...]) -> tuple[Any, Mapping[FieldPath, FieldPath]]:
    """A struct type for the first names of these paths, with structs for what is below; and the way to each path."""
    fields: list[tuple[str, Any, Any]] = []
    attributes: dict[FieldPath, FieldPath] = {}
    for number, name in enumerate(dict.fromkeys(path[0] for path in paths)):
        below = tuple(path[1:] for path in paths if path[0] == name)
        inner, ways = (msgspec.Raw, {(): ()}) if below == ((),) else _struct(below)
        field = inner if below == ((),) else inner | None
        fields.append((f"f{number}", field | msgspec.UnsetType, msgspec.field(name=name, default=msgspec.UNSET)))
        attributes.update({(name, *path): (f"f{number}", *way) for path, way in ways.items()})
    return msgspec.defstruct("Fields", fields, frozen=True), attributes


def _name(way: _Ways) -> str:
    return ".".join(way[0])


def _value(fields: Any, way: _Ways) -> bytes | None:
    """The undecoded value behind some attributes; None: absent or null."""
    for attribute in way[1]:
        fields = getattr(fields, attribute)
        if fields is msgspec.UNSET or fields is None:
            return None
    found = bytes(fields)
    return None if found == b"null" else found


def _key_text(raw: bytes | None, way: _Ways, number: int) -> str:
    """A key as text: a text as it is, a whole number by its digits. So 7 and "7" are one key."""
    if raw is None:
        raise bad_record(number, f"the key `{_name(way)}` is missing or null")
    if _PLAIN_KEY.fullmatch(raw):
        return raw[1:-1].decode()
    if raw.startswith(b'"'):
        try:
            text = msgspec.json.decode(raw, type=str)
            text.encode()
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise bad_record(number, f"the key `{_name(way)}` is no valid text") from None
        if not text or "\x00" in text:
            raise bad_record(number, f"the key `{_name(way)}` is empty or holds a NUL character")
        return text
    if raw.lstrip(b"-").isdigit():
        return raw.decode()
    raise bad_record(number, f"the key `{_name(way)}` is {kind(raw)}, not a text or a whole number")


def _number(raw: bytes) -> Decimal | None:
    try:
        return Decimal(raw.decode())
    except InvalidOperation:  # an exponent beyond all measure
        return None


def _says_deleted(raw: bytes | None) -> bool:
    """True, or the instant or anything else that a living record does not have."""
    return raw is not None and _NOTHING.fullmatch(raw) is None


def _an_instant(timestamps: Timestamps) -> str:
    if timestamps.format == "rfc3339":
        return "an RFC 3339 instant"
    unit = _UNITS.get(timestamps.format)
    return "an instant written as `timestamps` says" if unit is None else f"a unix time in {unit}"


def _no_instant(timestamps: Timestamps) -> str:
    """What a value is not, in the words of the declaration."""
    if timestamps.format in _UNITS:
        return f"no unix time in {_UNITS[timestamps.format]}"
    if timestamps.zone is None:
        return "no RFC 3339 instant with a zone" if timestamps.format == "rfc3339" else "no instant of that pattern"
    written = "no RFC 3339 instant" if timestamps.format == "rfc3339" else "no instant of that pattern"
    return f"{written}, or a local time that {timestamps.zone} has twice or never"
