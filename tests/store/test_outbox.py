"""The outbox: nothing missed, nothing twice, in order per key, whatever order transactions commit in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from airflow_extract_provider.extract.errors import EventRepeatedError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.store import consumer, outbox
from airflow_extract_provider.extract.store.connection import Connect, Connection, connecting
from airflow_extract_provider.extract.store.consumer import Parked, Waiting
from airflow_extract_provider.extract.store.outbox import Wanted, announce, append, channel, prune, read, stamp
from airflow_extract_provider.extract.store.statements import statement
from tests.databases import Databases
from tests.store.applier import in_thread, wait_until_blocked
from tests.store.eventful import an_event, begin_writing, fill, left, revisions, table_of_records
from tests.store.test_plans import scans
from tests.ways import Store

NONE = timedelta(0)


@pytest.fixture
def books(connect: Connect) -> Iterator[Connection]:
    """The program's connection to the books."""
    with connect() as opened:
        opened.autocommit = True
        yield opened


def read_all(conn: Connection, limit: int = 100, wanted: Wanted = Wanted()) -> list[Event]:  # noqa: B008
    """All wanted events, portion by portion."""
    found: list[Event] = []
    after = 0
    while (portion := read(conn, "extract", after, limit, wanted)).upto > after:
        assert len(portion.placed) <= limit
        found += [each.event for each in portion.placed]
        after = portion.upto
    return found


def test_as_it_was_stored(books: Connection) -> None:
    """What is read is what was appended: the ends of time, digits, no data, the order."""
    first, last = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)
    books.execute("set time zone 'Pacific/Kiritimati'")
    events = [
        an_event("b", time=first, data=b'{"n": 1.10000000000000000000000000001}'),
        an_event("a", time=last, data=None),
        an_event("a", 2, data='"ü 🙂"'.encode()),
        Event("id", "shop", "other", "made", "x", first, 2**62, b"{}", True),
    ]
    fill(books, events)
    assert read_all(books) == events
    assert [(each.place, each.sequence) for each in read(books, "extract", 0, 9).placed] == [
        (n, n) for n in range(1, 5)
    ]


def test_nothing_to_append(books: Connection) -> None:
    append(books, "extract", [])
    assert stamp(books, "extract") == 0


def test_repeated(books: Connection) -> None:
    """An id that is stored already stops the transaction, and the error says which record's."""
    fill(books, [an_event("a"), an_event("b")])
    with pytest.raises(EventRepeatedError) as found, books.transaction():
        append(books, "extract", [an_event("c"), an_event("b")])
    assert (found.value.source, found.value.object, found.value.key) == ("shop", "things", "b")
    assert "by hand" in str(found.value)
    assert "`reset`" in str(found.value)
    assert [event.key for event in read_all(books)] == ["a", "b"]


def test_repeated_within(books: Connection) -> None:
    """So does one id twice in a transaction."""
    with pytest.raises(EventRepeatedError):
        append(books, "extract", [an_event("a"), an_event("a")])


def test_other_violations_are_themselves(books: Connection, conn: Connection) -> None:
    """A table that somebody has given another constraint: that is no repeated event."""
    conn.execute("create unique index mine on extract.outbox (key)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        append(books, "extract", [an_event("a", 1), an_event("a", 2)])


def test_announced(books: Connection, store: Store) -> None:
    """Whoever listens, on the way past a pooler, hears of it, whatever the schema is called."""
    for schema in ("extract", "Bücher" * 9):
        assert len(channel(schema).encode()) <= 63
        with store.owner() as listener:
            listener.autocommit = True
            listener.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(channel(schema))))
            announce(books, schema)
            assert [each.payload for each in listener.notifies(timeout=5, stop_after=1)] == [""]


def test_committed_late(books: Connection, connect: Connect) -> None:
    """An event with a lower number that is committed later gets a later place: a reader that has gone on finds it."""
    with connect() as slow:
        append(slow, "extract", [an_event("slow")])
        fill(books, [an_event("quick")])
        before = read(books, "extract", 0, 10)
        slow.commit()
    assert stamp(books, "extract") == 1
    after = read(books, "extract", before.upto, 10)
    assert [each.event.key for each in (*before.placed, *after.placed)] == ["quick", "slow"]
    assert after.placed[0].sequence < before.placed[0].sequence


