"""Moves events from the outbox to Kafka."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.operators.outbox import OutboxOperator

if TYPE_CHECKING:
    from airflow_extract_provider.extract.relay import Handler

__all__ = ["RelayEventsOperator"]


class RelayEventsOperator(OutboxOperator):
    """Publishes events to Kafka, in order per record, at least once and with the same ids. One that Kafka will never
    take is a dead letter at once; while Kafka cannot be reached, the task fails and nothing moves.

    :param kafka_conn_id: the connection of type Apache Kafka.
    :param topic: the topic; ``{source}`` and ``{object}`` are filled in. It must exist.

    Other parameters as :class:`~airflow_extract_provider.operators.outbox.OutboxOperator`.
    """

    template_fields: Sequence[str] = (*OutboxOperator.template_fields, "kafka_conn_id", "topic")

    def __init__(
        self, *, kafka_conn_id: str = "kafka_default", topic: str = "{source}.{object}", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kafka_conn_id = kafka_conn_id
        self.topic = topic

    @contextmanager
    def _handler(self) -> Iterator[Handler]:
        from airflow_extract_provider.extract.relay import ToSink
        from airflow_extract_provider.hooks.kafka import kafka_sink

        sink = kafka_sink(self.kafka_conn_id, self.topic)
        try:
            yield ToSink(sink)
        finally:
            sink.close()
