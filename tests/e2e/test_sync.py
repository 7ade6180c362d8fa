"""The sync in a running Airflow: started by its schedule, then as from the UI; edited; while somebody backfills."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.conftest import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG = "synced_sync"
CURSOR = "extract_synced_things_incremental_cursor"


def test_a_sync_backfills_hands_over_and_brings_exactly_the_changes(world: World) -> None:
    """The scheduled run copies everything; the next one brings what has changed; an edited instant is gone back to; an
    object that another run holds is left alone."""
    api = world.changing
    world.ask("create table public.heard (n bigint generated always as identity, key text, type text)", rows=False)
    world.api.unpause("heard")
    api.insert(35)
    api.clock.advance(5)
    world.api.unpause(DAG)
    run = _first_run(world)
    assert run.startswith("scheduled__")
    assert world.api.wait_for_run(DAG, run) == "success"
    assert _states(world, run) == dict.fromkeys(("things.backfill", "things.incremental", "things.by_key"), "success")
    assert world.copy("synced") == api.live()
    assert world.api.xcom(DAG, run, "things.backfill")["created"] == 35
    handed_over = _cursor(world)["closed"]

    api.update(3, 7)
    api.insert(2)
    api.clock.advance(5)
    run, brought = _sync(world)
    assert world.copy("synced") == api.live()
    assert (brought["created"], brought["updated"], brought["complete"]) == (2, 2, True)
    assert _cursor(world)["closed"] == brought["cursor_after"]["closed"] > handed_over
    assert world.api.xcom(DAG, run, "things.backfill")["requests"] == 0
    assert brought["events"] == 4
    assert _heard(world, 4) == sorted(
        [("3", "value.changed"), ("7", "value.changed"), *((str(key), "synced.things.created") for key in api.ids[-2:])]
    )

    api.clock.advance(5)
    assert _sync(world)[1]["records"] == 0
    world.api.set_variable(CURSOR, json.dumps({**_cursor(world), "closed": handed_over}))
    run, again = _sync(world)
    assert "follows the edited Variable" in world.api.log(DAG, run, "things.incremental")
    assert (again["records"], again["created"], again["updated"]) == (brought["records"], 0, 0)

    world.ask(
        "update extract.fence set runner = 'other', label = 'the other run', heartbeat = now()"
        " where source = 'synced' returning 1"
    )
    run = world.api.trigger(DAG)
    assert world.api.wait_for_run(DAG, run) == "success"
    assert set(_states(world, run).values()) == {"skipped"}
    assert "held by the other run" in world.api.log(DAG, run, "things.backfill")


def _sync(world: World) -> tuple[str, Mapping[str, Any]]:
    """Trigger the sync; returns the run's id and what `incremental` tells."""
    run = world.api.trigger(DAG)
    assert world.api.wait_for_run(DAG, run) == "success"
    found: Mapping[str, Any] = world.api.xcom(DAG, run, "things.incremental")
    return run, found


def _heard(world: World, count: int) -> list[tuple[str, str]]:
    """What the DAG scheduled on the object's asset has been told, once it is so much. The first backfill was silent."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        found = world.ask("select key, type from public.heard")
        if len(found) >= count:
            return sorted(found)
        time.sleep(0.5)
    raise AssertionError(f"only {found} was heard")


def _states(world: World, run: str) -> dict[str, str | None]:
    """The states of a run's tasks."""
    return {task.task_id: task.state for task in world.api.task_instances(DAG, run)}


def _cursor(world: World) -> dict[str, Any]:
    """The incremental walk's cursor as people see it."""
    found: dict[str, Any] = json.loads(world.api.variable(CURSOR) or "null")
    return found


def _first_run(world: World) -> str:
    """The id of the run that the scheduler has made, as the ledger knows it."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if rows := world.ask("select cause from extract.ledger where source = 'synced' order by sequence limit 1"):
            return str(rows[0][0]).split("/")[1]
        time.sleep(0.5)
    raise AssertionError("the scheduler has made no run")
