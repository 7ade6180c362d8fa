"""Signals around a fork, and what a child does when its parent is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from uvicorn.supervisors import multiprocess

__all__ = ["as_a_child", "held_back"]

_LOOK = 0.5
"""Seconds between two looks for the parent."""
_SIGNALS = {signal.Signals(each) for each in multiprocess.SIGNALS}


@contextmanager
def held_back() -> Iterator[None]:
    """While a child is forked, a signal that comes waits: the parent's handlers would swallow it in the child."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def as_a_child() -> None:
    """In the child: signals do what they do by default, and it ends with its parent. Without that nobody would replace
    a worker, or end it, and no other receiver could listen."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
