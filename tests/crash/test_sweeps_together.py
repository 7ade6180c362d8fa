"""Sweeps, incremental walks and reads by key at once, in processes that are killed again and again, of an API that
never stands still: nothing is deleted that is there, each change is told once, and one quiet sweep makes all of it
exact."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.testing.hostile import Version
from tests.crash.sweep_stage import LONG_AGO, VARIANTS, Life, SweepStage

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
SetStage = Callable[..., SweepStage]
SWEEPS, KILLS = (80, 80) if SOAK else (4, 5)
"""How many sweeps must have ended, and how many processes been killed, before it is over."""
SECONDS = 1800 if SOAK else 100
EXPECTED = {
    "Done",
    "WalkBusyError",  # the walk is somebody else's
    "FencedError",  # it is by now: this one was slow
    "StoreUnavailableError",  # one that was killed still holds locks
}


@dataclass
class Crowd:
    """Processes that walk again and again: two that sweep, one for each other walk that the API allows."""

    stage: SweepStage
    stop: Path
    walks: list[WalkName]
    chance: random.Random
    kills: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._names = itertools.count()
        self._lives = [self._started(walk) for walk in self.walks]

    def kill_one(self) -> None:
        """Another process takes its place: the same task's next try, which goes on at once, or somebody else."""
        at = self.chance.randrange(len(self._lives))
        runner, life = self._lives[at]
        life.kill()
        self.kills += 1
        self._lives[at] = self._started(self.walks[at], runner if self.chance.random() < 0.7 else None)

    def end(self) -> None:
        """Let all come to the end of their runs."""
        self.stop.touch()
        for _, life in self._lives:
            self.ends += Counter(life.ends())

    def _started(self, walk: WalkName, runner: str | None = None) -> tuple[str, Life]:
        runner = runner or f"{walk} {next(self._names)}"
        how: dict[str, Any] = {"max_deletes": 1000} if walk == "rebackfill" else {}
        if walk == "rebackfill" and self.chance.random() < 0.5:
            # In slices: between two of them others get the walk while the sweep is open.
            how["run_for"] = timedelta(milliseconds=20)
        return runner, self.stage.keep_on(runner, self.stop, walk=walk, silent_after=0.5, idle_timeout=0.3, how=how)


def change_something(stage: SweepStage, away: list[Version]) -> None:
    """One of the things that happen to records, all of them to be seen or not."""
    api, chance = stage.api, stage.chance
    what, some = chance.randrange(10), chance.sample(stage.ids, 2)
    if what < 3:
        api.update(*some, touch=False)
    elif what < 5:
        api.update(*some)
    elif what < 7:
        # To something that it may have been before.
        api.update(some[0], touch=False, value=chance.randrange(3))
    elif what < 8 or len(stage.ids) < 30:
        api.insert(2, at=None if chance.random() < 0.5 else api.clock.now - LONG_AGO)
    elif away and chance.random() < 0.7:
        stage.returns(away.pop(chance.randrange(len(away))))
    else:
        away.append(stage.goes(some[0]))
    api.clock.advance(0.01)


def ended(stage: SweepStage) -> int:
    """How many sweeps have come to their end."""
    return stage.number("select count(*) from extract.sweep where ended_at is not null and not given_up")


def pages(stage: SweepStage) -> dict[str, int]:
    """How many pages each walk has committed while a sweep was open."""
    asked = """select walk, count(*) from extract.ledger as page where kind = 'page' and exists (
                   select from extract.sweep where began_at < committed_at and committed_at < ended_at)
               group by walk"""
    return dict(stage.conn.execute(asked).fetchall())


@pytest.mark.parametrize("variant", VARIANTS if SOAK else ["by key", "by sweep"])
def test_all_at_once(sweeping: SetStage, variant: str, tmp_path: Path, measured: Callable[[str], None]) -> None:
    """For as long as it takes."""
    stage = sweeping(**VARIANTS[variant])
    others: list[WalkName] = ["incremental"] if stage.versioned else []
    others += ["by_key"] if "by key" in variant else []
    crowd = Crowd(stage, tmp_path / "stop", ["rebackfill", "rebackfill", *others], stage.chance)
    away: list[Version] = []
    until = time.monotonic() + SECONDS
    while ended(stage) < SWEEPS or crowd.kills < KILLS or pages(stage).keys() != set(crowd.walks):
        # So many ledger rows later: who is killed all the time comes nowhere.
        row = stage.sequence() + stage.chance.randrange(10, 40)
        while stage.sequence() < row:
            assert time.monotonic() < until, f"{ended(stage)} sweeps, {crowd.kills} killed, {pages(stage)}"
            change_something(stage, away)
            if "by key" in variant and stage.chance.random() < 0.1:
                refetch.note(
                    stage.conn, "extract", "shop", "things", map(str, stage.chance.sample(stage.ids, 1)), "test"
                )
            time.sleep(0.01)
        crowd.kill_one()
    crowd.end()
    assert crowd.ends.keys() <= EXPECTED
    stage.check_true()
    changes = stage.moment().changes
    assert stage.run("in peace", reset=True, take_over=True, max_deletes=1000).complete
    assert "by key" not in variant or stage.run("in peace", walk="by_key").complete
    stage.check_exact()
    stage.check_true()
    measured(
        f"sweeps at once, {variant}: {ended(stage)} ended, {crowd.kills} killed, {changes} changes, {pages(stage)}"
    )
