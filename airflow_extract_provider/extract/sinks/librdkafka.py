"""What Kafka's producers and consumers have in common here: the settings that keep the promise, and librdkafka's errors
in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import SinkRefusedError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer

__all__ = [
    "CHOSEN",
    "NEVER_TAKEN",
    "NO_LOGIN",
    "NO_TOPIC",
    "PROMISED",
    "TOO_LARGE",
    "check_settings",
    "consumer_class",
    "kafka_exception",
    "producer_class",
    "settings_refused",
    "sink_refused",
    "throw_away",
    "words",
]

_YES, _NO = ("true", "t", "1"), ("false", "f", "0")
# What may stand in the settings beside what is promised; () where only the sink itself may set it.
_BOUND: Mapping[str, tuple[str, ...]] = {
    "acks": ("all", "-1"),
    "request.required.acks": ("all", "-1"),
    "enable.idempotence": _YES,
    "allow.auto.create.topics": _NO,
    "delivery.report.only.error": _NO,
    # Each of these gives one key one partition.
    "partitioner": ("murmur2_random", "murmur2", "consistent_random", "consistent", "fnv1a_random", "fnv1a"),
    "default.topic.config": (),
    "delivery.timeout.ms": (),
    "message.timeout.ms": (),
    "transactional.id": (),
    "dr_cb": (),
    "error_cb": (),
    "logger": (),
    "on_delivery": (),
}
PROMISED = {"enable.idempotence": True, "acks": "all", "allow.auto.create.topics": False}
# The same partition as the Java client gives; and soon again after a broker that was away for a moment.
CHOSEN = {"partitioner": "murmur2_random", "reconnect.backoff.max.ms": 1000}

TOO_LARGE = {"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"}
NEVER_TAKEN = {"INVALID_MSG", "INVALID_MSG_SIZE", "INVALID_RECORD", "INVALID_TIMESTAMP"}
NO_TOPIC = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "TOPIC_EXCEPTION"}
_NO_RIGHT = {"TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"}
NO_LOGIN = {"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "ILLEGAL_SASL_STATE"}
_SET_UP_FIRST = {"POLICY_VIOLATION", "INVALID_REQUIRED_ACKS", "UNSUPPORTED_VERSION", "_UNSUPPORTED_FEATURE"}


def check_settings(config: Mapping[str, Any]) -> None:
    """See that a producer's settings keep the promise. Raises SinkRefusedError."""
    for name, allowed in _BOUND.items():
        if name in config and str(config[name]).lower() not in allowed:
            raise SinkRefusedError(
                f"the Kafka connection sets `{name}` to what would let events be lost, doubled or late.",
                todo=f"Take `{name}` out{f', or set it to {allowed[0]}' if allowed else ''}.",
            )
    if not config.get("bootstrap.servers") and not config.get("metadata.broker.list"):
        raise SinkRefusedError("the Kafka connection names no broker.", todo="Set `bootstrap.servers`.")


def settings_refused(config: Mapping[str, Any], said: str) -> SinkRefusedError:
    """The error for settings of which librdkafka ``said`` something. It quotes values; names alone hold no secret."""
    named = [name for name in config if name in said] or sorted(set(config) - set(PROMISED))
    return SinkRefusedError(
        f"librdkafka refuses the settings of the Kafka connection: look at {', '.join(f'`{name}`' for name in named)}.",
        todo="Correct them; librdkafka's CONFIGURATION.md lists what each may be.",
    )


def producer_class() -> type[Producer]:
    """Raises SinkRefusedError: confluent-kafka is not installed."""
    try:
        from confluent_kafka import Producer
    except ImportError:
        raise _not_installed("events cannot be published to Kafka") from None
    return Producer


def consumer_class() -> type[Consumer]:
    """Raises SinkRefusedError: confluent-kafka is not installed."""
    try:
        from confluent_kafka import Consumer
    except ImportError:
        raise _not_installed("nothing can be read from Kafka") from None
    return Consumer


def _not_installed(what: str) -> SinkRefusedError:
    return SinkRefusedError(
        f"{what}: the package confluent-kafka is not installed.", todo="pip install airflow-extract-provider[kafka]"
    )


def kafka_exception() -> type[Exception]:
    """What confluent-kafka raises."""
    from confluent_kafka import KafkaException

    return KafkaException


def sink_refused(error: KafkaError, topic: str, *, reads: bool = False) -> SinkRefusedError | None:
    """The error for what a person must set up or allow first, to write to a topic or to read it; None: it is nothing of
    that kind."""
    name, do, done = error.name(), "read" if reads else "write to", "read from" if reads else "written to"
    if name in NO_TOPIC:
        return SinkRefusedError(
            f"the topic {topic} does not exist ({words(error)}).",
            todo="Create it, or correct its name: it is never made on its own.",
        )
    if name in _NO_RIGHT:
        return SinkRefusedError(
            f"Kafka does not allow this login to {do} {topic} ({words(error)}).",
            todo="Allow it DESCRIBE and READ on the topic, and READ on the consumer's group."
            if reads
            else "Allow it DESCRIBE and WRITE on the topic (and IDEMPOTENT_WRITE on a cluster older than 3.0).",
        )
    if name in NO_LOGIN:
        return SinkRefusedError(
            f"Kafka refuses the login; nothing can be {done} {topic}.",
            todo="Correct the `sasl.*` or `ssl.*` settings of the Kafka connection.",
        )
    if name in _SET_UP_FIRST:
        return SinkRefusedError(
            f"Kafka refuses what the sink needs for {topic} ({words(error)}).",
            todo="It needs an idempotent producer and acks=all: check the cluster's version and policies.",
        )
    return None


def words(error: KafkaError) -> str:
    """An error in librdkafka's own general words: its special ones may quote settings."""
    return str(type(error)(error.code()).str())


def throw_away(producer: Producer, seconds: float = 0.2) -> None:
    """End a producer, with all that waits in it or is under way."""
    with contextlib.suppress(kafka_exception()):
        producer.purge()
        # flush takes the reports of what was purged; close, since an error's traceback may hold the producer for long.
        if producer.flush(seconds) == 0:
            producer.close()
