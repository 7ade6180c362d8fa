"""All that is read anew on a hangup, by a process of its own: what hangs there holds up nobody."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from airflow_extract_provider.receiver.signals import as_a_child, held_back

__all__ = ["Rereading"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Rereading(Generic[T]):
    """A process that reads something, and hands it over; it has so many ``seconds``. Where it reads nothing it says
    itself why. A thread would be in the way of all workers that are forked after it began to hang."""

    def __init__(self, read: Callable[[], T | None], seconds: float) -> None:
        """Begin to read."""
        self._heard, told = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._process = context.Process(target=_read, args=(read, told), daemon=True)
        self._until = time.monotonic() + seconds
        with held_back():
            self._process.start()
        # Ours would keep the pipe open when the process is gone.
        told.close()

    @property
    def over(self) -> bool:
        """Whether it has read, has died, or its time is up."""
        return self._heard.poll(0) or time.monotonic() >= self._until

    def found(self) -> T | None:
        """What was read, once it is over; None: nothing that is good, which is said. It ends the process."""
        try:
            if self._heard.poll(0):
                found: T | None = self._heard.recv()
                return found
            _log.error("Reading all anew does not end.")
        except (EOFError, OSError):
            _log.error("The process that read all anew has died.")
        finally:
            self.end()
        return None

    def end(self) -> None:
        """Give it up."""
        self._process.kill()
        self._process.join()
        self._heard.close()


def _read(read: Callable[[], T | None], told: Connection) -> None:
    """What runs in the process."""
    as_a_child()
    told.send(read())
