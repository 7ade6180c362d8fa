"""What librdkafka logs, each thing once in a while: while a broker is away, it says so twenty times a second."""

from __future__ import annotations

import logging
import re
import time

__all__ = ["LIBRARY_LOG"]

_AGAIN = 60.0
"""Seconds after which the same is logged again."""
_LASTED = re.compile(r"\(after [^)]*\)")
"""How long it has taken, and how often it was left out: never twice the same."""
_MOST = 1_000


class _Seldom(logging.Filter):
    """Lets what has not been said for a while pass, and all that is for who looks for a fault."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is logged."""
        if record.levelno <= logging.DEBUG:
            return True
        now, what = time.monotonic(), _LASTED.sub("", record.getMessage())
        if now - self._said.get(what, float("-inf")) < _AGAIN:
            return False
        if len(self._said) >= _MOST:
            self._said.clear()
        self._said[what] = now
        return True


LIBRARY_LOG = logging.getLogger(__name__)
"""The ``logger`` of producers and consumers."""
LIBRARY_LOG.addFilter(_Seldom())
