"""The statements that claim webhooks and parked messages read what they return, however old the statistics are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from airflow_extract_provider.extract.store.claims import Claims, Due, waiting
from airflow_extract_provider.extract.store.connection import Connect, Connection

COUNT = 20_000
KEYS = 2_000
GIVEN = [("things", f"k{number}") for number in range(100)]
MOST = 2_000
"""Buffers of 8 kB that a statement for a few rows may read of so many; one look at all of them takes more."""


@pytest.fixture
def claims(conn: Connection) -> Claims:
    """The inbox of one address."""
    return Claims(conn, "extract", "shop", "main")


def old_statistics(conn: Connection, how: str) -> None:
    """As the planner finds them when a crowd has just come."""
    conn.execute("alter table extract.inbox_parked set (autovacuum_enabled = false)")
    if how == "all gone":  # pages, but no rows: somebody's old snapshot kept them
        crowd(conn, "null", 2_000)
        conn.execute("delete from extract.inbox_parked; analyze extract.inbox_parked")
    elif how == "empty":
        conn.execute("vacuum analyze extract.inbox_parked")


def crowd(conn: Connection, due: str, count: int = COUNT, endpoint: str = "main") -> None:
    """So many messages of a tenth as many keys are parked at once; ``due``: when the one of number `n` is."""
    conn.execute(
        "insert into extract.inbox_parked (place, nth, source, endpoint, object, key, due_at)"
        f" select n, 1, 'shop', '{endpoint}', 'things', 'k' || n % {KEYS}, {due} from generate_series(1, {count}) as n"
    )


def buffers(conn: Connection, work: Callable[[], object]) -> int:
    """How many blocks of the parked messages and their indexes are read, from memory or not."""
    text = (
        "select sum(pg_stat_get_xact_blocks_fetched(indexrelid)) + pg_stat_get_xact_blocks_fetched(indrelid)"
        " from pg_index where indrelid = 'extract.inbox_parked'::regclass group by indrelid"
    )
    with conn.transaction(force_rollback=True):
        # Counts of transactions before may be among them still.
        (before,), _, (after,) = (conn.execute(text).fetchone() or (0,), work(), conn.execute(text).fetchone() or (0,))
    return int(after) - int(before)


def ends(each: Sequence[tuple[str, str]]) -> list[Due]:
    """The first messages of keys."""
    return [Due(int(key[1:]) or KEYS, 1, 0, object, key) for object, key in each]


@pytest.mark.parametrize("how", ["never", "empty", "all gone", "fresh"])
@pytest.mark.parametrize("name", ["due", "blocked", "wake_keys", "unpark", "waiting"])
def test_reads_what_it_returns(conn: Connection, claims: Claims, how: str, name: str) -> None:
    """A crowd of parked messages is not read for a few, whatever the planner believes there are."""
    old_statistics(conn, how)
    crowd(conn, "null" if name == "wake_keys" else f"now() - make_interval(secs => n % {KEYS})")
    if how == "fresh":
        conn.execute("vacuum analyze extract.inbox_parked")
    work: dict[str, Callable[[], Any]] = {
        "due": lambda: claims.due(100, 1 << 20),
        "blocked": lambda: claims.blocked(GIVEN),
        "wake_keys": lambda: claims.wake_keys(GIVEN),
        "unpark": lambda: claims.unpark(ends(GIVEN)),
        "waiting": lambda: waiting(conn, "extract", "shop", ["main"]),
    }
    most = 20_000 if name == "due" else MOST + 3_000
    assert buffers(conn, work[name]) < most


@pytest.mark.parametrize("how", ["never", "all gone"])
def test_wake_reads_each_once(conn: Connection, claims: Claims, how: str) -> None:
    """It looks at all that wait, not at all of them for each."""
    old_statistics(conn, how)
    crowd(conn, "null")
    claims.wake()
    assert conn.execute("select count(*) from extract.inbox_parked where due_at is not null").fetchone() == (KEYS,)
    assert conn.execute("select max(place) from extract.inbox_parked where due_at is not null").fetchone() == (KEYS,)


@pytest.mark.parametrize("endpoints", [["main"], ["main", "second"], None])
def test_the_newest_that_is_due(conn: Connection, endpoints: list[str] | None) -> None:
    """Of the first of their keys, at the addresses that are asked for, and without a look at all that are due."""
    conn.execute("alter table extract.inbox_parked set (autovacuum_enabled = false)")
    conn.execute(
        "insert into extract.inbox_parked (place, nth, source, endpoint, object, key, due_at) values"
        " (1, 1, 'shop', 'main', 'things', 'a', '2026-01-01Z'), (2, 1, 'shop', 'main', 'things', 'a', '2026-01-03Z'),"
        " (3, 1, 'shop', 'main', 'things', 'b', '2026-01-02Z'), (4, 1, 'shop', 'main', 'things', 'c', '9999-01-01Z'),"
        " (5, 1, 'shop', 'main', 'things', 'd', null), (6, 1, 'shop', 'other', 'things', 'b', '2026-01-04Z'),"
        " (7, 1, 'mail', 'main', 'things', 'e', '2026-01-05Z')"
    )
    found, (place, at) = waiting(conn, "extract", "shop", endpoints)
    assert (found, place) == (True, 0)
    assert at is not None
    assert at.day == (2 if endpoints else 4)
    assert waiting(conn, "extract", "shop", ["second"]) == waiting(conn, "extract", "none") == (False, (0, None))


def test_after_the_last_place(conn: Connection, claims: Claims) -> None:
    """What stands before it is left until nothing is behind; in order never."""
    conn.execute(
        "insert into extract.inbox (source, endpoint, body) select 'shop', case n when 3 then 'a' when 4 then 'z' else"
        " 'main' end, '' from generate_series(1, 6) as n"
    )

    def claimed(limit: int, *, in_order: bool = False, after: int = 0) -> list[int]:
        with conn.transaction():
            return [row[0] for row in claims.claim(limit, 1 << 20, in_order=in_order, after=after)]

    assert claimed(9) == claimed(9, in_order=True) == [1, 2, 5, 6]
    assert claimed(9, after=2) == [5, 6]
    assert claimed(1, after=2) == [5]
    assert claimed(9, after=6) == [1, 2, 5, 6]
    assert claimed(9, in_order=True, after=2) == [1, 2, 5, 6]


def test_not_past_what_was_done(conn: Connection, claims: Claims, connect: Connect) -> None:
    """While somebody holds an old snapshot, what was done is not read again for each claim."""
    conn.execute(
        f"insert into extract.inbox (source, endpoint, body) select 'shop', 'main', '' from generate_series(1, {COUNT})"
    )
    with connect() as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from extract.inbox limit 1")
        done = COUNT - 100
        conn.execute("update extract.inbox set done_at = now() where place <= %s", [done])

        def seconds(after: int) -> float:
            took = []
            for _ in range(5):
                began = time.monotonic()
                with conn.transaction():
                    assert len(claims.claim(10, 1 << 20, in_order=False, after=after)) == 10
                took.append(time.monotonic() - began)
            return min(took)

        assert seconds(done) < seconds(0) / 2
        old.rollback()
