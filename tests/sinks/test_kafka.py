"""Kafka that dies, hangs, refuses or is set up wrongly: a named error in time, and exact afterwards."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat

from airflow_extract_provider.extract.errors import (
    EventRefusedError,
    ExtractError,
    SinkRefusedError,
    SinkUnavailableError,
)
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.kafka import KafkaSink
from tests.broker import GUEST, Broker
from tests.sinks.events import event, histories
from tests.sinks.topics import allow, create, received, unused_name

Sinks = Callable[..., KafkaSink]

SECRET = "hunter2-is-a-secret"
ADDRESS = {"bootstrap.servers": "127.0.0.1:1"}
KEYS = [f"key-{number}" for number in range(20)]


@pytest.fixture
def sink_of(broker: Broker) -> Iterator[Sinks]:
    """Makes sinks: `sink_of(topic, seconds=5, **{"linger.ms": 5})`."""
    made: list[KafkaSink] = []

    def make(topic: str, *, seconds: float = 30, to: Broker = broker, **config: Any) -> KafkaSink:
        made.append(KafkaSink({**to.config, **config}, topic, timeout=timedelta(seconds=seconds)))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def mortal(broker: Broker) -> Iterator[Broker]:
    """A broker that may be killed or paused; it runs again afterwards."""
    if not broker.ours:
        pytest.skip(f"{broker.kind} is not ours to kill")
    yield broker
    for node in broker.nodes:
        node.resume()
    broker.start()


class Interrupted(list[Event]):
    """Events of which one is only given after something has happened."""

    def __init__(self, events: list[Event], at: int, happens: Callable[[], None]) -> None:
        super().__init__(events)
        self.at, self.happens = at, happens

    def __iter__(self) -> Iterator[Event]:
        for number, each in enumerate(list.__iter__(self)):
            if number == self.at:
                self.happens()
            yield each


def _acknowledged(error: ExtractError) -> int:
    said = re.search(r"acknowledged ([\d,]+) of", str(error))
    assert said is not None
    return int(said[1].replace(",", ""))


def _last_of_each(ids: list[str]) -> list[str]:
    """Each id where it stands last: what a consumer holds who lets the last repeat win."""
    return list(reversed(dict.fromkeys(reversed(ids))))


def _check_exact(broker: Broker, topic: str, events: list[Event]) -> None:
    """Each event is there; those of a key are in order, once the repeats of a failed publish are passed over."""
    found = received(broker, topic)
    assert {each.id for each in found} == {each.id for each in events}
    for key in {each.key for each in events}:
        assert _last_of_each([each.id for each in found if each.key == key]) == [e.id for e in events if e.key == key]


def test_killed_while_events_are_handed_over(mortal: Broker, sink_of: Sinks) -> None:
    """What was acknowledged is there after the restart, and the same again makes it exact."""
    topic, events = create(mortal, unused_name()), histories(KEYS, range(1, 201))
    sink = sink_of(topic, seconds=2.5)
    with pytest.raises(SinkUnavailableError, match=re.escape(f"of 4,000 events for `{topic}`")) as failed:
        sink.publish(Interrupted(events, 3000, mortal.kill))
    mortal.start()
    if mortal.keeps:
        assert len({each.id for each in received(mortal, topic)}) >= _acknowledged(failed.value)
    else:
        create(mortal, topic)
    sink_of(topic, seconds=60).publish(events)
    _check_exact(mortal, topic, events)


def test_killed_between_two_publishes(mortal: Broker, sink_of: Sinks) -> None:
    """The same sink goes on when the broker is back."""
    if not mortal.keeps:
        pytest.skip(f"{mortal.kind} does not know topics and producers again")
    topic = create(mortal, unused_name())
    sink = sink_of(topic, seconds=20)
    sink.publish(histories(KEYS, [1]))
    mortal.kill()
    mortal.start()
    sink.publish(histories(KEYS, [2]))
    _check_exact(mortal, topic, histories(KEYS, [1, 2]))


def test_a_broker_that_hangs(mortal: Broker, sink_of: Sinks) -> None:
    """The error comes in time; the sink works again when the broker does."""
    topic = create(mortal, unused_name())
    sink = sink_of(topic, seconds=3)
    sink.publish([event("before")])
    mortal.nodes[0].pause()
    begin = time.monotonic()
    with pytest.raises(SinkUnavailableError, match="acknowledged 0 of 20 events"):
        sink.publish(histories(KEYS, [1]))
    took = time.monotonic() - begin
    mortal.nodes[0].resume()
    mortal.wait()
    assert 2.5 < took < 5
    late = sink_of(topic, seconds=60)
    late.publish(histories(KEYS, [2]))
    ids = [each.id for each in received(mortal, topic) if each.attributes["revision"] == "2"]
    assert sorted(ids) == sorted(each.id for each in histories(KEYS, [2]))


def test_nobody_listens() -> None:
    """No broker at all: the error comes in time too."""
    sink, begin = KafkaSink(ADDRESS, "orders", timeout=timedelta(seconds=2)), time.monotonic()
    with pytest.raises(SinkUnavailableError, match="acknowledged 0 of 1 events for `orders`"):
        sink.publish([event()])
    assert time.monotonic() - begin < 4


def test_what_is_interrupted_does_not_arrive_later(broker: Broker, sink_of: Sinks) -> None:
    """A task that is stopped rolls back: what waited in the queue must be gone."""

    def stop() -> None:
        raise KeyboardInterrupt

    topic = create(broker, unused_name())
    sink = sink_of(topic, **{"linger.ms": 1000})
    with pytest.raises(KeyboardInterrupt):
        sink.publish(Interrupted(histories(KEYS, [1]), 15, stop))
    time.sleep(1.5)
    sink.publish([event("after")])
    assert [each.key for each in received(broker, topic)] == ["after"]


def test_an_event_larger_than_the_client_allows(broker: Broker, sink_of: Sinks) -> None:
    """Refused before it is sent; the record is named, what it holds is not."""
    topic = create(broker, unused_name())
    sink = sink_of(topic)
    data = b'"' + b"v" * 1_200_000 + b'"'
    with pytest.raises(EventRefusedError, match="1,200,002") as refused:
        sink.publish([*histories(KEYS, [1]), event("large", data=data)])
    assert refused.value.key == "large"
    assert "'large'" in str(refused.value)
    assert "vvv" not in str(refused.value)
    sink.publish(histories(KEYS, [1]))
    _check_exact(broker, topic, histories(KEYS, [1]))


def test_an_event_larger_than_the_topic_allows(broker: Broker, sink_of: Sinks) -> None:
    """The one event is named, not one that shared a batch with it."""
    topic = _topic_of_small_batches(broker)
    sink = sink_of(topic)
    with pytest.raises(EventRefusedError, match=f"`{topic}`") as refused:
        sink.publish([*histories(KEYS, [1]), event("large", data=b'"' + b"v" * 5000 + b'"'), *histories(KEYS, [2])])
    assert refused.value.key == "large"
    assert "5,002" in str(refused.value)
    assert "vvv" not in str(refused.value)


def test_batches_larger_than_the_topic_allows(broker: Broker, sink_of: Sinks, caplog: pytest.LogCaptureFixture) -> None:
    """Kafka refuses the batch, though it would take each event."""
    topic = _topic_of_small_batches(broker)
    events = [event(key, revision, b'"' + b"v" * 500 + b'"') for revision in range(1, 11) for key in KEYS]
    sink = sink_of(topic)
    sink.publish(events)
    _check_exact(broker, topic, events)
    assert "`batch.size`" in caplog.text


def _topic_of_small_batches(broker: Broker) -> str:
    if broker.kind.startswith("Tansu"):
        pytest.skip("Tansu does not know max.message.bytes")
    return create(broker, unused_name(), max_message_bytes="2000")


def test_a_full_queue_is_waited_for(broker: Broker, sink_of: Sinks) -> None:
    """More events than librdkafka may hold."""
    topic, events = create(broker, unused_name()), histories(KEYS, range(1, 51))
    sink_of(topic, **{"queue.buffering.max.messages": 50}).publish(events)
    _check_exact(broker, topic, events)


def test_a_topic_that_is_not_there(broker: Broker, sink_of: Sinks) -> None:
    """Said at once, by name; it is not made, and works once it is there."""
    topic = unused_name()
    sink, begin = sink_of(topic, seconds=60), time.monotonic()
    for _ in range(2):
        with pytest.raises(SinkRefusedError, match=f"`{topic}` does not exist"):
            sink.publish([event()])
    assert time.monotonic() - begin < 20
    create(broker, topic)
    sink.publish([event()])
    assert len(received(broker, topic)) == 1


def test_a_name_that_no_topic_can_have(sink_of: Sinks) -> None:
    """Kafka has rules for names."""
    with pytest.raises(SinkRefusedError, match="`no topic!` does not exist"):
        sink_of("no topic!").publish([event()])


def test_one_partition_refuses(broker_pair: Broker, sink_of: Sinks) -> None:
    """The node that leads it is dead: the publish fails as a whole, and is exact when done again."""
    topic, events = create(broker_pair, unused_name(), [[1], [2]]), histories(KEYS, range(1, 11))
    sink = sink_of(topic, seconds=3, to=broker_pair)
    sink.publish(histories(KEYS, [0]))
    broker_pair.nodes[1].kill()
    try:
        with pytest.raises(SinkUnavailableError) as failed:
            sink.publish(events)
    finally:
        broker_pair.start()
    assert 0 < _acknowledged(failed.value) < len(events)
    sink_of(topic, seconds=60, to=broker_pair).publish(events)
    _check_exact(broker_pair, topic, [*histories(KEYS, [0]), *events])


def test_the_sdk_of_cloudevents_reads_it(broker: Broker, sink_of: Sinks) -> None:
    """A consumer that knows nothing of this project gets a whole event."""
    topic, sent = create(broker, unused_name()), event("7", 3, b'{"id": 7}')
    sink_of(topic).publish([sent])
    (found,) = received(broker, topic)
    headers = {f"ce_{name}": value.encode() for name, value in found.attributes.items() if name != "datacontenttype"}
    headers["content-type"] = found.attributes["datacontenttype"].encode()
    read = from_binary(KafkaMessage(headers, found.key, found.data or b""), JSONFormat())
    assert (read.get_id(), read.get_source(), read.get_type()) == (sent.id, "extract://shop/orders", "orders.changed")
    assert (read.get_subject(), read.get_time(), read.get_data()) == ("7", sent.time, {"id": 7})
    assert read.get_extension("revision") == "3"


@pytest.mark.parametrize(
    "config",
    [
        {"acks": "1"},
        {"acks": 0},
        {"request.required.acks": 1},
        {"enable.idempotence": False},
        {"enable.idempotence": "false"},
        {"allow.auto.create.topics": True},
        {"delivery.report.only.error": "true"},
        {"message.timeout.ms": 5},
        {"delivery.timeout.ms": 60000},
        {"transactional.id": "mine"},
        {"partitioner": "random"},
        {"default.topic.config": {"acks": 1}},
        {"error_cb": print},
        {"on_delivery": print},
    ],
    ids=lambda config: "-".join(f"{name}={value}" for name, value in config.items())[:40],
)
def test_settings_that_would_break_the_promise(config: Mapping[str, Any]) -> None:
    """Refused when the sink is made, by name."""
    with pytest.raises(SinkRefusedError, match=f"`{next(iter(config))}`"):
        KafkaSink({**ADDRESS, **config}, "orders")


def test_settings_that_keep_the_promise() -> None:
    """Said again, in any of the ways that librdkafka reads."""
    for config in ({"acks": -1}, {"acks": "all"}, {"enable.idempotence": "True"}, {"partitioner": "murmur2"}):
        KafkaSink({**ADDRESS, **config}, "{source}.{object}")


def test_no_broker_is_named() -> None:
    """Without an address there is nothing to do."""
    with pytest.raises(SinkRefusedError, match="names no broker"):
        KafkaSink({"client.id": "x"}, "orders")


@pytest.mark.parametrize(
    "topic",
    ["", "{key}", "{}", "{source", "{source.upper}", "{object!r}", "{object:>9}", "{source:d}", "{source:{object}}"],
)
def test_a_template_that_is_not_understood(topic: str) -> None:
    """Only the source and the object make a topic's name."""
    with pytest.raises(SinkRefusedError, match=r"\{source\} and \{object\}"):
        KafkaSink(ADDRESS, topic)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra was not installed: the message says how."""
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SinkRefusedError, match=r"pip install airflow-extract-provider\[kafka\]"):
        KafkaSink(ADDRESS, "orders")


@pytest.mark.parametrize(
    "config",
    [
        {"sasl.mechanism": SECRET, "security.protocol": "SASL_PLAINTEXT"},
        {"ssl.key.pem": SECRET, "security.protocol": "SSL"},
        {"linger.ms": SECRET},
        {"no.such.setting": SECRET},
        {"compression.type": SECRET},
    ],
    ids=lambda config: str(next(iter(config))),
)
def test_settings_that_librdkafka_refuses(config: Mapping[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """The names are shown, the values are not."""
    sink = KafkaSink({**ADDRESS, **config}, "orders")
    with pytest.raises(SinkRefusedError, match=f"`{next(iter(config))}`") as refused:
        sink.publish([event()])
    assert SECRET not in str(refused.value) + caplog.text


def test_a_login_that_is_refused(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Said long before the time is over, without the password."""
    sink, begin = _guest(broker, SECRET, create(broker, unused_name())), time.monotonic()
    with pytest.raises(SinkRefusedError, match="refuses the login") as refused:
        sink.publish([event()])
    assert time.monotonic() - begin < 20
    assert SECRET not in str(refused.value) + caplog.text


