"""Windows of time that are read by themselves: exact, resumable, and no other walk moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    PositionMismatchError,
    SourceError,
    TiedPageError,
    WindowInvalidError,
)
from airflow_extract_provider.extract.pipeline import Runner, Window
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.extract.store.coverage import coverage
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import Scene
from tests.hazards.kinds import KINDS

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WINDOWED = [
    name for name, kind in KINDS.items() if "since" in kind.spec or name in ("page newest", "position", "link newest")
]


class World:
    """An API with 40 records a day over five days, and scenes over it."""

    def __init__(self, kind: str, connect: Connect, running: ExitStack) -> None:
        self.kind, self.connect, self._running = KINDS[kind], connect, running
        self.api = running.enter_context(HostileApi(listings={"/things": self.kind.served()}))
        self.began = self.api.clock.now
        self.days: list[list[Any]] = []
        for _ in range(5):
            ids = []
            for _ in range(4):
                ids += self.api.insert(10)
                self.api.clock.advance(6 * HOUR)
            self.days.append(ids)

    def scene(self, **over: Any) -> Scene:
        """A scene over the API, with empty tables."""
        found = Scene(self.api, self.connect, self.kind.described(**over))
        self._running.callback(found.close)
        found.migrate()
        return found

    def day(self, first: int, last: int | None = None) -> Window:
        """The days from the first to the last one, counted from 0."""
        return Window(self.began + first * DAY, self.began + ((first if last is None else last) + 1) * DAY)


@pytest.fixture
def days(scenes_dsn: str, pauses: list[float]) -> Iterator[Callable[[str], World]]:
    """Makes worlds of a kind of API."""
    with ExitStack() as running:
        yield lambda kind: World(kind, connecting(scenes_dsn), running)


def stands(scene: Scene, walk: str) -> list[str]:
    """Where a walk stands, as its ledger rows say."""
    with scene.connect() as conn:
        text = f"select position::text from {scene.books}.ledger where source = %s and walk = %s order by sequence"
        return [row[0] for row in conn.execute(text.encode(), [scene.name, walk])]


def covered(scene: Scene) -> list[tuple[datetime | None, datetime, bool]]:
    """What the store calls complete, and the gaps."""
    with scene.connect() as conn:
        return [(each.start, each.end, each.gap) for each in coverage(conn, scene.books, scene.name)]


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_is_exact(days: Callable[[str], World], kind: str) -> None:
    """Nothing but the window need have been read before: all of its records are there, as the API has them."""
    made = days(kind)
    scene = made.scene()
    summary = scene.run(walk="window", window=made.day(1, 2))
    assert summary.complete
    assert summary.complete_to is None
    stored, live = scene.alive(), made.api.live()
    inside = [str(key) for day in made.days[1:3] for key in day]
    assert {key: stored.get(key) for key in inside} == {key: live[key] for key in inside}
    start = made.began + DAY
    assert covered(scene) == [(start, start + 2 * DAY, False)]


@pytest.mark.parametrize("kind", [kind for kind in WINDOWED if KINDS[kind].spec.get("order") == ["updated_at"]])
def test_it_ends_behind_the_window(days: Callable[[str], World], kind: str) -> None:
    """In a rising order, or by an upper bound, the days behind it are not read."""
    made = days(kind)
    for over in ({}, {"since": {"send": "since", "inclusive": True, "precision": "1us"}}):
        scene = made.scene(**over)
        scene.run(walk="window", window=made.day(1))
        behind = {str(key) for day in made.days[3:] for key in day}
        assert not behind & scene.alive().keys()


@pytest.mark.parametrize("kind", ["token updated", "search", "position", "page newest"])
def test_what_is_covered_costs_nothing(days: Callable[[str], World], kind: str) -> None:
    """By the window itself, by several side by side, or by the backfill; unless it is asked for."""
    made = days(kind)
    scene = made.scene()
    for day in (0, 1):
        assert scene.run(walk="window", window=made.day(day)).pages
    count = made.api.count
    again = scene.run(walk="window", window=made.day(0, 1))
    assert (again.complete, again.pages, again.requests) == (True, 0, 0)
    assert made.api.count == count
    assert scene.run(walk="window", window=made.day(1, 2)).pages
    scene.run()
    count = made.api.count
    scene.run(walk="window", window=made.day(3))
    assert made.api.count == count
    made.api.update(made.days[3][0], touch=False, note="silent")
    found = scene.run(walk="window", window=made.day(3), reset=True)
    assert (found.counts["updated"], found.counts["created"]) == (1, 0)
    assert scene.alive() == made.api.live()


@pytest.mark.parametrize("kind", ["token updated", "page updated", "search"])
def test_no_other_walk_moves(days: Callable[[str], World], kind: str) -> None:
    """Backfill and incremental walk stand where they stood; what a window has brought is no news to them."""
    made = days(kind)
    scene = made.scene()
    scene.run()
    scene.run(walk="incremental")
    before = [stands(scene, walk) for walk in ("backfill", "incremental")]
    made.api.update(*made.days[2][:5], touch=False, note="silent")
    assert scene.run(walk="window", window=made.day(2), reset=True).counts["updated"] == 5
    assert [stands(scene, walk) for walk in ("backfill", "incremental")] == before
    made.api.insert(3)
    made.api.clock.advance(HOUR)
    found = scene.run(walk="incremental")
    assert (found.counts["created"], found.counts["updated"]) == (3, 0)
    assert scene.alive() == made.api.live()


def test_a_retry_goes_on_and_a_new_run_reads_again(days: Callable[[str], World]) -> None:
    """Asked to read again, a task's retry goes on where its first try has come; another task reads from the start."""
    made = days("token updated")
    scene = made.scene()
    scene.run()
    made.api.fault(made.api.count + 3, "reset", times=50)
    with pytest.raises(ApiUnavailableError):
        scene.run(walk="window", window=made.day(1), reset=True, runner=Runner("one", "one"))
    assert len(stands(scene, "window")) >= 2, "it was stopped in the middle"
    faulty = True
    while faulty:
        with suppress(ApiUnavailableError):
            summary = scene.run(walk="window", window=made.day(1), reset=True, runner=Runner("one", "one"))
            faulty = False
    assert summary.complete
    assert (summary.pages, summary.records) == (4, 40)
    count = made.api.count
    scene.run(walk="window", window=made.day(1), reset=True, runner=Runner("one", "one"))
    assert made.api.count == count
    scene.run(walk="window", window=made.day(1), reset=True, runner=Runner("two", "two"))
    assert made.api.count >= count + 4


