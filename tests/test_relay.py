"""Consumers of the outbox: in order per key, whatever fails, whoever dies, however many there are."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

from airflow_extract_provider.extract.errors import (
    EventRefusedError,
    FencedError,
    FixConfig,
    SchemaMissingError,
    SinkUnavailableError,
    SourceError,
    StoreUnavailableError,
    WalkBusyError,
)
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.relay import Consumed, EachEvent, Handler, InTransaction, ToSink, consume
from airflow_extract_provider.extract.store import consumer as consumers
from airflow_extract_provider.extract.store.connection import Connect, Connection, connecting
from airflow_extract_provider.extract.store.fence import acquire
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.outbox import Wanted
from tests.store.applier import in_thread
from tests.store.eventful import an_event, begin_writing, fill, left, revisions, table_of_records

ROOT = Path(__file__).resolve().parents[1]
NONE = timedelta(0)
SILENT = timedelta(seconds=3)
"""Longer than a busy machine stands still; what is slow takes longer than this in all."""


@dataclass
class Shop:
    """A database with the books, and a connection to it."""

    connect: Connect
    conn: Connection
    dsn: str

    def consume(self, handler: Handler, name: str = "one", **more: Any) -> Consumed:
        """Run a consumer; what fails is due again at once."""
        return consume(name, handler, postgres=self.connect, **{"backoff": NONE, "keep_for": NONE, **more})

    def state(self, name: str = "one") -> consumers.Consumer:
        """How a consumer stands."""
        return consumers.consumers(self.conn, "extract", name)[0]

    def busy(self, name: str = "one") -> None:
        """Let somebody else run a consumer."""
        acquire(self.conn, "extract", consumers.scope(name), "x", "somebody", silent_after=NONE, take_over=True)


@pytest.fixture
def shop(connect: Connect, dsn: str) -> Any:
    """A migrated database."""
    migrate(connect, [])
    with connect() as conn:
        conn.autocommit = True
        yield Shop(connect, conn, dsn)


@dataclass
class Failing:
    """A handler that fails as it is told: ``fails`` (key, revision) times."""

    fails: dict[tuple[str, int], int] = field(default_factory=dict)
    tried: Counter[tuple[str, int]] = field(default_factory=Counter)
    handled: list[Event] = field(default_factory=list)

    def __call__(self, event: Event, conn: Connection | None = None) -> None:
        which = event.key, event.revision
        self.tried[which] += 1
        if conn is not None:
            conn.execute("insert into got (key, revision) values (%s, %s)", which)
        if self.tried[which] <= self.fails.get(which, 0):
            raise ValueError(f"no {event.key}\0\nDETAIL: a secret")
        self.handled.append(event)

    def keys(self) -> list[str]:
        """The keys of what was handled, in order."""
        return [event.key for event in self.handled]


def got(conn: Connection) -> list[tuple[str, int]]:
    """What handlers have written inside their transactions, in order."""
    return [(key, revision) for key, revision in conn.execute("select key, revision from got order by number")]


def table_of_what_came(conn: Connection) -> None:
    conn.execute("create table got (number bigint generated always as identity, key text, revision bigint)")


# All goes well.


def test_in_order(shop: Shop) -> None:
    """Everything, in order, once; a second run finds nothing to do, and what is passed is deleted."""
    events = [an_event(f"k{number % 7}", number) for number in range(100)]
    fill(shop.conn, events, place=False)
    handler = Failing()
    found = shop.consume(EachEvent(handler), limit=9)
    assert handler.handled == events
    assert found.as_dict() == {
        "consumer": "one", "handled": 100, "parked": 0, "dead": 0, "behind": 0, "place": 100, "pruned": 100,
    }  # fmt: skip
    again = shop.consume(EachEvent(handler))
    assert (again.handled, again.pruned, len(handler.handled)) == (0, 0, 100)
    assert left(shop.conn) == []


def test_consumers_are_independent(shop: Shop) -> None:
    """Each has its own place, its own parked events, its own wishes; one that is new begins where it is told to."""
    fill(shop.conn, [an_event("a", object="things"), an_event("b", object="other"), an_event("c", object="things")])
    all_of_them, things, late = Failing({("a", 1): 99}), Failing(), Failing()
    shop.consume(EachEvent(all_of_them), "all", keep_for=timedelta(days=1), backoff=timedelta(hours=1))
    found = shop.consume(EachEvent(things), "things", wanted=Wanted(object="things"))
    assert (found.place, found.pruned) == (3, 2), "the parked one is kept"
    shop.consume(EachEvent(late), "late", start="end")
    fill(shop.conn, [an_event("d", object="other")])
    shop.consume(EachEvent(late), "late", start="end")
    shop.consume(EachEvent(things), "things", wanted=Wanted(object="things"))
    assert all_of_them.keys() == ["b", "c"]
    assert things.keys() == ["a", "c"]
    assert late.keys() == ["d"]
    assert (shop.state("all").parked, shop.state("things").parked, shop.state("things").place) == (1, 0, 4)


@pytest.mark.parametrize("inside", [False, True])
def test_writers_and_consumers(shop: Shop, inside: bool) -> None:
    """Eight writers with overlapping records, two consumers with different portions: each gets everything once, each
    key's in the order of its revisions."""
    table_of_records(shop.conn, 12)
    table_of_what_came(shop.conn)
    handlers = {"one": (Failing(), 7), "two": (Failing(), 50)}
    for name in handlers:
        # Before anything is written: what one has passed may be deleted before the other is there.
        consumers.begin(shop.conn, "extract", name)
    writing = begin_writing(shop.connect, 8, 40, 12)

    def follow(name: str) -> None:
        handler, limit = handlers[name]
        kind = _kind(handler, inside and name == "one")
        ended = False
        while not ended:
            ended = all(each.done() for each in writing)
            shop.consume(kind, name, limit=limit)

    following = [in_thread(lambda name=name: follow(name)) for name in handlers]  # type: ignore[misc]
    stored = sum(each.result(60) for each in writing)
    for each in following:
        each.result(60)
    expected = {key: list(range(1, last + 1)) for key, last in shop.conn.execute("select * from record") if last}
    for handler, _ in handlers.values():
        assert len(handler.handled) == stored
        assert revisions(handler.handled) == expected
    assert len(got(shop.conn)) == (stored if inside else 0)
    assert left(shop.conn) == []


