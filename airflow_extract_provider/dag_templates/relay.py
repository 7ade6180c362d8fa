"""The relay DAG of a source: brings the events of its outbox to Kafka."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable

from airflow_extract_provider.assets import alias_of
from airflow_extract_provider.dag_templates.arguments import dag_arguments
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.storing import KafkaPublish
from airflow_extract_provider.operators.relay import RelayEventsOperator

__all__ = ["relay_dag"]

_EVERY = "*/10 * * * *"
_PAUSE = timedelta(seconds=60)


def relay_dag(source: Source, to: KafkaPublish, default_args: Mapping[str, Any]) -> DAG:
    """The DAG that publishes a source's events, when an object has changed and, in case that was missed, now and then:
    an asset event whose run fails does not come again."""
    with DAG(
        dag_id=f"{source.source}_relay",
        schedule=AssetOrTimeSchedule(
            timetable=CronTriggerTimetable(_EVERY, timezone="UTC"), assets=alias_of(source.source)
        ),
        catchup=False,
        max_active_runs=1,
        **dag_arguments(source, "relay", default_args),
        description=f"Publishes the events of {source.source} to Kafka",
        doc_md=_doc(source, to),
    ) as dag:
        RelayEventsOperator(
            task_id="relay",
            consumer=f"{source.source}_relay",
            source=source.source,
            kafka_conn_id=to.kafka,
            topic=to.topic,
        )
    return dag


def _doc(source: Source, to: KafkaPublish) -> str:
    return f"""\
### {source.source}: relay

Publishes the events of the outbox to Kafka (connection `{to.kafka}`, topic `{to.topic}`): in order per record, at least
once, with the same ids. It runs when an object has changed, and every ten minutes.

- **While Kafka cannot be reached** the task fails, and nothing moves: the events wait in the outbox.
- **An event that Kafka will never take** is a dead letter at once: `airflow extract events dead list` tells why.
- **How far it is:** `airflow extract events consumers`; the consumer is called `{source.source}_relay`.
"""
