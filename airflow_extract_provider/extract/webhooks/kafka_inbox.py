"""Brings deliveries from a Kafka topic into the inbox. Start reading at :func:`consume`.

::

    topic ──► batch ──► one transaction: inbox, counts ──► offsets committed in Kafka

At least once: a crash between the two commits, or a partition that goes to another consumer, has messages read again,
and each is stored once: by its ``dedupe``, or where it has none by what its place is digested to. A message that no
keep has written is neither dropped nor in the way: it is stored as dead, with its reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import SinkUnavailableError, StoreUnavailableError
from airflow_extract_provider.extract.sinks.librdkafka import (
    NO_TOPIC,
    kafka_exception,
    sink_refused,
    words,
)
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.webhooks.giving_up import begun
from airflow_extract_provider.extract.webhooks.kafka_client import Reading, opened
from airflow_extract_provider.extract.webhooks.kafka_read import Read, read_of
from airflow_extract_provider.extract.webhooks.kafka_store import DEADLINE, KafkaStore
from airflow_extract_provider.extract.webhooks.kafka_topic import TopicCheck

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

__all__ = ["Consumed", "consume"]

_log = logging.getLogger(__name__)

_MOST, _MOST_BYTES = 1_000, 8 << 20
_PATIENCE = 0.5
"""Seconds to wait for a message before it is looked whether to stop."""
_UNKNOWN_SECONDS, _ASKED_SECONDS = 3.0, 5.0
"""How long a topic must stay unknown; how long an answer about it is waited for."""
_ENDING_SECONDS = 6.0
"""How long Kafka has at the end, for the last offsets and to let us out of the group."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two tries to reach the store."""
_ANNOUNCED_EVERY = 0.1
_KAFKA_AWAY = "Kafka is away"
_AWAY = "the store is away"


@dataclass(frozen=True, slots=True)
class Consumed:
    """What a run did: how many messages were ``read`` (repeats too), and of these ``stored``, known already
    (``duplicate``), or stored as dead since nobody can read them (``unreadable``). ``lost``: so many were deleted from
    the topic before they were read."""

    read: int = 0
    stored: int = 0
    duplicate: int = 0
    unreadable: int = 0
    lost: int = 0


def consume(
    config: Mapping[str, Any],
    topic: str,
    connect: Connect,
    schema: str = "extract",
    stop: threading.Event | None = None,
    deadline: float = DEADLINE,
) -> Consumed:
    """Store what is in a topic and what comes, until ``stop`` is set. Several may do so at once, as one group.

    ``config`` is what librdkafka takes. When the store is away nothing is committed, and it is tried again and again;
    so it is with Kafka. In the log is what was deleted from the topic before it was read. ``deadline`` is for what the
    store does, in seconds: what takes longer is given up, and tried again. After a stop it ends within some seconds,
    whatever hangs.

    Raises SinkRefusedError: the topic does not exist, or something must be allowed or corrected first. Raises
    SchemaMissingError, StoreRightsError. Raises SinkUnavailableError: the client has ended for good; begun anew, all
    goes on where it stood.
    """
    stop = stop or threading.Event()
    store = KafkaStore(connect, schema, topic, stop, deadline)
    run = _Run(opened(config), topic, store, stop, TopicCheck(config, topic))
    try:
        return run.run()
    finally:
        run.close()


