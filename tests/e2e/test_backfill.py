"""The backfill in a running Airflow: triggered by REST as from the UI, killed, edited."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import PAGE, SECRET, World
from tests.loopback import Fault, LoopbackApi

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def _fill(api: LoopbackApi, count: int) -> dict[str, Any]:
    """Give an API so many records; returns them by key."""
    records = [{"id": f"k{number:06}", "name": f"name {number}"} for number in range(count)]
    api.rows = [json.dumps(record).encode() for record in records]
    return {str(record["id"]): record for record in records}


def test_a_backfill_copies_every_record_and_says_how(world: World) -> None:
    """Rows equal the API; the log reads like a report, XCom holds the summary, a Variable shows the cursor."""
    records = _fill(world.apis["plain"], 1000)
    run, state = world.backfill("plain", {"objects": ["things"]})
    assert state == "success"
    assert world.copy("plain") == records
    summary = world.api.xcom("plain_backfill", run, world.task("plain", run))
    assert summary["complete"] is True
    assert (summary["created"], summary["pages"]) == (1000, summary["requests"])
    log = world.log("plain", run)
    assert re.search(r"plain/things backfill   page \d+ · [\d,]+ records · .* records/s · after k\d+", log)
    assert "plain/things backfill   done: " in log
    cursor = json.loads(world.api.variable(world.cursor("plain")) or "null")
    assert cursor["complete"] is True
    assert cursor["place"]["after"] == "k000999"
    assert world.apis["plain"].asked[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in log + json.dumps(summary) + json.dumps(cursor)


def test_a_killed_task_goes_on_behind_its_last_committed_page(world: World) -> None:
    """kill -9 of the task's process; Airflow's retry reads no page again that was committed, and the table is equal."""
    api = world.apis["killed"]
    records = _fill(api, 40 * PAGE)
    api.delay = 0.25
    run = world.api.trigger("killed_backfill", {})
    victim = _task_process(world, "killed", pages=8)
    os.kill(victim, signal.SIGKILL)
    _wait_until_gone(victim)
    (committed,) = world.ask(
        "select position -> 'place' -> 'behind' ->> -1 from extract.ledger where source = 'killed'"
        " order by sequence desc limit 1"
    )
    before, api.delay = len(api.asked), 0.0
    assert world.api.wait_for_run("killed_backfill", run, 300) == "success"
    assert world.copy("killed") == records
    again = [asked.params.get("starting_after") for asked in api.asked[before:]]
    assert again[0] == committed[0]
    assert min(str(after) for after in again) == committed[0]
    (task,) = world.api.task_instances("killed_backfill", run)
    assert task.try_number == 2


def test_a_long_walk_works_in_slices(world: World) -> None:
    """Slices of a second: the task gives its slot back between them, uses up no try, and no page is read twice."""
    api = world.apis["sliced"]
    records = _fill(api, 15 * PAGE)
    api.delay = 0.2
    run, state = world.backfill("sliced")
    assert (state, world.copy("sliced")) == ("success", records)
    asked = [request.params.get("starting_after") for request in api.asked]
    # A slice's last request may still be under way when it ends; then the next slice sends it again.
    slices = world.log("sliced", run).count("sliced/things backfill   paused")
    assert slices >= 2
    assert len(asked) <= len(set(asked)) + slices
    (task,) = world.api.task_instances("sliced_backfill", run)
    assert task.try_number == 1
    assert world.api.xcom("sliced_backfill", run, task.task_id)["complete"] is True


def test_an_error_is_told_in_a_few_lines_and_not_retried(world: World) -> None:
    """A refused login: the named error with its remedy, no traceback, no secret, no second try."""
    world.apis["login"].fault = lambda number, asked: Fault(401, f'{{"error": "bad key {SECRET}"}}'.encode())
    run, state = world.backfill("login")
    assert state == "failed"
    log = world.log("login", run)
    assert "LoginError: login/things page 1: the API does not accept the login (status 401): " in log
    assert "docs/errors.md#login" in log
    assert "Traceback" not in log
    assert SECRET not in log
    (task,) = world.api.task_instances("login_backfill", run)
    assert task.try_number == 1
    assert len(world.apis["login"].asked) == 1


def test_an_edited_cursor_is_followed_and_a_deleted_one_starts_over(world: World) -> None:
    """Put back to an older value: read again from there. Deleted: from the beginning. Ahead: refused."""
    api = world.apis["edited"]
    records = _fill(api, 6 * PAGE)
    assert world.backfill("edited")[1] == "success"
    key = world.cursor("edited")
    ((sequence, position),) = world.ask(
        "select sequence, position from extract.ledger where source = 'edited' and kind = 'page'"
        " order by sequence limit 1"
    )
    world.api.set_variable(key, json.dumps({"sequence": sequence, **position}))
    api.asked.clear()
    run, state = world.backfill("edited")
    assert (state, world.copy("edited")) == ("success", records)
    assert "follows the edited Variable" in world.log("edited", run)
    assert api.asked[0].params["starting_after"] == position["place"]["behind"][-1]
    world.api.delete_variable(key)
    api.asked.clear()
    assert world.backfill("edited")[1] == "success"
    assert "starting_after" not in api.asked[0].params
    cursor = json.loads(world.api.variable(key) or "null")
    cursor["place"]["after"] = "k999999"
    world.api.set_variable(key, json.dumps(cursor))
    api.asked.clear()
    run, state = world.backfill("edited")
    assert (state, api.asked) == ("failed", [])
    assert "CursorAheadError" in world.log("edited", run)


def _task_process(world: World, source: str, pages: int) -> int:
    """The process that copies a source, once it has committed so many pages."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ((count,),) = world.ask("select count(*) from extract.ledger where source = %s and kind = 'page'", source)
        if count >= pages:
            rows = world.ask(
                "select client_port from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            # It has a connection for the walk, and one for the quota. The receiver and the triggerer have some too.
            found = {pid for pid in _holders({port for (port,) in rows}) if not _lives_on(pid)}
            if len(found) == 1:
                return found.pop()
        time.sleep(0.1)
    raise AssertionError(f"no {pages} pages of {source} were committed")


def _lives_on(pid: int) -> bool:
    """Whether it is one of the world's own processes, which other tests need."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return b"receiver" in command or b"triggerer" in command


def _holders(ports: set[int]) -> set[int]:
    """The processes that hold loopback connections' own ends."""
    sockets, found = set(), set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) in ports:
            sockets.add(f"socket:[{fields[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) in sockets:
                found.add(int(link.parts[2]))
    return found


def _wait_until_gone(pid: int) -> None:
    """Until a process that somebody else collects has ended."""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
