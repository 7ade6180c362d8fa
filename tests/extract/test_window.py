"""Windows of time that are read by themselves: exact, resumable, and no other walk moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import ApiUnavailableError, SourceError, WindowInvalidError
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
    """What the API may still show late is not called covered, so that the next run reads it."""
    made = days("token updated")
    scene = made.scene(late="2h")
    now = made.api.clock.now
    scene.run(walk="window", window=Window(now - DAY, now - HOUR))
    ((start, end, gap),) = covered(scene)
    assert (start, gap) == (now - DAY, False)
    assert now - 3 * HOUR < end <= now - 2 * HOUR + timedelta(minutes=1)
    count = made.api.count
    scene.run(walk="window", window=Window(now - DAY, now - HOUR), runner=Runner("two", "two"))
    assert made.api.count == count, "the same window is complete as it is, and is not read again unless asked"


def test_a_window_by_another_field(days: Callable[[str], World]) -> None:
    """When a record was made says nothing of when it was changed: that window is no coverage. It is read once all the
    same."""
    made = days("token updated")
    by_creation = {"send": "since", "until": "until", "inclusive": True, "precision": "1us", "field": "created_at"}
    scene = made.scene(since=by_creation, order=None)
    assert scene.run(walk="window", window=made.day(1)).records == 40
    assert covered(scene) == []
    count = made.api.count
    assert scene.run(walk="window", window=made.day(1)).complete
    assert made.api.count == count


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
