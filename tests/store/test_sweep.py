"""The books of sweeps: what was seen, what is absent, what was found; and that they cost what they should."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import TooManyDeletesError
from airflow_extract_provider.extract.page import Record, SetAside
from airflow_extract_provider.extract.store import refetch, sweep
from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.store.sweep import Sweep
from tests.databases import Databases
from tests.store.applier import SOURCE, Applier, a_record, a_tombstone, clock
from tests.ways import migrate

MakeApplier = Callable[..., Applier]
PLAIN = ("extract", "shop", "plain")
TABLE = ("shop", "plain")
EARLIER = timedelta(minutes=5)


def begun(one: Applier, number: int = 7) -> Sweep:
    """Begin a sweep of an applier's object; its pages are the sweep's from now on."""
    sweep.begin(one.conn, *one.target.whose, number, "test", None)
    found = sweep.opened(one.conn, *one.target.whose)
    assert found is not None
    return found


def telling(one: Applier, open: Sweep, *, sweeps: bool = True) -> Applier:
    """The applier, whose pages tell the open sweep; ``sweeps``: it is this walk's own."""
    one.target = replace(one.target, sweep=open, sweeps=sweeps)
    return one


def absent(one: Applier, open: Sweep, allowed: int = 10, *, insist: bool = True) -> list[str]:
    """Judge a sweep; returns what is noted."""
    whose = one.target.whose
    sweep.judge(one.conn, *whose, one.target.table, open, open.looked_at, lambda _: allowed, insist=insist)
    return [each.key for each in sweep.unseen(one.conn, *whose, 100)]


def seen(one: Applier) -> set[uuid.UUID]:
    """The digests of what was seen."""
    rows = one.conn.execute("select unnest(digests) from extract.sweep_seen").fetchall()
    return {row[0] for row in rows}


def digests(*keys: str) -> set[uuid.UUID]:
    """As computed by somebody else."""
    return {uuid.UUID(bytes=hashlib.sha256(key.encode()).digest()[:16]) for key in keys}


# What was seen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "a", "A", "a\u0301", "\u00e1", "\U0001d11e" * 600, "x" * 2400, "%s {0} \\ ' \""])
def test_a_digest_is_that_of_the_keys_bytes(conn: Connection, key: str) -> None:
    """SHA-256, cut to 16 bytes: two spellings of one letter are two keys."""
    assert conn.execute("select extract.digest(%s)", [key]).fetchone() == (next(iter(digests(key))),)


def test_every_page_tells_what_stood_on_it(applier: MakeApplier) -> None:
    """Whether it changes nothing, which one statement does, or something; bad records whose key can be read; what a
    read by key has found. Not what is gone, nor a record without a key."""
    one = applier("plain")
    one.apply([a_record("a"), a_record("b")])
    telling(one, begun(one))
    one.apply([a_record("a")])
    assert seen(one) == digests("a")
    one.apply([a_record("b", 1), a_record("c")], bad=(SetAside(3, b"{", "why", "d"), SetAside(4, b"[]", "why")))
    assert seen(one) == digests("a", "b", "c", "d")
    one.apply([], gone=("e",))
    one.apply([a_record("f")], by_key=True)
    assert seen(one) == digests("a", "b", "c", "d", "f")
    one.apply([], [])
    assert one.conn.execute("select min(cardinality(digests)), count(*) from extract.sweep_seen").fetchone() == (1, 3)


@pytest.mark.parametrize("pages", [[[a_record("a")]], [[a_record("a", 1)]], [[a_record("a")], [a_record("a", 1)]]])
def test_what_was_asked_for_before_the_sweep(applier: MakeApplier, pages: Sequence[Sequence[Record]]) -> None:
    """By another walk: it says nothing of what is there since. By the sweep itself, out of a cache: it was looked up
    that early."""
    one = applier("plain")
    one.apply([a_record("a")])
    open = begun(one)
    long_ago = open.looked_at - EARLIER
    telling(one, open, sweeps=False).apply(*pages, sent_at=long_ago)
    assert seen(one) == set()
    assert sweep.opened(one.conn, *PLAIN) == open
    telling(one, open).apply(*pages, sent_at=long_ago)
    assert seen(one) == digests("a")
    now = sweep.opened(one.conn, *PLAIN)
    assert now is not None
    assert now.looked_at == long_ago


