"""Kinto (a record store with an HTTP API, from PyPI) as our child: its data in a Postgres database, on loopback only.

Run as a script it *is* the server; ``Kinto`` starts that script. Its ``last_modified`` is given inside a
transaction and seen after the commit, so with several writers its records come late for real.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import requests
from psycopg import sql

from airflow_extract_provider.testing.postgres import free_port
from demo.processes import Child, ChildFailedError, start, stop_all

PROJECT = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0
PAGE_SIZE = 100
THREADS = 12

SETTINGS = """\
[server:main]
use = egg:waitress#main
host = 127.0.0.1
port = %(http_port)s
threads = {threads}

[app:main]
use = egg:kinto
kinto.storage_backend = kinto.core.storage.postgresql
kinto.storage_url = {dsn}
kinto.storage_pool_size = {threads}
kinto.permission_backend = kinto.core.permission.postgresql
kinto.permission_url = {dsn}
kinto.permission_pool_size = {threads}
kinto.cache_backend = kinto.core.cache.memory
kinto.userid_hmac_secret = for the demo and tests only
kinto.paginate_by = {page_size}
multiauth.policies = basicauth
multiauth.policy.basicauth.use = kinto.core.authentication.BasicAuthAuthenticationPolicy

[loggers]
keys = root, storage

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = WARNING
handlers = console

# It writes fifty lines about each of two writers who hit the same millisecond: the client hears of it.
[logger_storage]
level = CRITICAL
handlers =
qualname = kinto.core.storage.postgresql.client

[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatter_plain]
format = %(asctime)s %(levelname)s %(name)s %(message)s
"""


class Kinto:
    """A Kinto on a free port of 127.0.0.1 that keeps its data in a database made for it.

    Any user name and password open it; who makes a bucket is the only one who may use it. ``start`` after
    ``stop`` brings the same data back on the same port.
    """

    def __init__(self, folder: Path, dsn: str, port: int | None = None) -> None:
        """Prepare; ``dsn`` is the URL of its database, ``folder`` receives kinto.ini and kinto.log."""
        self.dsn = dsn
        self.ini = folder / "kinto.ini"
        self.log = folder / "kinto.log"
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.child: Child | None = None

    def __enter__(self) -> Self:
        """Start."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened inside."""
        self.stop()

    def start(self) -> Self:
        """Make its tables if there are none, start it and return when it answers."""
        keep_utc(self.dsn)
        self._write_settings()
        command = [sys.executable, "-m", "demo.kinto_server", "--ini", str(self.ini), "--port", str(self.port)]
        # Without the variable it looks for its settings in the working directory too, and complains.
        environment = {**os.environ, "KINTO_INI": str(self.ini)}
        self.child = start("kinto", command, self.log, environment, PROJECT)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            self.child.check()
            if time.monotonic() > until:
                raise ChildFailedError(f"kinto does not answer on {self.url}: {self.child.last_words()}")
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """End it; transactions under way are rolled back, the database keeps the rest."""
        if self.child is not None:
            stop_all([self.child], patience=2)
            self.child = None

    def _write_settings(self) -> None:
        self.ini.parent.mkdir(parents=True, exist_ok=True)
        self.ini.touch(mode=0o600)  # the URL of a given server may hold a password
        # A percent sign begins a reference in this format.
        dsn = self.dsn.replace("%", "%%")
        self.ini.write_text(SETTINGS.format(dsn=dsn, threads=THREADS, page_size=PAGE_SIZE))

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/v1/__heartbeat__", timeout=5).ok
        except requests.ConnectionError:
            return False


def keep_utc(dsn: str) -> None:
    """Let the database's sessions live in UTC: Kinto writes their local time and reads it as if it were UTC."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = sql.SQL("alter database {} set timezone to 'UTC'")
        connection.execute(statement.format(sql.Identifier(connection.info.dbname)))


def serve(ini: Path, port: int) -> None:
    """Make or update the tables, then serve until the process is ended."""
    from kinto.__main__ import main

    main(["migrate", "--ini", str(ini)])
    main(["start", "--ini", str(ini), "--port", str(port)])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ini", type=Path, required=True)
    options.add_argument("--port", type=int, required=True)
    given = options.parse_args()
    serve(given.ini, given.port)
