"""The receiver as an ASGI application: webhooks go straight to it; Starlette tells of health, readiness and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from airflow_extract_provider.receiver.service import Service

__all__ = ["App"]

_PREFIX = "/webhooks/"


class App:
    """The application of one worker."""

    def __init__(self, service: Service, start: Callable[[], Awaitable[None]] | None = None) -> None:
        """``start`` is for who does more at the start than the service's own."""
        self._receive = service.receive
        self._others = _others(service, start or service.start)

    def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        """Hand a request on. No coroutine of its own: each delivery would pay for it."""
        if scope["type"] == "http" and scope["path"].startswith(_PREFIX):
            return self._receive(scope, receive, send)
        return self._others(scope, receive, send)


def _others(service: Service, start: Callable[[], Awaitable[None]]) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        await start()
        try:
            yield
        finally:
            await service.close()

    async def health(request: Request) -> Response:
        del request
        return PlainTextResponse("alive\n")

    async def ready(request: Request) -> Response:
        del request
        if service.ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("the store is not reachable\n", status_code=503, headers={"Retry-After": "5"})

    async def metrics(request: Request) -> Response:
        del request
        return Response(service.metrics(), media_type=CONTENT_TYPE_LATEST)

    routes = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
    return Starlette(routes=routes, lifespan=lifespan)
