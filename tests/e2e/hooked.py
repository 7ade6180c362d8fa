"""Sources whose APIs send webhooks, each with a HostileApi of its own, and a real receiver before the inbox."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import requests

from airflow_extract_provider.testing.hostile import HostileApi
from airflow_extract_provider.testing.postgres import free_port
from demo.airflow_api import AirflowApi
from demo.processes import start, stop_all
from tests.hazards.kinds import KINDS

__all__ = ["FOLDER", "SOURCES", "SWEEP", "Hooked", "connections", "dag", "hooked", "serving", "sources"]

FOLDER = "_hooked"
"""Behind the folder of the other sources."""
KIND = KINDS["token updated"]
SWEEP = 15
"""Seconds between two runs of the source that is swept."""
SOURCES: Mapping[str, Mapping[str, Any]] = {
    # So seldom is nothing but the watcher, or the sensor, the reason for a run.
    "watched": {"webhooks_by": "watcher", "webhooks_every": "6h"},
    "sensed": {"webhooks_by": "sensor", "webhooks_every": "6h"},
    "swept": {"webhooks_by": "schedule", "webhooks_every": f"{SWEEP}s"},
    "failing": {"webhooks_by": "watcher", "webhooks_every": "30s"},
}
_SECRET = "a secret of the tests"
_TYPES = {
    "thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"},
    "thing.thin": {"object": "things", "key": "data.id"},
    "thing.*": {"object": "things", "record": "data"},
}


def sources() -> dict[str, dict[str, Any]]:
    """The source files by name."""
    changes = ["created", "deleted", {"changed": {"field": "value", "name": "value.changed"}}]
    things = KIND.described(by_key={"path": "/things/{{ key }}", "record": "@"}, events=changes)
    endpoint = {"verify": "github", "secret": "hooked_secret", "type": "type", "types": _TYPES}
    same = {"objects": {"things": things}, "webhooks": {"main": endpoint}, "windows": None}
    return {name: {"source": name, "connection": f"{name}_api", **same, **own} for name, own in SOURCES.items()}


def dag() -> str:
    """A DAG file of a person's own: what fails is not tried again by Airflow, so that its run fails."""
    return f"""
import os
from airflow_extract_provider.dag_templates import make_dags

globals().update(make_dags(os.environ["EXTRACT_SOURCES"] + "{FOLDER}", default_args={{"retries": 0}}))
"""


def connections() -> dict[str, str]:
    """What the receiver looks up besides the store, as JSON."""
    return {"hooked_secret": json.dumps({"conn_type": "webhook", "password": _SECRET})}


@contextmanager
def serving() -> Iterator[dict[str, HostileApi]]:
    """The APIs by source, with records."""
    with ExitStack() as running:
        apis = {name: running.enter_context(HostileApi(listings={"/things": KIND.served()})) for name in SOURCES}
        for api in apis.values():
            api.insert(30, value=1)
            api.clock.advance(60)
        yield apis