@dataclass(slots=True)
class _Run:
    """One run, from :meth:`run` down."""

    client: Reading
    topic: str
    store: KafkaStore
    stop: threading.Event
    check: TopicCheck
    batch: list[Read] = field(default_factory=list)
    bytes: int = 0
    stored: dict[int, int] = field(default_factory=dict)
    """By partition the offset up to which all is stored, and that is not committed."""
    under_way: dict[int, int] = field(default_factory=dict)
    """By partition the offset that is being committed."""
    expected: dict[int, int] = field(default_factory=dict)
    """By partition the offset of the next message."""
    done: Counter[str] = field(default_factory=Counter)
    said: str = ""
    uncommitted: str = ""
    announced: float = float("-inf")
    unannounced: bool = False

    def run(self) -> Consumed:
        self.client.told = self._committed
        self._look_up()
        self._look(now=True)
        self._consumer.subscribe([self.topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
        while not self.stop.is_set():
            self._gather()
            idle = not self.batch
            if not idle and self._stored():
                self._commit()
            if idle:
                self._look()
            self._announce(now=idle)
        return Consumed(**self.done)

    def close(self) -> None:
        # In a thread: where Kafka is away, its client waits for as long as a session lasts.
        ending = begun(self._end)
        self._announce(now=True)
        self.store.let_go()
        if not wait([ending], _ENDING_SECONDS).done:
            _log.warning("webhooks: Kafka does not answer: what was not committed there is read again, and stored once")

    def _end(self) -> None:
        """Commit the last offsets, and leave the group."""
        try:
            if left := {**self.under_way, **self.stored}:
                self._consumer.commit(offsets=self._offsets(left), asynchronous=False)
        except kafka_exception() as failed:
            self._say_uncommitted(failed.args[0])
        finally:
            self._consumer.close()

    @property
    def _consumer(self) -> Consumer:
        return self.client.consumer

    # --- reading

    def _look_up(self) -> None:
        """Return once the cluster says that the topic is there, or does not say otherwise for so long."""
        until = time.monotonic() + _UNKNOWN_SECONDS
        while not self.stop.is_set():
            try:
                found = self._consumer.list_topics(self.topic, timeout=_ASKED_SECONDS)
                error: KafkaError | None = found.topics[self.topic].error
            except kafka_exception() as failed:
                error = failed.args[0]
                self._consumer.poll(0)  # only so is a refused login heard of
            self._check_client()
            if error is None and (lossy := self.check.refused()) is not None:
                raise lossy
            if error is None or error.name() == "LEADER_NOT_AVAILABLE":
                return
            refused = sink_refused(error, f"`{self.topic}`", reads=True)
            if refused is not None and (error.name() not in NO_TOPIC or time.monotonic() > until):
                raise refused
            self._tell(f"{_KAFKA_AWAY} ({words(error)})")
            self.stop.wait(_PATIENCE)

    def _gather(self) -> None:
        """What has arrived, as much of it as goes into one transaction; waits a little where there is nothing."""
        patience = 0.0 if self.batch else _PATIENCE
        while len(self.batch) < _MOST and self.bytes < _MOST_BYTES:
            message = self._consumer.poll(patience)
            self._check_client()
            if message is None:
                break
            self._take(message)
            patience = 0.0
        if not self.batch:
            self._commit()  # what could not be committed before

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._check(error)
            return
        read = read_of(message)
        self.batch.append(read)
        self.bytes += len(read.incoming.body)
        partition, offset = read.place.partition, read.place.offset
        expected = self.expected.get(partition, offset)
        if offset > expected:
            self.done["lost"] += offset - expected
            _log.error(
                "webhooks: offsets %d to %d of %s, partition %d, are not there any more: the topic has forgotten them "
                "before they were read. What they told of, polling finds.",
                *(expected, offset - 1, self.topic, partition),
            )
        self.expected[partition] = offset + 1

    def _check(self, error: KafkaError) -> None:
        """Raise for what will not pass by itself."""
        if error.name() in NO_TOPIC:
            self._look_up()  # a broker that begins does not know its topics yet
        elif (refused := sink_refused(error, f"`{self.topic}`", reads=True)) is not None:
            raise refused
        elif error.fatal():
            raise self._unavailable(error)
        else:
            self._tell(f"{_KAFKA_AWAY} ({words(error)})")

    def _check_client(self) -> None:
        if self.client.away is not None:
            self._tell(f"{_KAFKA_AWAY} ({words(self.client.away)})")
            self.client.away = None
        if self.client.login is not None:
            refused = sink_refused(self.client.login, f"`{self.topic}`", reads=True)
            raise refused or self._unavailable(self.client.login)

    def _unavailable(self, error: KafkaError) -> SinkUnavailableError:
        return SinkUnavailableError(
            f"Kafka's client can read no more of `{self.topic}` ({words(error)}).",
            kept="what was committed; the rest is in the topic.",
            todo="Run it again: it goes on where it stood.",
        )

    def _assigned(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """From now on these are ours: note where they go on."""
        self.expected = {}
        with suppress(kafka_exception()):
            found = consumer.committed(list(partitions), timeout=_ASKED_SECONDS)
            # Where nothing was committed, the first message that there ever was is the next one.
            self.expected = {each.partition: max(0, each.offset) for each in found}
        _log.info("webhooks: reads partitions %s of %s", sorted(each.partition for each in partitions), self.topic)

    def _revoked(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Others have them now: what of them is not stored, they store."""
        gone = {each.partition for each in partitions}
        self.batch = [each for each in self.batch if each.place.partition not in gone]
        self.bytes = sum(len(each.incoming.body) for each in self.batch)
        for left in (self.stored, self.under_way):
            for partition in gone:
                left.pop(partition, None)

    # --- storing

    def _stored(self) -> bool:
        """Store what was gathered, however long the store is away; False: it is to stop before that."""
        pause = _FIRST_PAUSE
        while True:
            try:
                batch = self.batch
                self._note(batch, self.store.put(batch))
                self._tell("")
                return True
            except StoreUnavailableError as exc:
                self._lose(exc)
            if not self._waited(pause):
                return False
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _look(self, *, now: bool = False) -> None:
        """A store that is not set up is an error, before anything is read; one that is away is not, and it is seen
        before the next message."""
        try:
            if self.store.look(now=now) and self.said.startswith(_AWAY):
                self._tell("")
        except StoreUnavailableError as exc:
            self._lose(exc)

    def _lose(self, exc: StoreUnavailableError) -> None:
        self._tell(f"{_AWAY}: {exc.what.rstrip('.')}")
        self.store.let_go()

    def _note(self, batch: Sequence[Read], fresh: Sequence[Read]) -> None:
        strange = [each for each in fresh if each.why]
        if strange:
            _log.error(
                "webhooks: %d messages cannot be read, such as %s: %s; `airflow extract inbox dead list` has them all.",
                *(len(strange), strange[0].place, strange[0].why),
            )
        self.done["read"] += len(batch)
        self.done["duplicate"] += len(batch) - len(fresh)
        self.done["unreadable"] += len(strange)
        self.done["stored"] += len(fresh) - len(strange)
        for each in batch:
            self.stored[each.place.partition] = each.place.offset + 1
        self.batch, self.bytes, self.unannounced = [], 0, True

    def _waited(self, seconds: float) -> bool:
        """Wait, and stay a member of the group meanwhile; False: it is to stop, or nothing is left to be stored."""
        until = time.monotonic() + seconds
        with suppress(kafka_exception()):
            while not self.stop.is_set() and self.batch and (left := until - time.monotonic()) > 0:
                # Again and again: partitions may come meanwhile.
                self._consumer.pause(self._consumer.assignment())
                message = self._consumer.poll(min(left, _PATIENCE))
                if message is not None:
                    self._take(message)
            self._consumer.resume(self._consumer.assignment())
        return bool(self.batch) and not self.stop.is_set()

    # --- what is committed

    def _commit(self) -> None:
        """Have committed in Kafka what is stored, and do not wait for it. If that fails, what was read is read again,
        some time, and stored once."""
        if not self.stored:
            return
        try:
            self._consumer.commit(offsets=self._offsets(self.stored), asynchronous=True)
        except kafka_exception() as failed:
            self._say_uncommitted(failed.args[0])
        else:
            self.under_way.update(self.stored)
            self.stored = {}

    def _committed(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        """What was being committed is, or is to be committed again, unless more is meanwhile."""
        for each in partitions:
            failed = error or each.error
            if failed is not None:
                self._say_uncommitted(failed)
            else:
                self.uncommitted = ""
            if self.under_way.get(each.partition) == each.offset:
                del self.under_way[each.partition]
                if failed is not None:
                    self.stored.setdefault(each.partition, each.offset)

    def _offsets(self, of: Mapping[int, int]) -> list[TopicPartition]:
        from confluent_kafka import TopicPartition

        return [TopicPartition(self.topic, partition, offset) for partition, offset in of.items()]

    def _say_uncommitted(self, error: KafkaError) -> None:
        if self.uncommitted != (why := words(error)):
            _log.warning("webhooks: the offsets are committed later (%s)", why)
        self.uncommitted = why

    # --- what is told

    def _announce(self, *, now: bool) -> None:
        """Wake whoever waits for webhooks; not at each batch while many come."""
        if self.unannounced and (now or time.monotonic() - self.announced >= _ANNOUNCED_EVERY):
            self.announced = time.monotonic()
            self.unannounced = not self.store.announce()

    def _tell(self, what: str) -> None:
        """Say once what is the matter, and once that nothing is any more."""
        # It is told in other words by each part of the client.
        same = what == self.said or (what.startswith(_KAFKA_AWAY) and self.said.startswith(_KAFKA_AWAY))
        if what and not same:
            _log.warning("webhooks: %s", what)
        elif not what and self.said:
            _log.warning("webhooks: they are stored again")
        self.said = what