def test_passes_over_many(shop: Shop) -> None:
    """Nothing of a long stretch is wanted: the place moves past it, and no more than that is done."""
    fill(shop.conn, [an_event(f"k{number}", object="other") for number in range(1000)] + [an_event("a")])
    handler = Failing()
    found = shop.consume(EachEvent(handler), limit=10, wanted=Wanted(object="things"))
    assert (handler.keys(), found.place, found.behind) == (["a"], 1001, 0)


def test_for_a_while(shop: Shop) -> None:
    """A run that is stopped ends after the event in hand, and says how much is left; the next one goes on."""
    fill(shop.conn, [an_event(f"k{number}") for number in range(10)])
    stop, handler = threading.Event(), Failing()

    def until_third(event: Event) -> None:
        handler(event)
        if len(handler.handled) == 3:
            stop.set()

    found = shop.consume(EachEvent(until_third), stop=stop)
    assert (found.handled, found.place, found.behind) == (3, 3, 7)
    assert shop.consume(EachEvent(handler), run_for=NONE).handled == 1, "however short it is"
    assert shop.consume(EachEvent(handler), run_for=timedelta(hours=1)).handled == 6
    assert handler.keys() == [f"k{number}" for number in range(10)]


def test_slow_handlers_show_that_they_live(shop: Shop) -> None:
    """While a portion is handled for long, what is done is committed, and nobody takes the consumer over."""
    fill(shop.conn, [an_event(f"k{number}") for number in range(6)])
    places = []

    def slow(event: Event) -> None:
        places.append(shop.state().place)
        with pytest.raises(WalkBusyError):
            shop.consume(EachEvent(print), silent_after=SILENT)
        time.sleep(0.6)

    assert shop.consume(EachEvent(slow), silent_after=SILENT).handled == 6
    assert places == sorted(places)
    assert places[-1] >= 2, "committed in between"


# Something fails.


