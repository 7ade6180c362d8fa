"""Sweeps: what the API does not tell of is found, deletes are proven, and the report says what was found how."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from airflow_extract_provider.extract.errors import TooManyDeletesError
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import Scene
from tests.hazards.kinds import KINDS


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """200 records."""
    with HostileApi(seed=7, listings={"/things": KINDS["token updated"].served()}) as api:
        api.insert(200)
        api.clock.advance(timedelta(minutes=5))
        yield api


@pytest.fixture(params=["by key", "by sweep"])
def scene(api: HostileApi, connect: Connect, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The API, backfilled."""
    by_key = {"by_key": {"path": "/things/{{ key }}"}} if request.param == "by key" else {}
    found = Scene(api, connect, KINDS["token updated"].described(**by_key))
    found.migrate()
    found.run()
    found.run(walk="incremental")
    yield found
    found.close()


def test_smoke(scene: Scene, api: HostileApi) -> None:
    api.update(api.ids[3], touch=False)
    api.update(api.ids[4])
    api.delete(*api.ids[10:13])
    api.insert(2)
    summary = scene.run(walk="rebackfill", reset=True)
    print(summary.as_dict())
    assert scene.alive() == api.live()


def test_half(scene: Scene, api: HostileApi) -> None:
    api.delete(*api.ids[::2])
    exc = scene.stops(TooManyDeletesError, walk="rebackfill")
    print(exc)
    assert len(scene.stored()) == 200
    exc = scene.stops(TooManyDeletesError, walk="rebackfill")
    s = scene.run(walk="rebackfill", max_deletes=100)
    print(s.as_dict())
