"""A quota that is spent: the task leaves its slot until a request is granted, and goes on at the very same page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import TaskInstanceState
from airflow.sdk.serde import deserialize

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.failing import TaskFailed
from tests.extract.scene import TOKENS
from tests.loopback import Fault, LoopbackApi
from tests.operators.stage import Stage
from tests.taskrun import Outcome

SUCCESS, SKIPPED = TaskInstanceState.SUCCESS, TaskInstanceState.SKIPPED
RESCHEDULED, DEFERRED = TaskInstanceState.UP_FOR_RESCHEDULE, TaskInstanceState.DEFERRED
PAUSE = 300


class Shop(Stage):
    """An API with 50 things in five pages, which asks for a pause of five minutes at the third."""

    def __init__(self, api: LoopbackApi, dsn: str, connect: Connect) -> None:
        super().__init__(source(), api.url, "secret", dsn, connect)
        self.api = api
        api.rows = [b'{"id": "r%02d"}' % number for number in range(50)]
        self.refuse(3)

    def refuse(self, number: int, pause: int = PAUSE) -> None:
        """Answer this request with 429, and all others rightly."""
        spent = Fault(429, b"", {"Retry-After": str(pause)})
        self.api.fault = lambda asked, _: spent if asked == number else None

    def run(self, **arguments: Any) -> Outcome:
        """Run the backfill, in batches of a page."""
        return self.task(BackfillOperator, **arguments)

    def cursors(self) -> list[str | None]:
        """Which pages were asked for, in order."""
        return [asked.params.get("cursor") for asked in self.api.asked]

    def is_held(self) -> bool:
        """Whether a run holds the things."""
        return self.ask("select count(*) from extract.fence where runner is not null") != [(0,)]

    def grant(self) -> None:
        """The time that the API wanted is over."""
        self.ask("delete from extract.quota returning 1")

    def assert_goes_on(self, outcome: Outcome) -> None:
        """The walk has come to its end; the page that was refused was asked for again, to the letter, and no other
        one was asked for twice."""
        assert outcome.state is SUCCESS
        assert self.cursors() == [None, "t10", "t20", "t20", "t30", "t40"]
        assert self.copied() == 50
        summary = self.xcom()
        assert (summary["complete"], summary["created"], summary["pages"]) == (True, 50, 5)


def source(limit: str | None = None) -> Source:
    """The shop, with or without a limit of its own."""
    more: Mapping[str, Any] = {} if limit is None else {"limit": limit}
    return parse_source(
        {"source": "shop", "connection": "shop_api", "objects": {"things": TOKENS}, **more}, "shop.yaml"
    )


@pytest.fixture
def shop(api: LoopbackApi, dsn: str, connect: Connect) -> Shop:
    """The scene of each test."""
    return Shop(api, dsn, connect)


def ahead(moment: datetime) -> float:
    """How far an instant is ahead, in seconds."""
    return (moment - datetime.now(timezone.utc)).total_seconds()


def waits_by(outcome: Outcome) -> DateTimeTrigger:
    """The trigger of a task that was deferred, made as the triggerer makes it."""
    assert outcome.state is DEFERRED
    arguments: Any = deserialize(outcome.msg.trigger_kwargs)
    return DateTimeTrigger(**arguments)


def test_the_task_is_rescheduled(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """By default: its slot is free, the object too, no try is used up, and two pages are safe. Until it is time,
    nothing is asked."""
    caplog.set_level("INFO", "airflow_extract_provider")
    outcome = shop.run(deferrable=False, should_retry=False)
    assert outcome.state is RESCHEDULED
    assert PAUSE - 30 < ahead(outcome.msg.reschedule_date) <= PAUSE
    assert f"waits: no request is granted before {outcome.msg.reschedule_date:%Y-%m-%d %H:%M}" in caplog.text
    assert "ERROR" not in caplog.text
    assert (shop.cursors(), shop.copied(), shop.is_held()) == ([None, "t10", "t20"], 20, False)
    again = shop.run(deferrable=False, should_retry=False)
    assert again.state is RESCHEDULED
    assert abs((again.msg.reschedule_date - outcome.msg.reschedule_date).total_seconds()) < 5
    assert len(shop.api.asked) == 3
    shop.grant()
    shop.assert_goes_on(shop.run(deferrable=False))


def test_the_task_is_deferred(shop: Shop) -> None:
    """Where it may be: a trigger waits until that moment. If no triggerer ever says so, it fails a while after."""
    outcome = shop.run(deferrable=True)
    assert outcome.state is DEFERRED
    msg, trigger = outcome.msg, waits_by(outcome)
    assert msg.classpath == trigger.serialize()[0]
    assert PAUSE - 30 < ahead(trigger.moment) <= PAUSE
    assert trigger.end_from_trigger is False
    waiting = ahead(trigger.moment)
    assert waiting + 500 < msg.trigger_timeout.total_seconds() < waiting + 700
    assert msg.next_method == "execute_after_waiting"
    assert (shop.copied(), shop.is_held()) == (20, False)
    shop.grant()
    resumed = (msg.next_method, {"moment": trigger.moment.isoformat()})
    shop.assert_goes_on(shop.run(deferrable=True, resumed=resumed))


def test_resumed_too_early_it_waits_again(shop: Shop) -> None:
    """The triggerer's clock may be ahead, or another task have been told to wait longer: nothing is asked."""
    moment = waits_by(shop.run(deferrable=True)).moment
    outcome = shop.run(deferrable=True, resumed=("execute_after_waiting", {}))
    assert outcome.state is DEFERRED
    assert abs((waits_by(outcome).moment - moment).total_seconds()) < 5
    assert len(shop.api.asked) == 3


