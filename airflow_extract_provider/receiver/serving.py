"""Runs the receiver on uvicorn: one process, or a parent that replaces workers that die."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from airflow_extract_provider.extract.errors import ExtractError, FixConfig, StoreUnavailableError
from airflow_extract_provider.extract.store import inbox, inbox_count
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.extract.webhooks.protocol import GuardedProtocol
from airflow_extract_provider.hooks.store import StoreHook
from airflow_extract_provider.receiver.app import App
from airflow_extract_provider.receiver.connections import Find, beside_airflow
from airflow_extract_provider.receiver.service import Service, kept_in_kafka, loaded, store_connection
from airflow_extract_provider.receiver.settings import Settings

__all__ = ["Listen", "serve"]

_FILES = 65_536
"""Open files that are asked for: each connection is one."""
_AGAIN = 2.0
"""Seconds before a worker that cannot begin gives up and is replaced."""

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
    settings = replace(settings, sources=settings.sources.absolute())
    count = _check(settings, beside_airflow())
    with suppress(ValueError, OSError):  # then there are as many as there are
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, most) if most > 0 else _FILES, most))
    bound = _bound(listen)
    folder = Path(tempfile.mkdtemp(prefix="airflow-extract-receiver-"))
    try:
        config = _config(replace(settings, numbers=folder if listen.workers > 1 else None), listen)
        config.configure_logging()
        where = "{}:{}".format(*bound.getsockname()[:2])
        _log.info("listening on %s for %d endpoints, with %d workers", where, count, listen.workers)
        return _run(config, bound)
    finally:
        bound.close()
        shutil.rmtree(folder, ignore_errors=True)


def _check(settings: Settings, find: Find) -> int:
    """See that what is needed is there; returns how many endpoints there are. A store that is away is waited for."""
    sources, _ = loaded(settings, find)
    if settings.keep == "kafka":
        kept_in_kafka(settings, find)
    else:
        hook = StoreHook(settings.store_conn_id, connection=store_connection(settings, find))
        try:
            with named_errors(), hook.connect() as conn:
                # The very statements, with nothing to store: tables and rights are as they need them.
                inbox.put(conn, settings.schema, [])
                inbox_count.add(conn, settings.schema, {})
        except StoreUnavailableError as exc:
            _log.warning("%s Webhooks are refused until it is there.", exc.what)
    return sum(len(each.webhooks) for each in sources.values())


def _bound(listen: Listen) -> socket.socket:
    """The socket that all workers share. Raises FixConfig: it is taken, or there is no such address."""
    try:
        family, *_, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=listen.backlog)
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise FixConfig(
            f"the receiver cannot listen on {listen.host}:{listen.port} ({why}).",
            todo="Choose another --host or --port.",
        ) from None


def _config(settings: Settings, listen: Listen) -> uvicorn.Config:
    return uvicorn.Config(
        _Worker(settings),
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
        limit_concurrency=listen.connections,
        backlog=listen.backlog,
        timeout_keep_alive=listen.keep_alive,
        timeout_graceful_shutdown=listen.stop,
        timeout_worker_healthcheck=30,
    )


def _run(config: uvicorn.Config, bound: socket.socket) -> int:
    if config.workers == 1:
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[bound])
        return 0 if server.started else 1
    parent = Multiprocess(config, sockets=[bound])
    parent.run()
    return 1 if any(each.exitcode == STARTUP_FAILURE for each in parent.processes) else 0


@dataclass(frozen=True, slots=True)
class _Worker:
    """Makes a worker's application, in its own process."""

    settings: Settings

    def __call__(self) -> App:
        _end_with_parent()
        try:
            service = Service(self.settings, beside_airflow())
        except ExtractError as exc:
            _give_up(exc)
        return App(service, partial(_started, service))


async def _started(service: Service) -> None:
    try:
        await service.start()
    except ExtractError as exc:
        _give_up(exc)


def _give_up(exc: ExtractError) -> NoReturn:
    """End this worker; it is replaced. What it needs was there when the parent looked, and may be there again."""
    _log.error("%s", exc)
    time.sleep(_AGAIN)
    # Not by an exception: uvicorn would take it for a start that fails for ever, and stop all other workers too.
    os._exit(1)


def _end_with_parent() -> None:
    """Without its parent nobody would replace this worker, or end it."""
    parent = parent_process()
    if parent is None:
        return

    def work() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=work, name="parent", daemon=True).start()


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
