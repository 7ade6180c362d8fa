"""What a sweep makes of records that are odd: bad ones, tombstones, long keys, private ones, pages out of a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import RequestRefusedError, TooManyDeletesError
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.testing.hostile import Asked, HostileApi, Kind
from airflow_extract_provider.testing.hostile_faults import Answer
from tests.extract.scene import KEYED, TOKENS
from tests.extract.sweeping import BY_KEY, Returning, Sweeping
from tests.hazards.kinds import KINDS
from tests.loopback import Asked as Request
from tests.loopback import Fault, LoopbackApi

KIND = KINDS["token updated"]
HOUR = timedelta(hours=1)
Make = Callable[..., Sweeping]


@pytest.fixture
def make(scenes_dsn: str, pauses: list[float]) -> Iterator[Make]:
    """Makes scenes over an API, backfilled."""
    made: list[Sweeping] = []

    def make(api: Any, spec: Any = None, **over: Any) -> Sweeping:
        described = KIND.described(**over) if spec is None else {**spec, "late": "0s", **over}
        made.append(Sweeping(api, connecting(scenes_dsn), described, "books"))
        made[-1].migrate()
        made[-1].run()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def things() -> Iterator[Returning]:
    """60 records on six pages."""
    with Returning(KIND.served()) as api:
        api.insert(60, owner={"city": "Bonn"}, note="none")
        api.clock.advance(timedelta(minutes=5))
        yield api


# Bad records --------------------------------------------------------------------------------------------------------


def readable(api: LoopbackApi, *, but: str) -> None:
    """Serve records one by one under /one as well, all ``but`` one that is gone; also those that no list holds."""

    def answer(number: int, asked: Request) -> Fault | None:
        _, one, key = asked.path.rpartition("/one/")
        if not one:
            return None
        return Fault(404, b'{"error": "gone"}') if key == but else Fault(200, b'{"id": "%s", "n": 7}' % key.encode())

    api.fault = answer


def some(*, odd: bytes) -> list[bytes]:
    """25 records, the fourth of which is an odd one."""
    return [odd if number == 3 else b'{"id": "r%02d", "n": 1}' % number for number in range(25)]


@pytest.mark.parametrize("spec", [KEYED, TOKENS], ids=["keyed", "tokens"])
def test_a_bad_record_whose_key_can_be_read(api: LoopbackApi, make: Make, spec: Any) -> None:
    """It is set aside, and it is there: its copy stays, and what is gone is deleted."""
    api.rows = some(odd=b'{"id": "r03", "n": 1}')
    scene = make(api, spec, on_bad_record="quarantine", version="at")
    api.rows = [row for row in some(odd=b'{"id": "r03", "n": 2, "at": "soon"}') if b"r20" not in row]
    found = scene.sweep()
    assert (found["absent"], found["deleted"], found["withheld"]) == (1, 1, 0)
    assert scene.tombstones() == {"r20"}
    assert scene.alive()["r03"]["n"] == 1


@pytest.mark.parametrize("odd", [b'{"n": 2}', b'{"id": null, "n": 2}', b"42"], ids=["no key", "null", "no record"])
def test_a_bad_record_without_a_key(api: LoopbackApi, make: Make, odd: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It may be any of those that were not seen: none is deleted, and the report says how many. Once it can be read,
    those that are gone are."""
    caplog.set_level("INFO", "airflow_extract_provider")
    api.rows = some(odd=b'{"id": "r03", "n": 1}')
    scene = make(api, TOKENS, on_bad_record="quarantine")
    api.rows = [row for row in some(odd=odd) if b"r20" not in row]
    found = scene.sweep()
    assert (found["absent"], found["deleted"], found["withheld"]) == (2, 0, 2)
    assert (scene.tombstones(), scene.noted(), scene.sweeps()) == (set(), {}, ["ended"])
    assert "2 not in the list" in caplog.text
    api.rows = [row for row in some(odd=b'{"id": "r03", "n": 3}') if b"r20" not in row]
    found = scene.sweep()
    assert (found["deleted"], found["withheld"], scene.tombstones()) == (1, 0, {"r20"})
    assert scene.alive()["r03"]["n"] == 3