def test_together_or_not_at_all(applier: MakeApplier) -> None:
    """What was seen is stored with the page: if that fails, neither is."""
    one = applier("plain")
    telling(one, begun(one))
    for record in (a_record("a"), a_record("b")):
        with one.conn.transaction(force_rollback=True):
            one.apply([record])
            assert seen(one) == digests(record.key)
        assert seen(one) == set()


# What is absent -----------------------------------------------------------------------------------------------------


def test_stored_before_and_not_seen(applier: MakeApplier) -> None:
    """To the microsecond; neither what is deleted, nor another object's."""
    one, other = applier("plain"), applier("things")
    one.apply([a_record(key) for key in "abcde"])
    other.apply([a_record("z", 1, 1)])
    one.apply([], gone=("e",))
    open = begun(one)
    for key, at in (("a", -1), ("b", 0), ("c", 1), ("d", -1)):
        text = "update shop.plain set applied_at = %s + %s * interval '1 microsecond' where key = %s"
        one.conn.execute(text, [open.looked_at, at, key])
    sweep.see(one.conn, *PLAIN, open, ["d"], open.looked_at)
    assert absent(one, open) == ["a"]
    judged = sweep.opened(one.conn, *PLAIN)
    assert judged is not None
    assert judged.judged
    assert replace(judged, judged_at=None) == open
    report = sweep.report(one.conn, "extract", open.number)
    assert (report.stored, report.seen, report.absent) == (4, 1, 1)


def test_what_was_noted_is_struck_out_when_it_is_seen(applier: MakeApplier) -> None:
    """By whichever walk, also by a page that changes nothing; other needs stay noted."""
    one = applier("plain")
    one.apply([a_record(key) for key in "abc"])
    refetch.note(one.conn, *PLAIN, ["x"], "undecided")
    open = begun(one)
    assert absent(one, open) == ["a", "b", "c"]
    judged = replace(open, judged_at=open.began_at)
    telling(one, judged, sweeps=False).apply([a_record("a"), a_record("x")])
    telling(one, judged, sweeps=False).apply([a_record("b")], sent_at=open.looked_at - EARLIER)
    assert set(one.noted()) == {"b", "c", "x"}
    telling(one, judged).apply([a_record("b")])
    assert set(one.noted()) == {"c", "x"}


def test_a_need_that_was_noted_before(applier: MakeApplier) -> None:
    """Its note becomes the sweep's, with a higher number: who has claimed the old one does not settle it."""
    one = applier("plain")
    one.apply([a_record("a")])
    refetch.note(one.conn, *PLAIN, ["a"], "undecided")
    (claimed,) = refetch.due(one.conn, *PLAIN, 10)
    assert absent(one, begun(one)) == ["a"]
    assert refetch.settle(one.conn, *PLAIN, [claimed]) == []
    assert one.noted() == {"a": 2}


@pytest.mark.parametrize(("stored", "gone", "allowed", "fits"), [(20, 5, 5, True), (20, 6, 5, False), (3, 0, 0, True)])
def test_the_guard(applier: MakeApplier, stored: int, gone: int, allowed: int, fits: bool) -> None:
    """One more than allowed is too many; then nothing stays noted, and the error counts all of them."""
    one = applier("plain")
    keys = [f"k{number:02}" for number in range(stored)]
    one.apply([a_record(key) for key in keys])
    open = begun(one)
    sweep.see(one.conn, *PLAIN, open, keys[gone:], open.looked_at)
    if fits:
        assert absent(one, open, allowed) == keys[:gone]
        return
    told = f"no longer holds {gone} of {stored} .* may delete {allowed}"
    with pytest.raises(TooManyDeletesError, match=told), one.conn.transaction():
        absent(one, open, allowed)
    assert (one.noted(), sweep.opened(one.conn, *PLAIN)) == ({}, open)


def test_nothing_was_seen(applier: MakeApplier) -> None:
    """That is believed only if somebody insists; where nothing is stored there is nothing to be believed."""
    one = applier("plain")
    open = begun(one)
    assert absent(one, open, insist=False) == []
    one.apply([a_record("a")])
    later, told = begun(one, 8), "the API's list was empty, and 1 records are stored"
    with pytest.raises(TooManyDeletesError, match=told), one.conn.transaction():
        absent(one, later, insist=False)
    assert absent(one, later) == ["a"]


