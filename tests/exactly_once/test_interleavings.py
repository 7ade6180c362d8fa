"""Two transactions, step by step: who comes second waits, judges anew, and tells only of what he has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_extract_provider.extract.store import apply
from airflow_extract_provider.extract.store.connection import Connection
from tests.exactly_once.oracle import expected, found
from tests.store.applier import Applier, a_record, a_tombstone, clock, in_thread, wait_until_blocked

Make = Callable[..., Applier]
_FIRST = [("shop.things.created", 60), ("over.50", 60), ("over.50.from.20", 60), ("shop.things.change", 60)]


@contextmanager
def meeting(one: Applier, two: Applier, conn: Connection, page: Any) -> Iterator[None]:
    """Within: when the first has done all but commit, the second applies a page that was asked for before that, and
    must wait."""
    publish, waiting, sent_at = apply._publish, [], clock(conn)

    def published(work: Any, given: Any, entries: Any) -> Any:
        done = publish(work, given, entries)
        if work.conn is one.conn:
            waiting.append(in_thread(lambda: two.apply(page, sent_at=sent_at)))
            wait_until_blocked(conn, two.pid)
        return done

    apply._publish = published
    try:
        yield
    finally:
        apply._publish = publish
    (second,) = waiting
    second.result(20)


@pytest.mark.parametrize("newer", [False, True])
def test_two_claim_one_key(watched: Make, conn: Connection, newer: bool) -> None:
    """Both have seen that the record is new. One has created it; the other finds it equal, or changes it (law: claim by
    insert)."""
    one, two = watched("one", version="updated_at"), watched("two", version="updated_at")
    with meeting(one, two, conn, [a_record("k", 70 if newer else 60, 2 if newer else 1)]):
        one.apply([a_record("k", 60, 1)])
    told = found(conn)
    assert told == expected(conn)
    assert told["k"][:4] == _FIRST
    assert [type for type, _ in told["k"][4:]] == (["value.changed", "grew", "shop.things.change"] if newer else [])


def test_two_cross_the_same_edge(watched: Make, conn: Connection) -> None:
    """Both saw 10; one stores 60, the other, an older look, finds that it was overtaken: one crossing."""
    one, two = watched("one", version="updated_at"), watched("two", version="updated_at")
    one.apply([a_record("k", 10, 1)])
    with meeting(one, two, conn, [a_record("k", 55, 2)]):
        one.apply([a_record("k", 60, 3)])
    told = found(conn)
    assert told == expected(conn)
    assert [value for type, value in told["k"] if type == "over.50"] == [60]


def test_a_change_meets_a_deletion(watched: Make, conn: Connection) -> None:
    """A tombstone is being stored when an older change arrives: the record stays deleted, and is read again."""
    one, two = watched("one", version="updated_at"), watched("two", version="updated_at")
    one.apply([a_record("k", 10, 1)])
    with meeting(one, two, conn, [a_record("k", 60, 2)]):
        one.apply([a_tombstone("k", 3)])
    told = found(conn)
    assert told == expected(conn)
    assert [type for type, _ in told["k"]][-2:] == ["shop.things.deleted", "shop.things.change"]
    assert set(two.noted()) == {"k"}
