"""The Kafka that events are published to, behind a connection of the Kafka provider's type."""

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

__all__ = ["kafka_sink", "sink_of"]

_EXAMPLE = """--conn-type kafka --conn-extra '{"bootstrap.servers": "HOST:9092"}'"""

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

    found = find_connection(conn_id, _EXAMPLE) if connection is None else connection
    return KafkaSink(_settings(conn_id, found.extra_dejson), topic, timeout=timeout)


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


def _settings(conn_id: str, extra: dict[str, Any]) -> dict[str, Any]:
    if callbacks := [name for name in _CALLBACKS if name in extra]:
        raise SinkRefusedError(
            f"the Kafka connection {conn_id!r} names functions ({', '.join(callbacks)}), which are not called here.",
            todo="Take them out; to log in by OAuth, use librdkafka's own `sasl.oauthbearer.method`: oidc.",
        )
    return {name: value for name, value in extra.items() if name not in _OF_CONSUMERS}
