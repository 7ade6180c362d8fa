"""A bound in time for what an asynchronous connection to Postgres does, though the server may not say a word."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import psycopg

from airflow_extract_provider.extract.store.connection import cut

__all__ = ["CANCEL_SECONDS", "Deadline"]

CANCEL_SECONDS = 2.0
"""How long a server may take to give up a statement before the connection is cut. It is told so for as long before."""


class Deadline:
    """Within its block, what the connection does is given up after so many ``seconds``, and fails by an error of
    psycopg's; at the latest twice :data:`CANCEL_SECONDS` later.

    The task that waits is not cancelled: some versions of psycopg would wait for such a server once more, without end.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any], seconds: float) -> None:
        self._conn, self._seconds = conn, seconds
        self._cutting: asyncio.Task[None] | None = None

    def __enter__(self) -> Deadline:
        """The time begins."""
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._cut)
        return self

    def __exit__(self, *error: object) -> None:
        """It does not count any more."""
        self._timer.cancel()
        if self._cutting is not None:
            self._cutting.cancel()

    @property
    def is_over(self) -> bool:
        """Whether the time was up before the end of the block."""
        return self._cutting is not None

    def _cut(self) -> None:
        self._cutting = asyncio.get_running_loop().create_task(_cut(self._conn))


async def _cut(conn: psycopg.AsyncConnection[Any]) -> None:
    """Have a statement given up; the connection as well, if the server does not answer to that."""
    with suppress(Exception):
        await conn.cancel_safe(timeout=CANCEL_SECONDS)
    await asyncio.sleep(CANCEL_SECONDS)
    cut(conn)
