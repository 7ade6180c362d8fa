"""Kafka fails in the middle of a run: rows, edges and cursor stay as they were, the error says what happened, and after
recovery every true event is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from airflow_extract_provider.extract.errors import (
    EventRefusedError,
    ExtractError,
    FencedError,
    SinkUnavailableError,
)
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.kafka import KafkaSink
from airflow_extract_provider.extract.store.fence import Scope, acquire, release
from tests.broker import Broker
from tests.crash.child import FileCursor
from tests.exactly_once.play import Play, check_exact
from tests.sinks.topics import create, unused_name


def a_sink(play: Play, seconds: float = 30) -> KafkaSink:
    """A sink on the play's topic."""
    return KafkaSink(play.kafka, play.topic, timeout=timedelta(seconds=seconds))


def prepared(play: Play, broker: Broker, topic: str) -> None:
    """A first backfill, and one incremental run whose events have arrived."""
    play.kafka, play.topic = broker.config, topic
    play.prepare(a_sink(play), publish={"kafka": "test", "topic": topic})
    play.change()
    play.run(sink=a_sink(play))
    check_exact(play, broker)


@contextmanager
def stopping(play: Play, kind: type[ExtractError], told: str) -> Iterator[list[ExtractError]]:
    """A run inside stops with this error, and leaves everything as it was."""
    play.change()
    before, caught = play.stands(), list[ExtractError]()
    with pytest.raises(kind, match=told) as raised:
        yield caught
    caught.append(raised.value)
    after = play.stands()
    assert after[:3] == before[:3], "rows, outbox or edges were written"
    assert [row for row in after[3] if row not in before[3]] == [], "the ledger moved"
    assert after[4] == before[4], "the cursor moved"
    assert raised.value.kept
    assert raised.value.object == "things"


def recovered(play: Play, broker: Broker) -> None:
    """The next run brings all of it."""
    counts = play.run(sink=a_sink(play, 50)).counts
    assert counts["events"] > 0
    check_exact(play, broker)
    assert play.run(sink=a_sink(play)).counts["created"] == counts["created"], "a run after it has nothing to do"


def mortal(broker: Broker) -> None:
    """Skip where the broker cannot be killed without losing what it has acknowledged."""
    if not (broker.ours and broker.keeps):
        pytest.skip(f"{broker.kind} is not ours to kill, or forgets what it acknowledged")


def test_down_in_mid_run(play: Play, broker: Broker) -> None:
    """The broker is killed while a run is under way."""
    mortal(broker)
    prepared(play, broker, create(broker, unused_name()))
    sink = a_sink(play, 4)
    with stopping(play, SinkUnavailableError, "acknowledged"):
        broker.kill()
        try:
            play.run(sink=sink)
        finally:
            broker.start()
    recovered(play, broker)


def test_delivery_timeout(play: Play, broker: Broker) -> None:
    """The broker hangs for longer than the timeout. What it had received it may still store: untrue events, whose ids
    the true ones have, or not at all."""
    mortal(broker)
    prepared(play, broker, create(broker, unused_name()))
    sink = a_sink(play, 3)
    with stopping(play, SinkUnavailableError, "acknowledged"):
        for node in broker.nodes:
            node.pause()
        try:
            play.run(sink=sink)
        finally:
            for node in broker.nodes:
                node.resume()
    play.change_again()
    recovered(play, broker)


def test_one_partition_refuses(play: Play, broker_pair: Broker) -> None:
    """The node that leads one of two partitions is dead: nothing of the page is stored, though others were taken."""
    prepared(play, broker_pair, create(broker_pair, unused_name(), [[1], [2]]))
    sink = a_sink(play, 3)
    with stopping(play, SinkUnavailableError, "acknowledged"):
        broker_pair.nodes[1].kill()
        try:
            play.run(sink=sink)
        finally:
            broker_pair.start()
    recovered(play, broker_pair)


def test_message_too_large(play: Play, broker: Broker) -> None:
    """A record that the topic does not take; the error names it. Once the topic takes it, all is exact."""
    if "Apache" not in broker.kind:
        pytest.skip(f"{broker.kind} does not know max.message.bytes")
    topic = create(broker, unused_name(), max_message_bytes="3000")
    prepared(play, broker, topic)
    (large,) = play.api.insert(1, value=60, note="x" * 5000)
    with stopping(play, EventRefusedError, "large") as caught:
        play.run(sink=a_sink(play))
    assert caught[0].key == str(large)
    assert "xxx" not in str(caught[0])
    allow_large(broker, topic)
    recovered(play, broker)


def allow_large(broker: Broker, topic: str) -> None:
    """Let the topic take messages of a megabyte."""
    entry = ConfigEntry("max.message.bytes", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(broker.config)
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)


def test_no_timeout_beyond_postgres(play: Play, broker: Broker) -> None:
    """A publication that Postgres would not wait for is refused before anything is read."""
    play.kafka, play.topic = broker.config, create(broker, unused_name())
    with pytest.raises(ExtractError, match="60 s"):
        play.prepare(a_sink(play, 60), publish={"kafka": "test", "topic": play.topic})
    assert play.api.count == 0


def test_who_lost_the_walk_publishes_nothing(play: Play, broker: Broker) -> None:
    """The fence comes first in the transaction (law: one runner per walk): once the walk is taken over, not one event
    goes out."""
    prepared(play, broker, create(broker, unused_name()))
    play.api.update(*play.api.ids, value=70)
    play.api.clock.advance(timedelta(seconds=5))
    sink = Counting(play)
    with pytest.raises(FencedError):
        play.run(sink=sink, cursor=TakingOver(play))
    assert sink.published == 1
    recovered(play, broker)


class Counting(KafkaSink):
    """Counts what it is asked to publish."""

    published = 0

    def __init__(self, play: Play) -> None:
        super().__init__(play.kafka, play.topic)

    def publish(self, events: Sequence[Event]) -> None:
        self.published += 1
        super().publish(events)


class TakingOver(FileCursor):
    """When the first page is committed, somebody else takes the walk over and goes away again."""

    def __init__(self, play: Play) -> None:
        super().__init__(Path(f"{play.cursor}incremental"), "one")
        self._play, self._writes = play, 0

    def write(self, key: str, text: str) -> None:
        self._writes += 1
        if self._writes == 2:
            scope, silent = Scope("shop", "things", "*"), timedelta(minutes=5)
            other = acquire(self._play.conn, "extract", scope, "two", "two", silent_after=silent, take_over=True)
            release(self._play.conn, "extract", other)
        super().write(key, text)