def test_parked(shop: Shop) -> None:
    """What fails is tried again, the later ones of its key wait, the others do not."""
    events = [an_event("a", 1), an_event("b", 1), an_event("a", 2), an_event("b", 2), an_event("a", 3)]
    fill(shop.conn, events)
    handler = Failing({("a", 1): 2})
    first = shop.consume(EachEvent(handler), backoff=timedelta(hours=1))
    assert (first.handled, first.parked, first.dead, first.behind) == (2, 3, 0, 0)
    assert [(e.key, e.revision) for e in handler.handled] == [("b", 1), ("b", 2)]
    assert handler.tried == {("a", 1): 1, ("b", 1): 1, ("b", 2): 1}
    fill(shop.conn, [an_event("a", 4)])
    assert shop.consume(EachEvent(handler)).parked == 4, "the next one waits too, untried; nothing is due"
    reason = shop.conn.execute("select reason from extract.parked where tries > 0").fetchall()
    assert reason == [("ValueError: no a",)]
    shop.conn.execute("update extract.parked set due_at = now() where tries > 0")
    last = shop.consume(EachEvent(handler), limit=2)
    assert (last.handled, last.parked, last.dead) == (4, 0, 0)
    assert revisions(handler.handled) == {"a": [1, 2, 3, 4], "b": [1, 2]}
    assert left(shop.conn) == []


def test_waits_grow(shop: Shop) -> None:
    """Each wait is twice as long as the one before, more or less, up to an hour."""
    fill(shop.conn, [an_event("a")])
    handler, waits = Failing({("a", 1): 99}), []
    asked = (
        "select extract(epoch from due_at - now())::float from extract.parked"
        " where due_at > now() + interval '1 second'"
    )
    for _ in range(9):
        shop.consume(EachEvent(handler), tries=10, backoff=timedelta(seconds=30))
        row = shop.conn.execute(asked).fetchone()
        assert row is not None
        waits.append(row[0])
        shop.conn.execute("update extract.parked set due_at = now()")
    for wait, expected in zip(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600], strict=True):
        assert 0.8 * expected - 2 <= wait <= 1.2 * expected
    assert shop.consume(EachEvent(handler), tries=10).dead == 1


def test_dead_letters_and_back(shop: Shop) -> None:
    """After its last try an event is dead, its key goes on; put back, it is tried as often again, and kept."""
    fill(shop.conn, [an_event("a", 1), an_event("a", 2), an_event("b", 1)])
    handler = Failing({("a", 1): 4, ("b", 1): 9})
    found = shop.consume(EachEvent(handler), tries=3)
    assert (found.handled, found.parked, found.dead, found.pruned) == (1, 0, 2, 1)
    assert handler.tried == {("a", 1): 3, ("a", 2): 1, ("b", 1): 3}
    assert [(each.key, each.tries) for each in consumers.dead(shop.conn, "extract", "one")] == [("a", 3), ("b", 3)]
    assert shop.consume(EachEvent(handler)).handled == 0
    assert consumers.replay_dead(shop.conn, "extract", "one") == 2
    fill(shop.conn, [an_event("a", 3)])
    assert shop.consume(EachEvent(handler), tries=3).dead == 1
    assert [event.revision for event in handler.handled] == [2, 1, 3]
    assert consumers.drop_dead(shop.conn, "extract", "one", [3]) == 1
    assert shop.consume(EachEvent(handler)).dead == 0
    assert left(shop.conn) == []


def test_one_try(shop: Shop) -> None:
    """With one try the key goes on at once."""
    fill(shop.conn, [an_event("a", 1), an_event("a", 2)])
    handler = Failing({("a", 1): 1})
    assert shop.consume(EachEvent(handler), tries=1, limit=10).dead == 1
    assert [event.revision for event in handler.handled] == [2]


