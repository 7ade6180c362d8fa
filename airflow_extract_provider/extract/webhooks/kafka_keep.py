"""Keeps deliveries in a Kafka topic, for a receiver that is to go on while Postgres is away; :mod:`~.kafka_inbox`
brings them into the inbox.

A delivery is kept when every in-sync replica has it (acks=all, an idempotent producer). What Kafka has not acknowledged
in time is not known to be kept: whoever sent it is told so, sends it again, and where it is there twice, ``dedupe``
tells when it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import (
    EventRefusedError,
    ExtractError,
    SinkRefusedError,
    SinkUnavailableError,
)
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.sinks.librdkafka import (
    CHOSEN,
    NEVER_TAKEN,
    NO_LOGIN,
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
from airflow_extract_provider.extract.webhooks.kafka_message import headers_of, key_of
from airflow_extract_provider.extract.webhooks.kafka_topic import TopicCheck

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

__all__ = ["Bounds", "KafkaKeep"]

_log = logging.getLogger(__name__)

# The topic decides what is too large, not the client, which by default takes less than a receiver does. And nobody
# waits for more to come: while five requests are under way, the next one's deliveries gather.
_OURS = {"message.max.bytes": 100_000_000, "linger.ms": 0}
_ALONE = {"batch.num.messages": 1}
_WRONG_CLOCK = "INVALID_TIMESTAMP"
_LOOK_SECONDS = 2.0
_AWAY_SECONDS = 0.25
"""Between two looks whether Kafka is back."""
_UNKNOWN_SECONDS = 1.0
"""How long a topic must stay unknown: one that was just made is not known to every broker at once."""
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many deliveries and bytes may wait for Kafka; within how many seconds it must have acknowledged one
    (``deadline``); after how many it is looked whether it is still there (``look``)."""

    waiting: int = 10_000
    waiting_bytes: int = 64 << 20
    deadline: float = 10.0
    look: float = 5.0


