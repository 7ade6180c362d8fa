"""What belongs together is stored together or not at all: the record, what is folded, what edges remember, events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import EventRepeatedError, FoldError, SinkUnavailableError
from airflow_extract_provider.extract.sinks.memory import MemorySink
from airflow_extract_provider.extract.store.connection import Connection
from tests.exactly_once.oracle import expected, found
from tests.store.applier import Applier, a_record

FOLD = {"table": "org", "where": {"customer": "id"}, "set": {"amount": "value"}, "insert": True}
Make = Callable[..., Applier]


@pytest.fixture
def org(conn: Connection) -> Connection:
    """A table of the user's, with a column that nobody folds into."""
    conn.execute("create table org (customer text primary key, amount int, note text not null default 'theirs')")
    conn.execute("insert into org values ('a', 1, 'mine'), ('b', 1, 'mine')")
    return conn


def all_of_it(conn: Connection) -> list[Any]:
    """Every row that a transaction of apply's could write."""
    tables = ("shop.things", "org", "extract.outbox", "extract.rule_state", "extract.refetch", "extract.ledger")
    return [conn.execute(f"select xmin, * from {table} order by 2, 3".encode()).fetchall() for table in tables]


def test_a_publish_that_fails(watched: Make, org: Connection) -> None:
    """The fold and its event are undone with the record; done again, both are there, and the other columns are kept."""
    one, sink = watched(fold=FOLD), MemorySink()
    one.apply([a_record("a", 10), a_record("b", 10)], sink=sink)
    before, sent = all_of_it(org), len(sink.events)
    sink.failures.append(SinkUnavailableError("away"))
    page = [a_record("a", 60), a_record("c", 70)]
    with pytest.raises(SinkUnavailableError):
        one.apply(page, sink=sink)
    assert all_of_it(org) == before
    assert len(sink.events) == sent
    one.apply(page, sink=sink)
    assert org.execute("select * from org order by 1").fetchall() == [
        ("a", 60, "mine"),
        ("b", 10, "mine"),
        ("c", 70, "theirs"),
    ]
    assert [each.type for each in sink.events if each.key == "a"].count("over.50") == 1
    assert org.execute("select count(*) from extract.outbox").fetchone() == (0,)


def test_a_fold_that_fails(watched: Make, org: Connection) -> None:
    """No event of a record goes out whose fold was refused."""
    one, sink = watched(fold=FOLD), MemorySink()
    one.apply([a_record("a", 10)], sink=sink)
    before, sent = all_of_it(org), len(sink.events)
    with pytest.raises(FoldError):
        one.apply([a_record("b", 20), a_record("a", "no number")], sink=sink)
    assert all_of_it(org) == before
    assert len(sink.events) == sent


def test_rows_deleted_by_hand(watched: Make, conn: Connection, org: Connection) -> None:
    """The copy would begin again at revision 1, with ids that the outbox holds: refused, with what to do."""
    one = watched(fold=FOLD)
    one.apply([a_record("a", 10), a_record("b", 10)])
    conn.execute("delete from shop.things where key = 'a'")
    before = all_of_it(org)
    with pytest.raises(EventRepeatedError, match="by hand") as caught:
        one.apply([a_record("a", 10), a_record("b", 11)])
    assert caught.value.key == "a"
    assert "reset" in caught.value.todo
    assert all_of_it(org) == before


def test_old_looks(watched: Make, conn: Connection) -> None:
    """What was overtaken is no change: an older version that comes late; an equal one, or one without a version, asked
    for before; a record behind its tombstone (law: newer wins)."""
    one = watched(version="updated_at")
    long_ago = one.conn.execute("select clock_timestamp()").fetchone()
    assert long_ago is not None
    one.apply([a_record("a", 10, 5), a_record("b", 10, 5), a_record("c", 10, 5)])
    one.apply([], gone=("c",))
    told = found(conn)
    one.apply([a_record("a", 60, 4), a_record("b", 60, 5), a_record("c", 60, 9)], sent_at=long_ago[0])
    assert found(conn) == told == expected(conn)
    assert set(one.noted()) == {"b", "c"}
