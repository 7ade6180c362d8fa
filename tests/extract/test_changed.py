"""What changes between two runs beside the API: the source file, the tables, the package. Never silently wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import sql

from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    LeftBehindError,
    PositionMismatchError,
    RepeatedPageError,
    UnorderedStreamError,
    WalkBusyError,
)
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import TOKENS, Scene, exact, rows
from tests.hazards.kinds import KINDS
from tests.loopback import Fault
from tests.store.applier import in_thread

MakeScene = Callable[..., Scene]


def execute(scene: Scene, text: str) -> None:
    """Run a statement with the names of the scene's schemas."""
    books, schema = sql.Identifier(scene.books), sql.Identifier(scene.name)
    with scene.connect() as conn:
        conn.execute(sql.SQL(text).format(books=books, schema=schema))


def until(scene: Scene, page: int) -> None:
    """Run until this page is committed; then the API is gone."""
    asked = len(scene.api.asked)
    scene.api.fault = lambda number, each: Fault(500) if number > asked + page else None
    scene.stops(ApiUnavailableError)
    scene.api.fault = lambda number, each: None


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("how", ["truncated", "dropped and made anew", "another table", "another schema"])
def test_the_table_is_empty(how: str, complete: bool, any_scene: Scene) -> None:
    """A table emptied, remade or moved under a walk stops it by name; starting over makes the copy exact."""
    scene = any_scene
    scene.api.rows = rows(25)
    scene.run() if complete else until(scene, 2)
    match how:
        case "truncated":
            execute(scene, "truncate {schema}.things")
        case "dropped and made anew":
            execute(scene, "drop table {schema}.things")
        case "another table":
            scene.spec["table"] = "others"
        case "another schema":
            scene.spec["schema"] = f"{scene.name}_other"
    if how != "truncated":
        # Nothing is made beside what may be elsewhere, unless that is said.
        with pytest.raises(LeftBehindError):
            scene.migrate()
    scene.migrate(new=["things"])
    scene.stops(PositionMismatchError)
    scene.run(reset=True)
    scene.assert_exact()


@pytest.mark.parametrize("page", [0, 2])
def test_another_key(page: int, make_scene: MakeScene) -> None:
    """Another `key` stops a walk that has stored records, even a reset, until the table is empty."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(25)
    until(scene, page)
    scene.spec["key"] = ["id", "n"]
    if page:
        scene.stops(PositionMismatchError)
        scene.stops(PositionMismatchError, reset=True)
        execute(scene, "truncate {schema}.things")
        scene.run(reset=True)
    else:
        scene.run()
    assert len(scene.stored()) == 25


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"status": "all"}},
        {"path": "/tokens/"},
    ],
    ids=str,
)
def test_other_records(change: dict[str, Any], make_scene: MakeScene) -> None:
    """A walk over other records than those it began with stops by name, rather than call the old copy complete."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(25)
    scene.run()
    scene.spec |= change
    scene.stops(PositionMismatchError)
    scene.run(reset=True)
    scene.assert_exact()


def test_another_order_field(any_scene: Scene) -> None:
    """A corrected `order` is not checked against the values of the field before."""
    scene = any_scene
    scene.api.rows = [
        b'{"id": "r%d", "n": %d, "at": "2026-01-%02dT00:00:00Z"}' % (n, n // 15, 1 + n) for n in range(28)
    ]
    scene.api.rows = [row.replace(b'"n": 1', b'"n": -1') for row in scene.api.rows]
    scene.spec["order"] = ["n"]
    scene.stops(UnorderedStreamError)
    scene.spec["order"] = ["at"]
    scene.assert_exact_after_repair()


@pytest.mark.parametrize("position", ["{{}}", '{{"place": {{"by": "offset", "offset": 7}}}}', "null"])
def test_a_position_of_another_version(position: str, any_scene: Scene) -> None:
    """A position this version does not understand is a named error; starting over makes the copy exact."""
    scene = any_scene
    scene.api.rows = rows(25)
    until(scene, 2)
    execute(scene, "update {books}.ledger set position = '" + position + "' where source = '" + scene.name + "'")
    scene.stops(PositionMismatchError)
    scene.run(reset=True)
    scene.assert_exact()


def test_fresh_tokens_without_records(make_scene: MakeScene) -> None:
    """Empty pages with a new token each are an error at last, not a walk without end."""
    scene = make_scene(TOKENS)
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: (
        Fault(200, b'{"data": [], "next_cursor": "f%d"}' % number) if number > 2 else None
    )

    stop = threading.Event()
    timer = threading.Timer(15, stop.set)
    timer.start()
    scene.stops(RepeatedPageError, stop=stop)
    timer.cancel()


@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 2026 00:00:00 +99999999999",
        "Mon, 01 Jan 2026 00:00:00 +9999",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2300",
    ],
)
def test_a_date_of_nonsense(date: str, any_scene: Scene) -> None:
    """A `Date` header that is no instant is passed over."""
    scene = any_scene
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: Fault(headers={"Date": date})
    scene.run()
    scene.assert_exact()