def test_writers_and_readers(books: Connection, conn: Connection, connect: Connect) -> None:
    """Eight writers with overlapping records, two readers that stamp: each reader gets every event once, each key's in
    the order of its revisions."""
    table_of_records(conn, 12)
    writing = begin_writing(connect, 8, 60, 12)
    readers = [_reader(connect, limit, writing) for limit in (7, 50)]
    stored = sum(each.result(60) for each in writing)
    expected = {key: list(range(1, last + 1)) for key, last in books.execute("select key, revision from record")}
    for each in readers:
        found = each.result(60)
        assert len(found) == stored
        assert revisions(found) == {key: told for key, told in expected.items() if told}
    assert left(books) == list(range(1, stored + 1))
    late = books.execute(
        "select count(*) from (select sequence < lag(sequence) over (order by place) as late from extract.outbox) as x"
        " where late"
    ).fetchone()
    assert late is not None
    assert late[0] > 0, "all were committed in the order of their numbers: nothing was tested"


def _reader(connect: Connect, limit: int, writing: list[Future[int]]) -> Future[list[Event]]:
    def follow() -> list[Event]:
        found: list[Event] = []
        after = 0
        with connect() as conn:
            conn.autocommit = True
            while True:
                ended = all(each.done() for each in writing)
                stamp(conn, "extract", limit)
                while (portion := read(conn, "extract", after, limit)).upto > after:
                    found += [each.event for each in portion.placed]
                    after = portion.upto
                if ended:
                    return found
                time.sleep(0.001)

    return in_thread(follow)


def test_stampers(books: Connection, connect: Connect) -> None:
    """Stampers at the same time give each event one place, without a gap, in the order of their numbers."""
    fill(books, [an_event(f"k{number}") for number in range(1000)], place=False)
    start = threading.Barrier(4)

    def work() -> int:
        with connect() as conn:
            conn.autocommit = True
            start.wait()
            return stamp(conn, "extract", 10)

    working = [in_thread(work) for _ in range(4)]
    assert sum(each.result(30) for each in working) == 1000
    assert books.execute("select place, sequence from extract.outbox order by place").fetchall() == [
        (number, number) for number in range(1, 1001)
    ]
    assert books.execute("select place from extract.outbox_head").fetchone() == (1000,)


def test_stamper_waits(books: Connection, connect: Connect) -> None:
    """A stamper sees what the one before it has placed, though it began to wait before that was committed."""
    fill(books, [an_event("a")], place=False)
    with connect() as first, connect() as second:
        second.autocommit = True
        outbox.lock_head(first, "extract")
        working = in_thread(lambda: stamp(second, "extract"))
        wait_until_blocked(books, second.info.backend_pid)
        first.execute(statement("outbox.sql", "stamp", "extract"), {"limit": 10})
        first.commit()
        assert working.result(10) == 0
    assert left(books) == [1]


def test_nothing_waits_nothing_is_locked(books: Connection, connect: Connect) -> None:
    """Without new events, a stamper passes the lock that another one holds."""
    fill(books, [an_event("a")])
    with connect() as other:
        outbox.lock_head(other, "extract")
        assert stamp(books, "extract") == 0


def test_filtered(books: Connection) -> None:
    """A reader gets what it wants, and its place moves past the others, however many there are."""
    events = [an_event(f"k{n}", object="other" if n % 100 else "things", type=f"t{n % 2}") for n in range(1000)]
    fill(books, events)
    for wanted, expected in (
        (Wanted(), events),
        (Wanted(source="shop"), events),
        (Wanted(source="other"), []),
        (Wanted(object="things"), [event for event in events if event.object == "things"]),
        (Wanted("shop", "other", ("t1",)), [e for e in events if e.object == "other" and e.type == "t1"]),
        (Wanted(types=()), []),
    ):
        assert read_all(books, 3, wanted) == expected
    assert read(books, "extract", 0, 3, Wanted(object="none")).upto == 30
    assert read(books, "extract", 990, 30, Wanted(object="none")).upto == 1000
    assert read(books, "extract", 1000, 30, Wanted(object="none")).upto == 1000


