"""Webhooks in a topic: how they are put there, who reads them, and what is left."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import confluent_kafka
import psycopg
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

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
        for partition in consumer.list_topics(topic, timeout=30).topics[topic].partitions:
            at = TopicPartition(topic, partition)
            _, upto = consumer.get_watermark_offsets(at, timeout=30)
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
            read = 0
            while read < upto:
                message = consumer.poll(10)
                assert message is not None
                assert message.error() is None
                read, value = (message.offset() or 0) + 1, message.value()
                assert isinstance(value, bytes)
                found.append(value)
        return found
    finally:
        consumer.close()


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
    try:
        found = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        at = consumer.committed([TopicPartition(topic, each) for each in found], timeout=30)
        ends = [consumer.get_watermark_offsets(each, timeout=30)[1] for each in at]
        return sum(end - max(each.offset, 0) for each, end in zip(at, ends, strict=True))
    finally:
        consumer.close()
