"""From an answer's bytes to records: the page is cut into the records' own bytes, nothing is parsed that need not be.

A record's bytes travel unchanged to Postgres: no digit, no spelling is lost on the way (law: fidelity).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import msgspec

from airflow_extract_provider.extract.errors import BadRecordError, ExtractError, RecordsPathError, WrongAnswerError
from airflow_extract_provider.extract.page import FieldPath, OrderValue, Page, Record
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["cut"]

_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>\\u[dD][89a-fA-F]..)|\\.", re.DOTALL)
_LONGEST_KEY = 2600  # bytes; Postgres indexes no more than 2,704 with all that belongs to the entry
_KINDS = {
    ord("{"): "an object",
    ord("["): "a list",
    ord('"'): "a text",
    ord("t"): "true",
    ord("f"): "false",
    ord("n"): "null",
}


def cut(object: ApiObject, body: bytes, began_at: datetime) -> Page:
    """The page in an answer's body.

    Raises WrongAnswerError: the body is empty, HTML, no JSON, or an error object.
    Raises RecordsPathError: `records` selects no list.
    Raises BadRecordError: an element is no object, or its key, version or order field cannot be read.
    """
    body = body.removeprefix(_BOM).strip()
    try:
        _check_json(object, body)
        envelope, items = _parts(object, body)
        records = tuple(_record(object, raw, number) for number, raw in enumerate(items, start=1))
    except RecursionError:
        raise BadRecordError(
            "a value on this page is nested too deeply to be read.", todo="Ask the API's vendor to correct it."
        ) from None
    return Page(records, began_at, envelope)


def _parts(object: ApiObject, body: bytes) -> tuple[dict[str, msgspec.Raw], list[msgspec.Raw]]:
    """The answer's outer object and its records, undecoded."""
    envelope = _members(msgspec.Raw(body)) if body.startswith(b"{") else {}
    _check_error(object, envelope)
    return envelope, _items(object, body, envelope)


def _check_json(object: ApiObject, body: bytes) -> None:
    if not body:
        raise WrongAnswerError(
            "the status says success, but the body is empty.", todo="Test the connection; try later."
        )
    if body.startswith(b"<"):
        raise WrongAnswerError(
            "the status says success, but the body is HTML or XML, not JSON.",
            todo="Most often the login has run out, or the base URL leads to a web page: test the connection.",
        )
    try:
        body.decode("utf-8")
        msgspec.json.decode(body, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.DecodeError):
        _check_surrogates(object, body)
        raise WrongAnswerError(
            "the status says success, but the body is no JSON, or breaks off in the middle.", todo="Try again later."
        ) from None


def _check_surrogates(object: ApiObject, body: bytes) -> None:
    """Half surrogate pairs are refused with the whole body: cut it with two other characters in their places.

    Raises BadRecordError: the first record that is cut differently has one. Other mistakes are the caller's.
    """
    try:
        one, other = (_parts(object, _whole(body, character))[1] for character in (rb"\ufffc", rb"\ufffd"))
    except ExtractError:
        return
    for number, (first, second) in enumerate(zip(one, other, strict=True), start=1):
        if bytes(first) != bytes(second):
            raise _bad(number, "a text in the record holds half a surrogate pair")


def _whole(body: bytes, character: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: character if found["half"] else found[0], body)


def _check_error(object: ApiObject, envelope: Mapping[str, msgspec.Raw]) -> None:
    """An error told in the body, with a status that says success. With records beside it they would be a part only."""
    for name in {"error", "errors"} - set(object.records[:1]):
        if name in envelope and bytes(envelope[name]).strip() not in (b"null", b"false", b'""', b"[]", b"{}", b"0"):
            raise WrongAnswerError(
                f"the status says success, but the body tells of an error (`{name}`).",
                todo="Test the connection and the object's path with a single request.",
            )


def _items(object: ApiObject, body: bytes, envelope: Mapping[str, msgspec.Raw]) -> list[msgspec.Raw]:
    value: msgspec.Raw | None = msgspec.Raw(body)
    members: Mapping[str, msgspec.Raw] = envelope
    for depth, name in enumerate(object.records):
        value = members.get(name)
        at = ".".join(object.records[: depth + 1])
        if value is None:
            raise _no_list(f"`{at}` is not in the answer, which holds: {_names(members) or 'nothing'}.")
        if depth + 1 < len(object.records):
            if not bytes(value).startswith(b"{"):
                raise _no_list(f"`{at}` is {_kind(value)}, not an object.")
            members = _members(value)
    assert value is not None
    if not bytes(value).startswith(b"["):
        raise _no_list(f"`records` ({'.'.join(object.records) or '@'}) selects {_kind(value)}, not a list.")
    found: list[msgspec.Raw] = _decoded(value, list[msgspec.Raw])
    return found


def _no_list(what: str) -> RecordsPathError:
    return RecordsPathError(
        what, todo="Correct `records`: the path to the list in the answer, @ if the answer is the list."
    )


def _names(members: Mapping[str, msgspec.Raw]) -> str:
    """What an answer holds, unless its names could be keys of records."""
    return ", ".join([name for name in members if re.fullmatch(r"[A-Za-z_]{1,30}", name)][:12])


