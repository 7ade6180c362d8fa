"""All that is read anew on a hangup, by a process of its own: what hangs there holds up nobody."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import select
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from airflow_extract_provider.receiver.signals import as_a_child, held_back

__all__ = ["Rereading"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_PORTION = 1 << 16
_FLOWS = 0.05
"""Seconds after which what is handed over does not flow."""
_GONE = 5.0
"""Seconds that the kernel has to end a process that was killed."""


class Rereading(Generic[T]):
    """A process that reads something, and hands it over; it has so many ``seconds``. Where it reads nothing it says
    itself why. A thread would be in the way of all workers that are forked after it began to hang."""

    def __init__(self, read: Callable[[], T | None], seconds: float) -> None:
        """Begin to read. Raises OSError: there may be no more processes or files now."""
        self._heard, told = os.pipe()
        try:
            self._process = multiprocessing.get_context("fork").Process(target=_read, args=(read, told), daemon=True)
            with held_back():
                self._process.start()
        except OSError:
            os.close(self._heard)
            raise
        finally:
            # Ours would keep the pipe open when the process is gone.
            os.close(told)
        self._until, self._told, self._ended = time.monotonic() + seconds, bytearray(), False

    @property
    def over(self) -> bool:
        """Whether it has read, has died, or its time is up. It takes what has been handed over so far: to wait for all
        of it would be to wait for a process that may be stopped in the midst of it."""
        while not self._ended and select.select([self._heard], [], [], _FLOWS)[0]:
            portion = os.read(self._heard, _PORTION)
            self._told += portion
            self._ended = not portion
        return self._ended or time.monotonic() >= self._until

    def found(self) -> T | None:
        """What was read, once it is over; None: nothing that is good, which is said. It ends the process."""
        self.end()
        if not self._ended:
            _log.error("Reading all anew does not end.")
            return None
        try:
            found: T | None = pickle.loads(self._told)  # noqa: S301 - our own child's
        except Exception:  # of half of it, any
            _log.error("The process that read all anew has died.")
            return None
        return found

    def end(self) -> None:
        """Give it up."""
        self._process.kill()
        self._process.join(_GONE)
        os.close(self._heard)


def _read(read: Callable[[], T | None], told: int) -> None:
    """What runs in the process."""
    as_a_child()
    with os.fdopen(told, "wb") as file:
        file.write(pickle.dumps(read()))
