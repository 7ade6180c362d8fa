"""How often a ``HostileApi`` lets itself be asked, and how its answers tell of that. On real, monotonic time."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from airflow_extract_provider.testing.hostile_faults import Answer

__all__ = ["Limit", "RateHeaders", "SlidingWindow"]

Limit: TypeAlias = tuple[int, float]
"""So many requests in any window of so many seconds."""

RateHeaders: TypeAlias = Literal["x", "ietf", "github"]
"""What answers tell of the limit by; in all of them the reset is when the oldest request leaves the window.

- "x": `X-RateLimit-Limit`, `X-RateLimit-Remaining`, `X-RateLimit-Reset` in seconds from now.
- "ietf": `RateLimit-Policy: "default";q=100;w=10` and `RateLimit: "default";r=50;t=30`, as in
  draft-ietf-httpapi-ratelimit-headers since revision 08.
- "github": the names of "x" in small letters and `x-ratelimit-used`, the reset in seconds since 1970 (GitHub, "Rate
  limits for the REST API"), by the clock that the `Date` header shows.
"""


@dataclass(frozen=True)
class _State:
    """The window after a request: ``used`` of ``count``, the next place is free in ``reset`` whole seconds."""

    count: int
    seconds: float
    used: int
    reset: int

    @property
    def remaining(self) -> int:
        return self.count - self.used


class SlidingWindow:
    """Counts requests. Not safe for threads: the server's lock is around it.

    Requests that are refused take no place in the window.

    Raises ValueError: a limit of nothing, or in no time.
    """

    def __init__(self, limit: Limit, headers: RateHeaders | None) -> None:
        self._count, self._seconds = limit
        if self._count < 1 or self._seconds <= 0:
            raise ValueError("limit: one request or more, in more than 0 seconds")
        self._told = None if headers is None else _HEADERS[headers]
        self._admitted: deque[float] = deque()

    def admit(self, now: float) -> bool:
        """Whether a request is within the limit; it has its place then. ``now``: monotonic seconds, never less."""
        while self._admitted and self._admitted[0] + self._seconds <= now:
            self._admitted.popleft()
        if len(self._admitted) >= self._count:
            return False
        self._admitted.append(now)
        return True

    def refusal(self, now: float) -> Answer:
        """The answer to a request above the limit."""
        body = json.dumps({"error": {"message": "too many requests"}}).encode()
        return Answer(429, body, {"Retry-After": str(self._state(now).reset)})

    def headers(self, now: float, shown: datetime) -> Mapping[str, str]:
        """What an answer tells of the limit; ``shown`` is the time that its `Date` header tells."""
        return {} if self._told is None else self._told(self._state(now), shown)

    def _state(self, now: float) -> _State:
        # Rounded up: who comes back a part of a second early would be refused once more.
        reset = max(math.ceil(self._admitted[0] + self._seconds - now), 1) if self._admitted else 0
        return _State(self._count, self._seconds, len(self._admitted), reset)


def _x(state: _State, shown: datetime) -> Mapping[str, str]:  # noqa: ARG001 - one of three
    return {
        "X-RateLimit-Limit": str(state.count),
        "X-RateLimit-Remaining": str(state.remaining),
        "X-RateLimit-Reset": str(state.reset),
    }


def _ietf(state: _State, shown: datetime) -> Mapping[str, str]:  # noqa: ARG001 - one of three
    return {
        "RateLimit-Policy": f'"default";q={state.count};w={math.ceil(state.seconds)}',
        "RateLimit": f'"default";r={state.remaining};t={state.reset}',
    }


def _github(state: _State, shown: datetime) -> Mapping[str, str]:
    # The next whole second: `Date` cuts its part of a second off.
    reset = math.ceil((shown + timedelta(seconds=state.reset)).timestamp())
    return {
        "x-ratelimit-limit": str(state.count),
        "x-ratelimit-remaining": str(state.remaining),
        "x-ratelimit-used": str(state.used),
        "x-ratelimit-reset": str(reset),
    }


_HEADERS: Mapping[RateHeaders, Callable[[_State, datetime], Mapping[str, str]]] = {
    "x": _x,
    "ietf": _ietf,
    "github": _github,
}
