"""From an answer's bytes to records: the page is cut into the records' own bytes, nothing is parsed that need not be.

A record's bytes travel unchanged to Postgres: no digit, no spelling is lost on the way (law: fidelity).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from airflow_extract_provider.extract.api.record import RecordReader, bad_record, kind, reader
from airflow_extract_provider.extract.errors import BadRecordError, ExtractError, RecordsPathError, WrongAnswerError
from airflow_extract_provider.extract.page import FieldPath, Page, Record, SetAside
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["cut", "cut_one", "members", "one_record", "told_error"]

_BOM = b"\xef\xbb\xbf"
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>\\u[dD][89a-fA-F]..)|\\.", re.DOTALL)
_STANDINS = (rb"\ufffc", rb"\ufffd")
"""Two characters for a half surrogate pair, as long as it is, that differ in their last byte."""
_MEMBER = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)
_NO_ERROR = (b"null", b"false", b'""', b"[]", b"{}", b"0")
_END = re.compile(rb"[ \t\r\n{]*\}[ \t\r\n]*")

_Parts: TypeAlias = tuple[Mapping[str, msgspec.Raw], Sequence[msgspec.Raw]]
"""An answer's outer object and its records, undecoded."""


def cut(object: ApiObject, body: bytes, began_at: datetime) -> Page:
    """The page in an answer's body. With `on_bad_record: quarantine`, bad records are set aside on it.

    Raises WrongAnswerError: the body is empty, HTML, no JSON, an error object, or an object in which a name stands
    twice. Raises RecordsPathError: `records` selects no list.
    Raises BadRecordError: an element is no object, or its key, version, order field or what `since` compares cannot be
    read.
    """

    def parts(body: bytes) -> _Parts:
        envelope = _envelope(body)
        _check_error(envelope, object.records)
        return envelope, _items(body, envelope, object)

    return _page(object, body, began_at, parts)


def cut_one(object: ApiObject, body: bytes, began_at: datetime, key: str | None = None) -> Page:
    """The page of one record in the answer to a read by key; `by_key.record` says where in it. ``key``: it must be its.

    Raises WrongAnswerError: as :func:`cut`, and if it is the record of another key.
    Raises RecordsPathError: `by_key.record` selects nothing. Raises BadRecordError: as :func:`cut`.
    """
    path = () if object.by_key is None else object.by_key.record

    def parts(body: bytes) -> _Parts:
        # Where the answer is the record, its members are the record's own, a field called `error` among them.
        envelope = _envelope(body) if path else _not_taken_apart(body)
        _check_error(envelope, path)
        return envelope, [_selected(body, envelope, path, "by_key.record", object.private)]

    page = _page(object, body, began_at, parts)
    found = page.records[0].key if page.records else page.bad[0].key
    if key is not None and found not in (key, None):
        raise WrongAnswerError(
            "asked for the record of a key, the API sent another one.", todo="Correct by_key.path.", key=key
        )
    return page


def one_record(object: ApiObject, raw: bytes) -> Record | SetAside:
    """A record by itself, as one taken out of the quarantine: read as on a page, or still bad, and why."""
    try:
        page = _cut(object, raw.strip(), None, lambda own: ({}, [_decoded(msgspec.Raw(own), msgspec.Raw)]))
    except WrongAnswerError:
        return SetAside(1, raw, "it is no JSON")
    except RecursionError:
        return SetAside(1, raw, "it is nested too deeply to be read")
    _, records, bad = page
    return records[0] if records else bad[0]


def _page(object: ApiObject, body: bytes, began_at: datetime, parts: Callable[[bytes], _Parts]) -> Page:
    body = body.removeprefix(_BOM).strip()
    try:
        envelope, records, bad = _cut(object, body, object.on_bad_record, parts)
    except RecursionError:
        raise BadRecordError(
            "a value on this page is nested too deeply to be read.", todo="Ask the API's vendor to correct it."
        ) from None
    return Page(tuple(records), began_at, envelope, bad=tuple(bad))


