"""Each DAG template under `dag.test()`, as whoever writes DAGs runs them: with a real API, a real store, a broker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import Fault, HostileApi
from tests.broker import Broker
from tests.dags.trying import PROJECT, Trying, trying
from tests.databases import Databases
from tests.hazards.kinds import KINDS
from tests.sinks.topics import create, received, unused_name

KIND = KINDS["token updated"]
BY_KEY = {"path": "/things/{{ key }}", "record": "@"}
SOURCES = ("backfilled", "synced", "relayed", "sliced", "hooked", "sensed")
TYPES = {
    "thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"},
    "thing.thin": {"object": "things", "key": "data.id"},
    "thing.*": {"object": "things", "record": "data"},
}
HOOKS: dict[str, dict[str, Any]] = {
    "hooked": {"webhooks": {"main": {"verify": "github", "secret": "none", "type": "type", "types": TYPES}}},
}
HOOKS["sensed"] = {**HOOKS["hooked"], "webhooks_by": "sensor", "webhooks_every": "3s"}
# A DAG of a person's own: it leaves its slot after a second, and while the API wants a pause.
SLICED = """
import os
from airflow_extract_provider.dag_templates import make_dags
soon = {"run_for": 1, "pause": 1, "longest_wait": 1, "deferrable": True}
globals().update(make_dags(os.environ["EXTRACT_SOURCES"] + "_sliced", default_args=soon))
"""


@dataclass(frozen=True)
class Stage:
    """A process that runs DAGs, an API for each source, their store, the broker and the name of the topics."""

    airflow: Trying
    apis: dict[str, HostileApi]
    dsn: str
    broker: Broker
    topics: str

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Rows from the store."""
        with psycopg.connect(self.dsn) as conn:
            return conn.execute(question.encode()).fetchall()

    def put(self, source: str, *bodies: bytes) -> None:
        """Webhooks come in."""
        with psycopg.connect(self.dsn) as conn:
            inbox.put(conn, "extract", [Incoming(source, "main", each) for each in bodies])

    def copy(self, source: str) -> dict[str, Any]:
        """The things in a source's table."""
        return dict(self.ask(f"select key, data from {source}.things where deleted_at is null"))


@pytest.fixture(scope="module")
def stage(databases: Databases, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Made once: Airflow's import and its database take seconds."""
    home, topics = tmp_path_factory.mktemp("tried"), unused_name()
    with ExitStack() as running:
        apis = {each: running.enter_context(HostileApi(listings={"/things": KIND.served()})) for each in SOURCES}
        dsn = running.enter_context(databases.with_books())
        _write_files(home, topics)
        for folder in ("sources", "sources_sliced"):
            migrate(connecting(dsn), load_sources(home / folder).values())
        environment = _environment(home, dsn, {name: api.url for name, api in apis.items()}, broker)
        yield Stage(running.enter_context(trying(home, environment)), apis, dsn, broker, topics)


def _write_files(home: Path, topics: str) -> None:
    """The DAGs folder: the template, and a DAG file of a person's own."""
    (home / "dags").mkdir()
    shutil.copy(PROJECT / "dags" / "extract.py", home / "dags")
    (home / "dags" / "sliced.py").write_text(SLICED)
    things = KIND.described(by_key=BY_KEY, sweep={"every": "1d"}, events=["created"], baseline="emit")
    for name in SOURCES:
        source: dict[str, Any] = {"source": name, "connection": f"{name}_api", "objects": {"things": things}}
        source |= HOOKS.get(name, {})
        if name == "relayed":
            source["relay"] = {"kafka": "bus", "topic": f"{topics}.{{object}}"}
        folder = home / ("sources_sliced" if name == "sliced" else "sources")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(json.dumps(source))


def _environment(home: Path, dsn: str, urls: dict[str, str], broker: Broker) -> dict[str, str]:
    parts = conninfo_to_dict(dsn)
    fields = {"host": "host", "port": "port", "login": "user", "password": "password", "schema": "dbname"}
    store = {name: parts[part] for name, part in fields.items() if parts.get(part)}
    connections: dict[str, dict[str, Any]] = {"extract_store": {"conn_type": "postgres", **store}}
    connections["bus"] = {"conn_type": "kafka", "extra": dict(broker.config)}
    connections |= {
        f"{name}_api": {"conn_type": "rest_api", "host": url, "password": "secret"} for name, url in urls.items()
    }
    found = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(each) for name, each in connections.items()}
    return {**found, "EXTRACT_SOURCES": str(home / "sources")}


def test_the_backfill(stage: Stage) -> None:
    """With a form, and without one; a form that cannot be is refused before there is a run."""
    api = stage.apis["backfilled"]
    api.insert(25)
    tried = stage.airflow.run("backfilled_backfill", {"dry_run": True})
    assert (tried.state, tried.tasks) == ("success", {"things": "success"})
    assert "nothing was stored" in tried.left["things"]["dry_run"][0]
    assert (api.count, stage.copy("backfilled")) == (1, {})
    tried = stage.airflow.run("backfilled_backfill")
    assert (tried.state, stage.copy("backfilled")) == ("success", api.live())
    assert tried.left["things"]["created"] == 25
    assert "backfilled/things backfill   done: " in tried.log
    tried = stage.airflow.run("backfilled_backfill", {"reset": "backfilled", "page_size": 5})
    assert (tried.left["things"]["pages"], tried.left["things"]["unchanged"]) == (5, 25)