def test_what_is_no_proof(applier: MakeApplier) -> None:
    """Then nothing is noted, but counted; the guard tells all the same; and a person may insist."""
    one = applier("plain")
    one.apply([a_record(key) for key in "abcd"])
    open = begun(one)
    how: dict[str, Any] = {"provable": False}
    asked = (one.conn, *PLAIN, TABLE, open, open.looked_at, lambda _: 1)
    with pytest.raises(TooManyDeletesError), one.conn.transaction():
        sweep.judge(*asked, **how)
    sweep.see(one.conn, *PLAIN, open, ["a"], open.looked_at)
    with pytest.raises(TooManyDeletesError), one.conn.transaction():
        sweep.judge(*asked, **how)
    asked = (*asked[:-1], lambda _: 3)
    assert sweep.judge(*asked, **how) == 3
    assert one.noted() == {}
    assert sweep.report(one.conn, "extract", 7).counts == {"withheld": 3}
    later = begun(one, 8)
    sweep.see(one.conn, *PLAIN, later, ["a"], later.looked_at)
    assert sweep.judge(one.conn, *PLAIN, TABLE, later, later.looked_at, lambda _: 3, insist=True, **how) == 0
    assert set(one.noted()) == set("bcd")


def test_what_others_have_seen_makes_no_list_trustworthy(applier: MakeApplier) -> None:
    """It is not absent; but that the list lacks it counts for the guard, and an empty list is empty all the same."""
    one = applier("plain")
    one.apply([a_record(key) for key in "abcdef"])
    open = begun(one)
    sweep.see(one.conn, *PLAIN, open, ["a", "b", "c"], open.looked_at, own=False)
    asked = (one.conn, *PLAIN, TABLE, open, open.looked_at)
    with pytest.raises(TooManyDeletesError, match="was empty"), one.conn.transaction():
        sweep.judge(*asked, lambda _: 5)
    sweep.see(one.conn, *PLAIN, open, ["d"], open.looked_at)
    with pytest.raises(TooManyDeletesError, match="holds 5 of 6"), one.conn.transaction():
        sweep.judge(*asked, lambda _: 4)
    assert sweep.judge(*asked, lambda _: 5) == 0
    assert set(one.noted()) == {"e", "f"}


def test_what_is_on_no_page_that_is_asked_for_by_instant(applier: MakeApplier) -> None:
    """A record without a version is left, and counted; the others are noted, and only they count for the guard."""
    one = applier("things")
    whose = one.target.whose
    one.apply([a_record("a", 1, 1), a_record("b", 1, 1), a_record("c"), a_record("d"), a_record("e")])
    open = begun(one)
    sweep.see(one.conn, *whose, open, ["a", "c"], open.looked_at)
    assert sweep.judge(one.conn, *whose, one.target.table, open, open.looked_at, lambda _: 1, dated=True) == 2
    assert set(one.noted()) == {"b"}
    report = sweep.report(one.conn, "extract", 7)
    assert (report.absent, report.counts) == (3, {"withheld": 2})
    later = begun(one, 8)
    sweep.see(one.conn, *whose, later, ["a", "c"], later.looked_at)
    assert sweep.judge(one.conn, *whose, one.target.table, later, later.looked_at, lambda _: 3) == 0
    assert set(one.noted()) == {"b", "d", "e"}


def test_deleted_for_not_being_there(applier: MakeApplier) -> None:
    """Only what was applied before; told once more, nothing changes; the note goes with it."""
    one = applier("plain")
    one.apply([a_record("a"), a_record("b")])
    open = begun(one)
    assert absent(one, open) == ["a", "b"]
    later = clock(one.conn)
    one.apply([a_record("b", 1)])
    due = tuple(sweep.unseen(one.conn, *PLAIN, 10))
    given: dict[str, Any] = {"gone": ("a", "b"), "settled": due, "absent": True, "sent_at": later}
    telling(one, replace(open, judged_at=open.began_at))
    assert one.apply([], **given) == {"deleted": 1, "unchanged": 1}
    assert one.rows() == {"a": (0, 2, True), "b": (1, 2, False)}
    assert one.noted() == {}
    stands = one.conn.execute("select xmin, ctid from shop.plain order by key").fetchall()
    assert one.apply([], **{**given, "settled": ()}) == {"unchanged": 2}
    assert one.conn.execute("select xmin, ctid from shop.plain order by key").fetchall() == stands
    assert sweep.report(one.conn, "extract", 7).counts == {"deleted": 1}


