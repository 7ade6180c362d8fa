"""Sweeps find exactly what has changed, and tell of each change once: by the judge that knows only what was stored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.api import client
from airflow_extract_provider.extract.errors import ApiUnavailableError, FencedError
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.testing.hostile_store import Key
from tests.exactly_once.oracle import found, transitions
from tests.exactly_once.play import KIND, Play
from tests.extract.sweeping import BY_KEY, Returning
from tests.ways import Store

COUNT, PAGE = 10_000, 500
LARGE: dict[str, Any] = {"pages": {**KIND.spec["pages"], "size": {"send": "limit", "max": PAGE}}}
READABLE = pytest.mark.parametrize("over", [{"by_key": BY_KEY}, {}], ids=["by key", "by sweep"])


@pytest.fixture
def play(store: Store, conn: Connection, tmp_path: Path) -> Iterator[Play]:
    """A play whose API has no records yet, and gives many of them on a page."""
    with Returning(KIND.served(page_max=PAGE)) as api:
        yield Play(api, conn, store, tmp_path / "cursor")


@pytest.fixture
def sweep(play: Play) -> Callable[..., dict[str, Any]]:
    """Begins a sweep, reads it to its end, and returns its report."""

    def run(**how: Any) -> dict[str, Any]:
        summary = play.run("rebackfill", runner=f"sweep {play.chance.random()}", reset=True, **how)
        assert summary.complete
        assert summary.sweep is not None
        return dict(summary.sweep)

    return run


def alive(play: Play) -> dict[str, Any]:
    """The copy."""
    return dict(play.conn.execute("select key, data from shop.things where deleted_at is null").fetchall())


def check_exact(play: Play) -> None:
    """The copy is the API, and the outbox holds exactly the true events."""
    assert alive(play) == play.api.live()
    assert found(play.conn) == play.true_events()


@dataclass
class Damage:
    """What happened to the API: a hundredth has changed, half of it silently; a thousandth is gone, as many are new.

    ``early`` of the changes, and of the new records, are dated before what was complete.
    """

    fields: dict[str, int] = field(default_factory=lambda: {"value": 30, "note": 15, "owner.city": 5})
    changed: int = 50
    late: int = 0
    gone: int = 10
    new: int = 10
    missed: int = 0

    @property
    def silent(self) -> int:
        return sum(self.fields.values())

    def do(self, play: Play, chance: random.Random) -> None:
        """Do it."""
        api, early = play.api, play.api.clock.now - timedelta(seconds=90)
        picked = iter(chance.sample(api.ids[: COUNT - 14], self.silent + self.changed + self.gone))
        shown = api.live()
        for name, count in self.fields.items():
            told: dict[str, Any] = {"note": "some"} if name == "note" else {"owner": {"city": "Kiel"}}
            for key in (next(picked) for _ in range(count)):
                value = chance.randrange(31, 100) if name == "value" else shown[str(key)]["value"]
                api.update(key, touch=False, value=value, **({} if name == "value" else told))
        for number, key in enumerate(next(picked) for _ in range(self.changed)):
            api.update(key, at=early if number < self.late else None, value=chance.randrange(100))
        api.delete(*(next(picked) for _ in range(self.gone)))
        for number in range(self.new):
            api.insert(1, at=early if number < self.missed else None, value=chance.randrange(100))
        api.clock.advance(timedelta(minutes=1))


def filled(play: Play, **over: Any) -> None:
    """10,000 records, copied."""
    play.api.insert(COUNT - 14, value=30, note="none", owner={"city": "Bonn"})
    play.prepare(**LARGE, **over)
    assert len(play.api.ids) == COUNT


@READABLE
def test_found_exactly(play: Play, sweep: Callable[..., dict[str, Any]], over: dict[str, Any]) -> None:
    """Of 10,000 records: everything is found, the report counts it by its kind and names the fields that lied, and each
    change is told once. A second sweep finds nothing."""
    filled(play, **over)
    damage = Damage()
    damage.do(play, random.Random(11))
    told = sweep()
    check_exact(play)
    assert told["fields"] == damage.fields
    assert (told["changed"], told["silent"], told["late"]) == (100, 50, 0)
    assert (told["new"], told["missed"], told["returned"]) == (10, 0, 0)
    assert (told["stored"], told["seen"], told["absent"]) == (COUNT + 10, COUNT, 10)
    assert (told["deleted"], told["confirmed"], told["still_there"]) == (10, 10 if over else 0, 0)
    assert len(list(transitions(play.conn))) == COUNT + 100 + 10 + 10
    events = found(play.conn)
    again = sweep()
    assert [again[name] for name in ("changed", "new", "deleted", "absent", "returned")] == [0] * 5
    assert found(play.conn) == events


@READABLE
def test_beside_what_the_incremental_walk_finds(
    play: Play, sweep: Callable[..., dict[str, Any]], over: dict[str, Any]
) -> None:
    """It comes between the changes and the sweep, and misses those that the API dates too early: the sweep finds these,
    the silent ones and what is gone, and says what should have been found before."""
    filled(play, **over)
    play.api.clock.advance(timedelta(minutes=2))
    play.run()
    damage = Damage(late=20, missed=4)
    damage.do(play, random.Random(12))
    summary = play.run()
    assert (summary.counts["updated"], summary.counts["created"]) == (30, 6)
    told = sweep()
    check_exact(play)
    assert told["fields"] == damage.fields
    assert (told["changed"], told["silent"], told["late"]) == (70, 50, 20)
    assert (told["new"], told["missed"]) == (4, 4)
    assert (told["deleted"], told["absent"], told["seen"]) == (10, 10, COUNT)


@READABLE
def test_gone_and_back(play: Play, sweep: Callable[..., dict[str, Any]], over: dict[str, Any]) -> None:
    """A record that returns is told of as such, and compared with what was last known of it."""
    play.prepare(**over)
    keys = play.api.ids[2:4]
    play.api.delete(*keys)
    assert sweep()["deleted"] == 2
    assert isinstance(play.api, Returning)
    play.api.put_back(*keys)
    assert sweep()["returned"] == 2
    check_exact(play)
    told = {
        key: [type for type, _ in each if type.startswith("shop.things.")] for key, each in found(play.conn).items()
    }
    gone, back = ["shop.things.deleted", "shop.things.change"], ["shop.things.undeleted", "shop.things.change"]
    assert told == {str(key): [*gone, *back] for key in keys}


def test_held_while_another_run_stores_what_is_newer(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's page waits in front of the store, with older copies, while another run takes over: what that has told
    is all there is to tell."""
    play.prepare(by_key=BY_KEY, pages={**KIND.spec["pages"], "size": {"send": "limit", "max": 5}})
    fetch = client.ApiClient.fetch
    for walk in ("incremental", "by_key", "rebackfill", "backfill"):
        waits = [True]

        def held(self: Any, *asked: Any, walk: WalkName = walk, waits: list[bool] = waits) -> Any:
            reply = fetch(self, *asked)
            if waits and waits.pop():
                play.change()
                play.api.update(play.api.ids[1], touch=False, value=77)
                play.api.delete(play.api.ids[0])
                noted(play, *play.api.ids[:5])
                play.run(walk, runner=f"beside {walk}", take_over=True, reset=walk == "backfill")
            return reply

        monkeypatch.setattr(client.ApiClient, "fetch", held)
        with pytest.raises(FencedError):
            play.run("rebackfill", runner=f"held beside {walk}", reset=True)
        assert found(play.conn) == play.true_events()
        play.run("rebackfill", runner=f"behind {walk}", reset=True, max_deletes=14)
        check_exact(play)