FAILURES = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(1, 5)), st.one_of(st.integers(1, 2), st.just(9)), max_size=8
)
ORDERS = st.lists(st.sampled_from("abcd"), max_size=14)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=ORDERS,
    later=ORDERS,
    fails=FAILURES,
    limit=st.integers(1, 5),
    tries=st.integers(1, 4),
    inside=st.booleans(),
    stops=st.lists(st.integers(1, 6), max_size=3),
)
def test_whatever_fails(
    shop: Shop,
    order: list[str],
    later: list[str],
    fails: dict[tuple[str, int], int],
    limit: int,
    tries: int,
    inside: bool,
    stops: list[int],
) -> None:
    """However handlers fail and runs are cut short: all that can be handled is, once and in order per key; the rest is
    dead after so many tries."""
    shop.conn.execute("truncate extract.outbox, extract.consumer, extract.parked")
    shop.conn.execute("drop table if exists got")
    table_of_what_came(shop.conn)
    counts: Counter[str] = Counter()
    handler = Failing(fails)
    expected: list[tuple[str, int]] = []
    for part in (order, later):
        events = []
        for key in part:
            counts[key] += 1
            events.append(an_event(key, counts[key]))
        fill(shop.conn, events)
        expected += [(event.key, event.revision) for event in events]
        for after in stops:
            _run_until(shop, handler, inside, after, limit=limit, tries=tries)
    found = shop.consume(_kind(handler, inside), limit=limit, tries=tries)
    doomed = {which for which in expected if fails.get(which, 0) >= tries}
    assert (found.parked, found.behind, found.dead) == (0, 0, len(doomed))
    assert {(each.key, each.revision) for each in handler.handled} == set(expected) - doomed
    assert len(handler.handled) == len(expected) - len(doomed)
    assert revisions(handler.handled) == {key: sorted(told) for key, told in revisions(handler.handled).items()}
    assert all(handler.tried[which] == min(fails.get(which, 0) + 1, tries) for which in expected)
    if inside:
        assert got(shop.conn) == [(each.key, each.revision) for each in handler.handled]


def _kind(handler: Callable[..., object], inside: bool) -> Handler:
    return InTransaction(handler) if inside else EachEvent(handler)


def _run_until(shop: Shop, handler: Failing, inside: bool, after: int, **more: Any) -> None:
    """A run that is stopped after some calls."""
    stop, calls = threading.Event(), [0]

    def counting(event: Event, conn: Connection | None = None) -> None:
        calls[0] += 1
        if calls[0] == after:
            stop.set()
        handler(event, conn)

    shop.consume(_kind(counting, inside), stop=stop, **more)


def test_undone_by_savepoint(shop: Shop) -> None:
    """What a failing handler has written inside the transaction is undone, what the others have written is not; even
    if it was Postgres that refused."""
    fill(shop.conn, [an_event("a"), an_event("b"), an_event("c")])
    table_of_what_came(shop.conn)

    def write(event: Event, conn: Connection) -> None:
        conn.execute("insert into got (key, revision) values (%s, 1)", [event.key])
        if event.key == "b":
            conn.execute("select 1 / 0")

    assert shop.consume(InTransaction(write), tries=2).dead == 1
    assert got(shop.conn) == [("a", 1), ("c", 1)]
    assert consumers.dead(shop.conn, "extract")[0].reason == "DivisionByZero: division by zero"


def test_handlers_cannot_commit(shop: Shop) -> None:
    """A handler that would end the transaction fails like any other."""
    fill(shop.conn, [an_event("a")])
    assert shop.consume(InTransaction(lambda event, conn: conn.commit()), tries=1).dead == 1


def test_swallowed_by_the_savepoint(shop: Shop) -> None:
    """A handler that raises psycopg's Rollback has failed: its writes are undone, its event is parked."""
    fill(shop.conn, [an_event("a"), an_event("b")])
    table_of_what_came(shop.conn)

    def write(event: Event, conn: Connection) -> None:
        conn.execute("insert into got (key, revision) values (%s, 1)", [event.key])
        if event.key == "a":
            raise psycopg.Rollback

    found = shop.consume(InTransaction(write), backoff=timedelta(hours=1))
    assert (found.handled, found.parked, got(shop.conn)) == (1, 1, [("b", 1)])


def test_caught_but_not_undone(shop: Shop) -> None:
    """A handler that catches an error of Postgres leaves a transaction in which nothing can be done: it has failed."""
    fill(shop.conn, [an_event("a"), an_event("b")])

    def write(event: Event, conn: Connection) -> None:
        with suppress(psycopg.Error):
            conn.execute("select 1 / 0" if event.key == "a" else "select 1")

    found = shop.consume(InTransaction(write), tries=1)
    assert (found.handled, found.dead) == (1, 1)
    assert "not undone" in consumers.dead(shop.conn, "extract")[0].reason


def test_what_a_handler_sets_is_set_back(shop: Shop) -> None:
    """Rows as mappings, for the handler alone."""
    fill(shop.conn, [an_event("a"), an_event("b")])

    def write(event: Event, conn: Any) -> None:
        assert conn.execute("select 1 as x").fetchone() == (1,)
        conn.row_factory, conn.cursor_factory = dict_row, psycopg.ClientCursor
        assert conn.execute("select 1 as x").fetchone() == {"x": 1}

    assert shop.consume(InTransaction(write), limit=1).handled == 2


