"""Lets Airflow's API server receive webhooks too, if its configuration says so. Airflow loads this in each of its
processes: nothing is made before the first request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow.plugins_manager import AirflowPlugin

from airflow_extract_provider import config

if TYPE_CHECKING:
    from airflow_extract_provider.receiver.app import App
    from airflow_extract_provider.receiver.service import Service

__all__ = ["PREFIX", "ExtractPlugin", "Mounted"]

_Begun: TypeAlias = "tuple[App, asyncio.Task[None]]"

PREFIX = "/extract-webhooks"

_AGAIN = 5.0
"""Seconds before it is tried again to begin: not at each request, which any stranger can send."""

_log = logging.getLogger(__name__)


class Mounted:
    """The receiver below a path of the API server, made at the first request: the API server tells a mounted
    application neither of its start nor of its end."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._beginning: asyncio.Task[_Begun] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._not_before = 0.0

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request as the receiver does, or with 503 if that cannot begin."""
        if scope["type"] != "http":
            return
        if self._app is None and not await self._begun():
            await _refused(send)
            return
        assert self._app is not None
        root = scope.get("root_path", "")
        inner = {**scope, "path": scope["path"].removeprefix(root), "root_path": ""}
        await self._app(inner, receive, send)

    async def _begun(self) -> bool:
        """Begin, once for all who wait; a client that goes away meanwhile does not end it."""
        if self._beginning is None:
            if time.monotonic() < self._not_before:
                return False
            self._beginning = asyncio.create_task(_begin())
        task = self._beginning
        try:
            self._app, self._closing = await asyncio.shield(task)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            if self._beginning is task:
                self._beginning, self._not_before = None, time.monotonic() + _AGAIN
                _log.error("webhooks are not received: %s: %s", type(exc).__name__, exc)
            return False
        return True


async def _begin() -> _Begun:
    from airflow_extract_provider.hooks.connection import find_connection
    from airflow_extract_provider.receiver.app import App
    from airflow_extract_provider.receiver.service import Service
    from airflow_extract_provider.receiver.settings import Settings

    public = config.receiver_public_url()
    settings = Settings(
        sources=Path(config.dags_folder()) / config.sources_folder(),
        store_conn_id=config.store_conn_id(),
        public_url=public and public + PREFIX,
    )
    # In a thread: connections are read from Airflow's database.
    service = await asyncio.to_thread(Service, settings, find_connection)
    await service.start()
    return App(service), asyncio.create_task(_closing(service))


async def _closing(service: Service) -> None:
    """Close when the event loop ends: it cancels what is left, and waits for it."""
    try:
        await asyncio.Event().wait()
    finally:
        await service.close()


async def _refused(send: Any) -> None:
    headers = [(b"retry-after", b"30"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _apps() -> list[dict[str, Any]]:
    try:
        wanted = config.receiver_in_api_server()
    except Exception as exc:  # a value that is neither true nor false must not keep Airflow from starting
        _log.error("[extract] receiver_in_api_server is not understood (%s): no webhooks are received", exc)
        return []
    return [{"app": Mounted(), "url_prefix": PREFIX, "name": "extract webhooks"}] if wanted else []


class ExtractPlugin(AirflowPlugin):
    """What this package adds to Airflow's own processes."""

    name = "extract"
    fastapi_apps = _apps()
