"""A source and its API, a store with tables, and an Airflow that knows both: where the tests run tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from airflow.sdk import DAG, BaseOperator
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.operators.walk import WalkOperator
from tests.taskrun import ApiServer, Outcome, run_task

__all__ = ["Stage"]

_OF_A_RUN = ("try_number", "run_id", "should_retry", "cleared", "resumed", "finished")


class Stage:
    """One source with an object `things`. ``airflow`` holds the Variables and what the tasks have said."""

    def __init__(self, source: Source, url: str, secret: str, dsn: str, connect: Connect) -> None:
        self.source, self.dsn = source, dsn
        migrate(connect, [source])
        parts = conninfo_to_dict(dsn)
        store = {
            "conn_type": "postgres",
            "host": parts.get("host"),
            "port": int(str(parts["port"])) if "port" in parts else None,
            "login": parts.get("user"),
            "password": parts.get("password"),
            "schema": parts.get("dbname"),
        }
        login = {"conn_type": "rest_api", "host": url, "password": secret}
        self.airflow = ApiServer(connections={source.connection: login, "extract_store": store})

    def operator(self, kind: type[WalkOperator], **arguments: Any) -> WalkOperator:
        """The task that walks the things, in a DAG of its own."""
        with DAG(f"{self.source.source}_own", schedule=None, params=arguments.pop("params", None)):
            return kind(task_id="things", **{"source": self.source, "object": "things", **arguments})

    def task(self, kind: type[WalkOperator], conf: Mapping[str, Any] | None = None, **arguments: Any) -> Outcome:
        """Run a task of this kind once, with what a run has of its own or the operator's arguments."""
        of_run = {name: arguments.pop(name) for name in _OF_A_RUN if name in arguments}
        return self.run_operator(self.operator(kind, **arguments), conf, **of_run)

    def run_operator(self, operator: BaseOperator, conf: Mapping[str, Any] | None = None, **of_run: Any) -> Outcome:
        """Run a task of somebody's DAG once."""
        return run_task(operator, self.airflow, conf=conf, **of_run)

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Rows from the store."""
        with psycopg.connect(self.dsn) as conn:
            return conn.execute(question.encode()).fetchall()

    def copied(self) -> int:
        """How many things are in the table."""
        return int(self.ask(f"select count(*) from {self.source.source}.things")[0][0])

    def copy(self) -> dict[str, Any]:
        """The things in the table by key, without those that are gone."""
        return dict(self.ask(f"select key, data from {self.source.source}.things where deleted_at is null"))

    def hold(self) -> None:
        """Let another run hold the things, alive."""
        self.ask(
            "insert into extract.fence (source, object, walk, part, number, runner, label, heartbeat) "
            f"values ('{self.source.source}', 'things', '*', '', 7, 'other', 'the other run', now()) "
            "on conflict (source, object, walk, part) do update "
            "set number = fence.number + 1, runner = 'other', label = 'the other run', heartbeat = now() returning 1"
        )

    def let_go(self) -> None:
        """The other run has ended."""
        self.ask("update extract.fence set runner = null returning 1")

    def xcom(self) -> Any:
        """What the last task returned."""
        return [msg.value for msg in self.airflow.of("SetXCom") if msg.key == "return_value"][-1]