class KafkaKeep(Unshown):
    """A Kafka topic as a keep. ``config`` is what librdkafka takes; the topic must exist.

    When Kafka is away, whoever comes is told so at once, until it is back. All methods belong to one event loop.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, *, bounds: Bounds = Bounds()) -> None:
        """Nothing is opened yet. Raises SinkRefusedError: a setting would let deliveries be lost, or confluent-kafka is
        not installed."""
        check_settings(config)
        producer_class()
        if not topic:
            raise SinkRefusedError("no topic is named.", todo="Name the one that webhooks are kept in.")
        timeout = {"message.timeout.ms": max(1, int(bounds.deadline * 1000))}
        self._config = {**CHOSEN, **_OURS, **config, **PROMISED, **timeout}
        self._topic, self._bounds = topic, bounds
        self._check = TopicCheck(config, topic)
        self._lines: dict[bool, _Line] = {}
        self._opening = threading.Lock()
        self._reports: deque[tuple[asyncio.Future[KafkaError | None], KafkaError | None]] = deque()
        self._settling = False
        self._waiting = self._bytes = 0
        self._away: ExtractError | None = self._unavailable("it was not asked yet")
        self._login: KafkaError | None = None
        self._fatal: KafkaError | None = None
        self._said = ""
        self._loop: asyncio.AbstractEventLoop
        self._asleep, self._closing = threading.Event(), False
        self._watcher = threading.Thread(target=self._watch, name="kafka-watch", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the last attempt to reach Kafka has worked."""
        return self._away is None

    async def start(self, *, anyway: bool = False) -> None:
        """Reach Kafka, and go on looking whether it is there. That it is away now is no error.

        Raises SinkRefusedError, unless it is to begin ``anyway``: the topic does not exist, or a person must allow or
        correct something first.
        """
        self._loop = asyncio.get_running_loop()
        self._line(alone=False)
        away = await asyncio.to_thread(self._looked_up)
        if isinstance(away, SinkRefusedError) and not anyway:
            await self.close()
            raise away
        self._note(away)
        self._watcher.start()

    async def close(self) -> None:
        """Take no more, wait for what is under way, within the deadline, and let go."""
        self._closing = True
        self._away = self._away or self._unavailable("the receiver stops")
        self._asleep.set()
        await asyncio.to_thread(self._end)
        self._settle()

    async def put(self, incoming: Incoming) -> bool:
        """Keep a delivery; returns True once every in-sync replica has it: whether it is new, Kafka cannot tell.

        Raises SinkUnavailableError: Kafka has not acknowledged it; it may be kept all the same. Raises
        EventRefusedError: the topic will never take it, since it is too large. Raises SinkRefusedError.
        """
        if self._away is not None:
            raise self._away.at()
        size = len(incoming.body)
        bounds = self._bounds
        if self._waiting and (self._waiting >= bounds.waiting or self._bytes + size > bounds.waiting_bytes):
            raise self._unavailable("more webhooks come than it takes: as many as may wait do so")
        self._waiting += 1
        self._bytes += size
        try:
            error = await self._sent(incoming, alone=False)
            if error is not None and _blames_the_batch(error):
                error = await self._sent(incoming, alone=True)
        finally:
            self._waiting -= 1
            self._bytes -= size
        if error is not None:
            raise self._failed(error, incoming)
        return True

    async def _sent(self, incoming: Incoming, *, alone: bool) -> KafkaError | None:
        """What is said against a delivery; None: it is kept. Kafka weighs a batch against the topic's limit, and
        refuses all of it: so what is too large is sent once more, ``alone``."""
        told: asyncio.Future[KafkaError | None] = self._loop.create_future()
        line = self._line(alone=alone)
        try:
            line.producer.produce(
                self._topic,
                value=incoming.body,
                key=key_of(incoming),
                headers=headers_of(incoming, datetime.now(timezone.utc)),
                on_delivery=partial(self._reported, told),
            )
        except BufferError:
            raise self._unavailable("its client's queue is full") from None
        except kafka_exception() as refused:
            return self._heard(line, refused.args[0])
        line.waiting.add(told)
        try:
            # librdkafka keeps to the deadline itself, within a second or so.
            async with asyncio.timeout(self._bounds.deadline + _GRACE_SECONDS):
                return self._heard(line, await told)
        except TimeoutError:
            raise self._unavailable("nothing was heard of one in time") from None
        finally:
            line.waiting.discard(told)

    def _heard(self, line: _Line, error: KafkaError | None) -> KafkaError | None:
        """Give a producer up that has said that it can do no more; the next delivery has a new one."""
        if error is not None and (error.fatal() or error.name() == "_FATAL"):
            self._lost(line, error)
        return error

    def _lost(self, line: _Line, error: KafkaError) -> None:
        if line not in self._lines.values():
            return
        self._lines = {alone: each for alone, each in self._lines.items() if each is not line}
        for told in line.waiting:
            if not told.done():
                told.set_result(error)
        threading.Thread(target=line.end, args=(0.0,), daemon=True).start()
        # Nobody has another one opened before it is looked what is the matter.
        self._note(self._named(error))
        self._asleep.set()

    def _reported(self, told: asyncio.Future[KafkaError | None], error: KafkaError | None, _message: Message) -> None:
        """Take a delivery report, in the thread that polls: the loop is woken once for all that come together."""
        self._reports.append((told, error))
        if not self._settling:
            self._settling = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._settling = False
        while self._reports:
            told, error = self._reports.popleft()
            if not told.done():
                told.set_result(error)

    def _failed(self, error: KafkaError, incoming: Incoming) -> ExtractError:
        """The error for what Kafka says against a delivery."""
        if error.name() == _WRONG_CLOCK:
            # It is not the webhook's: whoever sent it is to send it again.
            return self._unavailable(f"{words(error)}: the clock of this machine, or of the broker, is wrong")
        if error.name() in TOO_LARGE | NEVER_TAKEN:
            return self._never_taken(error, incoming)
        self._asleep.set()  # it is looked at once
        return self._named(error)

    def _named(self, error: KafkaError) -> ExtractError:
        """Of a producer that has ended, deliveries are told no more than that; why, it has told by itself."""
        if error.name() == "_FATAL" and self._fatal is not None:
            error = self._fatal
        return sink_refused(error, f"`{self._topic}`") or self._unavailable(words(error))

    def _never_taken(self, error: KafkaError, incoming: Incoming) -> EventRefusedError:
        return EventRefusedError(
            f"a webhook of {len(incoming.body):,} bytes is never taken by the topic `{self._topic}` ({words(error)}).",
            todo="Raise the topic's max.message.bytes, or lower the endpoint's `max_bytes`.",
            source=incoming.source,
        )

    def _unavailable(self, why: str) -> SinkUnavailableError:
        return SinkUnavailableError(
            f"webhooks cannot be kept in Kafka's topic `{self._topic}`: {why}.",
            todo="Whoever sent them sends them again; check the cluster if it lasts.",
        )

    def _line(self, *, alone: bool) -> _Line:
        with self._opening:
            if (known := self._lines.get(alone)) is not None:
                return known
            ours = {"error_cb": self._troubled, "logger": LIBRARY_LOG, **(_ALONE if alone else {})}
            try:
                self._lines[alone] = _Line(producer_class()({**self._config, **ours}), self._ended)
            except kafka_exception() as refused:
                raise settings_refused(self._config, refused.args[0].str()) from None
            return self._lines[alone]

    def _ended(self, line: _Line, error: KafkaError) -> None:
        """A producer has ended, in the thread that polls it: it reports nothing any more."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lost, line, error)

    def _troubled(self, error: KafkaError) -> None:
        """What librdkafka tells of its connections, in the thread that polls."""
        if error.fatal():
            self._fatal = error
        if error.name() in NO_LOGIN:
            self._login = error
        if error.name() in {"_ALL_BROKERS_DOWN", *NO_LOGIN}:
            self._asleep.set()

    def _watch(self) -> None:
        """Look whether Kafka is there, now and then, and at once when something was wrong."""
        while not self._closing:
            self._asleep.wait(_AWAY_SECONDS if self._away is not None else self._bounds.look)
            self._asleep.clear()
            if not self._closing:
                away = self._looked()
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._note, away)
            if self._away is not None:
                time.sleep(_AWAY_SECONDS)

    def _looked_up(self) -> ExtractError | None:
        """The first look: a topic must stay unknown for a while."""
        until = time.monotonic() + _UNKNOWN_SECONDS
        while isinstance(found := self._looked(), SinkRefusedError) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return found

    def _looked(self) -> ExtractError | None:
        """What is the matter with Kafka or the topic; None: nothing is."""
        self._login = None
        try:
            line = self._line(alone=False)
            found = line.producer.list_topics(self._topic, timeout=_LOOK_SECONDS).topics[self._topic]
            error = found.error
            if error is None:
                return self._check.refused(max((len(each.replicas) for each in found.partitions.values()), default=1))
        except SinkRefusedError as refused:
            return refused
        except kafka_exception() as failed:
            error = self._blamed(failed.args[0])
        return None if error.name() == "LEADER_NOT_AVAILABLE" else self._named(error)

    def _blamed(self, error: KafkaError) -> KafkaError:
        """A refused login shows only as silence."""
        return error if self._login is None else self._login

    def _note(self, away: ExtractError | None) -> None:
        """Say once that Kafka is away, and why, and once that it is back."""
        if self._closing:
            return
        if away is None and self._away is not None and self._said:
            _log.warning("webhooks: Kafka is back")
        if away is not None and away.what != self._said:
            _log.warning("webhooks: Kafka is away: %s", away.what)
        self._said = "" if away is None else away.what
        self._away = away

    def _end(self) -> None:
        if self._watcher.is_alive():
            self._watcher.join(_LOOK_SECONDS + 1)
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.end(self._bounds.deadline)


class _Line:
    """A producer, the thread that takes its reports, and those who wait for one."""

    def __init__(self, producer: Producer, ended: Callable[[_Line, KafkaError], None]) -> None:
        self.producer, self._ended = producer, ended
        self.waiting: set[asyncio.Future[KafkaError | None]] = set()
        self._over = False
        self._thread = threading.Thread(target=self._poll, name="kafka-reports", daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while not self._over:
            try:
                self.producer.poll(_POLL_SECONDS)
            except kafka_exception() as fatal:  # what ends the producer for good
                self._ended(self, fatal.args[0])
                return

    def end(self, seconds: float) -> None:
        """Wait so long for what is under way, and throw the rest away."""
        with contextlib.suppress(kafka_exception()):
            self.producer.flush(seconds)
        self._over = True
        self._thread.join(_POLL_SECONDS + 1)
        throw_away(self.producer, 1.0)


def _blames_the_batch(error: KafkaError) -> bool:
    # Kafka refuses a batch for one message of it, and says so of the others by the second name.
    return error.name() in TOO_LARGE | NEVER_TAKEN or error.name() == "_INVALID_DIFFERENT_RECORD"
