"""The receiver's workers: uvicorn's own, but for how they begin, how they are replaced, and that they end with their
parent.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import uvicorn
from uvicorn._subprocess import subprocess_started
from uvicorn.supervisors import Multiprocess, multiprocess

from airflow_extract_provider.receiver.rereading import Rereading
from airflow_extract_provider.receiver.signals import as_a_child, held_back

__all__ = ["Knowing", "supervisor"]

_log = logging.getLogger(__name__)

_READING = 120.0
"""Seconds that reading all anew may take."""
_SPARE = 10.0
"""Seconds that a worker has beyond those of its graceful stop."""
_LOOK = 0.2

T = TypeVar("T")


class Knowing(Protocol[T]):
    """What workers know when they begin."""

    def read_anew(self) -> T | None:
        """Read all again, in a process of its own; None: it is not good, which was said."""

    def know(self, read: T) -> None:
        """Let all that begin from now on know it."""

    def put_back(self) -> None:
        """Let them know again what was known before."""


def supervisor(config: uvicorn.Config, sockets: Sequence[socket.socket], knowing: Knowing[T]) -> Multiprocess:
    """The parent of workers: replaces one that dies, and on SIGHUP all, one after the other, if all could be read
    anew; if then one does not begin, what was known before is put back."""
    # It makes its workers by this name.
    multiprocess.Process = _Worker  # type: ignore[misc]
    return _Parent(config, [*sockets], knowing)


class _Parent(Multiprocess, Generic[T]):
    """Lets all be read before its workers do: what is wrong then keeps none from going on, and what hangs holds nobody
    up: it replaces whoever dies, and ends when it is told to."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], knowing: Knowing[T]) -> None:
        super().__init__(config, sockets)
        self._knowing = knowing
        self._reading: Rereading[T] | None = None
        self._leaving: list[multiprocess.Process] = []
        self._said = ""

    def handle_hup(self) -> None:
        """Begin to read all anew; what may have been read before that does not count any more."""
        if self._reading is not None:
            self._reading.end()
            self._reading = None
        try:
            self._reading = Rereading(self._knowing.read_anew, _READING)
        except OSError as exc:
            _log.error("nothing can be read anew now (%s). What was read before stays.", exc.strerror)

    def keep_subprocess_alive(self) -> None:
        """What is done twice a second: replace who has died, and all once something new was read."""
        # The dead first: one that hangs is waited for half a minute before it is replaced.
        self.processes.sort(key=lambda each: each.process.is_alive())
        try:
            super().keep_subprocess_alive()
            self._said = ""
        except OSError as exc:  # no more processes, or files: there may be some again
            if self._said != (said := str(exc.strerror)):
                _log.error("no worker can be begun now (%s): it is tried again and again", said)
            self._said = said
        self._take_over()

    def _take_over(self) -> None:
        if self._reading is not None and self._reading.over:
            found, self._reading = self._reading.found(), None
            if found is None:
                _log.error("What was read before stays.")
                return
            self._knowing.know(found)
            self._replace_all()

    def join_all(self) -> None:
        """Wait for all to end, but not without end for one that cannot: it may be stopped, or hang in the kernel."""
        if self._reading is not None:
            self._reading.end()
        until = time.monotonic() + self._patience
        for each in [*self.processes, *self._leaving]:
            each.process.join(max(0.0, until - time.monotonic()))
            _end(each)

    def _replace_all(self) -> None:
        """Replace the workers by some that know what is new. Should one of them not begin, all know the old again."""
        _log.info("all was read anew, and each worker is replaced")
        for done in range(len(self.processes)):
            if not self._replaced(done):
                if self._is_ending:
                    return
                _log.error("a worker does not begin with what was read anew. What was read before stays.")
                self._knowing.put_back()
                if left := [each for each in range(done) if not self._replaced(each)]:
                    _log.error("workers that know what was read anew, and could not be replaced: %d", len(left))
                return

    def _replaced(self, place: int) -> bool:
        """Replace a worker as soon as the new one receives; whether it does."""
        try:
            new = _Worker(self.config, self.sockets)
            new.start()
        except OSError as exc:
            _log.error("no worker can be begun now (%s)", exc.strerror)
            return False
        until = time.monotonic() + self.config.timeout_worker_healthcheck
        while not new.wait_until_ready(_LOOK, self.should_exit):
            if self._is_ending or not new.process.is_alive() or time.monotonic() >= until:
                new.kill()
                new.join()
                return False
        old, self.processes[place] = self.processes[place], new
        old.terminate()
        self._left(old)
        return True

    def _left(self, old: multiprocess.Process) -> None:
        """Wait until a worker that was told to end has ended; one that cannot is killed."""
        until = time.monotonic() + self._patience
        while old.process.is_alive() and time.monotonic() < until:
            if self._is_ending:
                self._leaving.append(old)
                return
            old.process.join(_LOOK)
        _end(old)

    @property
    def _is_ending(self) -> bool:
        """Whether we are told to end: the signal may wait until it is handled."""
        return self.should_exit.is_set() or bool({signal.SIGTERM, signal.SIGINT} & {*self.signal_queue})

    @property
    def _patience(self) -> float:
        return (self.config.timeout_graceful_shutdown or 0) + _SPARE


def _end(worker: multiprocess.Process) -> None:
    """Kill a worker that should have ended by now."""
    if worker.process.is_alive():
        _log.warning("worker %s does not end: it is killed", worker.pid)
        worker.process.kill()
        worker.process.join(_SPARE)


class _Worker(multiprocess.Process):
    """A worker that is forked, where that is safe: the parent has imported everything, which takes seconds, and who
    replaces another must not take them again. The parent has one thread, and nothing open."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        if sys.platform == "linux":
            told = {"config": config, "target": self.target, "sockets": sockets, "stdin_fileno": None}
            self.process = multiprocessing.get_context("fork").Process(target=subprocess_started, kwargs=told)  # type: ignore[assignment]

    def start(self) -> None:
        """Fork."""
        with held_back():
            super().start()
        # Ours would keep the pipe open when the worker is gone: an answer that nobody gives would be waited for.
        self.child_conn.close()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """What runs in the worker."""
        as_a_child()
        super().target(sockets)
