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

from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import HostileApi
from airflow_extract_provider.testing.postgres import PostgresServer
from demo.airflow_api import AirflowApi
from demo.airflow_stack import AirflowStack
from tests.e2e import filtered, planted
from tests.e2e import hooked as hooks
from tests.hazards.kinds import KINDS
from tests.loopback import LoopbackApi

PROJECT = Path(__file__).resolve().parents[2]
SLICES = "sliced"
SOURCES = ("plain", "killed", "login", "edited", "cursors", SLICES)
WAITING = "waiting"
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
# A DAG of a person's own whose tasks leave the only slot of their pool while the API wants a pause; and one beside it.
HELD_UP = """
import os
from pathlib import Path
from airflow.sdk import DAG, task
from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.operators.backfill import BackfillOperator

source = load_source(Path(os.environ["EXTRACT_SOURCES"] + "_more") / "waiting.yaml")
things = source.model_copy(update={"objects": {"things": source.object("things")}})
globals().update(
    make_dags({"waiting": things}, default_args={"longest_wait": 2, "deferrable": True, "pool": "one_slot"})
)
with DAG("beside", schedule=None):

    @task(pool="one_slot")
    def work():
        return "done"

    work()
    BackfillOperator(task_id="others", source=source, object="others", longest_wait=2, deferrable=False)
"""
SECRET = "marked-secret-4711"
PAGE = 50
# Served by a HostileApi, and kept by its sync DAG: the first run is due at once, the next one a day later.
SYNCED = "synced"
CHANGING = KINDS["page updated"]


@dataclass(frozen=True)
class World:
    """What an end-to-end test finds running. ``changing`` is the API of the source `synced`, ``filtered`` those of the
    sources that filter by time, ``planted`` that with the secrets, ``hooked`` those that send webhooks."""

    airflow: AirflowStack
    store: str
    apis: Mapping[str, LoopbackApi]
    changing: HostileApi
    filtered: Mapping[str, HostileApi]
    planted: planted.Planted
    hooked: hooks.Hooked

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


def _waiting() -> str:
    """A source of two objects, each under a path of its own."""
    things: dict[str, Any] = {
        "path": "/keyed",
        "pages": {"by": "last_key", "send": "starting_after", "more": "has_more"},
    }
    others: dict[str, Any] = {"path": "/tokens", "pages": {"by": "token", "take": "next_cursor", "send": "cursor"}}
    for found in (things, others):
        found |= {"records": "data", "key": "id"}
        found["pages"] |= {"size": {"send": "limit", "max": PAGE}}
    objects = {"things": things, "others": others}
    return json.dumps({"source": WAITING, "connection": f"{WAITING}_api", "objects": objects})


def _write_files(home: Path) -> None:
    """The DAG files and sources of this Airflow, below its home."""
    shutil.copytree(PROJECT / "dags", home / "dags")
    dags = {"sliced": SLICED, "heard": HEARD, "held_up": HELD_UP, "planted": planted.dag(), "filtered": filtered.dag()}
    dags["hooked"] = hooks.dag()
    for name, text in dags.items():
        (home / "dags" / f"{name}.py").write_text(text)
    files = {f"sources/{name}": _source(name) for name in SOURCES if name != SLICES}
    files |= {f"sources_sliced/{SLICES}": _source(SLICES), f"sources/{SYNCED}": _synced()}
    files |= {f"sources_more/{WAITING}": _waiting(), f"sources_more/{planted.SOURCE}": json.dumps(planted.source())}
    files |= {f"sources{filtered.FOLDER}/{name}": json.dumps(each) for name, each in filtered.sources().items()}
    files |= {f"sources{hooks.FOLDER}/{name}": json.dumps(each) for name, each in hooks.sources().items()}
    for name, text in files.items():
        path = home / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def _environment(home: Path, store: str, urls: Mapping[str, str], secrets: planted.Planted) -> dict[str, str]:
    """What its processes find set: the connections, the one to the store and one for each source, and the sources."""
    fields = planted.store_fields(store)
    connections = secrets.connections(fields)
    connections["extract_store"] = json.dumps({"conn_type": "postgres", **fields})
    for name, url in urls.items():
        connections[f"{name}_api"] = json.dumps({"conn_type": "rest_api", "host": url, "password": SECRET})
    return {
        **{f"AIRFLOW_CONN_{name.upper()}": text for name, text in connections.items()},
        "EXTRACT_SOURCES": str(home / "sources"),
        # As it is by default: no sync starts on its own.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    }


@pytest.fixture(scope="package")
def world(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Airflow, its metadata and the store on a real Postgres, and an API for each source."""
    home = tmp_path_factory.mktemp("airflow")
    _write_files(home)
    store = postgres_server.create_database(f"e2e_{os.getpid()}_store")
    with contextlib.ExitStack() as running:
        apis = {name: running.enter_context(LoopbackApi()) for name in (*SOURCES, WAITING)}
        changing = running.enter_context(HostileApi(listings={"/things": CHANGING.served()}))
        secrets = running.enter_context(planted.planting())
        filtering = running.enter_context(filtered.serving())
        hooking = running.enter_context(hooks.serving())
        urls = {name: api.url for name, api in {**apis, **filtering, **hooking, SYNCED: changing}.items()}
        environment = _environment(home, store, urls, secrets)
        airflow = AirflowStack(home, postgres_server, f"e2e_{os.getpid()}_airflow", home / "dags", environment)
        running.callback(airflow.stop)
        airflow.launch()
        for folder in ("sources", "sources_sliced"):
            airflow.command("extract", "migrate", "--sources", str(home / folder))
        # The command has been shown to work: this is the same without starting Airflow once more.
        for folder in ("sources_more", f"sources{filtered.FOLDER}", f"sources{hooks.FOLDER}"):
            migrate(connecting(store), load_sources(home / folder).values())
        airflow.wait_until_healthy()
        for name in SOURCES:
            airflow.api.wait_for_dag(f"{name}_backfill")
            airflow.api.unpause(f"{name}_backfill")
        for dag in (f"{SYNCED}_sync", "heard", *filtered.DAGS):
            airflow.api.wait_for_dag(dag)
        fields = planted.store_fields(store)
        receiver = hooks.hooked(home, home / f"sources{hooks.FOLDER}", store, fields, hooking, airflow.api)
        hooked = running.enter_context(receiver)
        yield World(airflow, store, apis, changing, filtering, secrets, hooked)