def test_gaps(books: Connection) -> None:
    """Behind the last row a reader is at the last place that was given, however few rows are left before it."""
    fill(books, [an_event(f"k{number}") for number in range(30)])
    books.execute("delete from extract.outbox where place not in (3, 9)")
    assert [each.place for each in read(books, "extract", 0, 10).placed] == [3, 9]
    assert [read(books, "extract", 0, limit).upto for limit in (1, 2, 3)] == [3, 9, 30]
    assert [read(books, "extract", after, 2).upto for after in (3, 9, 30, 31)] == [30, 30, 30, 31]
    assert read(books, "extract", 0, 2, Wanted(object="none")).upto == 30
    assert not waits(books, Wanted(object="none"), 3)
    assert waits(books, Wanted(object="none"), 2)
    consumer.begin(books, "extract", "one")
    assert consumer.consumers(books, "extract")[0].behind == 2
    fill(books, [an_event("new")])
    assert consumer.consumers(books, "extract")[0].behind == 3
    books.execute("update extract.consumer set place = 31")
    assert consumer.consumers(books, "extract")[0].behind == 0


def test_stamped_in_rounds(books: Connection) -> None:
    """As many as are asked for."""
    fill(books, [an_event(f"k{number}") for number in range(10)], place=False)
    assert [stamp(books, "extract", 2, rounds=3), stamp(books, "extract", 2), stamp(books, "extract", 2, rounds=1)] == [
        6, 4, 0,
    ]  # fmt: skip


def test_begin(books: Connection, conn: Connection) -> None:
    """A new consumer begins at the oldest event or behind the newest, one that was made before goes on."""
    assert consumer.begin(books, "extract", "early") == 0
    fill(books, [an_event("a"), an_event("b")], place=False)
    assert consumer.begin(books, "extract", "at the end", "end") == 2
    assert consumer.begin(books, "extract", "first") == 0
    fill(books, [an_event("c")])
    assert consumer.begin(books, "extract", "at the end", "beginning") == 2
    for name in ("early", "first", "at the end"):
        consumer.settle(books, "extract", name, 2, [], [])
    assert prune(books, "extract", NONE) == 2
    assert consumer.begin(books, "extract", "late") == 2
    seen = {each.name: (each.place, each.behind) for each in consumer.consumers(books, "extract")}
    assert seen == dict.fromkeys(["at the end", "early", "first", "late"], (2, 1))
    consumer.settle(books, "extract", "late", 3, [], [])
    assert consumer.consumers(books, "extract", "late")[0].oldest is None
    assert consumer.drop_consumer(conn, "extract", "late")
    assert not consumer.drop_consumer(conn, "extract", "late")


def test_begin_and_prune(books: Connection, connect: Connect) -> None:
    """A consumer that is begun while rows are pruned begins behind those: never in the middle."""
    fill(books, [an_event(f"k{number}") for number in range(10)])
    consumer.begin(books, "extract", "old", "end")
    with connect() as pruning, connect() as beginning:
        beginning.autocommit = True
        outbox.lock_head(pruning, "extract")
        pruning.execute(
            statement("outbox.sql", "prune", "extract"), {"limit": 5, "keep_for": NONE, "though_unread": False}
        )
        begun = in_thread(lambda: consumer.begin(beginning, "extract", "new"))
        wait_until_blocked(books, beginning.info.backend_pid)
        pruning.commit()
        assert begun.result(10) == 5
    assert prune(books, "extract", NONE) == 0


