"""Runs with a hash map before the store: what it knows is not looked up, and what happened without it is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import pytest
from psycopg import sql

from airflow_extract_provider.extract.hashes.hash_map import HashMap, HashMapAwayError, Looked, Marker
from airflow_extract_provider.extract.hashes.memory import MemoryHashMap
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import Scene
from tests.hazards.kinds import KINDS

COUNT = 120


class Watched:
    """A map that counts what it was asked and knew; ``away``: from the next claim on it cannot be reached."""

    def __init__(self, map: HashMap) -> None:
        self.map = map
        self.asked = self.known = 0
        self.away = False

    def enter(self, copy: str, identity: str, number: int) -> bool:
        self.asked = self.known = 0
        return self.map.enter(copy, identity, number)

    def look(self, keys: Sequence[str]) -> Looked:
        found = self.map.look(keys)
        self.asked += len(keys)
        self.known += sum(hash is not None for hash in found.hashes)
        return found

    def claim(self, keys: Sequence[str]) -> Marker:
        if self.away:
            raise HashMapAwayError("away")
        return self.map.claim(keys)

    def learn(self, marker: Marker, hashes: Mapping[str, bytes | None]) -> None:
        self.map.learn(marker, hashes)

    def clear(self) -> None:
        self.map.clear()

    def close(self) -> None:
        self.map.close()


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """So many records."""
    with HostileApi(seed=7, listings={"/things": KINDS["token updated"].served()}) as api:
        api.insert(COUNT)
        api.clock.advance(timedelta(minutes=5))
        yield api


@pytest.fixture
def map() -> Watched:
    """A map in memory."""
    return Watched(MemoryHashMap())


@pytest.fixture
def scene(api: HostileApi, connect: Connect, map: Watched) -> Iterator[Scene]:
    """The API, backfilled with the map."""
    found = Scene(api, connect, KINDS["token updated"].described())
    found.migrate()
    found.run(hash_map=map)
    yield found
    found.close()


def swept(scene: Scene, api: HostileApi, map: HashMap | None) -> Mapping[str, int]:
    """Sweep; the copy is then as the API is. Returns the report."""
    summary = scene.run(walk="rebackfill", hash_map=map)
    assert summary.sweep is not None
    assert summary.sweep["seen"] == len(api.ids)
    assert scene.alive() == api.live()
    return summary.sweep


def test_what_was_written_is_known(scene: Scene, api: HostileApi, map: Watched) -> None:
    """A sweep after the backfill looks nothing up in Postgres, and sees every record all the same."""
    report = swept(scene, api, map)
    assert (map.asked, map.known) == (COUNT, COUNT)
    assert (report["changed"], report["new"], report["deleted"]) == (0, 0, 0)


def test_what_is_known_hides_no_change(scene: Scene, api: HostileApi, map: Watched) -> None:
    """Silent changes, new records and deletes; and each of them is known the next time."""
    api.update(*api.ids[:3], touch=False)
    api.delete(*api.ids[10:12])
    api.insert(2)
    report = swept(scene, api, map)
    assert (report["silent"], report["new"], report["deleted"]) == (3, 2, 2)
    swept(scene, api, map)
    assert map.known == COUNT


def test_a_run_without_the_map_ends_it(scene: Scene, api: HostileApi, map: Watched) -> None:
    """A, B by a run that has no map, A: nothing of the first A is believed."""
    key = api.ids[5]
    api.update(key, touch=False, value="A")
    swept(scene, api, map)
    api.update(key, touch=False, value="B")
    swept(scene, api, None)
    api.update(key, touch=False, value="A")
    assert swept(scene, api, map)["silent"] == 1
    assert map.known == 0


def test_a_map_that_is_lost_at_a_write_ends(scene: Scene, api: HostileApi, map: Watched) -> None:
    """The write is not held up, and in its transaction it is noted that the map tells of another time."""
    key = api.ids[5]
    api.update(key, touch=False, value="A")
    swept(scene, api, map)
    map.away = True
    api.update(key, touch=False, value="B")
    swept(scene, api, map)
    map.away = False
    api.update(key, touch=False, value="A")
    assert swept(scene, api, map)["silent"] == 1
    assert map.known == 0
    swept(scene, api, map)
    assert map.known == COUNT


def test_a_table_that_was_made_anew_ends_it(scene: Scene, api: HostileApi, map: Watched) -> None:
    """Somebody puts half of a backup back: what is missing is brought again."""
    table = sql.Identifier(*scene.source.table(scene.object))
    with scene.connect() as conn:
        for text in (
            "create temp table half as select * from {} where key < '5'",
            "truncate {}",
            "insert into {} select * from half",
        ):
            conn.execute(sql.SQL(text).format(table))
    assert swept(scene, api, map)["new"] > 0
    assert map.known == 0


def test_another_config_ends_it(scene: Scene, api: HostileApi, map: Watched) -> None:
    """What is stored of a record is another part of it now: all of it is looked up, and written so."""
    scene.spec["columns"] = {"value": "text"}
    scene.migrate()
    swept(scene, api, map)
    assert map.known == 0
    with scene.connect() as conn:
        table = sql.Identifier(*scene.source.table(scene.object))
        row = conn.execute(sql.SQL("select count(value) from {}").format(table)).fetchone()
    assert row == (COUNT,)


def test_it_grows_with_what_is_alive(scene: Scene, api: HostileApi) -> None:
    """Records come and go; of those that are gone nothing is kept."""
    map = MemoryHashMap()
    for _ in range(4):
        scene.run(walk="rebackfill", hash_map=map, max_deletes=COUNT)
        api.delete(*api.ids[:40])
        api.insert(40)
        api.clock.advance(timedelta(minutes=5))
    scene.run(walk="rebackfill", hash_map=map, max_deletes=COUNT)
    assert scene.alive() == api.live()
    assert len(map._entries() or {}) == COUNT