# Its own row --------------------------------------------------------------------------------------------------------


def test_one_is_open_at_a_time(applier: MakeApplier) -> None:
    """Another one gives it up: what it has seen and noted is forgotten, of this object only; its row stays, and is no
    reading that was ever complete."""
    one, other = applier("plain"), applier("things")
    one.apply([a_record("a")])
    other.apply([a_record("a", 1, 1)])
    begun(other, 3)
    sweep.see(other.conn, *other.target.whose, begun(other, 4), ["z"], clock(one.conn))
    first = begun(one)
    refetch.note(one.conn, *other.target.whose, ["a"], "absent")
    refetch.note(one.conn, *PLAIN, ["u"], "undecided")
    sweep.see(one.conn, *PLAIN, first, ["b"], first.looked_at)
    assert absent(one, first) == ["a"]
    begun(one, 8)
    assert one.conn.execute("select object, key, reason from extract.refetch order by 1, 2").fetchall() == [
        ("plain", "u", "undecided"),
        ("things", "a", "absent"),
    ]
    assert seen(one) == digests("z")
    rows = one.conn.execute("select number, given_up, ended_at is null from extract.sweep order by 1").fetchall()
    assert rows == [(3, True, False), (4, False, True), (7, True, False), (8, False, True)]
    assert sweep.last(one.conn, *PLAIN) is None


def test_its_end(applier: MakeApplier) -> None:
    """What it has seen is forgotten; what it had noted, if anything is left of that, is not the next one's, but stays
    to be read by key."""
    one = applier("plain")
    one.apply([a_record("a")])
    refetch.note(one.conn, *PLAIN, ["u"], "undecided")
    open = begun(one)
    sweep.see(one.conn, *PLAIN, open, ["b"], open.looked_at)
    assert absent(one, open) == ["a"]
    sweep.end(one.conn, "extract", open)
    assert (seen(one), set(one.noted()), sweep.opened(one.conn, *PLAIN)) == (set(), {"a", "u"}, None)
    assert sweep.report(one.conn, "extract", 7).counts == {"unread": 1}
    last = sweep.last(one.conn, *PLAIN)
    assert last is not None
    assert (last.number, last.cause, last.began_at) == (7, "test", sweep.report(one.conn, "extract", 7).began_at)


def test_counts_add_up(applier: MakeApplier) -> None:
    """Over transactions; of the fields, the hundred that changed most often."""
    one = applier("plain")
    open = begun(one)
    few, many = {"n": 2, "o.p": 3}, {f"f{number:03}": 1 for number in range(150)}
    for fields in (few, many, dict.fromkeys(list(many)[:30], 1), few):
        sweep.found(one.conn, "extract", open, {"changed": 3, "silent": 1}, fields)
    report = sweep.report(one.conn, "extract", open.number)
    assert report.counts == {"changed": 12, "silent": 4}
    assert len(report.fields) == 100
    assert (report.fields["o.p"], report.fields["n"]) == (6, 4)
    assert [name for name, count in report.fields.items() if count == 2] == list(many)[:30]


def test_what_its_own_walk_finds(applier: MakeApplier) -> None:
    """A new record, one that has changed with and without its version, one that has returned, tombstones; other walks'
    finds are not the sweep's."""
    one = applier("things")
    one.apply([a_record("a", 1, 1), a_record("b", 1, 1), a_record("c", 1, 1), a_record("d", 1, 1)])
    one.apply([], gone=("c",))
    open = begun(one)
    page = [a_record("a", 2, 1), a_record("b", 2, 2), a_record("c", 1, 1), a_record("e", 1, 1), a_tombstone("d", 3)]
    telling(one, open, sweeps=False)
    with one.conn.transaction(force_rollback=True):
        one.apply(page)
        assert sweep.report(one.conn, "extract", 7).counts == {}
    telling(one, open).apply(page)
    report = sweep.report(one.conn, "extract", 7)
    assert report.counts == {"changed": 2, "silent": 1, "new": 1, "returned": 1, "deleted": 1}
    assert report.fields == {"value": 1}


# What it costs ------------------------------------------------------------------------------------------------------

COUNT = 50_000


