"""Apply: newer wins under the row lock, claims by insert, locks in key order, nothing for the unchanged (laws 8, 9)."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from airflow_extract_provider.extract.cursor import AfterKey, Position
from airflow_extract_provider.extract.errors import BadRecordError, DoubledKeyError, FencedError
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store.apply import Batch, apply
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.fence import acquire
from airflow_extract_provider.extract.store.judge import Coming, Stored, Verdict, judge
from airflow_extract_provider.extract.store.ledger import Entry
from tests.store.applier import EPOCH, Applier, a_record, a_tombstone, clock, in_thread, wait_until_blocked

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
MakeApplier = Callable[..., Applier]
BEFORE, AFTER = -1, 1
"""When the page was sent, seen from the moment at which the stored row was applied."""


def at(minutes: float | None) -> datetime | None:
    return None if minutes is None else EPOCH + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("coming", "stored", "same", "sent", "verdict"),
    [
        # coming version, stored version, same bytes, page sent, verdict
        (None, None, True, BEFORE, "unchanged"),
        (None, None, True, AFTER, "unchanged"),
        (None, None, False, BEFORE, "write"),
        (None, None, False, AFTER, "write"),
        (None, 1, False, BEFORE, "refetch"),
        (None, 1, False, AFTER, "write"),
        (1, None, False, BEFORE, "refetch"),
        (1, None, False, AFTER, "write"),
        (2, 1, False, BEFORE, "write"),
        (2, 1, False, AFTER, "write"),
        (1, 1, True, BEFORE, "unchanged"),
        (1, 1, True, AFTER, "unchanged"),
        (1, 1, False, BEFORE, "refetch"),
        (1, 1, False, AFTER, "write"),
        (1, 2, False, BEFORE, "stale"),
        (1, 2, False, AFTER, "refetch"),
        # the instant at which it was applied is not after it
        (1, 1, False, 0, "refetch"),
        (1, 2, False, 0, "stale"),
    ],
)
def test_newer_wins(coming: int | None, stored: int | None, same: bool, sent: int, verdict: Verdict) -> None:
    """The later version wins; without one, what was sent after the row was applied; else it is read again."""
    raw_hash = b"a" if same else b"b"
    record = Coming("k", b"{}", raw_hash, at(coming), EPOCH + timedelta(seconds=sent))
    assert judge(record, Stored(at(stored), b"a", None, EPOCH)) == verdict


@pytest.mark.parametrize("versions", [(None, None), (2, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("sent", "verdict"), [(BEFORE, "refetch"), (0, "refetch"), (AFTER, "undelete")])
def test_a_tombstone_falls_only_to_a_later_look(
    versions: tuple[int | None, int | None], same: bool, sent: int, verdict: Verdict
) -> None:
    """Only a page sent after the deletion was applied brings a record back, whatever its version and bytes."""
    coming, stored = versions
    record = Coming("k", b"{}", b"a" if same else b"b", at(coming), EPOCH + timedelta(seconds=sent))
    assert judge(record, Stored(at(stored), b"a", EPOCH, EPOCH)) == verdict


@pytest.mark.parametrize(
    ("coming", "stored", "sent", "verdict"),
    [
        (None, None, BEFORE, "refetch"),
        (None, None, 0, "refetch"),
        (None, None, AFTER, "write"),
        (None, 1, BEFORE, "refetch"),
        (None, 1, AFTER, "write"),
        (2, 1, BEFORE, "write"),
        (1, 1, BEFORE, "refetch"),
        (1, 1, AFTER, "write"),
        (1, 2, BEFORE, "refetch"),
        (1, 2, 0, "refetch"),
        (1, 2, AFTER, "regress"),
    ],
)
def test_read_by_key(coming: int | None, stored: int | None, sent: int, verdict: Verdict) -> None:
    """Sent after the row was applied, it is the last word, be its version older; sent before, it decides nothing."""
    record = Coming("k", b"{}", b"b", at(coming), EPOCH + timedelta(seconds=sent), by_key=True)
    assert judge(record, Stored(at(stored), b"a", None, EPOCH)) == verdict


@pytest.mark.parametrize(
    ("coming", "stored", "by_key", "sent", "verdict"),
    [
        # a tombstone in a list, with a version
        (2, 1, False, BEFORE, "delete"),
        (1, 1, False, BEFORE, "delete"),
        (1, 2, False, BEFORE, "stale"),
        (1, 2, False, AFTER, "refetch"),
        (1, None, False, BEFORE, "refetch"),
        (1, None, False, AFTER, "delete"),
        # without versions pages are applied in the order in which they were sent
        (None, None, False, BEFORE, "delete"),
        # asked for by key: 404, or a tombstone
        (None, None, True, BEFORE, "refetch"),
        (None, None, True, 0, "refetch"),
        (None, None, True, AFTER, "delete"),
        (None, 5, True, BEFORE, "refetch"),
        (None, 5, True, AFTER, "delete"),
        (1, 2, True, BEFORE, "refetch"),
        (1, 2, True, AFTER, "delete"),
    ],
)
def test_deletion(coming: int | None, stored: int | None, by_key: bool, sent: int, verdict: Verdict) -> None:
    """A tombstone is as good as its version or, without one, as late as it was sent."""
    record = Coming("k", b"{}", b"b", at(coming), EPOCH + timedelta(seconds=sent), deleted=True, by_key=by_key)
    assert judge(record, Stored(at(stored), b"a", None, EPOCH)) == verdict


@pytest.mark.parametrize("sent", [BEFORE, 0, AFTER])
@pytest.mark.parametrize(
    ("coming", "stored", "same", "verdict"),
    [
        (None, None, True, "unchanged"),
        (None, None, False, "unchanged"),
        (None, 1, False, "unchanged"),
        (1, 1, True, "unchanged"),
        (1, 2, False, "unchanged"),
        (1, 1, False, "retold"),
        (2, 1, False, "retold"),
        (1, None, False, "retold"),
    ],
)
def test_deleted_twice(coming: int | None, stored: int | None, same: bool, sent: int, verdict: Verdict) -> None:
    """What is deleted already is not deleted again; a later tombstone's version is kept."""
    record = Coming(
        "k", b"{}", b"a" if same else b"b", at(coming), EPOCH + timedelta(seconds=sent), deleted=True, by_key=not coming
    )
    assert judge(record, Stored(at(stored), b"a", EPOCH, EPOCH)) == verdict


