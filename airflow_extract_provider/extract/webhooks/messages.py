"""From a delivery to its messages: what each tells, of which record. Pure; the bodies of strangers end here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from airflow_extract_provider.extract.api.record import key_reader, told_reader
from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.page import FieldPath, Record
from airflow_extract_provider.extract.receiving import Endpoint, Pattern, Told
from airflow_extract_provider.extract.source import Source

__all__ = ["Delivery", "Message", "Unreadable", "delivery_of", "split"]

_Members: TypeAlias = dict[str, msgspec.Raw]
_NO_BYTES = b"null"
_LONGEST_ID = 2000
"""Postgres indexes no more than 2,704 bytes."""


class Delivery(msgspec.Struct, frozen=True):
    """A webhook as it waits in the inbox, at its place there."""

    place: int
    headers: Mapping[str, str]
    body: bytes
    received_at: datetime


def delivery_of(row: Sequence[Any]) -> Delivery:
    """A webhook of the row that holds it."""
    place, headers, body, received_at = row
    return Delivery(place, msgspec.json.decode(headers), bytes(body), received_at.astimezone(timezone.utc))


class Message(msgspec.Struct, frozen=True):
    """One message of a delivery, the ``nth`` of its body (from 1).

    ``does`` is what to do with it: ``payload``, ``record`` is judged and stored; ``refetch``, the record is read by its
    key; ``final``, it is gone, which nobody can ask the API about; ``nothing``. ``object`` and ``key`` are of the
    record, empty where it tells of none; ``gone``: it says that the record is. ``forward``: it is passed on as it is,
    as an event of ``type``. ``known``: the config says something of its type. ``ordered``: no version tells its age, so
    that it may not be taken before an older one of its key. ``id`` is that which the message holds.
    """

    place: int
    nth: int
    type: str
    received_at: datetime
    raw: bytes
    object: str = ""
    key: str = ""
    does: Literal["payload", "refetch", "final", "nothing"] = "nothing"
    record: Record | None = None
    forward: bool = False
    known: bool = True
    ordered: bool = False
    gone: bool = False
    id: str | None = None

    @property
    def at(self) -> tuple[int, int]:
        """Where it stands: the place of its delivery, and its number."""
        return self.place, self.nth

    @property
    def whose(self) -> tuple[str, str]:
        """Object and key."""
        return self.object, self.key

    @property
    def bare(self) -> Message:
        """The message without what it tells of a record."""
        return replace(self, does="nothing", record=None)


class Unreadable(msgspec.Struct, frozen=True):
    """A message that says nothing that can be understood, and why; 0: that is so of the whole body."""

    place: int
    nth: int
    why: str


def split(source: Source, endpoint: str, delivery: Delivery) -> list[Message | Unreadable]:
    """The messages of a delivery, in their order."""
    spec = source.webhooks[endpoint]
    try:
        raws = _list(spec, delivery.body)
    except _Unlike as exc:
        return [Unreadable(delivery.place, 0, str(exc))]
    return [_read(source, endpoint, spec, delivery, nth, raw) for nth, raw in enumerate(raws, 1)]


class _Unlike(Exception):
    """It is not as the endpoint says; in words without its values."""


def _list(spec: Endpoint, body: bytes) -> Sequence[bytes]:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise _Unlike("the body is no UTF-8") from None
    try:
        whole = bytes(msgspec.json.decode(body, type=msgspec.Raw)).strip()
        if spec.messages is None:
            return [whole]
        place = _at(whole, spec.messages)
        return [bytes(each) for each in msgspec.json.decode(place or b"null", type=list[msgspec.Raw])]
    except msgspec.MsgspecError:
        told = ".".join(spec.messages or ()) or "@"
        raise _Unlike("the body is no JSON" if spec.messages is None else f"`{told}` is no list of messages") from None
    except RecursionError:
        raise _Unlike("the body is nested too deeply") from None


def _read(
    source: Source, endpoint: str, spec: Endpoint, delivery: Delivery, nth: int, raw: bytes
) -> Message | Unreadable:
    try:
        if not raw.startswith(b"{"):
            raise _Unlike("the message is no object")
        type = next(iter(spec.types), endpoint) if spec.type is None else _filled(spec.type, delivery.headers, raw)
        told = spec.told_by(type)
        id = None if spec.id is None else _text(_at(raw, spec.id))
        if id is not None and len(id.encode()) > _LONGEST_ID:
            raise _Unlike(f"the id is longer than {_LONGEST_ID} bytes")
        forward = spec.forwards(type)
        known = told is not None or forward or spec.ignores(type)
        place = (delivery.place, nth, type, delivery.received_at, raw)
        bare = Message(*place, forward=forward, known=known, ordered=forward, id=id)
        return bare if told is None else _told(source, told, bare)
    except _Unlike as exc:
        return Unreadable(delivery.place, nth, str(exc))
    except BadRecordError as exc:
        return Unreadable(delivery.place, nth, exc.what.removesuffix("."))
    except (msgspec.MsgspecError, RecursionError):
        return Unreadable(delivery.place, nth, "it cannot be read as JSON to the end")


def _told(source: Source, told: Told, bare: Message) -> Message:
    """The message with what it tells of a record."""
    object = source.object(told.object)
    record = None
    if told.record is not None:
        held = _at(bare.raw, told.record)
        if held is None:
            raise _Unlike(f"there is no record at `{'.'.join(told.record) or '@'}`")
        record = told_reader(object).record(held, bare.nth)
    key = None if told.key is None else key_reader(told.key).record(bare.raw, bare.nth).key
    if record is not None and key is not None and record.key != key:
        raise _Unlike("the record has another key than the message")
    gone = told.change == "deleted" or (record is not None and record.deleted)
    pays = record is not None and record.version is not None and source.pays(told)
    if gone:
        raw = _NO_BYTES if record is None else record.raw
        version = None if record is None else record.version
        record = Record(key or record.key, raw, version, deleted=True)  # type: ignore[union-attr]
    does: Literal["payload", "refetch", "final"] = "payload" if pays else "refetch"
    if gone and object.by_key is None:
        does = "final"
    found = key if record is None else record.key
    ordered = bare.ordered or object.version is None
    bare = replace(bare, gone=gone)
    kept = None if does == "refetch" else record
    return replace(bare, object=told.object, key=found, does=does, record=kept, ordered=ordered)


def _filled(pattern: Pattern, headers: Mapping[str, str], raw: bytes) -> str:
    """A type as its pattern makes it; what is missing is empty."""
    filled = [
        headers.get(slot.header, "") if slot.header else _text(_at(raw, slot.field)) or "" for slot in pattern.slots
    ]
    return pattern.texts[0] + "".join(each + text for each, text in zip(filled, pattern.texts[1:], strict=True))


def _at(raw: bytes, path: FieldPath) -> bytes | None:
    """The undecoded value at a path; None: absent or null."""
    found = raw
    for name in path:
        if not found.startswith(b"{"):
            return None
        members: _Members = msgspec.json.decode(found, type=_Members)
        if name not in members:
            return None
        found = bytes(members[name]).strip()
    return None if found == b"null" else found


def _text(raw: bytes | None) -> str | None:
    """A text as it is, a number by its digits. Raises _Unlike: it is neither."""
    if raw is None:
        return None
    found: Any = msgspec.json.decode(raw) if raw.startswith(b'"') else raw.decode()
    text = str(found)
    if raw[:1] in b"{[" or "\x00" in text or not text.isprintable():
        raise _Unlike("the type or id is neither a text nor a number")
    return text
