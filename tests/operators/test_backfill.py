"""The backfill operator in Airflow's own task runner, with a real API and a real Postgres."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import TaskInstanceState

from airflow_extract_provider.extract.api import client
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    ConnectionMissingError,
    ExtractError,
    FencedError,
    SourceError,
    TryAgain,
    WrongAnswerError,
)
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.failing import RetryWhatMayPass, TaskFailed
from airflow_extract_provider.testing.login import LoginServer
from tests.extract.scene import KEYED
from tests.loopback import Asked, Fault, LoopbackApi
from tests.operators.stage import Stage
from tests.taskrun import Outcome, run_task

SECRET = "marked-secret-4711"
CURSOR = "extract_shop_things_backfill_cursor"
SPEC: Mapping[str, Any] = {"source": "shop", "connection": "shop_api", "objects": {"things": KEYED}}


class Shop(Stage):
    """An API with 50 things, an empty store with tables, and an Airflow that knows both."""

    def __init__(self, api: LoopbackApi, dsn: str, connect: Connect) -> None:
        super().__init__(parse_source(dict(SPEC), "shop.yaml"), api.url, SECRET, dsn, connect)
        self.api = api
        api.rows = [b'{"id": "r%02d"}' % number for number in range(50)]

    def run(self, conf: Mapping[str, Any] | None = None, **arguments: Any) -> Outcome:
        """Run the backfill once."""
        return self.task(BackfillOperator, conf, **arguments)


@pytest.fixture
def shop(api: LoopbackApi, dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test. The engine's log lines count as a task's do: from INFO on."""
    logger = logging.getLogger("airflow_extract_provider")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield Shop(api, dsn, connect)
    logger.setLevel(before)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the pauses between tries away."""
    noted: list[float] = []
    monkeypatch.setattr(client, "pause", lambda halted, seconds: noted.append(seconds))
    return noted


def told(caplog: pytest.LogCaptureFixture) -> str:
    """Everything that was logged, tracebacks included."""
    return "\n".join(caplog.handler.format(record) for record in caplog.records)


def failed(outcome: Outcome, kind: type[ExtractError]) -> ExtractError:
    """The engine's error that ended the task, told without a traceback."""
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, kind)
    assert outcome.tracebacks == []
    return outcome.error.error


def test_the_template_fields_are_the_attributes() -> None:
    """Exactly these may be templates; the constructor stores them unchanged."""
    given: dict[str, Any] = {
        "object": "{{ a }}",
        "store_conn_id": "{{ b }}",
        "api_conn_id": "{{ c }}",
        "run_for": "{{ d }}",
        "pause": "{{ h }}",
        "next_run_at": "{{ i }}",
        "selected": "{{ e }}",
        "reset": "{{ f }}",
        "take_over": "{{ g }}",
        "longest_wait": "{{ j }}",
    }
    assert set(BackfillOperator.template_fields) == set(given)
    operator = BackfillOperator(task_id="x", source="there/is/no.yaml", **given)
    assert {name: getattr(operator, name) for name in given} == given