def test_prune(books: Connection, conn: Connection) -> None:
    """Deleted is what all have passed, what none has parked, dead letters included, and what is old enough."""
    fill(books, [an_event(f"k{number}") for number in range(10)])
    assert prune(books, "extract", NONE) == 0, "there is no consumer"
    for name in ("one", "two"):
        consumer.begin(books, "extract", name)
    assert prune(books, "extract", NONE) == 0, "nothing is read"
    placed = read(books, "extract", 0, 10).placed
    parked = [Parked(placed[2], 1, "x", NONE), Parked(placed[4], 5, "x", None, True)]
    consumer.settle(books, "extract", "one", 10, [], parked)
    consumer.settle(books, "extract", "two", 8, [], [Parked(placed[5], 0)])
    assert prune(books, "extract", timedelta(hours=1)) == 0, "all are young"
    assert prune(books, "extract", NONE, 2) == 2
    assert left(books) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert prune(books, "extract", NONE) == 3
    assert left(books) == [3, 5, 6, 9, 10]
    assert consumer.drop_consumer(conn, "extract", "two")
    assert prune(books, "extract", NONE) == 3
    assert left(books) == [3, 5]
    assert consumer.drop_dead(books, "extract", "one") == 1
    assert prune(books, "extract", NONE) == 1
    assert left(books) == [3]


def test_prune_in_portions(books: Connection) -> None:
    """More than one transaction's rows, and the young ones of the oldest are no reason to look at all."""
    fill(books, [an_event(f"k{number}") for number in range(2500)])
    consumer.begin(books, "extract", "one", "end")
    assert prune(books, "extract", NONE) == 2500


def test_dead_letters(books: Connection) -> None:
    """Listed with what a person asks about, dropped or put back by place or all of them, the first of a key first."""
    fill(books, [an_event("a", revision) for revision in range(1, 5)] + [an_event("b")])
    consumer.begin(books, "extract", "one")
    placed = read(books, "extract", 0, 10).placed
    consumer.settle(
        books, "extract", "one", 5, [], [Parked(placed[at], 5, f"why {at}", None, True) for at in (0, 1, 4)]
    )
    found = consumer.dead(books, "extract")
    assert [(each.place, each.key, each.type, each.tries, each.reason) for each in found] == [
        (1, "a", "changed", 5, "why 0"),
        (2, "a", "changed", 5, "why 1"),
        (5, "b", "changed", 5, "why 4"),
    ]
    assert consumer.dead(books, "extract", "other") == []
    assert consumer.due(books, "extract", "one", 10) == []
    assert consumer.replay_dead(books, "extract", "one", [2, 77]) == 1
    assert [(each.placed.place, each.tries) for each in consumer.due(books, "extract", "one", 10)] == [(2, 0)]
    assert consumer.replay_dead(books, "extract", "one", []) == 0
    assert consumer.replay_dead(books, "extract", "one") == 2
    assert [each.placed.place for each in consumer.due(books, "extract", "one", 10)] == [1, 2, 5]
    assert consumer.replay_dead(books, "extract", "none") == 0
    assert consumer.dead(books, "extract") == []
    state = consumer.consumers(books, "extract", "one")[0]
    assert (state.behind, state.parked, state.dead, state.oldest is None) == (0, 3, 0, False)


def test_woken(books: Connection) -> None:
    """If somebody deletes parked rows by hand, those behind them do not wait for ever."""
    fill(books, [an_event("a", revision) for revision in range(1, 4)])
    consumer.begin(books, "extract", "one")
    first, *others = read(books, "extract", 0, 10).placed
    consumer.settle(books, "extract", "one", 3, [], [Parked(first, 1, "x", NONE), *(Parked(each) for each in others)])
    books.execute("delete from extract.parked where place = 1")
    assert consumer.due(books, "extract", "one", 10) == []
    consumer.wake(books, "extract", "one")
    assert [each.placed.place for each in consumer.due(books, "extract", "one", 10)] == [2, 3]


def waits(conn: Connection, wanted: Wanted | None = None, looked: int = 10_000) -> bool:
    """Whether the consumer `one` has something to do."""
    row = conn.execute(*consumer.waiting("extract", "one", wanted, looked)).fetchone()
    assert row is not None
    return bool(row[0])


