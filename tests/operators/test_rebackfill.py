"""The rebackfill operator in Airflow's own task runner, with a real API and a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import TaskInstanceState

from airflow_extract_provider.extract.errors import (
    BackfillFirstError,
    ExtractError,
    SourceError,
    TooManyDeletesError,
)
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.failing import TaskFailed
from airflow_extract_provider.operators.rebackfill import RebackfillOperator
from airflow_extract_provider.operators.walk import WalkOperator
from airflow_extract_provider.testing.hostile import HostileApi
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage
from tests.taskrun import Outcome

KIND = KINDS["token updated"]
CURSOR = "extract_shop_things_rebackfill_cursor"
SUCCESS, SKIPPED, FAILED = TaskInstanceState.SUCCESS, TaskInstanceState.SKIPPED, TaskInstanceState.FAILED
RESCHEDULED = TaskInstanceState.UP_FOR_RESCHEDULE
DAILY: Mapping[str, Any] = {"every": "1d"}


def source(**over: Any) -> Source:
    """A source whose things are swept, or not."""
    objects = {"things": KIND.described(**over)}
    return parse_source({"source": "shop", "connection": "shop_api", "objects": objects}, "shop.yaml")


class Shop(Stage):
    """An API with 60 things, an empty store with tables, and an Airflow that knows both."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect) -> None:
        super().__init__(source(sweep=DAILY), api.url, "marked-secret-4711", dsn, connect)
        self.api = api

    def fill(self) -> None:
        """Backfill, as another task does."""
        assert self.task(BackfillOperator).state is SUCCESS

    def sweep(self, conf: Mapping[str, Any] | None = None, **arguments: Any) -> Outcome:
        """Run the rebackfill once."""
        return self.task(RebackfillOperator, conf, **arguments)

    def rest(self) -> None:
        """A day goes by."""
        self.ask(
            "with read as (update extract.sweep set began_at = began_at - interval '1 d')"
            "update extract.ledger set committed_at = committed_at - interval '1 d' returning 1"
        )

    def sweeps(self) -> list[tuple[Any, ...]]:
        """Which sweeps there were, and whether they were given up."""
        return self.ask("select given_up, ended_at is not null from extract.sweep order by number")


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test."""
    with HostileApi(seed=7, listings={"/things": KIND.served()}) as api:
        api.insert(60)
        api.clock.advance(60)
        yield Shop(api, dsn, connect)


def failed(outcome: Outcome, kind: type[ExtractError]) -> ExtractError:
    """The engine's error that ended the task, told without a traceback."""
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, kind)
    assert outcome.tracebacks == []
    return outcome.error.error


def test_the_template_fields_are_the_attributes() -> None:
    """One more than all walks have; the constructor stores it unchanged."""
    assert set(RebackfillOperator.template_fields) == {*WalkOperator.template_fields, "max_deletes"}
    for given in ("{{ params.max_deletes }}", 7, None):
        operator = RebackfillOperator(task_id="x", source="there/is/no.yaml", object="things", max_deletes=given)
        assert operator.max_deletes == given
    assert RebackfillOperator(task_id="x", source="no.yaml", object="things").max_deletes is None


def test_a_sweep_and_its_report(shop: Shop) -> None:
    """When it is due: what it has found is in XCom, as JSON values, and the cursor in its Variable; in between it does
    nothing, and asks nothing."""
    shop.fill()
    asked = shop.api.count
    assert shop.sweep().state is SUCCESS
    assert (shop.api.count, shop.sweeps()) == (asked, [])
    assert "sweep" not in shop.xcom()
    shop.api.update(3, touch=False)
    shop.api.delete(5, 6)
    shop.rest()
    outcome = shop.sweep(run_id="due")
    assert outcome.state is SUCCESS
    summary = shop.xcom()
    assert json.loads(json.dumps(summary)) == summary
    told = {"stored": 60, "seen": 58, "silent": 1, "changed": 1, "deleted": 2, "fields": {"value": 1}}
    assert told.items() <= summary["sweep"].items()
    assert (summary["complete"], summary["deleted"], summary["updated"], summary["walk"]) == (True, 2, 1, "rebackfill")
    assert '"swept": true' in shop.airflow.variables[CURSOR]
    assert shop.copy() == shop.api.live()
    # It has changed something, and so it reports the object.
    assert outcome.msg.outlet_events
    assert not shop.sweep(run_id="not due").msg.outlet_events


def test_an_object_without_a_cadence(shop: Shop) -> None:
    """Is skipped, unless somebody asks for it; nobody is asked for anything then."""
    shop.fill()
    shop.source = source()
    asked = shop.api.count
    outcome = shop.sweep()
    assert outcome.state is SKIPPED
    assert (shop.api.count, shop.sweeps()) == (asked, [])
    for number, flag in enumerate((True, "True", "{{ 'things' in params.sweep_now }}")):
        run: dict[str, Any] = {"run_id": f"asked for {number}", "params": {"sweep_now": ["things"]}}
        assert shop.sweep(reset=flag, **run).state is SUCCESS
    assert shop.sweep(reset="{{ 'things' in params.sweep_now }}", params={"sweep_now": []}).state is SKIPPED
    assert shop.sweeps() == [(False, True)] * 3
    assert shop.sweep(reset=True, selected=False).state is SKIPPED


