"""Whether a topic keeps what it was given: webhooks of one endpoint have one key, of which a compacted topic keeps the
last."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_extract_provider.extract.errors import SinkRefusedError
from airflow_extract_provider.extract.sinks.librdkafka import kafka_exception, words
from airflow_extract_provider.extract.sinks.librdkafka_log import LIBRARY_LOG

__all__ = ["TopicCheck"]

_SECONDS = 5.0
_TO_TOPICS = ("bootstrap.servers", "metadata.broker.list", "client.", "security.", "sasl.", "ssl.", "enable.ssl.")
"""How the settings begin by which a cluster is reached; the others are of producers or consumers."""
_PASSES = {"_TIMED_OUT", "_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE", "REQUEST_TIMED_OUT", "UNKNOWN_TOPIC_OR_PART"}

_log = logging.getLogger(__name__)


class TopicCheck:
    """Looks at a topic's settings, again and again until they are good; what is doubtful is said once."""

    def __init__(self, config: Mapping[str, Any], topic: str) -> None:
        self._config = {name: value for name, value in config.items() if name.startswith(_TO_TOPICS)}
        self._topic = topic
        self._good, self._said = False, ""

    def refused(self, replicas: int = 1) -> SinkRefusedError | None:
        """Why nothing may be kept in the topic, of which there are so many replicas; None: nothing speaks against it,
        as far as is known. It asks the cluster, and waits some seconds for it."""
        if self._good:
            return None
        try:
            found = self._settings()
        except TimeoutError:
            return None
        except kafka_exception() as failed:
            # Who is refused is refused the next time, too.
            self._good = failed.args[0].name() not in _PASSES
            if self._good:
                self._doubt(
                    f"the settings of the topic `{self._topic}` cannot be looked at ({words(failed.args[0])}): allow "
                    "this login DESCRIBE_CONFIGS on it. If the topic is compacted, webhooks are lost."
                )
            return None
        if "compact" in str(found.get("cleanup.policy", "")):
            return SinkRefusedError(
                f"the topic `{self._topic}` is compacted: of all webhooks of an endpoint it would keep the last one.",
                todo="Set the topic's cleanup.policy=delete, with a retention.ms of some days.",
            )
        self._good = True
        if doubts := [*self._doubts(found, replicas)]:
            self._doubt(f"the topic `{self._topic}` has {' It has '.join(doubts)}")
        return None

    def _doubts(self, found: Mapping[str, Any], replicas: int) -> Iterator[str]:
        if replicas > 1 and str(found.get("min.insync.replicas")) == "1":
            yield ("min.insync.replicas=1: a webhook that was answered 2xx may be on one broker only. Set it to 2.")
        if str(found.get("message.timestamp.type")) == "CreateTime":
            yield (
                "message.timestamp.type=CreateTime: where a receiver's clock is wrong, webhooks that were answered 2xx "
                "are too old for retention.ms at once, and deleted unread; or all are refused. Set it to LogAppendTime."
            )

    def _settings(self) -> dict[str, Any]:
        from confluent_kafka.admin import (  # type: ignore[attr-defined]
            AdminClient,
            ConfigResource,
            ResourceType,
        )

        config: dict[str, Any] = {**self._config, "logger": LIBRARY_LOG}
        admin = AdminClient(config)  # held: its answers end with it
        asked = ConfigResource(ResourceType.TOPIC, self._topic)
        (answer,) = admin.describe_configs([asked], request_timeout=_SECONDS).values()
        return {name: each.value for name, each in answer.result(_SECONDS + 1).items()}

    def _doubt(self, what: str) -> None:
        if what != self._said:
            _log.warning("webhooks: %s", what)
        self._said = what
