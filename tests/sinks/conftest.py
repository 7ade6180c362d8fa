"""Each kind of sink on a stage, made in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from airflow_extract_provider.extract.errors import SinkUnavailableError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.kafka import KafkaSink
from airflow_extract_provider.extract.sinks.memory import MemorySink
from tests.broker import Broker
from tests.sinks.events import event
from tests.sinks.stage import Stage
from tests.sinks.topics import create, received, told, unused_name


def _memory() -> Stage:
    sink = MemorySink()

    def failing() -> list[Event]:
        sink.failures.append(SinkUnavailableError("the list is full."))
        return [event("lost")]

    return Stage(sink, lambda: [told(each) for each in sink.events], failing)


def _kafka(broker: Broker) -> Stage:
    name = unused_name()
    topic = create(broker, f"{name}.orders")
    sink = KafkaSink(broker.config, f"{name}.{{object}}", timeout=timedelta(seconds=60))
    # No topic is there for this object; what comes before it is under way then.
    return Stage(sink, lambda: received(broker, topic), lambda: [event("lost"), event("lost", object="absent")])


@pytest.fixture(params=["memory", "kafka"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Every sink there is."""
    made = _memory() if request.param == "memory" else _kafka(request.getfixturevalue("broker"))
    yield made
    made.sink.close()
