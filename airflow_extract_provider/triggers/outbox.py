"""Waits for events in the outbox: for a deferred task, or for an asset that a DAG is scheduled on.

::

    mail = Asset("mail", watchers=[AssetWatcher(name="mail", trigger=OutboxTrigger(consumer="mail"))])
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, TypeAlias

import psycopg
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from psycopg import sql

from airflow_extract_provider.extract.store.connection import BACKEND
from airflow_extract_provider.extract.store.consumer import waiting
from airflow_extract_provider.extract.store.outbox import Wanted, channel
from airflow_extract_provider.hooks.store_async import AsyncStoreHook

__all__ = ["OutboxTrigger"]

_log = logging.getLogger(__name__)

_ANSWER = 30.0
"""Seconds after which a server that does not answer counts as lost."""

_LONGEST_PAUSE = 60.0

_Connection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
_News: TypeAlias = tuple[int, datetime | None]
"""What shows that something new has come: how many events there were ever, and the last parked one that became due."""


class OutboxTrigger(BaseEventTrigger):
    """Fires when a consumer has something to do: events that it wants and has not come to, or parked ones that are due.

    It listens to Postgres, on a connection of its own, and looks into the tables every ``every`` seconds all the same:
    what was announced while nobody listened is not lost. Behind a pooler it only looks: what it listens on there would
    be somebody else's session a moment later. A ``store_conn_id`` that leads past the pooler hears at once. A lost
    connection is opened again.

    It fires again when something new has come, not sooner than after ``every`` seconds, and every ``again`` seconds for
    as long as something waits: a run that was started and failed is not the end of it. An event says that there may be
    work, no more.

    :param consumer: the consumer's name. While it was never begun, all events wait for it.
    :param source: only events of this source; None: of all. So ``object`` and ``types``, as the operator is given them.
    :param store_conn_id: the Postgres connection of the store.
    :param schema: the schema of the bookkeeping.
    :param every: seconds between two looks.
    :param again: seconds after which it fires again for what waits still.
    :param until: an instant as ISO text, at which it fires in any case; None: never.
    """

    def __init__(
        self,
        *,
        consumer: str,
        source: str | None = None,
        object: str | None = None,
        types: Sequence[str] | None = None,
        store_conn_id: str = "extract_store",
        schema: str = "extract",
        every: float = 30.0,
        again: float = 600.0,
        until: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.consumer = consumer
        self.source = source
        self.object = object
        self.types = types
        self.store_conn_id = store_conn_id
        self.schema = schema
        self.every = every
        self.again = again
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments: the connection's name, no secret."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "consumer": self.consumer,
                "source": self.source,
                "object": self.object,
                "types": None if self.types is None else list(self.types),
                "store_conn_id": self.store_conn_id,
                "schema": self.schema,
                "every": self.every,
                "again": self.again,
                "until": self.until,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire for as long as it is wanted; a deferred task goes on after the first time."""
        told = _Told(self.again)
        pause = 1.0
        while not self._over():
            try:
                async with await self._listening() as conn:
                    while not self._over():
                        news = await self._news(conn)
                        pause = 1.0
                        if news is not None and told.is_new(news):
                            yield self._event(waiting=True)
                            await asyncio.sleep(self._seconds())
                        else:
                            await self._heard(conn)
            except Exception as exc:
                # Whatever it is, also a connection that Airflow does not find now: this must outlive it.
                _log.warning("consumer %s: the outbox cannot be watched (%s)", self.consumer, type(exc).__name__)
                await asyncio.sleep(min(pause, self._seconds()))
                pause = min(2 * pause, _LONGEST_PAUSE)
        yield self._event(waiting=False)

    async def _listening(self) -> _Connection:
        conn = await AsyncStoreHook(self.store_conn_id).connect_async()
        try:
            session = await (await conn.execute(BACKEND)).fetchone()
            with suppress(psycopg.Error):  # refused: then the looks must do
                if session == (conn.info.backend_pid,):
                    await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel(self.schema))))
        except BaseException:  # cancelled
            await conn.close()
            raise
        return conn

    async def _news(self, conn: _Connection) -> _News | None:
        """What is new, if there is something to do. After listening has begun: so nothing falls in between."""
        wanted = Wanted(self.source, self.object, None if self.types is None else tuple(self.types))
        async with asyncio.timeout(_ANSWER):
            row = await (await conn.execute(*waiting(self.schema, self.consumer, wanted))).fetchone()
        return (row[1], row[2]) if row is not None and row[0] else None

    async def _heard(self, conn: _Connection) -> None:
        """Return when something is announced, or when it is time to look."""
        async for _ in conn.notifies(timeout=self._seconds(), stop_after=1):
            pass

    def _seconds(self) -> float:
        """The time to the next look."""
        return max(0.0, min(self.every, self._left()))

    def _left(self) -> float:
        if self.until is None:
            return float("inf")
        return (datetime.fromisoformat(self.until) - datetime.now(timezone.utc)).total_seconds()

    def _over(self) -> bool:
        return self._left() <= 0

    def _event(self, *, waiting: bool) -> TriggerEvent:
        told = {"consumer": self.consumer, "waiting": waiting, "until": self.until}
        return TriggerEvent(told)  # type: ignore[no-untyped-call]  # Airflow's


class _Told:
    """What a trigger has fired for."""

    def __init__(self, again: float) -> None:
        self._again = again
        self._news: _News | None = None
        self._at = float("-inf")

    def is_new(self, news: _News) -> bool:
        """Whether to fire for this now; if so, it is told."""
        if news == self._news and time.monotonic() - self._at < self._again:
            return False
        self._news, self._at = news, time.monotonic()
        return True
