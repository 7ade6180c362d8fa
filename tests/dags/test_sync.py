"""The sync DAG of a source: which tasks it has, when it runs, what it says, and that its tasks run as they are made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG, BaseOperator, TaskInstanceState
from airflow.sdk.definitions.timetables.trigger import CronTriggerTimetable, DeltaTriggerTimetable

from airflow_extract_provider.assets import alias_of
from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.walk import WalkOperator
from airflow_extract_provider.schedule import next_run, schedule_of
from airflow_extract_provider.testing.hostile import HostileApi
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage

KIND = KINDS["page updated"]
BY_KEY = {"path": "/things/{{ key }}", "record": "@"}
NEXT_RUN = "{{ next_run(dag_run.run_after, dag.timezone) }}"


def source(**over: Any) -> Source:
    """A source with an object of each sort."""
    plain = {"path": "/plain", "records": "data", "key": "id", "pages": {"by": "token", "take": "next", "send": "to"}}
    objects = {
        "things": KIND.described(by_key=BY_KEY, deleted="gone"),
        "listed": KIND.described(path="/listed"),
        "plain": plain,
        "keyed": {**plain, "path": "/keyed", "by_key": BY_KEY},
    }
    return parse_source({"source": "shop", "connection": "shop_api", "objects": objects, **over}, "shop.yaml")


def sync(**over: Any) -> DAG:
    """The sync DAG of such a source."""
    return sync_of(source(**over))


def sync_of(found: Source) -> DAG:
    """The sync DAG of a source."""
    return make_dags({found.source: found})[f"{found.source}_sync"]


def test_a_chain_for_each_object() -> None:
    """Only what applies to it, and nothing leads from one object to another."""
    chains = {task.task_id: task.downstream_task_ids for task in sync().tasks}
    assert chains == {
        "things.backfill": {"things.incremental"},
        "things.incremental": {"things.by_key"},
        "things.by_key": set(),
        "listed.backfill": {"listed.incremental"},
        "listed.incremental": set(),
        "plain.backfill": set(),
        "keyed.backfill": {"keyed.by_key"},
        "keyed.by_key": set(),
    }


def test_each_task_walks_its_object_and_gives_way() -> None:
    """The walk is named as the task is; the first start is left to Airflow, and so is no interval to be filled."""
    dag = sync()
    for task in dag.tasks:
        assert isinstance(task, WalkOperator)
        assert task.task_id == f"{task.object}.{task.walk}"
        assert task.next_run_at == NEXT_RUN
        assert (task.retries, task.retry_exponential_backoff) == (3, 2.0)
    assert {task.trigger_rule for task in dag.tasks if task.task_id.endswith("by_key")} == {"none_failed"}
    assert (dag.catchup, dag.max_active_runs, dag.is_paused_upon_creation) == (False, 1, None)
    assert set(dag.allowed_run_types or ()) == {"scheduled", "manual"}
    assert dag.tags == {"extract", "shop", "sync"}


def test_each_task_may_report_its_object_as_changed() -> None:
    """All of a source by the same alias; the doc tells what to schedule on. No asset is an outlet as such, which every
    success would report."""
    dags = make_dags({"shop": source()})
    assert all(task.outlets == [alias_of("shop")] for dag in dags.values() for task in dag.tasks)
    assert '`schedule=[Asset("extract://shop/things")]`' in (dags["shop_sync"].doc_md or "")


def test_the_doc_tells_what_is_brought_and_what_is_not() -> None:
    """A row for each object."""
    doc = sync(schedule="10m").doc_md or ""
    assert "by the schedule `10m`" in doc
    assert "| things | by `incremental` | those with `gone` | yes |" in doc
    assert "| listed | by `incremental` | **not seen** | no |" in doc
    assert re.search(r"\| plain \| \*\*not seen\*\* after the backfill.*\| \*\*not seen\*\* \| no \|", doc)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("@hourly", CronTriggerTimetable("0 * * * *", timezone=pendulum.timezone("UTC"))),
        ("*/10 6-20 * * 1-5", CronTriggerTimetable("*/10 6-20 * * 1-5", timezone=pendulum.timezone("UTC"))),
        ("10m", DeltaTriggerTimetable(timedelta(minutes=10))),
        ("1.5 h", DeltaTriggerTimetable(timedelta(hours=1.5))),
    ],
)
def test_a_schedule(given: str, found: object) -> None:
    """As Airflow understands it."""
    assert sync(schedule=given).timetable == found


@pytest.mark.parametrize(
    "given", ["hourly", "@once", "@continuous", "* * * *", "0 0 * * * *", "61 * * * *", "0 0 30 2 *", "10", "0s", "5ms"]
)
def test_a_schedule_that_is_none(given: str) -> None:
    """The DAG file fails with the source's name and what can be written."""
    with pytest.raises(SourceError, match=r"shop: the schedule .*\n.*@hourly"):
        sync(schedule=given)


