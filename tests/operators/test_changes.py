"""The operators that bring changes, and how tasks give way to each other: with HostileApi and a real Postgres."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import TaskInstanceState

from airflow_extract_provider.extract.errors import BackfillFirstError, ExtractError, SourceError
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.by_key import ByKeyOperator
from airflow_extract_provider.operators.incremental import IncrementalOperator
from airflow_extract_provider.operators.walk import WalkOperator
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import KEYED
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage
from tests.taskrun import Outcome

KIND = KINDS["page updated"]
CURSOR = "extract_shop_things_incremental_cursor"
SUCCESS, SKIPPED = TaskInstanceState.SUCCESS, TaskInstanceState.SKIPPED


class Shop(Stage):
    """A store behind an API that can be asked for changes; 45 things of one second each, in pages of ten."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect) -> None:
        things = KIND.described(by_key={"path": "/things/{{ key }}", "record": "@"})
        source = {"source": "shop", "connection": "shop_api", "objects": {"things": things}}
        super().__init__(parse_source(source, "shop.yaml"), api.url, "secret", dsn, connect)
        self.api = api
        for _ in range(45):
            api.insert()
            api.clock.advance(1)

    def lap(self, **arguments: Any) -> dict[str, Any]:
        """Bring the changes, which must succeed; what was asked before is forgotten. Returns the summary."""
        self.api.requests.clear()
        assert self.task(IncrementalOperator, **arguments).state is SUCCESS
        found: dict[str, Any] = self.xcom()
        return found

    def slow(self) -> None:
        """Let each answer take so long that a slice ends in the middle of a walk."""
        self.api.every(1, lambda: time.sleep(0.02))

    def assert_equal(self) -> None:
        """The copy equals the API."""
        assert self.copy() == self.api.live()


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test."""
    with HostileApi(listings={"/things": KIND.served()}) as api:
        yield Shop(api, dsn, connect)


@pytest.fixture
def copied(shop: Shop) -> Shop:
    """The same, copied once."""
    assert shop.task(BackfillOperator, run_id="first").state is SUCCESS
    shop.assert_equal()
    return shop


def due(seconds: float) -> datetime:
    """An instant so many seconds from now."""
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def error(outcome: Outcome) -> ExtractError:
    """The engine's error that ended a task."""
    found: ExtractError = getattr(outcome.error, "error")  # noqa: B009 - any exception
    return found


def skipped_because(outcome: Outcome) -> str:
    """The reason that Airflow logs with a skipped task."""
    assert outcome.state is SKIPPED
    return " ".join(event for _, event in outcome.events)


def test_a_lap_brings_what_has_changed_and_says_up_to_when(copied: Shop) -> None:
    """Nothing else is counted as a change; the cursor shows the instant, which the next lap begins at."""
    shop = copied
    shop.api.update(3, 7)
    shop.api.insert(2)
    shop.api.clock.advance(5)
    summary = shop.lap(run_id="a")
    shop.assert_equal()
    assert (summary["created"], summary["updated"], summary["complete"]) == (2, 2, True)
    assert summary["requests"] == summary["pages"] == len(shop.api.requests)
    assert summary["lag_seconds"] > 0
    before, after = summary["cursor_before"]["closed"], summary["cursor_after"]["closed"]
    assert before < after
    assert datetime.fromisoformat(after) == datetime.fromisoformat(summary["complete_to"]) <= shop.api.clock.now
    assert json.loads(shop.airflow.variables[CURSOR])["closed"] == after
    shop.api.clock.advance(5)
    assert shop.lap(run_id="b")["cursor_before"]["closed"] == after


def test_an_edited_instant_is_gone_back_to(copied: Shop) -> None:
    """What has changed since then is read again; nothing of it counts as a change. `reset` does the same, from where
    the backfill has ended."""
    shop = copied
    shop.api.update(1, 2, 3, at=shop.api.clock.now)
    shop.api.clock.advance(30)
    first = shop.lap(run_id="a")
    shop.api.clock.advance(30)
    assert shop.lap(run_id="b")["records"] < first["records"]
    cursor = json.loads(shop.airflow.variables[CURSOR])
    shop.airflow.variables[CURSOR] = json.dumps({**cursor, "closed": first["cursor_before"]["closed"]})
    again = shop.lap(run_id="c")
    assert (again["records"], again["updated"]) == (first["records"], 0)
    assert shop.lap(run_id="d", reset=True)["records"] == first["records"]


def test_a_lap_works_in_slices(copied: Shop) -> None:
    """Rescheduled in between; the last slice gives the sum of all."""
    shop = copied
    shop.api.update(*range(1, 46))
    shop.slow()
    shop.api.clock.advance(5)
    slices = 0
    while (outcome := shop.task(IncrementalOperator, run_for=0.0001)).state is not SUCCESS:
        assert outcome.state is TaskInstanceState.UP_FOR_RESCHEDULE
        slices += 1
        assert slices < 30
    assert slices > 1
    assert shop.xcom()["updated"] == 45
    shop.assert_equal()


