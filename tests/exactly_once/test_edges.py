"""A value that crosses a threshold up, down and up: within one page, over pages, over a crash, by versions out of
order, and from A to B and back without versions. Each crossing is one event, by the same independent oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store.connection import Connection
from tests.exactly_once.oracle import RULES, expected, found
from tests.store.applier import Applier, a_record, a_tombstone, clock

Make = Callable[..., Applier]


def told(conn: Connection, type: str) -> list[Any]:
    """The values of the events of a type, after comparing all events with the oracle's."""
    events = found(conn)
    assert events == expected(conn)
    return [value for _, each in sorted(events.items()) for name, value in each if name == type]


def test_rounds_of_one_page(watched: Make, conn: Connection) -> None:
    """One page holds a record in five versions, on both sides of the threshold, in any order."""
    one = watched(version="updated_at")
    one.apply([a_record("k", 10, 1)])
    one.apply([a_record("k", value, version) for value, version in ((70, 6), (60, 2), (15, 3), (80, 4), (40, 5))])
    assert told(conn, "over.50") == [60, 80, 70]
    assert told(conn, "over.50.from.20") == [60, 80]
    assert one.table()["k"] == (70, 6)


def test_over_pages_of_one_transaction(watched: Make, conn: Connection) -> None:
    """A, B, A, B without versions, each on a page of its own, all in one transaction; and again in several."""
    one = watched()
    one.apply([a_record("k", 10)], [a_record("k", 60)], [a_record("k", 10)], [a_record("k", 60)])
    assert told(conn, "over.50") == [60, 60]
    for value in (10, 60, 10, 60, 60):
        one.apply([a_record("k", value)])
    assert told(conn, "over.50") == [60] * 4
    assert told(conn, "over.50.from.20") == [60] * 4


def test_versions_out_of_order(watched: Make, conn: Connection) -> None:
    """An older version that comes late was overtaken: it never was a state of the copy, and crosses nothing."""
    one = watched(version="updated_at")
    long_ago = clock(one.conn)
    one.apply([a_record("k", 10, 5)])
    one.apply([a_record("k", 60, 3)], sent_at=long_ago)
    one.apply([a_record("k", 20, 9)])
    one.apply([a_record("k", 90, 7)], sent_at=long_ago)
    assert told(conn, "over.50") == []
    one.apply([a_record("k", 60, 10)])
    assert told(conn, "over.50") == [60]


def test_over_a_crash(watched: Make, conn: Connection) -> None:
    """A transaction that ends before its commit has crossed nothing; done again, it crosses once."""
    one = watched()
    one.apply([a_record("k", 10)])
    extend = one.ledger.extend

    def dying(*_: Any) -> Any:
        raise psycopg.OperationalError("as if killed")

    object.__setattr__(one, "ledger", _Dying(one.ledger, dying))
    with pytest.raises(psycopg.OperationalError):
        one.apply([a_record("k", 60)])
    object.__setattr__(one, "ledger", _Dying(one.ledger, extend))
    one.apply([a_record("k", 60)])
    one.apply([a_record("k", 60)])
    assert told(conn, "over.50") == [60]
    assert told(conn, "over.50.from.20") == [60]


class _Dying:
    """A ledger that is added to in another way."""

    def __init__(self, ledger: Any, extend: Callable[..., Any]) -> None:
        self._ledger, self.extend = ledger, extend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


def test_a_rule_that_was_away(watched: Make, conn: Connection) -> None:
    """What an edge remembers of a time before it was taken out, or had another threshold, counts only while the record
    has not come back since."""
    others: list[Any] = [rule for rule in RULES if "over.50.from.20" not in str(rule)]
    higher = [{"rising_edge": {"value": "value", "above": 80, "rearm_below": 20, "name": "over.50.from.20"}}]
    for number, meanwhile in enumerate((others, others + higher)):
        key = f"k{number}"
        watched(f"one {key}").apply([a_record(key, 60)])
        watched(f"two {key}", events=meanwhile).apply([a_record(key, 10)])
        watched(f"three {key}").apply([a_record(key, 70)])
        assert told(conn, "over.50.from.20").count(70) == number + 1


def test_gone_and_back(watched: Make, conn: Connection) -> None:
    """A deletion crosses nothing; what comes back is compared with what was last known."""
    one = watched()
    one.apply([a_record("k", 60)])
    one.apply([], gone=("k", "never seen"))
    one.apply([a_record("k", 70)])
    assert told(conn, "over.50") == [60]
    one.apply([], gone=("k",))
    one.apply([a_record("k", 5), a_record("never seen", 55)])
    one.apply([a_record("k", 51)])
    assert told(conn, "over.50") == [60, 51, 55]
    counted = Counter(type for each in found(conn).values() for type, _ in each)
    assert counted["shop.things.created"] == 2
    assert counted["shop.things.undeleted"] == 2


VALUES = st.sampled_from([0, 5, 9, 10, 11, 15, 19, 20, 21, 40, 50, 51, 60, 99, None])
COPIES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8), VALUES, st.booleans()), max_size=6)


@given(pages=st.lists(st.tuples(COPIES, st.booleans()), max_size=8), versions=st.booleans(), at_once=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes(
    watched: Make, conn: Connection, pages: Sequence[tuple[Any, bool]], versions: bool, at_once: bool
) -> None:
    """Pages of records in any order of versions, tombstones, pages asked for long ago: the events are the true ones."""
    conn.execute("truncate shop.things, public.watched, extract.outbox, extract.rule_state, extract.refetch")
    one = watched(f"w{pages!r}{versions}{at_once}"[:200], **({"version": "updated_at"} if versions else {}))
    long_ago, batch = clock(one.conn), []
    for copies, late in pages:
        batch.append(a_page(copies, versions))
        if not at_once:
            send(one, batch, long_ago if late else None, versions)
            batch = []
    send(one, batch, None, versions)
    one.conn.close()
    assert found(conn) == expected(conn)


def send(one: Applier, batch: list[list[Record]], sent_at: datetime | None, versions: bool) -> None:
    """Without versions only what is read by key may have been asked for long ago."""
    if batch:
        one.apply(*batch, sent_at=sent_at, by_key=sent_at is not None and not versions)


def a_page(copies: Any, versions: bool) -> list[Record]:
    """Records; without versions each key once."""
    page: dict[Any, Record] = {}
    for key, version, value, gone in copies:
        told = version if versions else None
        page[key, told] = a_tombstone(key, told) if gone and versions else a_record(key, value, told)
    return list(page.values())
