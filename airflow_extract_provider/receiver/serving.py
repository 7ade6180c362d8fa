"""Runs the receiver on uvicorn: one process, or a parent that replaces workers that die."""

from __future__ import annotations

import gc
import logging
import logging.config
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from airflow_extract_provider.extract.errors import ExtractError, FixConfig, StoreUnavailableError
from airflow_extract_provider.extract.webhooks.guards import Guards
from airflow_extract_provider.extract.webhooks.protocol import GuardedProtocol
from airflow_extract_provider.receiver.app import App
from airflow_extract_provider.receiver.connections import beside_airflow, telling
from airflow_extract_provider.receiver.reaching import reach
from airflow_extract_provider.receiver.service import Loaded, Service, kept_in_kafka, loaded
from airflow_extract_provider.receiver.settings import Settings
from airflow_extract_provider.receiver.workers import supervisor

__all__ = ["Listen", "serve"]

_FILES = 65_536
"""Open files that are asked for: each connection is one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the receiver listens, with how many workers; ``behind`` are the addresses of proxies whose word on the
    client counts. ``connections`` is the most that one worker has open, ``stop`` how many seconds a stop may take."""

    host: str = "127.0.0.1"
    port: int = 8766
    workers: int = 2
    behind: str | None = None
    connections: int = 1000
    backlog: int = 2048
    keep_alive: int = 75
    stop: int = 20


def serve(settings: Settings, listen: Listen) -> int:
    """Receive webhooks until the process is told to end; returns its exit code.

    Raises ExtractError, before anything listens: what must be there is not, or not as it should be.
    """
    logging.config.dictConfig(_LOGGING)
    settings = replace(settings, sources=settings.sources.absolute())
    known = _checked(settings)
    with suppress(ValueError, OSError):  # then there are as many as there are
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, most) if most > 0 else _FILES, most))
    bound = _bound(listen)
    folder = Path(tempfile.mkdtemp(prefix="airflow-extract-receiver-"))
    try:
        worker = _Worker(replace(settings, numbers=folder if listen.workers > 1 else None), listen.connections, known)
        config = _config(worker, listen)
        where = "{}:{}".format(*bound.getsockname()[:2])
        count = sum(len(each.webhooks) for each in known.sources.values())
        _log.info("listening on %s for %d endpoints, with %d workers", where, count, listen.workers)
        return _run(config, bound, worker)
    finally:
        bound.close()
        shutil.rmtree(folder, ignore_errors=True)


def _checked(settings: Settings) -> Loaded:
    """Read what is needed, and see that it is good. A store that is away is waited for."""
    known = loaded(settings, telling(beside_airflow()))
    try:
        _prove(settings, known)
    except StoreUnavailableError as exc:
        _log.warning("%s Webhooks are refused until it is there.", exc.what)
    return known


def _prove(settings: Settings, known: Loaded) -> None:
    """See that webhooks can be kept by what was read. Raises ExtractError."""
    if settings.keep == "kafka":
        kept_in_kafka(settings, known.store)
    else:
        reach(settings, known.store)


def _bound(listen: Listen) -> socket.socket:
    """The socket that all workers share. Raises FixConfig: it is taken, or there is no such address."""
    try:
        family, *_, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=listen.backlog)
    except OSError as exc:
        # The number's own text: Python's tells the address once more.
        number = None if isinstance(exc, socket.gaierror) else exc.errno
        why = (os.strerror(number) if number else exc.strerror) or type(exc).__name__
        raise FixConfig(
            f"the receiver cannot listen on {listen.host}:{listen.port} ({why}).",
            todo="Choose another --host or --port.",
        ) from None


def _config(worker: _Worker, listen: Listen) -> uvicorn.Config:
    return uvicorn.Config(
        worker,
        factory=True,
        interface="asgi3",
        lifespan="on",
        ws="none",
        http=GuardedProtocol,
        workers=listen.workers,
        log_config=_LOGGING,
        access_log=False,
        server_header=False,
        proxy_headers=listen.behind is not None,
        forwarded_allow_ips=listen.behind,
        backlog=listen.backlog,
        timeout_keep_alive=listen.keep_alive,
        timeout_graceful_shutdown=listen.stop,
        timeout_worker_healthcheck=30,
    )


def _run(config: uvicorn.Config, bound: socket.socket, worker: _Worker) -> int:
    if config.workers == 1:
        server = _Server(config)
        server.run(sockets=[bound])
        return 0 if server.started else 1
    parent = supervisor(config, [bound], worker)
    try:
        parent.run()
    except BaseException:
        # Else they would live on, since we wait for them, and nobody replace them.
        parent.terminate_all()
        parent.join_all()
        raise
    return 1 if any(each.exitcode == STARTUP_FAILURE for each in parent.processes) else 0


class _Server(uvicorn.Server):
    """One that has no parent: a signal ends it in order, and it is told by no second one that it was. So does a hangup:
    there is nobody to replace it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Meanwhile they are told to the server."""
        before = signal.getsignal(signal.SIGHUP)
        if before is not signal.SIG_IGN:  # as `nohup` wants it
            signal.signal(signal.SIGHUP, self.handle_exit)
        try:
            with super().capture_signals():
                yield
                # Or each would be raised again, and the process be ended before its folder is away.
                self._captured_signals.clear()
        finally:
            signal.signal(signal.SIGHUP, before)


@dataclass(slots=True)
class _Worker:
    """Makes a worker's application, in its own process: of what the parent has ``known`` to be good. A file that
    somebody edits is not in the way of a worker that replaces another."""

    settings: Settings
    connections: int
    known: Loaded | None = field(repr=False)
    before: Loaded | None = field(default=None, repr=False)

    def __call__(self) -> App:
        GuardedProtocol.guards = Guards(connections=self.connections)
        app = App(Service(self.settings, beside_airflow(), self.known, GuardedProtocol.refusals))
        # What was imported stays for ever; each full collection would look through all of it, while all wait.
        gc.collect()
        gc.freeze()
        return app

    def __reduce__(self) -> tuple[type[_Worker], tuple[Settings, int, None]]:
        # Where workers are not forked: secrets do not belong into what is pickled, and are read again.
        return type(self), (self.settings, self.connections, None)

    def read_anew(self) -> Loaded | None:
        """Read all again; None: it is not good, which is said. Nor does a store pass that is away: there may be one
        where it was before."""
        try:
            known = loaded(self.settings, telling(beside_airflow()))
            _prove(self.settings, known)
        except Exception as exc:  # whatever somebody has written somewhere
            what = exc.what if isinstance(exc, ExtractError) else f"Reading all anew has failed ({type(exc).__name__})."
            _log.error("%s", what)
            return None
        return known

    def know(self, read: Loaded) -> None:
        """Let those who begin from now on know it."""
        self.known, self.before = read, self.known

    def put_back(self) -> None:
        """Know again what was known before it was read anew."""
        self.known = self.before


_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "loggers": {
        "airflow_extract_provider": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
    },
}
