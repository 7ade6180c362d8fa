"""A scheduled sync over rounds of changes: exact after each, though a worker is killed; no long walk is in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.e2e.conftest import World
from tests.e2e.filtered import kill_task, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "rounds"
DAG = f"{SOURCE}_sync"


@pytest.fixture
def switched_on(world: World) -> Iterator[World]:
    """The sync runs by its schedule until the test is over."""
    api = world.filtered[SOURCE]
    api.clock.advance(datetime.now(timezone.utc) - api.clock.now)
    api.insert(120)
    api.clock.advance(5)
    api.latency = timedelta(seconds=0.15)
    world.api.unpause(DAG)
    yield world
    world.api.pause(DAG)


def test_rounds_of_changes(switched_on: World) -> None:
    """The first run copies the one object and begins the long one, which the second run goes on with. Then inserts,
    updates, deletes and silent changes, round by round: after the next run the copy is the API, and each change is told
    once."""
    world, api = switched_on, switched_on.filtered[SOURCE]
    _long_walk(world)
    told: Counter[tuple[str, str]] = Counter()
    for number in range(3):
        ((before,),) = world.ask("select max(sequence) from extract.ledger")
        # Of six pages, in a slice of six seconds, the first is to be seen in time.
        api.latency = timedelta(seconds=1 if number == 1 else 0)
        told += _changes(world, more=50 if number == 1 else 3)
        changed = datetime.now(timezone.utc)
        if number == 1:
            _killed_in_between(world, before)
        run = _next_run(world, changed)
        for name in ("things", "long"):
            assert _copy(world, name) == api.live(), f"{name} after {run}"
        assert _events(world) == told


def _long_walk(world: World) -> None:
    """What does not end within its slice is left to the next run; the other object has all its walks meanwhile."""
    api = world.filtered[SOURCE]
    first = _next_run(world, datetime.now(timezone.utc) - timedelta(minutes=10))
    # Before anything else: the second run, which may come soon, goes on with it.
    begun = len(_copy(world, "long"))
    assert _copy(world, "things") == api.live()
    walked = {name: state for name, state in _states(world, first).items() if name.startswith("things.")}
    assert set(walked.values()) == {"success"}
    assert world.api.xcom(DAG, first, "long.backfill")["complete"] is False
    assert _states(world, first)["long.incremental"] == "skipped"
    assert 0 < begun < len(api.live())
    until(lambda: _copy(world, "long") == api.live(), "the end of the long walk")
    asked = [each.params.get("cursor") for each in api.requests if each.path == "/long"]
    # A slice's last request may still be under way when it ends; then the next slice sends it again.
    assert len(asked[:60]) <= len(set(asked[:60])) + 2


def _changes(world: World, more: int) -> Counter[tuple[str, str]]:
    """A round of them, of which one is silent, and found by the sweep; returns the events that there must be, by key
    and type."""
    api = world.filtered[SOURCE]
    deleted, updated, silent = api.ids[:2], api.ids[2:5], api.ids[5]
    api.delete(*deleted)
    api.update(*updated)
    api.update(silent, touch=False, note="silent")
    inserted = api.insert(more)
    api.clock.advance(5)
    names = {"deleted": deleted, "created": inserted}
    told = Counter((str(key), f"{SOURCE}.things.{name}") for name, keys in names.items() for key in keys)
    return told + Counter((str(key), "value.changed") for key in (*updated, silent))


def _killed_in_between(world: World, before: int) -> None:
    """The process that brings the changes ends after its first page, by kill -9."""
    question = (
        "select split_part(cause, '/', 2) from extract.ledger where source = %s and object = 'things'"
        " and walk = 'incremental' and (counts ->> 'created')::int > 0 and sequence > %s"
    )
    ((run,), *_) = until(lambda: world.ask(question, SOURCE, before), "a page of the changes")
    # The page after the next does not come before it is killed, however long Airflow takes to say where it runs.
    world.filtered[SOURCE].latency = timedelta(seconds=20)
    kill_task(world.api, DAG, run, "things.incremental")
    world.filtered[SOURCE].latency = timedelta(0)
    assert world.api.wait_for_run(DAG, run) == "success"
    tries = {task.task_id: task.try_number for task in world.api.task_instances(DAG, run)}
    assert tries["things.incremental"] == 2


def _next_run(world: World, after: datetime) -> str:
    """The first scheduled run that began after this instant, once it has succeeded."""

    def ended() -> dict[str, Any] | None:
        runs = [each for each in reversed(world.api.runs(DAG)) if each["start_date"] is not None]
        later = [each for each in runs if datetime.fromisoformat(each["start_date"]) > after]
        assert {each["run_type"] for each in later} <= {"scheduled"}
        assert "failed" not in {each["state"] for each in later}
        return next((each for each in later if each["state"] == "success"), None)

    return str(until(ended, "a run of the sync")["dag_run_id"])


def _states(world: World, run: str) -> dict[str, str | None]:
    return {task.task_id: task.state for task in world.api.task_instances(DAG, run)}


def _copy(world: World, name: str) -> dict[str, Any]:
    return dict(world.ask(f"select key, data from {SOURCE}.{name} where deleted_at is null"))


def _events(world: World) -> Counter[tuple[str, str]]:
    return Counter(world.ask("select key, type from extract.outbox where source = %s", SOURCE))
