"""Kafka: each event is a message of its record's key, as CloudEvents' Kafka binding says (binary content mode).

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md

Three decisions that look odd and are not:

* A publish that fails throws its producer away with all that waits in it. Otherwise librdkafka would go on trying
  behind the back of a caller who has rolled back and reads the records anew.
* The message's own timestamp is the time of publishing, not the event's: topics forget by it, and a baseline tells of
  records that are years old.
* Kafka weighs a *batch* against the topic's limit, and librdkafka does not cut a refused one into smaller ones. So
  "too large" is believed only of an event that was sent alone.
"""

from __future__ import annotations

import logging
import string
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import EventRefusedError, SinkRefusedError, SinkUnavailableError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.librdkafka import (
    CHOSEN,
    NEVER_TAKEN,
    NO_LOGIN,
    NO_TOPIC,
    PROMISED,
    TOO_LARGE,
    check_settings,
    kafka_exception,
    producer_class,
    settings_refused,
    sink_refused,
    throw_away,
    words,
)
from airflow_extract_provider.extract.sinks.librdkafka_log import LIBRARY_LOG
from airflow_extract_provider.extract.unshown import Unshown

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

__all__ = ["KafkaSink"]

_log = logging.getLogger(__name__)

_SLICE = 0.2
"""Seconds between two looks at what has failed: librdkafka itself would wait until the end."""

_UNKNOWN_FOR = 1.0
"""Seconds that a topic must stay unknown: one that was just made is not known to every broker at once."""


