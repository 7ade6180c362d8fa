"""Reads the bodies that come in parts, of which nothing is verified yet, and bounds what they may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from airflow_extract_provider.extract.webhooks.answers import ANSWERS, Outcome
from airflow_extract_provider.extract.webhooks.patience import Patience

__all__ = ["Gathering"]

_BUSY, _CUT, _LARGE, _SLOW = (ANSWERS[each] for each in ("busy", "cut", "large", "slow"))

_Receive: TypeAlias = Callable[[], Awaitable[Any]]


class Gathering:
    """All bodies that are being read: each has so many ``seconds``, and together they hold ``most`` bytes.

    Beyond that the one that began first is given up: who is genuine has sent his in a moment, and must not be turned
    away by those who hold up theirs.
    """

    def __init__(self, seconds: float, most: int) -> None:
        self._patience, self._most = Patience(seconds), most
        self._bytes = 0
        # In the order in which they began.
        self._held: dict[asyncio.Task[Any], int] = {}
        self._given_up: set[asyncio.Task[Any]] = set()

    async def body(self, receive: _Receive, most: int) -> bytes | Outcome:
        """Read a body of ``most`` bytes at most; or what became of it, if that is not the whole one."""
        task = asyncio.current_task()
        assert task is not None
        self._held[task] = 0
        self._patience.begin()
        try:
            return await self._joined(task, receive, most)
        except asyncio.CancelledError:
            if self._patience.is_over():
                return _SLOW
            if task in self._given_up and task.uncancel() == 0:
                return _BUSY
            raise
        finally:
            self._patience.end()
            self._given_up.discard(task)
            self._bytes -= self._held.pop(task, 0)

    async def _joined(self, task: asyncio.Task[Any], receive: _Receive, most: int) -> bytes | Outcome:
        """Its parts.

        Only a message that says so itself is the end. A lost connection is another message: taken for the end, half a
        body under a token that signs nothing would pass for genuine.
        """
        parts: list[bytes] = []
        size = 0
        while (message := await receive())["type"] == "http.request":
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > most:
                return _LARGE
            if not message.get("more_body", False):
                return b"".join(parts)
            self._held[task] = size
            self._bytes += len(part)
            if not self._has_room(task):
                return _BUSY
        return _CUT

    def _has_room(self, task: asyncio.Task[Any]) -> bool:
        """Give up as many as must be; whether ``task``, whose turn it is, is not one of them."""
        while self._bytes > self._most:
            # Of those that hold something: who has sent nothing yet gives nothing back.
            first = next(each for each, size in self._held.items() if size)
            if first is task:
                return False
            # At once: it gets its turn only later, and until then others would be given up in its place.
            self._bytes -= self._held.pop(first)
            self._given_up.add(first)
            first.cancel()
        return True
