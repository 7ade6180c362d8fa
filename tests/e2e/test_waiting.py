"""An API that wants a long pause in the middle of a walk: the task waits for it without a slot."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.e2e.conftest import PAGE, World
from tests.loopback import Asked, Fault, LoopbackApi

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG, BESIDE = "waiting_backfill", "beside"
PAUSE = 60
"""Seconds: long enough for another task to begin and end in it on a busy machine."""
LONGEST = 2
"""What the DAGs of this test set as `longest_wait`."""


def test_a_long_pause_frees_the_slot_and_the_walk_goes_on_at_the_same_page(world: World) -> None:
    """Deferred: another task runs in the pool's only slot, one of the same source waits, too, and nobody holds the
    object. Then the refused request goes out again, to the letter, and what is copied is the API."""
    api = world.apis["waiting"]
    records, asked_at = _fill(api, 6 * PAGE), _timed(api)
    api.fault = lambda number, asked: Fault(429, b"{}", {"Retry-After": str(PAUSE)}) if number == 3 else None
    world.api.create_pool("one_slot", 1)
    for dag in (DAG, BESIDE):
        world.api.wait_for_dag(dag)
        world.api.unpause(dag)
    run = world.api.trigger(DAG)
    _wait_for(world, DAG, run, {"things": "deferred"})
    beside = world.api.trigger(BESIDE)
    _wait_for(world, BESIDE, beside, {"work": "success", "others": "up_for_reschedule"})
    assert _states(world, DAG, run) == {"things": "deferred"}
    assert world.ask("select distinct runner from extract.fence where source = 'waiting'") == [(None,)]
    assert len(api.asked) == 3

    assert world.api.wait_for_run(DAG, run) == "success"
    assert world.copy("waiting") == records
    things = [asked for asked in api.asked if asked.path == "/keyed"]
    assert things[3] == things[2]
    assert "starting_after" in things[2].params
    assert asked_at[3] - asked_at[2] > PAUSE - 0.5
    (task,) = world.api.task_instances(DAG, run)
    assert task.try_number == 1
    assert world.api.xcom(DAG, run, "things")["complete"] is True
    assert world.api.wait_for_run(BESIDE, beside) == "success"
    assert world.ask("select count(*) from waiting.others") == [(len(records),)]


def _fill(api: LoopbackApi, count: int) -> dict[str, Any]:
    """Give an API so many records; returns them by key."""
    records = {f"k{number:06}": {"id": f"k{number:06}"} for number in range(count)}
    api.rows = [json.dumps(record).encode() for record in records.values()]
    return records


def _timed(api: LoopbackApi) -> list[float]:
    """When each request comes, on the monotonic clock."""
    times: list[float] = []

    def note(number: int, asked: Asked) -> None:
        times.append(time.monotonic())

    api.before = note
    return times


def _states(world: World, dag: str, run: str) -> dict[str, str | None]:
    return {task.task_id: task.state for task in world.api.task_instances(dag, run)}


def _wait_for(world: World, dag: str, run: str, states: dict[str, str]) -> None:
    until = time.monotonic() + 120
    while (found := _states(world, dag, run)) != states:
        if time.monotonic() > until:
            raise AssertionError(f"{found} instead of {states}")
        time.sleep(0.2)
