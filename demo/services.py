"""All that runs during the demo, started from scratch: Postgres, a fake Stripe, Kinto, Airflow, a webhook receiver."""

import contextlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.postgres import EmbeddedPostgres, PostgresServer, postgres_or_embedded
from demo import kinto_contacts
from demo.airflow_stack import AirflowStack
from demo.kinto_server import Kinto
from demo.localstripe_server import LocalStripe
from demo.processes import Child, start, stop_all
from demo.progress import Progress
from demo.receiver import Receiver
from demo.seed import KEY
from demo.verify import LISTS

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / ".run" / "demo"
SOURCES = PROJECT / "demo" / "sources"
BACKFILL, STRIPE_SYNC, SYNC, WEBHOOKS = "stripe_backfill", "stripe_sync", "crm_sync", "stripe_webhooks"
OBJECTS = tuple(LISTS)
CONTACTS, FEW_CONTACTS = 1000, 150
SEED_SECONDS = 180.0


@dataclass(frozen=True)
class Services:
    """All that runs during the demo; ``contacts`` are the ids of those that were there at the beginning."""

    postgres: PostgresServer
    store: str
    stripe: LocalStripe
    kinto: Kinto
    contacts: tuple[str, ...]
    airflow: AirflowStack
    receiver: Receiver


def start_all(running: contextlib.ExitStack, small: bool, progress: Progress) -> Services:
    """Start everything, from scratch; ``running`` ends it all in reverse order."""
    for leftover in ("airflow", "receiver", "receiver.log", "localstripe.log", "kinto.log", "seed.log", "fill.log"):
        remove(FOLDER / leftover)
    server = running.enter_context(postgres_or_embedded(FOLDER / "postgres"))
    embedded = isinstance(server, EmbeddedPostgres)
    progress.say("Postgres is up" if embedded else "using the Postgres of EXTRACT_POSTGRES_DSN")
    # On somebody's own server names that could be in use already would be dropped.
    prefix = "" if embedded else "extract_demo_"
    for name in ("extract", "kinto"):
        server.drop_database(f"{prefix}{name}")
    store = server.create_database(f"{prefix}extract")
    stripe = running.enter_context(LocalStripe(FOLDER))
    progress.say(f"localstripe is up on {stripe.url}; filling it")
    seeding = start_module("seed", "demo.seed", stripe.url, *(["--small"] if small else []))
    running.callback(stop_all, [seeding], patience=1)
    kinto = Kinto(FOLDER, server.create_database(f"{prefix}kinto"))
    running.callback(kinto.stop)
    settings = environment(store, stripe.url, kinto.url)
    airflow = AirflowStack(FOLDER / "airflow", server, f"{prefix}airflow", PROJECT / "dags", settings)
    running.callback(airflow.stop)
    airflow.launch()
    progress.say(f"Airflow is starting on {airflow.url}")
    kinto.start()
    progress.say(f"Kinto is up on {kinto.url}; filling it")
    filling = start_module("fill", "demo.kinto_contacts", kinto.url, "--fill", str(FEW_CONTACTS if small else CONTACTS))
    running.callback(stop_all, [filling], patience=1)
    contacts = filled(seeding, filling, progress)
    receiver = Receiver(FOLDER, SOURCES, connection_of(store))
    running.callback(receiver.stop)
    prepare(airflow, receiver, progress)
    return Services(server, store, stripe, kinto, contacts, airflow, receiver)


def filled(seeding: Child, filling: Child, progress: Progress) -> tuple[str, ...]:
    """Wait until both APIs hold what they are to hold at first; return the contacts' ids."""
    seeding.finish(SEED_SECONDS)
    made = json.loads(seeding.log.read_text())
    progress.say(f"localstripe holds {', '.join(f'{made[name]:,} {name}' for name in OBJECTS if name in made)}")
    filling.finish(SEED_SECONDS)
    contacts = tuple(json.loads(filling.log.read_text()))
    progress.say(f"Kinto holds {len(contacts):,} contacts")
    return contacts


def prepare(airflow: AirflowStack, receiver: Receiver, progress: Progress) -> None:
    """Make the tables, start the receiver, and wait until it is ready, and Airflow is and knows the DAGs."""
    airflow.command("extract", "migrate", "--sources", str(SOURCES))
    progress.say("the extract schema and the record tables are made")
    receiver.launch()
    airflow.wait_until_healthy()
    for dag in (BACKFILL, STRIPE_SYNC, SYNC, WEBHOOKS):
        airflow.api.wait_for_dag(dag)
    receiver.wait_until_ready()
    progress.say(f"the receiver of webhooks is up on {receiver.url}")
    progress.say("Airflow is ready")


def environment(store: str, stripe: str, kinto: str) -> dict[str, str]:
    """Return what Airflow's tasks and DAG files find in their environment."""
    login = {"login": kinto_contacts.USER, "password": kinto_contacts.PASSWORD, "extra": {"auth": "basic"}}
    return {
        "AIRFLOW_CONN_EXTRACT_STORE": connection_of(store),
        "AIRFLOW_CONN_STRIPE": json.dumps({"conn_type": "rest_api", "host": stripe, "password": KEY}),
        "AIRFLOW_CONN_CRM": json.dumps({"conn_type": "rest_api", "host": kinto, **login}),
        "EXTRACT_SOURCES": str(SOURCES),
        # As everywhere: a scheduled DAG is switched on by a person.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    }


def connection_of(store: str) -> str:
    """Return a database as an Airflow connection, in JSON."""
    parts = conninfo_to_dict(store)
    postgres = {
        "conn_type": "postgres",
        "host": parts.get("host"),
        "port": int(parts.get("port") or 5432),
        "login": parts.get("user"),
        "password": parts.get("password"),
        "schema": parts.get("dbname"),
    }
    return json.dumps({name: value for name, value in postgres.items() if value})


def start_module(name: str, module: str, *arguments: str) -> Child:
    """Start a module of ours as a script, in a process of its own."""
    return start(name, [sys.executable, "-m", module, *arguments], FOLDER / f"{name}.log", os.environ, PROJECT)


def remove(path: Path) -> None:
    """Remove a file or a folder of an earlier demo, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