def test_instants_are_compared_not_texts() -> None:
    """Half past eleven in Berlin is earlier than eleven in London."""
    berlin, london = datetime.fromisoformat("2026-01-01T11:30:00+01:00"), datetime.fromisoformat("2026-01-01T11:00:00Z")
    assert judge(Coming("k", b"", b"b", berlin, EPOCH), Stored(london, b"a", None, EPOCH)) == "stale"


@pytest.mark.parametrize(
    ("first", "second", "value", "counts", "noted"),
    [
        (a_record("k", "a", 1), a_record("k", "b", 2), ("b", 2), {"updated": 1}, []),
        (a_record("k", "b", 2), a_record("k", "a", 1), ("b", 1), {"stale": 1}, []),
        (a_record("k", "a", 1), a_record("k", "a", 1), ("a", 1), {"unchanged": 1}, []),
        (a_record("k", "a", 1), a_record("k", "b", 1), ("a", 1), {"refetch": 1}, ["k"]),
    ],
)
def test_lost_claim(
    applier: MakeApplier,
    first: Record,
    second: Record,
    value: tuple[Any, int],
    counts: dict[str, int],
    noted: list[str],
) -> None:
    """Who comes second to insert a record waits for the first one's commit, then compares with it under the lock."""
    one, two = applier("things", "one"), applier("things", "two")
    sent = clock(one.conn)
    with one.conn.transaction():
        one.apply([first])
        waiting = in_thread(lambda: two.apply([second], sent_at=sent))
        wait_until_blocked(one.conn, two.pid)
    assert waiting.result(10) == counts
    assert one.table() == {"k": value}
    assert list(one.noted()) == noted


