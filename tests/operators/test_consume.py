"""The operators that read the outbox, in Airflow's own task runner, on a real Postgres and a real broker."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG, TaskInstanceState, task
from airflow.triggers.base import TriggerEvent

from airflow_extract_provider.extract.errors import ExtractError, SinkRefusedError, SourceError, TryAgain
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import consumer as consumers
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.fence import acquire
from airflow_extract_provider.operators.consume import ConsumeEventsOperator
from airflow_extract_provider.operators.failing import TaskFailed
from airflow_extract_provider.operators.outbox import OutboxOperator
from airflow_extract_provider.operators.relay import RelayEventsOperator
from airflow_extract_provider.triggers.outbox import OutboxTrigger
from tests.broker import Broker
from tests.extract.scene import KEYED
from tests.operators.stage import Stage
from tests.sinks.topics import create, received, told, unused_name
from tests.store.eventful import an_event, fill
from tests.taskrun import Outcome, run_task

SUCCESS, RESCHEDULE, DEFERRED = (
    TaskInstanceState.SUCCESS,
    TaskInstanceState.UP_FOR_RESCHEDULE,
    TaskInstanceState.DEFERRED,
)
SOURCE = parse_source({"source": "shop", "connection": "shop_api", "objects": {"things": KEYED}}, "shop.yaml")


@dataclass
class Shop(Stage):
    """A store with an outbox, and a handler that fails ``fails`` times."""

    dsn: str
    connect: Connect
    conn: Connection
    handled: list[Event] = field(default_factory=list)
    fails: int = 0

    def __post_init__(self) -> None:
        super().__init__(SOURCE, "http://127.0.0.1:1", "secret", self.dsn, self.connect)

    def handle(self, event: Event) -> None:
        """The handler of the tests."""
        if self.fails:
            self.fails -= 1
            raise ValueError("the mail server is down")
        self.handled.append(event)

    def fill(self, *keys: str) -> list[Event]:
        """Store an event of each key."""
        events = [an_event(key) for key in keys]
        fill(self.conn, events, place=False)
        return events

    def consume(self, **arguments: Any) -> Outcome:
        """Run the operator once."""
        return self.run_operator(self.operator_of(ConsumeEventsOperator, handler=self.handle, **arguments))

    def operator_of(self, kind: Callable[..., OutboxOperator], **arguments: Any) -> OutboxOperator:
        """A task of this kind, of the consumer ``mail``."""
        with DAG("shop_mail", schedule=None):
            return kind(task_id="mail", **{"consumer": "mail", "backoff": 0, **arguments})

    def busy(self) -> None:
        """Let somebody else run the consumer."""
        acquire(
            self.conn, "extract", consumers.scope("mail"), "x", "somebody", silent_after=timedelta(0), take_over=True
        )

    def keys(self) -> list[str]:
        """The keys of what was handled."""
        return [event.key for event in self.handled]


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test. The log lines count as a task's do: from INFO on."""
    logger = logging.getLogger("airflow_extract_provider")
    before = logger.level
    logger.setLevel(logging.INFO)
    with connect() as conn:
        conn.autocommit = True
        yield Shop(dsn, connect, conn)
    logger.setLevel(before)


def failed(outcome: Outcome, kind: type[ExtractError]) -> ExtractError:
    """The engine's error that ended the task."""
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, kind)
    return outcome.error.error


def test_the_template_fields_are_the_attributes() -> None:
    """Exactly these may be templates; the constructor stores them unchanged."""
    given: dict[str, Any] = {name: f"{{{{ {name} }}}}" for name in OutboxOperator.template_fields}
    given["types"] = ["{{ a }}", "b"]
    operator = ConsumeEventsOperator(task_id="x", handler=print, **given)
    assert {name: getattr(operator, name) for name in given} == given
    relay = {"kafka_conn_id": "{{ k }}", "topic": "{source}.{{ t }}"}
    relaying = RelayEventsOperator(task_id="x", **given, **relay)
    assert set(RelayEventsOperator.template_fields) == {*given, *relay}
    assert {name: getattr(relaying, name) for name in relay} == relay


