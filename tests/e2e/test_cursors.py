"""Cursors by command, in a running Airflow: its own REST API, its own logins, the same settings as its tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.airflow_stack import AirflowStack
from tests.e2e.conftest import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "cursors"


def _command(airflow: AirflowStack, *arguments: str) -> str:
    """Run `airflow extract cursors ...`; the address is that of Airflow's own settings."""
    return airflow.command("extract", "cursors", *arguments)


def test_a_cursor_is_shown_edited_and_reset(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the walk wrote is shown and agrees; an edit is followed by the next run; after a reset it starts over."""
    login = {"USERNAME": world.airflow.username, "PASSWORD": world.airflow.password}
    for name, value in login.items():
        monkeypatch.setitem(world.airflow.environment, f"AIRFLOW_EXTRACT_API_{name}", value)
    world.apis[SOURCE].rows = [b'{"id": "r%03d"}' % number for number in range(180)]
    run, state = world.backfill(SOURCE)
    assert state == "success"
    told = _command(world.airflow, "list", SOURCE)
    assert f"{SOURCE}/things   backfill   4 pages, 180 records   complete" in told
    assert "the Variable agrees" in told
    ((text,),) = world.ask(
        "select (jsonb_build_object('sequence', sequence) || position)::text from extract.ledger"
        " where source = %s and walk = 'backfill' and (position ->> 'pages')::int = 2",
        SOURCE,
    )
    sources = world.airflow.environment["EXTRACT_SOURCES"]
    told = _command(world.airflow, "set", SOURCE, "things", "backfill", "--text", text, "--sources", sources)
    assert "The next run follows the edited Variable" in told
    assert json.loads(world.api.variable(world.cursor(SOURCE)) or "null") == json.loads(text)
    assert "EDITED" in _command(world.airflow, "list", SOURCE)
    asked = len(world.apis[SOURCE].asked)
    run, state = world.backfill(SOURCE)
    assert state == "success"
    assert "follows the edited Variable" in world.log(SOURCE, run)
    assert 0 < len(world.apis[SOURCE].asked) - asked < 4
    told = _command(world.airflow, "reset", SOURCE, "things", "backfill", "--yes", f"{SOURCE}/things")
    assert "the cursor is deleted" in told
    assert world.api.variable(world.cursor(SOURCE)) is None
    run, state = world.backfill(SOURCE)
    assert state == "success"
    assert "starts over: the Variable" in world.log(SOURCE, run)
    summary: dict[str, Any] = world.api.xcom(f"{SOURCE}_backfill", run, world.task(SOURCE, run))
    assert (summary["records"], summary["created"], summary["unchanged"]) == (180, 0, 180)
