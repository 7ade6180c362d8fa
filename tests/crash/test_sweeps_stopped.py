"""A sweep that stands still while another run takes its walk over, and one whose Postgres is restarted under it: what
has been seen, noted and counted is kept, nothing of the one that has lost the walk is written, the copy is exact."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta

import pytest

from airflow_extract_provider.extract.errors import StoreUnavailableError, WalkBusyError
from airflow_extract_provider.extract.pipeline import Summary
from airflow_extract_provider.testing.postgres import EmbeddedPostgres
from tests.crash.stage import wait_until
from tests.crash.sweep_child import Step
from tests.crash.sweep_stage import VARIANTS, Life, Moment, SweepStage, Wanted

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
SetStage = Callable[..., SweepStage]
SILENT, IDLE = 1.0, 0.7
"""In seconds: after how long a holder may be taken over, and Postgres ends its transaction. A busy machine may keep a
process waiting for half a second that has not stopped at all."""


def stops(wanted: Wanted, most: int) -> Iterator[Step]:
    """Steps where a sweep stops itself, from its first statement to its last; and where it was judged."""
    yield Step("judged", 1, signal.SIGSTOP)
    last = wanted.steps["told"]
    for number in range(1, last, 1 if SOAK else last // most):
        yield Step("told", number, signal.SIGSTOP)


def comes_to(stage: SweepStage, since: Moment, wanted: Wanted, life: Life) -> str:
    """How far a sweep has come that stops itself. Where that is its end, it is woken: it has lost nothing."""
    stopped, reached = life.stands_still(), stage.reached(since)
    if reached == "ended":
        if stopped:
            life.wake()
        said = life.ends()
        assert said is not None
        stage.check_round(since, wanted, said["sweep"])
    return reached


def taken_over(stage: SweepStage, runner: str) -> Summary:
    """Sweep to the end in another run's name, as soon as the holder has been silent for long."""
    done: list[Summary] = []

    def taken() -> bool:
        try:
            done.append(stage.run(runner, silent_after=SILENT))
        except WalkBusyError:
            return False
        return True

    wait_until(taken)
    return done[0]


@pytest.mark.parametrize("variant", VARIANTS if SOAK else ["by key", "by sweep, no versions"])
def test_stopped_and_taken_over(sweeping: SetStage, variant: str) -> None:
    """Another run ends the sweep. Woken, while a third one has begun the next and the API has changed, the first finds
    that it has lost the walk, and writes nothing."""
    stage = sweeping(**VARIANTS[variant])
    wanted = stage.undisturbed(by_key="by key" in variant)
    reached = set()
    for step in stops(wanted, 5):
        stage.change()
        since = stage.moment()
        life = stage.start(f"stopped at {step.kind} {step.number}", step, silent_after=60.0, idle_timeout=IDLE)
        if (found := comes_to(stage, since, wanted, life)) == "ended":
            break
        reached.add(found)
        stage.check_round(since, wanted, taken_over(stage, f"behind {step.kind} {step.number}").sweep)
        stage.change()
        since, third = stage.moment(), f"third at {step.kind} {step.number}"
        assert not stage.run(third, run_for=timedelta(0)).complete
        stood = stage.store()
        life.wake()
        said = life.ends()
        assert said is not None
        assert said["error"] == "FencedError"
        assert stage.store() == stood
        stage.check_round(since, wanted, stage.run(third).sweep)
    stage.check_true()
    assert reached == {"not begun", "reading", "judged"}


def fast(server: EmbeddedPostgres) -> None:
    """All sessions are ended, and all is flushed."""
    server.stop()


def immediate(server: EmbeddedPostgres) -> None:
    """Nothing is flushed: the next start recovers what was committed."""
    assert server.pid
    os.kill(server.pid, signal.SIGQUIT)
    wait_until(lambda: server.pid is None)
    server.stop()


@pytest.mark.parametrize("down", [fast, immediate])
def test_postgres_restarted(own_server: EmbeddedPostgres, down: Callable[[EmbeddedPostgres], None]) -> None:
    """Whatever the sweep was doing, it ends with an error that says to try again, and so does one that begins while
    Postgres is away; the next one goes on, and finds the rest."""
    variant = "by key" if down is fast else "by sweep"
    with closing(SweepStage(own_server.create_database("swept"), **VARIANTS[variant])) as stage:
        wanted, reached = stage.undisturbed(by_key="by key" in variant), set()
        for step in stops(wanted, 4):
            stage.change()
            name, since = f"stopped at {step.kind} {step.number}", stage.moment()
            life = stage.start(name, step)
            if (found := comes_to(stage, since, wanted, life)) == "ended":
                break
            reached.add(found)
            down(own_server)
            with pytest.raises(StoreUnavailableError):
                stage.run(name)
            life.wake()
            said = life.ends()
            assert said is not None
            assert (said["error"], said["classes"][1]) == ("StoreUnavailableError", "TryAgain")
            own_server.start()
            stage.reconnect()
            pages, asked = stage.pages(since), stage.api.count
            summary = stage.run(name)
            assert stage.api.count - asked == wanted.requests - pages, "a committed page was read again"
            stage.check_round(since, wanted, summary.sweep)
        stage.check_true()
        assert reached == {"not begun", "reading", "judged"}
