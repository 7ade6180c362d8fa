"""What triggers have in common that wait for work in the store: they hear of it, and look all the same."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_extract_provider.triggers.line import Ear, listening

if TYPE_CHECKING:
    from psycopg import sql

__all__ = ["ListeningTrigger"]

_log = logging.getLogger(__name__)

_LONGEST_PAUSE = 60.0
_BETWEEN_LOOKS = 0.5
"""Seconds: what is announced on a channel is mostly for others."""

_T = TypeVar("_T")
_News: TypeAlias = tuple[Any, ...]
"""What shows that something new has come."""


class ListeningTrigger(BaseEventTrigger):
    """Fires when there is something to do; its subclasses say what.

    It listens to Postgres, on a connection that it shares with all others in its triggerer that wait at the same store,
    and looks into the tables every ``every`` seconds all the same: what was announced while nobody listened is not
    lost. Behind a pooler it only looks: what it listens on there would be somebody else's session a moment later. A
    ``store_conn_id`` that leads past the pooler hears at once. A lost connection is opened again.

    It fires again when something new has come, not sooner than after ``pause`` seconds, and every ``again`` seconds for
    as long as something waits: a run that was started and failed is not the end of it. An event says that there may be
    work, no more.
    """

    def __init__(
        self, *, store_conn_id: str, schema: str, every: float, pause: float, again: float, until: str | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.store_conn_id = store_conn_id
        self.schema = schema
        self.every = every
        self.pause = pause
        self.again = again
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments: the connection's name, no secret."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self._arguments()

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire for as long as it is wanted; a deferred task goes on after the first time."""
        told = _Told(self.again)
        pause = 1.0
        while not self._over():
            try:
                with listening(self.store_conn_id, self._channel()) as ear:
                    await self._in_time(ear.begin())
                    while not self._over():
                        looked = time.monotonic()
                        news = await self._news(ear)
                        pause = 1.0
                        if news is not None and told.is_new(news):
                            yield self._event(waiting=True)
                            await asyncio.sleep(self._seconds(self.pause))
                        else:
                            await ear.heard(self._seconds(self.every))
                            await asyncio.sleep(self._seconds(looked + _BETWEEN_LOOKS - time.monotonic()))
            except Exception as exc:
                # Whatever it is, also a connection that Airflow does not find now: this must outlive it.
                if self._over():
                    break
                _log.warning("%s cannot be watched (%s)", self._watched(), type(exc).__name__)
                await asyncio.sleep(self._seconds(min(pause, self.every)))
                pause = min(2 * pause, _LONGEST_PAUSE)
        yield self._event(waiting=False)

    @abstractmethod
    def _arguments(self) -> dict[str, Any]:
        """What it was made with, as JSON values."""

    @abstractmethod
    def _watched(self) -> str:
        """What it waits for, as the log says it."""

    @abstractmethod
    def _channel(self) -> str:
        """Where that is announced."""

    @abstractmethod
    def _question(self) -> tuple[sql.Composed, Mapping[str, Any]]:
        """Whether there is something to do, as a statement with its parameters; the rest of the row that answers it
        shows that something new has come."""

    @abstractmethod
    def _whose(self) -> dict[str, Any]:
        """What an event tells of whom it is for."""

    async def _news(self, ear: Ear) -> _News | None:
        """What is new, if there is something to do. After listening has begun: so nothing falls in between."""
        row = await self._in_time(ear.ask(*self._question()))
        return row[1:] if row is not None and row[0] else None

    async def _in_time(self, work: Awaitable[_T]) -> _T:
        """Whoever waits until an instant waits no longer because the line is being repaired. Raises TimeoutError."""
        async with asyncio.timeout(None if self.until is None else self._left()):
            return await work

    def _seconds(self, most: float) -> float:
        """So many, if there is time enough left."""
        return max(0.0, min(most, self._left()))

    def _left(self) -> float:
        if self.until is None:
            return float("inf")
        return (datetime.fromisoformat(self.until) - datetime.now(timezone.utc)).total_seconds()

    def _over(self) -> bool:
        return self._left() <= 0

    def _event(self, *, waiting: bool) -> TriggerEvent:
        told = {**self._whose(), "waiting": waiting, "until": self.until}
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
