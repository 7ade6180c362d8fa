"""Webhooks in a topic: how they are put there, who reads them, and what is left."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import confluent_kafka
import psycopg
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.webhooks.kafka_inbox import Consumed, consume
from airflow_extract_provider.extract.webhooks.kafka_keep import Bounds, KafkaKeep
from airflow_extract_provider.extract.webhooks.kafka_store import DEADLINE
from tests.broker import Broker
from tests.store.applier import in_thread

__all__ = ["ROOMY", "Consuming", "held", "keeping", "lag", "put_all", "put_named", "rows", "some"]

ROOMY = Bounds()
Within = Callable[[KafkaKeep], Awaitable[None]]
T = TypeVar("T")

# By their codes: KafkaError.retriable() is only about transactions.
_PASSING = {
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
}
"""What a broker says, or is said of it, that was paused or killed and is back: it leads nothing for a moment."""
_PASSES_SECONDS = 30.0


def keeping(config: Mapping[str, Any], topic: str, work: Within, bounds: Bounds = ROOMY) -> None:
    """A keep that is started for some work, and closed."""

    async def run() -> None:
        keep = KafkaKeep(config, topic, bounds=bounds)
        await keep.start()
        try:
            await work(keep)
        finally:
            await keep.close()

    asyncio.run(run())


def put_all(config: Mapping[str, Any], topic: str, incoming: list[Incoming]) -> None:
    """Keep deliveries, fifty at a time."""

    async def work(keep: KafkaKeep) -> None:
        left = iter(incoming)

        async def one_after_the_other() -> None:
            for each in left:
                assert await keep.put(each)

        await asyncio.gather(*(one_after_the_other() for _ in range(50)))

    keeping(config, topic, work)


def put_named(broker: Broker, topic: str, value: bytes, name: bytes) -> None:
    """One message with a header of that name, which may be no text: Python's client takes none but text."""
    found = [*Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*.so*")]
    if not found:
        pytest.skip("confluent-kafka comes without a librdkafka of its own")
    lib = ctypes.CDLL(str(found[0]))
    lib.rd_kafka_conf_new.restype = lib.rd_kafka_new.restype = ctypes.c_void_p
    said = ctypes.create_string_buffer(500)
    conf = ctypes.c_void_p(lib.rd_kafka_conf_new())
    for key, setting in broker.config.items():
        lib.rd_kafka_conf_set(conf, key.encode(), str(setting).encode(), said, ctypes.c_size_t(len(said)))
    producer = ctypes.c_void_p(lib.rd_kafka_new(0, conf, said, ctypes.c_size_t(len(said))))
    assert producer.value, said.value
    # Its own kinds of arguments: topic 1, flags 7 (copy: 2), value 4, header 9, end 0.
    at, what = (1, topic.encode(), 7, ctypes.c_int(2)), (4, value, ctypes.c_size_t(len(value)))
    header = (9, name, b"x", ctypes.c_ssize_t(1))
    assert lib.rd_kafka_producev(producer, *at, *what, *header, ctypes.c_int(0)) == 0
    assert lib.rd_kafka_flush(producer, 30_000) == 0
    lib.rd_kafka_destroy(producer)


def some(count: int, *, dedupe: bool = False, endpoint: str = "main") -> list[Incoming]:
    """So many deliveries, each with a body of its own."""
    return [
        Incoming("shop", endpoint, b'{"n": %d}' % n, {"x-n": str(n)}, uuid.uuid4() if dedupe else None)
        for n in range(count)
    ]


def held(broker: Broker, topic: str) -> list[bytes]:
    """All bodies that are in the topic now."""
    consumer = Consumer({**broker.config, "group.id": "nobody", "enable.auto.commit": False})
    try:
        found: list[bytes] = []
        for at in _answered(lambda: _partitions(consumer, topic)):
            upto = _answered(partial(_end, consumer, at))
            consumer.assign([TopicPartition(topic, at.partition, OFFSET_BEGINNING)])
            read = 0
            while read < upto:
                message = _next(consumer)
                read, value = (message.offset() or 0) + 1, message.value()
                assert isinstance(value, bytes)
                found.append(value)
        return found
    finally:
        consumer.close()


def _answered(ask: Callable[[], T]) -> T:
    """Ask again while what is wrong passes by itself."""
    until = time.monotonic() + _PASSES_SECONDS
    while True:
        try:
            return ask()
        except KafkaException as failed:
            if failed.args[0].code() not in _PASSING or time.monotonic() > until:
                raise
        time.sleep(0.1)


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    found = consumer.list_topics(topic, timeout=10).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    return [TopicPartition(topic, each) for each in found.partitions]


def _end(consumer: Consumer, at: TopicPartition) -> int:
    """The offset of the partition's next message."""
    # Who leads it is asked anew: the client would go on asking the one that it knows.
    consumer.list_topics(at.topic, timeout=10)
    ends = consumer.get_watermark_offsets(at, timeout=10)
    assert ends is not None
    return ends[1]


def _next(consumer: Consumer) -> Message:
    """The next message; errors that pass are not it."""
    until = time.monotonic() + _PASSES_SECONDS
    while time.monotonic() < until:
        message = consumer.poll(1)
        error = None if message is None else message.error()
        assert error is None or error.code() in _PASSING, error
        if message is not None and error is None:
            return message
    raise AssertionError("a message that is there does not come")


def rows(dsn: str, text: str = "select body from extract.inbox order by place") -> list[tuple[Any, ...]]:
    """Rows of the store."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(text.encode()).fetchall()


class Consuming:
    """Consumers in threads; at the end all are stopped."""

    def __init__(self, broker: Broker, topic: str, connect: Connect) -> None:
        self.broker, self.topic, self.connect = broker, topic, connect
        self.group = f"group-{topic}"
        self.deadline = DEADLINE
        self.begun: list[tuple[threading.Event, Future[Consumed]]] = []

    def begin(self, **config: Any) -> tuple[threading.Event, Future[Consumed]]:
        """One more consumer."""
        stop = threading.Event()
        given = {**self.broker.config, "group.id": self.group, **config}
        self.begun.append(
            (stop, in_thread(lambda: consume(given, self.topic, self.connect, "extract", stop, self.deadline))),
        )
        return self.begun[-1]

    def until(self, found: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is so."""
        until = time.monotonic() + seconds
        while not found():
            for _, done in self.begun:
                if done.done() and not done.cancelled() and done.exception() is not None:
                    done.result()
            assert time.monotonic() < until, "it did not come"
            time.sleep(0.05)

    def end(self) -> list[Consumed]:
        """Stop all; what each has done."""
        for stop, _ in self.begun:
            stop.set()
        done = [each.result(60) for _, each in self.begun]
        self.begun = []
        return done

    def all_of(self, count: int, dsn: str) -> Consumed:
        """One consumer until the inbox holds so many."""
        self.begin()
        self.until(lambda: rows(dsn, "select count(*) from extract.inbox") == [(count,)])
        (done,) = self.end()
        return done


def lag(broker: Broker, topic: str, group: str) -> int:
    """How many messages the group has not committed."""
    consumer = Consumer({**broker.config, "group.id": group, "enable.auto.commit": False})

    def asked() -> int:
        at = consumer.committed(_partitions(consumer, topic), timeout=10)
        for each in at:
            if each.error is not None:
                raise KafkaException(each.error)
        return sum(_end(consumer, each) - max(each.offset, 0) for each in at)

    try:
        return _answered(asked)
    finally:
        consumer.close()
