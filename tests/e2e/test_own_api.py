"""Airflow extracts its own REST API by the preset, while it works; at rest the copy is its metadata database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import requests

from demo.own_api import OwnApi, copied, judged
from tests.e2e.conftest import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOURCE = "own"
BUSY, SYNC = "own_busy", "own_sync"
PAGE = 5
"""Records a page: a few tasks are several pages."""
RUNS = 3
# A task that fails at first, so that it has another id then; one that is mapped, so that its row has another key then.
DAGS = f"""
import datetime
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.sourcefile import load_source

globals().update(make_dags({{"{SOURCE}": load_source(Path(__file__).parent.parent / "sources_own" / "{SOURCE}.yaml")}}))
with DAG("{BUSY}", schedule=None, default_args={{"retries": 1, "retry_delay": datetime.timedelta(seconds=1)}}):

    @task
    def fails_once(**context):
        if context["ti"].try_number == 1:
            raise ValueError("the first try")
        return [1, 2]

    @task
    def takes(number):
        return number

    takes.expand(number=fails_once())
"""


@pytest.fixture(scope="module")
def own(world: World) -> Iterator[OwnApi]:
    """The preset as a user would take it, with small pages, in a DAG of this Airflow; and the same from outside."""
    home = world.airflow.home
    found = OwnApi(world.airflow, world.store, SOURCE, PAGE)
    found.prepare()
    world.api.create_connection("airflow_api", **_login(world))
    (home / "sources_own").mkdir()
    # JSON is YAML, too. Two objects are enough for the DAG, and no run of it may begin on its own.
    told = {**found.told, "objects": {"dags": None, "pools": None}, "schedule": "@yearly"}
    (home / "sources_own" / f"{SOURCE}.yaml").write_text(json.dumps(told))
    file: Path = home / "dags" / "own.py"
    file.write_text(DAGS)
    for dag in (BUSY, SYNC):
        world.api.wait_for_dag(dag)
    yield found
    world.api.pause(SYNC)
    file.unlink()
    world.api.delete_connection("airflow_api")


def test_the_copy_of_a_working_airflow_is_its_metadata_database(world: World, own: OwnApi) -> None:
    """A DAG reads the Airflow that it runs in, while tasks fail, come again and are mapped; once all rest, the filter
    has brought each change of each row, and the sweep the rest: what is gone, and notes."""
    world.api.unpause(BUSY)
    runs = [world.api.trigger(BUSY) for _ in range(RUNS)]
    world.api.unpause(SYNC)
    synced = world.api.trigger(SYNC)
    assert world.api.wait_for_run(SYNC, synced) == "success"
    assert world.api.xcom(SYNC, synced, "task_instances.backfill")["created"] >= RUNS
    # It has read itself: nobody sees himself end.
    assert copied(world.store, "dag_runs", SOURCE)[SYNC, synced]["state"] == "running"
    assert [world.api.wait_for_run(BUSY, run) for run in runs] == ["success"] * RUNS

    dag_runs, tasks = judged(world.store, own.database, own.bring, SOURCE)
    assert dag_runs.equal, dag_runs
    # A row that was read before it was mapped is another one now: no filter tells of that.
    assert set(tasks.wrong) <= {f"{BUSY}/{run}/takes/-1 is only in the copy" for run in runs}
    stored = copied(world.store, "task_instances", SOURCE).items()
    tried = {key[1]: row["try_number"] for key, row in stored if key[2] == "fails_once"}
    assert tried == dict.fromkeys(runs, 2)

    _change_silently(world, runs)
    verdicts = judged(world.store, own.database, lambda: own.sweep(max_deletes=50), SOURCE)
    assert [verdict.wrong for verdict in verdicts] == [(), ()]
    kept = copied(world.store, "dag_runs", SOURCE)
    assert kept[BUSY, runs[0]]["note"] == "a note"
    assert (BUSY, runs[1]) not in kept
    assert own.walk("task_instances", "incremental").counts["updated"] == 0


def test_what_is_read_whole_equals_the_metadata_too(world: World, own: OwnApi) -> None:
    """DAGs, those that are gone from their files among them, and pools."""
    for name in ("dags", "pools"):
        assert own.walk(name, "backfill").complete
    with psycopg.connect(own.database) as metadata:
        dags = metadata.execute("select dag_id, is_paused, is_stale from dag").fetchall()
        pools = metadata.execute("select pool, slots, description from slot_pool").fetchall()
    paused = "select key, (data->>'is_paused')::bool, (data->>'is_stale')::bool from own.dags where deleted_at is null"
    assert sorted(world.ask(paused)) == sorted(dags)
    assert sorted(world.ask("select key, (data->>'slots')::int, data->>'description' from own.pools")) == sorted(pools)
    assert own.walk("pools", "rebackfill", reset=True).counts["updated"] == 0


def _login(world: World) -> dict[str, Any]:
    """A token for user name and password, and another one when that has run out. Airflow reads the form's own two
    fields and no others: what stands for an OAuth client is not looked at."""
    person = {"username": world.airflow.username, "password": world.airflow.password}
    token = {"token_url": f"{world.airflow.url}/auth/token", "token_parameters": person}
    extra = json.dumps({"auth": "client_credentials", **token})
    return {"conn_type": "rest_api", "host": world.airflow.url, "login": "-", "password": "-", "extra": extra}


def _change_silently(world: World, runs: list[str]) -> None:
    """Notes at a run and at a task, and a run that is deleted."""
    person = {"username": world.airflow.username, "password": world.airflow.password}
    with requests.Session() as session:
        session.trust_env = False
        token = session.post(f"{world.airflow.url}/auth/token", json=person, timeout=30).json()["access_token"]
        session.headers["Authorization"] = f"Bearer {token}"
        place = f"{world.airflow.url}/api/v2/dags/{BUSY}/dagRuns"
        noted = f"{place}/{quote(runs[0], safe='')}"
        for where in (noted, f"{noted}/taskInstances/fails_once"):
            session.patch(f"{where}?update_mask=note", json={"note": "a note"}, timeout=60).raise_for_status()
        session.delete(f"{place}/{quote(runs[1], safe='')}", timeout=60).raise_for_status()
