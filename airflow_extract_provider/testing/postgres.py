"""A real Postgres for tests, demos and benchmarks: from a PyPI wheel, or the server somebody names.

``postgres_or_embedded(folder)`` is the door. With ``EXTRACT_POSTGRES_DSN`` set it hands out that server,
otherwise it starts an ``EmbeddedPostgres`` and stops it again.

Three decisions that look odd and are not:

* The server is our direct child, never started by ``pg_ctl``: so its death is seen at once, a ``kill -9`` can
  be waited for, and on Linux it ends when its starter does.
* As root the server runs as ``nobody``, since Postgres refuses root. Nothing is done to the permissions of
  directories that are not ours (the wheels' own start code opens every parent directory to all). What
  ``nobody`` cannot reach is placed below the temporary directory instead: the binaries are copied there, and
  the data of a folder that cannot be reached lives there under a name computed from the folder.
* TCP on 127.0.0.1 only, no Unix socket: its path may have about 100 bytes, a checkout's may have more.
  Everyone on this machine may log in without a password: it is for tests and demos, not for real data.
"""

import contextlib
import ctypes
import hashlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.postgres_binaries import (
    SERVER_VARIABLE,
    PostgresStartError,
    as_root,
    find_binaries,
    is_ours,
    open_to_all,
)

__all__ = [
    "EmbeddedPostgres",
    "PostgresServer",
    "PostgresStartError",
    "ends_with_starter",
    "find_binaries",
    "free_port",
    "postgres_or_embedded",
]

SUPERUSER = "postgres"

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
# What Postgres says while the processes of a killed server are still ending; it goes away by itself.
_PASSING_TROUBLES = ("lock file", "pre-existing shared memory block")
_PORT_TAKEN = "could not bind"
_GIVEN, _LEAST_PORT = Path("/proc/sys/net/ipv4/ip_local_port_range"), 20_000
"""Where Linux says which ports it gives away itself, and from where on below these there are some for us."""


class PostgresServer:
    """A server on which databases can be made; it is somebody else's to start and stop."""

    def __init__(self, conninfo: str) -> None:
        """Take a connection string of a user who may create databases."""
        self._conninfo = conninfo

    @property
    def conninfo(self) -> str:
        """The connection string that everything else here is derived from."""
        return self._conninfo

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the URL of one database, fit for psycopg and, with another scheme, for SQLAlchemy."""
        parts = {name: str(value) for name, value in conninfo_to_dict(self.conninfo).items() if value is not None}
        parts.pop("dbname", None)
        login = quote(parts.pop("user", ""), safe="")
        if "password" in parts:
            login += ":" + quote(parts.pop("password"), safe="")
        # A host that is a directory (Unix socket) or a list of hosts does not fit into a URL's host part.
        host = "" if any(mark in parts.get("host", "") for mark in "/,:") else parts.pop("host", "")
        port = f":{parts.pop('port')}" if host and "port" in parts else ""
        rest = f"?{urlencode(parts)}" if parts else ""
        return f"postgresql://{login + '@' if login else ''}{host}{port}/{quote(dbname, safe='')}{rest}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, as a copy of ``template`` if one is named, and return its URL.

        Nobody may be connected to the template meanwhile: Postgres refuses to copy a database in use.
        """
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" template {}").format(sql.Identifier(template))
        self._administer(statement)
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Remove a database if it is there, ending the sessions that still use it."""
        self._administer(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)


class EmbeddedPostgres(PostgresServer):
    """A Postgres of our own on a free loopback port, its data kept in a folder between starts.

    As a context manager it starts on entry and stops on exit. ``start`` after ``stop`` or ``kill`` brings the
    same data back on the same port. On Linux it ends when the *thread* that started it ends, however that
    happens: start it from a thread that lives as long as the server is needed.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, str] | None = None) -> None:
        """Prepare, doing nothing yet.

        ``folder`` receives ``data/`` and ``postgres.log``. ``settings`` are server settings by name;
        ``{"fsync": "off"}`` is for data that may be lost with the machine.
        """
        self.folder = Path(folder).absolute()
        self.settings = dict(settings or {})
        self.port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def conninfo(self) -> str:
        """The superuser's connection string; known once the server has been started."""
        if self.port is None:
            raise PostgresStartError(f"Postgres in {self.folder} has not been started yet, so it has no port")
        return f"host=127.0.0.1 port={self.port} user={SUPERUSER}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "postgres.log"

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever happened inside."""
        self.stop()

    def start(self) -> Self:
        """Make the data directory if there is none, start, and return when a connection succeeds."""
        if self.pid is not None:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        binaries = find_binaries()
        data = self._data_directory(binaries)
        until = time.monotonic() + _START_SECONDS
        while True:
            chosen = self.port or free_port()
            said = self._try_start(binaries, data, chosen, until)
            if said is None:
                self.port = chosen
                return self
            passing = _PASSING_TROUBLES if self.port else (*_PASSING_TROUBLES, _PORT_TAKEN)
            if time.monotonic() > until or not any(trouble in said for trouble in passing):
                raise PostgresStartError(f"Postgres in {data} did not start: {said} (log: {self.log})")
            time.sleep(0.1)

    def stop(self) -> None:
        """End all sessions, flush, and wait until the server is gone; harder if it does not listen."""
        if self._process is None:
            return
        for how, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
            self._process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        self._process = None

    def kill(self) -> None:
        """End the server as a crash would (``kill -9``) and wait for it; ``start`` then recovers the data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _data_directory(self, binaries: Path) -> Path:
        """Return the data directory, made by initdb if it is new."""
        home = _reachable_folder(self.folder)
        data = home / "data"
        if data.exists():
            return data
        # Under another name until it is whole: an initdb that was interrupted leaves nothing to trip over.
        new = Path(tempfile.mkdtemp(prefix="data-", dir=home))
        _give_to_server(new)
        command = [str(binaries / "initdb"), "-D", str(new), "-U", SUPERUSER, "-E", "UTF8", "--no-locale"]
        command += ["--auth=trust", "--no-instructions"]
        command += ["--no-sync"] if self.settings.get("fsync") == "off" else []
        made = _run_as_server(command)
        if made.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise PostgresStartError(f"initdb failed in {home}: {_tail(made.stdout)}")
        new.rename(data)
        return data

    def _try_start(self, binaries: Path, data: Path, port: int, until: float) -> str | None:
        """Start once; return None when connections succeed, else what the server said before it ended."""
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        for name, value in {**self.settings, **_FIXED_SETTINGS}.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = _spawn_server(command, log.fileno())
        dsn = f"host=127.0.0.1 port={port} user={SUPERUSER} dbname=postgres connect_timeout=2"
        try:
            while self._process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(psycopg.OperationalError):
                    psycopg.connect(dsn).close()
                    # Somebody else's server may have won the port and answered in its place.
                    if self._process.poll() is None and _listens(data, port):
                        return None
                time.sleep(0.03)
        except BaseException:  # Ctrl-C while waiting must not leave a server behind
            self.stop()
            raise
        self.stop()
        return _tail(self.log.read_bytes()[begin:])