def test_a_window_that_has_just_passed(days: Callable[[str], World]) -> None:
    """What the API may still show late is not called covered, so that the next run reads it; a retry does not."""
    made = days("token updated")
    scene = made.scene(late="2h")
    now = made.api.clock.now
    scene.run(walk="window", window=Window(now - DAY, now - HOUR))
    ((start, end, gap),) = covered(scene)
    assert (start, gap) == (now - DAY, False)
    assert now - 3 * HOUR < end <= now - 2 * HOUR + timedelta(minutes=1)
    late = made.api.insert(2, at=now - HOUR - timedelta(minutes=30))
    made.api.clock.advance(3 * HOUR)
    for _ in "12":
        scene.run(walk="window", window=Window(now - DAY, now - HOUR), runner=Runner("two", "two"))
    assert {str(key) for key in late} <= scene.alive().keys()
    assert covered(scene) == [(now - DAY, now - HOUR, False)]


def test_a_window_by_another_field(days: Callable[[str], World]) -> None:
    """When a record was made says nothing of when it was changed: that window is no coverage."""
    made = days("token updated")
    by_creation = {"send": "since", "until": "until", "inclusive": True, "precision": "1us", "field": "created_at"}
    scene = made.scene(since=by_creation, order=None)
    assert scene.run(walk="window", window=made.day(1)).records == 40
    assert covered(scene) == []
    count = made.api.count
    assert scene.run(walk="window", window=made.day(1), runner=Runner("one", "one")).complete
    again = made.api.count
    assert again > count, "what nothing covers is read again"
    scene.run(walk="window", window=made.day(1), runner=Runner("one", "one"))
    assert made.api.count == again, "but not by a retry"


def test_gaps_between_windows(days: Callable[[str], World]) -> None:
    """Two windows with a day between them: the store names the gap, and a third one closes it."""
    made = days("search")
    scene = made.scene()
    for day in (0, 2):
        scene.run(walk="window", window=made.day(day))
    at = [made.began + day * DAY for day in range(4)]
    assert covered(scene) == [(at[0], at[1], False), (at[1], at[2], True), (at[2], at[3], False)]
    scene.run(walk="window", window=made.day(1))
    assert covered(scene) == [(at[0], at[3], False)]


