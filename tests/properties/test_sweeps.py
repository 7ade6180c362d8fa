"""Sweeps in any history: whatever comes and goes while they read, cut off at any step, with all other walks between."""

from __future__ import annotations

import itertools
import os
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from airflow_extract_provider.extract.pipeline import Runner
from airflow_extract_provider.extract.store.connection import Connect
from tests.hazards.kinds import KINDS
from tests.properties.steps import Run
from tests.properties.swept import Swept, SweptHabits
from tests.properties.test_history import DISTURBED, History, habits
from tests.properties.test_history import connect as connect
from tests.properties.test_history import history_dsn as history_dsn

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
_names = itertools.count(1)


class Sweeping(History):
    """What happens at the API, what runs, and how often everything is read again."""

    readable: bool

    @initialize(data=st.data(), first=st.integers(1, 45))
    def begin(self, data: st.DataObject, first: int) -> None:
        drawn = data.draw(habits(self.kind), label="habits")
        world = Swept(self.connect, f"swept{next(_names)}", SweptHabits(**vars(drawn), readable=self.readable))
        self.world = world
        world.change(("import" if first % 5 == 0 else "insert", 0, first))
        world.change(("pass", 3, 2))
        self.go(Run("backfill"))

    @property
    def swept(self) -> Swept:
        assert isinstance(self.world, Swept)
        return self.world

    @rule(data=st.data(), drawn=DISTURBED, rested=st.booleans(), reset=st.booleans())
    def sweep(self, data: st.DataObject, drawn: dict[str, Any], rested: bool, reset: bool) -> None:
        if rested:
            self.swept.rest()
        self.disturbed("rebackfill", data, {**drawn, "reset": reset})

    @rule()
    def sweep_undisturbed(self) -> None:
        self.swept.rest()
        self.go(Run("rebackfill"))

    @rule(at=st.integers(0, 50))
    def sweep_put_back(self, at: int) -> None:
        self.played.put_back("rebackfill", at)

    @rule()
    @precondition(lambda self: self.played.shown.texts)
    def sweep_deleted(self) -> None:
        self.played.delete_cursor("rebackfill")

    def go(self, plan: Run) -> BaseException | None:
        return None if plan.walk == "by_key" and not self.readable else super().go(plan)

    def finish(self) -> None:
        """All is quiet: one sweep, and the copy is the API; another one finds nothing to do."""
        world = self.swept
        world.settle()
        if not world.api.live():
            world.change(("insert", 0, 1))
        world.runner = Runner()
        if not self.ended("backfill"):
            return
        world.rest()
        if not self.ended("rebackfill", reset=True):
            return
        world.untouched = False
        world.check()
        world.assert_exact()
        stands = world.stored()
        self.ended("rebackfill", reset=True)
        assert world.stored() == stands


BUDGET = settings(
    max_examples=1_000 if SOAK else 3,
    stateful_step_count=25 if SOAK else 12,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
)


@pytest.mark.timeout(0 if SOAK else 300)
@pytest.mark.parametrize("readable", [True, False], ids=["by key", "by sweep"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_history(kind: str, readable: bool, connect: Connect) -> None:
    """After a sweep the copy is the API, whatever the history; and what the API had all the time is never deleted."""
    told = {"connect": staticmethod(connect), "kind": kind, "readable": readable}
    machine: type[Sweeping] = type("Sweeping", (Sweeping,), told)
    run_state_machine_as_test(machine if SOAK else seed(zlib.crc32(kind.encode()))(machine), settings=BUDGET)
