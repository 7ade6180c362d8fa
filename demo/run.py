"""``make demo``: a backfill as a person would start it, watched, and judged by somebody else.

Starts Postgres, a fake Stripe with a few thousand objects and Airflow; triggers the DAG through Airflow's
REST API; shows how far it is; compares every record; prints a table. Ends with 0 only if all are equal.
Whatever happens, no process is left behind. With KEEP=1 all stays up until Ctrl-C.
"""

import argparse
import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.postgres import (
    EmbeddedPostgres,
    PostgresServer,
    PostgresStartError,
    postgres_or_embedded,
)
from demo.airflow_api import FINISHED, AirflowApi, AirflowApiError, TaskInstance
from demo.airflow_stack import AirflowStack
from demo.localstripe_server import LocalStripe
from demo.processes import Child, ChildFailedError, start, stop_all
from demo.progress import Progress
from demo.seed import KEY
from demo.verify import LISTS, Verdict, verify

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / ".run" / "demo"
SOURCES = PROJECT / "demo" / "sources"
DAG = "stripe_backfill"
OBJECTS = tuple(LISTS)
SEED_SECONDS = 180.0
RUN_SECONDS = 900.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(BaseException):
    """Somebody asked the demo to end: Ctrl-C, ``kill``, a closed terminal.

    Like KeyboardInterrupt not an Exception: nothing on its way may take it for a failure of its own.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Services:
    """All that runs during the demo."""

    postgres: PostgresServer
    store: str
    stripe: LocalStripe
    airflow: AirflowStack


def main() -> int:
    """Run the demo and return its exit code: 0 equal, 1 not equal or failed, 128 + n ended by signal n."""
    options = argparse.ArgumentParser(prog="make demo", description=__doc__)
    options.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    options.add_argument("--small", action="store_true", help="a few hundred objects instead of thousands")
    given = options.parse_args()
    for number in SIGNALS:
        signal.signal(number, _stop)
    progress = Progress()
    try:
        with only_one_demo(), contextlib.ExitStack() as running:
            try:
                services = start_all(running, given.small, progress)
                equal = backfill_and_judge(services, progress)
                if given.keep:
                    keep_running(services, progress)
                return 0 if equal else 1
            finally:
                # From here on all is being ended, in a few seconds: a second Ctrl-C must not stop that.
                ignore_signals()
                progress.say("stopping")
    except StoppedError as stopped:
        progress.say(f"ended by {stopped}")
        return stopped.exit_code
    except (AirflowApiError, ChildFailedError, PostgresStartError, DemoBusyError) as error:
        progress.say(f"failed: {error}")
        return 1


def start_all(running: contextlib.ExitStack, small: bool, progress: Progress) -> Services:
    """Start everything, from scratch; ``running`` ends it all in reverse order."""
    for leftover in ("airflow", "localstripe.log", "seed.log"):
        remove(FOLDER / leftover)
    server = running.enter_context(postgres_or_embedded(FOLDER / "postgres"))
    embedded = isinstance(server, EmbeddedPostgres)
    progress.say("Postgres is up" if embedded else "using the Postgres of EXTRACT_POSTGRES_DSN")
    # On somebody's own server names that could be in use already would be dropped.
    prefix = "" if embedded else "extract_demo_"
    server.drop_database(f"{prefix}extract")
    store = server.create_database(f"{prefix}extract")
    stripe = running.enter_context(LocalStripe(FOLDER))
    progress.say(f"localstripe is up on {stripe.url}; filling it")
    seeding = start_seeding(stripe.url, small)
    running.callback(stop_all, [seeding], patience=1)
    airflow = AirflowStack(
        FOLDER / "airflow", server, f"{prefix}airflow", PROJECT / "dags", environment(store, stripe.url)
    )
    running.callback(airflow.stop)
    airflow.launch()
    progress.say(f"Airflow is starting on {airflow.url}")
    seeding.finish(SEED_SECONDS)
    made = json.loads(seeding.log.read_text())
    progress.say(f"localstripe holds {', '.join(f'{made[name]:,} {name}' for name in OBJECTS if name in made)}")
    airflow.command("extract", "migrate", "--sources", str(SOURCES))
    progress.say("the extract schema and the record tables are made")
    airflow.wait_until_healthy()
    airflow.api.wait_for_dag(DAG)
    progress.say("Airflow is ready")
    return Services(server, store, stripe, airflow)


def backfill_and_judge(services: Services, progress: Progress) -> bool:
    """Trigger the backfill, watch it, compare, print the table; return whether every object is equal."""
    api = services.airflow.api
    api.unpause(DAG)
    run = api.trigger(DAG, {"objects": list(OBJECTS)})
    progress.say(f"triggered {DAG} for {', '.join(OBJECTS)}")
    state = watch(services, run, progress)
    progress.say(f"the run ended: {state}")
    tasks = api.task_instances(DAG, run)
    progress.say("comparing every record: plain HTTP on one side, plain SQL on the other")
    verdicts = verify(services.stripe.url, services.store)
    print_table(verdicts, summaries(api, run, tasks))
    return state == "success" and all(verdict.equal for verdict in verdicts)


def watch(services: Services, run: str, progress: Progress) -> str:
    """Show the tasks' states and the committed records until the run has ended; return its state."""
    api = services.airflow.api
    told: set[str] = set()
    until = time.monotonic() + RUN_SECONDS
    with psycopg.connect(services.store, autocommit=True) as connection:
        while True:
            state = str(api.run(DAG, run)["state"])
            tasks = api.task_instances(DAG, run)
            tell_failures(api, run, tasks, told, progress)
            states = {object_of(task): task.state or "waiting" for task in tasks}
            records: dict[str, int] = dict(connection.execute(COMMITTED).fetchall())
            progress.show(
                " · ".join(f"{name} {records.get(name, 0):,} {states.get(name, 'waiting')}" for name in OBJECTS)
            )
            if state in FINISHED:
                return state
            if time.monotonic() > until:
                raise AirflowApiError(f"the run is still {state} after {RUN_SECONDS:.0f} s")
            time.sleep(0.7)


