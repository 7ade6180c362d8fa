"""The consumer that reads deliveries, with the settings that keep the promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import SinkRefusedError
from airflow_extract_provider.extract.sinks.librdkafka import (
    NO_LOGIN,
    consumer_class,
    kafka_exception,
    settings_refused,
)
from airflow_extract_provider.extract.sinks.librdkafka_log import LIBRARY_LOG

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, TopicPartition

__all__ = ["GROUP", "Reading", "opened"]

GROUP = "extract-inbox"
"""The consumer group, where the settings name none."""

_PROMISED: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    # What is committed is what was stored, and no message is passed over where nothing was committed yet.
    "enable.auto.commit": (False, ("false",)),
    "enable.auto.offset.store": (False, ("false",)),
    "auto.offset.reset": ("earliest", ("earliest", "smallest", "beginning")),
    "allow.auto.create.topics": (False, ("false",)),
}


class Reading:
    """A consumer, and what it tells of its connections; ``told`` is called, in a poll, when it has committed offsets or
    could not."""

    consumer: Consumer
    login: KafkaError | None = None
    away: KafkaError | None = None
    told: Callable[[KafkaError | None, Sequence[TopicPartition]], None] | None = None

    def troubled(self, error: KafkaError) -> None:
        """Take what librdkafka tells of them."""
        if error.name() in NO_LOGIN:
            self.login = error
        elif error.name() == "_ALL_BROKERS_DOWN":
            self.away = error

    def committed(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        """Take that offsets were committed, or why not."""
        if self.told is not None:
            self.told(error, partitions)


def opened(config: Mapping[str, Any]) -> Reading:
    """A consumer that commits nothing by itself, and begins at the beginning where nothing was committed.

    Raises SinkRefusedError: a setting would let deliveries be lost, or cannot be used.
    """
    for name, (_, allowed) in _PROMISED.items():
        if name in config and str(config[name]).lower() not in allowed:
            raise SinkRefusedError(
                f"the Kafka connection sets `{name}` to what would let webhooks be lost.",
                todo=f"Take `{name}` out, or set it to {allowed[0]}.",
            )
    if not config.get("bootstrap.servers") and not config.get("metadata.broker.list"):
        raise SinkRefusedError("the Kafka connection names no broker.", todo="Set `bootstrap.servers`.")
    found = Reading()
    ours: dict[str, Any] = {name: value for name, (value, _) in _PROMISED.items()}
    ours |= {"error_cb": found.troubled, "on_commit": found.committed, "logger": LIBRARY_LOG}
    made = consumer_class()
    try:
        found.consumer = made({"group.id": GROUP, "reconnect.backoff.max.ms": 1000, **config, **ours})
    except kafka_exception() as refused:
        raise settings_refused(config, refused.args[0].str()) from None
    return found