def test_it_is_left_to_the_next_run_if_that_is_due_before(shop: Shop) -> None:
    """The task succeeds with what it has copied. One that has done nothing is skipped, and says why."""
    due = datetime.now(timezone.utc) + timedelta(seconds=PAUSE - 60)
    assert shop.run(next_run_at=due, run_id="first").state is SUCCESS
    summary = shop.xcom()
    assert (summary["complete"], summary["created"]) == (False, 20)
    skipped = shop.run(next_run_at=due, run_id="second")
    assert skipped.state is SKIPPED
    assert "no request is granted before" in str(skipped.events)
    assert "Left to the next run" in str(skipped.events)
    later = shop.run(next_run_at=due + timedelta(hours=1), run_id="second", deferrable=False)
    assert later.state is RESCHEDULED
    assert len(shop.api.asked) == 3


def test_a_short_pause_is_waited_for(shop: Shop) -> None:
    """Not longer than `longest_wait`: the slot is kept, since to start a task costs more."""
    shop.refuse(3, pause=1)
    shop.assert_goes_on(shop.run())


@pytest.mark.parametrize("longest", [0.5, "0.5", timedelta(seconds=0.5)])
def test_longest_wait(shop: Shop, longest: Any) -> None:
    """In seconds, also as a template's text: what is longer leaves the slot."""
    shop.refuse(3, pause=20)
    outcome = shop.run(longest_wait=longest, pause=5, deferrable=False)
    assert outcome.state is RESCHEDULED
    assert 5 < ahead(outcome.msg.reschedule_date) <= 20


def test_a_slice_does_not_follow_too_closely(shop: Shop) -> None:
    """However short the API's pause: the scheduler has to have read the end of the slice before."""
    shop.refuse(3, pause=2)
    outcome = shop.run(longest_wait=0, pause=50, deferrable=False)
    assert outcome.state is RESCHEDULED
    assert 40 < ahead(outcome.msg.reschedule_date) <= 50


def test_a_declared_limit_is_waited_for_the_same_way(shop: Shop) -> None:
    """It holds for all tasks of the source: the next one begins with what this one has left."""
    shop.refuse(0)
    outcome = shop.run(source=source("2/h"), deferrable=False)
    assert outcome.state is RESCHEDULED
    assert 3000 < ahead(outcome.msg.reschedule_date) < 3700
    assert (len(shop.api.asked), shop.copied()) == (2, 20)
    other = shop.run(source=source("2/h"), deferrable=False, run_id="other")
    assert other.state is RESCHEDULED
    assert len(shop.api.asked) == 2


@pytest.mark.parametrize("longest", ["soon", -1, "-0.1"])
def test_a_longest_wait_that_is_none(longest: Any, shop: Shop) -> None:
    """A named error, before anything is asked."""
    outcome = shop.run(longest_wait=longest)
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, SourceError)
    assert "`longest_wait`" in str(outcome.error)
    assert shop.api.asked == []


def test_the_log_tells_how_much_is_left(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """What the API told with the page before, less what was asked since."""
    caplog.set_level("INFO", "airflow_extract_provider")
    told = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "71", "X-RateLimit-Reset": "600"}
    shop.api.fault = lambda number, asked: Fault(200, None, told)
    assert shop.run().state is SUCCESS
    # The next page may have been asked for when the line is written.
    assert re.search(r" · quota 7[01] ?% left\n", caplog.text)