def test_a_bad_record_without_a_key_over_slices(api: LoopbackApi, make: Make) -> None:
    """Though another run has met it, in an earlier slice: it counts for the sweep."""
    api.rows = some(odd=b'{"id": "r03", "n": 1}')
    scene = make(api, TOKENS, on_bad_record="quarantine")
    api.rows = [row for row in some(odd=b"42") if b"r20" not in row]
    asked = len(api.asked)
    api.fault = lambda number, _: Fault(503) if number > asked + 1 else None
    with pytest.raises(Exception, match="unavailable"):
        scene.run(walk="rebackfill")
    api.fault = lambda number, _: None
    assert scene.goes_on()["withheld"] == 2
    assert scene.tombstones() == set()


def test_a_bad_record_without_a_key_where_records_can_be_read_by_key(api: LoopbackApi, make: Make) -> None:
    """The API is asked for each that was not seen: it has one of them, the other is gone."""
    api.rows = some(odd=b'{"id": "r03", "n": 1}')
    scene = make(api, TOKENS, on_bad_record="quarantine", by_key={"path": "/one/{{ key }}"})
    api.rows = [row for row in some(odd=b"42") if b"r20" not in row]
    readable(api, but="r20")
    found = scene.sweep()
    assert (found["absent"], found["confirmed"], found["still_there"], found["withheld"]) == (2, 1, 1, 0)
    assert scene.tombstones() == {"r20"}
    assert scene.alive()["r03"]["n"] == 7


# What the list does not show ----------------------------------------------------------------------------------------


def test_the_list_hides_records_that_are_there(things: Returning, make: Make) -> None:
    """A list that lags, as a search index does: read by key they are there, as the API has them, and stay."""
    with HostileApi(seed=7, listings={"/things": KIND.served(lag=HOUR), "/now": KIND.served()}) as api:
        api.insert(30)
        api.clock.advance(2 * HOUR)
        scene = make(api, by_key={"path": "/now/{{ key }}"})
        new = api.insert(3)
        note(scene, *new)
        scene.run(walk="by_key")
        api.update(new[0], touch=False)
        api.delete(new[2], *api.ids[:2])
        api.clock.advance(HOUR / 2)
        found = scene.sweep()
        assert (found["seen"], found["absent"], found["still_there"], found["confirmed"]) == (30, 3, 2, 1)
        assert (found["deleted"], found["silent"]) == (1, 1)
        # The lagging list still shows two that are gone: the next sweep finds them.
        assert scene.alive().keys() - api.live().keys() == {"1", "2"}
        api.clock.advance(HOUR)
        assert scene.sweep()["deleted"] == 2
        assert scene.alive() == api.live()


class Refusing(Returning):
    """An API that refuses to give one of its records by its key."""

    def _right(self, asked: Asked, fault: Kind | None) -> Answer:
        refused = asked.path == "/things/k0011"
        return Answer(400, b'{"error": {"message": "no"}}') if refused else super()._right(asked, fault)