@pytest.fixture(params=["never analysed", "analysed"])
def large(databases: Databases, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """50,000 records, of which an open sweep has seen all but a few; two hundred sweeps before it."""
    with databases.with_books() as address, connecting(address)() as conn:
        migrate(connecting(address), [SOURCE])
        conn.autocommit = True
        key, series = "'k' || lpad(n::text, 6, '0')", f"from generate_series(0, {COUNT - 1}) as n"
        for text in (
            "alter table shop.plain set (autovacuum_enabled = off)",
            "insert into shop.plain (key, data, raw_hash, applied_at)"
            f" select {key}, '{{}}', 'x', now() - interval '1 d' {series}",
            "insert into extract.sweep (number, source, object, ended_at)"
            " select n, 'shop', case n % 2 when 0 then 'plain' else 'o' || n end, now() from generate_series(1, 400) n",
            "insert into extract.sweep (number, source, object) values (1000, 'shop', 'plain')",
            f"insert into extract.sweep_seen select 1000, n % 3 > 0, array_agg(extract.digest({key})) {series}"
            " where n % 10000 <> 7 group by n / 500, n % 3 > 0",
            f"insert into extract.sweep_seen select n, true, array[extract.digest({key})] {series}"
            " where n between 2000 and 9000",
            "insert into extract.refetch (source, object, key, reason)"
            f" select 'shop', 'o' || n % 100, {key}, 'x' {series}",
            *(["analyze"] if request.param == "analysed" else []),
        ):
            conn.execute(text.encode())
        yield conn


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def explained(conn: Connection, name: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a statement's plan, as it was executed; nothing of it stays."""
    text = "explain (analyze, format json, timing off) " + statement("sweep.sql", name, "extract", TABLE).as_string()
    with conn.transaction(force_rollback=True):
        conn.execute(statement("sweep.sql", "impatient", "extract"))
        row = conn.execute(text, asked, binary=True).fetchone()
    assert row is not None
    return list(nodes(row[0][0]["Plan"]))


@pytest.mark.parametrize("name", ["stored", "absent", "note_absent"])
def test_the_copy_is_looked_through_once(large: Connection, name: str) -> None:
    """Also where Postgres takes the table for a small one: no list is looked through for each row of another, and of
    what was seen only the open sweep's is read."""
    open = sweep.opened(large, *PLAIN)
    assert open is not None
    asked = {
        "source": "shop",
        "object": "plain",
        "sweep": 1000,
        "before": open.looked_at,
        "most": 100,
        "dated": None,
        "own": False,
    }
    found = explained(large, name, asked)
    assert [each["Node Type"] for each in found if each["Node Type"] == "Nested Loop"] == []
    # Whether others have seen anything is known with the first row.
    loops = {each["Actual Loops"] for each in found if each.get("Relation Name") in ("plain", "sweep_seen")}
    assert loops - {0} == {1}
    read = sum(each["Actual Rows"] for each in found if each.get("Relation Name") == "sweep_seen")
    assert COUNT / 500 <= read <= 2 * COUNT / 500


def test_it_finds_exactly_those(large: Connection) -> None:
    """Five of 50,000."""
    large.execute("update extract.sweep_seen set own = true where sweep = 1000")
    open = sweep.opened(large, *PLAIN)
    assert open is not None
    sweep.judge(large, *PLAIN, TABLE, open, open.looked_at, lambda stored: stored // 10_000)
    assert sweep.report(large, "extract", 1000).absent == 5
    found = [each.key for each in sweep.unseen(large, *PLAIN, 10)]
    assert found == [f"k{number:06}" for number in range(7, COUNT, 10_000)]


@pytest.mark.parametrize("name", ["open", "last", "report", "unseen", "found", "looked"])
def test_by_index(large: Connection, name: str) -> None:
    """What runs for each page, or at the beginning, reads a few rows, however many sweeps and notes there are."""
    asked = {"source": "shop", "object": "plain", "sweep": 1000, "limit": 500, "looked_at": clock(large)}
    asked |= {"counts": "{}", "fields": "{}"}
    found = [each for each in explained(large, name, asked) if each.get("Relation Name")]
    assert sum(each["Actual Rows"] * each["Actual Loops"] for each in found) < 10
    assert [each["Relation Name"] for each in found if each.get("Rows Removed by Filter", 0) > 10] == []