class KafkaSink(Unshown):
    """Publishes into the topics of one Kafka cluster.

    ``config`` is what librdkafka takes. ``topic`` names the topic and may hold ``{source}`` and ``{object}``; it must
    exist. Its number of partitions should stay as it is: the order of a key's events holds within a partition.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, *, timeout: timedelta = timedelta(seconds=30)) -> None:
        check_settings(config)
        _check_template(topic)
        producer_class()
        self.timeout = timeout
        self._config = {**CHOSEN, **config, **PROMISED}
        self._topic = topic
        self._producer: Producer | None = None
        self._known: set[str] = set()
        self._alone: dict[str, int] = {}
        self._trouble: KafkaError | None = None

    def publish(self, events: Sequence[Event]) -> None:
        """Return once every in-sync replica has each event."""
        until = time.monotonic() + self.timeout.total_seconds()
        try:
            self._deliver(events, until)
        except _BatchTooLargeError as refused:
            _log.warning(
                "The topic %s takes no batch as large as this producer makes: each event is sent alone from now on, and"
                " that is slow. Set `batch.size` of the Kafka connection to the topic's max.message.bytes.",
                refused,
            )
            self._alone = {"batch.num.messages": 1}
            self._deliver(events, until)

    def close(self) -> None:
        """Close the connections."""
        self._discard()

    def _deliver(self, events: Sequence[Event], until: float) -> None:
        delivery, self._trouble = _Delivery(len(events), alone=bool(self._alone)), None
        try:
            for event in events:
                self._send(event, delivery, until)
            self._wait(delivery, until)
        except kafka_exception() as fatal:  # poll and flush raise what ends the producer for good
            raise delivery.stopped(fatal.args[0], *delivery.topics) from None
        finally:
            # Also after Ctrl-C or the task's own timeout: see the module's docstring.
            if not delivery.complete:
                self._discard()

    def _send(self, event: Event, delivery: _Delivery, until: float) -> None:
        topic = self._topic.format(source=event.source, object=event.object)
        delivery.topics.setdefault(topic)
        producer = self._opened()
        if topic not in self._known:
            self._look_up(topic, delivery, until)
        while not self._taken_in(producer, topic, event, delivery):
            producer.poll(_SLICE)
            self._check(delivery, until)
        producer.poll(0)
        self._check(delivery, until)

    def _taken_in(self, producer: Producer, topic: str, event: Event, delivery: _Delivery) -> bool:
        """Hand one event to librdkafka; False while its queue is full."""
        try:
            producer.produce(
                topic,
                value=event.data,
                key=event.key.encode(),
                headers=_headers(event),
                on_delivery=partial(delivery.reported, event, topic),
            )
        except BufferError:
            return False
        except kafka_exception() as refused:
            error: KafkaError = refused.args[0]
            if error.name() in TOO_LARGE:
                raise _event_refused(event, topic, error) from None
            raise delivery.stopped(error, topic) from None
        return True

    def _wait(self, delivery: _Delivery, until: float) -> None:
        while not delivery.complete:
            # flush, not poll: it does not linger for more.
            self._opened().flush(min(_SLICE, max(0.0, until - time.monotonic())))
            self._check(delivery, until)

    def _check(self, delivery: _Delivery, until: float) -> None:
        """Raise if not everything can be acknowledged any more."""
        delivery.check()
        if self._trouble is not None and self._trouble.name() in NO_LOGIN and not delivery.complete:
            raise delivery.stopped(self._trouble, *delivery.topics)
        if not delivery.complete and time.monotonic() >= until:
            raise delivery.unavailable(self._last_trouble())

    def _last_trouble(self) -> str:
        return f"no answer in time; last trouble: {words(self._trouble)}" if self._trouble else "no answer in time"

    def _look_up(self, topic: str, delivery: _Delivery, until: float) -> None:
        """Return once the cluster says that the topic is there."""
        producer, unknown_until, patience = self._opened(), 0.0, 1.0
        while topic not in self._known:
            error = self._asked(producer, topic, min(patience, max(_SLICE, until - time.monotonic())))
            if error is None or error.name() == "LEADER_NOT_AVAILABLE":
                self._known.add(topic)
                return
            if error.name() in NO_TOPIC:
                unknown_until = unknown_until or time.monotonic() + _UNKNOWN_FOR
            if time.monotonic() > unknown_until:
                delivery.check_refused(error, topic)
            patience *= 2  # short at first: only between two tries is a refused login heard of
            producer.poll(_SLICE)
            self._check(delivery, until)

    def _asked(self, producer: Producer, topic: str, seconds: float) -> KafkaError | None:
        """What the cluster says against the topic, or what keeps it from saying anything."""
        try:
            said: KafkaError | None = producer.list_topics(topic, timeout=seconds).topics[topic].error
        except kafka_exception() as failed:
            said = failed.args[0]
        return said

    def _opened(self) -> Producer:
        if self._producer is None:
            timeout = {"message.timeout.ms": int(self.timeout.total_seconds() * 1000)}
            ours = {**timeout, **self._alone, "error_cb": self._troubled, "logger": LIBRARY_LOG}
            try:
                self._producer = producer_class()({**self._config, **ours})
            except kafka_exception() as refused:
                raise settings_refused(self._config, refused.args[0].str()) from None
        return self._producer

    def _troubled(self, error: KafkaError) -> None:
        # A refused login is followed by "all brokers are down", which says less.
        if self._trouble is None or self._trouble.name() not in NO_LOGIN:
            self._trouble = error

    def _discard(self) -> None:
        """Throw the producer away, and with it everything that waits or is under way."""
        producer, self._producer = self._producer, None
        self._known.clear()
        if producer is not None:
            throw_away(producer, _SLICE)


class _BatchTooLargeError(Exception):
    """A batch of several events was too large; perhaps none of them is."""


class _Delivery:
    """What is known of the events of one publish."""

    def __init__(self, total: int, *, alone: bool) -> None:
        self.topics: dict[str, None] = {}
        self._total, self._alone = total, alone or total == 1
        self._acknowledged = 0
        self._failure: tuple[KafkaError, Event, str] | None = None

    @property
    def complete(self) -> bool:
        return self._acknowledged == self._total

    def reported(self, event: Event, topic: str, error: KafkaError | None, _message: Message) -> None:
        """Take one delivery report."""
        if error is None:
            self._acknowledged += 1
        # Kafka refuses a batch for one event of it, and says so of the others by this name.
        elif self._failure is None and error.name() != "_INVALID_DIFFERENT_RECORD":
            self._failure = (error, event, topic)

    def check(self) -> None:
        """Raise what a report has said."""
        if self._failure is None:
            return
        error, event, topic = self._failure
        if error.name() in TOO_LARGE and not self._alone:
            raise _BatchTooLargeError(topic)
        if error.name() in TOO_LARGE | NEVER_TAKEN:
            raise _event_refused(event, topic, error)
        raise self.stopped(error, topic)

    def check_refused(self, error: KafkaError, topic: str) -> None:
        """Raise if a person must set something up first."""
        stopped = self.stopped(error, topic)
        if isinstance(stopped, SinkRefusedError):
            raise stopped

    def stopped(self, error: KafkaError, *topics: str) -> SinkRefusedError | SinkUnavailableError:
        """The error for what ended this publish."""
        return sink_refused(error, ", ".join(f"`{topic}`" for topic in topics)) or self.unavailable(words(error))

    def unavailable(self, why: str) -> SinkUnavailableError:
        return SinkUnavailableError(
            f"Kafka acknowledged {self._acknowledged:,} of {self._total:,} events for"
            f" {', '.join(f'`{topic}`' for topic in self.topics)} ({why}).",
            todo="Check the cluster if it lasts; the next run publishes them again, with the same ids.",
        )


def _headers(event: Event) -> list[tuple[str, str | bytes | None]]:
    return [
        ("content-type" if name == "datacontenttype" else f"ce_{name}", value.encode())
        for name, value in event.attributes().items()
    ]


def _event_refused(event: Event, topic: str, error: KafkaError) -> EventRefusedError:
    large = error.name() in TOO_LARGE
    return EventRefusedError(
        f"an event (`{event.type}`, id {event.id}) of the record with the key {event.key!r} is never taken by the topic"
        f" `{topic}` ({words(error)}): its key has {len(event.key.encode()):,} bytes, its data"
        f" {len(event.data or b''):,}.",
        todo="Raise the topic's max.message.bytes and the connection's `message.max.bytes`, or let the event hold less."
        if large
        else "Look at the topic's settings: they forbid such an event.",
        source=event.source,
        object=event.object,
        key=event.key,
    )


def _check_template(topic: str) -> None:
    try:
        parts = [part[1:] for part in string.Formatter().parse(topic) if part[1] is not None]
    except ValueError:
        parts = [(topic, None, None)]
    # Nor `{object:>9}` or `{object!r}`: that fails, or makes other names, only when the first event is published.
    if not topic or any(part not in (("source", "", None), ("object", "", None)) for part in parts):
        raise SinkRefusedError(
            f"the topic's name {topic!r} is not understood.",
            todo="It may hold {source} and {object}, and nothing else in braces.",
        )
