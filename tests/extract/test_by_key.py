"""The walk over noted keys: what is there is read, what is gone is deleted, what is noted anew stays noted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from psycopg import sql

from airflow_extract_provider.extract.errors import RequestRefusedError, SourceError
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import Asked, HostileApi, Kind
from airflow_extract_provider.testing.hostile_faults import Answer
from tests.extract.scene import Scene
from tests.hazards.kinds import KINDS


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """25 records, read one by one as well."""
    with HostileApi(seed=7, listings={"/things": KINDS["token updated"].served()}) as api:
        api.insert(25)
        api.clock.advance(timedelta(minutes=1))
        yield api


@pytest.fixture
def scene(api: HostileApi, connect: Connect) -> Iterator[Scene]:
    """The API, backfilled."""
    spec = KINDS["token updated"].described(by_key={"path": "/things/{{ key }}"})
    found = Scene(api, connect, spec)
    found.migrate()
    found.run()
    yield found
    found.close()


def note(scene: Scene, *keys: str) -> None:
    """Note keys to be read again."""
    with scene.connect() as conn:
        refetch.note(conn, scene.books, scene.name, scene.object, keys, "test")


def noted(scene: Scene) -> list[str]:
    """The keys that are noted."""
    with scene.connect() as conn:
        return [one.key for one in refetch.due(conn, scene.books, scene.name, scene.object, 1000)]


def deleted(scene: Scene) -> set[str]:
    """The keys of deleted records."""
    table = sql.Identifier(*scene.source.table(scene.object))
    with scene.connect() as conn:
        rows = conn.execute(sql.SQL("select key from {} where deleted_at is not null").format(table)).fetchall()
    return {row[0] for row in rows}


def test_noted_keys_are_read_again(scene: Scene, api: HostileApi) -> None:
    """A silent change is brought, a record that is gone gets its tombstone, and nothing stays noted."""
    changed, gone, same = api.ids[3], api.ids[8], api.ids[12]
    api.update(changed, touch=False)
    api.delete(gone)
    note(scene, str(changed), str(gone), str(same), "404404")
    summary = scene.run(walk="by_key")
    assert summary.complete
    assert (summary.pages, summary.requests) == (4, 4)
    counts = summary.as_dict()
    assert (counts["updated"], counts["deleted"], counts["unchanged"]) == (1, 2, 1)
    assert noted(scene) == []
    assert deleted(scene) == {str(gone), "404404"}
    assert scene.stored()[str(changed)]["value"] == api.live()[str(changed)]["value"]


def test_many_keys_are_drained(scene: Scene, api: HostileApi) -> None:
    """More than are asked for at once; none twice."""
    note(scene, *(str(key) for key in api.ids), *(f"9{number:05}" for number in range(230)))
    summary = scene.run(walk="by_key")
    assert summary.requests == 255
    assert noted(scene) == []


def test_the_word_of_a_proxy_deletes_nothing(scene: Scene, api: HostileApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the API is away its proxy may say 404, as text: the key stays noted and the record as it is; all others
    are read."""
    away, other = str(api.ids[3]), str(api.ids[5])
    note(scene, away, other)
    right = api._right

    def through_a_proxy(asked: Asked, fault: Kind | None) -> Answer:
        return Answer(404, b"default backend - 404") if asked.path.endswith(f"/{away}") else right(asked, fault)

    monkeypatch.setattr(api, "_right", through_a_proxy)
    exc = scene.stops(RequestRefusedError, walk="by_key")
    assert (exc.key, noted(scene), deleted(scene)) == (away, [away], set())
    assert "no answer of the API" in exc.what


def test_nothing_noted_is_nothing_done(scene: Scene, api: HostileApi) -> None:
    """No request, and, but for its first row, nothing in the books."""
    scene.run(walk="by_key")
    before, asked = scene.ledger(), api.count
    summary = scene.run(walk="by_key")
    assert summary.complete
    assert (summary.pages, summary.requests) == (0, 0)
    assert scene.ledger() == before
    assert api.count == asked


def test_noted_anew_while_it_is_read(scene: Scene, api: HostileApi) -> None:
    """What was noted after its read had been sent is a need of its own: it is read once more."""
    key = str(api.ids[5])
    note(scene, key)
    api.before(api.count + 1, lambda: note(scene, key))
    summary = scene.run(walk="by_key")
    assert summary.requests == 2
    assert noted(scene) == []


def test_an_object_that_cannot_be_read_by_key(scene: Scene) -> None:
    """It says what to declare."""
    scene.spec.pop("by_key")
    assert "by_key" in scene.stops(SourceError, walk="by_key").todo


def test_one_key_that_cannot_be_read_keeps_no_other_waiting(scene: Scene, api: HostileApi) -> None:
    """What the API refuses, another record in its place, a key that fits no path: they stay noted, each run tells of
    them when all others have been read."""
    odd, others = "..", [str(key) for key in api.ids[:20]]
    note(scene, odd)
    note(scene, *others)
    api.update(*api.ids[:20], touch=False)
    assert scene.stops(SourceError, walk="by_key").key == odd
    assert noted(scene) == [odd]
    live = api.live()
    assert {key: scene.stored()[key]["value"] for key in others} == {key: live[key]["value"] for key in others}
    note(scene, *others)
    asked = api.count
    scene.spec["by_key"] = {"path": "/things/{{ key if key == '..' else '1' }}"}
    exc = scene.stops(SourceError, walk="by_key")
    assert "(19 more cannot be read, such as " in exc.what
    assert api.count == asked + 20
    assert noted(scene) == [odd, *(key for key in sorted(others) if key != "1")]


def test_what_cannot_be_decided_is_not_asked_for_without_end(scene: Scene, api: HostileApi) -> None:
    """A row that seems to be written in the future, as after a failover to a server whose clock is behind."""
    key = str(api.ids[2])
    table = sql.Identifier(*scene.source.table(scene.object))
    with scene.connect() as conn:
        text = (
            "update {} set applied_at = now() + interval '1 hour', version = version + interval '1 day', raw_hash = 'x'"
        )
        conn.execute(sql.SQL(text).format(table))
    note(scene, key)
    summary = scene.run(walk="by_key")
    assert summary.requests == 3
    assert noted(scene) == [key]
