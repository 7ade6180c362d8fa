"""The fence's own statements on a real Postgres (law 12)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_extract_provider.extract.errors import FencedError, StoreUnavailableError, WalkBusyError
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Fence, Scope, acquire, hold, holding, release
from tests.store.applier import SOURCE
from tests.ways import Store

SCOPE = Scope("shop", "plain", "*")
MINUTES = timedelta(minutes=5)


@pytest.fixture
def books(store: Store) -> Iterator[Connection]:
    """The program's connection to a migrated database."""
    store.migrate([SOURCE])
    with store.connect() as opened:
        opened.autocommit = True
        yield opened


def take(conn: Connection, runner: str, *, take_over: bool = False, silent_after: timedelta = MINUTES) -> Fence:
    return acquire(conn, "extract", SCOPE, runner, f"run {runner}", silent_after=silent_after, take_over=take_over)


def fall_silent(conn: Connection) -> None:
    conn.execute("update extract.fence set heartbeat = heartbeat - interval '6 minutes'")


@pytest.mark.parametrize("way", ["retry", "told to", "silent", "released"])
def test_ways_to_get_it(books: Connection, way: str) -> None:
    """The same runner again, a run told to, any run once the holder is silent or has given it back: the number grows,
    and the one before can neither hold nor release it any more."""
    old = take(books, "one")
    with pytest.raises(WalkBusyError, match="run one"):
        take(books, "two")
    if way == "silent":
        fall_silent(books)
    if way == "released":
        release(books, "extract", old)
    new = take(books, "one" if way == "retry" else "two", take_over=way == "told to")
    assert new.number == old.number + 1
    with pytest.raises(FencedError):
        hold(books, "extract", old)
    release(books, "extract", old)
    hold(books, "extract", new)
    with pytest.raises(WalkBusyError):
        take(books, "three")


def test_a_beat_keeps_it(books: Connection) -> None:
    """A holder that has been silent for long and then shows itself, still unchallenged, has it still."""
    fence = take(books, "one")
    fall_silent(books)
    hold(books, "extract", fence)
    with pytest.raises(WalkBusyError):
        take(books, "two")


def test_walks_and_parts_have_their_own(books: Connection) -> None:
    """Another walk, part, object or source is another fence."""
    take(books, "one")
    for scope in (
        Scope("shop", "plain", "sweep"),
        Scope("shop", "plain", "*", "p1"),
        Scope("shop", "things", "*"),
        Scope("other", "plain", "*"),
    ):
        assert acquire(books, "extract", scope, "two", "two", silent_after=MINUTES).number == 1


@pytest.mark.parametrize("before", ["nobody", "silent", "released"])
def test_exactly_one_gets_it(books: Connection, conn: Connection, connect: Connect, before: str) -> None:
    """Of eight that want it at the same moment one gets it; the seven others are told its name. Ten times."""
    takers = [connect() for _ in range(8)]
    for each in takers:
        each.autocommit = True
    for round_ in range(10):
        if before == "nobody":
            conn.execute("delete from extract.fence")
        else:
            fence = take(books, "one", take_over=True)
            fall_silent(books) if before == "silent" else release(books, "extract", fence)
        start = threading.Barrier(len(takers))

        def want(number: int, start: threading.Barrier = start, round_: int = round_) -> str:
            start.wait()
            try:
                take(takers[number], f"taker {round_}/{number}")
            except WalkBusyError as exc:
                return exc.what
            return "got it"

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(want, range(8)))
        assert said.count("got it") == 1
        winner = f"run taker {round_}/{said.index('got it')}"
        assert all(winner in each for each in said if each != "got it")
    for conn in takers:
        conn.close()


@pytest.mark.parametrize("take_over", [False, True])
def test_a_holder_that_waits_for_a_lock(books: Connection, connect: Connect, take_over: bool) -> None:
    """Its fence is locked as long as it waits: whoever wants it is told so, and does not wait for ever too."""
    held = take(books, "one")
    with connect() as other, books.transaction():
        other.autocommit = True
        hold(books, "extract", held)
        with pytest.raises(WalkBusyError, match="run one"):
            take(other, "two", take_over=take_over)
    hold(books, "extract", held)


def test_a_holder_does_not_wait_for_ever(books: Connection, connect: Connect) -> None:
    """A row that somebody else keeps locked ends its transaction, by name."""
    fence = replace(take(books, "one"), idle_timeout=timedelta(seconds=0.5))
    books.execute("insert into shop.plain (key, data, raw_hash, applied_at) values ('k', '{}', 'x', now())")
    with connect() as other:
        other.execute("select from shop.plain for update")
        told = pytest.raises(StoreUnavailableError, match="keeps rows locked")
        with told, named_errors(), holding(books, "extract", fence):
            books.execute("select from shop.plain for update")
    hold(books, "extract", fence)