def _close(shop: Shop, conn: Connection) -> None:
    conn.close()


def _close_and_fail(shop: Shop, conn: Connection) -> None:
    conn.close()
    raise ValueError("a secret")


def _terminate(shop: Shop, conn: Connection) -> None:
    shop.conn.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
    conn.execute("select 1")


def _hold_up(shop: Shop, conn: Connection) -> None:
    # As a stream does that was left open: whoever uses the connection now waits for ever.
    conn.lock.acquire()
    raise ValueError


@pytest.mark.parametrize("how", [_close, _close_and_fail, _terminate, _hold_up])
def test_connection_lost(shop: Shop, how: Callable[[Shop, Connection], None]) -> None:
    """If the connection is lost inside a handler, nothing of the transaction is stored, but the event has had a try:
    it cannot hold the consumer up for ever. Events before it, of its key or not, come before it as ever."""
    fill(shop.conn, [an_event("a", 1), an_event("b", 1), an_event("a", 2), an_event("b", 2), an_event("c", 1)])
    table_of_what_came(shop.conn)
    handler = Failing()
    lost: list[Event] = []

    def lose(event: Event, conn: Connection) -> None:
        if (event.key, event.revision) == ("a", 2) and len(lost) < 2:
            lost.append(event)
            how(shop, conn)
        handler(event, conn)

    with pytest.raises(StoreUnavailableError, match="while the handler had the event") as found:
        shop.consume(InTransaction(lose))
    assert (found.value.object, found.value.key) == ("things", "a")
    assert "secret" not in str(found.value)
    assert (shop.state().place, shop.state().parked, got(shop.conn)) == (0, 1, [])
    with pytest.raises(StoreUnavailableError):
        shop.consume(InTransaction(lose))
    last = shop.consume(InTransaction(lose), tries=3)
    assert (last.handled, last.parked, last.dead, last.place) == (2, 0, 0, 5)
    assert revisions(an_event(*each) for each in got(shop.conn)) == {"a": [1, 2], "b": [1, 2], "c": [1]}
    assert left(shop.conn) == []


def test_connection_lost_again_and_again(shop: Shop) -> None:
    """After the last try it is a dead letter, and the others are handled, each once."""
    fill(shop.conn, [an_event("a", 1), an_event("b", 1), an_event("a", 2)])
    table_of_what_came(shop.conn)
    handler = Failing()

    def lose(event: Event, conn: Connection) -> None:
        if event.key == "b":
            conn.close()
        handler(event, conn)

    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            shop.consume(InTransaction(lose), tries=2)
    found = shop.consume(InTransaction(lose), tries=2)
    assert (found.parked, found.dead, got(shop.conn)) == (0, 1, [("a", 1), ("a", 2)])


def test_lost_to_another_run(shop: Shop) -> None:
    """Who has lost the connection and the consumer counts nothing."""
    fill(shop.conn, [an_event("a")])

    def lose(event: Event, conn: Connection) -> None:
        conn.close()
        shop.busy()

    with pytest.raises(FencedError):
        shop.consume(InTransaction(lose))
    assert shop.state().parked == 0


@pytest.mark.parametrize("statement", [b"commit", b"rollback", b"commit; begin", b"commit; begin; select 1 / 0"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_handler_that_commits_is_told_so(shop: Shop, statement: bytes, fails: bool) -> None:
    """Its event is parked, with the reason, and the run stops: nothing of it may look as if it were exact. The next run
    goes on without it."""
    fill(shop.conn, [an_event("a"), an_event("b"), an_event("c")])
    handler = Failing()

    def commit(event: Event, conn: Connection) -> None:
        if event.key == "b":
            conn.execute(statement)
            if fails:
                raise ValueError
        handler(event)

    with pytest.raises(FixConfig, match="the handler must not commit"):
        shop.consume(InTransaction(commit), tries=1)
    assert shop.state().place == 0
    (letter,) = consumers.dead(shop.conn, "extract")
    assert (letter.key, "must not commit" in letter.reason) == ("b", True)
    found = shop.consume(InTransaction(commit))
    assert (found.handled, found.place) == (2, 3)


# Whatever a handler raises.


class Unspeakable(Exception):
    """An error whose text is an error."""

    def __str__(self) -> str:
        raise AttributeError("nope")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (Unspeakable(), "Unspeakable"),
        (ValueError("\ud800 x"), "ValueError: ? x"),
    ],
)
def test_errors_that_cannot_be_told(shop: Shop, raised: Exception, reason: str, inside: bool) -> None:
    """They park the event like any other."""
    fill(shop.conn, [an_event("a"), an_event("b")])

    def fail(event: Event, conn: Connection | None = None) -> None:
        if event.key == "a":
            raise raised

    found = shop.consume(_kind(fail, inside), tries=1)
    assert (found.handled, found.dead) == (1, 1)
    assert consumers.dead(shop.conn, "extract")[0].reason == reason


