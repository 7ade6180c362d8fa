"""Runs that read in step, and that end at any step.

No page is asked for before the one before it is committed. So the same history always meets the same requests, and a
failing one can be made smaller. Reading ahead has tests of its own (`tests/crash`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

import pytest

from airflow_extract_provider.extract import pipeline
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.reader import Arrived, Reader
from airflow_extract_provider.extract.store.apply import apply
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from tests.properties.habits import FaultName

__all__ = ["STEPS", "Change", "Killed", "Run", "Step", "Watch", "in_step", "pass_by", "watching"]

Step: TypeAlias = Literal["before", "within", "committed", "writing", "written"]
STEPS: Sequence[Step] = ("before", "within", "committed", "writing", "written")
"""Where a run may end: before a page is applied, within its transaction, after the commit, before and after the cursor
is written."""
Change: TypeAlias = tuple[str, int, int]


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Run:
    """What happens during one run: ``changes`` and ``faults`` by the number of its request, and at its ``number``-th
    ``step`` the end: killed, asked to stop, taken over by another run; a slice ends after its first page."""

    walk: WalkName = "backfill"
    changes: Mapping[int, Sequence[Change]] = field(default_factory=dict)
    faults: Mapping[int, FaultName] = field(default_factory=dict)
    end: Literal["", "kill", "stop", "slice", "taken over"] = ""
    step: Step = "committed"
    number: int = 1
    reset: bool = False
    retry: bool = True

    @property
    def quiet(self) -> bool:
        """Whether nothing disturbs it."""
        return not self.changes and not self.faults


@dataclass
class Watch:
    """One run while it lives."""

    plan: Run
    act: Callable[[], None]
    reader: InStep | None = None
    halted: bool = False
    passed: int = 0

    def pass_by(self, step: Step) -> None:
        """The run has come to a step."""
        if self.plan.end and step == self.plan.step:
            self.passed += 1
            if self.passed == self.plan.number:
                self.act()


_watches: list[Watch] = []


def pass_by(step: Step) -> None:
    """The innermost run has come to a step."""
    if _watches:
        _watches[-1].pass_by(step)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """What runs here is watched; afterwards no request of it is under way."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.pop()
        if watch.reader is not None:
            watch.reader.stop()
            watch.reader.join()


class InStep(Reader):
    """Asks for the next page only once the last one is committed; stopped early, it still reads one page."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._go, self._begun = threading.Semaphore(0), threading.Event()
        _watches[-1].reader = self

    def stop(self) -> None:
        """Send no further request; but the first one."""
        self._begun.wait(10)
        super().stop()
        self._go.release()

    def go(self) -> None:
        """What was handed over is committed."""
        self._go.release()

    def join(self) -> None:
        """Wait until no request of it is under way."""
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            self._begun.set()

    def _linger(self) -> None:
        """No further page can come along: there is nothing to wait for."""

    def _reply(self, then: Any) -> Any:
        self._begun.set()
        return super()._reply(then)

    def _put(self, item: Any) -> None:
        super()._put(item)
        if isinstance(item, Arrived):
            self._go.acquire()


@contextmanager
def in_step() -> Iterator[None]:
    """Runs read in step, and pass by the steps of :data:`STEPS`; nothing pauses between tries."""
    append, commit = Ledger.append, pipeline._Run._commit

    def applied(*args: Any, **named: Any) -> Any:
        pass_by("before")
        return apply(*args, **named)

    def appended(self: Ledger, conn: Connection, entry: Entry) -> tuple[int, datetime]:
        found = append(self, conn, entry)
        pass_by("within")
        return found

    def committed(self: Any, *args: Any) -> None:
        commit(self, *args)
        pass_by("committed")
        watch = _watches[-1]
        if watch.reader is not None and not watch.halted:
            watch.reader.go()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "apply", applied)
        patch.setattr(Ledger, "append", appended)
        patch.setattr(pipeline._Run, "_commit", committed)
        patch.setattr(pipeline, "Reader", InStep)
        patch.setattr("airflow_extract_provider.extract.walks.lap._PASSES", 6)
        patch.setattr("airflow_extract_provider.extract.api.client.pause", lambda halted, seconds: None)
        yield