def test_waiting(books: Connection) -> None:
    """Events that it wants and has not come to, with a place or without; what is parked once it is due."""
    assert not waits(books)
    fill(books, [an_event("a")], place=False)
    assert waits(books), "it was never begun: all wait"
    assert waits(books, Wanted("shop", "things", ("x", "changed")))
    assert not waits(books, Wanted(types=("x",)))
    consumer.begin(books, "extract", "one")
    assert waits(books)
    stamp(books, "extract")
    assert waits(books)
    assert waits(books, Wanted("shop", "things", ("x", "changed")))
    assert not waits(books, Wanted(object="others"))
    (placed,) = read(books, "extract", 0, 10).placed
    consumer.settle(books, "extract", "one", 1, [], [Parked(placed, 1, "x", timedelta(hours=1))])
    assert not waits(books)
    books.execute("update extract.parked set due_at = now()")
    assert waits(books)
    books.execute("update extract.parked set dead = true")
    assert not waits(books)


def test_waiting_behind_another(books: Connection) -> None:
    """What is due and is not the first of its key cannot be handled: nothing waits until the first is due."""
    fill(books, [an_event("a", 1), an_event("a", 2)])
    consumer.begin(books, "extract", "one")
    first, second = read(books, "extract", 0, 10).placed
    waiting = [Parked(first, 1, "x", timedelta(hours=1)), Parked(second, 1, "x", NONE)]
    consumer.settle(books, "extract", "one", 2, [], waiting)
    assert consumer.due(books, "extract", "one", 10) == []
    assert not waits(books)


def test_waiting_is_bounded(books: Connection) -> None:
    """Behind many events that it does not want, a consumer has to move on: or they could not be deleted."""
    unwanted = Wanted(object="others")
    consumer.begin(books, "extract", "one")
    for place in (False, True):
        fill(books, [an_event(f"{place}{n}") for n in range(10)], place=place)
    assert not waits(books, unwanted, 21)
    assert waits(books, unwanted, 20)
    consumer.settle(books, "extract", "one", 20, [], [])
    assert not waits(books, unwanted, 10)
    fill(books, [an_event(f"new{n}") for n in range(10)], place=False)
    assert waits(books, unwanted, 10)
    assert not waits(books, unwanted, 11)


def test_new_shows(books: Connection, connect: Connect) -> None:
    """How many events there were ever, and when the last of those that are due became so. Places and pruning change
    nothing in that; an event whose number is lower than others' does."""
    asked = consumer.waiting("extract", "one")
    assert books.execute(*asked).fetchone() == (False, 0, None)
    consumer.begin(books, "extract", "one")
    fill(books, [an_event("a"), an_event("b")])
    assert books.execute(*asked).fetchone() == (True, 2, None)
    parked = [Parked(each, 1, "x", NONE) for each in read(books, "extract", 0, 10).placed]
    consumer.settle(books, "extract", "one", 2, [], parked)
    last = books.execute("select max(due_at) from extract.parked").fetchone()
    assert last is not None
    assert books.execute(*asked).fetchone() == (True, 2, last[0])
    with connect() as slow:
        append(slow, "extract", [an_event("slow")])
        fill(books, [an_event("quick")], place=False)
        assert books.execute(*asked).fetchone() == (True, 3, last[0])
        stamp(books, "extract")
        consumer.settle(books, "extract", "one", 3, [Waiting(each.placed, 1, True) for each in parked], [])
        assert prune(books, "extract", NONE) == 3
        assert books.execute(*asked).fetchone() == (False, 3, None)
        slow.commit()
    assert books.execute(*asked).fetchone() == (True, 4, None)


COUNT = 20_000