def test_a_record_that_cannot_be_read_by_key(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps the sweep from no other one, nor from its end, but is not deleted: it stays noted, and is counted."""
    caplog.set_level("INFO", "airflow_extract_provider")
    with Refusing(KIND.served()) as api:
        api.insert(30)
        api.clock.advance(60)
        scene = make(api, by_key=BY_KEY)
        api.delete("k0010", "k0011", "k0012")
        found = scene.sweep()
        assert (found["absent"], found["confirmed"], found["unread"], found["still_there"]) == (3, 2, 1, 0)
        assert (scene.tombstones(), set(scene.noted()), scene.sweeps()) == ({"k0010", "k0012"}, {"k0011"}, ["ended"])
        assert "1 not in the list, and not to be read by key" in caplog.text
        # Its own walk tells of it. It is no matter of the next sweep, which it is absent from as well.
        assert scene.stops(RequestRefusedError, walk="by_key").key == "k0011"
        assert scene.sweep()["unread"] == 1


class Cached(HostileApi):
    """An API behind a cache: its list is an hour old, and says so."""

    def __init__(self) -> None:
        super().__init__(seed=7, listings={"/things": KIND.served(lag=HOUR), "/now": KIND.served()})

    def _right(self, asked: Asked, fault: Kind | None) -> Answer:
        answer = super()._right(asked, fault)
        return replace(answer, headers={**answer.headers, "Age": "3600"}) if asked.path == "/things" else answer


def note(scene: Sweeping, *keys: Any) -> None:
    """Note keys to be read again."""
    with scene.connect() as conn:
        refetch.note(conn, scene.books, scene.name, scene.object, [str(key) for key in keys], "test")


def test_pages_out_of_a_cache(make: Make) -> None:
    """What was stored after the cached page was made need not be on it, and stays; what was stored before that, and is
    not on it, is gone."""
    with Cached() as api:
        api.insert(30)
        api.clock.advance(2 * HOUR)
        scene = make(api, by_key={"path": "/now/{{ key }}"})
        # Some are deleted, which the list shows an hour later, and it is 80 minutes later.
        gone = api.ids[4:6]
        api.delete(*gone)
        scene.rest(2 * HOUR)
        api.clock.advance(HOUR + timedelta(minutes=20))
        new = [str(key) for key in api.insert(3)]
        note(scene, *new)
        scene.run(walk="by_key")
        scene.rest(HOUR / 2)
        api.clock.advance(HOUR / 2)
        del scene.spec["by_key"]
        found = scene.sweep()
        assert (found["seen"], found["absent"], found["deleted"]) == (28, 2, 2)
        assert scene.tombstones() == {str(key) for key in gone}
        assert set(new) <= scene.alive().keys()
        (looked,) = scene.execute(
            "select began_at - looked_at > interval '59 minutes' from {} where source = %s",
            scene.book("sweep"),
            values=[scene.name],
        )
        assert looked == (True,)


def test_tombstones_in_the_list(things: Returning, make: Make) -> None:
    """What the list says is deleted is deleted by its word; what is not in the list, by the sweep's."""
    scene = make(things, deleted="gone")
    things.update(*things.ids[:3], gone=True)
    things.delete(*things.ids[10:12])
    told = {str(key) for key in things.ids[:3]}
    found = scene.sweep()
    assert (found["seen"], found["absent"], found["deleted"], found["confirmed"]) == (58, 2, 5, 0)
    assert scene.tombstones() == told | {"k0011", "k0012"}
    # And once the tombstones are gone too, nothing is left to be deleted.
    things.delete(*told)
    found = scene.sweep()
    assert (found["absent"], found["deleted"], found["changed"]) == (0, 0, 0)


def test_what_was_stored_a_moment_before(things: Returning, make: Make) -> None:
    """A list may show it late, as the source file says: a sweep that began sooner after it deletes nothing for that.
    Read by key it need not wait."""
    for by_key, deleted in (({}, 0), ({"by_key": BY_KEY}, 2)):
        scene = make(things, late="5m", **by_key)
        things.delete(*things.ids[:2])
        scene.rest(timedelta(minutes=4))
        assert scene.sweep()["deleted"] == deleted
        scene.rest(timedelta(minutes=2))
        assert scene.sweep()["deleted"] == 2 - deleted
        assert scene.alive() == things.live()


# What is stored of them ---------------------------------------------------------------------------------------------


def silently(api: Returning) -> None:
    """Change one record's note, another's city, and nothing else of them; their versions stay."""
    for key, told in ((api.ids[3], {"note": "some"}), (api.ids[4], {"owner": {"city": "Kiel"}})):
        api.update(key, touch=False, value=api.live()[str(key)]["value"], **told)


@pytest.mark.parametrize(
    ("keep", "fields", "data"),
    [
        ("all", {"note": 1, "owner.city": 1}, True),
        (["note", "id"], {"note": 1}, False),
        ("none", {}, False),
    ],
    ids=["all", "some", "none"],
)
def test_what_is_kept(things: Returning, make: Make, keep: Any, fields: dict[str, int], data: bool) -> None:
    """A field that is not kept changes as well, but there is nothing to name it by."""
    scene = make(things, keep=keep)
    silently(things)
    things.delete(things.ids[9])
    found = scene.sweep()
    assert (found["changed"], found["silent"], found["deleted"]) == (2, 2, 1)
    assert found["fields"] == fields
    assert (scene.alive() == things.live()) == data
    assert scene.sweep()["changed"] == 0


def test_what_does_not_count(things: Returning, make: Make) -> None:
    """A field that is left out of the hash is no change, and is not named beside another that is."""
    scene = make(things, hash={"exclude": ["note"]})
    silently(things)
    found = scene.sweep()
    assert (found["changed"], found["fields"]) == (1, {"owner.city": 1})


def test_private_records(things: Returning, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Neither keys nor names of fields are shown, in the report, the log, or an error."""
    caplog.set_level("DEBUG", "airflow_extract_provider")
    scene = make(things, private=True, by_key=BY_KEY, sweep={"every": "1d", "max_deletes": 2})
    silently(things)
    things.delete(*things.ids[10:13])
    exc = scene.stops(TooManyDeletesError, walk="rebackfill", reset=True)
    summary = scene.run(walk="rebackfill", max_deletes=3)
    assert summary.sweep is not None
    assert (summary.sweep["silent"], summary.sweep["fields"], summary.sweep["deleted"]) == (2, {}, 3)
    told = f"{caplog.text}{exc}{summary.sweep}"
    assert "2 changed, 2 of them without updated_at" in caplog.text
    assert [word for word in ("note", "city", "k00", "Kiel") if word in told] == []


def test_many_fields(things: Returning, make: Make) -> None:
    """A record may have fields without number: a hundred are counted, twenty reported, the most frequent first."""
    scene = make(things)
    many: dict[str, Any] = dict.fromkeys((f"field{number:03}" for number in range(300)), 1)
    for key in things.ids[:3]:
        things.update(key, touch=False, **many)
    things.update(things.ids[5], touch=False)
    found = scene.sweep()
    assert (found["silent"], len(found["fields"]), set(found["fields"].values())) == (4, 20, {3})
    (count,) = scene.execute(
        "select count(*) from {}, jsonb_each(fields) where source = %s", scene.book("sweep"), values=[scene.name]
    )
    assert count == (100,)


@pytest.mark.parametrize("letter", ["x", "ü", "\U0001d11e", "%/ ?&#"], ids=["ascii", "two", "four", "signs"])
@pytest.mark.parametrize("by_key", [True, False], ids=["by key", "by sweep"])
def test_long_keys(make: Make, letter: str, by_key: bool) -> None:
    """Up to 2,400 bytes: seen, compared and deleted as the short ones are."""
    size = len(letter.encode())

    def long(number: int) -> str:
        return letter * ((2400 - 4) // size) + f"{number:04}"

    with HostileApi(seed=7, listings={"/things": KIND.served()}, keys=long) as api:
        api.insert(25)
        api.clock.advance(60)
        quoted = {"path": "/things/{{ key }}"}
        scene = make(api, **({"by_key": quoted} if by_key else {}))
        api.update(*api.ids[:2], touch=False)
        api.delete(*api.ids[20:23])
        found = scene.sweep()
        assert (found["seen"], found["silent"], found["deleted"]) == (22, 2, 3)
        assert scene.alive() == api.live()
