"""Sweeps of APIs in trouble, and of lists that move: nothing is deleted that is there, and in the end it is exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pytest
from psycopg import sql

from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    ExtractError,
    TokenExpiredError,
    TooManyDeletesError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import Asked, HostileApi, Kind
from airflow_extract_provider.testing.hostile_faults import Answer
from tests.extract.sweeping import BY_KEY, Sweeping
from tests.hazards.kinds import KINDS

COUNT = 95
Make = Callable[..., Sweeping]


class Steady(Sweeping):
    """A scene whose source file stays as it is: it is read once. All looks go through one connection."""

    @cached_property
    def source(self) -> Source:
        """The source."""
        return super().source

    def execute(self, text: str, *parts: sql.Composable, values: Any = ()) -> list[tuple[Any, ...]]:
        """Look at something in the database."""
        if self._looking is None:
            self._looking = self.connect()
            self._looking.autocommit = True
        return self._looking.execute(sql.SQL(text).format(*parts), values).fetchall()


class Troubled(HostileApi):
    """An API of some kind that loses its records in some answers, and says there that it has no more of them.

    ``empty``: which requests, counted over the whole server, are answered so. ``tells``: the total is right even then.
    ``hides``: a record is not listed if this says so of its key.
    """

    def __init__(self, kind: str, *, total: bool = False, count: int = COUNT) -> None:
        served = KINDS[kind].served(**({"total": True} if total else {}))
        super().__init__(seed=7, listings={"/things": served})
        self.insert(count)
        self.empty: set[int] = set()
        self.tells = True
        self.hides: Callable[[int], bool] = lambda key: False

    def _spoiled(self, asked: Asked, path_number: int) -> Answer:
        answer = super()._spoiled(asked, path_number)
        return self._emptied(answer) if asked.number in self.empty and answer.status == 200 else answer

    def _right(self, asked: Asked, fault: Kind | None) -> Answer:
        answer = super()._right(asked, fault)
        body = json.loads(answer.body)
        if isinstance(body.get("data"), list):
            body["data"] = [record for record in body["data"] if not self.hides(record["id"])]
        return replace(answer, body=json.dumps(body).encode())

    def _emptied(self, answer: Answer) -> Answer:
        body = json.loads(answer.body)
        body |= {name: [] for name in ("data", "results") if name in body}
        body |= {name: False for name in ("has_more",) if name in body}
        body |= {"next": None} if "next" in body else {}
        body |= {"total": 0} if "total" in body and not self.tells else {}
        body.pop("paging", None)
        headers = {name: value for name, value in answer.headers.items() if name not in ("Link", "Next-Page")}
        return Answer(200, json.dumps(body).encode(), headers)


@pytest.fixture
def make(store: Connect) -> Iterator[Make]:
    """Makes scenes over an API, backfilled."""
    made: list[Steady] = []

    def make(api: Troubled, kind: str, **over: Any) -> Sweeping:
        api.clock.advance(60)
        described = KINDS[kind].described(**over)
        made.append(Steady(api, store, described, "books"))
        made[-1].migrate()
        made[-1].run()
        return made[-1]

    yield make
    for each in made:
        each.close()


BY_PATH: dict[str, Any] = {"by_key": BY_KEY}
READABLE = pytest.mark.parametrize("over", [BY_PATH, {}], ids=["by key", "by sweep"])
WHICH = pytest.mark.parametrize("which", ["first", "middle"])


def requests_of(scene: Sweeping, api: Troubled) -> int:
    """How many requests a sweep needs."""
    before = api.count
    scene.sweep()
    return api.count - before


@pytest.mark.parametrize("kind", ["token updated", "offset id", "last key"])
@READABLE
@pytest.mark.parametrize("fault", ["500", "error_200"])
@pytest.mark.parametrize("which", ["first", "last"])
def test_no_usable_answer(make: Make, kind: str, over: dict[str, Any], fault: Kind, which: str) -> None:
    """On the first or the last page, beyond all tries: a named error, the sweep stays open, and nothing is noted or
    deleted. It goes on with the very page, and is exact."""
    with Troubled(kind) as api:
        scene = make(api, kind, **over)
        last = requests_of(scene, api)
        page = 1 if which == "first" else last
        gone = [str(key) for key in api.ids[40:43]]
        api.delete(*api.ids[40:43])
        at = api.count + page
        api.fault(at, fault, times=2 * scene.tries)
        for _ in range(2):
            exc = scene.stops(ApiUnavailableError if fault == "500" else WrongAnswerError, walk="rebackfill")
            assert (exc.walk, exc.page) == ("rebackfill", page)
            assert (scene.tombstones(), scene.noted(), scene.sweeps()[-1]) == (set(), {}, "open")
        refused, before = api.requests[at - 1], api.count
        assert scene.goes_on()["deleted"] == 3
        assert api.requests[before].params == refused.params
        assert scene.tombstones() == set(gone)
        assert scene.alive() == api.live()


SHORT = ("token updated", "token unordered", "header token", "next link", "single")
"""Kinds whose answers are the only ones to tell where the list ends; the others look behind the end, or read twice."""


@WHICH
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_answer(make: Make, kind: str, which: str) -> None:
    """Status 200, no record, and nothing behind it. Where nothing tells it from the end of the list, the guard stops
    the sweep; a list that seems empty from the start is believed of nobody, unless it counts its records."""
    with Troubled(kind) as api:
        scene = make(api, kind)
        needed = requests_of(scene, api)
        page = 1 if which == "first" else needed // 3 + 1
        gone = {str(key) for key in api.ids[:2]}
        api.delete(*api.ids[:2])
        api.empty = {api.count + page}
        guarded = kind in SHORT if which == "middle" else kind != "search"
        assert ended(scene) == ("TooManyDeletesError" if guarded else "exact")
        # These lists prove nothing by themselves.
        withheld = kind in PASSING
        assert scene.tombstones() == (set() if guarded or withheld else gone)
        found = scene.sweep()
        assert (found["seen"], found["absent"]) == (COUNT - 2, 2 if guarded or withheld else 0)
        assert scene.tombstones() == (set() if withheld else gone)
        assert {key: record for key, record in scene.alive().items() if key not in gone} == api.live()


@WHICH
@pytest.mark.parametrize("tells", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("kind", ["token updated", "next link", "offset id", "page alone", "since only", "single"])
def test_an_empty_answer_beside_a_total(make: Make, kind: str, which: str, tells: bool) -> None:
    """An API that says how many records there are: the list is read again, and no guard is needed. If it says 0 where
    it gives none, that is what is left."""
    with Troubled(kind, total=True) as api:
        scene = make(api, kind, total="total")
        needed = requests_of(scene, api)
        page = 1 if which == "first" else needed // 3 + 1
        api.tells = tells
        api.empty = {api.count + page}
        guarded = not tells and (which == "first" or kind in SHORT)
        assert ended(scene) == ("TooManyDeletesError" if guarded else "exact")
        assert (scene.tombstones(), scene.noted()) == (set(), {})
        assert scene.alive() == api.live()


def ended(scene: Sweeping) -> str:
    """How a sweep ends: exact, or by the name of its error."""
    try:
        scene.sweep()
    except ExtractError as exc:
        return type(exc).__name__
    return "exact"


@READABLE
def test_half_of_the_list(make: Make, over: dict[str, Any]) -> None:
    """The API suddenly shows every other record: the error says how many, nothing is deleted, and once it shows all of
    them again a sweep is exact."""
    kind = "token updated"
    with Troubled(kind) as api:
        scene = make(api, kind, **over)
        api.update(*api.ids[:5], touch=False)
        api.hides = lambda key: key % 2 == 0
        exc = scene.stops(TooManyDeletesError, walk="rebackfill")
        assert f"no longer holds 47 of {COUNT} stored records; a sweep may delete 9" in exc.what
        assert (scene.tombstones(), scene.noted()) == (set(), {})
        # What it did show is stored.
        assert scene.alive()["1"] == api.live()["1"]
        api.hides = lambda key: False
        api.delete(api.ids[7])
        found = scene.sweep()
        assert (found["seen"], found["deleted"]) == (COUNT - 1, 1)
        assert scene.alive() == api.live()


@READABLE
def test_nothing_at_all(make: Make, over: dict[str, Any]) -> None:
    """An empty list is believed of nobody: whatever the source file allows. Only a person can say that it is true."""
    kind = "token updated"
    with Troubled(kind) as api:
        scene = make(api, kind, sweep={"every": "1d", "max_deletes": "100%"}, **over)
        api.hides = lambda key: True
        for _ in range(2):
            exc = scene.stops(TooManyDeletesError, walk="rebackfill", reset=True)
            assert exc.what == f"the API's list was empty, and {COUNT} records are stored."
        assert (scene.tombstones(), scene.noted()) == (set(), {})
        api.hides = lambda key: False
        api.delete(*api.ids)
        found = scene.sweep(max_deletes=COUNT)
        assert (found["seen"], found["deleted"], scene.alive()) == (0, COUNT, {})
        # There is nothing left to lose.
        assert scene.sweep()["deleted"] == 0


PASSING = ("page newest", "link newest", "search")
"""Kinds in which a record that is changed may move to where the list was read already."""


@pytest.mark.parametrize(("kind", "over"), [*((kind, {}) for kind in KINDS), *((kind, BY_PATH) for kind in PASSING)])
def test_changed_while_it_waits_to_be_read(make: Make, kind: str, over: dict[str, Any]) -> None:
    """A record, at whatever place, gets a new version when two pages have been read, and moves: the copy keeps it.
    Where it may have moved to what was read already, only a read by key proves that a record is gone."""
    with Troubled(kind) as api:
        scene = make(api, kind, **over)
        for key in api.ids[5::10]:
            at = api.count + (1 if kind == "single" else 3)
            api.before(at, partial(api.update, key))
            scene.sweep()
            assert api.count >= at
            assert scene.tombstones() == set(), f"deleted: {key}"
        api.clock.advance(60)
        gone = {str(key) for key in api.ids[50:53]}
        api.delete(*api.ids[50:53])
        found = scene.sweep()
        proven = bool(over) or kind not in PASSING
        assert (found["absent"], found["deleted"], found["withheld"]) == ((3, 3, 0) if proven else (3, 0, 3))
        assert scene.tombstones() == (gone if proven else set())
        assert {key: record for key, record in scene.alive().items() if key not in gone} == api.live()


BY_INSTANT = ("page without size", "token in disguise", "link header", "next link by number", "since only")
"""Kinds whose pages are asked for from the last instant on, since their numbers would move."""
COPIED = [kind for kind in KINDS if kind != "position" and kind not in PASSING]
"""Kinds that copy records without an instant at all, and where a sweep may delete without being asked."""


@pytest.mark.parametrize("expires", [False, True], ids=["", "expired"])
@pytest.mark.parametrize(("kind", "over"), [*((kind, {}) for kind in COPIED), ("since only", BY_PATH)])
def test_without_an_instant(make: Make, kind: str, over: dict[str, Any], expires: bool) -> None:
    """Records without one were copied while the list was short. It grows, and its pages are asked for by instant, all
    of them or since a page token has expired: where these are left out, that is no proof that they are gone."""
    with Troubled(kind, count=4) as api:
        undated = {str(key) for key in api.insert(3, undated=True)}
        scene = make(api, kind, **over)
        api.insert(40)
        api.clock.advance(60)
        scene.run(walk="backfill", reset=True)
        gone = {str(key) for key in api.ids[10:12]}
        api.delete(*api.ids[10:12])
        if expires:
            api.before(api.count + 3, api.expire_tokens)
        found = outcome(scene)
        if found is None:
            assert (expires, kind) == (True, "token unordered")
            return
        assert scene.tombstones() == gone
        left_out = not over and (kind in BY_INSTANT or (expires and kind in TOKENS))
        assert found["withheld"] == (3 if left_out else 0)
        assert undated <= scene.alive().keys()
        assert scene.alive() == api.live()


TOKENS = ("token updated", "header token", "next link")


def outcome(scene: Sweeping) -> Any:
    """A sweep's report; None: its page token has expired, and nothing else says where it stood."""
    try:
        return scene.sweep()
    except TokenExpiredError:
        return None