def test_the_object_is_copied_and_the_summary_is_in_xcom(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """One run: all records, the cursor in its Variable, the counts in XCom, progress in the log."""
    outcome = shop.run()
    assert outcome.state is TaskInstanceState.SUCCESS
    assert shop.copied() == 50
    summary = shop.xcom()
    assert (summary["complete"], summary["created"], summary["updated"]) == (True, 50, 0)
    assert '"complete": true' in shop.airflow.variables[CURSOR]
    assert "shop/things backfill   done: " in told(caplog)
    assert SECRET not in told(caplog) + str(outcome.events) + str(summary) + str(shop.airflow.variables)


def test_the_source_may_be_a_file(shop: Shop, tmp_path: Path) -> None:
    """It is read when the task runs; a missing one is a named error."""
    assert "none.yaml" in str(failed(shop.run(source=str(tmp_path / "none.yaml")), SourceError))
    path = tmp_path / "shop.yaml"
    path.write_text(
        "source: shop\nconnection: other\nobjects:\n  things: {path: /keyed, records: data, key: id,"
        " pages: {by: last_key, send: starting_after, more: has_more}}\n"
    )
    assert shop.run(source=path, api_conn_id="shop_api").state is TaskInstanceState.SUCCESS
    assert shop.copied() == 50


def test_slices(shop: Shop) -> None:
    """A walk longer than its slice is rescheduled, costs no try, reads no page twice, and ends with all records."""
    shop.api.delay = 0.2
    slices = 0
    while (outcome := shop.run(run_for=timedelta(seconds=0.01))).state is not TaskInstanceState.SUCCESS:
        assert outcome.state is TaskInstanceState.UP_FOR_RESCHEDULE
        # A slice that is due before the executor has reported the end of the last one is taken for killed.
        assert outcome.msg.reschedule_date - datetime.now(timezone.utc) > timedelta(seconds=20)
        # Given back in between, so that another walk of the object could have its turn.
        assert shop.ask("select count(*) from extract.fence where runner is not null") == [(0,)]
        slices += 1
        assert slices < 20
    assert slices > 1
    assert shop.copied() == 50
    assert shop.xcom()["complete"]
    assert shop.ask("select count(*) from extract.ledger where kind = 'page'") == [(len(shop.api.asked),)]


def test_an_object_that_was_not_selected_is_skipped(shop: Shop) -> None:
    """It asks nobody for anything."""
    outcome = shop.run(
        {"objects": ["others"]}, params={"objects": ["things", "others"]}, selected="{{ 'things' in params.objects }}"
    )
    assert outcome.state is TaskInstanceState.SKIPPED
    assert shop.api.asked == []
    assert shop.airflow.of("GetConnection") == []


def test_reset_starts_over_once_in_a_run(shop: Shop) -> None:
    """A template's text counts; a retry of the same run goes on instead of starting over again."""
    arguments: dict[str, Any] = {"params": {"reset": False}, "reset": "{{ params.reset }}"}
    assert shop.run(**arguments, run_id="first").state is TaskInstanceState.SUCCESS
    asked = len(shop.api.asked)
    assert shop.run(**arguments, run_id="second").state is TaskInstanceState.SUCCESS
    assert len(shop.api.asked) == asked
    assert shop.run({"reset": True}, **arguments, run_id="third").state is TaskInstanceState.SUCCESS
    assert len(shop.api.asked) == 2 * asked
    assert shop.run({"reset": True}, **arguments, run_id="third", try_number=2).state is TaskInstanceState.SUCCESS
    assert len(shop.api.asked) == 2 * asked
    assert shop.ask("select distinct revision from shop.things") == [(1,)]


def test_a_flag_that_is_neither_true_nor_false(shop: Shop) -> None:
    """A template that renders to something else is an error, not a no."""
    assert "`reset`" in str(failed(shop.run(reset="perhaps"), SourceError))
    assert "`run_for`" in str(failed(shop.run(run_for="soon"), SourceError))
    assert "`pause`" in str(failed(shop.run(pause="long"), SourceError))


def test_an_error_is_a_few_lines_without_traceback(
    shop: Shop, caplog: pytest.LogCaptureFixture, pauses: list[float]
) -> None:
    """Airflow's runner writes a traceback under all exceptions but one kind; the error says it all itself, with the
    words of the API."""
    shop.api.fault = lambda number, asked: Fault(200, b"<!doctype html><title>Sign in") if number >= 3 else None
    outcome = shop.run()
    exc = failed(outcome, WrongAnswerError)
    assert exc.page == 3
    assert "Traceback" not in told(caplog)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == f"WrongAnswerError: {exc}"
    assert len(record.getMessage().splitlines()) <= 4
    assert str(outcome.error) == record.getMessage()
    assert f"Kept: 2 pages, {shop.copied()} records" in str(exc)
    assert ': "<!doctype html><title>Sign in"' in str(exc)
    # It was asked again first, in growing pauses: a gateway that is being restarted answers so, too.
    assert len(shop.api.asked) == 2 + 5
    assert len(pauses) == 4


@pytest.mark.usefixtures("pauses")
def test_with_debug_logging_the_traceback_is_shown(shop: Shop) -> None:
    """Then somebody is looking for more than the error says."""
    logging.getLogger("airflow_extract_provider").setLevel(logging.DEBUG)
    shop.api.fault = lambda number, asked: Fault(200, b"")
    outcome = shop.run()
    assert isinstance(outcome.error, WrongAnswerError)
    assert outcome.tracebacks == ["Task failed with exception"]
    assert outcome.state is TaskInstanceState.FAILED


def test_what_a_person_has_to_mend_is_not_retried(shop: Shop) -> None:
    """A retry would only ask the API again for what it has refused."""
    shop.api.fault = lambda number, asked: Fault(401, b"")
    outcome = shop.run()
    assert isinstance(outcome.error, TaskFailed)
    assert outcome.state is TaskInstanceState.FAILED
    assert len(shop.api.asked) == 1


@pytest.mark.usefixtures("pauses")
def test_what_may_pass_is_retried(shop: Shop) -> None:
    """While tries are left; the API may answer again meanwhile."""
    shop.api.fault = lambda number, asked: Fault(503, b"")
    outcome = shop.run()
    failed(outcome, ApiUnavailableError)
    assert outcome.state is TaskInstanceState.UP_FOR_RETRY
    assert shop.run(should_retry=False).state is TaskInstanceState.FAILED
    shop.api.fault = lambda number, asked: None
    assert shop.run(try_number=2).state is TaskInstanceState.SUCCESS


@pytest.mark.parametrize("way", ["bearer", "refresh_token"])
def test_how_many_connections_to_postgres_a_task_holds(shop: Shop, way: str) -> None:
    """One for the records, one for the quota; with refresh tokens a third. docs/operations.md tells people to count."""
    held: list[int] = []
    question = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and backend_type = 'client backend'"
    )
    shop.api.before = lambda number, asked: held.append(shop.ask(question)[0][0])
    with LoginServer(client_secret=SECRET) as server:
        tokens = {"auth": way, "token_url": server.url, "refresh_token": server.log_in()}
        login = shop.airflow.connections["shop_api"]
        shop.airflow.connections["shop_api"] = {**login, "login": "client", "extra": json.dumps(tokens)}
        assert shop.run().state is TaskInstanceState.SUCCESS
    assert len(held) == len(shop.api.asked)
    # Those of the test itself end a little later than they are closed.
    assert min(held) == (3 if way == "refresh_token" else 2)


