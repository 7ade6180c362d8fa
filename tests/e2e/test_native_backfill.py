"""Airflow's own *Run Backfill* over daily windows, and the scheduled runs that read the last window again."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import connecting
from demo.airflow_api import AirflowApiError
from tests.e2e import filtered
from tests.e2e.conftest import World
from tests.e2e.filtered import DAY, kill_task, of_days, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "windowed"
DAG = f"{SOURCE}_backfill"
A_DAY = 60
LATE = timedelta(seconds=0.4)
"""How long the API takes for an answer while a task is to be killed: a window of six pages is read in seconds."""


def test_a_backfill_over_days(world: World) -> None:
    """Two runs at once, of which one is killed; each reads its interval, and all of it is there once. Then the same
    days again, and others: what is complete costs nothing, what is reprocessed or cleared is read again."""
    api = world.filtered[SOURCE]
    days = of_days(api, 6, A_DAY)
    first = api.clock.now.replace(hour=0, minute=0, second=0, microsecond=0) - 6 * DAY
    _refused(world, first)
    _killed_in_the_middle(world, first)
    live = api.live()
    assert _copy(world) == {str(key): live[str(key)] for day in days[1:4] for key in day}
    assert world.ask(f"select count(*) from {SOURCE}.others") == [(0,)]
    assert _created(world) == sorted(str(key) for day in days[1:4] for key in day)
    assert _cursors(world) == {}

    cursors = _filled(world)
    assert _copy(world) == api.live()
    _complete_costs_nothing(world, first)
    _read_again(world, first, days[2])
    assert _cursors(world) == cursors
    assert len(_created(world)) == len(api.live())


def _refused(world: World, first: datetime) -> None:
    """What the form refuses is refused here as well, and nothing begins. The dry run tells which runs there would
    be."""
    with pytest.raises(AirflowApiError) as refused:
        world.api.backfill(DAG, *_range(first, 1, 3), dag_run_conf={"objects": ["nothings"]})
    assert ": 422 " in str(refused.value)
    assert "'nothings' is not one of ['things', 'others']" in str(refused.value)
    planned = world.api.plan_backfill(DAG, *_range(first, 1, 3))
    assert [_instant(each) for each in planned] == [first + day * DAY for day in (1, 2, 3)]
    assert world.api.runs(DAG) == []


def _killed_in_the_middle(world: World, first: datetime) -> None:
    """Three days, two runs at once. Each waits for the other where both want the same object."""
    api = world.filtered[SOURCE]
    api.latency = LATE
    only = {"objects": ["things"]}
    backfill = world.api.backfill(DAG, *_range(first, 1, 3), dag_run_conf=only, max_active_runs=2)
    world.api.unpause(DAG)
    victim = until(lambda: _reading(world), "a window of which some pages are committed")
    running = {each["dag_run_id"] for each in _runs(world) if each["state"] == "running"}
    kill_task(world.api, DAG, victim, "things")
    api.latency = timedelta(0)
    assert victim in running
    assert len(running) == 2
    runs = _ended(world, 3)
    world.api.end_backfill(backfill)
    intervals = [(_instant(each["data_interval_start"]), _instant(each["data_interval_end"])) for each in runs]
    assert sorted(intervals) == [(first + day * DAY, first + (day + 1) * DAY) for day in (1, 2, 3)]
    states = {task.task_id: task for task in world.api.task_instances(DAG, victim)}
    assert (states["things"].state, states["things"].try_number) == ("success", 2)
    assert states["others"].state == "skipped"


def _filled(world: World) -> dict[str, str]:
    """Copy everything, and what has changed since; returns the cursors."""
    for conf in ({}, {"walk": "incremental"}):
        assert world.backfill(SOURCE, conf)[1] == "success"
    cursors = _cursors(world)
    assert set(cursors) == {
        f"extract_{SOURCE}_{name}_{walk}_cursor"
        for name in ("things", "others")
        for walk in ("backfill", "incremental")
    }
    return cursors


def _complete_costs_nothing(world: World, first: datetime) -> None:
    """A day that was read, and one that the backfill has read: Airflow makes a run for the second only."""
    count = world.filtered[SOURCE].count
    backfill = world.api.backfill(DAG, *_range(first, 3, 4))
    _ended(world, 4)
    world.api.end_backfill(backfill)
    assert world.filtered[SOURCE].count == count


def _read_again(world: World, first: datetime, keys: list[Any]) -> None:
    """A silent change is found by reprocessing its day, the next one by clearing: the run has its id still."""
    api = world.filtered[SOURCE]
    before = {each["dag_run_id"] for each in _runs(world)}
    api.update(*keys[:3], touch=False, note="silent")
    world.api.backfill(DAG, *_range(first, 2, 2), reprocess_behavior="completed")
    _ended(world, 4)
    assert _copy(world) == api.live()
    assert {each["dag_run_id"] for each in _runs(world)} == before
    (again,) = [each["dag_run_id"] for each in _runs(world) if _instant(each["data_interval_start"]) == first + 2 * DAY]
    api.update(*keys[3:5], touch=False, note="silent")
    world.api.clear(DAG, again)
    assert world.api.wait_for_run(DAG, again) == "success"
    assert _copy(world) == api.live()
    assert world.api.xcom(DAG, again, "things")["updated"] == 2


def test_a_scheduled_run_is_an_audit(world: World) -> None:
    """Switched on, the DAG has one run, of the last closed interval, and none for the days before. It reads its window
    though the copy is complete, and finds what changed silently within."""
    api, dag = world.filtered["audited"], "audited_backfill"
    days = of_days(api, 6, 30)
    _copied_before(world)
    silent = [days[3][0], days[4][1], days[5][2]]
    api.update(*silent, touch=False, note="silent")
    on = datetime.now(timezone.utc)
    world.api.unpause(dag)
    until(lambda: world.api.runs(dag), "a scheduled run")
    (made,) = world.api.runs(dag)[-1:]
    assert made["run_type"] == "scheduled"
    assert world.api.wait_for_run(dag, made["dag_run_id"]) == "success"
    end = _instant(made["data_interval_end"])
    assert end - _instant(made["data_interval_start"]) == DAY
    # Whoever switches it on just before midnight sees the next one as well.
    assert [each["dag_run_id"] for each in world.api.runs(dag) if _instant(each["data_interval_end"]) <= on] == [
        made["dag_run_id"]
    ]
    told = world.api.xcom(dag, made["dag_run_id"], "things")
    assert (told["window"].split("..")[1], told["updated"]) == (f"{end:%Y-%m-%dT%H:%M:%SZ}", 1)
    live, copied = api.live(), dict(world.ask("select key, data from audited.things"))
    assert {key for key in live if copied[key] != live[key]} == {str(key) for key in silent[:2]}


def _copied_before(world: World) -> None:
    """Everything is copied, and its backfill complete, before the DAG is switched on."""
    source, session = parse_source(filtered.sources()["audited"], "audited.yaml"), requests.Session()
    session.trust_env = False
    client = ApiClient(source, session, world.filtered["audited"].url)
    assert run(source, "things", postgres=connecting(world.store), client=client).complete


def _range(first: datetime, begin: int, end: int) -> tuple[str, str]:
    """From a day to a day, both of which are read."""
    return tuple((first + day * DAY).isoformat() for day in (begin, end))  # type: ignore[return-value]


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _runs(world: World) -> list[dict[str, Any]]:
    """The runs of backfills so far."""
    return [each for each in world.api.runs(DAG) if each["run_type"] == "backfill"]


def _ended(world: World, count: int) -> list[dict[str, Any]]:
    """The runs of all backfills, once they are so many and have succeeded."""

    def ended() -> list[dict[str, Any]]:
        runs = _runs(world)
        states = {each["state"] for each in runs}
        assert "failed" not in states
        return runs if len(runs) == count and states == {"success"} else []

    found: list[dict[str, Any]] = until(ended, f"{count} runs that succeed", seconds=200)
    return found


def _reading(world: World) -> str | None:
    """The run that has committed some pages of its window, and not all."""
    rows = world.ask(
        "select split_part(cause, '/', 2), count(*) from extract.ledger"
        " where source = %s and walk = 'window' and kind = 'page' group by 1 order by min(sequence)",
        SOURCE,
    )
    return next((str(name) for name, pages in rows if 2 <= pages < A_DAY / 10), None)


def _copy(world: World) -> dict[str, Any]:
    return dict(world.ask(f"select key, data from {SOURCE}.things"))


def _created(world: World) -> list[str]:
    """The records of which the outbox tells that they were created, each as often as it is told."""
    rows = world.ask("select key from extract.outbox where source = %s and type like '%%.created'", SOURCE)
    return sorted(key for (key,) in rows)


def _cursors(world: World) -> dict[str, str]:
    return {name: text for name, text in world.api.variables().items() if name.startswith(f"extract_{SOURCE}_")}
