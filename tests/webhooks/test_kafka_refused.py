"""What a Kafka topic will never take: the log of the receiver says what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.sinks.topics import create, unused_name
from tests.webhooks.listening import Talk
from tests.webhooks.receiving import Process, deliveries
from tests.webhooks.test_service import send

pytestmark = pytest.mark.slow


def test_what_a_topic_never_takes_is_told(broker: Broker, tmp_path: Path) -> None:
    """With what to do about it, and once, whatever its size; the sender is told that it is too large."""
    topic = create(broker, unused_name(), 1, max_message_bytes="5000")
    process = Process(tmp_path, "host=x", "--workers", "1", "--keep", "kafka", "--topic", topic)
    process.environment["AIRFLOW_CONN_KAFKA_DEFAULT"] = json.dumps({"conn_type": "kafka", "extra": broker.config})
    with process:
        for each in deliveries(3, size=20_000):
            with Talk(process.port) as talk:
                talk.say(each.request)
                assert talk.statuses(1) == [413]
        assert set(send(process.port, 3)) == {200}
        lines = [line for line in process.told().splitlines() if "never taken" in line]
    assert len(lines) == 1
    assert "webhooks of shop/all cannot be received" in lines[0]
    assert "Raise the topic's max.message.bytes" in lines[0]
