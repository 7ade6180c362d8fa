"""Sweeps beside other writers: what is newer stays, what anybody has seen meanwhile is not deleted, nothing twice.

A sweep's page is held back after the API has answered it, and another run, which takes the object over, stores what has
changed since; or the sweep is cut, and other walks run between its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from airflow_extract_provider.extract.api.cut import one_record
from airflow_extract_provider.extract.errors import ApiUnavailableError, FencedError
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.replay import replay
from tests.crash.stage import wait_until
from tests.extract.scene import TOKENS
from tests.extract.sweeping import BY_KEY, Held, Returning, Sweeping
from tests.hazards.kinds import KINDS
from tests.loopback import Fault, LoopbackApi

KIND = KINDS["token updated"]
Make = Callable[..., Sweeping]


@pytest.fixture
def things() -> Iterator[Returning]:
    """60 records on six pages."""
    with Returning(KIND.served()) as things:
        things.insert(60)
        things.clock.advance(timedelta(minutes=5))
        yield things


@pytest.fixture
def make(scenes_dsn: str, pauses: list[float]) -> Iterator[Make]:
    """Makes scenes over an API, backfilled. Without ``versioned`` the records have no version."""
    made: list[Sweeping] = []

    def make(api: Any, spec: Any = None, *, versioned: bool = True, **over: Any) -> Sweeping:
        described = KIND.described(**over) if spec is None else {**spec, "late": "0s", **over}
        unversioned = () if versioned else ("version", "since", "order")
        found = {name: value for name, value in described.items() if name not in unversioned}
        made.append(Sweeping(api, connecting(scenes_dsn), found, "books"))
        made[-1].migrate()
        made[-1].run()
        return made[-1]

    yield make
    for each in made:
        each.close()


def note(scene: Sweeping, *keys: Any) -> None:
    """Note keys to be read again."""
    with scene.connect() as conn:
        refetch.note(conn, scene.books, scene.name, scene.object, [str(key) for key in keys], "test")


def pages(scene: Sweeping) -> int:
    """How many of a sweep's pages are committed."""
    asked = "select count(*) from {} where source = %s and walk = 'rebackfill' and kind = 'page'"
    return int(scene.execute(asked, scene.book("ledger"), values=[scene.name])[0][0])


def held(scene: Sweeping, number: int, meanwhile: Callable[[], object]) -> None:
    """Run a sweep whose ``number``-th page is held back while another run takes its place: it loses the object."""

    def others() -> None:
        wait_until(lambda: pages(scene) == number - 1)
        meanwhile()

    scene.stops(FencedError, walk="rebackfill", reset=True, client=Held(scene.client(), number, others))


def revisions(scene: Sweeping, *keys: Any) -> list[int]:
    """How often each of these has changed, its creation being the first time."""
    found = dict(scene.execute("select key, revision from {}", scene.table))
    return [found[str(key)] for key in keys]


WRITERS: list[tuple[WalkName, bool, bool]] = [
    (walk, touch, versioned)
    for walk in ("incremental", "by_key", "rebackfill", "backfill")
    for touch in (True, False)
    for versioned in (True, False)
    # What has changed can be asked for only by versions, where these are changed.
    if walk != "incremental" or (touch and versioned)
]


@pytest.mark.parametrize(("walk", "touch", "versioned"), WRITERS)
@pytest.mark.parametrize("number", [1, 3])
def test_another_writer_stores_what_is_newer(
    things: Returning, make: Make, walk: WalkName, touch: bool, versioned: bool, number: int
) -> None:
    """A record is changed, and one is deleted, while the sweep holds a page with their older copies: the newer ones
    stay, each was one change, and in the end the copy is the API."""
    scene = make(things, versioned=versioned, by_key=BY_KEY)
    changed, gone, other = (things.ids[(number - 1) * 10 + at] for at in (2, 3, 4))

    def meanwhile() -> None:
        things.update(changed, touch=touch)
        things.delete(gone)
        note(scene, gone, *([changed] if walk == "by_key" else []))
        scene.run(walk=walk, take_over=True, reset=walk == "backfill")
        if walk != "by_key":
            scene.run(walk="by_key")

    held(scene, number, meanwhile)
    assert scene.alive()[str(changed)] == things.live()[str(changed)]
    assert str(gone) in scene.tombstones()
    scene.goes_on() if scene.sweeps()[-1] != "ended" else scene.sweep()
    assert scene.alive() == things.live()
    assert revisions(scene, changed, gone, other) == [2, 2, 1]
    assert scene.noted() == {}


