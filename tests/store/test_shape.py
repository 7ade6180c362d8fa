"""How records are stored: typed columns, a part of the record only, and what counts as a change then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_extract_provider.extract.errors import BadRecordError, SchemaMissingError
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import check, migrate
from tests.store.applier import Applier

COLUMNS = {
    "name": "text",
    "amount": {"path": "plan.amount", "type": "numeric"},
    "count": {"path": "plan.count", "type": "bigint"},
    "rate": "double precision",
    "paid": "boolean",
    "at": "timestamptz",
    "day": "date",
    "tags": "jsonb",
}
Make = Callable[..., Applier]


def a_source(**spec: Any) -> Source:
    """A source of one object, stored in this way."""
    given = {"path": "/plain", "records": "data", "key": "id", "pages": {"by": "single"}, **spec}
    return parse_source({"source": "shop", "connection": "shop", "objects": {"plain": given}}, "test")


def raw(key: str = "k", **fields: Any) -> Record:
    """A record without a version."""
    return Record(key, json.dumps({"id": key, **fields}).encode())


@pytest.fixture
def stored(connect: Connect) -> Iterator[Make]:
    """Appliers on a table that is migrated for each source in turn."""
    made: list[Applier] = []

    def make(**spec: Any) -> Applier:
        source = a_source(**spec)
        migrate(connect, [source])
        made.append(Applier(connect, "plain", "backfill", source))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


def columns(conn: Connection) -> tuple[Any, ...]:
    """The typed columns of the one row, as texts."""
    names = ", ".join(f"{name}::text" for name in COLUMNS)
    row = conn.execute(f"set timezone to 'UTC'; select {names} from shop.plain".partition("; ")[2]).fetchone()
    assert row is not None
    return row


def test_typed_columns(stored: Make) -> None:
    """Each value is what the record says, to the last digit; they change with the record, and stay when it is gone."""
    one = stored(columns=COLUMNS)
    one.conn.execute("set timezone to 'UTC'")
    plan = {"amount": 0, "count": 2**62}
    text = json.dumps({"id": "k", "name": 'A "B" ünï', "plan": plan, "rate": 1.5, "paid": True}).replace(
        '"amount": 0', '"amount": 12345678901234567890.000000000000000001'
    )
    more = '"at": "2026-03-01T10:00:00+02:00", "day": "2026-03-01", "tags": ["a", {"b": null}]'
    one.apply([Record("k", f"{text[:-1]}, {more}}}".encode())])
    assert columns(one.conn) == (
        'A "B" ünï',
        "12345678901234567890.000000000000000001",
        str(2**62),
        "1.5",
        "true",
        "2026-03-01 08:00:00+00",
        "2026-03-01",
        '["a", {"b": null}]',
    )
    one.apply([raw(name="other", plan={"amount": "7.50"}, paid=None)])
    assert columns(one.conn) == ("other", "7.50", None, None, None, None, None, None)
    one.apply([], gone=("k",))
    assert columns(one.conn)[0] == "other"
    one.apply([raw(name="back")])
    assert columns(one.conn)[0] == "back"
    assert one.rows() == {"k": (None, 4, False)}


@pytest.mark.parametrize(
    ("column", "fields"),
    [
        ("amount", {"plan": {"amount": "seven"}}),
        ("count", {"plan": {"count": 1.5}}),
        ("count", {"plan": {"count": 2**63}}),
        ("paid", {"paid": "yes"}),
        ("at", {"at": "yesterday"}),
        ("day", {"day": "2026-02-30"}),
        ("day", {"day": 20260301}),
        ("day", {"day": "2026-W09-7"}),
        ("amount", {"plan": {"amount": "1e131072"}}),
        ("amount", {"plan": {"amount": "0." + "1" * 16384}}),
        ("rate", {"rate": []}),
        ("rate", {"rate": "1e-400"}),
        ("rate", {"rate": "1e400"}),
    ],
)
def test_a_value_that_does_not_fit(stored: Make, column: str, fields: dict[str, Any]) -> None:
    """The page fails with the column's name and without the value, and nothing of it is stored; or it is set aside."""
    one = stored(columns=COLUMNS)
    with pytest.raises(BadRecordError, match=f"the column {column} of type") as caught:
        one.apply([raw("good"), raw("bad", **fields)])
    assert caught.value.key == "bad"
    assert "seven" not in str(caught.value)
    assert one.rows() == {}
    assert one.apply([raw("good"), raw("bad", **fields)], quarantine=True) == {"created": 1, "quarantined": 1}
    assert set(one.rows()) == {"good"}


def test_a_column_is_added(stored: Make, connect: Connect) -> None:
    """Declared later: named by the check, added by migrate, filled when records are read again; that is no change."""
    one = stored()
    one.apply([raw(name="x")])
    later = a_source(columns={"name": "text"})
    with pytest.raises(SchemaMissingError, match="has no column name"):
        check(one.conn, "extract", later, "plain")
    two = stored(columns={"name": "text"})
    assert two.apply([raw(name="x")]) == {"unchanged": 1}
    assert two.conn.execute("select name, revision from shop.plain").fetchone() == ("x", 1)
    with pytest.raises(SchemaMissingError, match="is of type text, and `columns` says bigint"):
        migrate(connect, [a_source(columns={"name": "bigint"})])


