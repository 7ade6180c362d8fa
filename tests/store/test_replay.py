"""Replay: what was set aside arrives once it can be read, and writes over nothing newer (laws 8, 13)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import SourceError, WalkBusyError
from airflow_extract_provider.extract.page import Record, SetAside
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.fence import Scope, acquire, release
from airflow_extract_provider.extract.store.quarantine import listed
from airflow_extract_provider.extract.store.replay import replay
from tests.store.applier import SOURCE, Applier, a_record, clock

MakeApplier = Callable[..., Applier]
PAGES = {"by": "last_key", "send": "starting_after"}
READABLE = Source.model_validate(
    {
        "source": "shop",
        "connection": "shop",
        "defaults": {"records": "data", "key": "id", "pages": PAGES, "by_key": {"path": "/keyed/{{ key }}"}},
        "objects": {"things": {"path": "/keyed", "version": "updated_at"}, "plain": {"path": "/keyed"}},
    }
)


def read(raw: bytes) -> Record | SetAside:
    """A reader that has learned to live without what made the records bad: a wrapping list."""
    found = json.loads(raw)
    if not isinstance(found, list):
        return SetAside(1, raw, "still no list", str(found["id"]))
    told = found[0].get("updated_at")
    return Record(found[0]["id"], json.dumps(found[0]).encode(), told and datetime.fromisoformat(told))


def bad(key: str, value: Any = 0, version: int | None = None, number: int = 1) -> SetAside:
    """A record that could not be read when it came, and now can."""
    return SetAside(number, b"[%s]" % a_record(key, value, version).raw, "a list", key)


def again(connect: Connect, object: str = "plain", source: Source = SOURCE, **more: Any) -> dict[str, int]:
    return dict(+replay(connect, source, object, "extract", read, **more))


def left(connect: Connect) -> list[tuple[str | None, str]]:
    """Key and reason of what is still in the quarantine."""
    with connect() as conn:
        return [(row.key, row.why) for row in listed(conn, "extract")]


def test_what_can_be_read_now_arrives(applier: MakeApplier, connect: Connect) -> None:
    """The others stay, with the reason found now; the ledger tells of it; done again, nothing happens."""
    one = applier("plain")
    still = SetAside(3, b'{"id": "s"}', "why")
    beyond = SetAside(4, b'[{"id": "n", "value": 1e400000}]', "why")
    one.apply([a_record("a", 1)], bad=(bad("b", 2), still, beyond))
    exact = Record("n", beyond.raw[1:-1])
    counts = dict(+replay(connect, SOURCE, "plain", "extract", lambda raw: exact if b"400000" in raw else read(raw)))
    assert counts == {"created": 1, "replayed": 1, "quarantined": 2}
    assert one.table() == {"a": (1, 1), "b": (2, 1)}
    assert dict(left(connect)) == {"s": "still no list", "n": "value overflows numeric format"}
    rows = one.conn.execute(
        "select walk, kind, records, counts from extract.ledger where walk <> 'backfill'"
    ).fetchall()
    assert rows == [("replay", "page", 1, {"created": 1})]
    assert again(connect, limit=1) == {"quarantined": 1}


@pytest.mark.parametrize(
    ("stored", "coming", "sent_before", "counts", "value"),
    [
        (1, 2, True, {"updated": 1}, "new"),
        (2, 1, True, {"stale": 1}, "old"),
        (1, 1, True, {}, "old"),
        (1, 1, False, {}, "old"),
        (2, 1, False, {"stale": 1}, "old"),
    ],
)
def test_with_versions(
    applier: MakeApplier,
    connect: Connect,
    stored: int,
    coming: int,
    sent_before: bool,
    counts: dict[str, int],
    value: str,
) -> None:
    """The newer version is written. Where nothing tells which is newer, the record stays, and says what would."""
    one = applier("things")
    sent = clock(one.conn)
    one.apply([a_record("k", "old", stored)])
    one.apply([], bad=(bad("k", "new", coming),), sent_at=sent if sent_before else None)
    assert again(connect, "things") == ({**counts, "replayed": 1} if counts else {"quarantined": 1})
    assert one.table()["k"][0] == value
    assert list(one.noted()) == []
    assert [key for key, why in left(connect) if "`by_key`" in why] == ([] if counts else ["k"])


@pytest.mark.parametrize(
    ("source", "sent_before", "counts", "value"),
    [
        (SOURCE, True, {"stale": 1}, "old"),
        (SOURCE, False, {"updated": 1}, "new"),
        (READABLE, True, {"refetch": 1}, "old"),
        (READABLE, False, {"refetch": 1}, "old"),
    ],
    ids=["stale", "written", "refetch", "refetch since it may have been seen again"],
)
def test_without_versions(
    applier: MakeApplier, connect: Connect, source: Source, sent_before: bool, counts: dict[str, int], value: str
) -> None:
    """A stored row that was applied later is never written over; where the API can be asked for the key, it is."""
    one = applier("plain")
    sent = clock(one.conn)
    one.apply([a_record("k", "old")])
    one.apply([], bad=(bad("k", "new"),), sent_at=sent if sent_before else None)
    assert again(connect, source=source) == {**counts, "replayed": 1}
    assert one.table()["k"][0] == value
    assert list(one.noted()) == (["k"] if "refetch" in counts else [])
    assert left(connect) == []


@pytest.mark.parametrize("batch", [1, 10])
@pytest.mark.parametrize("object", ["plain", "things"])
def test_several_looks_at_one_record(applier: MakeApplier, connect: Connect, batch: int, object: str) -> None:
    """The last look stands, in one transaction or in several; a key that was not stored is never doubted."""
    one = applier(object)
    versions = (1, 2, 3) if object == "things" else (None, None, None)
    for value, version in zip("abc", versions, strict=True):
        one.apply([], bad=(bad("k", value, version),))
    assert again(connect, object, batch=batch) == {"created": 1, "stale": 2, "replayed": 3}
    assert one.table() == {"k": ("c", 1)}


@pytest.mark.parametrize("source", [SOURCE, READABLE])
def test_twice_on_one_page_without_versions(applier: MakeApplier, connect: Connect, source: Source) -> None:
    """Which of the two is the record is not guessed: it is read by key, or both stay where they are."""
    one = applier("plain")
    one.apply([], bad=(bad("k", "a", number=1), bad("k", "b", number=2)))
    counts = again(connect, source=source)
    assert one.table() == {}
    if source is READABLE:
        assert (counts, list(one.noted()), left(connect)) == ({"refetch": 1, "replayed": 2}, ["k"], [])
    else:
        assert counts == {"quarantined": 2}
        assert all("same key" in why for _, why in left(connect))


def test_twice_on_one_page_with_versions(applier: MakeApplier, connect: Connect) -> None:
    """The later version."""
    one = applier("things")
    one.apply([], bad=(bad("k", "b", 2, number=1), bad("k", "a", 1, number=2)))
    assert again(connect, "things") == {"created": 1, "updated": 1, "replayed": 2}
    assert one.table() == {"k": ("b", 2)}


def test_not_beside_a_walk(applier: MakeApplier, connect: Connect) -> None:
    """While a walk of the object lives nothing is replayed; afterwards it is, and the fence is free again."""
    one = applier("plain")
    one.apply([], bad=(bad("k"),))
    scope = Scope("shop", "plain", "*")
    fence = acquire(one.conn, "extract", scope, "walk", "the walk", silent_after=timedelta(minutes=5))
    with pytest.raises(WalkBusyError, match="the walk"):
        again(connect)
    assert one.table() == {}
    release(one.conn, "extract", fence)
    assert again(connect) == {"created": 1, "replayed": 1}
    assert one.conn.execute("select runner from extract.fence where walk = '*'").fetchone() == (None,)


def test_stopped_in_the_middle(applier: MakeApplier, connect: Connect) -> None:
    """What was committed has arrived and left the quarantine, the rest is still there: none is in both or neither."""
    one = applier("plain")
    one.apply([], bad=tuple(bad(f"k{number}", number=number) for number in range(1, 6)))
    seen: list[bytes] = []

    def dies(raw: bytes) -> Record | SetAside:
        seen.append(raw)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(raw)

    with pytest.raises(KeyboardInterrupt):
        replay(connect, SOURCE, "plain", "extract", dies, batch=2)
    assert set(one.table()) == {"k5", "k4"}
    assert [key for key, _ in left(connect)] == ["k1", "k2", "k3"]
    assert again(connect) == {"created": 3, "replayed": 3}


def test_only_this_object(applier: MakeApplier, connect: Connect) -> None:
    """Other objects' rows are left alone; an object that does not exist is told."""
    applier("plain").apply([], bad=(bad("k"),))
    applier("things").apply([], bad=(bad("k", 0, 1),))
    again(connect)
    assert len(left(connect)) == 1
    with pytest.raises(SourceError):
        again(connect, "nothing")