def test_each_event_is_handled_once(shop: Shop) -> None:
    """In order; the result is in XCom. The second run finds nothing, and succeeds."""
    events = shop.fill("a", "b", "c")
    assert shop.consume().state is SUCCESS
    assert shop.handled == events
    assert shop.xcom() == {
        "consumer": "mail", "handled": 3, "parked": 0, "dead": 0, "behind": 0, "place": 3, "pruned": 0,
    }  # fmt: skip
    assert shop.consume().state is SUCCESS
    assert shop.xcom()["handled"] == 0
    assert len(shop.handled) == 3


def test_in_the_transaction(shop: Shop) -> None:
    """The handler gets the connection, and what it writes is committed with the place."""
    shop.conn.execute("create table mailed (key text)")
    shop.fill("a", "b")

    def write(event: Event, conn: Connection) -> None:
        conn.execute("insert into mailed values (%s)", [event.key])

    operator = shop.operator_of(ConsumeEventsOperator, handler=write, in_transaction=True)
    assert shop.run_operator(operator).state is SUCCESS
    assert shop.ask("select key from mailed order by 1") == [("a",), ("b",)]


def test_only_what_is_wanted(shop: Shop) -> None:
    """By source, object and type; the rest is passed over. A new consumer may begin at the end."""
    fill(
        shop.conn,
        [an_event("a"), an_event("b", object="others"), an_event("c", type="gone"), an_event("d", type="made")],
    )
    shop.consume(source="shop", object="things", types=["changed", "made"])
    assert shop.keys() == ["a", "d"]
    shop.consume(consumer="late", start="end")
    assert shop.keys() == ["a", "d"]
    assert shop.xcom()["place"] == 4


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"start": "End"}, "`start`"),
        ({"types": "changed"}, "`types`"),
        ({"types": []}, "`types`"),
        ({"types": ["changed", "None"]}, "`types`"),
        ({"source": "None"}, "`source`"),
        ({"source": ""}, "`source`"),
        ({"object": " "}, "`object`"),
        ({"consumer": "{{ none }}"}, "`consumer`"),
        ({"limit": 0}, "`limit`"),
        ({"tries": 0}, "`tries`"),
        ({"wait": "long"}, "`wait`"),
        ({"backoff": "x"}, "`backoff`"),
        ({"take_over": "maybe"}, "`take_over`"),
    ],
)
def test_what_would_pass_events_over_is_refused(shop: Shop, given: dict[str, Any], name: str) -> None:
    """A wrong argument is an error of the DAG, before anything is read."""
    shop.fill("a")
    assert name in str(failed(shop.consume(**given), SourceError))
    assert consumers.consumers(shop.conn, "extract") == []