# Not `records`: a page begins with the last record of the one before, which would count twice.
COMMITTED = """
    select object, sum((counts ->> 'created')::bigint)::bigint from extract.ledger
    where source = 'stripe' and counts ? 'created' group by object
"""


def object_of(task: TaskInstance) -> str | None:
    """Return which object a task works on; the object's name is its id, or a part of it."""
    return next((part for part in task.task_id.split(".") if part in OBJECTS), None)


def summaries(api: AirflowApi, run: str, tasks: list[TaskInstance]) -> dict[str, Mapping[str, Any]]:
    """Return what each object's task reported about its work, by object."""
    found: dict[str, Mapping[str, Any]] = {}
    for task in tasks:
        name = object_of(task)
        summary = api.xcom(DAG, run, task.task_id, map_index=task.map_index) if name else None
        if name and isinstance(summary, dict):
            found[name] = summary
    return found


def print_table(verdicts: list[Verdict], reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line per object: both counts, whether all records are equal, and what reading them took."""
    line = "{:<15}{:>11}{:>13}{:>8}{:>8}{:>10}{:>9}".format
    print("\n" + line("object", "in the API", "in Postgres", "equal", "pages", "requests", "seconds"))
    for verdict in verdicts:
        equal = "yes" if verdict.equal else "NO"
        report = reports.get(verdict.object, {})
        work = [f"{report[name]:,}" if name in report else "?" for name in ("pages", "requests")]
        seconds = f"{report['seconds']:.1f}" if "seconds" in report else "?"
        print(line(verdict.object, f"{verdict.in_api:,}", f"{verdict.in_postgres:,}", equal, *work, seconds))
    print(*[verdict.complaint() for verdict in verdicts if not verdict.equal], sep="\n", flush=True)


def tell_failures(api: AirflowApi, run: str, tasks: list[TaskInstance], told: set[str], progress: Progress) -> None:
    """Say once per try why a task failed; it may be tried again for minutes before the run fails."""
    for task in tasks:
        name = f"{task.task_id}, try {task.try_number}"
        if task.state not in ("failed", "up_for_retry") or name in told:
            continue
        told.add(name)
        why = api.complaints(DAG, run, task.task_id, task.try_number, task.map_index)[-5:]
        progress.say(f"{name}: {task.state}\n    " + "\n    ".join(why or ["its log says nothing"]))


def keep_running(services: Services, progress: Progress) -> None:
    """Tell a person where everything is, and stay until asked to end."""
    progress.say("everything stays up until Ctrl-C")
    print(f"  Airflow   {services.airflow.url}   user {services.airflow.username}", end="")
    print(f"   password {services.airflow.password}")
    print(f"  Postgres  {services.store}")
    print(f"  Stripe    {services.stripe.url}/v1/customers   key {KEY}", flush=True)
    with contextlib.suppress(StoppedError):
        while True:
            services.airflow.check()
            time.sleep(1)


def environment(store: str, stripe: str) -> dict[str, str]:
    """Return what Airflow's tasks and DAG files find in their environment."""
    parts = conninfo_to_dict(store)
    postgres = {
        "conn_type": "postgres",
        "host": parts.get("host"),
        "port": int(parts.get("port") or 5432),
        "login": parts.get("user"),
        "password": parts.get("password"),
        "schema": parts.get("dbname"),
    }
    return {
        "AIRFLOW_CONN_EXTRACT_STORE": json.dumps({name: value for name, value in postgres.items() if value}),
        "AIRFLOW_CONN_STRIPE": json.dumps({"conn_type": "rest_api", "host": stripe, "password": KEY}),
        "EXTRACT_SOURCES": str(SOURCES),
    }


def start_seeding(url: str, small: bool) -> Child:
    """Fill localstripe in a process of its own, while Airflow starts."""
    command = [sys.executable, "-m", "demo.seed", url, *(["--small"] if small else [])]
    return start("seed", command, FOLDER / "seed.log", os.environ, PROJECT)


class DemoBusyError(RuntimeError):
    """Another demo runs in this checkout."""


@contextlib.contextmanager
def only_one_demo() -> Iterator[None]:
    """Hold a lock that ends with the process: two demos would drop each other's databases."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoBusyError("another demo is running in this checkout; end that one first") from None
        yield


def remove(path: Path) -> None:
    """Remove a file or a folder of an earlier demo, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ignore_signals() -> None:
    """Let nothing interrupt what follows."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (*SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # An exception raised in a destructor or in a library's callback is lost: raised again each second, it arrives.
    signal.signal(signal.SIGALRM, functools.partial(_raise_stopped, number))
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    raise StoppedError(number)


def _raise_stopped(number: int, alarm: int, frame: FrameType | None) -> NoReturn:
    raise StoppedError(number)


if __name__ == "__main__":
    sys.exit(main())