def test_claim_of_a_rolled_back_insert(applier: MakeApplier) -> None:
    """When the first one rolls back, the second one's claim holds: nothing is lost."""
    one, two = applier("things", "one"), applier("things", "two")
    with one.conn.transaction(force_rollback=True):
        one.apply([a_record("k", "a", 2)])
        waiting = in_thread(lambda: two.apply([a_record("k", "b", 1)]))
        wait_until_blocked(one.conn, two.pid)
    assert waiting.result(10) == {"created": 1}
    assert two.table() == {"k": ("b", 1)}


@pytest.mark.parametrize("together", [True, False])
def test_there_and_back_again(applier: MakeApplier, together: bool) -> None:
    """A, B, A: without versions each look counts, in the order of sending, in one transaction or in three."""
    one = applier("plain")
    pages = [[a_record("k", value)] for value in "aba"]
    if together:
        assert one.apply(*pages) == {"created": 1, "updated": 2}
    else:
        for page in pages:
            one.apply(page)
    assert one.table() == {"k": ("a", 3)}


def test_an_older_version_does_not_come_back(applier: MakeApplier) -> None:
    """Version 1, 2, 1 on pages sent before: the third is stale, counted and not written."""
    one = applier("things")
    sent = clock(one.conn)
    for value, version in (("a", 1), ("b", 2), ("a", 1)):
        applied = one.apply([a_record("k", value, version)], sent_at=sent)
    assert applied == {"stale": 1}
    assert one.table() == {"k": ("b", 2)}
    assert one.noted() == {}


def test_an_api_that_goes_back_is_asked_again(applier: MakeApplier) -> None:
    """An older version on a page sent after the newer one was applied is noted, each time with a higher number."""
    one = applier("things")
    one.apply([a_record("k", "b", 2)])
    for number in (1, 2):
        assert one.apply([a_record("k", "a", 1)]) == {"refetch": 1}
        assert one.noted() == {"k": number}
    assert one.table() == {"k": ("b", 1)}


@pytest.mark.parametrize(("later", "counts"), [(True, {"updated": 1}), (False, {"refetch": 1})])
def test_equal_version_with_other_bytes(applier: MakeApplier, later: bool, counts: dict[str, int]) -> None:
    """One version with two contents: written if its page was sent after the row was applied, else read again."""
    one = applier("things")
    sent = clock(one.conn)
    one.apply([a_record("k", "a", 1)])
    applied = one.apply([a_record("k", "b", 1)], sent_at=None if later else sent)
    assert applied == counts
    assert one.table() == {"k": ("b", 2) if later else ("a", 1)}
    assert list(one.noted()) == ([] if later else ["k"])


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_key_twice_on_a_page_with_versions(applier: MakeApplier, falling: bool, stored: bool) -> None:
    """Two versions of a record on one page are applied one after the other, the older first, however they stand."""
    one = applier("things")
    if stored:
        one.apply([a_record("k", "a", 1)])
    twice = [a_record("k", "b", 2), a_record("k", "c", 3)]
    counts = one.apply([a_record("j", 0, 1), *(reversed(twice) if falling else twice)])
    assert counts == ({"created": 1, "updated": 2} if stored else {"created": 2, "updated": 1})
    assert one.table() == {"j": (0, 1), "k": ("c", 3 if stored else 2)}


def test_key_twice_on_a_page_without_versions(applier: MakeApplier) -> None:
    """Two different records under one key and no version to tell: an error that names it, and nothing is stored."""
    one = applier("plain")
    with pytest.raises(DoubledKeyError) as caught:
        one.apply([a_record("j"), a_record("k", "a"), a_record("k", "b")])
    assert (caught.value.key, caught.value.record) == ("k", 3)
    assert one.table() == {}
    assert one.ledger.head(one.conn) is None