def test_a_copy_that_begins_anew_is_not_covered(days: Callable[[str], World]) -> None:
    """A window from before the backfill was started over says nothing of the new copy."""
    made = days("token updated")
    scene = made.scene()
    scene.run(walk="window", window=made.day(0))
    assert covered(scene)
    made.api.fault(made.api.count + 2, "reset", times=50)
    with pytest.raises(ApiUnavailableError):
        scene.run()
    assert covered(scene) == []


@pytest.mark.parametrize(
    ("start", "until", "words"),
    [
        (datetime(2026, 3, 2), datetime(2026, 3, 3, tzinfo=timezone.utc), "no zone"),  # noqa: DTZ001
        (datetime(2026, 3, 2, tzinfo=timezone.utc), datetime(2026, 3, 2, tzinfo=timezone.utc), "before anything else"),
        (datetime(2026, 3, 3, tzinfo=timezone.utc), datetime(2026, 3, 2, tzinfo=timezone.utc), "before anything else"),
    ],
)
def test_windows_that_say_nothing(start: datetime, until: datetime, words: str) -> None:
    """They cannot be made."""
    with pytest.raises(WindowInvalidError, match=words):
        Window(start, until)


def test_a_window_in_the_future(days: Callable[[str], World]) -> None:
    """It is refused before anything is asked or written."""
    made = days("token updated")
    scene = made.scene()
    soon = datetime.now(timezone.utc) + HOUR
    exc = scene.stops(WindowInvalidError, walk="window", window=Window(soon - DAY, soon))
    assert "yet to come" in str(exc)
    assert made.api.count == 0
    assert stands(scene, "window") == []


@pytest.mark.parametrize("kind", ["page id", "last key", "single", "page alone"])
def test_an_api_without_a_filter(days: Callable[[str], World], kind: str) -> None:
    """It is told what to declare, and what else brings changes."""
    made = days(kind)
    scene = made.scene()
    assert not Source.object(scene.source, "things").windowed
    exc = scene.stops(SourceError, walk="window", window=made.day(0))
    assert "`since`" in str(exc)
    assert made.api.count == 0


# What an earlier version lost ---------------------------------------------------------------------------------------


def test_smaller_pages_within_a_tie(days: Callable[[str], World]) -> None:
    """More records of one instant than a smaller page holds: that stops, though larger pages were seen before."""
    made = days("since only")
    scene = made.scene(since={"send": "since", "inclusive": True, "precision": "1us"})
    scene.run()
    at = made.api.clock.now
    made.api.bulk_import(8, at=at)
    made.api.clock.advance(HOUR)
    scene.spec["pages"] = {"by": "since", "size": {"send": "limit", "max": 4}}
    scene.stops(TiedPageError, walk="incremental")
    scene.spec["pages"] = {"by": "since", "size": {"send": "limit", "max": 10}}
    scene.run(walk="incremental")
    assert scene.alive() == made.api.live()


def test_a_window_that_begins_within_a_tie(days: Callable[[str], World]) -> None:
    """The server gives fewer records than the file says: how many, the other walks have learned."""
    made = days("since only")
    scene = made.scene(pages={"by": "since", "size": {"send": "limit", "max": 20}})
    scene.run()
    at = made.api.clock.now
    made.api.bulk_import(15, at=at)
    made.api.clock.advance(DAY)
    scene.stops(TiedPageError, walk="window", window=Window(at, at + HOUR))


@pytest.mark.parametrize(("kind", "precision"), [("search", "1s"), ("token updated", "1s"), ("token updated", "1d")])
def test_an_end_between_two_units_of_the_filter(days: Callable[[str], World], kind: str, precision: str) -> None:
    """Asked for no earlier end than the window's."""
    made = days(kind)
    since = {**made.kind.spec["since"], "precision": precision}
    scene = made.scene(since=since)
    window = Window(made.began, made.began + timedelta(seconds=0.5))
    scene.run(walk="window", window=window)
    inside = [key for key, row in made.api.live().items() if row["updated_at"] < "2026-03-01T10:00:00.5"]
    assert inside
    assert set(inside) <= scene.alive().keys()


