"""The quarantine: what cannot be stored is kept as it came, once, and the rest of its page arrives (law 13)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_extract_provider.extract.errors import BadRecordError, DoubledKeyError
from airflow_extract_provider.extract.page import Record, SetAside
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.quarantine import listed
from tests.store.applier import Applier, a_record, clock

MakeApplier = Callable[..., Applier]
BAD = {
    "doubled name": b'{"id": "k", "id": "l"}',
    "NUL": b'{"id": "k", "text": "\\u0000"}',
    "half a surrogate pair": b'{"id": "k", "text": "\\ud800"}',
    "a number beyond jsonb": b'{"id": "k", "number": 1e400000}',
}


@pytest.mark.parametrize("kind", BAD)
def test_only_the_bad_one_stays_out(applier: MakeApplier, kind: str) -> None:
    """What only Postgres refuses is set aside, counted, told with its place; the others of the page arrive."""
    one = applier("plain")
    page = [a_record("j"), Record("k", BAD[kind]), a_record("l")]
    assert one.apply(page, quarantine=True) == {"created": 2, "quarantined": 1}
    assert set(one.table()) == {"j", "l"}
    (row,) = listed(one.conn, "extract")
    assert (row.source, row.object, row.page, row.number, row.key) == ("shop", "plain", 1, 2, "k")
    assert (row.raw, row.seen) == (BAD[kind], 1)
    assert row.why


def test_several_on_several_pages(applier: MakeApplier) -> None:
    """All that Postgres refuses in a transaction are found, those found by us among them."""
    one = applier("plain")
    pages = [
        [a_record("a"), Record("b", BAD["a number beyond jsonb"])],
        [Record("c", BAD["NUL"]), a_record("d"), Record("e", BAD["a number beyond jsonb"] + b" ")],
    ]
    assert one.apply(*pages, quarantine=True) == {"created": 2, "quarantined": 3}
    assert {row.key: row.number for row in listed(one.conn, "extract")} == {"b": 2, "c": 1, "e": 3}


@pytest.mark.parametrize("kind", ["NUL", "a number beyond jsonb"])
def test_without_a_quarantine_the_page_fails(applier: MakeApplier, kind: str) -> None:
    """As before: nothing of the page is stored."""
    one = applier("plain")
    with pytest.raises(BadRecordError if kind == "NUL" else Exception):
        one.apply([a_record("j"), Record("k", BAD[kind])])
    assert one.table() == {}
    assert listed(one.conn, "extract") == []


def test_seen_again(applier: MakeApplier, conn: Connection) -> None:
    """The page read again, and the same bytes twice on it: one row, its last look and how often it was seen."""
    one = applier("plain")
    bad = SetAside(3, b"\xff\x00 no UTF-8", "it is no JSON")
    first = clock(conn)
    for sent_at in (None, first):
        assert one.apply([a_record("a")], bad=(bad, bad), sent_at=sent_at)["quarantined"] == 2
    (row,) = listed(conn, "extract")
    assert (row.raw, row.key, row.number, row.seen) == (bad.raw, None, 3, 2)
    assert row.noted_at < row.seen_at
    assert conn.execute("select sent_at > %s from extract.quarantine", [first]).fetchone() == (True,)


def test_the_walk_goes_on_or_nothing_does(applier: MakeApplier) -> None:
    """The bad record and the ledger row that passes it are one transaction."""
    one = applier("plain")
    with one.conn.transaction(force_rollback=True):
        one.apply([a_record("a")], bad=(SetAside(2, b"x", "why"),))
    assert listed(one.conn, "extract") == []
    assert one.ledger.head(one.conn) is None


def test_a_page_of_bad_ones_only(applier: MakeApplier) -> None:
    """The ledger's row says how many; numbers of the good ones leave those of the bad ones out."""
    one = applier("plain")
    assert one.apply([], bad=(SetAside(1, b"x", "why"), SetAside(2, b"y", "why", "k\0"))) == {"quarantined": 2}
    assert one.ledger.totals(one.conn, "test") == {"pages": 1, "records": 0, "quarantined": 2}
    one.apply([Record("k", BAD["NUL"])], bad=(SetAside(1, b"z", "why"),), quarantine=True)
    assert [row.number for row in listed(one.conn, "extract")] == [1, 1, 2, 2]


def test_doubled_keys_stay_an_error(applier: MakeApplier) -> None:
    """Which of two is the record cannot be told: that is a mistake in the source file, no bad record."""
    one = applier("plain")
    with pytest.raises(DoubledKeyError):
        one.apply([a_record("k", 1), a_record("k", 2)], quarantine=True)


def test_listed(applier: MakeApplier, conn: Connection) -> None:
    """Of one source, of one object, at most so many."""
    for object in ("plain", "things"):
        applier(object).apply([], bad=tuple(SetAside(n, f"{n}".encode(), "why") for n in range(1, 4)))
    assert len(listed(conn, "extract")) == 6
    assert len(listed(conn, "extract", "shop", "plain")) == 3
    assert listed(conn, "extract", "other") == []
    assert [row.number for row in listed(conn, "extract", "shop", None, 4)] == [1, 2, 3, 1]