def test_another_run_is_waited_for(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The task is rescheduled and says for whom, however often, at no try. Told to take over, it does not wait."""
    shop.hold()
    for _ in range(5):
        outcome = shop.run(should_retry=False)
        assert outcome.state is TaskInstanceState.UP_FOR_RESCHEDULE
        assert outcome.msg.reschedule_date - datetime.now(timezone.utc) > timedelta(seconds=20)
    assert "shop/things backfill   waits until " in told(caplog)
    assert "held by the other run" in told(caplog)
    assert "ERROR" not in told(caplog)
    assert shop.api.asked == []
    shop.let_go()
    assert shop.run().state is TaskInstanceState.SUCCESS
    shop.hold()
    assert shop.run(take_over="True").state is TaskInstanceState.SUCCESS


def test_cleared_after_its_end_a_reset_starts_over_again(shop: Shop) -> None:
    """Once for each time it was cleared; cleared in the middle, it goes on, since that is how people retry."""
    arguments: dict[str, Any] = {"reset": True, "run_id": "one", "retries": 3}
    assert shop.run(**arguments).state is TaskInstanceState.SUCCESS
    asked = len(shop.api.asked)
    for cleared in (1, 1, 3):
        assert shop.run(**arguments, try_number=1 + cleared, cleared=cleared).state is TaskInstanceState.SUCCESS
    assert len(shop.api.asked) == 3 * asked
    shop.api.fault = lambda number, each: Fault(401, b"") if number == 3 * asked + 3 else None
    assert shop.run(**arguments, try_number=7, cleared=6).state is TaskInstanceState.FAILED
    assert shop.run(**arguments, try_number=8, cleared=7).state is TaskInstanceState.SUCCESS
    assert len(shop.api.asked) == 4 * asked + 1
    assert shop.ask("select distinct revision from shop.things") == [(1,)]


def test_a_missing_connection_is_told_and_retried(shop: Shop) -> None:
    """Airflow reports a connection missing when its API server fails, too."""
    shop.airflow.down.add("GetConnection")
    outcome = shop.run()
    assert "airflow connections add" in str(failed(outcome, ConnectionMissingError))
    assert outcome.state is TaskInstanceState.UP_FOR_RETRY
    shop.airflow.down.clear()
    del shop.airflow.connections["extract_store"]
    assert "extract_store" in str(failed(shop.run(), ConnectionMissingError))


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (FencedError("x."), "fail"),
        (SourceError("x."), "fail"),
        (ApiUnavailableError("x."), "default"),
        (KeyError(), "default"),
    ],
)
def test_the_retry_policy(error: Exception, action: str) -> None:
    """The bare error counts as the wrapped one does; what is not ours is left to the task's retries."""
    policy = RetryWhatMayPass()
    assert policy.evaluate(error, 1, 3).action.value == action
    if isinstance(error, ExtractError):
        assert policy.evaluate(TaskFailed(error), 1, 3).action.value == action


def test_a_stopped_task_is_no_success(shop: Shop) -> None:
    """SIGTERM only sets a flag: the task goes on to the end of the page, and then fails so that it is retried."""

    def stop(number: int, asked: Asked) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    shop.api.before, shop.api.delay = stop, 0.05
    outcome = shop.run()
    exc = failed(outcome, TryAgain)
    assert "stopped" in str(exc)
    assert outcome.state is TaskInstanceState.UP_FOR_RETRY
    assert 0 < shop.copied() < 50
    shop.api.before = lambda number, asked: None
    assert shop.run(try_number=2).state is TaskInstanceState.SUCCESS
    assert shop.copied() == 50
    # The summary adds up the tries of a task instance.
    assert shop.xcom()["created"] == 50


def test_the_operator_can_be_copied_before_and_after_a_run(shop: Shop) -> None:
    """Airflow copies the tasks of a DAG: nothing in one may resist, such as a lock."""
    operator = shop.operator(BackfillOperator)
    copy.deepcopy(operator)
    run_task(operator, shop.airflow)
    copy.deepcopy(operator)
    operator.on_kill()


def test_the_failure_survives_pickling() -> None:
    """Listeners and executors may move it between processes."""
    error = TaskFailed(WrongAnswerError("x.", source="shop", object="things", page=3))
    moved = pickle.loads(pickle.dumps(error))
    assert str(moved) == str(error)
    assert moved.code == "WrongAnswerError"
    assert moved.error.page == 3
