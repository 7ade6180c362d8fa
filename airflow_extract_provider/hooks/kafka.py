"""The Kafka that events are published to, or webhooks kept in, behind a connection of the Kafka provider's type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import SinkRefusedError
from airflow_extract_provider.extract.storing import KafkaPublish
from airflow_extract_provider.hooks.connection import find_connection

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_extract_provider.extract.sinks.kafka import KafkaSink
    from airflow_extract_provider.extract.source import ApiObject
    from airflow_extract_provider.extract.webhooks.kafka_keep import KafkaKeep

__all__ = ["EXAMPLE", "consumer_settings", "kafka_keep", "kafka_sink", "sink_of"]

EXAMPLE = """--conn-type kafka --conn-extra '{"bootstrap.servers": "HOST:9092"}'"""

# The same connection may serve consumers too; a producer is told nothing of what only they know.
_OF_CONSUMERS = frozenset(
    {
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "check.crcs",
        "consume.callback.max.messages",
        "consume_cb",
        "coordinator.query.interval.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "group.protocol.type",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "isolation.level",
        "max.partition.fetch.bytes",
        "max.poll.interval.ms",
        "offset.store.method",
        "offset.store.path",
        "offset.store.sync.interval.ms",
        "offset_commit_cb",
        "on_commit",
        "partition.assignment.strategy",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "rebalance_cb",
        "session.timeout.ms",
    }
)
_OF_PRODUCERS = frozenset(
    {
        "acks",
        "batch.num.messages",
        "batch.size",
        "compression.codec",
        "compression.level",
        "compression.type",
        "delivery.report.only.error",
        "delivery.timeout.ms",
        "dr_cb",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "linger.ms",
        "message.send.max.retries",
        "message.timeout.ms",
        "msg_order_cmp",
        "on_delivery",
        "partitioner",
        "queue.buffering.backpressure.threshold",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "queuing.strategy",
        "request.required.acks",
        "request.timeout.ms",
        "retries",
        "retry.backoff.max.ms",
        "sticky.partitioning.linger.ms",
        "transaction.timeout.ms",
        "transactional.id",
    }
)
# The Kafka provider makes functions of these texts, if a list in Airflow's configuration allows them.
_CALLBACKS = ("oauth_cb", "throttle_cb", "stats_cb", "log_cb")


def kafka_sink(
    conn_id: str,
    topic: str,
    timeout: timedelta = timedelta(seconds=30),
    *,
    connection: Connection | None = None,
) -> KafkaSink:
    """A sink for the topic, which may hold ``{source}`` and ``{object}``; the caller closes it.

    The connection's extra is librdkafka's configuration, as for the Kafka provider, which need not be installed.
    ``timeout`` is the longest that one publish lasts. ``connection`` is for those who have it already.

    Raises ConnectionMissingError: Airflow has no such connection. Raises SinkRefusedError: its settings cannot be used,
    or confluent-kafka is not installed.
    """
    from airflow_extract_provider.extract.sinks.kafka import KafkaSink

    return KafkaSink(_settings(conn_id, connection, _OF_CONSUMERS), topic, timeout=timeout)


def kafka_keep(conn_id: str, topic: str, *, connection: Connection | None = None) -> KafkaKeep:
    """Keeps webhooks in the topic; the caller starts and closes it. Otherwise as :func:`kafka_sink`."""
    from airflow_extract_provider.extract.webhooks.kafka_keep import KafkaKeep

    return KafkaKeep(_settings(conn_id, connection, _OF_CONSUMERS), topic)


def consumer_settings(
    conn_id: str, group: str | None = None, *, connection: Connection | None = None
) -> dict[str, Any]:
    """What a consumer behind the connection is made with; ``group`` goes before the connection's own.

    Raises ConnectionMissingError, SinkRefusedError: as :func:`kafka_sink`.
    """
    return {**_settings(conn_id, connection, _OF_PRODUCERS), **({"group.id": group} if group else {})}


@contextmanager
def sink_of(object: ApiObject, *, connection: Connection | None = None) -> Iterator[KafkaSink | None]:
    """The sink that an object's events are published to, closed at the end; None: there are none, or they go into the
    outbox. Raises as :func:`kafka_sink`."""
    publish = object.publish
    if not object.events or not isinstance(publish, KafkaPublish):
        yield None
        return
    sink = kafka_sink(publish.kafka, publish.topic, connection=connection)
    try:
        yield sink
    finally:
        sink.close()


def _settings(conn_id: str, connection: Connection | None, of_others: frozenset[str]) -> dict[str, Any]:
    found = find_connection(conn_id, EXAMPLE) if connection is None else connection
    extra: dict[str, Any] = found.extra_dejson
    if callbacks := [name for name in _CALLBACKS if name in extra]:
        raise SinkRefusedError(
            f"the Kafka connection {conn_id!r} names functions ({', '.join(callbacks)}), which are not called here.",
            todo="Take them out; to log in by OAuth, use librdkafka's own `sasl.oauthbearer.method`: oidc.",
        )
    return {name: value for name, value in extra.items() if name not in of_others}