@pytest.mark.parametrize("object", ["plain", "things"])
def test_the_same_bytes_twice(applier: MakeApplier, object: str) -> None:
    """The same record twice, on a page or over two (the overlap), is one record and no change."""
    one = applier(object)
    record = a_record("k", "a", 1 if object == "things" else None)
    assert one.apply([record, record], [record]) == {"created": 1, "unchanged": 2}
    assert one.table() == {"k": ("a", 1)}


@pytest.mark.parametrize(
    ("object", "versions", "value"),
    [
        ("plain", (None, None), ("b", 2)),
        ("things", (1, 2), ("b", 2)),
        ("things", (2, 1), ("a", 1)),
    ],
)
def test_key_on_two_pages(
    applier: MakeApplier, object: str, versions: tuple[int | None, int | None], value: tuple[str, int]
) -> None:
    """A record that changed between two pages of a transaction: what was sent last, or the later version."""
    one = applier(object)
    one.apply([a_record("k", "a", versions[0])], [a_record("k", "b", versions[1]), a_record("l", 0, versions[1])])
    assert one.table() == {"k": value, "l": (0, 1)}


def test_one_version_twice_within_a_transaction(applier: MakeApplier) -> None:
    """Two pages fetched ahead show one version with two contents: neither is taken for the newer, it is read again."""
    one = applier("things")
    one.apply([a_record("k", "a", 1)], [a_record("k", "b", 1)])
    assert one.table() == {"k": ("a", 1)}
    assert list(one.noted()) == ["k"]


@pytest.mark.parametrize("differs", [True, False])
def test_a_row_locked_by_somebody_else(applier: MakeApplier, conn: Connection, differs: bool) -> None:
    """A record that differs waits for who holds its row; one that has not changed asks for no lock at all."""
    one = applier("plain")
    one.apply([a_record("k", "a")])
    with conn.transaction():
        conn.execute("select 1 from shop.plain where key = 'k' for update")
        waiting = in_thread(lambda: one.apply([a_record("k", "b" if differs else "a")]))
        if differs:
            wait_until_blocked(conn, one.pid)
        else:
            assert waiting.result(10) == {"unchanged": 1}
    assert waiting.result(10) == ({"updated": 1} if differs else {"unchanged": 1})


def test_rows_are_locked_in_key_order(applier: MakeApplier, conn: Connection) -> None:
    """Whatever the order on the page: a batch that waits for a row holds those with smaller keys and no other."""
    one, keys = applier("plain"), [f"k{number}" for number in (7, 2, 9, 5, 1, 8, 3, 6, 4)]
    one.apply([a_record(key, "a") for key in keys])
    with conn.transaction():
        conn.execute("select 1 from shop.plain where key = 'k5' for update")
        waiting = in_thread(lambda: one.apply([a_record(key, "b") for key in keys]))
        wait_until_blocked(conn, one.pid)
        free = conn.execute("select key from shop.plain order by key for update skip locked").fetchall()
        assert [row[0] for row in free] == ["k5", "k6", "k7", "k8", "k9"]
    assert waiting.result(10) == {"updated": 9}


def test_changed_by_somebody_while_waiting(applier: MakeApplier, conn: Connection) -> None:
    """What is compared is the row as it is once the lock is held, not as it was read before."""
    one, two = applier("things", "one"), applier("things", "two")
    one.apply([a_record("k", "a", 1)])
    sent = clock(conn)
    with one.conn.transaction():
        one.apply([a_record("k", "c", 3)])
        waiting = in_thread(lambda: two.apply([a_record("k", "b", 2)], sent_at=sent))
        wait_until_blocked(conn, two.pid)
    assert waiting.result(10) == {"stale": 1}
    assert one.table() == {"k": ("c", 2)}


def test_a_row_deleted_by_hand_while_waiting(applier: MakeApplier, conn: Connection) -> None:
    """A row that vanishes between read and lock is an error that the pipeline tries again, never a record lost."""
    one = applier("plain")
    one.apply([a_record("k", "a")])
    with conn.transaction():
        conn.execute("delete from shop.plain")
        waiting = in_thread(lambda: one.apply([a_record("k", "b")]))
        wait_until_blocked(conn, one.pid)
    with pytest.raises(psycopg.errors.SerializationFailure):
        waiting.result(10)
    assert one.apply([a_record("k", "b")]) == {"created": 1}