def test_the_sync(stage: Stage) -> None:
    """The first run copies everything, the next one brings what has changed."""
    api = stage.apis["synced"]
    api.insert(25)
    api.clock.advance(1)
    tried = stage.airflow.run("synced_sync")
    names = ("backfill", "incremental", "by_key", "rebackfill", "outcome")
    assert (tried.state, tried.tasks) == ("success", {f"things.{name}": "success" for name in names})
    api.update(3)
    api.insert(2)
    gone = api.ids[:1]
    api.delete(*gone)
    api.clock.advance(1)
    tried = stage.airflow.run("synced_sync", {"sweep_now": ["things"]})
    brought = tried.left["things.incremental"]
    assert (brought["created"], brought["updated"]) == (2, 1)
    assert tried.left["things.rebackfill"]["sweep"]["deleted"] == 1
    assert stage.copy("synced") == api.live()


def test_the_relay(stage: Stage) -> None:
    """What a run has put into the outbox is in Kafka after the next one of the relay, once."""
    topic = create(stage.broker, f"{stage.topics}.things")
    stage.apis["relayed"].insert(12)
    stage.airflow.run("relayed_backfill")
    for _ in range(2):
        tried = stage.airflow.run("relayed_relay")
        assert (tried.state, tried.tasks) == ("success", {"relay": "success"})
    outbox = {row[0] for row in stage.ask("select id from extract.outbox where source = 'relayed'")}
    found = [event.id for event in received(stage.broker, topic)]
    assert len(outbox) == 12
    assert sorted(found) == sorted(outbox)


def test_slices_and_waiting(stage: Stage) -> None:
    """A task that comes back by itself, and one that waits in the triggerer: both end in the same call."""
    api = stage.apis["sliced"]
    api.insert(100)
    api.latency = timedelta(seconds=0.25)
    api.fault(9, Fault("429", retry_after=3))
    tried = stage.airflow.run("sliced_backfill")
    assert (tried.state, stage.copy("sliced")) == ("success", api.live())
    assert "paused" in tried.log
    assert "waits: " in tried.log
    assert "[DAG TEST] Trigger completed" in tried.log
    assert api.count <= 10 + 1 + 4


def changed(api: HostileApi, source: str) -> tuple[bytes, bytes]:
    """Two records change; the webhooks that tell of it, the second of which holds a key only."""
    api.update(3, value=7)
    whole = api.shown(api.history()[-1], "/things")
    api.update(4, value=8)
    return json.dumps({"type": "thing.updated", "data": whole}).encode(), b'{"type": "thing.thin", "data": {"id": 4}}'


def test_the_webhooks(stage: Stage) -> None:
    """What waits is applied, what is thin is read by its key. Dead letters fail no run; the form tries them again."""
    api = stage.apis["hooked"]
    api.insert(25)
    api.clock.advance(1)
    stage.airflow.run("hooked_backfill")
    stage.put("hooked", *changed(api, "hooked"), b"{broken")
    tried = stage.airflow.run("hooked_webhooks")
    assert (tried.state, tried.tasks) == ("success", {"apply": "success"})
    found = tried.left["apply"]
    assert (found["updated"], found["by_key"]["things"]["updated"], found["dead"]) == (1, 1, 1)
    assert stage.copy("hooked") == api.live()
    assert "airflow extract inbox dead list --source hooked" in tried.log
    stage.ask("update extract.inbox set body = '{\"type\": \"none\"}' where body = '{broken' returning 1")
    tried = stage.airflow.run("hooked_webhooks", {"replay": "all"})
    assert (tried.state, tried.left["apply"]["dead"]) == ("success", 0)
    assert sum(tried.left["apply"]["replayed"].values()) == 1


def test_the_webhooks_by_a_sensor(stage: Stage) -> None:
    """It goes on at once where something waits, and else when its time is over: behind it is the sweep, too."""
    api = stage.apis["sensed"]
    api.insert(25)
    api.clock.advance(1)
    stage.airflow.run("sensed_backfill")
    stage.put("sensed", *changed(api, "sensed"))
    tried = stage.airflow.run("sensed_webhooks")
    assert (tried.state, tried.tasks) == ("success", {"wait": "success", "apply": "success"})
    assert tried.left["wait"] == {"source": "sensed", "waiting": True}
    assert stage.copy("sensed") == api.live()
    tried = stage.airflow.run("sensed_webhooks")
    assert (tried.state, tried.left["wait"]["waiting"], tried.left["apply"]["deliveries"]) == ("success", False, 0)
    assert "[DAG TEST] Trigger completed" in tried.log
