"""A verified delivery as a message in Kafka, on its way to the inbox.

============== ===============================================================
key            ``SOURCE/ENDPOINT``: those of one endpoint are in one partition
value          the body, as it came
``source``     header: the source
``endpoint``   header: the endpoint
``received_at`` header: when it came, in ISO 8601
``dedupe``     header, where it has one: 32 hexadecimal digits
``h:NAME``     header: one that the endpoint keeps
============== ===============================================================
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from airflow_extract_provider.extract.incoming import Incoming

__all__ = ["Headers", "Place", "UnreadableError", "headers_of", "incoming_of", "key_of", "place_digest"]

Headers: TypeAlias = list[tuple[str, str | bytes | None]]

_KEPT = "h:"
_LONGEST_NAME = 200
_YEARS = (1970, 9999)


class UnreadableError(Exception):
    """A message that no keep has written; says why, in our own words."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is in Kafka, and its timestamp."""

    topic: str
    partition: int
    offset: int
    timestamp: int = 0

    def __str__(self) -> str:
        return f"{self.topic}, partition {self.partition}, offset {self.offset}"


def key_of(incoming: Incoming) -> bytes:
    """The message's key."""
    return f"{incoming.source}/{incoming.endpoint}".encode()


def headers_of(incoming: Incoming, received_at: datetime) -> Headers:
    """The message's headers."""
    found: Headers = [
        ("source", incoming.source.encode()),
        ("endpoint", incoming.endpoint.encode()),
        ("received_at", received_at.isoformat().encode()),
    ]
    if incoming.dedupe is not None:
        found.append(("dedupe", incoming.dedupe.hex.encode()))
    found += [(f"{_KEPT}{name}", value.encode("utf-8", "surrogatepass")) for name, value in incoming.headers.items()]
    return found


def incoming_of(value: bytes | None, headers: Sequence[tuple[str, str | bytes | None]]) -> Incoming:
    """The delivery that a message holds; without ``dedupe``, where whatever comes counts.

    Raises UnreadableError.
    """
    if value is None:
        raise UnreadableError("it has no value")
    own = {name: held for name, held in headers if not name.startswith(_KEPT)}
    return Incoming(
        _name(own, "source"),
        _name(own, "endpoint"),
        value,
        {name.removeprefix(_KEPT): _text(name, held) for name, held in headers if name.startswith(_KEPT)},
        _dedupe(own),
        _instant(own),
    )


def place_digest(place: Place, value: bytes | None) -> uuid.UUID:
    """What a message is known by that has no ``dedupe``: the same when it is read again.

    Not of its place alone: in a topic that was deleted and made anew the offsets begin anew.
    """
    told = f"{place.topic}/{place.partition}/{place.offset}/{place.timestamp}/".encode()
    return uuid.UUID(bytes=hashlib.blake2b(told + (value or b""), digest_size=16).digest())


def _text(name: str, held: str | bytes | None) -> str:
    try:
        return held if isinstance(held, str) else (held or b"").decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise UnreadableError(f"its header {name[:100]!a} is no UTF-8") from None


def _name(own: dict[str, str | bytes | None], name: str) -> str:
    if name not in own:
        raise UnreadableError(f"it has no header `{name}`")
    found = _text(name, own[name])
    if not found or len(found) > _LONGEST_NAME or not found.isprintable():
        raise UnreadableError(f"its header `{name}` is no name")
    return found


def _dedupe(own: dict[str, str | bytes | None]) -> uuid.UUID | None:
    if "dedupe" not in own:
        return None
    try:
        return uuid.UUID(hex=_text("dedupe", own["dedupe"]))
    except ValueError:
        raise UnreadableError("its header `dedupe` is no digest") from None


def _instant(own: dict[str, str | bytes | None]) -> datetime:
    try:
        found = datetime.fromisoformat(_text("received_at", own.get("received_at")))
    except ValueError:
        raise UnreadableError("its header `received_at` is no instant") from None
    if found.tzinfo is None:
        raise UnreadableError("its header `received_at` has no zone")
    if not _YEARS[0] <= found.year < _YEARS[1]:
        # Neither we nor Postgres could tell it in every zone.
        raise UnreadableError("its header `received_at` lies in no year of webhooks")
    return found