class Ordered(BaseException):
    """As Airflow's timeout of a task."""


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Ordered, SystemExit])
def test_orders_to_stop(shop: Shop, kind: type[BaseException], inside: bool) -> None:
    """What was handled before is stored, and the order goes on. SystemExit may be the handler's own: it is a try."""
    fill(shop.conn, [an_event("a", 1), an_event("b", 1), an_event("a", 2)])
    table_of_what_came(shop.conn)
    handler, orders = Failing(), [kind(), kind()]

    def stop(event: Event, conn: Connection | None = None) -> None:
        if event.key == "b" and orders:
            raise orders.pop()
        handler(event, conn)

    parked = int(kind is SystemExit)
    with pytest.raises(kind):
        shop.consume(_kind(stop, inside))
    assert (shop.state().place, shop.state().parked) == (1 + parked, parked)
    with pytest.raises(kind):
        shop.consume(_kind(stop, inside))
    found = shop.consume(_kind(stop, inside))
    assert (found.place, found.parked) == (3, 0)
    assert Counter((each.key, each.revision) for each in handler.handled) == {("a", 1): 1, ("b", 1): 1, ("a", 2): 1}
    assert len(got(shop.conn)) == (3 if inside else 0)


# Bounds.


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": -1}, {"tries": 0}])
def test_bounds_that_would_do_nothing(shop: Shop, wrong: dict[str, Any]) -> None:
    """They are refused before a consumer is made."""
    with pytest.raises(SourceError, match="less than one"):
        shop.consume(EachEvent(print), **wrong)
    assert consumers.consumers(shop.conn, "extract") == []


def test_short_slices_move(shop: Shop) -> None:
    """Also where something parked is due each time."""
    fill(shop.conn, [an_event("a"), an_event("b"), an_event("c")])
    handler = Failing({("a", 1): 99})
    for _ in range(3):
        shop.consume(EachEvent(handler), run_for=NONE, tries=99)
    assert handler.keys() == ["b", "c"]


def test_a_backlog_is_stamped_in_parts(shop: Shop) -> None:
    """So that a run ends in time, and shows that it lives, however much waits without a place."""
    shop.conn.execute(
        "insert into extract.outbox (id, source, object, key, type, time, revision)"
        " select g::text, 'shop', 'things', 'k' || g, 'x', now(), 1 from generate_series(1, 30000) as g"
    )
    assert shop.consume(EachEvent(lambda event: None), run_for=NONE).behind == 29_999
    placed = shop.conn.execute("select place from extract.outbox_head").fetchone()
    assert placed is not None
    assert 0 < placed[0] <= 10_000


def test_a_new_consumer_passes_over_gaps(shop: Shop) -> None:
    """An old dead letter of another one has outlived all around it: the new one comes to the end in one step, and what
    it is behind are events that are there."""
    fill(shop.conn, [an_event(f"k{number}") for number in range(100)])
    assert shop.consume(EachEvent(Failing({("k0", 1): 9, ("k50", 1): 9})), tries=1).pruned == 98
    consumers.begin(shop.conn, "extract", "two")
    assert (shop.state("two").place, shop.state("two").behind) == (0, 2)
    handler = Failing()
    found = shop.consume(EachEvent(handler), "two")
    assert (found.handled, found.place, found.behind) == (2, 100, 0)
    consumers.begin(shop.conn, "extract", "three")
    found = shop.consume(EachEvent(handler), "three", wanted=Wanted(object="none"))
    assert (found.handled, found.place, found.behind) == (0, 100, 0)


