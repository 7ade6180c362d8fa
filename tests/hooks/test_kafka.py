"""The sink behind an Airflow connection: what of it is used, and what is said when it cannot be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import ConnectionMissingError, SinkRefusedError
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.hooks.kafka import kafka_sink, sink_of
from tests.broker import Broker
from tests.extract.scene import KEYED
from tests.sinks.events import event
from tests.sinks.topics import create, received, told, unused_name
from tests.taskrun import ApiServer

SECRET = "marked-secret-4711"
NOWHERE: Mapping[str, Any] = {"bootstrap.servers": "127.0.0.1:1"}


def server(extra: Mapping[str, Any]) -> ApiServer:
    """An API server that knows the connection `events`."""
    return ApiServer(connections={"events": {"conn_type": "kafka", "extra": json.dumps(extra)}})


def test_what_consumers_need_is_left_out(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """One connection serves both; librdkafka warns of nothing."""
    topic = create(broker, unused_name())
    extra = {
        **{name: value for name, value in broker.config.items() if name != "log_level"},
        "group.id": "mine",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "session.timeout.ms": 6000,
        "on_commit": "some.function",
    }
    with server(extra).serving():
        sink = kafka_sink("events", topic)
    sink.publish([event("a")])
    sink.close()
    assert received(broker, topic) == [told(event("a"))]
    assert "CONFWARN" not in caplog.text


def test_the_time_to_publish() -> None:
    """As asked, or what fits into a transaction."""
    with server(NOWHERE).serving():
        assert kafka_sink("events", "t").timeout == timedelta(seconds=30)
        assert kafka_sink("events", "t", timedelta(seconds=5)).timeout == timedelta(seconds=5)


def test_a_missing_connection_tells_how_to_make_it() -> None:
    """The message holds the command."""
    with (
        ApiServer().serving(),
        pytest.raises(ConnectionMissingError, match="connections add events --conn-type kafka"),
    ):
        kafka_sink("events", "t")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, "names no broker"),
        ({**NOWHERE, "acks": 1}, "`acks`"),
        ({**NOWHERE, "oauth_cb": SECRET}, "oauth_cb"),
    ],
)
def test_settings_that_cannot_be_used(extra: Mapping[str, Any], said: str) -> None:
    """Named when the sink is made, without their values."""
    with server(extra).serving(), pytest.raises(SinkRefusedError, match=said) as refused:
        kafka_sink("events", "t")
    assert SECRET not in str(refused.value)


def test_without_confluent_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install. The Kafka provider is not asked for."""
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.setitem(sys.modules, "airflow.providers.apache.kafka", None)
    with server(NOWHERE).serving(), pytest.raises(SinkRefusedError, match=r"airflow-extract-provider\[kafka\]"):
        kafka_sink("events", "t")


@pytest.mark.parametrize(
    ("over", "made"),
    [
        ({}, False),
        ({"events": ["created"]}, False),
        ({"publish": {"kafka": "events"}}, False),
        ({"events": ["created"], "publish": {"kafka": "events"}}, True),
    ],
)
def test_the_sink_of_an_object(over: Mapping[str, Any], made: bool) -> None:
    """Where it has events, and they do not go into the outbox. Otherwise no connection is asked for."""
    things = {**KEYED, **over}
    source = parse_source({"source": "shop", "connection": "none", "objects": {"things": things}}, "shop.yaml")
    with server(NOWHERE).serving() as airflow, sink_of(source.object("things")) as sink:
        assert (sink is not None) == made
    assert bool(airflow.of("GetConnection")) == made
