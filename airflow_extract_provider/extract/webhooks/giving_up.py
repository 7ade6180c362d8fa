"""An end to waiting, for who may not wait as long as something hangs, such as what a connection to Postgres does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from airflow_extract_provider.extract.store.connection import Connection, cut
from airflow_extract_provider.extract.webhooks.deadline import CANCEL_SECONDS

__all__ = ["GivingUp", "Until", "begun"]

_STOP_SECONDS = 3.0
"""How long what is under way may still last when the process is told to stop."""
_LOOKED_EVERY = 0.1

T = TypeVar("T")


def begun(work: Callable[[], T]) -> Future[T]:
    """Begin some work in a thread of its own, and tell how it ends. The process does not wait for it at its end."""
    told: Future[T] = Future()

    def run() -> None:
        try:
            told.set_result(work())
        except BaseException as exc:
            told.set_exception(exc)

    threading.Thread(target=run, name="begun", daemon=True).start()
    return told


class Until:
    """The end of so many ``seconds``, or of a few seconds after ``stop`` was seen to be set."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._at, self._stop, self._stopping = time.monotonic() + seconds, stop, False

    @property
    def over(self) -> bool:
        """Whether it has come. It is to be asked again and again."""
        if self._stop.is_set() and not self._stopping:
            self._at, self._stopping = min(self._at, time.monotonic() + _STOP_SECONDS), True
        return time.monotonic() >= self._at

    def waited(self, told: Future[T]) -> bool:
        """Wait for some work; returns whether it has ended before the time was over."""
        while not told.done() and not self.over:
            with suppress(TimeoutError):
                told.exception(_LOOKED_EVERY)
        return told.done()


class GivingUp:
    """Within its block, what the connection does is given up when the time is over, and fails by an error of psycopg's:
    the statement is cancelled, and where the server does not answer to that, the connection is cut."""

    def __init__(self, conn: Connection, until: Until) -> None:
        self._conn, self._until = conn, until
        self._lock, self._ended, self._given_up = threading.Lock(), threading.Event(), False

    def __enter__(self) -> GivingUp:
        """The time is looked at."""
        threading.Thread(target=self._watch, name="giving up", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """It does not count any more."""
        with self._lock:
            self._ended.set()

    @property
    def happened(self) -> bool:
        """Whether the time was over before the end of the block."""
        return self._given_up

    def _watch(self) -> None:
        while not self._until.over:
            if self._ended.wait(_LOOKED_EVERY):
                return
        with self._lock:
            if self._ended.is_set():
                return
            self._given_up = True
        # In a thread of its own: an older libpq has no bound for it.
        begun(lambda: self._conn.cancel_safe(timeout=CANCEL_SECONDS))
        if not self._ended.wait(CANCEL_SECONDS):
            self._cut()

    def _cut(self) -> None:
        # Locked: once the block has ended the connection may be closed, and its number belong to another one.
        with self._lock:
            if self._ended.is_set():
                return
            cut(self._conn)