def test_an_event_that_is_gone(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """A parked event that was deleted from the outbox by hand is dropped, and its key goes on."""
    fill(shop.conn, [an_event("a", 1), an_event("a", 2)])
    handler = Failing({("a", 1): 1})
    shop.consume(EachEvent(handler), backoff=timedelta(hours=1))
    shop.conn.execute("delete from extract.outbox where revision = 1")
    found = shop.consume(EachEvent(handler))
    assert (found.handled, found.parked) == (1, 0)
    assert "1 parked events are in the outbox no more" in caplog.text
    assert "places 1" in caplog.text


# Somebody else.


def test_busy(shop: Shop) -> None:
    """One run at a time for each consumer; whoever is told to takes it over, and the other one commits no more."""
    fill(shop.conn, [an_event("a"), an_event("b")])
    shop.busy("two")

    def lose(event: Event, conn: Connection | None = None) -> None:
        shop.busy()

    with pytest.raises(WalkBusyError, match="somebody"):
        shop.consume(EachEvent(lose), "two")
    with pytest.raises(FencedError) as found:
        shop.consume(EachEvent(lose))
    assert found.value.object == "one"
    assert shop.state().place == 0
    assert shop.consume(EachEvent(Failing()), take_over=True).handled == 2


def test_a_loser_soon_stops(shop: Shop) -> None:
    """After a takeover, who had the consumer handles nothing more behind the other one."""
    fill(shop.conn, [an_event("a", number) for number in range(1, 9)])
    first, second = [], Failing()

    def slow(event: Event) -> None:
        first.append(event.revision)
        if event.revision == 2:
            shop.consume(EachEvent(second), take_over=True)
            time.sleep(1.1)

    with pytest.raises(FencedError):
        shop.consume(EachEvent(slow))
    assert (first, len(second.handled)) == ([1, 2], 8)


def test_a_loser_does_not_publish(shop: Shop) -> None:
    """Nor does it publish what was not refused."""
    fill(shop.conn, [an_event(f"k{number}") for number in range(8)])
    shelf = Shelf({"k0"})
    publish = shelf.publish

    def lose(events: Sequence[Event]) -> None:
        shop.busy()
        publish(events)

    shelf.publish = lose  # type: ignore[method-assign]
    with pytest.raises(FencedError):
        shop.consume(ToSink(shelf))
    assert (shelf.calls, shelf.kept) == (1, [])


def test_taken_over_while_the_connection_was_lost(shop: Shop) -> None:
    """A run that wakes up without its connection learns from a new one that it was taken over."""
    fill(shop.conn, [an_event("a")])

    def lose(event: Event) -> None:
        shop.conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        shop.busy()

    with pytest.raises(FencedError):
        shop.consume(EachEvent(lose))


def test_dropped_while_it_runs(shop: Shop) -> None:
    """A run whose consumer was dropped commits nothing, and a new consumer of that name begins anew."""
    fill(shop.conn, [an_event("a")])
    with pytest.raises(FencedError):
        shop.consume(EachEvent(lambda event: consumers.drop_consumer(shop.conn, "extract", "one")))
    handler = Failing()
    shop.consume(EachEvent(handler))
    assert handler.keys() == ["a"]


def test_without_books(empty_dsn: str) -> None:
    with pytest.raises(SchemaMissingError):
        consume("one", EachEvent(print), postgres=connecting(empty_dsn))


# To a sink.


@dataclass
class Shelf:
    """A sink that refuses some keys, telling which or not, and is away for a while."""

    refused: set[str] = field(default_factory=set)
    tells: bool = True
    away: int = 0
    kept: list[Event] = field(default_factory=list)
    calls: int = 0
    timeout: timedelta = timedelta(seconds=1)

    def publish(self, events: Sequence[Event]) -> None:
        self.calls += 1
        if self.away:
            self.away -= 1
            raise SinkUnavailableError("away")
        for event in events:
            if event.key in self.refused:
                place = {"key": event.key, "source": event.source} if self.tells else {}
                raise EventRefusedError("too large.", **place)
            self.kept.append(event)

    def close(self) -> None: ...

    def first_seen(self) -> list[Event]:
        """What arrived, repeats left out."""
        return list({event.id: event for event in self.kept}.values())


def test_to_a_sink(shop: Shop) -> None:
    """Portions go to the sink, in order, and once if nothing happens."""
    events = [an_event(f"k{number % 5}", number) for number in range(20)]
    fill(shop.conn, events)
    shelf = Shelf()
    assert shop.consume(ToSink(shelf), limit=8).handled == 20
    assert (shelf.kept, shelf.calls) == (events, 3)


@pytest.mark.parametrize("tells", [False, True])
def test_refused_by_a_sink(shop: Shop, tells: bool) -> None:
    """What the sink refuses is a dead letter, the rest arrives, in order per key, whether or not it tells which."""
    events = [an_event(f"k{number % 10}", number) for number in range(60)]
    fill(shop.conn, events)
    shelf = Shelf({"k3", "k7"}, tells)
    found = shop.consume(ToSink(shelf))
    assert (found.handled, found.dead, found.parked) == (48, 12, 0)
    good = [event for event in events if event.key not in shelf.refused]
    assert revisions(shelf.first_seen()) == revisions(good)
    reasons = {each.reason for each in consumers.dead(shop.conn, "extract")}
    assert all(reason.startswith("EventRefusedError: ") and "too large." in reason for reason in reasons)
    assert len(reasons) == 1
    shelf.refused.clear()
    assert consumers.replay_dead(shop.conn, "extract", "one") == 12
    assert shop.consume(ToSink(shelf)).handled == 12
    assert len(shelf.first_seen()) == 60


def test_one_refused_of_many(shop: Shop) -> None:
    """One named event costs two more publications, not one for each event."""
    fill(shop.conn, [an_event(f"k{number}") for number in range(100)])
    shelf = Shelf({"k40"})
    assert shop.consume(ToSink(shelf)).dead == 1
    assert shelf.calls == 3


def test_sink_away(shop: Shop) -> None:
    """A sink that is away is no failure of the events: nothing moves, the error tells."""
    fill(shop.conn, [an_event("a")])
    shelf = Shelf(away=1)
    with pytest.raises(SinkUnavailableError, match="goes on from its place"):
        shop.consume(ToSink(shelf))
    assert (shop.state().place, shop.state().parked) == (0, 0)
    assert shop.consume(ToSink(shelf)).handled == 1


def test_slow_sink(shop: Shop) -> None:
    """Between publications it shows that it lives."""
    fill(shop.conn, [an_event(f"k{number}") for number in range(8)])
    shelf = Shelf({"k1", "k2", "k5"})
    publish = shelf.publish

    def slowly(events: Sequence[Event]) -> None:
        with pytest.raises(WalkBusyError):
            shop.consume(EachEvent(print), silent_after=SILENT)
        time.sleep(0.75)
        publish(events)

    shelf.publish = slowly  # type: ignore[method-assign]
    assert shop.consume(ToSink(shelf), silent_after=SILENT).dead == 3


# Killed.


@pytest.mark.parametrize("where", ["handler", "commit"])
@pytest.mark.parametrize("inside", [False, True])
def test_killed(shop: Shop, tmp_path: Path, inside: bool, where: str) -> None:
    """Killed between a handler and the commit, again and again: handlers outside the transaction see repeats only, of
    what was not committed, in order; what they write inside it is there exactly once."""
    fill(shop.conn, [an_event(f"k{number % 4}", number // 4 + 1) for number in range(40)])
    table_of_what_came(shop.conn)
    file, rng = tmp_path / "calls", random.Random(3)
    asked = {"dsn": shop.dsn, "inside": inside, "where": where, "file": str(file)}
    codes = []
    for dies in [rng.randint(1, 7) if where == "handler" else rng.randint(1, 3) for _ in range(4)] + [0]:
        codes.append(_child({**asked, "dies": dies}))
    assert codes[-1] == 0
    assert codes.count(-9) >= 3
    calls: defaultdict[str, list[int]] = defaultdict(list)
    for line in file.read_text().splitlines():
        key, revision = json.loads(line)
        calls[key].append(revision)
    for told in calls.values():
        assert list(dict.fromkeys(told)) == list(range(1, 11)), "first seen in order, none missed"
        assert all(then <= before + 1 for before, then in pairwise(told)), "repeats go back only"
    if inside:
        assert revisions(an_event(key, revision) for key, revision in got(shop.conn)) == {
            f"k{number}": list(range(1, 11)) for number in range(4)
        }
    assert shop.state().place == 40


def _child(asked: dict[str, Any]) -> int:
    command = [sys.executable, "-W", "error", "-m", "tests.dying_consumer", json.dumps(asked)]
    return subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode
