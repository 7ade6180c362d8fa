"""One runner per walk (law 12), with real processes: busy, retried, stopped, woken up, taken over, cut off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from airflow_extract_provider.extract.errors import ExtractError, FencedError, RequestRefusedError, WalkBusyError
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.testing.postgres import EmbeddedPostgres
from tests.crash.child import ENDED_BY_ERROR, FileCursor
from tests.crash.stage import Child, Stage, wait_until
from tests.loopback import Asked, Fault, LoopbackApi

SetStage = Callable[..., Stage]
SCOPE = Scope("shop", "keyed", "*")
SILENT = timedelta(seconds=1)


def a_live_holder(scene: Stage, cursor: Path | None = None) -> Child:
    """A process that has committed some pages and goes on, slowly."""
    scene.api.delay = 0.02
    child = scene.start("one", silent_after=SILENT.total_seconds(), idle_timeout=0.5, cursor=cursor, cursor_every=0.0)
    wait_until(lambda: scene.pages() >= 3)
    return child


def stop_between_pages(scene: Stage, child: Child) -> None:
    """Stop it while it waits for the API, with all that has arrived committed and, if there is a cursor, shown."""
    scene.api.delay = 2
    unshown = "select 1 from extract.ledger where sequence = (select max(sequence) from extract.ledger) and not shown"
    while True:
        child.stop()
        shown = child.cursor is None or scene.conn.execute(unshown).fetchone() is None
        if shown and scene.states() == ["idle"] and len(scene.api.asked) == scene.pages() + 1:
            break
        child.wake()
        time.sleep(0.02)
    scene.api.delay = 0


def take_over(scene: Stage, how: str) -> None:
    """Run the walk to its end in another run's name: told to, or as soon as the holder has been silent for long."""
    if how == "told to":
        scene.run("two", take_over=True)
        return

    def taken() -> bool:
        try:
            return scene.run("two", silent_after=SILENT).complete
        except WalkBusyError:
            return False

    wait_until(taken)


def check_woken_commits_nothing(scene: Stage, child: Child) -> None:
    """The woken process ends with FencedError; ledger, table and cursor are as before."""
    scene.check_exact()
    stood, shown = scene.store(), child.cursor_log()
    child.wake()
    code, said = child.finish()
    assert (code, said["error"]) == (ENDED_BY_ERROR, "FencedError")
    assert scene.store() == stood
    assert child.cursor_log() == shown


def test_a_live_holder_is_named(stage: SetStage) -> None:
    """A second run of the walk stops with WalkBusyError, names the holder, and has asked the API nothing."""
    scene = stage(400)
    child = a_live_holder(scene)
    stop_between_pages(scene, child)
    asked = len(scene.api.asked)
    with pytest.raises(WalkBusyError, match="the run called one") as caught:
        scene.run("two")
    assert (caught.value.source, caught.value.object) == ("shop", "keyed")
    assert len(scene.api.asked) == asked
    child.wake()
    assert child.finish()[0] == 0
    scene.check_exact()


def test_a_retry_takes_over_at_once(stage: SetStage) -> None:
    """The same runner again gets the walk without waiting, goes on where the ledger stands, and fences its earlier
    try, which may still be alive."""
    scene = stage(400)
    child = a_live_holder(scene)
    stop_between_pages(scene, child)
    expected, asked_before = scene.next_params(), len(scene.api.asked)
    assert scene.run("one", silent_after=timedelta(hours=1)).complete
    assert dict(scene.api.asked[asked_before].params) == expected
    check_woken_commits_nothing(scene, child)


@pytest.mark.parametrize("how", ["told to", "silent"])
def test_stopped_between_pages(stage: SetStage, how: str, tmp_path: Path) -> None:
    """A holder stopped between two pages and woken after a takeover commits nothing, writes no cursor, is fenced."""
    scene, cursor = stage(400), tmp_path / "cursor"
    child = a_live_holder(scene, cursor)
    stop_between_pages(scene, child)
    take_over(scene, how)
    check_woken_commits_nothing(scene, child)


@pytest.mark.parametrize("how", ["told to", "silent"])
def test_stopped_in_mid_transaction(stage: SetStage, how: str, tmp_path: Path) -> None:
    """A holder stopped in the middle of its transaction is cut off by Postgres, which frees its locks; woken after a
    takeover it commits nothing, writes no cursor, and is fenced."""
    scene, cursor = stage(100), tmp_path / "cursor"
    with scene.trap(scene.keys[45]):
        child = scene.start("one", idle_timeout=1.0, cursor=cursor, cursor_every=0.0, silent_after=1.5)
        wait_until(scene.waiting)
        child.stop()
    assert scene.pages() > 0
    take_over(scene, how)
    check_woken_commits_nothing(scene, child)


def test_cut_off_without_a_takeover(stage: SetStage) -> None:
    """Woken after Postgres has ended its transaction, but with the walk still its own: an error to be tried again."""
    scene = stage(100)
    with scene.trap(scene.keys[45]):
        child = scene.start("one", idle_timeout=1.0)
        wait_until(scene.waiting)
        child.stop()
    wait_until(lambda: not scene.states())
    pages, expected, asked_before = scene.pages(), scene.next_params(), len(scene.api.asked)
    child.wake()
    code, said = child.finish()
    assert (code, said["error"]) == (ENDED_BY_ERROR, "StoreUnavailableError")
    assert scene.pages() == pages
    scene.run("one")
    assert expected in [dict(asked.params) for asked in scene.api.asked[asked_before:]]
    scene.check_exact()


def test_two_processes_want_a_silent_holders_walk(stage: SetStage) -> None:
    """Of two that find the holder silent at once, one gets the walk and the other is told who has it now."""
    scene = stage(60)
    scene.conn.execute(
        "insert into extract.fence (source, object, walk, number, runner, label, heartbeat)"
        " values ('shop', 'keyed', '*', 7, 'one', 'the run called one', now() - interval '1 hour')"
    )
    one_has_ended = threading.Event()

    def before(number: int, asked: Asked) -> None:
        one_has_ended.wait(20)

    scene.api.before = before
    takers = [scene.start(runner) for runner in ("two", "three")]
    wait_until(lambda: not all(child.running for child in takers))
    one_has_ended.set()
    ends = {child.runner: child.finish() for child in takers}
    winner, loser = sorted(ends, key=lambda runner: ends[runner][0])
    assert ends[winner][0] == 0
    assert (ends[loser][0], ends[loser][1]["error"]) == (ENDED_BY_ERROR, "WalkBusyError")
    assert f"the run called {winner}" in ends[loser][1]["message"]
    assert scene.conn.execute("select number, runner from extract.fence").fetchone() == (8, None)
    scene.check_exact()


@pytest.mark.parametrize("ends", ["complete", "stopped", "with an error"])
def test_a_released_fence_is_free(stage: SetStage, ends: str) -> None:
    """However a run ends, as long as it ends by itself, the next run gets the walk at once."""
    scene = stage(100)
    if ends == "with an error":
        scene.api.fault = lambda number, asked: Fault(404) if number == 1 else None
        with pytest.raises(RequestRefusedError):
            scene.run("one")
    else:
        scene.run("one", run_for=timedelta(0) if ends == "stopped" else None)
    assert scene.conn.execute("select runner, label from extract.fence").fetchall() == [(None, None)]
    assert scene.run("two").complete
    scene.check_exact()


def test_a_run_that_has_lost_its_walk_leaves_the_cursor(stage: SetStage, tmp_path: Path) -> None:
    """Taken over after its last commit and told to stop, a run does not put its cursor over the new holder's."""
    scene, stop, ended = stage(100), threading.Event(), threading.Event()
    cursor, log = FileCursor(tmp_path / "cursor", "one"), tmp_path / "cursor.log"

    def before(number: int, asked: Asked) -> None:
        if number == 5:
            wait_until(lambda: scene.pages() == 4)
            with connecting(scene.dsn)() as conn:
                acquire(conn, "extract", SCOPE, "two", "two", silent_after=SILENT, take_over=True)
            stop.set()
            ended.wait(20)

    scene.api.before = before
    with pytest.raises(FencedError):
        scene.run("one", cursor=cursor, stop=stop)
    ended.set()
    assert log.read_text() == "one\n"  # the one at its beginning


# Postgres goes away -------------------------------------------------------------------------------------------------


def test_connection_ended_by_the_server(stage: SetStage) -> None:
    """A connection that is terminated in mid-run is a named error; the retry is exact and reads no page again."""
    scene = stage(400)
    child = a_live_holder(scene)
    terminate = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
    scene.conn.execute(f"{terminate} and pid <> pg_backend_pid() and backend_type = 'client backend'")
    code, said = child.finish()
    assert (code, said["error"]) == (ENDED_BY_ERROR, "StoreUnavailableError")
    expected, asked_before = scene.next_params(), len(scene.api.asked)
    assert scene.run("one").complete
    assert dict(scene.api.asked[asked_before].params) == expected
    scene.check_exact()


def test_server_killed(own_server: EmbeddedPostgres, api: LoopbackApi) -> None:
    """The server dies by kill -9 in mid-run: a named error; once it is back, the retry is exact and reads no page
    again, and while it is away a run says that it cannot be reached."""
    dsn = own_server.create_database("killed")
    with psycopg.connect(dsn, autocommit=True) as conn:
        scene = Stage(api, dsn, conn, 400)
        child = a_live_holder(scene)
    try:
        own_server.kill()
        code, said = child.finish()
        assert (code, said["error"]) == (ENDED_BY_ERROR, "StoreUnavailableError")
        with pytest.raises(ExtractError) as caught:
            scene.run("one")
        assert type(caught.value).__name__ == "StoreUnavailableError"
        own_server.start()
        with psycopg.connect(dsn, autocommit=True) as conn:
            scene.conn = conn
            expected, asked_before = scene.next_params(), len(api.asked)
            assert scene.run("one").complete
            assert dict(api.asked[asked_before].params) == expected
            scene.check_exact()
    finally:
        child.clear_away()