def _cut(
    object: ApiObject, body: bytes, on_bad: str | None, parts: Callable[[bytes], _Parts]
) -> tuple[Mapping[str, msgspec.Raw], list[Record], list[SetAside]]:
    """The outer object, the good records and the bad ones. Raises BadRecordError: ``on_bad`` is `stop`."""
    read = reader(object)
    envelope, items, halved = _opened(read, body, parts)
    records: list[Record] = []
    bad: list[SetAside] = []
    for number, item in enumerate(items, start=1):
        own = bytes(item)
        try:
            if number in halved:
                own = halved[number].raw
                raise bad_record(number, halved[number].why, halved[number].key)
            records.append(read.record(own, number))
        except BadRecordError as exc:
            if on_bad == "stop":
                raise
            bad.append(SetAside(number, own, exc.what.removesuffix("."), exc.key))
    return envelope, records, bad


def _opened(
    read: RecordReader, body: bytes, parts: Callable[[bytes], _Parts]
) -> tuple[Mapping[str, msgspec.Raw], Sequence[msgspec.Raw], Mapping[int, SetAside]]:
    """The parts of an answer, and which of its records hold half a surrogate pair, by their numbers."""
    _check_some(body)
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise _no_json() from None
    try:
        return (*parts(body), {})
    except _NoJsonError:
        found = _halved(read, body, parts)
        if found is None:
            raise _no_json() from None
        return found


class _NoJsonError(WrongAnswerError):
    """What was to be taken apart is no JSON."""


def _check_some(body: bytes) -> None:
    if not body:
        raise WrongAnswerError(
            "the status says success, but the body is empty.", todo="Test the connection; try later."
        )
    if body.startswith(b"<"):
        raise WrongAnswerError(
            "the status says success, but the body is HTML or XML, not JSON.",
            todo="Most often the login has run out, or the base URL leads to a web page: test the connection.",
        )


def _no_json() -> WrongAnswerError:
    return WrongAnswerError(
        "the status says success, but the body is no JSON, or breaks off in the middle.", todo="Try again later."
    )


def _halved(
    read: RecordReader, body: bytes, parts: Callable[[bytes], _Parts]
) -> tuple[Mapping[str, msgspec.Raw], Sequence[msgspec.Raw], Mapping[int, SetAside]] | None:
    """As :func:`_opened`, for a body that is no JSON only for half surrogate pairs within records; else None.

    It is cut twice, with two other characters in their places: the records that are cut differently have them.
    """
    halves = [found["half"] for found in _ESCAPE.finditer(body) if found["half"]]
    try:
        (envelope, one), (_, other) = (parts(_whole(body, standin)) for standin in _STANDINS)
    except ExtractError:
        return None
    rest = iter(halves)
    found: dict[int, SetAside] = {}
    for number, (first, second) in enumerate(zip(map(bytes, one), map(bytes, other), strict=True), start=1):
        if first != second:
            own = bytearray(first)
            for at in [at for at, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]:
                own[at - 5 : at + 1] = next(rest)
            key = _key_of_both(read, first, second)
            found[number] = SetAside(number, bytes(own), "a text in the record holds half a surrogate pair", key)
    # One that is left over stands beside the records, and spoils the whole answer.
    return (envelope, one, found) if halves and next(rest, None) is None else None


def _whole(body: bytes, standin: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: standin if found["half"] else found[0], body)


def _key_of_both(read: RecordReader, first: bytes, second: bytes) -> str | None:
    try:
        one, other = read.record(first, 1).key, read.record(second, 1).key
    except BadRecordError:
        return None
    return one if one == other else None


def _envelope(body: bytes) -> Mapping[str, msgspec.Raw]:
    """The members of the answer; it is JSON to its end then."""
    return members(msgspec.Raw(body)) if body.startswith(b"{") else _not_taken_apart(body)