@pytest.mark.parametrize(
    ("given", "after", "found"),
    [
        ("10m", "2026-01-01T10:03:00+00:00", "2026-01-01T10:13:00+00:00"),
        ("@hourly", "2026-01-01T10:00:00+00:00", "2026-01-01T11:00:00+00:00"),
        ("@daily", "2026-06-01T10:03:00+00:00", "2026-06-01T22:00:00+00:00"),
        ("0 9 * * 1", "2026-01-01T10:00:00+00:00", "2026-01-05T08:00:00+00:00"),
    ],
)
def test_when_the_next_run_is_due(given: str, after: str, found: str) -> None:
    """Cron expressions are read in the DAG's zone."""
    zone = pendulum.timezone("Europe/Berlin")
    assert next_run(schedule_of("shop", given), datetime.fromisoformat(after), zone) == datetime.fromisoformat(found)


class Shop(Stage):
    """The sync DAG with its API, store and Airflow."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect) -> None:
        things = {"things": KIND.described(by_key=BY_KEY)}
        super().__init__(source(objects=things, schedule="1m"), api.url, "secret", dsn, connect)
        self.api = api
        self.reported: list[list[str]] = []

    def sync(self, run_id: str) -> dict[str, str]:
        """Run all tasks of the DAG in order, whatever comes of them; returns their states."""
        # Made anew: a task's templates are rendered in place.
        tasks = [task for task in sync_of(self.source).tasks if isinstance(task, BaseOperator)]
        outcomes = {task.task_id: self.run_operator(task, run_id=run_id) for task in tasks}
        self.reported.append([name for name, each in outcomes.items() if getattr(each.msg, "outlet_events", None)])
        return {name: each.state.value for name, each in outcomes.items()}


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of the tests that run tasks."""
    with HostileApi(listings={"/things": KIND.served()}) as api:
        api.insert(25)
        api.clock.advance(1)
        yield Shop(api, dsn, connect)


def test_the_first_run_copies_and_the_next_ones_bring_the_changes(shop: Shop) -> None:
    """All three walks in one run; later ones bring exactly what has changed. The backfill asks for nothing more."""
    assert set(shop.sync("first").values()) == {"success"}
    assert shop.copy() == shop.api.live()
    shop.api.update(3)
    shop.api.insert(2)
    shop.api.clock.advance(1)
    assert set(shop.sync("second").values()) == {"success"}
    assert shop.copy() == shop.api.live()
    # The tasks that have changed something, and no others, report the object.
    assert [sorted(run) for run in shop.reported] == [["things.backfill"], ["things.incremental"]]
    results = [msg.value for msg in shop.airflow.of("SetXCom") if msg.key == "return_value"][-3:]
    assert [result["walk"] for result in results] == ["backfill", "incremental", "by_key"]
    assert [(result["created"], result["updated"]) for result in results] == [(0, 0), (2, 1), (0, 0)]
    assert results[0]["requests"] == 0


def test_while_a_person_backfills_the_sync_is_skipped(shop: Shop) -> None:
    """Nothing fails, nothing waits; afterwards it brings what was missed."""
    shop.hold()
    assert set(shop.sync("first").values()) == {TaskInstanceState.SKIPPED.value}
    shop.let_go()
    assert set(shop.sync("second").values()) == {"success"}
    assert shop.copy() == shop.api.live()
