"""What the screenshots are taken of: Airflow, a Postgres and an API with a week of records, all made up."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from airflow_extract_provider.testing.hostile import HostileApi, Listing
from airflow_extract_provider.testing.postgres import EmbeddedPostgres, postgres_or_embedded
from demo.airflow_api import AirflowApi
from demo.airflow_stack import AirflowStack
from demo.services import PROJECT, connection_of, remove

FOLDER = PROJECT / ".run" / "shots"
SOURCES = PROJECT / "demo" / "shown"
BACKFILL, SYNC, FAILING = "crm_backfill", "crm_sync", "shop_backfill"
DAY = timedelta(days=1)
DAYS, A_DAY = 7, 40
PATIENCE = 600.0
"""How long a run may take, in seconds."""


class StageError(RuntimeError):
    """Something that a picture was to show did not come about."""


@dataclass(frozen=True)
class Stage:
    """What there is to be seen. ``today`` is the midnight before which the records' week ended."""

    airflow: AirflowStack
    api: HostileApi
    today: datetime

    @property
    def rest(self) -> AirflowApi:
        """Airflow's REST API, logged in."""
        return self.airflow.api

    def ran(self, dag: str, run: str, state: str = "success") -> str:
        """Wait for the end of a run, which must be this one; returns its id."""
        if (ended := self.rest.wait_for_run(dag, run, PATIENCE)) != state:
            raise StageError(f"the run {run} of {dag} ended as {ended}, not as {state}")
        return run

    def first_run(self, dag: str) -> str:
        """Wait until a DAG that was switched on has a run; returns its id."""
        until = time.monotonic() + PATIENCE
        while not (runs := self.rest.runs(dag)):
            if time.monotonic() > until:
                raise StageError(f"{dag} has no run after {PATIENCE:.0f} s")
            time.sleep(0.5)
        return str(runs[-1]["dag_run_id"])

    def written(self) -> None:
        """Some records are changed, and some made."""
        self.api.clock.advance(datetime.now(timezone.utc) - self.api.clock.now)
        self.api.update(*self.api.ids[-5:])
        self.api.insert(3)


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """Start everything from scratch, and end it all."""
    remove(FOLDER / "airflow")
    with contextlib.ExitStack() as running:
        server = running.enter_context(postgres_or_embedded(FOLDER / "postgres"))
        # On somebody's own server names that could be in use already would be dropped.
        prefix = "" if isinstance(server, EmbeddedPostgres) else "extract_shots_"
        server.drop_database(f"{prefix}extract")
        store = server.create_database(f"{prefix}extract")
        today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
        api = running.enter_context(_api(today))
        settings = _environment(store, api.url)
        airflow = AirflowStack(FOLDER / "airflow", server, f"{prefix}airflow", PROJECT / "dags", settings)
        running.callback(airflow.stop)
        airflow.launch()
        airflow.command("extract", "migrate", "--sources", str(SOURCES))
        airflow.wait_until_healthy()
        for dag in (BACKFILL, SYNC, FAILING):
            airflow.api.wait_for_dag(dag)
        yield Stage(airflow, api, today)


def _api(today: datetime) -> HostileApi:
    """An API whose records were made in the seven days before today."""
    dated = Listing("token", ("updated_at",), filter="inclusive", page_max=50)
    plain = Listing("offset", ("id",), page_max=50)
    listings = {"/v1/contacts": dated, "/v1/deals": dated, "/v1/companies": plain, "/v1/orders": dated}
    api = HostileApi(listings=listings, start=today - DAYS * DAY)
    for _ in range(DAYS):
        begun = api.clock.now
        api.insert(A_DAY)
        api.clock.advance(DAY - (api.clock.now - begun))
    api.clock.advance(datetime.now(timezone.utc) - api.clock.now)
    return api


def _environment(store: str, api: str) -> dict[str, str]:
    """What Airflow's tasks and DAG files find in their environment."""
    # The API asks for no token. Without one, Airflow would warn in the log that "none" is too short to be masked.
    host = json.dumps({"conn_type": "rest_api", "host": api, "password": "made-up-token"})
    return {
        "AIRFLOW_CONN_EXTRACT_STORE": connection_of(store),
        "AIRFLOW_CONN_CRM_API": host,
        "AIRFLOW_CONN_SHOP_API": host,
        "EXTRACT_SOURCES": str(SOURCES),
        # As everywhere: a scheduled DAG is switched on by a person.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    }
