"""A whole Airflow on this machine: scheduler, DAG processor, API server and triggerer as children of ours.

Everything it writes lies in one folder, its metadata in a database of a given Postgres, and it listens on
127.0.0.1 only. Once stopped, not one of its processes is left.
"""

import base64
import importlib.metadata
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from airflow_extract_provider.testing.postgres import PostgresServer, free_port
from demo.airflow_api import AirflowApi
from demo.processes import Child, ChildFailedError, start, stop_all

COMPONENTS: dict[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    # Both would serve their logs to other machines, on all interfaces; on one machine the files are read.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
}
HEALTHY = ("metadatabase", "scheduler", "triggerer", "dag_processor")
MIGRATE_SECONDS = 300.0
COMMAND_SECONDS = 180.0
USERNAME = "admin"


class AirflowStack:
    """One Airflow with the LocalExecutor; as a context manager it is ready inside and gone after.

    ``api`` is a logged-in REST client, ``url``, ``username`` and ``password`` are for a person. Settings are
    passed as environment variables; those already there that begin with ``AIRFLOW_`` are left out.
    """

    def __init__(
        self,
        home: Path,
        server: PostgresServer,
        database: str,
        dags: Path,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        """Prepare, doing nothing yet.

        ``home`` receives configuration, task logs and a log file per component. ``database`` on ``server`` is
        dropped and made anew at each start. ``environment`` is for connections (AIRFLOW_CONN_...), settings
        and whatever the DAG files read. ``python`` is that of the environment in which Airflow is installed.
        """
        self.python = python
        self.home = home
        self.server = server
        self.database = database
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.username = USERNAME
        self.password = secrets.token_urlsafe(9)
        self.environment = {**_foreign_environment(), **self._settings(dags), **(environment or {})}
        self.api = AirflowApi(self.url, self.username, self.password)
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Start and wait until it is ready."""
        try:
            self.launch()
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened inside."""
        self.stop()

    def launch(self) -> None:
        """Make the metadata database and start all components, without waiting until they are ready."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._passwords_file.touch(mode=0o600)
        self._passwords_file.write_text(json.dumps({self.username: self.password}))
        self._make_metadata()
        for name, arguments in COMPONENTS.items():
            self._children.append(self._start(name, *arguments))

    def wait_until_healthy(self, seconds: float = 300) -> None:
        """Return when every component has reported that it works; raise if one ends or the time is over."""
        until = time.monotonic() + seconds
        while any((health := self.api.health()).get(name) != "healthy" for name in HEALTHY):
            self.check()
            if time.monotonic() > until:
                raise ChildFailedError(f"not healthy after {seconds:.0f} s: {health}; logs: {self.home}")
            time.sleep(0.5)

    def check(self) -> None:
        """Raise if a component has ended."""
        for child in self._children:
            child.check()

    def command(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run an ``airflow`` command with this Airflow's settings and return what it wrote."""
        log = self.home / f"command-{'-'.join(arguments[:2])}.log"
        log.unlink(missing_ok=True)
        child = self._start(log.stem, *arguments)
        try:
            child.finish(seconds)
        finally:
            stop_all([child], patience=2)
        return log.read_text()

    def stop(self, patience: float = 4) -> None:
        """End all components and every task; what does not end within ``patience`` seconds is killed."""
        stop_all(self._children, patience)
        self._children.clear()

    def pids(self) -> dict[str, int]:
        """Return the process id of each component."""
        return {child.name: child.process.pid for child in self._children}

    @property
    def _passwords_file(self) -> Path:
        return self.home / "passwords.json"

    def _start(self, name: str, *arguments: str, extra: Mapping[str, str] | None = None) -> Child:
        command = [self.python, "-m", "airflow", *arguments]
        return start(name, command, self.home / f"{name}.log", {**self.environment, **(extra or {})}, self.home)

    def _make_metadata(self) -> None:
        """Copy the database from a migrated one, which is made once per server and Airflow version."""
        template = f"airflow_{importlib.metadata.version('apache-airflow')}_migrated"
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            known = connection.execute("select 1 from pg_database where datname = %s", [template]).fetchone()
            if not known:
                # Under another name until it is whole: an interrupted migration is no template.
                draft = f"{template}_draft"
                self.server.drop_database(draft)
                url = _for_airflow(self.server.create_database(draft))
                migration = self._start("migrate", "db", "migrate", extra={_METADATA: url})
                try:
                    migration.finish(MIGRATE_SECONDS)
                finally:
                    stop_all([migration], patience=2)
                rename = sql.SQL("alter database {} rename to {}")
                connection.execute(rename.format(sql.Identifier(draft), sql.Identifier(template)))
        self.server.drop_database(self.database)
        self.server.create_database(self.database, template=template)

    def _settings(self, dags: Path) -> dict[str, str]:
        """Return the settings that make this Airflow small, quick, private and its own."""
        return {
            "AIRFLOW_HOME": str(self.home),
            _METADATA: _for_airflow(self.server.dsn(self.database)),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.username}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords_file),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        }


_METADATA = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def _for_airflow(url: str) -> str:
    """Return a database's URL with the driver Airflow's own code needs."""
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def _foreign_environment() -> dict[str, str]:
    """Return our environment without another Airflow's settings and without proxies for loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "PG"))}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
