"""Airflow's own REST API, extracted by the preset `airflow`, and an independent judge: Airflow's metadata database.

The judge shares no code with the package, on purpose: a mistake there cannot hide itself here. It reads the metadata
with plain SQL, column by column, and the copy as plain JSON.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

import psycopg
import requests
from psycopg import sql

from airflow_extract_provider.extract.api.auth import bearer_login
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import Summary, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from demo.airflow_stack import AirflowStack
from demo.progress import Progress
from demo.services import SYNC, WEBHOOKS, Services

__all__ = ["OwnApi", "OwnVerdict", "copied", "extract_and_judge", "judged", "own_round"]

CONNECTION = "airflow_api"
KEYS: Mapping[str, tuple[str, ...]] = {
    "dag_runs": ("dag_id", "dag_run_id"),
    "task_instances": ("dag_id", "dag_run_id", "task_id", "map_index"),
}


def _same(names: str) -> Mapping[str, str]:
    return {name: name for name in names.split()}


# Where the metadata holds what the API shows, by the API's names: tables, and columns or expressions over them.
NAMES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "dag_runs": (
        "dag_run",
        {
            **_same("dag_id state run_type logical_date queued_at start_date end_date run_after conf bundle_version"),
            **_same(
                "data_interval_start data_interval_end last_scheduling_decision triggering_user_name partition_key"
            ),
            "dag_run_id": "run_id",
            "note": "(select content from dag_run_note where dag_run_id = dag_run.id)",
            "triggered_by": "lower(triggered_by)",
        },
    ),
    "task_instances": (
        "task_instance",
        {
            **_same("id dag_id task_id map_index start_date end_date duration state try_number max_tries pid executor"),
            **_same("hostname unixname pool pool_slots queue priority_weight operator"),
            "dag_run_id": "run_id",
            "note": "(select content from task_instance_note where ti_id = task_instance.id)",
            "queued_when": "queued_dttm",
            "scheduled_when": "scheduled_dttm",
        },
    ),
}
TRIES = 20

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Mapping[tuple[str, ...], Row]
"""Rows by their keys, with the API's names; instants and all else as values that can be compared."""


@dataclass(frozen=True)
class OwnVerdict:
    """How the copy of one object compares with the metadata; ``wrong`` says each difference in words."""

    object: str
    in_copy: int
    in_metadata: int
    wrong: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return not self.wrong

    def __str__(self) -> str:
        """``dag_runs 12 = 12``; a few differences behind it, if there are any."""
        if self.equal:
            return f"{self.object} {self.in_copy:,} = {self.in_metadata:,}"
        return f"{self.object} {self.in_copy:,} and {self.in_metadata:,} differ: {'; '.join(self.wrong[:3])}"


def metadata(dsn: str, object: str) -> Rows:
    """What Airflow's own database holds of an object."""
    table, names = NAMES[object]
    columns = ", ".join(f'{column} as "{name}"' for name, column in names.items())
    return _rows(object, dsn, f"select {columns} from {table}")


def copied(dsn: str, object: str, schema: str = "airflow") -> Rows:
    """What the store holds of it, without what is marked as deleted."""
    question = sql.SQL("select data from {} where deleted_at is null").format(sql.Identifier(schema, object))
    with psycopg.connect(dsn) as connection:
        found = [record for (record,) in connection.execute(question)]
    return {_key(object, row): row for row in ({name: each[name] for name in NAMES[object][1]} for each in found)}


def compare(object: str, copy: Rows, truth: Rows) -> OwnVerdict:
    """Compare row by row and column by column."""
    wrong = [f"{'/'.join(key)} is only in the copy" for key in copy.keys() - truth.keys()]
    wrong += [f"{'/'.join(key)} is only in the metadata" for key in truth.keys() - copy.keys()]
    for key in sorted(copy.keys() & truth.keys()):
        names = [name for name, value in truth[key].items() if _value(copy[key][name], value) != value]
        wrong += [f"{name} of {'/'.join(key)}: {copy[key][name]!r}, not {truth[key][name]!r}" for name in names]
    return OwnVerdict(object, len(copy), len(truth), tuple(wrong))