@READABLE
@pytest.mark.parametrize("seed", range(3))
def test_whatever_runs_between(
    play: Play, over: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch, sweep: Callable[..., dict[str, Any]]
) -> None:
    """Sweeps cut at any page, and begun again; all other walks between; changes of all kinds: the events are true ones
    at each moment, and complete in the end."""
    monkeypatch.setattr(client, "pause", lambda halted, seconds: None)
    play.prepare(
        **over,
        pages={**KIND.spec["pages"], "size": {"send": "limit", "max": 5}},
        sweep={"every": "1d", "max_deletes": "100%"},
    )
    chance, ordered = random.Random(seed), 0
    walks: list[WalkName] = ["rebackfill", "rebackfill", "incremental", "backfill"]
    walks += ["by_key"] if over else []
    for turn in range(30):
        disturb(play, chance)
        walk = chance.choice(walks)
        if ordered < play.api.count and chance.random() < 0.5:
            ordered = play.api.count + chance.randrange(1, 6)
            play.api.fault(ordered, "503", times=_TRIES)
        with suppress(ApiUnavailableError):
            play.run(walk, runner=f"turn {turn}", reset=walk == "rebackfill" and chance.random() < 0.4)
        assert found(play.conn) == play.true_events()
    while play.api.count < ordered + _TRIES:
        with suppress(ApiUnavailableError):
            play.run("backfill", runner=f"{play.api.count} requests", reset=True)
    sweep()
    check_exact(play)
    assert sum(map(len, found(play.conn).values())) > 50


_TRIES = 10
"""As many as a request is sent at most, and more."""


def disturb(play: Play, chance: random.Random) -> None:
    """Something happens at the API."""
    api = play.api
    what = chance.choice(["insert", "update", "silent", "delete", "back"])
    if what == "insert" or len(api.ids) < 5:
        api.insert(chance.randrange(1, 4), value=chance.randrange(100))
    elif what == "delete":
        api.delete(*chance.sample(api.ids, 2))
    elif what == "back" and isinstance(api, Returning):
        gone = {version.id for version in api.history() if version.deleted} - set(api.ids)
        api.put_back(*sorted(gone)[:1])
    else:
        for key in chance.sample(api.ids, 3):
            api.update(key, touch=what == "update", value=chance.randrange(100))
    api.clock.advance(timedelta(seconds=5))


def noted(play: Play, *keys: Key) -> None:
    """Note keys to be read again."""
    with play.connect() as conn:
        refetch.note(conn, "extract", "shop", "things", [str(key) for key in keys], "test")
