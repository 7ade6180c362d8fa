"""Whatever happens to the Redis before the store, at whichever moment: no change is missed, none is told twice.

A record goes from A to B, while the map is disturbed, and back to A: if anything of the map's old knowledge were
believed, the copy would stay at B for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

import pytest
from psycopg import sql

from airflow_extract_provider.extract.hashes.hash_map import HashMap, Looked, Marker
from airflow_extract_provider.extract.hashes.redis import RedisHashMap
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import Scene
from tests.hazards.kinds import KINDS
from tests.redis_server import RedisServer, running

Moment: TypeAlias = Literal[
    "before the look", "after the look", "before the removal", "removed, not committed", "committed, not set", "set"
]
MOMENTS: tuple[Moment, ...] = (
    "before the look",
    "after the look",
    "before the removal",
    "removed, not committed",
    "committed, not set",
    "set",
)
TROUBLES: Mapping[str, Callable[[RedisServer], object]] = {
    "flushed": lambda redis: redis.tell("FLUSHALL"),
    "killed, comes back with an older state": lambda redis: redis.restart(),
    "killed for good": lambda redis: redis.stop(),
}


@dataclass
class Disturbed:
    """A map to which something happens at a moment, once."""

    map: HashMap
    moment: Moment
    action: Callable[[], object]
    passed: list[Moment] = field(default_factory=list)

    def _at(self, moment: Moment) -> None:
        if moment == self.moment and not self.passed:
            self.passed.append(moment)
            self.action()

    def enter(self, copy: str, identity: str, number: int) -> bool:
        return self.map.enter(copy, identity, number)

    def look(self, keys: Sequence[str]) -> Looked:
        self._at("before the look")
        found = self.map.look(keys)
        self._at("after the look")
        return found

    def claim(self, keys: Sequence[str]) -> Marker:
        self._at("before the removal")
        found = self.map.claim(keys)
        self._at("removed, not committed")
        return found

    def learn(self, marker: Marker, hashes: Mapping[str, bytes | None]) -> None:
        self._at("committed, not set")
        self.map.learn(marker, hashes)
        self._at("set")

    def clear(self) -> None:
        self.map.clear()

    def close(self) -> None:
        self.map.close()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that comes back with what it had saved."""
    with running() as server:
        yield server


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """30 records in three pages."""
    with HostileApi(seed=5, listings={"/things": KINDS["token updated"].served()}) as api:
        api.insert(30, value="A")
        api.clock.advance(timedelta(minutes=5))
        yield api


@pytest.fixture(params=["by a sweep", "by a sweep, no versions", "by an incremental walk"])
def how(request: pytest.FixtureRequest) -> str:
    """How the changes come."""
    found: str = request.param
    return found


@pytest.fixture
def scene(api: HostileApi, connect: Connect, how: str) -> Iterator[Scene]:
    """The API, and a table for its records, whose changes are events."""
    kind = KINDS["token updated"]
    without = {"version": None, "since": {**kind.spec["since"], "field": "updated_at"}}
    spec = kind.described(events=["created", "changed", "deleted"], **(without if "no versions" in how else {}))
    found = Scene(api, connect, spec)
    found.migrate()
    yield found
    found.close()


def events(scene: Scene, key: str) -> list[tuple[str, str, str]]:
    """A record's events in their order: the rule, and the value before and after."""
    text = sql.SQL("select type, data from {}.outbox where key = {} order by sequence")
    with scene.connect() as conn:
        rows = conn.execute(text.format(sql.Identifier(scene.books), key)).fetchall()
    return [(kind.rpartition(".")[2], data["before"]["value"], data["record"]["value"]) for kind, data in rows]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_every_change_is_seen(
    scene: Scene, api: HostileApi, redis: RedisServer, moment: Moment, trouble: str, how: str
) -> None:
    """A, B, A, B, A: by a sweep, or by an incremental walk as well; the trouble comes with the first B."""
    first: WalkName = "incremental" if "incremental" in how else "rebackfill"
    key = api.ids[14]

    def becomes(value: str, walk: WalkName, hash_map: HashMap) -> None:
        api.update(key, touch=walk == "incremental", value=value)
        api.clock.advance(timedelta(minutes=5))
        scene.run(walk=walk, hash_map=hash_map)
        assert scene.alive() == api.live()

    for each in ("backfill", "rebackfill"):
        scene.run(walk=each, hash_map=RedisHashMap(redis.client()))
    redis.save()
    disturbed = Disturbed(RedisHashMap(redis.client()), moment, lambda: TROUBLES[trouble](redis))
    becomes("B", first, disturbed)
    assert disturbed.passed == [moment]
    becomes("A", "rebackfill", RedisHashMap(redis.client()))
    redis.restart()
    becomes("B", "rebackfill", RedisHashMap(redis.client()))
    becomes("A", "rebackfill", RedisHashMap(redis.client()))
    assert events(scene, str(key)) == [("changed", *each) for each in ("AB", "BA", "AB", "BA")]
