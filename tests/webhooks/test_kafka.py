"""Webhooks kept in Kafka, and brought from there into the inbox: a real broker, processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from airflow_extract_provider.extract.errors import (
    EventRefusedError,
    SchemaMissingError,
    SinkRefusedError,
    SinkUnavailableError,
)
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import dead
from airflow_extract_provider.extract.store.connection import Connect, Connection, connecting
from airflow_extract_provider.extract.store.inbox import channel
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.webhooks.kafka_inbox import Consumed, consume
from airflow_extract_provider.extract.webhooks.kafka_keep import Bounds, KafkaKeep
from airflow_extract_provider.extract.webhooks.kafka_message import Headers, UnreadableError, incoming_of
from tests.broker import GUEST, Broker
from tests.databases import lone_server
from tests.sinks.topics import allow, create, unused_name
from tests.store.applier import in_thread
from tests.webhooks.kafka_stage import Consuming, held, keeping, lag, put_all, put_named, rows, some

SECRET = "hunter2-is-a-secret"
SHORT = Bounds(deadline=2.0, look=0.5)
Measured = Callable[[str], None]


@pytest.fixture
def mortal(broker: Broker) -> Iterator[Broker]:
    """A broker that may be killed or paused and keeps what it acknowledged; it runs again afterwards."""
    if not (broker.ours and broker.keeps):
        pytest.skip(f"{broker.kind} is not ours to kill, or forgets what it acknowledged")
    yield broker
    for node in broker.nodes:
        node.resume()
    broker.start()


async def _ready(keep: KafkaKeep, ready: bool = True) -> None:
    while keep.ready is not ready:
        await asyncio.sleep(0.05)


async def _kept(keep: KafkaKeep, incoming: Incoming) -> None:
    """Send it until it is kept, as every API does: a broker that is back may lead nothing yet for as long as one
    delivery waits."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(SinkUnavailableError):
                assert await keep.put(incoming)
                return
            await asyncio.sleep(0.05)


# The keep ------------------------------------------------------------------------------------------------------------


