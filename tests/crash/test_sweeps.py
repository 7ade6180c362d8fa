"""A sweep that is killed with signal 9 between any two of its steps, and run again: it has found what an undisturbed
one finds, each change was told once, nothing was deleted that is there, and no committed page was read again."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import TooManyDeletesError
from airflow_extract_provider.extract.pipeline import WalkName
from tests.crash.stage import wait_until
from tests.crash.sweep_child import Kind, Step
from tests.crash.sweep_stage import CHANGES, COUNT, VARIANTS, SweepStage, Wanted, told

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
SetStage = Callable[..., SweepStage]


def a_round(stage: SweepStage, step: Step, wanted: Wanted) -> str | None:
    """Changes, a life that ends at a step, and the next try, which comes to the end. Returns how far the first came;
    None: it had come to its end before the step."""
    stage.change()
    name, since = f"killed at {step.kind} {step.number}", stage.moment()
    killed = stage.start(name, step).ends() is None
    # What it had sent may still be carried out.
    wait_until(stage.alone)
    reached, pages, asked = stage.reached(since), stage.pages(since), stage.api.count
    summary = stage.run(name)
    assert summary.complete
    # What a killed process has sent may be committed a little later, after it was looked for.
    unread = wanted.requests - pages
    assert stage.api.count - asked in {unread, unread - (step.kind == "sent")}, "a committed page was read again"
    stage.check_round(since, wanted, summary.sweep)
    return reached if killed else None


@pytest.mark.parametrize(
    ("variant", "kind"),
    [*itertools.product(VARIANTS, ("told", "sent"))]
    if SOAK
    else [("by sweep", "told"), ("by key, no versions", "sent")],
)
def test_killed_at_every_step(sweeping: SetStage, variant: str, kind: Kind, measured: Callable[[str], None]) -> None:
    """Behind every statement, "begin" and "commit" among them, or as it is sent; before and behind every request.
    (Where there is no time for all: behind every transaction, and at every fifth statement.)"""
    stage = sweeping(**VARIANTS[variant])
    wanted = stage.undisturbed(by_key="by key" in variant)
    reached: Counter[str] = Counter()
    kinds: tuple[Kind, ...] = (kind, "committed", "asked", "answered")
    for each in kinds:
        for number in itertools.count(1, 1 if SOAK or each != kind else 5):
            found = a_round(stage, Step(each, number), wanted)
            if found is None:
                break
            reached[found] += 1
    stage.check_true()
    assert reached.keys() >= {"not begun", "reading", "judged"}
    measured(f"sweeps killed, {variant}: {dict(reached)}, all exact")


def there_and_back(stage: SweepStage, key: int, value: int) -> None:
    """A record is another one from the next request on, and back from the one after it."""
    stage.api.before(stage.api.count + 1, lambda: stage.api.update(key, touch=False))
    stage.api.before(stage.api.count + 2, lambda: stage.api.update(key, touch=False, value=value))


@pytest.mark.parametrize("variant", VARIANTS if SOAK else ["by key", "by sweep, no versions"])
def test_from_a_to_b_and_back(sweeping: SetStage, variant: str) -> None:
    """Records are others, or gone, when a sweep is killed, and what they were when it goes on: whether it saw that or
    not, both ways are told, or none. What it could not see the next sweep finds."""
    stage = sweeping(**VARIANTS[variant])
    for number in itertools.count(1, 1 if SOAK else 8):
        name, since = f"killed at {number}", stage.moment()
        silent, touched, gone, within, other = stage.chance.sample(stage.ids, 5)
        values = {key: stage.api.live()[str(key)]["value"] for key in (silent, touched, within)}
        stage.api.update(silent, other, touch=False)
        stage.api.update(touched)
        was = stage.goes(gone)
        there_and_back(stage, within, values[within])
        killed = stage.start(name, Step("told", number)).ends() is None
        stage.api.update(silent, touch=False, value=values[silent])
        stage.api.update(touched, value=values[touched])
        stage.api.update(other, touch=False)
        stage.returns(was)
        assert stage.run(name).complete
        assert stage.sweeps(since) == [(True, True, False)]
        assert not stage.versioned or stage.run("incremental", walk="incremental").complete
        assert stage.run(f"behind {name}").complete
        stage.check_exact()
        stage.check_true()
        told_of = stage.changed(since)
        assert {told_of[key] for key in (silent, gone, within)} <= {0, 2}
        assert told_of[other] in (1, 2)
        if not killed:
            return


def test_killed_where_too_much_is_gone(sweeping: SetStage) -> None:
    """Nothing is noted and nothing deleted, wherever the sweep that must stop is killed; it stops again, and deletes
    what it is told to."""
    stage = sweeping()
    for number in itertools.count(1, 1 if SOAK else 6):
        stage.api.delete(*stage.chance.sample(stage.ids, 12))
        since, before, name = stage.moment(), stage.alive(), f"killed at {number}"
        said = stage.start(name, Step("told", number)).ends()
        assert said is None or said["error"] == "TooManyDeletesError"
        for _ in range(2):
            with pytest.raises(TooManyDeletesError, match="no longer holds 12 of 26"):
                stage.run(name)
        assert stage.alive() == before
        assert stage.conn.execute("select * from extract.refetch").fetchall() == []
        assert stage.sweeps(since) == [(False, False, False)]
        report = stage.run(f"may, {name}", max_deletes=12).sweep
        assert (told(report)["absent"], told(report)["deleted"]) == (12, 12)
        stage.check_exact()
        stage.api.insert(12, value=1)
        assert told(stage.run(f"behind {name}").sweep)["new"] == 12
        stage.check_exact()
        if said is not None:
            return


def test_killed_as_it_starts_over(sweeping: SetStage) -> None:
    """Told to start over while an older sweep has noted what it had not seen, it is killed: the next try does not start
    over again, and takes nothing of the older one for its own."""
    stage = sweeping()
    for number in itertools.count(1):
        stage.change()
        since, name = stage.moment(), f"killed at {number}"
        assert stage.start(f"before {number}", Step("judged", 1)).ends() is None
        how: dict[str, Any] = {"reset": True, "take_over": True}
        killed = stage.start(name, Step("told" if SOAK else "committed", number), how=how).ends() is None
        assert stage.run(name, **how).complete
        assert stage.sweeps(since) == [(True, True, True), (True, True, False)]
        assert stage.moment().changes - since.changes == CHANGES
        stage.check_exact()
        if not killed:
            return


def killed_behind_one_page(stage: SweepStage, runner: str, **asked: Any) -> None:
    """A sweep that has committed its first page dies when it has got the second one."""
    since = stage.moment()
    stage.api.before(stage.api.count + 2, lambda: wait_until(lambda: stage.pages(since) == 1))
    assert stage.start(runner, Step("answered", 2), **asked).ends() is None
    assert (stage.pages(since), stage.reached(since)) == (1, "reading")


def test_other_walks_before_it_goes_on(sweeping: SetStage) -> None:
    """A sweep is killed in mid-list. Before it goes on an incremental walk sees a record, which is deleted then: that
    is no proof for this sweep, but for the next one."""
    stage = sweeping(lookback="1h")
    killed_behind_one_page(stage, "one")
    assert stage.run("incremental", walk="incremental", take_over=True).complete
    last = stage.ids[-1]
    stage.api.delete(last)
    assert told(stage.run("one").sweep)["absent"] == 0
    assert str(last) in stage.alive()
    assert told(stage.run("two").sweep)["deleted"] == 1
    stage.check_exact()


@pytest.mark.parametrize("returns", ["to the list", "to another walk", "to another walk, out of a cache"])
def test_back_before_it_is_deleted(sweeping: SetStage, returns: str) -> None:
    """What a killed sweep had noted as absent is back when the next one reads it, or another walk does: that one does
    not take the note for its own."""
    stage = sweeping(lookback="1h")
    gone, *back = stage.ids[:3]
    was, _ = [stage.goes(key) for key in back], stage.goes(gone)
    since = stage.moment()
    assert stage.start("one", Step("judged", 1)).ends() is None
    assert stage.reached(since) == "judged"
    for each in was:
        stage.returns(each)
    if returns == "to the list":
        report = stage.run("two", reset=True, take_over=True).sweep
        assert stage.sweeps(since) == [(True, True, True), (True, True, False)]
    else:
        cached = "cache" in returns
        if cached:
            # From before the sweep began, the page says nothing of what is there since; but what it brings is newer.
            stage.api.update(*back)
        walk: WalkName = "incremental"
        assert stage.run("another", walk=walk, take_over=True, age=3600.0 * cached).complete
        report = stage.run("one").sweep
    assert told(report)["deleted"] == 1
    stage.check_exact()
    assert stage.changed(since)[gone] == 1


def test_a_list_out_of_a_cache(sweeping: SetStage) -> None:
    """A killed sweep's first page was older than what has been stored since: the list is no proof that this is gone,
    though the sweep goes on with pages that are new."""
    stage = sweeping()
    was, since = stage.goes(stage.ids[-1]), stage.moment()
    killed_behind_one_page(stage, "one", age=3600.0)
    assert told(stage.run("one").sweep)["absent"] == 0
    stage.returns(was)
    found = told(stage.run("two").sweep)
    assert {name: count for name, count in found.items() if count} == {"stored": COUNT, "seen": COUNT}
    stage.check_exact()
    assert stage.changed(since) == {}


def test_stored_before_it_goes_on(sweeping: SetStage) -> None:
    """A sweep that must stop stands at the end of the list. What another walk stores before it goes on is not absent,
    though that was looked up before the sweep began, which cannot count it as seen."""
    stage = sweeping()
    stage.api.delete(*stage.ids[:12])
    with pytest.raises(TooManyDeletesError):
        stage.run("one")
    stage.api.insert(2, value=7)
    assert stage.run("another", walk="incremental", age=3600.0).counts["created"] == 2
    assert told(stage.run("one", max_deletes=12).sweep)["absent"] == 12
    stage.check_exact()


def test_an_empty_list(sweeping: SetStage) -> None:
    """However many a sweep may delete: a list that is empty deletes nothing, unless somebody says so to this run."""
    stage = sweeping(sweep={"every": "7d", "max_deletes": 500})
    stage.api.delete(*stage.ids[3:])
    assert told(stage.run("one", reset=True).sweep)["deleted"] == COUNT - 3
    stage.api.delete(*stage.ids)
    for number in (6, 14, 22):
        assert stage.start("two", Step("told", number), how={"reset": True}).ends() is None
        with pytest.raises(TooManyDeletesError, match="the API's list was empty, and 3 records are stored"):
            stage.run("two", reset=True)
    assert len(stage.alive()) == 3
    assert told(stage.run("three", max_deletes=3).sweep)["deleted"] == 3
    stage.check_exact()
