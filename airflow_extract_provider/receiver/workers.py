"""The receiver's workers: uvicorn's own, but for how they begin, and that they end with their parent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import uvicorn
from uvicorn._subprocess import subprocess_started
from uvicorn.supervisors import Multiprocess, multiprocess

__all__ = ["supervisor"]

_log = logging.getLogger(__name__)

_LOOK = 0.5
"""Seconds between two looks for the parent."""
_SIGNALS = {signal.Signals(each) for each in multiprocess.SIGNALS}


def supervisor(
    config: uvicorn.Config,
    sockets: Sequence[socket.socket],
    read_anew: Callable[[], bool],
    put_back: Callable[[], None],
) -> Multiprocess:
    """The parent of workers: replaces one that dies, and on SIGHUP all, one after the other, if all could be read
    anew; if then one does not begin, what was known before is ``put_back``."""
    # It makes its workers by this name.
    multiprocess.Process = _Worker  # type: ignore[misc]
    return _Parent(config, [*sockets], read_anew, put_back)


class _Parent(Multiprocess):
    """Reads before its workers do: what is wrong then keeps none from going on."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        read_anew: Callable[[], bool],
        put_back: Callable[[], None],
    ) -> None:
        super().__init__(config, sockets)
        self._read_anew, self._put_back = read_anew, put_back

    def handle_hup(self) -> None:
        """Replace the workers by some that know what is new. Should one of them not begin, all know the old again."""
        if not self._read_anew():
            return
        _log.info("all was read anew, and each worker is replaced")
        for done in range(len(self.processes)):
            if not self._replaced(done):
                _log.error("a worker does not begin with what was read anew. What was read before stays.")
                self._put_back()
                for each in range(done):
                    self._replaced(each)
                return

    def _replaced(self, place: int) -> bool:
        """Replace a worker as soon as the new one receives; whether it does."""
        new = _Worker(self.config, self.sockets)
        new.start()
        if not new.wait_until_ready(self.config.timeout_worker_healthcheck, self.should_exit):
            new.kill()
            new.join()
            return False
        old, self.processes[place] = self.processes[place], new
        old.terminate()
        old.join()
        return True


class _Worker(multiprocess.Process):
    """A worker that is forked, where that is safe: the parent has imported everything, which takes seconds, and who
    replaces another must not take them again. The parent has one thread, and nothing open."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        if sys.platform == "linux":
            told = {"config": config, "target": self.target, "sockets": sockets, "stdin_fileno": None}
            self.process = multiprocessing.get_context("fork").Process(target=subprocess_started, kwargs=told)  # type: ignore[assignment]

    def start(self) -> None:
        """Fork. A signal that comes meanwhile waits: the parent's handlers would swallow it in the child."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Ours would keep the pipe open when the worker is gone: an answer that nobody gives would be waited for.
        self.child_conn.close()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """What runs in the worker."""
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        super().target(sockets)


def _end_with_parent() -> None:
    """Without its parent nobody would replace this worker, or end it, and no other receiver could listen."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