def _members(value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    found: dict[str, msgspec.Raw] = _decoded(value, dict[str, msgspec.Raw])
    return found


def _decoded(value: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError:
        raise WrongAnswerError("the body is no JSON.", todo="Try again later.") from None


def _kind(value: msgspec.Raw) -> str:
    return _KINDS.get(bytes(value)[:1][0], "a number")


def _record(object: ApiObject, raw: msgspec.Raw, number: int) -> Record:
    own = bytes(raw)
    if not own.startswith(b"{"):
        raise BadRecordError(f"the record is {_kind(raw)}, not an object.", todo="Correct `records`.", record=number)
    reader = _reader(object)
    try:
        fields = reader.decoder.decode(own)
    except msgspec.DecodeError:
        names = ", ".join(".".join(path) for path in reader.attributes)
        raise _bad(number, f"one of {names} lies below something that is no object") from None
    values = {path: _value(fields, attributes) for path, attributes in reader.attributes.items()}
    key = _key(object, values, number)
    return Record(
        key=key,
        raw=own,
        version=None if object.version is None else _version(values[object.version], object.version, number, key),
        order=None if object.order is None else _order(values[object.order.field], object.order.field, number, key),
    )


def _bad(number: int, what: str, key: str | None = None) -> BadRecordError:
    return BadRecordError(
        f"{what}.", todo="Correct the object's config, or ask the API's vendor.", record=number, key=key
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads some fields of a record and skips the rest: several times cheaper than parsing it.

    ``attributes`` lead from the decoded value to each path's field.
    """

    decoder: msgspec.json.Decoder[Any]
    attributes: Mapping[FieldPath, FieldPath]


def _reader(object: ApiObject) -> _Reader:
    order = () if object.order is None else (object.order.field,)
    version = () if object.version is None else (object.version,)
    return _reader_of((*object.key, *version, *order))


@lru_cache(maxsize=256)
def _reader_of(paths: tuple[FieldPath, ...]) -> _Reader:
    unique = tuple(dict.fromkeys(paths))
    kind, attributes = _struct(unique)
    return _Reader(msgspec.json.Decoder(kind), attributes)


def _struct(paths: tuple[FieldPath, ...]) -> tuple[Any, Mapping[FieldPath, FieldPath]]:
    """A struct type for the first names of these paths, with structs for what is below; and the way to each path."""
    fields: list[tuple[str, Any, Any]] = []
    attributes: dict[FieldPath, FieldPath] = {}
    for number, name in enumerate(dict.fromkeys(path[0] for path in paths)):
        below = tuple(path[1:] for path in paths if path[0] == name)
        inner, ways = (msgspec.Raw, {(): ()}) if below == ((),) else _struct(below)
        kind = inner if below == ((),) else inner | None
        fields.append((f"f{number}", kind | msgspec.UnsetType, msgspec.field(name=name, default=msgspec.UNSET)))
        attributes.update({(name, *path): (f"f{number}", *way) for path, way in ways.items()})
    return msgspec.defstruct("Fields", fields, frozen=True), attributes


def _value(fields: Any, attributes: FieldPath) -> bytes | None:
    """The undecoded value behind some attributes; None: absent or null."""
    for attribute in attributes:
        fields = getattr(fields, attribute)
        if fields is msgspec.UNSET or fields is None:
            return None
    found = bytes(fields)
    return None if found == b"null" else found


def _key(object: ApiObject, values: Mapping[FieldPath, bytes | None], number: int) -> str:
    parts = []
    for path in object.key:
        raw = values[path]
        if raw is None:
            raise _bad(number, f"the key `{'.'.join(path)}` is missing or null")
        parts.append(_key_text(raw, ".".join(path), number))
    key = parts[0] if len(parts) == 1 else msgspec.json.encode(parts).decode()
    if len(key.encode()) > _LONGEST_KEY:
        raise _bad(number, f"the key is longer than {_LONGEST_KEY} bytes")
    return key


def _key_text(raw: bytes, name: str, number: int) -> str:
    """A key as text: a text as it is, a whole number by its digits. So 7 and "7" are one key."""
    if raw.startswith(b'"'):
        try:
            text = msgspec.json.decode(raw, type=str)
            text.encode()
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise _bad(number, f"the key `{name}` is no valid text") from None
        if not text or "\x00" in text:
            raise _bad(number, f"the key `{name}` is empty or holds a NUL character")
        return text
    if raw.lstrip(b"-").isdigit():
        return raw.decode()
    raise _bad(number, f"the key `{name}` is {_kind(msgspec.Raw(raw))}, not a text or a whole number")


def _version(raw: bytes | None, path: FieldPath, number: int, key: str) -> datetime | None:
    """The instant of the last change; None when the record has none. It must carry its zone (RFC 3339)."""
    if raw is None:
        return None
    instant = _instant(raw)
    if instant is None:
        raise _bad(number, f"the version `{'.'.join(path)}` is no RFC 3339 instant with a zone", key)
    return instant


def _order(raw: bytes | None, path: FieldPath, number: int, key: str) -> OrderValue | None:
    if raw is None:
        return None
    found = _number(raw) if raw[:1] in b"-0123456789" else _instant(raw)
    if found is None:
        raise _bad(number, f"`{'.'.join(path)}`, which `order` names, is neither a number nor an RFC 3339 instant", key)
    return found


def _number(raw: bytes) -> Decimal | None:
    try:
        return Decimal(raw.decode())
    except InvalidOperation:  # an exponent beyond all measure
        return None


def _instant(raw: bytes) -> datetime | None:
    if not raw.startswith(b'"'):
        return None
    try:
        found = datetime.fromisoformat(msgspec.json.decode(raw, type=str))
        # In UTC: an instant of the year 1 or 9999 may lie outside of all calendars elsewhere.
        return found.astimezone(timezone.utc) if found.tzinfo is not None else None
    except (ValueError, OverflowError, msgspec.DecodeError):
        return None
