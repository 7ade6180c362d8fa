"""What tests of the keep in Postgres share."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from airflow_extract_provider.extract.errors import StoreUnavailableError
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.webhooks.inbox_writer import opened
from airflow_extract_provider.extract.webhooks.keeping import Bounds, Commit, PostgresKeep

__all__ = ["QUICK", "USUAL", "bodies", "delivery", "keeping", "locked", "named", "outcomes", "run", "until"]

USUAL, QUICK = Bounds(), Bounds(deadline=2.0, look=0.2)


def delivery(body: bytes, **headers: str) -> Incoming:
    """One without an id."""
    return Incoming("shop", "orders", body, headers)


def named(number: int, body: bytes = b"{}", endpoint: str = "orders") -> Incoming:
    """One with an id."""
    return Incoming("shop", endpoint, body, dedupe=uuid.UUID(int=number))


@asynccontextmanager
async def keeping(dsn: str, bounds: Bounds = USUAL, commits: list[Commit] | None = None) -> AsyncIterator[PostgresKeep]:
    """A keep that is started, and closed in the end."""
    keep = PostgresKeep(lambda: opened(dsn), bounds=bounds, told=None if commits is None else commits.append)
    await keep.start()
    try:
        yield keep
    finally:
        await keep.close()


async def outcomes(*puts: Awaitable[bool]) -> list[Any]:
    """What each returned, or the kind of error it raised."""
    found = await asyncio.gather(*puts, return_exceptions=True)
    return [_kind(each) if isinstance(each, BaseException) else each for each in found]


def _kind(error: BaseException) -> type[BaseException]:
    return StoreUnavailableError if isinstance(error, StoreUnavailableError) else type(error)


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def run(main: Coroutine[Any, Any, None]) -> None:
    """No test hangs."""
    asyncio.run(asyncio.wait_for(main, 120))


def bodies(dsn: str) -> list[bytes]:
    """What is stored, by place."""
    with psycopg.connect(dsn) as conn:
        return [body for (body,) in conn.execute("select body from extract.inbox order by place")]


@contextlib.contextmanager
def locked(dsn: str, mode: str = "exclusive") -> Iterator[psycopg.Connection]:
    """Nobody else stores anything meanwhile."""
    with psycopg.connect(dsn) as conn:
        conn.execute(f"lock table extract.inbox in {mode} mode")
        yield conn
        conn.rollback()