def test_without_a_backfill(shop: Shop) -> None:
    """An error that a retry may mend; where there is a next run, the task leaves it to that, and the log says why."""
    outcome = shop.task(IncrementalOperator)
    assert isinstance(error(outcome), BackfillFirstError)
    assert outcome.state is TaskInstanceState.UP_FOR_RETRY
    reason = skipped_because(shop.task(IncrementalOperator, next_run_at=due(600)))
    assert "the backfill has not come to its end" in reason
    assert "Left to the next run" in reason
    assert shop.api.requests == []


def test_a_walk_that_takes_longer_is_left_to_the_next_run(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The task succeeds with what it has done, the changes wait, and the runs together copy everything once."""
    caplog.set_level("INFO", "airflow_extract_provider")
    shop.slow()
    runs = 0
    while True:
        runs += 1
        arguments: dict[str, Any] = {"run_id": f"r{runs}", "next_run_at": due(30)}
        assert shop.task(BackfillOperator, run_for=0.0001, **arguments).state is SUCCESS
        summary = shop.xcom()
        if summary["complete"]:
            break
        assert "shop/things backfill   left to the next run" in caplog.text
        assert shop.task(IncrementalOperator, **arguments).state is SKIPPED
        assert runs < 20
    assert runs > 1
    shop.assert_equal()
    assert shop.ask("select distinct revision from shop.things") == [(1,)]
    assert shop.task(IncrementalOperator, run_id=f"r{runs}", next_run_at=due(30)).state is SUCCESS


def test_while_the_next_run_is_far_a_walk_goes_on_in_slices(shop: Shop) -> None:
    """A daily schedule does not make of a backfill of a day one of a month."""
    shop.slow()
    outcome = shop.task(BackfillOperator, run_for=0.0001, next_run_at=due(3600).isoformat())
    assert outcome.state is TaskInstanceState.UP_FOR_RESCHEDULE


@pytest.mark.parametrize("kind", [BackfillOperator, IncrementalOperator, ByKeyOperator])
def test_where_there_is_a_next_run_a_held_object_is_skipped(copied: Shop, kind: type[WalkOperator]) -> None:
    """Whatever walk holds it: no error, no try used up. The next one finds it free."""
    copied.hold()
    asked = copied.api.count
    reason = skipped_because(copied.task(kind, next_run_at=due(600), run_id="sync"))
    assert "held by the other run" in reason
    assert "Left to the next run" in reason
    assert copied.api.count == asked
    copied.let_go()
    assert copied.task(kind, next_run_at=due(600), run_id="later").state is SUCCESS


def test_two_runs_take_turns_at_one_backfill(shop: Shop) -> None:
    """One from the backfill DAG and one of the sync, slice by slice: together they copy each thing once."""
    shop.slow()
    for _ in range(40):
        ui = shop.task(BackfillOperator, run_id="ui", run_for=0.0001)
        sync = shop.task(BackfillOperator, run_id="sync", run_for=0.0001, next_run_at=due(3600))
        if ui.state is sync.state is SUCCESS:
            break
        assert {ui.state, sync.state} <= {SUCCESS, TaskInstanceState.UP_FOR_RESCHEDULE}
    else:
        pytest.fail("they did not come to the end")
    shop.assert_equal()
    created = shop.ask("select sum((counts ->> 'created')::int) from extract.ledger")
    assert created == [(45,)]


def test_noted_records_are_read_again_by_their_keys(copied: Shop) -> None:
    """What is there is compared, what is gone becomes a tombstone, and the notes are settled."""
    shop = copied
    shop.api.update(5)
    shop.api.delete(6)
    shop.ask(
        "insert into extract.refetch (source, object, key, reason) values ('shop', 'things', '5', 'test'),"
        " ('shop', 'things', '6', 'test') returning 1"
    )
    assert shop.task(ByKeyOperator, run_id="keys").state is SUCCESS
    summary = shop.xcom()
    assert (summary["walk"], summary["updated"], summary["deleted"], summary["requests"]) == ("by_key", 1, 1, 2)
    shop.assert_equal()
    assert shop.ask("select count(*) from extract.refetch") == [(0,)]
    asked = shop.api.count
    assert shop.task(ByKeyOperator, run_id="again").state is SUCCESS
    assert shop.api.count == asked


def test_what_the_source_does_not_offer(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Without `by_key` that task is skipped and says so; without a way to ask for changes the other is an error."""
    source = parse_source({"source": "shop", "connection": "shop_api", "objects": {"things": KEYED}}, "shop.yaml")
    assert "has no `by_key`" in skipped_because(shop.task(ByKeyOperator, source=source))
    assert shop.task(BackfillOperator, object="others").state is TaskInstanceState.FAILED
    assert isinstance(error(shop.task(ByKeyOperator, object="others")), SourceError)
    outcome = shop.task(IncrementalOperator, source=source)
    assert isinstance(error(outcome), SourceError)
    assert outcome.state is TaskInstanceState.FAILED


@pytest.mark.parametrize("given", ["soon", "2026-01-01T00:00:00", datetime(2026, 1, 1)])  # noqa: DTZ001
def test_an_instant_that_is_none(shop: Shop, given: Any) -> None:
    """Refused before anything is asked: without a zone it would be guessed."""
    assert "`next_run_at`" in str(error(shop.task(BackfillOperator, next_run_at=given)))