def test_reset_begins_one_in_a_run(shop: Shop) -> None:
    """A retry goes on; once it is done, there is nothing to do, and its report is told again. Another run begins
    another."""
    shop.fill()
    shop.api.fault(shop.api.count + 3, "401")
    assert shop.sweep(reset=True, run_id="one").state is FAILED
    assert shop.sweep(reset=True, run_id="one", try_number=2).state is SUCCESS
    assert shop.xcom()["pages"] == 6
    told, asked = shop.xcom()["sweep"], shop.api.count
    assert shop.sweep(reset=True, run_id="one", try_number=3).state is SUCCESS
    assert (shop.xcom()["sweep"], shop.api.count) == (told, asked)
    assert shop.sweep(reset=True, run_id="two").state is SUCCESS
    assert shop.sweeps() == [(False, True)] * 2


@pytest.mark.parametrize("given", [None, "", "None", " "])
def test_nothing_said_of_deletes(shop: Shop, given: str | None) -> None:
    """The source file's word counts."""
    shop.fill()
    shop.api.delete(*shop.api.ids[:7])
    exc = failed(shop.sweep(reset=True, max_deletes=given), TooManyDeletesError)
    assert "holds 7 of 60 stored records; a sweep may delete 6" in exc.what
    assert shop.copied() == 60


@pytest.mark.parametrize("given", [7, "7", " 07 ", "{{ params.most }}"])
def test_more_deletes_are_allowed(shop: Shop, given: int | str) -> None:
    """A number or its text: what was refused is deleted, without a page being read again. Retrying alone is in vain."""
    shop.fill()
    shop.api.delete(*shop.api.ids[:7])
    outcome = shop.sweep(reset=True, run_id="one")
    failed(outcome, TooManyDeletesError)
    assert outcome.state is FAILED
    asked = shop.api.count
    assert shop.sweep(max_deletes=given, params={"most": 7}, run_id="two").state is SUCCESS
    assert (shop.xcom()["sweep"]["deleted"], shop.api.count) == (7, asked)
    assert shop.copy() == shop.api.live()


@pytest.mark.parametrize("given", ["many", "-1", "7.5", "10%", True, "\u0667"])
def test_a_number_of_deletes_that_is_none(shop: Shop, given: Any) -> None:
    """Named, before anything is done."""
    shop.fill()
    asked = shop.api.count
    assert "`max_deletes`" in str(failed(shop.sweep(reset=True, max_deletes=given), SourceError))
    assert (shop.api.count, shop.sweeps()) == (asked, [])


def test_slices(shop: Shop) -> None:
    """A sweep longer than its slice is rescheduled, costs no try, reads no page twice, and is one sweep; the report is
    of all of it."""
    shop.fill()
    shop.api.latency = timedelta(seconds=0.02)
    shop.api.update(3, touch=False)
    shop.api.update(55, touch=False)
    shop.api.delete(20, 21)
    asked, slices = shop.api.count, 0
    while (outcome := shop.sweep(reset=True, run_for=timedelta(seconds=0.03))).state is not SUCCESS:
        assert outcome.state is RESCHEDULED
        assert shop.ask("select count(*) from extract.fence where runner is not null") == [(0,)]
        slices += 1
        assert slices < 40
    assert slices > 1
    assert shop.api.count - asked == 6
    told = {"seen": 58, "silent": 2, "deleted": 2}
    assert told.items() <= shop.xcom()["sweep"].items()
    assert (shop.xcom()["pages"], shop.sweeps()) == (6, [(False, True)])
    assert shop.copy() == shop.api.live()


def test_it_gives_way_to_the_next_run(shop: Shop) -> None:
    """With `next_run_at`: skipped before the backfill has come to its end, and while another run holds the object; a
    slice that is not the last leaves the rest to the next run."""
    soon = (datetime.now(timezone.utc) + timedelta(seconds=5)).isoformat()
    outcome = shop.sweep(reset=True)
    failed(outcome, BackfillFirstError)
    assert shop.sweep(reset=True, next_run_at=soon).state is SKIPPED
    shop.fill()
    shop.hold()
    assert shop.sweep(reset=True, next_run_at=soon).state is SKIPPED
    assert shop.sweep(reset=True).state is RESCHEDULED
    shop.let_go()
    shop.api.latency = timedelta(seconds=0.02)
    shop.api.delete(60)
    outcome = shop.sweep(reset=True, run_for=0.03, next_run_at=soon, run_id="first")
    assert (outcome.state, shop.xcom()["complete"]) == (SUCCESS, False)
    shop.api.latency = timedelta(0)
    assert shop.sweep(next_run_at=soon, run_id="second").state is SUCCESS
    assert (shop.xcom()["complete"], shop.xcom()["sweep"]["deleted"], shop.sweeps()) == (True, 1, [(False, True)])
