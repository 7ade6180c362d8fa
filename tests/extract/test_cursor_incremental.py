"""The incremental walk's cursor (law: one truth): its instant may be put back by hand, never ahead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_extract_provider.extract.cursor import cursor_key
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    CursorAheadError,
    CursorUnreadableError,
    ExtractError,
)
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import Scene, exact
from tests.extract.shown import Shown
from tests.hazards.kinds import KINDS

KIND = KINDS["token updated"]
HOUR = timedelta(hours=1)
NEW_YORK = timezone(timedelta(hours=-5))


class Lapped:
    """An object that was copied, then changed for two hours, with a lap behind each: 4 records, then 3."""

    def __init__(self, api: HostileApi, connect: Connect) -> None:
        self.api, self.shown, self.since = api, Shown(), list[str]()
        # The next lap must begin where the last one is complete to: what it reads again would blur what was asked.
        self.scene = Scene(api, connect, KIND.described())
        self.scene.migrate()
        api.insert(30)
        api.clock.advance(HOUR)
        self.scene.run(cursor=self.shown)
        self.handed_off = self.closed_of("backfill")
        for many in (4, 3):
            api.update(*api.ids[:many])
            api.clock.advance(HOUR)
            self.lap()

    @property
    def key(self) -> str:
        return cursor_key(self.scene.name, self.scene.object, "incremental")

    @property
    def cursor(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.shown.texts[self.key])
        return found

    @property
    def closed(self) -> datetime:
        return datetime.fromisoformat(self.cursor["closed"])

    def closed_of(self, walk: str) -> str:
        text = self.shown.texts[cursor_key(self.scene.name, self.scene.object, walk)]
        return str(json.loads(text)["closed"])

    def edit(self, **values: Any) -> None:
        """Edit the cursor as a person would."""
        self.shown.texts[self.key] = json.dumps({**self.cursor, **values})

    def lap(self, **arguments: Any) -> int:
        """Run a lap; returns how many records it has read. ``since`` is then what its requests asked from."""
        asked = self.api.count
        summary = self.scene.run(walk="incremental", cursor=self.shown, **arguments)
        assert summary.complete
        self.assert_exact()
        self.since = [each.params.get("since", "") for each in self.api.requests[asked:]]
        return summary.records

    def refuses(self, kind: type[ExtractError]) -> ExtractError:
        """Run; it must stop before the first request, with everything as it was."""
        asked, ledger, text = self.api.count, self.scene.ledger(), self.shown.texts[self.key]
        found = self.scene.stops(kind, walk="incremental", cursor=self.shown)
        assert (self.api.count, self.scene.ledger(), self.shown.texts[self.key]) == (asked, ledger, text)
        return found

    def assert_exact(self) -> None:
        live = {key: exact(json.dumps(record)) for key, record in self.api.live().items()}
        assert self.scene.stored() == live


@pytest.fixture
def lapped(connect: Connect) -> Iterator[Lapped]:
    """Two laps behind a backfill."""
    with HostileApi(listings={"/things": KIND.served()}) as api:
        found = Lapped(api, connect)
        yield found
        found.scene.close()


def test_left_alone(lapped: Lapped) -> None:
    """A lap begins where the one before is complete to, in mid-air between two changes and not before."""
    closed = lapped.closed
    assert lapped.lap() == 0
    assert {datetime.fromisoformat(each) for each in lapped.since} == {closed}
    assert lapped.closed >= closed


@pytest.mark.parametrize("zone", [timezone.utc, NEW_YORK], ids=["in UTC", "in New York's time"])
def test_put_back(zone: timezone, lapped: Lapped) -> None:
    """What has changed since then is read again, and is no change; the cursor then goes on from the end of that lap."""
    back = (lapped.closed - timedelta(minutes=150)).astimezone(zone)
    revisions = lapped.scene.revisions()
    lapped.edit(closed=back.isoformat())
    # Three of the four were changed again, later: each is read once, as it is now.
    assert lapped.lap() == 4
    assert {datetime.fromisoformat(each) for each in lapped.since} == {back}
    assert lapped.scene.revisions() == revisions
    closed = lapped.closed
    assert closed > back
    assert lapped.lap() == 0


def test_the_same_instant_in_another_zone_is_no_edit(lapped: Lapped) -> None:
    """Instants are compared, not texts."""
    rows = len(lapped.scene.ledger())
    closed = lapped.closed
    lapped.edit(closed=closed.astimezone(NEW_YORK).isoformat())
    assert lapped.lap() == 0
    assert {datetime.fromisoformat(each) for each in lapped.since} == {closed}
    assert len(lapped.scene.ledger()) == rows + len(lapped.since)


def test_put_back_before_the_hand_off(lapped: Lapped) -> None:
    """As far back as anybody likes: what is read again is a no-op."""
    lapped.edit(closed="2020-01-01T00:00:00Z")
    assert lapped.lap() == 30


@pytest.mark.parametrize("ahead", [timedelta(microseconds=1), timedelta(days=365)], ids=["by a moment", "by a year"])
def test_put_ahead(ahead: timedelta, lapped: Lapped) -> None:
    """What lies between would be skipped."""
    lapped.edit(closed=(lapped.closed + ahead).isoformat())
    exc = lapped.refuses(CursorAheadError)
    assert "later than what it has made complete" in exc.what


def test_put_to_nothing(lapped: Lapped) -> None:
    """Without an instant nothing says from when on to read."""
    lapped.edit(closed=None)
    lapped.refuses(CursorAheadError)


def test_an_older_value_as_it_was_shown(lapped: Lapped) -> None:
    """The whole text of the first lap's end, put back: the lap behind it is read again."""
    texts = [text for text in lapped.shown.written if json.loads(text)["closed"] != lapped.handed_off]
    first = next(text for text in texts if json.loads(text)["complete"])
    lapped.shown.texts[lapped.key] = first
    assert lapped.lap() == 3


