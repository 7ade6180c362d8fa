"""What is old and needed no more leaves the inbox; what waits never does."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from psycopg import sql

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.inbox import Pruned, prune, put
from tests.store.applier import in_thread, wait_until_blocked

MONTH = timedelta(days=30)
OLD = timedelta(days=31)
"""The age of what is to go."""


def fill(conn: Connection, count: int, age: timedelta = OLD, *, done: bool = True, source: str = "shop") -> list[int]:
    """So many deliveries of that age; returns their places."""
    text = (
        "insert into extract.inbox (source, endpoint, dedupe, body, received_at, done_at)"
        " select %(source)s, 'main', gen_random_uuid(), 'x', now() - %(age)s,"
        " case when %(done)s then now() - %(age)s + n * interval '1 microsecond' end"
        " from generate_series(1, %(count)s) as n returning place"
    )
    found = conn.execute(text, {"source": source, "age": age, "done": done, "count": count})
    return [row[0] for row in found]


def park(conn: Connection, place: int, *, dead: bool = False) -> None:
    """A message of a delivery is parked."""
    conn.execute(
        "insert into extract.inbox_parked (place, nth, source, endpoint, dead) values (%s, 1, 'shop', 'main', %s)",
        [place, dead],
    )


def places(conn: Connection) -> list[int]:
    """What is left."""
    return [row[0] for row in conn.execute("select place from extract.inbox order by place")]


def test_what_is_done_and_old_goes(conn: Connection) -> None:
    """Neither what waits, however old, nor what is young, nor what has a message that is parked or dead."""
    fill(conn, 3)
    waits = fill(conn, 2, timedelta(days=400), done=False)
    young = fill(conn, 2, timedelta(days=29))
    parked, dead = fill(conn, 2)
    park(conn, parked)
    park(conn, dead, dead=True)
    assert prune(conn, "extract", MONTH).deliveries == 3
    assert places(conn) == [*waits, *young, parked, dead]
    assert prune(conn, "extract", MONTH) == Pruned(0, 0, 0, 0)
    conn.execute("delete from extract.inbox_parked")
    assert prune(conn, "extract", MONTH).deliveries == 2


def test_the_rest_that_is_old(conn: Connection) -> None:
    """Ids and counts as deliveries; notes of what brought a change by an age of their own, of each object."""
    conn.execute(
        "insert into extract.inbox_seen (source, endpoint, id, seen_at) select 'shop', 'main', n::text,"
        " now() - make_interval(days => n) from generate_series(1, 60) as n;"
        "insert into extract.inbox_count (source, endpoint, day, kind) select 'shop', 'main',"
        " (now() at time zone 'UTC')::date - n, kind from generate_series(0, 60) as n,"
        " unnest('{received,forged}'::text[]) as kind;"
        "insert into extract.brought (source, object, key, revision, kind, by, at) select 'shop', object, 'k', n,"
        " 'updated', 'poll', now() - make_interval(days => n) from generate_series(1, 60) as n,"
        " unnest('{things,people}'::text[]) as object"
    )
    gone = prune(conn, "extract", MONTH, brought_for=timedelta(days=50))
    assert gone == Pruned(0, 31, 60, 22)
    assert conn.execute("select count(*), max(id::int) from extract.inbox_seen").fetchone() == (29, 29)
    left = conn.execute("select count(*), (now() at time zone 'UTC')::date - min(day) from extract.inbox_count")
    assert left.fetchone() == (62, 30)
    each = conn.execute("select object, max(revision) from extract.brought group by object order by object")
    assert each.fetchall() == [("people", 49), ("things", 49)]
    assert prune(conn, "extract", MONTH).brought == 0


@pytest.mark.parametrize("limit", [1, 999, 1000, 1001, 2500])
def test_no_more_than_asked(conn: Connection, limit: int) -> None:
    """In portions of a thousand; what dead messages keep is passed over, not counted."""
    for place in fill(conn, 1200):
        park(conn, place, dead=True)
    fill(conn, 2400)
    assert prune(conn, "extract", MONTH, limit).deliveries == min(limit, 2400)
    assert len(places(conn)) == 3600 - min(limit, 2400)


def test_many_that_were_done_at_once(conn: Connection) -> None:
    """A whole portion of one instant is passed over and not taken for the end."""
    for place in fill(conn, 1500):
        park(conn, place)
    conn.execute("update extract.inbox set done_at = now() - interval '31 days'")
    fill(conn, 5)
    conn.execute("update extract.inbox set done_at = now() - interval '31 days'")
    assert prune(conn, "extract", MONTH).deliveries == 5


def test_by_index(conn: Connection) -> None:
    """However large the inbox is, a portion reads what it deletes, and not the rest."""
    fill(conn, 20_000)
    fill(conn, 20_000, timedelta(days=1))
    conn.execute(
        "insert into extract.inbox_seen (source, endpoint, id, seen_at) select 'shop', 'main', n::text,"
        " now() - make_interval(mins => n) from generate_series(1, 50000) as n;"
        "insert into extract.brought (source, object, key, revision, kind, by, at) select 'shop', 'things', 'k', n,"
        " 'updated', 'poll', now() - make_interval(mins => 3 * n) from generate_series(1, 50000) as n;"
        "analyze extract.inbox, extract.inbox_seen, extract.brought, extract.inbox_parked"
    )
    scans = (
        "select relname, seq_scan from pg_stat_xact_user_tables"
        " where relname in ('inbox', 'inbox_seen', 'brought') order by relname"
    )
    with conn.transaction():
        prune(conn, "extract", MONTH, 1_000, brought_for=MONTH)
        assert conn.execute(scans).fetchall() == [("brought", 0), ("inbox", 0), ("inbox_seen", 0)]


def test_what_is_pruned_may_come_again(conn: Connection) -> None:
    """Its delivery id is forgotten with it."""
    same = [Incoming("shop", "main", b"x", dedupe=uuid.uuid4())]
    assert put(conn, "extract", same) == [True]
    conn.execute("update extract.inbox set done_at = now() - interval '31 days'")
    assert put(conn, "extract", same) == [False]
    assert prune(conn, "extract", MONTH).deliveries == 1
    assert put(conn, "extract", same) == [True]


def test_two_at_once_and_a_receiver(connect: Connect, conn: Connection) -> None:
    """Beside another pruning that holds its portion: each waits for its turn, and nothing is deleted twice. Who stores
    webhooks meanwhile waits for nobody."""
    fill(conn, 1500)
    with connect() as other, connect() as looker, connect() as second:
        looker.autocommit = second.autocommit = True
        other.execute("select")  # a transaction around it, which keeps its rows locked
        gone = prune(other, "extract", MONTH, 1000).deliveries
        waiting = in_thread(lambda: prune(second, "extract", MONTH).deliveries)
        wait_until_blocked(looker, second.info.backend_pid)
        fill(conn, 1, done=False)
        other.commit()
        assert gone + waiting.result(20) == 1500
    assert len(places(conn)) == 1


def test_short_transactions(connect: Connect, conn: Connection) -> None:
    """Each portion is committed by itself: what was deleted stays so, whatever stops the next one."""
    fill(conn, 2100)
    (last,) = conn.execute("select max(place) from extract.inbox").fetchone() or (0,)
    with connect() as holder, connect() as pruner:
        pruner.autocommit = True
        pruner.execute("set lock_timeout = '100ms'")
        holder.execute("select from extract.inbox where place = %s for update", [last])
        with pytest.raises(Exception, match=re.escape("lock timeout")):
            prune(pruner, "extract", MONTH)
    assert len(places(conn)) == 100


def test_another_schema(conn: Connection) -> None:
    """The books' name is obeyed."""
    conn.execute(sql.SQL("alter schema extract rename to {}").format(sql.Identifier("Books of mine")))
    assert prune(conn, "Books of mine", MONTH) == Pruned(0, 0, 0, 0)
