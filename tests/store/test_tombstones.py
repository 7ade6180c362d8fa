"""Deleted records, and records read by key (laws 8, 11, 15)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.refetch import Due, due
from tests.store.applier import Applier, a_record, a_tombstone, clock, in_thread, wait_until_blocked

MakeApplier = Callable[..., Applier]


@pytest.mark.parametrize("way", ["tombstone", "gone"])
def test_deleted_once(applier: MakeApplier, way: str) -> None:
    """A deletion keeps what was last known, raises the revision by one and sets the instants; told again, nothing is
    written."""
    one = applier("things")
    one.apply([a_record("k", "a", 1)])

    def delete() -> dict[str, int]:
        return one.apply([a_tombstone("k", 2)]) if way == "tombstone" else one.apply([], gone=("k",))

    assert delete() == {"deleted": 1}
    assert one.rows() == {"k": ("a", 2, True)}
    asked = "select version, applied_at - deleted_at < interval '1 s', xmin, xmax, ctid from shop.things"
    row = one.conn.execute(asked).fetchone()
    assert row is not None
    assert row[:2] == (a_record("k", "a", 2 if way == "tombstone" else 1).version, True)
    assert delete() == {"unchanged": 1}
    assert one.conn.execute(asked).fetchone() == row


@pytest.mark.parametrize("way", ["tombstone", "gone"])
def test_an_unknown_key_leaves_a_tombstone(applier: MakeApplier, way: str) -> None:
    """A page sent before the deletion cannot bring the record in afterwards: it is read again."""
    one = applier("things")
    sent = clock(one.conn)
    counts = one.apply([a_tombstone("k", 2)]) if way == "tombstone" else one.apply([], gone=("k",))
    assert counts == {"deleted": 1}
    data = one.conn.execute("select data ->> 'value', data = 'null' from shop.things").fetchone()
    assert data == (("deleted", False) if way == "tombstone" else (None, True))
    assert one.apply([a_record("k", "a", 1)], sent_at=sent) == {"refetch": 1}
    assert one.apply([a_record("k", "a", 1)]) == {"undeleted": 1}
    assert one.rows() == {"k": ("a", 2, False)}


def test_an_older_tombstone(applier: MakeApplier) -> None:
    """The record was made anew since: a page sent before that was applied is stale, one sent after is asked about."""
    one = applier("things")
    sent = clock(one.conn)
    one.apply([a_record("k", "b", 3)])
    assert one.apply([a_tombstone("k", 2)], sent_at=sent) == {"stale": 1}
    assert one.apply([a_tombstone("k", 2)]) == {"refetch": 1}
    assert one.rows() == {"k": ("b", 1, False)}


def test_a_later_tombstone_of_what_is_deleted(applier: MakeApplier) -> None:
    """After a 404 the list tells of the deletion too: its version is kept, no second change is counted."""
    one = applier("things")
    one.apply([a_record("k", "a", 1)])
    one.apply([], gone=("k",))
    for _ in range(2):
        assert one.apply([a_tombstone("k", 2)]) == {"unchanged": 1}
    assert one.rows() == {"k": ("a", 2, True)}
    assert one.conn.execute("select version from shop.things").fetchone() == (a_tombstone("k", 2).version,)


@pytest.mark.parametrize("falling", [True, False])
def test_record_and_tombstone_on_one_page(applier: MakeApplier, falling: bool) -> None:
    """The later version stands, however they stand on the page; with one version the record is deleted. That a record
    was made anew is only believed of a page sent after its deletion was applied: it is read again."""
    one = applier("things")
    for key, dies in (("old", 1), ("same", 2), ("new", 3)):
        pair = [a_record(key, "a", 2), a_tombstone(key, dies)]
        one.apply(list(reversed(pair)) if falling else pair)
    assert {key: deleted for key, (_, _, deleted) in one.rows().items()} == {"old": True, "same": True, "new": True}
    assert list(one.noted()) == ["old"]


def test_without_versions(applier: MakeApplier) -> None:
    """Pages are applied in the order of sending, tombstones too; a 404 asked for before the last change is no proof."""
    one = applier("plain")
    sent = clock(one.conn)
    one.apply([a_record("k", "a")])
    assert one.apply([], gone=("k",), sent_at=sent) == {"refetch": 1}
    assert one.apply([a_tombstone("k")], sent_at=sent) == {"deleted": 1}
    assert one.apply([a_record("k", "a")]) == {"undeleted": 1}
    assert one.rows() == {"k": ("a", 3, False)}


def test_the_api_went_back(applier: MakeApplier) -> None:
    """An older version: noted; read by key it is the last word, written and counted; its note is settled with it."""
    one = applier("things")
    one.apply([a_record("k", "b", 2)])
    one.apply([a_record("k", "a", 1)])
    found = due(one.conn, "extract", "shop", "things", 10)
    assert found == [Due("k", 1)]
    assert one.apply([a_record("k", "a", 1)], by_key=True, settled=tuple(found)) == {"regressed": 1}
    assert one.rows() == {"k": ("a", 2, False)}
    assert one.noted() == {}


def test_read_by_key_too_early(applier: MakeApplier) -> None:
    """A read by key sent before the row was applied decides nothing: the note stays, with a higher number."""
    one = applier("things")
    sent = clock(one.conn)
    one.apply([a_record("k", "b", 2)])
    one.apply([a_record("k", "a", 1)])
    (found,) = due(one.conn, "extract", "shop", "things", 10)
    for number in (2, 3):
        again = Due("k", number - 1)
        assert one.apply([a_record("k", "a", 1)], by_key=True, settled=(again,), sent_at=sent) == {"refetch": 1}
        assert one.noted() == {"k": number}
    assert one.apply([], gone=("k",), settled=(found,)) == {"deleted": 1}
    assert one.noted() == {"k": 3}, "noted again meanwhile: an older claim fulfils nothing"


def test_settled_with_the_rest_or_not_at_all(applier: MakeApplier) -> None:
    """The note goes in the transaction that brings the record: if that fails, it stays."""
    one = applier("things")
    one.apply([a_record("k", "b", 2)])
    one.apply([a_record("k", "a", 1)])
    with one.conn.transaction(force_rollback=True):
        one.apply([a_record("k", "b", 2)], by_key=True, settled=(Due("k", 1),))
        assert one.noted() == {}
    assert one.noted() == {"k": 1}


def test_oldest_notes_first(applier: MakeApplier, conn: Connection) -> None:
    """Keys are due in the order in which they were noted, as many as asked for, those of other objects left out."""
    one, other = applier("things"), applier("plain")
    for key in ("c", "a", "b"):
        one.apply([a_record(key, "b", 2)])
        one.apply([a_record(key, "a", 1)])
    other.apply([], gone=("z",))
    assert [each.key for each in due(conn, "extract", "shop", "things", 2)] == ["c", "a"]
    one.apply([a_record("c", "a", 1)])
    assert due(conn, "extract", "shop", "things", 9) == [Due("a", 1), Due("b", 1), Due("c", 2)]


def test_noted_again_while_being_settled(applier: MakeApplier, conn: Connection) -> None:
    """Whoever settles waits for who notes: the raised number is then seen, and the note stays."""
    one = applier("things")
    one.apply([a_record("k", "b", 2)], [a_record("l", "b", 2)])
    one.apply([a_record("k", "a", 1), a_record("l", "a", 1)])
    claimed = tuple(due(conn, "extract", "shop", "things", 10))
    with conn.transaction():
        conn.execute("update extract.refetch set number = number + 1 where key = 'k'")
        waiting = in_thread(
            lambda: one.apply([a_record("k", "a", 1), a_record("l", "a", 1)], by_key=True, settled=claimed)
        )
        wait_until_blocked(conn, one.pid)
    assert waiting.result(10) == {"regressed": 2}
    assert one.noted() == {"k": 2}


@pytest.mark.parametrize("bad", ["deleted", "live"])
def test_unchanged_beside_tombstones(applier: MakeApplier, bad: str) -> None:
    """Tombstones read again take no lock: a page of them is as cheap as one of unchanged records."""
    one, two = applier("things", "one"), applier("things", "two")
    page: list[Record] = [a_tombstone("k", 1)] if bad == "deleted" else [a_record("k", "a", 1)]
    one.apply(page)
    with one.conn.transaction():
        one.conn.execute("select from shop.things for update")
        assert in_thread(lambda: two.apply(page)).result(10) == {"unchanged": 1}
