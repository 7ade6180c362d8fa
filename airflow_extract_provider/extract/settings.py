"""Who runs, and the bounds of a run."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = ["Runner", "Settings"]


@dataclass(frozen=True, slots=True)
class Runner:
    """Who runs. ``identity`` is the same for every try of one task instance, so that a retry takes its own walk over at
    once; ``label`` is what another run's `WalkBusyError` shows to people."""

    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    label: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of a run. Intervals between log lines, cursor writes and heartbeats are lower bounds.

    ``silent_after`` must be longer than the longest request and than ``idle_timeout`` together: a holder that has not
    been heard of for so long may be taken over. ``idle_timeout`` is how long Postgres lets a transaction of a stopped
    process live. ``batch`` is the most records of one transaction, ``ahead`` the most bytes of records that wait for
    one; of either there may be one page more.
    """

    schema: str = "extract"
    silent_after: timedelta = timedelta(minutes=5)
    idle_timeout: timedelta = timedelta(seconds=60)
    batch: int = 2000
    ahead: int = 4 << 20
    cursor_every: timedelta = timedelta(seconds=5)
    log_every: timedelta = timedelta(seconds=5)
