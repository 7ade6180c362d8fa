"""A message of Kafka's as the consumer has read it, whatever it is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from msgspec import structs

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import dead
from airflow_extract_provider.extract.webhooks.kafka_message import (
    Headers,
    Place,
    UnreadableError,
    incoming_of,
    place_digest,
)

if TYPE_CHECKING:
    from confluent_kafka import Message

__all__ = ["Read", "read_of"]

_HEADERS: Callable[[Message], Any] = methodcaller("headers")
"""Not `message.headers()`, and once for a message. Where a name is no UTF-8, confluent-kafka (2.16) returns a list with
a hole in it, and leaves the error behind. Called so, Python sees that and raises SystemError; in a line that has run
often it does not look (since 3.11), and who reads the list then crashes the process."""


@dataclass(frozen=True, slots=True)
class Read:
    """The delivery, and if nobody can read it, or the inbox does not take it, why. ``digest`` is that of its place."""

    place: Place
    digest: uuid.UUID
    incoming: Incoming
    why: str = ""

    def buried(self, why: str, *, whole: bool) -> Read:
        """The same as a dead one; if it is not stored ``whole``, without its body."""
        body = self.incoming.body if whole else b""
        return replace(self, incoming=Incoming(dead.BURIED, self.place.topic, body, {}, self.digest), why=why)


def read_of(message: Message) -> Read:
    """What a message holds."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    place = Place(topic, partition, offset, message.timestamp()[1])
    value = message.value()
    assert not isinstance(value, str)
    digest = place_digest(place, value)
    try:
        found = incoming_of(value, _pairs(message))
    except UnreadableError as exc:
        return Read(place, digest, Incoming(dead.BURIED, topic, value or b"", {}, digest), str(exc))
    return Read(place, digest, found if found.dedupe is not None else structs.replace(found, dedupe=digest))


def _pairs(message: Message) -> Headers:
    try:
        found = _HEADERS(message) or ()
    except (SystemError, UnicodeDecodeError):
        raise UnreadableError("the name of one of its headers is no UTF-8") from None
    return list(found.items() if isinstance(found, dict) else found)