@pytest.mark.parametrize("allowed", [[], ["DESCRIBE"]], ids=["nothing", "describe"])
def test_a_right_that_is_missing(broker: Broker, allowed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """The login is right, but may not write there."""
    topic = create(broker, unused_name())
    sink = _guest(broker, GUEST[1], topic)
    allow(broker, topic, *allowed)
    with pytest.raises(SinkRefusedError, match=f"does not allow this login to write to `{topic}`") as refused:
        sink.publish([event()])
    assert GUEST[1] not in str(refused.value) + caplog.text


def test_the_rights_that_the_message_asks_for_are_enough(broker: Broker) -> None:
    """DESCRIBE and WRITE on the topic."""
    topic = create(broker, unused_name())
    sink = _guest(broker, GUEST[1], topic)
    allow(broker, topic, "DESCRIBE", "WRITE")
    sink.publish([event()])
    sink.close()
    assert len(received(broker, topic)) == 1


def _guest(broker: Broker, password: str, topic: str) -> KafkaSink:
    if not broker.guarded:
        pytest.skip(f"{broker.kind} asks for no login")
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
    login |= {"sasl.username": GUEST[0], "sasl.password": password}
    config = {**broker.config, "bootstrap.servers": broker.guarded, **login}
    return KafkaSink(config, topic, timeout=timedelta(seconds=60))