@pytest.fixture(scope="module")
def large(databases: Databases) -> Iterator[Connection]:
    """20,000 events, 100 without a place; half of them parked by three consumers; 5,000 behind one that is due."""
    with databases.with_books() as address, connecting(address)() as conn:
        conn.autocommit = True
        for text in (
            "insert into extract.outbox (place, id, source, object, key, type, time, revision, data)"
            " select case when n < 19900 then n + 1 end, n, 'shop', 'things', 'k' || n % 500, 'changed', now(), n, '{}'"
            f" from generate_series(0, {COUNT - 1}) as n",
            "update extract.outbox_head set place = 19900",
            "insert into extract.consumer (name, place) select 'c' || n, 19000 from generate_series(1, 3) as n",
            "insert into extract.parked (consumer, place, source, object, key, tries, due_at, dead)"
            " select 'c' || n % 3 + 1, n + 1, 'shop', 'things',"
            " case when n > 10000 and n % 3 = 0 then 'many' else 'k' || n % 500 end, 1,"
            " case when n = 10002 or n < 20 then now() end, n > 20 and n < 10000"
            " from generate_series(0, 18000) as n",
            "analyze",
        ):
            conn.execute(text.encode())
        yield conn


KEYS = {"sources": ["shop"] * 100, "objects": ["things"] * 100, "keys": [f"k{number}" for number in range(100)]}
WANTED = {"source": None, "object": None, "types": None}


def explain(conn: Connection, file: str, name: str, values: dict[str, Any], options: str = "") -> dict[str, Any]:
    """The plan of a statement."""
    text = f"explain (format json {options}) {statement(file, name, 'extract').as_string()}"
    row = conn.execute(text.encode(), values, binary=True, prepare=True).fetchone()
    assert row is not None
    plan: dict[str, Any] = (row[0] if isinstance(row[0], list) else json.loads(row[0]))[0]["Plan"]
    return plan


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        ("outbox.sql", "unplaced", {}),
        ("outbox.sql", "stamp", {"limit": 100}),
        ("outbox.sql", "read", {"after": 19_000, "limit": 100, "looked": 100, **WANTED}),
        ("outbox.sql", "prune", {"limit": 100, "keep_for": NONE, "though_unread": False}),
        ("consumer.sql", "due", {"consumer": "c1", "limit": 100}),
        ("consumer.sql", "ahead", {"consumer": "c1"}),
        ("consumer.sql", "blocked", {"consumer": "c1", **KEYS}),
        ("consumer.sql", "unpark", {"consumer": "c1", "places": list(range(100))}),
        ("consumer.sql", "wake_keys", {"consumer": "c1", **KEYS}),
        ("consumer.sql", "waiting", {"consumer": "c1", "looked": 10_000, **WANTED}),
    ],
)
def test_by_index(large: Connection, file: str, name: str, values: dict[str, Any], generic: bool) -> None:
    """No scan of a whole table, but those with one row or a few."""
    with large.transaction(force_rollback=True):
        large.execute(f"set local plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
        found = list(scans(explain(large, file, name, values)))
    assert found
    assert [scan for scan in found if scan[0] == "Seq Scan" and scan[1] in ("outbox", "parked")] == []


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        ("outbox.sql", "stamp", {"limit": 50}),
        ("outbox.sql", "read", {"after": 5_000, "limit": 50, "looked": 50, **WANTED}),
        ("consumer.sql", "blocked", {"consumer": "c1", **KEYS}),
    ],
)
def test_touches_few_rows(large: Connection, file: str, name: str, values: dict[str, Any]) -> None:
    """Work grows with what is asked for, not with what waits: nothing is read to be left out or sorted away."""
    with large.transaction(force_rollback=True):
        plan = explain(large, file, name, values, ", analyze, timing off")
    told = [node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan) if "Scan" in node["Node Type"]]
    assert max(told) <= 400
    assert sum(node.get("Rows Removed by Filter", 0) * node["Actual Loops"] for node in nodes(plan)) <= 100


def test_head_of_many(large: Connection) -> None:
    """Of thousands behind the first of their key, as many come along as are asked for, in order."""
    found = consumer.due(large, "extract", "c1", 100)
    many = [each.placed.place for each in found if each.placed.place > 10_000]
    assert len(found) == 100
    assert many == sorted(many)
    assert many[0] == 10_003