def test_an_odd_tombstone(stored: Make) -> None:
    """A deletion writes no columns: what a tombstone holds in their places is no reason to refuse it."""
    one = stored(columns=COLUMNS)
    gone = Record("k", b'{"id": "k", "day": "", "rate": "none"}', deleted=True)
    one.apply([raw(name="a"), replace(gone, key="never seen")])
    one.apply([gone])
    assert one.rows() == {"k": (None, 2, True), "never seen": (None, 1, True)}
    assert one.conn.execute("select name from shop.plain order by key").fetchall() == [("a",), (None,)]


def test_long_names(stored: Make) -> None:
    """As long as Postgres allows, with a common beginning."""
    long = ["a" * 60 + "1", "a" * 60 + "2"]
    one = stored(columns={name: {"path": "name", "type": "text"} for name in long})
    for value in ("x", "y"):
        one.apply([raw(name=value)])
        assert one.conn.execute(f"select {', '.join(long)} from shop.plain").fetchone() == (value, value)


def test_a_zone_is_corrected(stored: Make) -> None:
    """Typed instants are read anew when the source file says that they mean others."""
    for zone, hour in (("UTC", 10), ("Europe/Berlin", 9)):
        one = stored(columns={"at": "timestamptz"}, timestamps={"zone": zone})
        one.apply([raw(at="2026-01-01T10:00:00")])
        one.conn.execute("set timezone to 'UTC'")
        assert one.conn.execute("select extract(hour from at)::int, revision from shop.plain").fetchone() == (hour, 1)


def kept(conn: Connection) -> tuple[Any, int]:
    """What `data` holds, and how often it has changed."""
    row = conn.execute("select data, revision from shop.plain").fetchone()
    assert row is not None
    return row[0], row[1]


def test_a_part_is_kept(stored: Make) -> None:
    """`data` holds the fields that were asked for, with their digits; any change of the record is one all the same."""
    one = stored(keep=["status", "plan.amount", "gone.far"])
    record = b'{"id": "k", "plan": {"amount": 1.10, "more": 1}, "status": null, "x": 1}'
    assert one.apply([Record("k", record)]) == {"created": 1}
    text = one.conn.execute("select data::text from shop.plain").fetchone()
    assert text == ('{"plan": {"amount": 1.10}, "status": null}',)
    assert one.apply([Record("k", record.replace(b" ", b""))]) == {"unchanged": 1}
    assert one.apply([Record("k", record.replace(b'"x": 1', b'"x": 1.0'))]) == {"unchanged": 1}
    assert one.apply([Record("k", record.replace(b'"x": 1', b'"x": true'))]) == {"updated": 1}
    assert kept(one.conn) == ({"plan": {"amount": 1.1}, "status": None}, 2)


def test_nothing_is_kept(stored: Make) -> None:
    """Changes are found by the hash alone."""
    one = stored(keep="none", columns={"name": "text"})
    assert one.apply([raw(name="a", x=1)]) == {"created": 1}
    assert one.apply([raw(x=1, name="a")]) == {"unchanged": 1}
    assert one.apply([raw(name="a", x=2)]) == {"updated": 1}
    assert kept(one.conn) == ({}, 2)


@pytest.mark.parametrize("first", ["all", "none", ["x"]])
@pytest.mark.parametrize("then", ["all", "none", ["name"], ["x"]])
def test_keep_is_changed(stored: Make, first: Any, then: Any) -> None:
    """A record that is read again is stored in the new way. That is no change; a change is seen across it."""
    expected = {"all": {"id": "k", "name": "a", "x": 1}, "none": {}}.get(str(then), {"name": "a"})
    if then == ["x"]:
        expected = {"x": 1}
    stored(keep=first).apply([raw(name="a", x=1)])
    assert stored(keep=then).apply([raw(name="a", x=1)]) == {"unchanged": 1}
    assert kept(stored(keep=then).conn) == (expected, 1)
    assert stored(keep=first).apply([raw(name="b", x=1)]) == {"updated": 1}
    assert kept(stored(keep=first).conn)[1] == 2


def told(conn: Connection) -> list[tuple[str, Any]]:
    """The events, with what they say has changed."""
    return conn.execute("select type, data -> 'changed' from extract.outbox order by sequence").fetchall()


def test_keep_is_extended_under_rules(stored: Make) -> None:
    """What was before in a field that was not kept is not known: nothing is told of it, as in a first backfill."""
    rules = [
        {"changed": {"field": "b", "name": "b.changed"}},
        {"rising_edge": {"value": "b", "above": 5, "name": "b.over"}},
        {"changed": {"field": "a", "name": "a.changed"}},
    ]
    stored(keep=["a"]).apply([raw(a=1, b=7, c=1)])
    one = stored(keep=["a", "b"], events=rules)
    assert one.apply([raw(a=1, b=7, c=2)])["updated"] == 1
    assert told(one.conn) == []
    one.apply([raw(a=2, b=8, c=2)])
    assert told(one.conn) == [("b.changed", ["a", "b"]), ("a.changed", ["a", "b"])]
    two = stored(keep=["b"], events=rules[:2])
    two.apply([raw(a=2, b=9, c=2)])
    assert told(two.conn)[2:] == [("b.changed", ["b"])]
    whole = stored(events=[{"changed": {"name": "any"}}, rules[0]])
    whole.apply([raw(a=2, b=10, c=2)])
    assert told(whole.conn)[3:] == [("b.changed", ["b"])]
