"""`on_bad_record: quarantine`: bad records are set aside and told of, every good one arrives; a replay brings them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import sql

from airflow_extract_provider.extract.api.cut import one_record
from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.store.replay import replay
from tests.extract.scene import KEYED, TOKENS, Scene, exact, rows
from tests.loopback import LoopbackApi

BAD = {
    "no key": b'{"n": 7001}',
    "a key that is null": b'{"id": null, "n": 7002}',
    "no instant": b'{"id": "bad1", "at": "yesterday", "n": 7003}',
    "a date as written in some countries": b'{"id": "bad2", "at": "02/01/2026", "n": 7004}',
    "a name twice": b'{"id": "bad3", "n": 1, "n": 7005}',
    "a NUL character": b'{"id": "bad4", "text": "\\u0000", "n": 7006}',
    "half a surrogate pair": b'{"id": "bad5", "text": "\\ud800", "n": 7007}',
    "a number beyond what Postgres holds": b'{"id": "bad6", "n": 1e999999}',
    "no object": b"42",
}


@pytest.fixture(params=["keyed", "tokens"])
def scene(request: pytest.FixtureRequest, make_scene: Callable[..., Scene]) -> Scene:
    """An object that sets bad records aside, with a version."""
    spec = KEYED if request.param == "keyed" else TOKENS
    return make_scene(spec, own_books=True, version="at", on_bad_record="quarantine")


def spoil(api: LoopbackApi) -> dict[str, Any]:
    """35 good records with bad ones among them: first, last, in the middle, several in a row. Returns the good ones."""
    good = rows(35)
    api.key_of = _key_of  # type: ignore[method-assign]
    bad = list(BAD.values())
    api.rows = [bad[0], *good[:12], *bad[1:4], *good[12:29], *bad[4:8], *good[29:], bad[8]]
    return {_key_of(raw): exact(raw) for raw in good}


def _key_of(row: bytes) -> str:
    """The key of what may be no record."""
    found = exact(row) if b"ud800" not in row and b"1e999999" not in row else {}
    return str(found.get("id")) if isinstance(found, dict) else "42"


def aside(scene: Scene) -> dict[bytes, tuple[str | None, str]]:
    """The quarantine: each record's bytes with its key and why."""
    with scene.connect() as conn:
        text = sql.SQL("select raw, key, why from {}.quarantine").format(sql.Identifier(scene.books))
        return {row[0]: (row[1], row[2]) for row in conn.execute(text).fetchall()}


def test_bad_records_are_set_aside_and_every_good_one_arrives(scene: Scene) -> None:
    """Each bad record is kept with its own bytes, once, however often it is read; the run says how many."""
    good = spoil(scene.api)
    summary = scene.run()
    assert summary.complete
    assert scene.stored() == good
    found = aside(scene)
    assert set(found) == set(BAD.values())
    assert all(why for _, why in found.values())
    assert summary.as_dict()["quarantined"] >= len(BAD)
    again = scene.run(reset=True)
    assert again.complete
    assert len(aside(scene)) == len(BAD)
    assert scene.revisions() == {1}


def test_without_a_quarantine_the_first_bad_record_stops_the_run(make_scene: Callable[..., Scene]) -> None:
    """Nothing of its page is stored."""
    scene = make_scene(TOKENS, version="at")
    scene.api.rows = [*rows(12), BAD["no instant"]]
    scene.stops(BadRecordError)
    assert len(scene.stored()) == 10


def test_a_replay_brings_what_can_be_read_after_a_fix(scene: Scene) -> None:
    """With another format of instants in the source file one of them is a record; the others stay, told anew."""
    good = spoil(scene.api)
    scene.run()
    scene.spec["timestamps"] = {"format": "%d/%m/%Y", "zone": "UTC"}
    thing = scene.source.object(scene.object)
    counts = replay(scene.connect, scene.source, scene.object, scene.books, lambda raw: one_record(thing, raw))
    fixed = BAD["a date as written in some countries"]
    assert counts["replayed"] == 1
    assert counts["quarantined"] == len(BAD) - 1
    assert scene.stored() == {**good, "bad2": exact(fixed)}
    assert set(aside(scene)) == set(BAD.values()) - {fixed}
