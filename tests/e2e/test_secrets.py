"""No secret is left anywhere: each place that can hold one has been given one, and the API has repeated them all."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.e2e import left, planted
from tests.e2e.conftest import World

DAG = planted.SOURCE


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_nothing_that_is_left_holds_a_secret(world: World) -> None:
    """Runs that go well and runs that fail in each way; then all files, tables and answers are searched. What stood
    beside the secrets is found in each of these."""
    world.api.wait_for_dag(DAG)
    world.api.unpause(DAG)
    run = world.api.trigger(DAG)
    world.api.wait_for_run(DAG, run)
    tasks = {task.task_id: task.state for task in world.api.task_instances(DAG, run)}
    logs = {name: world.api.log(DAG, run, name) for name in tasks}
    ends = {doing.object: (doing.ends, True) for doing in planted.DOINGS}
    assert {
        doing.object: (tasks[doing.object], doing.told in logs[doing.object]) for doing in planted.DOINGS
    } == ends, "\n".join(logs.values())
    for name in ("copied", "renewed"):
        assert dict(world.ask(f"select key, data from {DAG}.{name}")) == planted.RECORDS
    assert world.planted.login.renewals == 2

    pieces = list(_pieces(world, run))
    assert left.found([planted.MARK, *world.planted.tokens], pieces) == []
    told = _places(left.found([planted.WORD], pieces))
    assert {"store planted.copied", _log("copied"), _log("forbidden")} <= told
    kept = _places(left.found([DAG], pieces))
    assert {"airflow public.xcom", "airflow public.log", "store extract.ledger", "GET /variables"} <= kept
    assert {f"file {name}.log" for name in ("scheduler", "dag-processor", "api-server")} <= kept
    assert "file triggerer.log" in {place for place, _ in pieces}


def _places(findings: list[str]) -> set[str]:
    """Where something was found, without the run's own name."""
    places = (finding.partition(" in ")[2].partition(": b")[0] for finding in findings)
    return {re.sub("run_id=[^/]*", "run", place) for place in places}


def _log(task: str) -> str:
    return f"file logs/dag_id={DAG}/run/task_id={task}/attempt=1.log"


def _pieces(world: World, run: str) -> Iterator[tuple[str, bytes]]:
    """All that is left: files of each of Airflow's processes, both databases, and what REST shows of them decrypted."""
    metadata = world.airflow.server.dsn(world.airflow.database)
    return itertools.chain(
        left.files(world.airflow.home),
        left.columns("airflow", metadata),
        left.columns("store", world.store),
        left.answers(world.api, DAG, run),
    )


@pytest.mark.parametrize("field", ["pair", "a", "ab", "abc"])
def test_a_secret_would_be_found(field: str) -> None:
    """In whatever form it were left: as it is, in a URL, in JSON, in base64 alone and behind any user name."""
    secret = planted.secret(field)
    shown = [
        secret,
        quote(secret, safe=""),
        json.dumps({"text": secret}),
        json.dumps(json.dumps([secret])),
        "x" + secret,
    ]
    shown += [base64.b64encode(f"{user}{secret}".encode()).decode() for user in ("", "m:", "me:", "you:")]
    shown += [base64.urlsafe_b64encode(secret.encode()).decode(), secret.lower()]
    for text in shown:
        assert left.found([planted.MARK], [("here", f"before {text} behind".encode())]), text
    assert left.found([planted.MARK], [("here", planted.WORD.encode())]) == []