def test_deleted(lapped: Lapped) -> None:
    """It starts over where the backfill has ended: not at the beginning, and not where it stood."""
    del lapped.shown.texts[lapped.key]
    assert lapped.lap() == 4
    assert min(lapped.since) == max(lapped.since)
    assert datetime.fromisoformat(lapped.since[0]) == datetime.fromisoformat(lapped.handed_off)


@pytest.mark.parametrize("edited", [False, True], ids=["left alone", "put back"])
def test_in_the_midst_of_a_lap(edited: bool, lapped: Lapped) -> None:
    """A lap that was cut short goes on; with its instant put back, a new lap begins there and nothing is left out."""
    lapped.api.update(*lapped.api.ids[:25])
    lapped.api.clock.advance(HOUR)
    lapped.api.fault(lapped.api.count + 2, "503", times=2)
    lapped.scene.stops(ApiUnavailableError, walk="incremental", cursor=lapped.shown)
    assert not lapped.cursor["complete"]
    if edited:
        lapped.edit(closed="2020-01-01T00:00:00Z")
    assert lapped.lap() == (30 if edited else 15)
    assert len(lapped.since) == (3 if edited else 2)


def test_an_edit_is_followed_though_the_run_fails_at_once(lapped: Lapped) -> None:
    """It was followed, and so it counts: also where the run has read nothing, or could not show it."""
    del lapped.shown.texts[lapped.key]  # a walk without a page
    lapped.api.fault(lapped.api.count + 1, "503", times=2)
    lapped.scene.stops(ApiUnavailableError, walk="incremental", cursor=lapped.shown)
    lapped.edit(closed="2020-01-01T00:00:00Z")
    lapped.api.fault(lapped.api.count + 1, "503", times=2)
    lapped.scene.stops(ApiUnavailableError, walk="incremental", cursor=lapped.shown)
    assert lapped.lap() == 30


def test_an_edit_in_mid_lap_that_could_not_be_shown(lapped: Lapped) -> None:
    """The cursor still has the text that was edited: it is not followed to another place the second time."""
    lapped.api.update(*lapped.api.ids[:25])
    lapped.api.clock.advance(HOUR)
    lapped.api.fault(lapped.api.count + 2, "503", times=2)
    lapped.scene.stops(ApiUnavailableError, walk="incremental", cursor=lapped.shown)
    lapped.edit(closed="2020-01-01T00:00:00Z")
    edited = lapped.shown.texts[lapped.key]
    lapped.shown.failing_writes = {len(lapped.shown.written) + 1: CursorUnreadableError("no", todo="wait")}
    lapped.scene.stops(CursorUnreadableError, walk="incremental", cursor=lapped.shown)
    assert lapped.shown.texts[lapped.key] == edited
    assert lapped.lap() == 30