def test_other_bytes_of_the_same_value(applier: MakeApplier) -> None:
    """White space and the order of names are no change: the revision stays."""
    one = applier("plain")
    one.apply([Record("k", b'{"id": "k", "value": 1.0}')])
    assert one.apply([Record("k", b'{ "value":1.0,"id":"k" }')]) == {"unchanged": 1}
    assert one.table() == {"k": (1.0, 1)}


def test_what_cannot_be_stored_stores_nothing(applier: MakeApplier) -> None:
    """A record that `jsonb` would change without a word stops the whole transaction, and is named."""
    one = applier("plain")
    with pytest.raises(BadRecordError) as caught:
        one.apply([a_record("j")], [Record("k", b'{"id": "k", "id": "l"}')])
    assert caught.value.key == "k"
    assert one.table() == {}


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("seed", range(20 if SOAK else 2))
def test_eight_at_once(applier: MakeApplier, conn: Connection, seed: int, ahead: bool) -> None:
    """Eight appliers, overlapping pages, any order, repeats: the newest version of each key stands, each stored change
    has raised its revision by one, and nobody is chosen to end a deadlock."""
    keys, versions, rng = 40, 12, random.Random(seed)
    appliers = [applier("things", f"walk{number}") for number in range(8)]
    sent = clock(conn) if ahead else None
    shown: set[tuple[int, int]] = set()

    def pages(rng: random.Random) -> list[list[Record]]:
        found = []
        for _ in range(25):
            picked = [(key, rng.randrange(versions)) for key in rng.choices(range(keys), k=rng.randint(1, 20))]
            shown.update(picked)
            found.append([a_record(f"k{key}", version, version) for key, version in picked])
        return found + found[:5]

    work = [(each, pages(random.Random(rng.random()))) for each in appliers]

    def run(each: Applier, pages: list[list[Record]]) -> int:
        counts = [each.apply(*pages[start : start + 3], sent_at=sent) for start in range(0, len(pages), 3)]
        return sum(count.get("created", 0) + count.get("updated", 0) for count in counts)

    with ThreadPoolExecutor(8) as pool:
        changes = list(pool.map(lambda pair: run(*pair), work))
    table = appliers[0].table()
    newest = {f"k{key}": max(version for other, version in shown if other == key) for key, _ in shown}
    assert {key: value for key, (value, _) in table.items()} == newest
    assert sum(revision for _, revision in table.values()) == sum(changes)
    assert all(revision <= versions for _, revision in table.values())
    row = conn.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone()
    assert row == (0,)


def test_unchanged_records_cost_nothing(
    applier: MakeApplier, conn: Connection, measured: Callable[[str], None]
) -> None:
    """Pages read again leave each row where and as it was, and write less than 50 bytes of WAL a record."""
    one = applier("things")
    pages = [[a_record(f"k{page}-{number:04}", number, 1) for number in range(1000)] for page in range(2)]

    def rows() -> list[Any]:
        return conn.execute("select key, xmin, xmax, ctid from shop.things order by key").fetchall()

    def wal() -> int:
        row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert row is not None
        return int(row[0])

    def again() -> int:
        before = wal()
        for page in pages:
            assert one.apply(page) == {"unchanged": 1000}
        return wal() - before

    one.apply(*pages)
    stood = rows()
    # What the log grows by is the server's as a whole: a checkpoint in between writes whole pages, and an autovacuum of
    # another database for seconds.
    written = again()
    until = time.monotonic() + 30
    while written / 2000 >= 50 and time.monotonic() < until:
        time.sleep(0.5)
        written = again()
    assert rows() == stood
    measured(f"WAL of unchanged records: {written / 2000:.2f} bytes a record, {written / 2:.0f} a page")
    assert written / 2000 < 50


