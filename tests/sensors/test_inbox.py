"""The sensor in Airflow's own task runner, on a real Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG, TaskInstanceState
from airflow.triggers.base import TriggerEvent

from airflow_extract_provider.extract.errors import SourceError, StoreUnavailableError
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.operators.failing import TaskFailed
from airflow_extract_provider.sensors.inbox import InboxSensor
from airflow_extract_provider.triggers.inbox import InboxTrigger
from tests.hooks.test_store import server
from tests.taskrun import ApiServer, Outcome, run_task

SUCCESS, RESCHEDULE, DEFERRED = (
    TaskInstanceState.SUCCESS,
    TaskInstanceState.UP_FOR_RESCHEDULE,
    TaskInstanceState.DEFERRED,
)


@dataclass
class Shop:
    """A store, and an Airflow that knows it."""

    conn: Connection
    airflow: ApiServer

    def put(self, source: str = "shop") -> None:
        """A webhook comes in."""
        inbox.put(self.conn, "extract", [Incoming(source, "main", b"{}")])

    def sense(self, resumed: Any = None, **arguments: Any) -> Outcome:
        """Run the sensor once."""
        with DAG("shop_webhooks", schedule=None):
            sensor = InboxSensor(task_id="wait", **{"source": "shop", **arguments})
        return run_task(sensor, self.airflow, resumed=resumed)

    def xcom(self) -> Any:
        """What the last task returned."""
        return [msg.value for msg in self.airflow.of("SetXCom") if msg.key == "return_value"][-1]


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test."""
    with connect() as conn:
        conn.autocommit = True
        yield Shop(conn, server(dsn))


def fired(shop: Shop, outcome: Outcome) -> TriggerEvent:
    """What the trigger of the deferred sensor fires."""
    assert outcome.state is DEFERRED
    assert outcome.msg.classpath == f"{InboxTrigger.__module__}.{InboxTrigger.__name__}"
    trigger = InboxTrigger(**outcome.msg.trigger_kwargs)

    async def first() -> TriggerEvent:
        async for event in trigger.run():
            return event
        raise AssertionError("it ended")

    with shop.airflow.serving():
        return asyncio.run(first())


def test_the_template_fields_are_the_attributes() -> None:
    """Exactly these may be templates; the constructor stores them unchanged."""
    given: dict[str, Any] = {name: f"{{{{ {name} }}}}" for name in InboxSensor.template_fields}
    sensor = InboxSensor(task_id="x", **given)
    assert {name: getattr(sensor, name) for name in given} == given


@pytest.mark.parametrize("how", [{"deferrable": True}, {"deferrable": False}, {"deferrable": False, "mode": "poke"}])
def test_at_once_if_something_waits(shop: Shop, how: dict[str, Any]) -> None:
    """It looks before it waits, however it would."""
    shop.put()
    assert shop.sense(**how).state is SUCCESS
    assert shop.xcom() == {"source": "shop", "waiting": True}


def test_deferred_until_a_webhook_comes(shop: Shop) -> None:
    """One of its source; the slot is the triggerer's meanwhile."""
    shop.put("another")
    outcome = shop.sense(deferrable=True)
    assert timedelta(minutes=5) < outcome.msg.trigger_timeout < timedelta(minutes=16)
    assert "secret" not in json.dumps(outcome.msg.trigger_kwargs)
    shop.put()
    event = fired(shop, outcome)
    assert shop.sense(resumed=(outcome.msg.next_method, event.payload)).state is SUCCESS
    assert shop.xcom() == {"source": "shop", "waiting": True}


def test_deferred_until_the_time_is_over(shop: Shop) -> None:
    """It succeeds all the same: what stands behind it is to run."""
    outcome = shop.sense(deferrable=True, wait="1.5")
    event = fired(shop, outcome)
    assert event.payload["waiting"] is False
    assert shop.sense(resumed=(outcome.msg.next_method, event.payload)).state is SUCCESS
    assert shop.xcom() == {"source": "shop", "waiting": False}


def test_without_a_triggerer(shop: Shop) -> None:
    """It looks again and again, from its first run on, until something comes or the time is over."""
    outcome = shop.sense(deferrable=False, poke_interval=7)
    assert outcome.state is RESCHEDULE
    assert timedelta(seconds=4) < outcome.msg.reschedule_date - datetime.now(timezone.utc) <= timedelta(seconds=7)
    shop.airflow.began = datetime.now(timezone.utc) - timedelta(seconds=290)
    assert shop.sense(deferrable=False).state is RESCHEDULE
    shop.airflow.began = datetime.now(timezone.utc) - timedelta(seconds=301)
    assert shop.sense(deferrable=False).state is SUCCESS
    assert shop.xcom() == {"source": "shop", "waiting": False}


def test_in_its_slot(shop: Shop) -> None:
    """With `mode: poke`, to the end of its time."""
    assert shop.sense(deferrable=False, mode="poke", poke_interval=0.2, wait=0.7).state is SUCCESS
    assert shop.xcom()["waiting"] is False


@pytest.mark.parametrize("given", [{"source": ""}, {"source": "None"}, {"wait": "long"}, {"wait": -1}])
def test_what_would_wait_for_nothing_is_refused(shop: Shop, given: dict[str, Any]) -> None:
    """A named error, no silence."""
    outcome = shop.sense(**given)
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, SourceError)


def test_a_store_that_is_away(shop: Shop) -> None:
    """A named error in a few lines, and another try."""
    shop.airflow.connections["extract_store"] = {"conn_type": "postgres", "host": "127.0.0.1", "port": 1}
    outcome = shop.sense(deferrable=True)
    assert outcome.state is TaskInstanceState.UP_FOR_RETRY
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, StoreUnavailableError)
    assert outcome.tracebacks == []
