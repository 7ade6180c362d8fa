"""Webhooks from the POST to the row and its event, in a running Airflow, whatever starts the run; a run that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.e2e.conftest import World
from tests.e2e.filtered import kill_task, until
from tests.e2e.hooked import SWEEP, Hooked

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

COUNT = 5


@pytest.fixture
def timed(world: World) -> Iterator[Hooked]:
    """The sources whose runs are timed. Other tests want an Airflow at rest."""
    world.hooked.begin("watched", "sensed", "swept")
    yield world.hooked
    for source in ("watched", "sensed", "swept"):
        world.api.pause(f"{source}_webhooks")


def test_how_long_it_takes(world: World, timed: Hooked, measured: Callable[[str], None]) -> None:
    """By the asset's watcher, by the sensor, and by the clock alone, where nobody hears of a webhook."""
    hooked = timed
    measured("from the POST of a webhook to its row and its event, in a running Airflow:")
    for source in ("watched", "sensed", "swept"):
        measured(f"  {hooked.measured(source, COUNT)}")
    measured(f"  (swept: every {SWEEP} s)")
    for source in ("watched", "sensed", "swept"):
        events = hooked.ask("select key from extract.outbox where source = %s", source)
        assert len(events) == COUNT
        assert hooked.ask("select count(*) from extract.inbox where source = %s and done_at is null", source) == [(0,)]
    kinds = {run["run_type"] for run in world.api.runs("watched_webhooks")}
    assert "asset_triggered" in kinds
    assert {run["run_type"] for run in world.api.runs("swept_webhooks")} == {"scheduled"}


@pytest.fixture
def failing(world: World) -> Any:
    """The source whose runs fail."""
    world.hooked.begin("failing")
    yield world.hooked
    world.api.pause("failing_webhooks")


def test_a_run_that_failed_does_not_lose_its_event(world: World, failing: Any) -> None:
    """The asset event that started it is not delivered again: the inbox holds what it has left, and a later run, which
    nobody has asked for, applies it, once. First the task is killed before it has committed anything; then the API
    refuses to be read, after the webhook was taken out of the inbox."""
    body = failing.change("failing", 3, 77)
    with psycopg.connect(world.store) as other:
        # The task stops at this row.
        other.execute("select from failing.things where key = '3' for update")
        failing.post("failing", body)
        run = until(lambda: _waiting_run(world), "a run that waits for the row")
        kill_task(world.api, "failing_webhooks", run, "apply")
        assert world.api.wait_for_run("failing_webhooks", run) == "failed"
        assert not failing.is_applied("failing", 3, 77)
    until(lambda: failing.is_applied("failing", 3, 77), "a later run")
    assert failing.ask("select count(*) from extract.outbox where source = 'failing' and key = '3'") == [(1,)]

    failing.rest("failing", 0)
    failed = _failed(world)
    api = failing.apis["failing"]
    failing.change("failing", 4, 88)
    api.fault(api.count + 1, "422")
    failing.post("failing", b'{"type": "thing.thin", "data": {"id": 4}}')
    until(lambda: failing.is_applied("failing", 4, 88), "a run after the one that failed")
    assert _failed(world) == failed + 1
    assert failing.ask("select count(*) from extract.outbox where source = 'failing' and key = '4'") == [(1,)]
    assert {run["run_type"] for run in world.api.runs("failing_webhooks")} <= {"scheduled", "asset_triggered"}


def _failed(world: World) -> int:
    return sum(run["state"] == "failed" for run in world.api.runs("failing_webhooks"))


def _waiting_run(world: World) -> str | None:
    """The run whose task waits for a row."""
    waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    if not world.ask(waits):
        return None
    running = [run["dag_run_id"] for run in world.api.runs("failing_webhooks") if run["state"] == "running"]
    return str(running[0]) if running else None