@pytest.mark.parametrize("date", ["Mon, 01 Jan 2026 00:00:00 +99999999999", "Fri, 31 Dec 9999 23:59:59 -2300"])
def test_a_retry_after_of_nonsense(date: str, any_scene: Scene) -> None:
    """A `Retry-After` header that is no instant is passed over."""
    scene = any_scene
    scene.api.rows = rows(25)
    scene.api.fault = lambda number, asked: Fault(503, b"", {"Retry-After": date}) if number == 1 else None
    scene.run()
    scene.assert_exact()


@pytest.mark.parametrize("before", [None, "at"])
def test_version_declared_while_a_run_lives(before: str | None, make_scene: MakeScene) -> None:
    """A run under the source file of before and one under that of now meet at one fence."""
    scene = make_scene(TOKENS)
    scene.api.rows = [b'{"id": "r%d", "at": "2026-01-01T00:00:00Z"}' % number for number in range(25)]
    scene.spec |= {"version": before} if before else {}
    entered, leave = threading.Event(), threading.Event()

    def wait(number: int, asked: object) -> None:
        if number == 2:
            entered.set()
            leave.wait(20)

    scene.api.before = wait
    first = in_thread(scene.run)
    assert entered.wait(10)
    if before:
        del scene.spec["version"]
    else:
        scene.spec["version"] = "at"
    try:
        scene.stops(WalkBusyError)
    finally:
        leave.set()
    first.result(timeout=20)
    scene.assert_exact()


# --- Walks that build upon the backfill -------------------------------------------------------------------------------

CHANGES = KINDS["token updated"].described(by_key={"path": "/things/{{ key }}"})


@pytest.fixture
def changing(connect: Connect) -> Iterator[Scene]:
    """An object with changes, backfilled."""
    with HostileApi(listings={"/things": KINDS["token updated"].served()}) as api:
        api.insert(25)
        api.clock.advance(60)
        scene = Scene(api, connect, CHANGES)
        scene.migrate()
        scene.run()
        yield scene
        scene.close()


def live(scene: Scene) -> dict[str, Any]:
    """What the API holds."""
    return {key: exact(json.dumps(record)) for key, record in scene.api.live().items()}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("walk", ["incremental", "by_key"])
def test_other_records_than_the_backfill_has_copied(walk: WalkName, begun: bool, reset: bool, changing: Scene) -> None:
    """Each walk stops, even one that begins now, until the backfill has started over; then it begins anew by itself."""
    scene = changing
    if begun:
        scene.run(walk=walk)
    scene.spec["params"] = {"status": "all"}
    scene.stops(PositionMismatchError, walk=walk, reset=reset)
    scene.run(reset=True)
    scene.api.update(*scene.api.ids[:5])
    scene.api.clock.advance(60)
    assert scene.run(walk=walk).complete
    scene.run(walk="incremental")
    assert scene.stored() == live(scene)


@pytest.mark.parametrize("walk", ["incremental", "by_key"])
def test_a_table_emptied_under_other_walks(walk: WalkName, changing: Scene) -> None:
    """A walk that has stored nothing itself stops too: after its first row nobody would see what is missing."""
    scene = changing
    scene.run(walk=walk)
    execute(scene, "truncate {schema}.things")
    scene.api.insert(1)
    scene.api.clock.advance(60)
    scene.stops(PositionMismatchError, walk=walk)
    scene.stops(PositionMismatchError, walk=walk, reset=True)
    scene.run(reset=True)
    scene.run(walk=walk)
    scene.run(walk="incremental")
    assert scene.stored() == live(scene)


def test_another_key_and_its_notes(changing: Scene) -> None:
    """Emptied and copied anew under another key, all walks go on by themselves; notes of the old keys are dropped: read
    by key they would be taken for deleted."""
    scene = changing
    scene.run(walk="incremental")
    with scene.connect() as conn:
        refetch.note(conn, scene.books, scene.name, scene.object, ["1", "2"], "test")
    scene.spec["key"] = "value"
    for walk in ("backfill", "incremental", "by_key"):
        scene.stops(PositionMismatchError, walk=walk, reset=True)
    execute(scene, "truncate {schema}.things")
    scene.run(reset=True)
    scene.run(walk="incremental")
    assert scene.run(walk="by_key").requests == 0
    assert set(scene.stored()) == {str(record["value"]) for record in scene.api.live().values()}


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_corrected_zone(zone: str, make_scene: MakeScene) -> None:
    """Versions read in a wrong zone are corrected when the backfill starts over; no record counts as changed, and what
    changes then is written."""
    stamps = {"format": "%Y-%m-%d %H:%M:%S", "zone": zone}
    scene = make_scene(TOKENS, version="at", timestamps=stamps)
    row = b'{"id": "a", "n": %d, "at": "2026-01-01 1%d:00:00"}'
    scene.api.rows = [row % (1, 0)]
    scene.run()
    scene.spec["timestamps"] = {**stamps, "zone": "UTC"}
    assert scene.run(reset=True).counts["unchanged"] == 1
    scene.api.rows = [row % (2, 1)]
    assert scene.run(reset=True).counts["updated"] == 1
    scene.assert_exact()
