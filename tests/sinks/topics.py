"""Topics of one test each, and what a consumer of its own finds in them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.cimpl import NewTopic

from airflow_extract_provider.extract.events.event import Event
from tests.broker import GUEST, Broker

__all__ = ["Received", "allow", "create", "received", "told", "unused_name"]

_numbers = itertools.count()


@dataclass(frozen=True)
class Received:
    """An event as a consumer gets it."""

    key: str
    data: bytes | None
    attributes: Mapping[str, str]

    @property
    def id(self) -> str:
        """The event's id."""
        return self.attributes["id"]


def told(event: Event) -> Received:
    """An event as a consumer must get it."""
    return Received(event.key, event.data, event.attributes())


def unused_name() -> str:
    """A topic's name that no other test uses."""
    return f"sinks-{os.getpid()}-{next(_numbers)}"


def create(broker: Broker, topic: str, partitions: Sequence[Sequence[int]] | int = 3, **config: str) -> str:
    """Make a topic: so many partitions, or one on each of these lists of nodes. ``max_message_bytes`` is a setting."""
    settings = {name.replace("_", "."): value for name, value in config.items()}
    if isinstance(partitions, int):
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=settings)
    else:
        assigned = [list(nodes) for nodes in partitions]
        new = NewTopic(topic, num_partitions=len(assigned), replica_assignment=assigned, config=settings)
    admin = AdminClient(broker.config)  # held: its answers end with it
    admin.create_topics([new])[topic].result(30)
    return topic


def allow(broker: Broker, topic: str, *operations: str) -> None:
    """Let the guest do this with the topic: `allow(broker, topic, "DESCRIBE", "WRITE")`."""
    admin = AdminClient(broker.config)
    whom = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{GUEST[0]}", "*")
    rights = [AclBinding(*whom, AclOperation[each], AclPermissionType.ALLOW) for each in operations]
    for done in admin.create_acls(rights).values() if rights else ():
        done.result(30)


def received(broker: Broker, topic: str) -> list[Received]:
    """Everything that is in the topic now, each partition in its order."""
    consumer = Consumer(
        {
            **broker.config,
            "group.id": "nobody",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
            # Not the partition's last offset, asked for beforehand: Tansu gives wrong ones.
            "enable.partition.eof": True,
        }
    )
    try:
        partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        return _until_the_end(consumer, partitions)
    finally:
        consumer.close()


def _until_the_end(consumer: Consumer, partitions: set[int]) -> list[Received]:
    found: list[Received] = []
    while partitions:
        for message in consumer.consume(1000, timeout=0.2):
            error = message.error()
            if error is None:
                found.append(_read(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                partitions.discard(message.partition() or 0)
            else:
                raise KafkaException(error)
    return found


def _read(message: Message) -> Received:
    key = message.key()
    assert isinstance(key, bytes)
    attributes = {}
    for name, value in dict(message.headers() or ()).items():
        assert isinstance(value, bytes)
        assert name == "content-type" or name.startswith("ce_"), name
        attributes["datacontenttype" if name == "content-type" else name.removeprefix("ce_")] = value.decode()
    data = message.value()
    assert data is None or isinstance(data, bytes)
    return Received(key.decode(), data, attributes)