def judged(store: str, database: str, bring: Callable[[], None], schema: str = "airflow") -> Sequence[OwnVerdict]:
    """Compare each object, at rest: ``bring`` brings what has changed, and the metadata is the same before and after.

    Raises TimeoutError: it never was. Whoever extracts Airflow by a DAG of the same Airflow changes what he reads.
    """
    for _ in range(TRIES):
        before = {object: metadata(database, object) for object in KEYS}
        bring()
        if before == {object: metadata(database, object) for object in KEYS}:
            return [compare(object, copied(store, object, schema), rows) for object, rows in before.items()]
        time.sleep(0.5)
    raise TimeoutError("Airflow was never at rest while it was read")


class OwnApi:
    """The preset, run by the engine from outside of Airflow: a DAG of the same Airflow would change what it reads.

    ``told`` is what its source file says, ``database`` Airflow's own.
    """

    def __init__(self, airflow: AirflowStack, store: str, source: str = "airflow", page: int = 100) -> None:
        """``store`` is the database of the copy, ``source`` the name of the source and of its schema there, ``page``
        how many records one answer holds at most."""
        size = {"pages": {"size": {"max": page}}}
        self.told = {"extends": "airflow", "source": source, "connection": CONNECTION, "defaults": size}
        self.source: Source = parse_source(self.told, "the preset")
        self.store = store
        self.database = airflow.server.dsn(airflow.database)
        self._airflow = airflow

    def prepare(self) -> None:
        """Make the tables."""
        migrate(connecting(self.store), [self.source])

    def walk(
        self,
        object: str,
        walk: Literal["backfill", "incremental", "rebackfill"],
        *,
        reset: bool = False,
        max_deletes: int | None = None,
    ) -> Summary:
        """One walk of one object to its end."""
        with requests.Session() as session:
            session.trust_env = False
            login = bearer_login(self._token(session))
            with closing(ApiClient(self.source, session, self._airflow.url, auth=login)) as client:
                return run(
                    self.source,
                    object,
                    walk,
                    postgres=connecting(self.store),
                    client=client,
                    reset=reset,
                    max_deletes=max_deletes,
                )

    def backfill(self, objects: Iterable[str] = KEYS) -> None:
        """Copy everything."""
        for object in objects:
            self.walk(object, "backfill")

    def bring(self) -> None:
        """Bring what has changed, as far as the API tells of it."""
        for object in KEYS:
            self.walk(object, "incremental")

    def sweep(self, max_deletes: int | None = None) -> None:
        """Read everything again, which finds the rest: what is gone, and what no filter tells of."""
        for object in KEYS:
            self.walk(object, "rebackfill", reset=True, max_deletes=max_deletes)

    def _token(self, session: requests.Session) -> str:
        person = {"username": self._airflow.username, "password": self._airflow.password}
        answer = session.post(f"{self._airflow.url}/auth/token", json=person, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["access_token"])


def extract_and_judge(airflow: AirflowStack, store: str) -> tuple[str, bool]:
    """Extract an Airflow that hardly works any more, and compare; returns one line, and whether all is equal."""
    own = OwnApi(airflow, store)
    own.prepare()
    own.backfill()
    verdicts = judged(store, own.database, own.sweep)
    equal = all(verdict.equal for verdict in verdicts)
    return f"airflow: {', '.join(map(str, verdicts))}{' equal' if equal else ''}", equal


def own_round(services: Services, progress: Progress) -> bool:
    """Extract the demo's own Airflow at rest, say how it compares in one line; return whether all is equal."""
    progress.say("Airflow's own REST API is copied by the preset `airflow`, and compared with its metadata database")
    for dag in (SYNC, WEBHOOKS):
        services.airflow.api.pause(dag)
    try:
        said, equal = extract_and_judge(services.airflow, services.store)
    finally:
        for dag in (SYNC, WEBHOOKS):
            services.airflow.api.unpause(dag)
    progress.say(said)
    return equal


def _rows(object: str, dsn: str, question: str) -> Rows:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(question.encode())
        names = [column.name for column in found.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in found]
    return {_key(object, row): row for row in rows}


def _key(object: str, row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEYS[object])


def _value(told: Any, like: Any) -> Any:
    """A value of JSON as the metadata's type; what is none of it stays, and is unequal."""
    try:
        if isinstance(told, str) and isinstance(like, datetime):
            return datetime.fromisoformat(told)
        return UUID(told) if isinstance(told, str) and isinstance(like, UUID) else told
    except ValueError:
        return told