def test_what_commits_late_in_a_search(days: Callable[[str], World]) -> None:
    """Within what may still change, a record that leaves and one that comes make up for each other in the API's count:
    that part is a window of its own, and no coverage."""
    made = days("search")
    now = made.api.clock.now
    keys = made.api.insert(14, at=now - HOUR)
    scene = made.scene(late="30m")
    asked = made.api.count
    leaving, coming = keys[1], now - timedelta(minutes=10)

    def swap() -> None:
        made.api.update(leaving, at=now)
        made.api.insert(1, at=coming)

    made.api.before(asked + 3, swap)
    scene.run(walk="window", window=Window(now - 2 * HOUR, now - timedelta(minutes=1)))
    live = made.api.live()
    kept = [str(key) for key in keys if key != leaving]
    assert {key: scene.alive().get(key) for key in kept} == {key: live[key] for key in kept}


@pytest.mark.parametrize("walks", [(), ("rebackfill",), ("incremental",)])
def test_a_table_that_was_emptied(days: Callable[[str], World], walks: tuple[str, ...]) -> None:
    """It is no complete copy any more, whatever was read before: a window says so, and is read once the backfill has
    begun anew."""
    made = days("token updated")
    scene = made.scene()
    scene.run()
    for walk in walks:
        scene.run(walk=walk, **({"reset": True} if walk == "rebackfill" else {}))
    with scene.connect() as conn:
        conn.execute(f"truncate {scene.name}.things".encode())
    scene.stops(PositionMismatchError, walk="window", window=made.day(1))
    made.api.fault(made.api.count + 3, "reset", times=50)
    scene.stops(ApiUnavailableError, reset=True)
    made.api.fault(made.api.count + 1, "reset", times=0)
    assert covered(scene) == []
    eventually(scene, made.day(3))
    live = made.api.live()
    assert {str(key): scene.alive().get(str(key)) for key in made.days[3]} == {
        str(key): live[str(key)] for key in made.days[3]
    }


def test_a_request_that_was_changed(days: Callable[[str], World]) -> None:
    """What the old one has read says nothing of the new one's copy, though the table still holds it."""
    made = days("token updated")
    scene = made.scene()
    scene.run()
    scene.run(walk="rebackfill", reset=True)
    scene.spec["params"] = {"archived": "false"}
    scene.stops(PositionMismatchError, walk="window", window=made.day(1))
    scene.run(reset=True, run_for=timedelta(0))
    assert covered(scene) == []
    assert scene.run(walk="window", window=made.day(1)).pages


def eventually(scene: Scene, window: Window) -> None:
    """Run a window until the API's troubles are over."""
    for _ in range(60):
        with suppress(ApiUnavailableError):
            scene.run(walk="window", window=window, runner=Runner("one", "one"))
            return
    raise AssertionError("the API stays away")


def test_a_window_from_before_the_copy_began_anew(days: Callable[[str], World]) -> None:
    """Half read, it begins anew, too: its first half was of the copy before."""
    made = days("token updated")
    scene = made.scene()
    scene.run()
    made.api.fault(made.api.count + 3, "reset", times=5)
    scene.tries = 1
    scene.stops(ApiUnavailableError, walk="window", window=made.day(1), reset=True, runner=Runner("one", "one"))
    with scene.connect() as conn:
        conn.execute(f"truncate {scene.name}.things".encode())
    eventually_begun(scene)
    eventually(scene, made.day(1))
    live = made.api.live()
    assert {str(key): scene.alive().get(str(key)) for key in made.days[1]} == {
        str(key): live[str(key)] for key in made.days[1]
    }


def eventually_begun(scene: Scene) -> None:
    """Start the backfill over; it reads a page."""
    for _ in range(60):
        with suppress(ApiUnavailableError):
            scene.run(reset=True, run_for=timedelta(0), runner=Runner("two", "two"))
            return
    raise AssertionError("the API stays away")


@pytest.mark.parametrize("year", [1, 9999])
def test_instants_at_the_ends_of_the_calendar(year: int) -> None:
    """They are refused: in another zone they may have no date."""
    with pytest.raises(WindowInvalidError, match="outside of the years"):
        Window(datetime(year, 1, 1, tzinfo=timezone(timedelta(hours=5))), datetime(year, 12, 31, tzinfo=timezone.utc))
