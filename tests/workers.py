"""How the tests are shared out where several workers run them (`pytest -n 2`): each by itself, to whoever is free; but
what needs the same thing stays on one worker.

Who shares them out knows nothing of a test but its name, so files are named here; `check_together` finds the one that
is missing. (The mark `xdist_group` is made for this, and does nothing with pytest 9.2: pytest-dev/pytest-xdist#1386.)
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from xdist.scheduler import LoadScopeScheduling

__all__ = ["Sharing", "check_together", "used"]

TOGETHER = {
    # One Airflow at a time: two are too much for a small machine, and `demo` has one folder.
    "airflow": ("tests/demo/test_nothing_left_behind.py", "tests/e2e/"),
    # One broker, and its second node.
    "kafka": (
        "tests/dags/test_dag_test.py",
        "tests/exactly_once/test_kafka_faults.py",
        "tests/exactly_once/test_killed.py",
        "tests/hooks/test_kafka.py",
        "tests/operators/test_assets.py",
        "tests/operators/test_consume.py",
        "tests/sinks/",
        "tests/test_cli.py",
        "tests/webhooks/test_kafka",
    ),
    # What a file makes once for all its tests, and takes seconds.
    "faults exact": ("tests/faults/test_exact.py",),
    "faults named": ("tests/faults/test_named.py",),
    "kinto": ("tests/kinto/",),
    "outbox": ("tests/store/test_outbox.py",),
    "plans": ("tests/store/test_plans.py",),
    "verify": ("tests/demo/test_verify.py",),
}
NEEDED = {"broker": "kafka", "broker_pair": "kafka", "demo": "airflow", "world": "airflow"}
"""Fixtures that must not be made by two workers, and where their tests belong."""


class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a free worker the next test, or all the tests of a group."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid) or nodeid


def check_together(items: Iterable[pytest.Item]) -> None:
    """See that each test which needs something that is there once stands in its group.

    Raises pytest.UsageError: one does not.
    """
    for item in items:
        for fixture in NEEDED.keys() & set(used(item)):
            if _group(item.nodeid) != NEEDED[fixture]:
                raise pytest.UsageError(
                    f"{item.nodeid} needs `{fixture}`: add its file to `{NEEDED[fixture]}` in tests/workers.py"
                )


def used(item: pytest.Item) -> tuple[str, ...]:
    """The names of a test's fixtures."""
    return tuple(getattr(item, "fixturenames", ()))


def _group(nodeid: str) -> str | None:
    return next((group for group, where in TOGETHER.items() if nodeid.startswith(where)), None)