def test_there_and_back(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """Every byte of a body, every header that is kept, and the instant at which it came."""
    sent = [
        Incoming("shop", "main", b"\xff\xfe\x00 no text", {"x-a": "one\nline", "x-b": "\u00fc"}, uuid.uuid4()),
        Incoming("shop", "main", b""),
        Incoming("crm_acme", "other", b'{"a": 1}', {"x-lone": "\udc80", "x-nil": "\x00"}),
        Incoming("crm_acme", "large", b"x" * 1_500_000),
    ]
    broker_takes_it = create(broker, unused_name(), max_message_bytes="2000000")
    consuming.topic = broker_takes_it
    before = datetime.now(timezone.utc)
    put_all(broker.config, broker_takes_it, sent)
    between = datetime.now(timezone.utc)
    assert consuming.all_of(4, dsn) == Consumed(read=4, stored=4)
    told = "select source, endpoint, body, headers, dedupe, received_at from extract.inbox"
    found = {row[2]: row for row in rows(dsn, told)}
    for each in sent:
        source, endpoint, _, headers, dedupe, received_at = found[each.body]
        assert (source, endpoint) == (each.source, each.endpoint)
        assert before - timedelta(seconds=1) <= received_at <= between
        if each.dedupe is not None:
            assert dedupe == each.dedupe
            assert headers == each.headers
    assert found[b'{"a": 1}'][3] == {"x-lone": "\ufffd", "x-nil": "\ufffd"}


class Storm:
    """Two thousand deliveries, fifty at a time, each sent until it is kept."""

    def __init__(self, config: Mapping[str, Any], topic: str) -> None:
        self.kept: list[bytes] = []
        self.failed: list[float] = []
        """How long it took until each was told that it is not."""
        self.away = threading.Event()
        self._given = config, topic

    def run(self) -> None:
        """Send them all."""
        keeping(*self._given, self._work, Bounds(deadline=8.0, look=0.5))

    async def _work(self, keep: KafkaKeep) -> None:
        left = iter(some(2_000))
        await asyncio.gather(*(self._send(keep, left) for _ in range(50)))
        assert keep.ready

    async def _send(self, keep: KafkaKeep, left: Iterator[Incoming]) -> None:
        for each in left:
            while True:
                begun = time.monotonic()
                try:
                    assert await keep.put(each)
                    break
                except SinkUnavailableError:
                    self.failed.append(time.monotonic() - begun)
                    self.away.set()
                    await asyncio.sleep(0.05)
            self.kept.append(each.body)
            await asyncio.sleep(0.001)


def test_kept_is_acknowledged(mortal: Broker, topic: str, measured: Measured) -> None:
    """The broker is killed among two thousand: what was kept is there afterwards, and the keep goes on when it is back.
    Who comes meanwhile is told so at once."""
    storm = Storm(mortal.config, topic)
    sending = in_thread(storm.run)
    _wait(lambda: len(storm.kept) > 500)
    mortal.kill()
    assert storm.away.wait(20)
    kept = len(storm.kept)
    time.sleep(1)
    assert len(storm.kept) == kept, "nothing is kept while nobody keeps it"
    # From this thread: it ends with the one that started it.
    mortal.start()
    begun = time.monotonic()
    _wait(lambda: len(storm.kept) > kept)
    measured(f"Kafka keep: goes on {time.monotonic() - begun:.1f} s after the broker is back")
    sending.result(60)
    there = Counter(held(mortal, topic))
    assert len(storm.kept) == 2_000
    assert set(there) >= set(storm.kept)
    # What was under way waits for its deadline; those who come later do not.
    assert sorted(storm.failed)[len(storm.failed) // 2] < 1.0


def _wait(found: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def test_a_broker_that_hangs(mortal: Broker, topic: str) -> None:
    """Nothing is said to be kept before it is; the error comes in time, and the next ones at once."""

    async def work(keep: KafkaKeep) -> None:
        assert await keep.put(Incoming("shop", "main", b"before"))
        for node in mortal.nodes:
            node.pause()
        begun = time.monotonic()
        with pytest.raises(SinkUnavailableError, match=f"Kafka's topic `{topic}`"):
            await keep.put(Incoming("shop", "main", b"meanwhile"))
        assert 1.5 < time.monotonic() - begun < 6
        await _ready(keep, False)
        begun = time.monotonic()
        with pytest.raises(SinkUnavailableError):
            await keep.put(Incoming("shop", "main", b"later"))
        assert time.monotonic() - begun < 0.5
        for node in mortal.nodes:
            node.resume()
        await _ready(keep)
        await _kept(keep, Incoming("shop", "main", b"after"))

    keeping(mortal.config, topic, work, SHORT)
    assert {b"before", b"after"} <= set(held(mortal, topic))


def test_away_from_the_beginning(caplog: pytest.LogCaptureFixture) -> None:
    """That is no error of the start; it is told of once."""

    async def work(keep: KafkaKeep) -> None:
        assert not keep.ready
        for _ in range(3):
            with pytest.raises(SinkUnavailableError):
                await keep.put(Incoming("shop", "main", b"x"))
        await asyncio.sleep(1)

    keeping({"bootstrap.servers": "127.0.0.1:1"}, "hooks", work, SHORT)
    assert caplog.text.count("Kafka is away") == 1


def test_what_the_topic_is_too_small_for(broker: Broker, consuming: Consuming, dsn: str) -> None:
    """Refused by name, for good; those that shared a batch with it are kept, and so are many that only together were
    too large."""
    if broker.kind.startswith("Tansu"):
        pytest.skip("Tansu does not know max.message.bytes")
    small = create(broker, unused_name(), 1, max_message_bytes="2000")
    sent = [Incoming("shop", "main", b"%03d" % n + b"v" * 600) for n in range(60)]
    large = Incoming("shop", "main", b"w" * 5000)

    async def work(keep: KafkaKeep) -> None:
        told = await asyncio.gather(*map(keep.put, [*sent[:30], large, *sent[30:]]), return_exceptions=True)
        refused = told.pop(30)
        assert told == [True] * 60
        assert isinstance(refused, EventRefusedError)
        assert "a webhook of 5,000 bytes" in str(refused)
        assert "max.message.bytes" in refused.todo
        assert refused.source == "shop"
        assert "www" not in str(refused)

    keeping(broker.config, small, work)
    assert sorted(held(broker, small)) == [each.body for each in sent]


def test_larger_than_any_client_takes(broker: Broker, topic: str) -> None:
    """Refused before it is sent."""

    async def work(keep: KafkaKeep) -> None:
        with pytest.raises(EventRefusedError, match="a webhook of 5,000 bytes"):
            await keep.put(Incoming("shop", "main", b"w" * 5000))
        assert await keep.put(Incoming("shop", "main", b"w"))

    keeping({**broker.config, "message.max.bytes": 2000}, topic, work)


def test_no_more_than_may_wait(broker: Broker, topic: str) -> None:
    """Those beyond are told so at once; one is always taken, however large it is."""

    async def work(keep: KafkaKeep) -> None:
        told = await asyncio.gather(*map(keep.put, some(10)), return_exceptions=True)
        assert [type(each) for each in told] == [bool] * 3 + [SinkUnavailableError] * 7
        large = [Incoming("shop", "main", b"x" * 5000)] * 2
        told = await asyncio.gather(*map(keep.put, large), return_exceptions=True)
        assert [type(each) for each in told] == [bool, SinkUnavailableError]

    keeping(broker.config, topic, work, Bounds(waiting=3, waiting_bytes=1000))


def test_the_end_waits_for_what_is_under_way(broker: Broker, topic: str) -> None:
    """What was taken is kept and told so; afterwards nothing is taken."""

    async def work(keep: KafkaKeep) -> None:
        told = [asyncio.create_task(keep.put(each)) for each in some(20)]
        await asyncio.sleep(0)
        await keep.close()
        assert [await each for each in told] == [True] * 20
        with pytest.raises(SinkUnavailableError, match="stops"):
            await keep.put(Incoming("shop", "main", b"late"))

    keeping({**broker.config, "linger.ms": 500}, topic, work)
    assert len(held(broker, topic)) == 20


def test_who_does_not_wait_any_more(broker: Broker, topic: str) -> None:
    """A sender hangs up: the others are told as ever."""

    async def work(keep: KafkaKeep) -> None:
        told = [asyncio.create_task(keep.put(each)) for each in some(10)]
        await asyncio.sleep(0)
        for each in told[:5]:
            each.cancel()
        assert [await each for each in told[5:]] == [True] * 5

    keeping({**broker.config, "linger.ms": 300}, topic, work)


def test_a_topic_that_is_not_there(broker: Broker) -> None:
    """Said by name at the start, of keep and consumer; it is not made."""
    missing = unused_name()
    for _ in range(2):
        with pytest.raises(SinkRefusedError, match=f"`{missing}` does not exist"):
            keeping(broker.config, missing, lambda keep: asyncio.sleep(0))


@pytest.mark.parametrize("allowed", [[], ["DESCRIBE"]], ids=["nothing", "describe"])
def test_a_right_that_is_missing(broker: Broker, topic: str, allowed: list[str]) -> None:
    """The login is right, but may not write there: known at the start, or with the first one."""
    allow(broker, topic, *allowed)

    async def work(keep: KafkaKeep) -> None:
        await keep.put(Incoming("shop", "main", b"x"))

    with pytest.raises(SinkRefusedError, match="does not allow this login to write to") as refused:
        keeping(guest(broker, GUEST[1]), topic, work)
    assert GUEST[1] not in str(refused.value)


def test_a_login_that_is_refused(broker: Broker, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without the password, of keep and consumer."""

    async def work(keep: KafkaKeep) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                await keep.put(Incoming("shop", "main", b"x"))
            except SinkUnavailableError:
                await asyncio.sleep(0.1)

    config = guest(broker, SECRET)
    with pytest.raises(SinkRefusedError, match="refuses the login"):
        keeping(config, topic, work)
    with pytest.raises(SinkRefusedError, match="refuses the login"):
        consume(config, topic, lambda: pytest.fail("the store is not asked"), "extract")
    assert SECRET not in caplog.text


def guest(broker: Broker, password: str) -> dict[str, Any]:
    """Logs in where one must."""
    if not broker.guarded:
        pytest.skip(f"{broker.kind} asks for no login")
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
    login |= {"sasl.username": GUEST[0], "sasl.password": password}
    return {**broker.config, "bootstrap.servers": broker.guarded, **login}


@pytest.mark.parametrize("config", [{"acks": "1"}, {"enable.idempotence": False}, {"message.timeout.ms": 5}], ids=str)
def test_settings_that_would_break_the_promise(config: Mapping[str, Any]) -> None:
    """Refused when the keep is made, by name."""
    with pytest.raises(SinkRefusedError, match=f"`{next(iter(config))}`"):
        KafkaKeep({"bootstrap.servers": "127.0.0.1:1", **config}, "hooks")


# The way into the inbox ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_once_whatever_is_killed(
    mortal: Broker, topic: str, consuming: Consuming, dsn: str, measured: Measured
) -> None:
    """Two thousand, some without an id. The consumer is killed between the insert and the commit of the offsets, again
    and again; the broker is restarted. Each is in the inbox exactly once, in the order of its endpoint."""
    sent = [Incoming("shop", f"e{n % 5}", b'{"n": %d}' % n, {}, uuid.uuid4() if n % 2 else None) for n in range(2_000)]
    asyncio.run(_one_after_another(mortal, topic, sent))
    # With a name of its own in the group, one that begins anew need not wait until its dead one is missed.
    member = {"group.id": consuming.group, "group.instance.id": "one"}
    asked: dict[str, Any] = {"config": {**mortal.config, **member}, "topic": topic, "dsn": dsn, "most": 100}
    for number, dies in enumerate((1, 3, 2, 1, 4)):
        child = _child({**asked, "dies": dies})
        if number == 2:
            # Restarted while the consumer is at work.
            mortal.stop()
            mortal.start()
        assert child.wait(60) == -signal.SIGKILL
    stored = rows(dsn, "select count(*) from extract.inbox")[0][0]
    uncommitted = stored - (2_000 - lag(mortal, topic, consuming.group))
    assert uncommitted > 0
    assert stored < 2_000
    begun = time.monotonic()
    consuming.begin(**{"group.instance.id": "one"})
    consuming.until(lambda: lag(mortal, topic, consuming.group) == 0)
    measured(
        f"from Kafka: killed 5 times before a commit, {uncommitted} were stored and not committed then; "
        f"the rest of 2,000 in {time.monotonic() - begun:.1f} s"
    )
    (done,) = consuming.end()
    assert done.duplicate == uncommitted
    assert done.stored == 2_000 - stored
    found = [row[0] for row in rows(dsn)]
    assert Counter(found) == Counter(each.body for each in sent)
    for endpoint in {each.endpoint for each in sent}:
        own = rows(dsn, f"select body from extract.inbox where endpoint = '{endpoint}' order by place")
        assert [row[0] for row in own] == [each.body for each in sent if each.endpoint == endpoint]


async def _one_after_another(broker: Broker, topic: str, sent: list[Incoming]) -> None:
    """Keep deliveries so that each endpoint's stay in order."""
    keep = KafkaKeep(broker.config, topic)
    await keep.start()
    try:
        assert all(await asyncio.gather(*map(keep.put, sent)))
    finally:
        await keep.close()


def _child(asked: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.webhooks.kafka_child", json.dumps(asked)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )


def test_how_quick(broker: Broker, topic: str, consuming: Consuming, dsn: str, measured: Measured) -> None:
    """Ten thousand of a kilobyte, there and into the inbox."""
    sent = [Incoming("shop", "main", b"%05d" % n + b"x" * 1000) for n in range(10_000)]
    begun = time.monotonic()
    put_all(broker.config, topic, sent)
    kept = time.monotonic() - begun
    begun = time.monotonic()
    assert consuming.all_of(len(sent), dsn).stored == len(sent)
    took = time.monotonic() - begun
    measured(f"Kafka: 10,000 webhooks of 1 KB kept at {10_000 / kept:,.0f}/s (50 at a time)")
    measured(
        f"Kafka: 10,000 webhooks of 1 KB from the topic into the inbox at {10_000 / took:,.0f}/s, the join included"
    )


def test_a_clock_that_is_wrong(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """What Kafka refuses for its timestamp alone is to come again: it is not the sender's fault. That a topic goes by
    the receivers' clocks is said."""
    wrong = create(broker, unused_name(), message_timestamp_before_max_ms="0")
    right = create(broker, unused_name(), message_timestamp_type="LogAppendTime", message_timestamp_before_max_ms="0")

    async def refused(keep: KafkaKeep) -> None:
        with pytest.raises(SinkUnavailableError, match="the clock of this machine, or of the broker, is wrong"):
            await asyncio.gather(*(keep.put(each) for each in some(50)))  # one may come in the very millisecond

    async def taken(keep: KafkaKeep) -> None:
        assert await keep.put(some(1)[0])

    keeping(broker.config, wrong, refused)
    keeping(broker.config, right, taken)
    told = [each for each in caplog.messages if "message.timestamp.type=CreateTime" in each]
    assert [wrong in each for each in told] == [True]


def test_the_store_is_away(broker: Broker, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is committed meanwhile, and all is stored once when it is back; it is told of once."""
    with lone_server() as server:
        dsn = server.dsn()
        migrate(connecting(dsn), [])
        put_all(broker.config, topic, some(300, dedupe=True))
        consuming = Consuming(broker, topic, connecting(dsn))
        consuming.all_of(300, dsn)
        server.kill()
        consuming.begin()
        put_all(broker.config, topic, some(300))
        consuming.until(lambda: "the store is away" in caplog.text)
        time.sleep(2)
        assert lag(broker, topic, consuming.group) == 300
        server.start()
        consuming.until(lambda: "stored again" in caplog.text)
        consuming.until(lambda: rows(dsn, "select count(*) from extract.inbox") == [(600,)])
        consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
        server.stop()
        put_all(broker.config, topic, some(1))
        time.sleep(1)
        (done,) = consuming.end()  # it stops in the middle of an outage too
        assert done.stored == 300
        assert lag(broker, topic, consuming.group) == 1
    # Once for each reason, such as that it says goodbye, that it is gone, that it is just starting.
    away = [each for each in caplog.messages if "the store is away" in each]
    assert len(away) <= 6
    assert all(one != other for one, other in pairwise(away))


def test_the_broker_goes_away_before_the_offsets_are_committed(
    mortal: Broker, topic: str, consuming: Consuming, dsn: str
) -> None:
    """Nobody waits for it: what was read is stored, and a stop ends within some seconds."""
    put_all(mortal.config, topic, some(1))
    consuming.begin()
    consuming.until(lambda: lag(mortal, topic, consuming.group) == 0)
    with psycopg.connect(dsn) as conn:
        conn.execute("lock table extract.inbox in access exclusive mode")
        put_all(mortal.config, topic, some(1))
        waits = "select count(*) from pg_locks where relation = 'extract.inbox'::regclass and not granted"
        consuming.until(lambda: rows(dsn, waits) == [(1,)])
        mortal.kill()
        conn.rollback()
    consuming.until(lambda: rows(dsn, "select count(*) from extract.inbox") == [(2,)])
    begun = time.monotonic()
    (done,) = consuming.end()
    assert time.monotonic() - begun < 10
    assert done.stored == 2
    mortal.start()


def test_messages_that_nobody_can_read(
    broker: Broker, topic: str, consuming: Consuming, dsn: str, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept as dead with topic, partition, offset and reason; the others go on. Read again, none is there twice."""
    good: list[tuple[str, str | bytes | None]]
    good = [("source", b"shop"), ("endpoint", b"main"), ("received_at", b"2026-01-01T00:00:00+00:00")]
    strange: list[tuple[bytes | None, list[tuple[str, str | bytes | None]], str]] = [
        (b"foreign", [], "it has no header `source`"),
        (b"half", good[:1], "it has no header `endpoint`"),
        (None, good, "it has no value"),
        (b"nil", [("source", b"sh\0op"), *good[1:]], "its header `source` is no name"),
        (b"bytes", [("source", b"\xff"), *good[1:]], "its header 'source' is no UTF-8"),
        (b"digest", [*good, ("dedupe", b"no digest")], "its header `dedupe` is no digest"),
        (b"timeless", good[:2], "its header `received_at` is no instant"),
        (b"zoneless", [*good[:2], ("received_at", b"2026-01-01T00:00:00")], "its header `received_at` has no zone"),
        (b"foreign", [], "it has no header `source`"),
    ]
    producer = Producer(broker.config)
    for value, headers, _ in strange:
        producer.produce(topic, value=value, headers=headers, partition=1)
    producer.produce(topic, value=b"good", headers=good, partition=1)
    assert producer.flush(30) == 0
    done = consuming.all_of(10, dsn)
    assert done == Consumed(read=10, stored=1, unreadable=9)
    found = dead.dead(conn, "extract")
    assert [each.reason for each in found] == [
        f"{topic}, partition 1, offset {offset}: {why}" for offset, (_, _, why) in enumerate(strange)
    ]
    assert {(each.source, each.endpoint, each.nth) for each in found} == {("-", topic, 0)}
    assert rows(dsn, "select body from extract.inbox where done_at is null") == [(b"good",)]
    assert "9 messages cannot be read" in caplog.text
    consuming.group += "-again"
    consuming.begin()
    consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
    (again,) = consuming.end()
    assert again == Consumed(read=10, duplicate=10)
    assert len(dead.dead(conn, "extract")) == 9
    assert rows(dsn, "select kind, count from extract.inbox_count") == [("received", 1)]


def test_a_header_whose_name_is_no_text(
    broker: Broker, consuming: Consuming, dsn: str, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The client cannot even tell it: dead as the others that nobody can read, and in nobody's way. Behind many others:
    Python looks less closely after a line that has run often."""
    consuming.topic = one = create(broker, unused_name(), 1)
    put_all(broker.config, one, some(300))
    put_named(broker, one, b"poison", b"h:\xff\xfe")
    put_all(broker.config, one, some(2))
    assert consuming.all_of(303, dsn) == Consumed(read=303, stored=302, unreadable=1)
    (buried,) = dead.dead(conn, "extract")
    assert buried.reason == f"{one}, partition 0, offset 300: the name of one of its headers is no UTF-8"
    assert rows(dsn, "select body from extract.inbox where done_at is not null") == [(b"poison",)]


def test_the_same_delivery_twice(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """Sent again by its sender it is stored once and counted as a duplicate; without an id both are stored."""
    known, unknown = some(1, dedupe=True), some(1)
    put_all(broker.config, topic, [*known * 3, *unknown * 2])
    consuming.begin()
    consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
    (done,) = consuming.end()
    assert (done.stored, done.duplicate) == (3, 2)
    counted = rows(dsn, "select source, endpoint, kind, count from extract.inbox_count order by kind")
    assert counted == [("shop", "main", "duplicate", 2), ("shop", "main", "received", 3)]


def test_a_topic_that_was_made_anew(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """Its offsets begin anew, and what is in it is new, though it stands where something else stood."""
    put_all(broker.config, topic, some(5))
    consuming.all_of(5, dsn)
    admin = AdminClient(broker.config)  # held: its answers end with it
    admin.delete_topics([topic])[topic].result(30)
    again = unused_name()
    create(broker, again)
    consuming.topic, consuming.group = again, "anew"
    put_all(broker.config, again, some(5))
    consuming.all_of(10, dsn)


def test_several_share_the_work(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """Partitions come and go while messages do: each is stored once."""
    for _ in range(2):
        consuming.begin()
    sent = [Incoming("shop", f"e{n % 9}", b"%d" % n) for n in range(3_000)]
    put_all(broker.config, topic, sent[:1_000])
    stop, first = consuming.begun.pop(0)
    stop.set()
    put_all(broker.config, topic, sent[1_000:2_000])
    consuming.begin()
    put_all(broker.config, topic, sent[2_000:])
    consuming.until(lambda: rows(dsn, "select count(distinct body) from extract.inbox") == [(3_000,)])
    consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
    done = [first.result(60), *consuming.end()]
    assert sum(each.stored for each in done) == 3_000
    assert rows(dsn, "select count(*) from extract.inbox") == [(3_000,)]


def test_what_the_topic_forgot(
    broker: Broker, consuming: Consuming, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages that were deleted before they were read are told of, and counted: no silent gap."""
    if broker.kind.startswith("Tansu"):
        pytest.skip("Tansu deletes no records")
    consuming.topic = one = create(broker, unused_name(), 1)
    put_all(broker.config, one, some(10))
    consuming.all_of(10, dsn)
    put_all(broker.config, one, some(20, endpoint="other"))
    admin = AdminClient(broker.config)  # held: its answers end with it
    for deleted in admin.delete_records([TopicPartition(one, 0, 25)]).values():
        deleted.result(30)
    done = consuming.all_of(15, dsn)
    assert (done.stored, done.lost) == (5, 15)
    assert f"offsets 10 to 24 of {one}, partition 0, are not there any more" in caplog.text


def test_whoever_waits_is_told(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """By the inbox's channel, once it is stored."""
    with psycopg.connect(dsn, autocommit=True) as listening:
        listening.execute(f'listen "{channel("extract")}"')
        put_all(broker.config, topic, some(3))
        consuming.all_of(3, dsn)
        assert list(listening.notifies(timeout=10, stop_after=1))


@pytest.mark.parametrize(
    "config",
    [
        {"enable.auto.commit": True},
        {"enable.auto.offset.store": "true"},
        {"auto.offset.reset": "latest"},
        {"auto.offset.reset": "error"},
        {"allow.auto.create.topics": True},
        {"bootstrap.servers": ""},
        {"session.timeout.ms": SECRET},
    ],
    ids=str,
)
def test_settings_that_a_consumer_refuses(config: Mapping[str, Any]) -> None:
    """By name, without values."""
    said = "names no broker" if "bootstrap.servers" in config else f"`{next(iter(config))}`"
    with pytest.raises(SinkRefusedError, match=said) as refused:
        consume({"bootstrap.servers": "127.0.0.1:1", **config}, "hooks", connecting(""), "extract")
    assert SECRET not in str(refused.value)


def test_no_topic_to_be_read(broker: Broker, connect: Connect) -> None:
    """Said by name."""
    with pytest.raises(SinkRefusedError, match="does not exist"):
        consume(broker.config, unused_name(), connect, "extract")


def test_no_inbox(broker: Broker, topic: str, connect: Connect) -> None:
    """A store that was not set up is said at once, though nothing has come."""
    with pytest.raises(SchemaMissingError):
        consume(broker.config, topic, connect, "nowhere")


# What a topic must be ------------------------------------------------------------------------------------------------


def test_a_compacted_topic_is_refused(broker: Broker, dsn: str, connect: Connect) -> None:
    """All webhooks of an endpoint have one key: the last one would stay. Both are told, before anything is lost."""
    if broker.kind.startswith("Tansu"):
        pytest.skip("Tansu compacts no topic")
    topic = create(broker, unused_name(), 1, cleanup_policy="compact,delete")

    async def nothing(keep: KafkaKeep) -> None:
        raise AssertionError(keep)

    with pytest.raises(SinkRefusedError, match=f"`{topic}` is compacted") as refused:
        keeping(broker.config, topic, nothing)
    assert "cleanup.policy=delete" in str(refused.value)
    with pytest.raises(SinkRefusedError, match=f"`{topic}` is compacted"):
        consume({**broker.config, "group.id": topic}, topic, connect)
    assert rows(dsn) == []


def test_what_was_forgotten_before_the_first_look(broker: Broker, consuming: Consuming, dsn: str) -> None:
    """Nothing was committed yet: what is not there any more is told of as well."""
    if broker.kind.startswith("Tansu"):
        pytest.skip("Tansu deletes no records")
    consuming.topic = one = create(broker, unused_name(), 1)
    put_all(broker.config, one, some(20))
    admin = AdminClient(broker.config)  # held: its answers end with it
    for deleted in admin.delete_records([TopicPartition(one, 0, 15)]).values():
        deleted.result(30)
    done = consuming.all_of(5, dsn)
    assert (done.stored, done.lost) == (5, 15)


def test_what_the_inbox_refuses_is_buried(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """With its reason; it keeps nothing else from being stored."""
    sent = [replace(each, headers={}) for each in some(40)]
    sent[17] = replace(sent[17], body=b"poison")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("alter table extract.inbox add constraint sweet check (body <> 'poison')")
    put_all(broker.config, topic, sent)
    done = consuming.all_of(40, dsn)
    assert (done.stored, done.unreadable, done.lost) == (39, 1, 0)
    with psycopg.connect(dsn) as conn:
        (buried,) = dead.dead(conn, "extract")
    assert "CheckViolation" in buried.reason


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1969-12-31T00:00:00Z"])
def test_an_instant_that_nobody_can_tell(instant: str) -> None:
    """Whoever reads the inbox would fail on it."""
    headers: Headers = [("source", b"shop"), ("endpoint", b"all"), ("received_at", instant.encode())]
    with pytest.raises(UnreadableError, match="received_at"):
        incoming_of(b"{}", headers)


def test_what_is_doubtful_of_a_topic_is_said(broker: Broker, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who may not look at its settings is told what that may cost, and goes on."""
    allow(broker, topic, "DESCRIBE", "WRITE")

    async def work(keep: KafkaKeep) -> None:
        assert await keep.put(Incoming("shop", "main", b"x"))

    keeping(guest(broker, GUEST[1]), topic, work)
    assert "allow this login DESCRIBE_CONFIGS" in caplog.text
    assert GUEST[1] not in caplog.text


def test_one_copy_of_two_is_said(broker_pair: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """What was answered 2xx may be on one broker only."""
    settings = {"message_timestamp_type": "LogAppendTime"}
    topics = {
        least: create(broker_pair, unused_name(), [[1, 2]], min_insync_replicas=least, **settings)
        for least in ("1", "2")
    }

    async def work(keep: KafkaKeep) -> None:
        assert keep.ready

    for topic in topics.values():
        keeping(broker_pair.config, topic, work)
    assert f"the topic `{topics['1']}` has min.insync.replicas=1" in caplog.text
    assert topics["2"] not in caplog.text
