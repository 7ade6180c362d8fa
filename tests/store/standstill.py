"""Measuring real time on a machine that may be overloaded: what it missed itself proves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["measured_again"]

T = TypeVar("T")

_STEP, _LATE, _OFTEN = 0.005, 0.03, 3


def measured_again(measure: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """What ``measure`` finds. If it does not hold, and a thread that did nothing but sleep was woken too late more than
    a few times meanwhile, it is measured again; at most three times in all."""
    for _ in range(2):
        stood_still, found = _beside(measure)
        if holds(found) or not stood_still:
            return found
    return measure()


def _beside(measure: Callable[[], T]) -> tuple[bool, T]:
    done, late = threading.Event(), 0

    def sleep() -> None:
        nonlocal late
        began = time.monotonic()
        while not done.wait(_STEP):
            woken = time.monotonic()
            late += woken - began > _STEP + _LATE
            began = woken

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    try:
        found = measure()
    finally:
        done.set()
        sleeper.join()
    return late > _OFTEN, found