@pytest.mark.parametrize("by_key", [True, False], ids=["by key", "by sweep"])
@pytest.mark.parametrize("walk", ["incremental", "backfill"])
def test_what_another_walk_has_seen(things: Returning, make: Make, by_key: bool, walk: WalkName) -> None:
    """Unchanged, on another walk's page while the sweep is open; then it goes, and the sweep's own list does not hold
    it any more: it is left to the next sweep. So is what was stored after the sweep had begun."""
    scene = make(things, lookback="1h", **({"by_key": BY_KEY} if by_key else {}))
    seen = things.ids[55]
    stands = scene.stamps()
    scene.cut(3)
    new = things.insert()[0]
    scene.run(walk=walk, reset=True)
    assert len(scene.stamps() - stands) == 1
    things.delete(seen, new)
    found = scene.goes_on()
    assert (found["absent"], found["deleted"], found["still_there"]) == (0, 0, 0)
    assert scene.alive().keys() - things.live().keys() == {str(seen), str(new)}
    assert scene.sweep()["deleted"] == 2
    assert scene.alive() == things.live()


def test_what_another_walk_had_seen_before(things: Returning, make: Make) -> None:
    """Its page was asked for before the sweep began: that says nothing of what is there since."""
    scene = make(things, lookback="1h")
    gone = things.ids[55]
    scene.run(walk="incremental")
    things.delete(gone)
    assert scene.sweep()["deleted"] == 1
    assert scene.tombstones() == {str(gone)}


def test_changes_between_the_slices(things: Returning, make: Make) -> None:
    """All other walks run between the parts of one sweep, and each part meets another API: every stored version was a
    true one, and each was stored once."""
    scene = make(things, by_key=BY_KEY)
    others: list[tuple[WalkName, bool]] = [("incremental", True), ("by_key", False), ("backfill", False)]
    changed: dict[Any, int] = {}
    for turn, (walk, touch) in enumerate(others):
        scene.cut(2)
        for key in (things.ids[5], things.ids[25], things.ids[50]):
            things.update(key, touch=touch)
            changed[key] = changed.get(key, 1) + 1
            note(scene, key)
        things.delete(things.ids[30 + turn])
        things.insert(1)
        things.clock.advance(60)
        scene.run(walk=walk, reset=walk == "backfill")
    scene.goes_on()
    # What has moved behind the sweep meanwhile is the incremental walk's, or the next sweep's.
    scene.sweep()
    assert scene.alive() == things.live()
    assert all(revision <= changed[key] for key, revision in zip(changed, revisions(scene, *changed), strict=True))
    assert scene.sweep()["changed"] == 0


def test_replayed_between_the_slices(api: LoopbackApi, make: Make) -> None:
    """The sweep has set a newer version aside, since its instant could not be read; replayed before the sweep goes on,
    it is stored, and stays; what was not seen is deleted."""
    good = [b'{"id": "r%02d", "at": "2026-01-01T00:00:00Z", "n": 1}' % number for number in range(25)]
    one, two = b'{"id": "r03", "at": 1767312000, "n": 2}', b'{"id": "r25", "at": 1767312000, "n": 3}'
    api.rows = list(good)
    scene = make(api, TOKENS, version="at", on_bad_record="quarantine")
    api.rows = [*good[:3], one, *good[4:8], two, *good[8:20], *good[21:]]
    asked = len(api.asked)
    api.fault = lambda number, _: Fault(503) if number > asked + 1 else None
    scene.stops(ApiUnavailableError, walk="rebackfill")
    api.fault = lambda number, _: None
    # The source file learns to live with them: it says nothing of versions any more.
    del scene.spec["version"]
    thing = scene.source.object("things")
    counts = replay(scene.connect, scene.source, "things", scene.books, lambda raw: one_record(thing, raw))
    assert (counts["updated"], counts["created"], counts["replayed"]) == (1, 1, 2)
    found = scene.goes_on()
    assert (found["absent"], found["deleted"]) == (1, 1)
    assert scene.tombstones() == {"r20"}
    assert scene.sweep()["changed"] == 0
    assert {key: record["n"] for key, record in scene.alive().items() if record["n"] > 1} == {"r03": 2, "r25": 3}
    assert revisions(scene, "r03", "r25", "r20", "r04") == [2, 1, 2, 1]