@dataclass(frozen=True)
class Hooked:
    """The APIs, the receiver's address, the store, and Airflow's API."""

    apis: Mapping[str, HostileApi]
    url: str
    store: str
    airflow: AirflowApi

    def begin(self, *names: str) -> None:
        """Copy the sources, and switch on what applies their webhooks."""
        for name in names:
            self.airflow.wait_for_dag(f"{name}_webhooks")
        runs = {name: self.airflow.trigger(f"{name}_backfill") for name in names}
        for name, run in runs.items():
            assert self.airflow.wait_for_run(f"{name}_backfill", run) == "success"
            self.airflow.unpause(f"{name}_webhooks")

    def change(self, source: str, key: int, value: int) -> bytes:
        """A record changes at the API; returns the body of the webhook that tells of it."""
        api = self.apis[source]
        api.clock.advance(1)
        api.update(key, value=value)
        return json.dumps({"type": "thing.updated", "data": api.shown(api.history()[-1], "/things")}).encode()

    def post(self, source: str, body: bytes) -> None:
        """Send a webhook as the API does; it is stored when this returns."""
        signature = hmac.new(_SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={signature}", "Content-Type": "application/json"}
        answer = requests.post(f"{self.url}/webhooks/{source}/main", data=body, headers=headers, timeout=30)
        assert answer.status_code == 200, (answer.status_code, answer.text)

    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows from the store."""
        with psycopg.connect(self.store) as conn:
            return conn.execute(question.encode(), values).fetchall()

    def is_applied(self, source: str, key: int, value: int) -> bool:
        """Whether the row has changed, and the event is in the outbox."""
        found = self.ask(
            f"select 1 from {source}.things as things join extract.outbox on outbox.source = %s"
            " and outbox.key = things.key and (outbox.data -> 'record')::jsonb = things.data"
            " where things.key = %s and (things.data ->> 'value')::int = %s",
            *(source, str(key), value),
        )
        return len(found) == 1

    def seconds(self, source: str, key: int, value: int) -> float:
        """How long it takes from the POST of a webhook until its row has changed and its event is in the outbox."""
        body = self.change(source, key, value)
        began = time.monotonic()
        self.post(source, body)
        while not self.is_applied(source, key, value):
            assert time.monotonic() - began < 180, f"{source}: nothing was applied"
            time.sleep(0.05)
        return time.monotonic() - began

    def measured(self, source: str, count: int) -> str:
        """The same for several webhooks, each sent when no run is under way, and told in a line."""
        found = []
        for number in range(count):
            self.rest(source, 7 + number % 3)
            found.append(self.seconds(source, number + 1, 100 + number))
        each = ", ".join(f"{seconds:.1f}" for seconds in found)
        return f"{source:<8} {median(found):5.1f} s  median of {count} ({each})"

    def rest(self, source: str, seconds: float) -> None:
        """Wait until no task of the webhooks DAG is at work, and a while longer: to be neither near the run before, nor
        always at the same moment between two."""
        dag = f"{source}_webhooks"
        until = time.monotonic() + 120
        while any(
            self._works(dag, run["dag_run_id"]) for run in self.airflow.runs(dag, 3) if run["state"] != "success"
        ):
            assert time.monotonic() < until
            time.sleep(0.3)
        time.sleep(seconds)

    def _works(self, dag: str, run: str) -> bool:
        """Whether a run is under way, and not only waits for webhooks."""
        if self.airflow.run(dag, run)["state"] in ("success", "failed"):
            return False
        states = {task.task_id: task.state for task in self.airflow.task_instances(dag, run)}
        return states.get("wait") != "deferred"


@contextmanager
def hooked(
    folder: Path, sources: Path, store: str, fields: Mapping[str, Any], apis: Mapping[str, HostileApi], api: AirflowApi
) -> Iterator[Hooked]:
    """The receiver as a process of its own, below ``folder``; its tables are there. ``fields`` are those of the store's
    connection."""
    home, url = folder / "receiver", f"http://127.0.0.1:{(port := free_port())}"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    found = {**connections(), "extract_store": json.dumps({"conn_type": "postgres", **fields})}
    environment = {**kept, "AIRFLOW_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    environment |= {f"AIRFLOW_CONN_{name.upper()}": text for name, text in found.items()}
    command = [sys.executable, "-m", "airflow_extract_provider.receiver.main", "receiver", "--sources", str(sources)]
    command += ["--port", str(port), "--workers", "1", "--stop-within", "2"]
    child = start("receiver", command, folder / "receiver.log", environment, home)
    try:
        _wait(lambda: requests.get(f"{url}/ready", timeout=5).ok, child.check)
        yield Hooked(apis, url, store, api)
    finally:
        stop_all([child], patience=5)


def _wait(ready: Callable[[], bool], check: Callable[[], None]) -> None:
    until = time.monotonic() + 120
    while True:
        check()
        try:
            if ready():
                return
        except requests.RequestException:
            pass
        assert time.monotonic() < until, "the receiver is not ready"
        time.sleep(0.2)
