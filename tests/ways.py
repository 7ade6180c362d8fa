"""The ways in which tests come into the store: as the owner of its tables; as the documented least role; through a real
PgBouncer that pools transactions.

What a test makes or looks at itself, it does as the owner. The program goes the test's way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import migrate as store_migrate
from airflow_extract_provider.extract.store.connection import Connect, Connection, connecting
from airflow_extract_provider.extract.store.grants import grants
from airflow_extract_provider.testing.postgres import PostgresServer, ends_with_starter, free_port

__all__ = [
    "CHOSEN",
    "EVERY_WAY",
    "Door",
    "Pooler",
    "Store",
    "Way",
    "as_owner",
    "chosen",
    "direct_only",
    "migrate",
    "pooled_or_skip",
]

Way: TypeAlias = Literal["owner", "least", "pgbouncer"]

CHOSEN = "EXTRACT_TEST_STORE"
"""The variable that sends all tests another way than `owner`."""

EVERY_WAY = frozenset(
    {
        "tests.exactly_once.test_interleavings",
        "tests.exactly_once.test_killed::test_outbox",
        "tests.exactly_once.test_killed::test_stopped_while_it_holds_locks",
        "tests.exactly_once.test_many_writers::test_versions",
        "tests.exactly_once.test_together",
        "tests.store.test_apply",
        "tests.store.test_fence",
        "tests.store.test_outbox",
        "tests.store.test_quarantine",
        "tests.store.test_tombstones",
        "tests.store.test_ways",
    }
)
"""The modules, or tests of them, that go each way whenever they run."""

_START_SECONDS = 15.0
_SESSIONS = 3


def chosen() -> Way:
    """The way that all tests go but those that go every way."""
    found = os.environ.get(CHOSEN, "owner")
    if found not in get_args(Way):
        raise pytest.UsageError(f"{CHOSEN} is {found!r}, and not one of {', '.join(get_args(Way))}")
    return found  # type: ignore[return-value]  # one of them


direct_only = pytest.mark.skipif(
    chosen() == "pgbouncer", reason="it watches, ends or sets up the session of one connection: a pooler has none"
)


class Store:
    """A test's database, and the way into it."""

    def __init__(self, way: Way, dsn: str, pooler: Pooler | None) -> None:
        self.way, self.owner = way, connecting(dsn)
        self.dsn = dsn
        """The program's way in."""
        self._role: str | None = None
        if way == "least":
            self._role = f"worker_of_{conninfo_to_dict(dsn)['dbname']}"
            self.dsn = make_conninfo(dsn, user=self._role)
            with self.owner() as conn:
                conn.execute(sql.SQL("create role {} login").format(sql.Identifier(self._role)))
            self.migrate([])
        if pooler is not None:
            self.dsn = pooler.dsn(dsn)

    @property
    def connect(self) -> Door:
        """Opens connections as the program does."""
        return Door(self)

    def migrate(self, sources: Iterable[Source], schema: str = "extract") -> list[str]:
        """Make the tables, and give the least role its rights to them, as the docs say."""
        sources = list(sources)
        done = store_migrate.migrate(self.owner, sources, schema)
        if self._role is not None:
            with self.owner() as conn:
                conn.execute(grants(self._role, sources, schema).encode())
        return done

    def close(self) -> None:
        """Remove the role."""
        if self._role is not None:
            with self.owner() as conn:
                text = sql.SQL("drop owned by {0}; drop role {0}")
                conn.execute(text.format(sql.Identifier(self._role)))


class Door:
    """Opens connections to a store as the program does; whoever needs more rights finds the store behind it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self) -> Connection:
        return connecting(self.store.dsn)()


def as_owner(connect: Connect) -> Connection:
    """A connection of the tables' owner to the database that a test is given connections to."""
    return connect.store.owner() if isinstance(connect, Door) else connect()


def migrate(connect: Connect, sources: Iterable[Source], schema: str = "extract") -> list[str]:
    """What a role does before the program runs: as the package's own ``migrate``, whatever way the program goes."""
    if isinstance(connect, Door):
        return connect.store.migrate(sources, schema)
    return store_migrate.migrate(connect, sources, schema)


class Pooler:
    """A PgBouncer of our own before a server. It pools transactions, and gives each one the session that has rested
    longest, so that hardly two of a client's are in the same."""

    def __init__(self, server: PostgresServer, folder: Path, program: str) -> None:
        self._server, self._folder, self._program = server, folder, program
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, direct: str) -> str:
        """The way to a database through it. Sessions are there for several of its clients' transactions at a time."""
        dbname = conninfo_to_dict(direct)["dbname"]
        made = make_conninfo(host="127.0.0.1", port=self.port, user="anybody", dbname=dbname)
        with contextlib.ExitStack() as several:
            for _ in range(_SESSIONS):
                several.enter_context(psycopg.connect(made)).execute("select 1")
        return made

    def start(self) -> None:
        """Start, and return when it answers."""
        command = [self._program, str(self._written())]
        if os.geteuid() == 0:
            command[1:1] = ["-u", "nobody"]
        with (self._folder / "pgbouncer.log").open("ab") as log:
            ends = ends_with_starter(signal.SIGKILL)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=ends)  # noqa: PLW1509
        until = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self.dsn(self._server.dsn())
                return
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"PgBouncer does not start: {(self._folder / 'pgbouncer.log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """End it as a failover does: all its clients are cut off. Then start it again."""
        self.stop()
        self.start()

    def _written(self) -> Path:
        parts = conninfo_to_dict(self._server.conninfo)
        parts.pop("dbname", None)
        server = " ".join(f"{name}={value}" for name, value in parts.items())
        file = self._folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n* = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            "unix_socket_dir =\nauth_type = any\npool_mode = transaction\nserver_round_robin = 1\n"
            "default_pool_size = 20\nmax_client_conn = 1000\nserver_login_retry = 1\n"
        )
        return file


@contextlib.contextmanager
def pooled_or_skip(server: PostgresServer) -> Iterator[Pooler]:
    """A PgBouncer before a server; where there is no program for it, the test is skipped."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no PgBouncer: `apt install pgbouncer`, `brew install pgbouncer` or the like brings one")
    with tempfile.TemporaryDirectory(prefix="extract-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        pooler = Pooler(server, folder, program)
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.stop()