def test_the_fence_keeps_a_takeover_out_until_the_commit(applier: MakeApplier, conn: Connection) -> None:
    """Whoever takes the walk over waits for the transaction under way; after that the old holder can store nothing."""
    one = applier("plain")
    pid = conn.info.backend_pid

    def take_over() -> int:
        silent = timedelta(minutes=5)
        return acquire(conn, "extract", one.fence.scope, "other", "other", silent_after=silent, take_over=True).number

    with one.conn.transaction():
        one.apply([a_record("k", "a")])
        taking = in_thread(take_over)
        wait_until_blocked(one.conn, pid)
    assert taking.result(10) == one.fence.number + 1
    head = one.ledger.head(one.conn)
    with pytest.raises(FencedError):
        one.apply([a_record("k", "b"), a_record("l", "b")])
    assert one.table() == {"k": ("a", 1)}
    assert one.ledger.head(one.conn) == head


def test_other_bytes_of_the_same_record_are_learned(applier: MakeApplier) -> None:
    """They are locked and compared once, and count as no change; read again, they cost no more than any other."""
    one = applier("things")
    one.apply([a_record("k", "a", 1)])
    other = replace(a_record("k", "a", 1), raw=a_record("k", "a", 1).raw.replace(b": ", b" :  "))
    assert one.apply([other]) == {"unchanged": 1}
    before = one.conn.execute("select xmin::text, xmax::text from shop.things").fetchone()
    assert one.apply([other]) == {"unchanged": 1}
    assert one.conn.execute("select xmin::text, xmax::text from shop.things").fetchone() == before
    assert one.table() == {"k": ("a", 1)}


def test_another_reading_of_the_same_bytes(applier: MakeApplier) -> None:
    """Another `version` or zone was declared: the version is corrected, earlier or later, and nothing has changed."""
    one = applier("things")
    for version in (5, 2, 7):
        record = replace(a_record("k", "a", 1), version=EPOCH + timedelta(minutes=version))
        one.apply([record])
        assert one.conn.execute("select version from shop.things").fetchone() == (record.version,)
    assert one.table() == {"k": ("a", 1)}
    assert one.noted() == {}


def test_an_old_copy_beside_the_one_that_is_stored(applier: MakeApplier) -> None:
    """A record that moved while it was read comes in two versions: read again, nothing has gone back."""
    one = applier("things")
    pages = [[a_record("k", "old", 1)], [a_record("k", "new", 2)]]
    assert one.apply(*pages) == {"created": 1, "updated": 1}
    for again in (pages, [[*pages[0], *pages[1]]]):
        one.apply(*again)
        assert one.noted() == {}
    assert one.table() == {"k": ("new", 2)}


def test_deleted_and_back_on_two_pages(applier: MakeApplier) -> None:
    """In one transaction too: the page that was asked for later tells."""
    one = applier("things")
    one.apply([a_record("k", "a", 1)])
    sent = clock(one.conn)
    batches = [
        Batch((record,), sent + timedelta(milliseconds=at), Entry("page", Position(AfterKey("x"), pages=1)))
        for at, record in enumerate([a_tombstone("k", 2), a_record("k", "b", 3)])
    ]
    counts = apply(one.conn, one.target, one.fence, one.ledger, batches).counts
    assert dict(+counts) == {"deleted": 1, "undeleted": 1}
    assert one.rows()["k"][0::2] == ("b", False)


def test_what_postgres_refuses_is_found_without_a_query_each(
    applier: MakeApplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record among two thousand that is JSON, but no `jsonb`."""
    one = applier()
    records = [a_record(f"k{number:04}", number) for number in range(2000)]
    records[1234] = replace(records[1234], raw=b'{"id": "k1234", "value": 1e200000}')
    asked = Counter[str]()
    execute = one.conn.execute

    def counted(*given: Any, **named: Any) -> Any:
        asked["queries"] += 1
        return execute(*given, **named)

    monkeypatch.setattr(one.conn, "execute", counted)
    assert one.apply(records, quarantine=True) == {"created": 1999, "quarantined": 1}
    assert asked["queries"] < 60
