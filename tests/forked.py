"""Processes for tests, each forked from one that has imported everything and has no threads.

There is one such process for all tests of a worker: what it imports is said here, once. A life that had to import the
engine by itself would take ten times as long.
"""

from __future__ import annotations

import multiprocessing

__all__ = ["processes"]

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "tests.crash.dying",
        "tests.crash.sweep_child",
        "tests.exactly_once.dying",
        "tests.exactly_once.writers",
        "tests.webhooks.dying",
    ]
)