# No Unix socket: see the module's docstring.
_FIXED_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}


@contextlib.contextmanager
def postgres_or_embedded(folder: Path | str, settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Give the server named by ``EXTRACT_POSTGRES_DSN``, or else an embedded one for as long as it is used.

    ``settings`` count for the embedded one only: the configuration of a given server is its owner's.
    """
    given = os.environ.get(SERVER_VARIABLE)
    if given:
        yield PostgresServer(given)
        return
    with EmbeddedPostgres(folder, settings) as server:
        yield server


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment.

    It is none that the kernel gives to who asks for any: such a one might have another by the time that the process
    listens for which it was looked for.
    """
    try:
        end = int(_GIVEN.read_text().split()[0])
    except (OSError, ValueError):  # not Linux
        end = 0
    for _ in range(100 if end > _LEAST_PORT else 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(_LEAST_PORT, end)  # noqa: S311 - no secret
            probe.bind(("127.0.0.1", port))
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reachable_folder(folder: Path) -> Path:
    """Return ``folder``, or its stand-in below the temporary directory if ``nobody`` cannot get there."""
    if not as_root() or open_to_all(folder):
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    stand_in = Path(tempfile.gettempdir()) / f"airflow-extract-data-{name}"
    with contextlib.suppress(FileExistsError):
        stand_in.mkdir()
        stand_in.chmod(0o755)
    if not is_ours(stand_in):
        raise PostgresStartError(
            f"{folder} cannot be reached by the user nobody, and {stand_in} belongs to somebody else;"
            f" set TMPDIR to another folder, or open {folder} to other users"
        )
    return stand_in


def _give_to_server(folder: Path) -> None:
    if as_root():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)


def _identity() -> tuple[str | None, int | None, Sequence[str] | None]:
    """Return user, group and extra groups for the server's processes; None keeps our own."""
    if not as_root():
        return None, None, None
    return "nobody", pwd.getpwnam("nobody").pw_gid, []


def _surroundings() -> dict[str, str]:
    """Return the environment for the server: ours without PG* (a stray PGDATA or PGPORT would be obeyed)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _run_as_server(command: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
    user, group, extra_groups = _identity()
    return subprocess.run(  # noqa: S603 - a program found above, with arguments from this file
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",  # the server's user may not be allowed into ours
        env=_surroundings(),
        user=user,
        group=group,
        extra_groups=extra_groups,
        check=False,
    )


def _spawn_server(command: Sequence[str], log: int) -> "subprocess.Popen[bytes]":
    user, group, extra_groups = _identity()
    return subprocess.Popen(  # noqa: S603 - a program found above, with arguments from this file
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=_surroundings(),
        user=user,
        group=group,
        extra_groups=extra_groups,
        # Ctrl-C in a terminal goes to every process of the group: the server must outlive its clients.
        start_new_session=True,
        preexec_fn=ends_with_starter(signal.SIGQUIT),  # noqa: PLW1509 - it makes one system call, takes no lock
    )


def ends_with_starter(how: signal.Signals) -> Callable[[], None] | None:
    """Return a ``preexec_fn`` after which the kernel sends ``how`` to the child when its starter dies.

    Even a ``kill -9`` of the starter then leaves nothing behind. Linux only; None elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork: between fork and exec as little as possible
    starter = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(how))
        if os.getppid() != starter:  # it died before the line above: no signal will come any more
            os._exit(1)

    return prepare


def _listens(data: Path, port: int) -> bool:
    """Tell whether the server of this data directory is the one on this port (line 4 of its pid file)."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) > 3 and lines[3] == str(port)


def _tail(output: bytes) -> str:
    """Return the last words of a program, in one line."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-6:])[-1000:] or "it said nothing"
