"""How long something may take, for very many at once: one timer for all of them, where each would pay for its own."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Patience"]


class Patience:
    """Cancels a task that is still within after so many ``seconds``; with it ends the patience, not the task::

        patience.begin()
        try:
            ...
        except asyncio.CancelledError:
            if not patience.is_over():
                raise
        finally:
            patience.end()

    All have the same time, so the first that began is the first to be looked at.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[asyncio.Task[Any], float] = {}
        self._over: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """From here on the current task's time runs."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        now = loop.time()
        self._due[task] = now + self._seconds
        if self._timer is None or self._loop is not loop:
            self._loop, self._timer = loop, loop.call_at(now + self._seconds, self._look)

    def end(self) -> None:
        """It is within no more."""
        task = asyncio.current_task()
        assert task is not None
        self._due.pop(task, None)
        self._over.discard(task)

    def is_over(self) -> bool:
        """Whether the current task was cancelled because its time is up, and for no other reason."""
        task = asyncio.current_task()
        assert task is not None
        return task in self._over and task.uncancel() == 0

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._due[task]
            self._over.add(task)
            task.cancel()