def _not_taken_apart(body: bytes) -> Mapping[str, msgspec.Raw]:
    _decoded(msgspec.Raw(body), msgspec.Raw)
    return {}


def members(value: msgspec.Raw) -> Mapping[str, msgspec.Raw]:
    """The members of an object in an answer, undecoded.

    Raises WrongAnswerError: a name stands twice in it. JSON's readers keep one of the two, and the other was a part of
    the answer.
    """
    found: dict[str, msgspec.Raw] = _decoded(value, dict[str, msgspec.Raw])
    if not _is_made_of(bytes(value), found):
        raise WrongAnswerError(
            "an object of the answer holds a name twice, and nothing says which of the two counts.",
            todo="Report it to the API's vendor.",
        )
    return found


def _is_made_of(own: bytes, found: Mapping[str, msgspec.Raw]) -> bool:
    """Whether an object is written as just these members in their order. The values are compared, not parsed."""
    at = 0
    for name, value in found.items():
        member, text = _MEMBER.match(own, at), bytes(value)
        if member is None or msgspec.json.decode(member[1]) != name or not own.startswith(text, member.end()):
            return False
        at = member.end() + len(text)
    return _END.fullmatch(own, at) is not None


def told_error(envelope: Mapping[str, msgspec.Raw], path: FieldPath = ()) -> str | None:
    """The member of an answer by which it tells of an error, None: there is none. ``path`` leads to what was asked for,
    which may be called so itself."""
    for name in ("error", "errors"):
        if name in envelope and name not in path[:1] and bytes(envelope[name]).strip() not in _NO_ERROR:
            return name
    return None


def _check_error(envelope: Mapping[str, msgspec.Raw], path: FieldPath) -> None:
    """An error told in the body, with a status that says success. With records beside it they would be a part only."""
    if name := told_error(envelope, path):
        raise WrongAnswerError(
            f"the status says success, but the body tells of an error (`{name}`).",
            todo="Test the connection and the object's path with a single request.",
        )


def _items(body: bytes, envelope: Mapping[str, msgspec.Raw], object: ApiObject) -> Sequence[msgspec.Raw]:
    value = _selected(body, envelope, object.records, "records", object.private)
    what = kind(bytes(value))
    if what != "a list":
        raise _nothing_there(f"`records` ({'.'.join(object.records) or '@'}) selects {what}, not a list.", "records")
    found: list[msgspec.Raw] = _decoded(value, list[msgspec.Raw])
    return found


def _selected(
    body: bytes, envelope: Mapping[str, msgspec.Raw], path: FieldPath, key: str, private: bool
) -> msgspec.Raw:
    """The value at a path of the answer, undecoded. ``key`` is what the config calls the path. Where records are
    ``private``, names are not shown either."""
    value: msgspec.Raw | None = msgspec.Raw(body)
    held = envelope
    for depth, name in enumerate(path):
        value = held.get(name)
        at = ".".join(path[: depth + 1])
        if value is None:
            names = "" if private else f", which holds: {_names(held) or 'nothing'}"
            raise _nothing_there(f"`{at}` is not in the answer{names}.", key)
        if depth + 1 < len(path):
            if not bytes(value).startswith(b"{"):
                raise _nothing_there(f"`{at}` is {kind(bytes(value))}, not an object.", key)
            held = members(value)
    assert value is not None
    return value


def _nothing_there(what: str, key: str) -> RecordsPathError:
    kind = "list" if key == "records" else "record"
    return RecordsPathError(
        what, todo=f"Correct `{key}`: the path to the {kind} in the answer, @ if the answer is the {kind}."
    )


def _names(members: Mapping[str, msgspec.Raw]) -> str:
    """What an answer holds, unless its names could be keys of records."""
    return ", ".join([name for name in members if re.fullmatch(r"[A-Za-z_]{1,30}", name)][:12])


def _decoded(value: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError:
        raise _NoJsonError("the body is no JSON.", todo="Try again later.") from None
