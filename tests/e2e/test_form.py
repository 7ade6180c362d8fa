"""The form of the backfill DAG, sent through the REST API: what each field does, and how what cannot be is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from demo.airflow_api import AirflowApiError
from tests.e2e.conftest import World
from tests.e2e.filtered import DAY, of_days, wait_for_states

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "formed"
DAG = f"{SOURCE}_backfill"
THINGS: dict[str, Any] = {"objects": ["things"]}


def test_each_field_of_the_form(world: World) -> None:
    """From an untouched store on: a dry run, a window, smaller pages of one object, then each of the walks, starting
    over and taking over. What it does is seen at the API and in the store."""
    api = world.filtered[SOURCE]
    days = of_days(api, 6, 12)

    run, count = _run(world, {"dry_run": True}), api.count
    assert sorted(asked.path for asked in api.requests) == ["/others", "/things"]
    assert "dry run: nothing was stored" in "\n".join(world.api.messages(DAG, run, "things"))
    assert world.api.xcom(DAG, run, "things")["dry_run"]
    assert world.ask("select count(*) from extract.ledger where source = %s", SOURCE) == [(0,)]
    assert (_copy(world), _cursors(world)) == ({}, {})

    begin = api.clock.now.replace(hour=0, minute=0, second=0, microsecond=0) - 5 * DAY
    bounds = {"window_from": begin.isoformat(), "window_to": (begin + 2 * DAY).isoformat()}
    run = _run(world, {"walk": "window", **bounds})
    live = api.live()
    assert _copy(world) == {str(key): live[str(key)] for day in days[1:3] for key in day}
    assert _cursors(world) == {}
    assert _state(world, run, "others") == "skipped"
    assert {asked.path for asked in api.requests[count:]} == {"/things"}

    count = api.count
    run = _run(world, {**THINGS, "page_size": 4})
    assert {(asked.path, asked.params["limit"]) for asked in api.requests[count:]} == {("/things", "4")}
    assert api.count - count >= 18
    assert _copy(world) == api.live()
    assert world.ask(f"select count(*) from {SOURCE}.others") == [(0,)]
    assert set(_cursors(world)) == {"backfill"}

    _each_walk(world)
    _starting_and_taking_over(world)


def _each_walk(world: World) -> None:
    """What has changed; a sweep that may not delete so much, and then may; what was noted."""
    api = world.filtered[SOURCE]
    api.update(*api.ids[:3])
    api.insert(2)
    api.clock.advance(5)
    run = _run(world, {**THINGS, "walk": "incremental"})
    told = world.api.xcom(DAG, run, "things")
    assert (told["created"], told["updated"], _copy(world)) == (2, 3, api.live())
    assert set(_cursors(world)) == {"backfill", "incremental"}

    api.delete(*api.ids[:4])
    run = _run(world, {**THINGS, "walk": "rebackfill", "max_deletes": 3}, state="failed")
    assert "TooManyDeletesError" in world.api.log(DAG, run, "things")
    assert len(_copy(world)) == len(api.live()) + 4
    run = _run(world, {**THINGS, "walk": "rebackfill", "max_deletes": 4})
    assert _copy(world) == api.live()
    assert world.api.xcom(DAG, run, "things")["sweep"]["deleted"] == 4

    key, count = api.ids[0], api.count
    api.update(key, touch=False, note="silent")
    world.ask(
        "insert into extract.refetch (source, object, key, reason) values (%s, 'things', %s, 'test')",
        SOURCE,
        str(key),
        rows=False,
    )
    _run(world, {**THINGS, "walk": "by_key"})
    assert [asked.path for asked in api.requests[count:]] == [f"/things/{key}"]
    assert _copy(world) == api.live()


def _starting_and_taking_over(world: World) -> None:
    """A complete backfill asks for nothing, and for everything with the source's name as `reset`. A run that meets
    another one waits, or takes its place."""
    api, cursors = world.filtered[SOURCE], _cursors(world)
    count = api.count
    _run(world, THINGS)
    assert api.count == count
    run = _run(world, {**THINGS, "reset": SOURCE})
    told = world.api.xcom(DAG, run, "things")
    assert (told["records"], told["unchanged"]) == (len(api.live()), len(api.live()))
    assert "cursor" not in api.requests[count].params
    assert _cursors(world)["incremental"] == cursors["incremental"]

    held = "update extract.fence set runner = 'other', label = 'the other run', heartbeat = now()"
    world.ask(f"{held} where source = %s and object = 'things'", SOURCE, rows=False)
    waiting = world.api.trigger(DAG, THINGS)
    wait_for_states(world.api, DAG, waiting, {"things": "up_for_reschedule"})
    assert "the other run" in world.api.log(DAG, waiting, "things")
    run = _run(world, {**THINGS, "reset": SOURCE, "take_over": True})
    assert world.api.xcom(DAG, run, "things")["records"] == len(api.live())
    assert world.ask("select runner from extract.fence where source = %s and object = 'things'", SOURCE) == [(None,)]
    assert world.api.wait_for_run(DAG, waiting) == "success"


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"objects": ["nothings"]}, "'nothings' is not one of ['things', 'others']"),
        ({"objects": []}, "[] should be non-empty"),
        ({"walk": "sideways"}, "'sideways' is not one of ['backfill', 'incremental'"),
        ({"reset": "yes"}, "To read from the first page again, type"),
        ({"page_size": 1}, "1 is less than the minimum of 2"),
        ({"max_deletes": -1}, "-1 is less than the minimum of 0"),
        ({"dry_run": "perhaps"}, "'perhaps' is not of type 'boolean'"),
        ({"window_from": "2026-03-01T00:00:00"}, "an instant with its zone, such as 2026-03-01T00:00:00Z"),
        ({"window_to": "2026-03-01"}, "an instant with its zone, such as 2026-03-01T00:00:00Z"),
    ],
)
def test_a_form_that_cannot_be_is_refused(world: World, conf: dict[str, Any], words: str) -> None:
    """Status 400 with the field and the reason, before anything runs."""
    before = len(world.api.runs(DAG))
    with pytest.raises(AirflowApiError) as refused:
        world.api.trigger(DAG, conf)
    # A long text of the schema is printed in pieces, one a line.
    told = re.sub(r"'\\n +'", "", str(refused.value))
    assert ": 400 " in told
    assert f"Invalid input for param {next(iter(conf))}: " in told
    assert words in told
    assert len(world.api.runs(DAG)) == before


def test_a_field_that_the_form_does_not_have(world: World) -> None:
    """Airflow takes it: the tasks refuse it, each before it asks for anything. A misspelt dry run is no backfill."""
    count = world.filtered[SOURCE].count
    run = _run(world, {"dryrun": True}, state="failed")
    assert {task.state for task in world.api.task_instances(DAG, run)} == {"failed"}
    (told,) = world.api.complaints(DAG, run, "things")[:1]
    assert "SourceError: the run was asked for what its form does not have: 'dryrun'." in told
    assert "objects, walk, window_from" in told
    assert world.filtered[SOURCE].count == count


def _run(world: World, conf: dict[str, Any], *, state: str = "success") -> str:
    """Send a form and wait for the run's end; returns its id."""
    run = world.api.trigger(DAG, conf)
    assert world.api.wait_for_run(DAG, run) == state
    return run


def _state(world: World, run: str, task: str) -> str | None:
    (found,) = [each.state for each in world.api.task_instances(DAG, run) if each.task_id == task]
    return found


def _copy(world: World) -> dict[str, Any]:
    return dict(world.ask(f"select key, data from {SOURCE}.things where deleted_at is null"))


def _cursors(world: World) -> dict[str, Any]:
    """The Variables that show where the walks of the things stand, by walk; without the sweep's, which it may have."""
    names = {walk: f"extract_{SOURCE}_things_{walk}_cursor" for walk in ("backfill", "incremental")}
    found = {walk: world.api.variable(name) for walk, name in names.items()}
    return {walk: json.loads(text) for walk, text in found.items() if text is not None}
