"""One real Airflow for all end-to-end tests; each test has a source, an API and a DAG of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.hostile import HostileApi
from airflow_extract_provider.testing.postgres import PostgresServer
from demo.airflow_api import AirflowApi
from demo.airflow_stack import AirflowStack
from tests.hazards.kinds import KINDS
from tests.loopback import LoopbackApi

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = ("plain", "killed", "login", "edited", "sliced")
# A DAG of a person's own: slices of a second, where the template has half an hour.
SLICED = """
import os
from airflow_extract_provider.dag_templates import make_dags
globals().update(make_dags(os.environ["EXTRACT_SOURCES"] + "_sliced", default_args={"run_for": 1, "pause": 15}))
"""
# A DAG of a person's own that runs when the copy has changed, and takes the events of the changes.
HEARD = """
from airflow.sdk import DAG, Asset, task

with DAG("heard", schedule=[Asset("extract://synced/things")]):

    @task.consume_events(consumer="heard", source="synced", in_transaction=True)
    def keep(event, conn):
        conn.execute("insert into public.heard (key, type) values (%s, %s)", [event.key, event.type])

    keep()
"""
SECRET = "marked-secret-4711"
PAGE = 50
# Served by a HostileApi, and kept by its sync DAG: the first run is due at once, the next one a day later.
SYNCED = "synced"
CHANGING = KINDS["page updated"]


@dataclass(frozen=True)
class World:
    """What an end-to-end test finds running. ``changing`` is the API of the source `synced`."""

    airflow: AirflowStack
    store: str
    apis: Mapping[str, LoopbackApi]
    changing: HostileApi

    @property
    def api(self) -> AirflowApi:
        """Airflow's REST API, logged in."""
        return self.airflow.api

    def backfill(self, source: str, conf: Mapping[str, Any] | None = None, seconds: float = 240) -> tuple[str, str]:
        """Trigger a source's backfill as a person would, wait for its end; returns the run's id and state."""
        run = self.api.trigger(f"{source}_backfill", dict(conf or {}))
        return run, self.api.wait_for_run(f"{source}_backfill", run, seconds)

    def ask(self, question: str, *values: Any, rows: bool = True) -> list[tuple[Any, ...]]:
        """Rows from the store."""
        with psycopg.connect(self.store) as conn:
            answer = conn.execute(question.encode(), values)
            return answer.fetchall() if rows else []

    def copy(self, source: str) -> dict[str, Any]:
        """The copied records by key."""
        return dict(self.ask(f"select key, data from {source}.things"))

    def log(self, source: str, run: str, try_number: int = 1) -> str:
        """What the source's task has logged in one try."""
        return self.api.log(f"{source}_backfill", run, self.task(source, run), try_number)

    def task(self, source: str, run: str) -> str:
        """The id of the task that copies the source's only object."""
        (found,) = [task.task_id for task in self.api.task_instances(f"{source}_backfill", run)]
        return found

    def cursor(self, source: str) -> str:
        """The name of the source's cursor Variable."""
        return f"extract_{source}_things_backfill_cursor"


def _source(name: str) -> str:
    """A source file as a user would write it."""
    return f"""
source: {name}
connection: {name}_api
objects:
  things:
    path: /keyed
    records: data
    key: id
    pages: {{by: last_key, send: starting_after, more: has_more, size: {{send: limit, max: {PAGE}}}}}
"""


def _synced() -> str:
    """A source that can be asked for changes and read by key; JSON is YAML, too."""
    things = CHANGING.described(by_key={"path": "/things/{{ key }}", "record": "@"})
    things["events"] = ["created", {"changed": {"field": "value", "name": "value.changed"}}]
    source = {"source": SYNCED, "connection": f"{SYNCED}_api", "schedule": "1d", "objects": {"things": things}}
    return json.dumps(source)


def _store_connection(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    found = {"host": parts.get("host"), "port": parts.get("port"), "login": parts.get("user")}
    found |= {"password": parts.get("password"), "schema": parts.get("dbname")}
    return json.dumps({"conn_type": "postgres", **{name: value for name, value in found.items() if value}})


@pytest.fixture(scope="session")
def world(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Airflow, its metadata and the store on a real Postgres, and an API for each source."""
    home = tmp_path_factory.mktemp("airflow")
    sources, sliced = home / "sources", home / "sources_sliced"
    sources.mkdir()
    sliced.mkdir()
    shutil.copytree(PROJECT / "dags", home / "dags")
    (home / "dags" / "sliced.py").write_text(SLICED)
    (home / "dags" / "heard.py").write_text(HEARD)
    store = postgres_server.create_database(f"e2e_{os.getpid()}_store")
    with contextlib.ExitStack() as running:
        apis = {name: running.enter_context(LoopbackApi()) for name in SOURCES}
        changing = running.enter_context(HostileApi(listings={"/things": CHANGING.served()}))
        environment = {
            "AIRFLOW_CONN_EXTRACT_STORE": _store_connection(store),
            "EXTRACT_SOURCES": str(sources),
            # As it is by default: no sync starts on its own.
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        }
        (sources / f"{SYNCED}.yaml").write_text(_synced())
        for name in SOURCES:
            ((sliced if name == "sliced" else sources) / f"{name}.yaml").write_text(_source(name))
        for name, url in [*((name, api.url) for name, api in apis.items()), (SYNCED, changing.url)]:
            found = {"conn_type": "rest_api", "host": url, "password": SECRET}
            environment[f"AIRFLOW_CONN_{name.upper()}_API"] = json.dumps(found)
        airflow = AirflowStack(home, postgres_server, f"e2e_{os.getpid()}_airflow", home / "dags", environment)
        running.callback(airflow.stop)
        airflow.launch()
        for folder in (sources, sliced):
            airflow.command("extract", "migrate", "--sources", str(folder))
        airflow.wait_until_healthy()
        for name in SOURCES:
            airflow.api.wait_for_dag(f"{name}_backfill")
            airflow.api.unpause(f"{name}_backfill")
        for dag in (f"{SYNCED}_sync", "heard"):
            airflow.api.wait_for_dag(dag)
        yield World(airflow, store, apis, changing)