def test_a_dead_letter_is_warned_of(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The task succeeds, and the log names the command; not the data, nor why."""
    shop.fill("a", "b")
    shop.fails = 1
    assert shop.consume(tries=1).state is SUCCESS
    assert shop.xcom()["dead"] == 1
    assert shop.keys() == ["b"]
    (warned,) = [each for each in caplog.messages if "has 1 dead letter:" in each]
    assert "`airflow extract events dead list --consumer mail`" in warned
    assert "the mail server" not in caplog.text


def test_what_fails_is_tried_by_the_next_run(shop: Shop) -> None:
    """The task that failed to handle it succeeds: the event is parked."""
    shop.fill("a")
    shop.fails = 1
    assert shop.consume(backoff=3600).state is SUCCESS
    assert shop.xcom()["parked"] == 1
    shop.conn.execute("update extract.parked set due_at = now()")
    assert shop.consume().state is SUCCESS
    assert shop.keys() == ["a"]


def test_slices(shop: Shop) -> None:
    """What takes longer is done in slices, at no try; each event once."""
    shop.fill(*(f"k{number}" for number in range(30)))

    def slow(event: Event) -> None:
        time.sleep(0.01)
        shop.handle(event)

    slices = 0
    while True:
        outcome = shop.run_operator(shop.operator_of(ConsumeEventsOperator, handler=slow, run_for=0.05))
        slices += 1
        if outcome.state is SUCCESS:
            break
        assert outcome.state is RESCHEDULE
        assert outcome.msg.reschedule_date - datetime.now(timezone.utc) > timedelta(seconds=20)
    assert slices > 1
    assert len(set(shop.keys())) == len(shop.handled) == 30


def test_another_run_is_waited_for(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The task is rescheduled and says for whom; told to take over, it does not wait."""
    shop.fill("a")
    shop.busy()
    assert shop.consume().state is RESCHEDULE
    assert "held by somebody" in caplog.text
    assert shop.handled == []
    assert shop.consume(take_over="true").state is SUCCESS
    assert shop.keys() == ["a"]


def test_a_stopped_task_is_no_success(shop: Shop) -> None:
    """SIGTERM ends it after the event; the retry handles the others, each once."""
    shop.fill("a", "b", "c")

    def stop(event: Event) -> None:
        shop.handle(event)
        if event.key == "b":
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = shop.run_operator(shop.operator_of(ConsumeEventsOperator, handler=stop))
    assert "stopped" in str(failed(outcome, TryAgain))
    assert outcome.state is TaskInstanceState.UP_FOR_RETRY
    assert shop.consume().state is SUCCESS
    assert shop.keys() == ["a", "b", "c"]


def test_the_operator_can_be_copied(shop: Shop) -> None:
    """Airflow copies tasks; a handler that cannot be copied is shared."""
    lock = threading.Lock()

    def locked(event: Event) -> None:
        with lock:
            shop.handle(event)

    operator = shop.operator_of(ConsumeEventsOperator, handler=locked)
    shop.fill("a")
    assert shop.run_operator(operator).state is SUCCESS
    copied = copy.deepcopy(operator)
    assert isinstance(copied, ConsumeEventsOperator)
    assert copied.handler is locked
    operator.on_kill()


# Waiting.


def fired(outcome: Outcome) -> TriggerEvent:
    """What the trigger of a deferred task fires."""
    assert outcome.state is DEFERRED
    module, _, name = outcome.msg.classpath.rpartition(".")
    assert (module, name) == (OutboxTrigger.__module__, OutboxTrigger.__name__)
    trigger = OutboxTrigger(**outcome.msg.trigger_kwargs)

    async def first() -> TriggerEvent:
        async for event in trigger.run():
            return event
        raise AssertionError("it ended")

    return asyncio.run(first())


def test_deferred_until_an_event_comes(shop: Shop) -> None:
    """Without an event the task leaves its slot to the triggerer; with one it handles that and succeeds."""
    waiting = shop.operator_of(ConsumeEventsOperator, handler=shop.handle, wait=60, deferrable=True, object="things")
    outcome = run_task(waiting, shop.airflow)
    assert outcome.msg.trigger_kwargs["object"] == "things"
    assert "secret" not in json.dumps(outcome.msg.trigger_kwargs)
    assert timedelta(minutes=1) < outcome.msg.trigger_timeout < timedelta(minutes=12)
    shop.fill("a")
    with shop.airflow.serving():
        event = fired(outcome)
    assert event.payload["waiting"] is True
    resumed = run_task(waiting, shop.airflow, resumed=(outcome.msg.next_method, event.payload))
    assert resumed.state is SUCCESS
    assert shop.keys() == ["a"]


def test_deferred_until_the_time_is_over(shop: Shop) -> None:
    """Then it succeeds with nothing. An event that another run has handled is waited for again, no longer than that."""
    waiting = shop.operator_of(ConsumeEventsOperator, handler=shop.handle, wait=4, deferrable=True)
    outcome = run_task(waiting, shop.airflow)
    until = outcome.msg.trigger_kwargs["until"]
    again = run_task(waiting, shop.airflow, resumed=(outcome.msg.next_method, {"waiting": True, "until": until}))
    assert again.msg.trigger_kwargs["until"] == until
    with shop.airflow.serving():
        event = fired(again)
    assert event.payload == {"consumer": "mail", "waiting": False, "until": until}
    assert run_task(waiting, shop.airflow, resumed=(again.msg.next_method, event.payload)).state is SUCCESS
    assert shop.xcom()["handled"] == 0


def test_waiting_without_a_triggerer(shop: Shop) -> None:
    """It looks again after each pause, from its first run on, until the time is over."""
    assert shop.consume(wait=600, deferrable=False).state is RESCHEDULE
    shop.airflow.began = datetime.now(timezone.utc) - timedelta(seconds=595)
    outcome = shop.consume(wait=600, deferrable=False)
    assert outcome.state is RESCHEDULE
    assert outcome.msg.reschedule_date - datetime.now(timezone.utc) < timedelta(seconds=6)
    shop.airflow.began = datetime.now(timezone.utc) - timedelta(seconds=601)
    assert shop.consume(wait=600, deferrable=False).state is SUCCESS
    shop.airflow.began = None
    shop.fill("a")
    assert shop.consume(wait=600, deferrable=False).state is SUCCESS
    assert shop.keys() == ["a"]


# @task.consume_events


def decorated(**arguments: Any) -> tuple[list[Any], Any]:
    """A DAG's tasks that are written as functions, and where the events go."""
    got: list[Any] = []
    with DAG("mails", schedule=None, params={"to": "me"}) as dag:

        @task.consume_events(consumer="mail", **arguments)
        def send(event: Event, to: str = "nobody") -> None:
            """Sends a mail."""
            got.append((event.key, to))

        call: Any = send  # to the type checker the event is missing
        call(to="{{ params.to }}")
        call()
    return got, dag.tasks


def test_the_decorator(shop: Shop) -> None:
    """The function is the handler; what it is called with comes after the event."""
    shop.fill("a", "b")
    got, (first, second) = decorated(backoff=5)
    assert (first.task_id, second.task_id, first.doc_md) == ("send", "send__1", "Sends a mail.")
    assert first.backoff == 5
    assert run_task(first, shop.airflow).state is SUCCESS
    assert got == [("a", "me"), ("b", "me")]
    shop.fill("c")
    assert run_task(second, shop.airflow).state is SUCCESS
    assert got[2:] == [("c", "nobody")]
    assert shop.xcom()["handled"] == 1


def test_the_decorator_in_the_transaction(shop: Shop) -> None:
    """The function gets event and connection."""
    shop.fill("a")
    got: list[str] = []
    with DAG("mails", schedule=None) as dag:

        @task.consume_events(consumer="mail", in_transaction=True)
        def store(event: Event, conn: Connection) -> None:
            conn.execute("select 1")
            got.append(event.key)

        call: Any = store
        call()
    (operator,) = dag.tasks
    assert isinstance(operator, ConsumeEventsOperator)
    assert run_task(operator, shop.airflow).state is SUCCESS
    assert got == ["a"]


# Kafka.


def known(shop: Shop, broker: Broker) -> None:
    """Let Airflow know the broker."""
    shop.airflow.connections["kafka_default"] = {"conn_type": "kafka", "extra": json.dumps(broker.config)}


def test_the_outbox_is_moved_to_kafka(shop: Shop, broker: Broker) -> None:
    """Each event once, in the topic that the template names."""
    known(shop, broker)
    name = unused_name()
    topic = create(broker, f"{name}.things")
    events = shop.fill("a", "b", "c")
    relaying = shop.operator_of(RelayEventsOperator, topic=f"{name}.{{object}}")
    assert shop.run_operator(relaying).state is SUCCESS
    assert shop.run_operator(relaying).state is SUCCESS
    assert sorted(received(broker, topic), key=lambda each: each.key) == [told(event) for event in events]


def test_without_its_topic_nothing_moves(shop: Shop, broker: Broker) -> None:
    """A person has to make it: no retry, and the consumer stays where it is."""
    known(shop, broker)
    shop.fill("a")
    outcome = shop.run_operator(shop.operator_of(RelayEventsOperator, topic=unused_name()))
    failed(outcome, SinkRefusedError)
    assert outcome.state is TaskInstanceState.FAILED
    assert [each.place for each in consumers.consumers(shop.conn, "extract")] == [0]
