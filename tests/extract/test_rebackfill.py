"""Sweeps: what they find, when they begin, what is given up, and who may edit where they stand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import (
    BackfillFirstError,
    CursorAheadError,
    TooManyDeletesError,
)
from airflow_extract_provider.extract.pipeline import Runner
from airflow_extract_provider.extract.store.connection import connecting
from tests.extract.sweeping import BY_KEY, Cursors, Returning, Sweeping
from tests.hazards.kinds import KINDS

KIND = KINDS["token updated"]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def api() -> Iterator[Returning]:
    """100 records on ten pages."""
    with Returning(KIND.served()) as api:
        api.insert(100)
        api.clock.advance(timedelta(minutes=5))
        yield api


@pytest.fixture
def make(api: Returning, scenes_dsn: str, pauses: list[float]) -> Iterator[Callable[..., Sweeping]]:
    """Makes scenes over the API."""
    made: list[Sweeping] = []

    def make(**over: Any) -> Sweeping:
        made.append(Sweeping(api, connecting(scenes_dsn), KIND.described(**over), "books"))
        made[-1].migrate()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=["by key", "by sweep"])
def either(make: Callable[..., Sweeping], request: pytest.FixtureRequest) -> Sweeping:
    """The API, backfilled: records can be read by key, or a sweep itself is the proof."""
    scene = make(**({"by_key": BY_KEY} if request.param == "by key" else {}))
    scene.run()
    return scene


@pytest.fixture
def scene(make: Callable[..., Sweeping]) -> Sweeping:
    """The API, backfilled; a sweep itself is the proof."""
    scene = make()
    scene.run()
    return scene


# What is found ------------------------------------------------------------------------------------------------------


def test_what_nothing_else_finds(either: Sweeping, api: Returning) -> None:
    """Silent changes, deletes and new records: each is brought, counted by its kind, and named where it was silent.
    What has not changed is not written, and a second sweep finds nothing."""
    api.update(*api.ids[3:6], touch=False)
    api.update(api.ids[7])
    api.delete(*api.ids[10:14])
    api.insert(2)
    before = either.stamps()
    found = either.sweep()
    assert either.alive() == api.live()
    told = {"new": 2, "changed": 4, "silent": 3, "deleted": 4, "absent": 4, "seen": 98, "stored": 102}
    assert told.items() <= found.items()
    assert found["fields"] == {"value": 3}
    assert found["confirmed"] == (4 if either.spec.get("by_key") else 0)
    assert len(before & either.stamps()) == 100 - 4 - 4
    stands = either.stamps()
    again = either.sweep()
    assert (again["changed"], again["new"], again["deleted"], again["seen"]) == (0, 0, 0, 98)
    assert either.stamps() == stands


def test_what_the_incremental_walk_has_missed(scene: Sweeping, api: Returning) -> None:
    """Records and changes that the API dates before what was called complete: they are counted as missed."""
    early = api.clock.now - timedelta(minutes=4)
    api.clock.advance(timedelta(minutes=5))
    scene.run(walk="incremental")
    api.insert(2, at=early)
    api.update(*api.ids[:3], at=early)
    api.clock.advance(timedelta(minutes=5))
    scene.run(walk="incremental")
    assert scene.alive() != api.live()
    api.insert(1)
    api.update(api.ids[9])
    found = scene.sweep()
    assert scene.alive() == api.live()
    assert (found["new"], found["missed"], found["changed"], found["late"], found["silent"]) == (3, 2, 4, 3, 0)


def test_what_returns(either: Sweeping, api: Returning) -> None:
    """A record that was deleted and is there again is alive again."""
    key = str(api.ids[4])
    api.delete(key)
    assert either.sweep()["deleted"] == 1
    assert either.tombstones() == {key}
    api.put_back(key)
    found = either.sweep()
    assert (found["returned"], found["new"], found["changed"]) == (1, 0, 0)
    assert either.tombstones() == set()
    assert either.alive() == api.live()


def test_more_than_one_transaction_deletes(either: Sweeping, api: Returning) -> None:
    """Deletes beyond what one transaction holds, and beyond what the drain asks for at once."""
    api.insert(700)
    either.run(walk="incremental")
    api.delete(*api.ids[50:650])
    found = either.sweep(max_deletes=600)
    assert (found["absent"], found["deleted"]) == (600, 600)
    assert either.alive() == api.live()
    assert either.noted() == {}


# When one begins ----------------------------------------------------------------------------------------------------


def test_when_it_is_due(scene: Sweeping, api: Returning, caplog: pytest.LogCaptureFixture) -> None:
    """So long after the beginning of the last complete reading: the backfill first, then each sweep. In between nothing
    is asked, and the log says when."""
    caplog.set_level("INFO", "airflow_extract_provider")
    scene.spec["sweep"] = {"every": "1d"}
    for reading in ("the backfill", "the first sweep", "the second sweep"):
        asked, sweeps = api.count, scene.sweeps()
        scene.rest(DAY - HOUR)
        summary = scene.run(walk="rebackfill")
        assert (summary.complete, summary.sweep, api.count) == (True, None, asked), reading
        assert scene.sweeps() == sweeps
        assert "the next one is due at " in caplog.messages[-1] + caplog.messages[-2]
        scene.rest(HOUR)
        assert scene.goes_on()["number"]
        assert scene.sweeps() == [*sweeps, "ended"]


def test_the_beginning_counts(scene: Sweeping, api: Returning) -> None:
    """Not the end: a reading that takes long would put off the next one."""
    scene.spec["sweep"] = {"every": "1d"}
    asked = "update {} set committed_at = committed_at - interval '1 day' where source = %s and kind = 'start'"
    scene.execute(asked, scene.book("ledger"), values=[scene.name])
    assert scene.goes_on()["number"]
    # Begun again, it is a new reading.
    scene.rest(DAY)
    scene.run(reset=True)
    assert scene.run(walk="rebackfill").sweep is None
    # A reading that was given up is none.
    scene.rest(DAY)
    scene.cut(3)
    scene.cut(3, reset=True)
    scene.rest(DAY)
    assert scene.goes_on()["number"]
    assert scene.sweeps() == ["ended", "given up", "ended"]


def test_without_a_cadence(scene: Sweeping) -> None:
    """Whoever runs it wants it: each run sweeps, but for the tries of one task instance."""
    first = scene.goes_on()
    assert scene.goes_on()["number"] > first["number"]
    one = Runner("one", "the run called one")
    mine = scene.run(walk="rebackfill", runner=one)
    assert mine.sweep is not None
    again = scene.run(walk="rebackfill", runner=one)
    assert (again.sweep, again.requests) == (mine.sweep, mine.requests)
    assert scene.sweeps() == ["ended"] * 3


def test_asked_for_once_by_a_runner(scene: Sweeping) -> None:
    """Its retries go on; after the end they have nothing to do."""
    scene.spec["sweep"] = {"every": "1d"}
    one = Runner("one", "the run called one")
    scene.cut(4, reset=True, runner=one)
    assert scene.run(walk="rebackfill", reset=True, runner=one).complete
    assert scene.run(walk="rebackfill", reset=True, runner=one).pages == 10
    assert scene.sweeps() == ["ended"]
    assert scene.run(walk="rebackfill", reset=True).sweep
    assert scene.sweeps() == ["ended"] * 2


def test_an_open_one_goes_on(either: Sweeping, api: Returning) -> None:
    """Whoever runs it, and however often it is cut: no page is read twice, and it is one sweep."""
    api.delete(*api.ids[30:33])
    requests = api.count
    for number in (4, 3):
        either.cut(number)
    found = either.goes_on()
    assert either.sweeps() == ["ended"]
    # The two pages that were not answered were asked for twice, and once more.
    assert api.count - requests == 10 + 2 * either.tries + found["confirmed"]
    assert either.alive() == api.live()


def test_first_the_backfill(make: Callable[..., Sweeping], api: Returning) -> None:
    """Until it has come to its end there is nothing to be compared; nothing is read, and nothing begins."""
    scene = make()
    for step in ("never begun", "cut"):
        asked = api.count
        assert "backfill" in scene.stops(BackfillFirstError, walk="rebackfill", reset=True).what, step
        assert (api.count, scene.sweeps()) == (asked, [])
        if step == "never begun":
            scene.cut(4, walk="backfill")
    scene.run()
    assert scene.sweep(reset=False)["seen"] == 100


# What is given up ---------------------------------------------------------------------------------------------------


def refusing(scene: Sweeping) -> None:
    """From now on nothing can be deleted: the database says so."""
    scene.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'disk full'; end $$;"
        "create trigger refuse before update on {} for each row when (new.deleted_at is not null)"
        " execute function refuse()",
        scene.table,
    )


def stopped_before_deleting(either: Sweeping, api: Returning, keys: int = 1) -> None:
    """Run a sweep up to where it has noted what it has not seen."""
    if either.spec.get("by_key"):
        either.cut(11, reset=True, keys=keys)
    else:
        refusing(either)
        with pytest.raises(Exception, match="P0001"):
            either.run(walk="rebackfill", reset=True)
        either.execute("drop function refuse cascade")
    assert either.sweeps()[-1] == "judged"
    assert set(either.noted().values()) == {"absent"}


def test_what_a_sweep_that_is_given_up_had_not_seen(either: Sweeping, api: Returning) -> None:
    """It is nobody's: a record that is back when the next sweep comes is not deleted, nor asked for; one that is gone
    is."""
    back, gone = str(api.ids[4]), str(api.ids[5])
    api.delete(back, gone)
    stopped_before_deleting(either, api, keys=2)
    assert set(either.noted()) == {back, gone}
    api.put_back(back)
    asked = api.count
    found = either.sweep()
    assert (found["absent"], found["deleted"], found["returned"]) == (1, 1, 0)
    assert either.tombstones() == {gone}
    assert f"/things/{back}" not in [each.path for each in api.requests[asked:]]
    assert either.alive() == api.live()
    assert either.sweeps() == ["given up", "ended"]
    assert either.execute(
        "select count(*) from {} where sweep in (select number from {} where source = %s)",
        either.book("sweep_seen"),
        either.book("sweep"),
        values=[either.name],
    ) == [(0,)]


def test_seen_by_another_walk_before_it_is_deleted(either: Sweeping, api: Returning) -> None:
    """A record that is back before the sweep has deleted it, and that another walk has read: it stays."""
    back = str(api.ids[4])
    api.delete(back)
    stopped_before_deleting(either, api)
    api.put_back(back)
    either.run(walk="incremental")
    assert either.noted() == {}
    found = either.goes_on()
    assert (found["absent"], found["deleted"], either.tombstones()) == (1, 0, set())
    assert either.alive() == api.live()


def test_the_backfill_starts_over_in_a_sweep(either: Sweeping, api: Returning) -> None:
    """The sweep waits for it, goes on, and deletes what neither has seen; nothing else."""
    api.delete(*api.ids[20:22])
    either.cut(5)
    either.cut(4, walk="backfill", reset=True)
    either.stops(BackfillFirstError, walk="rebackfill")
    either.run()
    found = either.goes_on()
    assert (found["deleted"], either.sweeps()) == (2, ["ended"])
    assert either.alive() == api.live()


def test_the_source_file_changes_before_the_first_page(scene: Sweeping, api: Returning) -> None:
    """What stopped the sweep there may have been corrected: it begins as the file says now."""
    scene.cut(1)
    scene.spec["pages"] = {"by": "since", "size": {"send": "limit", "max": 10}}
    assert scene.goes_on()["seen"] == 100
    assert scene.sweeps() == ["given up", "ended"]


# The guard ----------------------------------------------------------------------------------------------------------


def test_more_than_may_be_deleted(either: Sweeping, api: Returning) -> None:
    """Nothing is deleted or noted, and the sweep stays open at its end: asked again it judges again, without reading;
    allowed to, it deletes."""
    api.delete(*api.ids[::2])
    exc = either.stops(TooManyDeletesError, walk="rebackfill")
    assert "no longer holds 50 of 100 stored records; a sweep may delete 10 of them" in exc.what
    asked = api.count
    exc = either.stops(TooManyDeletesError, walk="rebackfill", max_deletes=49)
    assert "may delete 49 of them" in exc.what
    assert "max_deletes: 50" in exc.todo
    assert (either.tombstones(), either.noted(), either.sweeps(), api.count) == (set(), {}, ["open"], asked)
    found = either.sweep(reset=False, max_deletes=50)
    assert (found["deleted"], api.count - asked) == (50, found["confirmed"])
    assert either.alive() == api.live()


@pytest.mark.parametrize(
    ("asked", "most"), [("3%", 5), ("12.5%", 12), (7, 7), (0, 0), ("0%", 0), ("100%", 100), (10**30, 100)], ids=str
)
def test_what_the_source_file_allows(scene: Sweeping, api: Returning, asked: str | int, most: int) -> None:
    """A number, or a part of what is stored, then five at least, unless it is none: one more is too many."""
    scene.spec["sweep"] = {"every": "1d", "max_deletes": asked}
    gone = api.ids[: min(most + 1, 99)]
    api.delete(*gone)
    if most < 100:
        exc = scene.stops(TooManyDeletesError, walk="rebackfill", reset=True)
        assert f"holds {most + 1} of 100" in exc.what
        api.put_back(gone[0])
    assert scene.sweep()["deleted"] == min(most, 99)
    assert scene.alive() == api.live()


def test_a_list_that_came_too_short_is_read_again_in_time(scene: Sweeping, api: Returning) -> None:
    """Unless somebody asks before: when the next sweep is due, the one that may not delete gives way to it."""
    scene.spec["sweep"] = {"every": "1d"}
    gone = [str(key) for key in api.ids[:50]]
    api.delete(*gone)
    scene.rest(DAY)
    scene.stops(TooManyDeletesError, walk="rebackfill")
    api.put_back(*gone)
    scene.rest(DAY - HOUR)
    scene.stops(TooManyDeletesError, walk="rebackfill")
    scene.rest(HOUR)
    found = scene.goes_on()
    assert (found["seen"], found["deleted"], scene.sweeps()) == (100, 0, ["given up", "ended"])
    assert scene.alive() == api.live()


# Its cursor ---------------------------------------------------------------------------------------------------------


def shown(cursors: Cursors) -> list[dict[str, Any]]:
    """What the cursor has shown."""
    return [json.loads(text) for text in cursors.shown]


def test_the_cursor_is_put_back(either: Sweeping, api: Returning) -> None:
    """To a place that this sweep has passed: from there it reads again, and what it has seen, it has seen."""
    cursors = Cursors()
    how: dict[str, Any] = {"cursor": cursors, "settings": either.settings(cursor_every=timedelta(0), batch=10)}
    api.delete(*api.ids[70:73])
    either.cut(8, **how)
    (early,) = [text for text in cursors.shown if json.loads(text)["pages"] == 2]
    cursors.put(early)
    asked = api.count
    found = either.sweep(reset=False, **how)
    assert api.count - asked == 8 + found["confirmed"]
    assert (found["seen"], found["deleted"], either.sweeps()) == (97, 3, ["ended"])
    assert either.alive() == api.live()


def test_the_cursor_is_deleted(scene: Sweeping, api: Returning) -> None:
    """Everything is read again, though it is not due; in the middle of a sweep that one is given up."""
    cursors = Cursors()
    how: dict[str, Any] = {"cursor": cursors, "settings": scene.settings(cursor_every=timedelta(0), batch=10)}
    scene.spec["sweep"] = {"every": "1d"}
    assert scene.run(walk="rebackfill", **how).requests == 0
    cursors.put(None)
    assert scene.sweep(reset=False, **how)["seen"] == 100
    scene.cut(6, **{**how, "reset": True})
    cursors.put(None)
    assert scene.sweep(reset=False, **how)["seen"] == 100
    assert scene.sweeps() == ["ended", "given up", "ended"]


def test_the_cursor_of_an_earlier_sweep(scene: Sweeping, api: Returning) -> None:
    """It stands where this one has not been: followed, it would skip records, and they would be deleted."""
    cursors = Cursors()
    how: dict[str, Any] = {"cursor": cursors, "settings": scene.settings(cursor_every=timedelta(0), batch=10)}
    scene.sweep(**how)
    further = [text for text in cursors.shown if json.loads(text)["pages"] in (5, 10)]
    assert len(further) >= 2
    # Nobody has asked for this one: since the last reset, all those places have been read.
    scene.cut(3, **how)
    for text in further:
        # As it was shown; and as a person writes it, who knows nothing of the ledger.
        for edited in (text, json.dumps({**json.loads(text), "sequence": 1})):
            cursors.put(edited)
            scene.stops(CursorAheadError, walk="rebackfill", **how)
    (newest,) = [text for text in cursors.shown if json.loads(text)["pages"] == 2][-1:]
    cursors.put(newest)
    assert scene.sweep(reset=False, **how)["seen"] == 100
    assert Counter(scene.sweeps()) == {"ended": 2}
    assert scene.alive() == api.live()
