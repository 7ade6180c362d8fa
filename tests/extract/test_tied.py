"""An instant that more records share than a page holds, where the API offers nothing to read past the first of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_extract_provider.extract.cursor import AtInstant
from airflow_extract_provider.extract.errors import TiedPageError
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi, Listing
from tests.extract.scene import Scene, exact
from tests.hazards.kinds import KINDS

TIED_AT = datetime(2026, 3, 1, 11, tzinfo=timezone.utc)


@pytest.fixture(params=[False, True], ids=["no total", "total"])
def total(request: pytest.FixtureRequest) -> bool:
    """Whether the API tells how many records its answer would hold in all."""
    return bool(request.param)


@pytest.fixture
def api(total: bool) -> Iterator[HostileApi]:
    """130 records, 250 that share one instant, and some after them; only `since` and `limit=100`."""
    listing = Listing("since", order=("updated_at",), filter="inclusive", page_max=100, total=total)
    with HostileApi(seed=4, listings={"/things": listing}) as api:
        api.insert(130)
        api.clock.advance(timedelta(hours=1))
        yield api


@pytest.fixture
def scene(api: HostileApi, total: bool, connect: Connect) -> Iterator[Scene]:
    """The API as a source file describes it."""
    pages = {"by": "since", "size": {"send": "limit", "max": 100}}
    told = {"total": "total"} if total else {}
    found = Scene(api, connect, KINDS["since only"].described(pages=pages, **told))
    found.migrate()
    yield found
    found.close()


def tie(api: HostileApi) -> dict[str, Any]:
    """A bulk import with one timestamp, and some records later. Returns what was there before."""
    before = live(api)
    api.bulk_import(250, at=TIED_AT)
    api.clock.advance(timedelta(hours=2))
    api.insert(20)
    api.clock.advance(timedelta(hours=1))
    return before


def live(api: HostileApi) -> dict[str, Any]:
    """The API's records as the comparison sees them."""
    return {key: exact(json.dumps(record)) for key, record in api.live().items()}


@pytest.mark.parametrize("walk", ["backfill", "incremental"])
def test_a_tie_that_nothing_can_split(scene: Scene, api: HostileApi, total: bool, walk: WalkName) -> None:
    """The run stops and says which instant, and how many records; what lies before it is stored, the next run begins at
    the same place, and is exact once the tie fits a page."""
    if walk == "incremental":
        assert scene.run().complete
    before = tie(api)
    exc = scene.stops(TiedPageError, walk=walk)
    assert "2026-03-01T11:00:00Z" in exc.what
    assert ("more than 100 records (of 270 from there on)" if total else "100 records or more") in exc.what
    stored = scene.stored()
    assert {key: stored[key] for key in before} == before
    # Of the tie itself the first page was seen, and may be stored: but the walk stands before it.
    assert set(stored) <= set(live(api))
    place = scene.ledger()[-1].position.place
    assert isinstance(place, AtInstant)
    assert place.anchor == TIED_AT
    asked = api.requests[-1].params
    assert scene.stops(TiedPageError, walk=walk).what == exc.what
    assert api.requests[-1].params == asked
    records = live(api)
    api.delete(*[key for key in api.ids if records[str(key)]["updated_at"].startswith("2026-03-01T11:00:00")][60:])
    assert scene.run(walk=walk).complete
    stored = scene.stored()
    assert {key: stored[key] for key in live(api)} == live(api)
