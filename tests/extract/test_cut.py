"""Cutting: records keep their own bytes, nothing of an answer is lost unseen, bad records are told or set aside."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_extract_provider.extract.api.cut import cut, cut_one, members, one_record
from airflow_extract_provider.extract.api.paginators.turn import envelope_value
from airflow_extract_provider.extract.errors import BadRecordError, RecordsPathError, WrongAnswerError
from airflow_extract_provider.extract.page import Page, Record, SetAside
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.sourcefile import parse_source

UTC = timezone.utc
NOW = datetime(2026, 5, 1, tzinfo=UTC)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def made(**spec: Any) -> ApiObject:
    """An object paged by tokens, unless told otherwise."""
    usual = {"path": "/t", "records": "data", "key": "id", "pages": {"by": "token", "take": "next", "send": "cursor"}}
    objects = {"things": {**usual, **spec}}
    return parse_source({"source": "crm", "connection": "none", "objects": objects}, "test").object("things")


def page(*rows: bytes, **spec: Any) -> Page:
    """The page of these rows."""
    return cut(made(**spec), b'{"data": [' + b",".join(rows) + b'], "next": null}', NOW)


def record(row: bytes, **spec: Any) -> Record:
    """The record of a row."""
    return page(row, **spec).records[0]


def bad(*rows: bytes, **spec: Any) -> BadRecordError:
    """The error that rows are refused with."""
    with pytest.raises(BadRecordError) as caught:
        page(*rows, **spec)
    return caught.value


# --- A name twice in the answer ---------------------------------------------------------------------------------------

TWICE = [
    ("data", b'{"data": [{"id": 1}], "data": [{"id": 2}]}'),
    ("data", b'{"data": [{"id": 1}], "data": [{"id": 1}]}'),
    ("data", b'{"data": [{"id": 1}], "next": null, "data": []}'),
    ("data", b'{"data": [{"id": 1}], "d\\u0061ta": []}'),
    ("data", b'{"next": 1, "data": [{"id": 1}], "next": 2}'),
    ("data", b'{"data": [], "data": [], "data": []}'),
    ("data", b'{"data": null, "data": [{"id": 1}]}'),
    ("a.data", b'{"a": {"data": [{"id": 1}], "data": []}}'),
    ("a.data", b'{"a": {"data": [{"id": 1}]}, "a": {"data": []}}'),
    # By the lengths of names and values alone, this is an object of one a and one b.
    ("data", b'{"a":1,"b":333,"a":{"x":1,      "b":22}}'),
    ("a.b.data", b'{"x": 1, "a": {"b": {"y": [2, 2], "data": [{"id": 1}], "y" : [2, 2]}}}'),
]


@pytest.mark.parametrize(("path", "body"), TWICE)
def test_a_name_twice_in_the_answer(path: str, body: bytes) -> None:
    """JSON's readers keep one of the two without a word, and a list of records would be lost."""
    with pytest.raises(WrongAnswerError, match="twice"):
        cut(made(records=path), body, NOW)


def test_a_name_twice_beside_a_token() -> None:
    """What is read of the answer beside its records is cut in the same way."""
    answer = cut(made(records="data"), b'{"data": [], "paging": {"next": "a", "next": null}}', NOW)
    with pytest.raises(WrongAnswerError, match="twice"):
        envelope_value(answer, ("paging", "next"))


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[],"next":null}',
        b' { "data" : [ ] ,\r\n\t"next" : {"data": [], "x": [1, {"data": 2}]} } ',
        b'{"data": [{"id": 1}], "Data": [], "dat\\u00e4": 1, "\\"": 1, "\\\\": 2, "": 3}',
        b'{"next": "}, \\"data\\": [", "data": []}',
        b'{"data": [{"id": "x", "data": [], "next": {}}]}',
    ],
)
def test_names_that_only_look_alike(body: bytes) -> None:
    """Other letters, other depths, names within texts: nothing is there twice."""
    assert cut(made(), body, NOW).envelope.keys() == json.loads(body).keys()


_SPACES = st.text(" \t\r\n", max_size=2)
_NAMES = st.sampled_from(["a", "b", "\\u0061", "", "\\\\", '\\"', "a\\\\", "é", "}"])
_VALUES = st.sampled_from(
    ["1", "10", '"a"', '",\\"b\\":1"', "{}", '{"a":1}', '[1, {"b":2,"b":3}]', "null", " 1 ", '"}"']
)


@given(parts=st.lists(st.tuples(_SPACES, _NAMES, _SPACES, _SPACES, _VALUES, _SPACES), max_size=6), space=_SPACES)
def test_members_are_each_there_once(parts: list[tuple[str, ...]], space: str) -> None:
    """However an object is spaced and spelled, its members come back, or a doubled name is found."""
    inner = ",".join(f'{a}"{name}"{b}:{c}{value}{d}' for a, name, b, c, value, d in parts)
    body = "{" + (inner or space) + "}"
    pairs: list[list[Any]] = []
    json.loads(body, object_pairs_hook=lambda found: pairs.append([name for name, _ in found]))
    if len({*pairs[-1]}) < len(pairs[-1]):
        with pytest.raises(WrongAnswerError):
            members(msgspec.Raw(body.encode()))
    else:
        found = members(msgspec.Raw(body.encode()))
        assert {name: json.loads(bytes(value)) for name, value in found.items()} == json.loads(body)


def test_a_bare_list_has_no_envelope() -> None:
    """A list has its records, and an empty envelope."""
    found = cut(made(records="@", pages={"by": "single"}), b' [ {"id":1} , {"id":2} ] ', NOW)
    assert [each.raw for each in found.records] == [b'{"id":1}', b'{"id":2}']
    assert (dict(found.envelope), found.rows, found.bad) == ({}, 2, ())


# --- Instants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamps", "value"),
    [
        ({}, b'"2026-01-01T01:00:00+01:00"'),
        ({"zone": "Europe/Berlin"}, b'"2026-01-01T01:00:00"'),
        ({"format": "unix"}, b"1767225600"),
        ({"format": "unix"}, b'"1767225600.0"'),
        ({"format": "unix_ms"}, b"1767225600000"),
        ({"format": "%d/%m/%Y", "zone": "UTC"}, b'"01/01/2026"'),
    ],
)
def test_versions_as_declared(timestamps: Any, value: bytes) -> None:
    """Version, order and what `since` compares are read as `timestamps` says."""
    spec: dict[str, Any] = {"version": "at", "order": ["at", "id"], "timestamps": timestamps}
    found = record(b'{"id": 1, "at": ' + value + b"}", since={"send": "s", "inclusive": True}, **spec)
    assert found.version == found.order == found.since == NEW_YEAR
    assert record(b'{"id": 1, "at": ' + value + b"}", **spec).since is None


@pytest.mark.parametrize(
    ("timestamps", "value", "words"),
    [
        ({}, b'"2026-01-01T00:00:00"', "the version `at` is no RFC 3339 instant with a zone"),
        ({}, b'"yesterday"', "no RFC 3339 instant with a zone"),
        ({}, b"1767225600", "no RFC 3339 instant with a zone"),
        ({"zone": "Europe/Berlin"}, b'"2026-10-25T02:30:00"', "or a local time that Europe/Berlin has twice or never"),
        ({"format": "unix"}, b"1767225600000", "no unix time in seconds"),
        ({"format": "unix_ms"}, b'"2026-01-01T00:00:00Z"', "no unix time in milliseconds"),
        ({"format": "%d/%m/%Y", "zone": "UTC"}, b'"2026-01-01"', "no instant of that pattern"),
        ({"format": "%d/%m/%Y %z"}, b'"2026-01-01"', "no instant of that pattern"),
    ],
)
def test_versions_that_are_not_as_declared(timestamps: Any, value: bytes, words: str) -> None:
    """What is not written as declared is refused, in the words of the declaration, without the value."""
    exc = bad(b'{"id": "a", "at": ' + value + b"}", version="at", timestamps=timestamps)
    assert words in str(exc)
    assert value.decode().strip('"') not in str(exc)
    assert (exc.record, exc.key) == (1, "a")


def test_since_may_compare_another_field() -> None:
    """The version and what `since` compares are two values then; either may be missing."""
    spec: dict[str, Any] = {"version": "at", "since": {"send": "s", "inclusive": True, "field": "meta.created"}}
    found = record(b'{"id": 1, "at": "2026-01-02T00:00:00Z", "meta": {"created": "2026-01-01T00:00:00Z"}}', **spec)
    assert (found.version, found.since) == (NEW_YEAR + timedelta(days=1), NEW_YEAR)
    assert record(b'{"id": 1, "at": null, "meta": null}', **spec).since is None
    assert record(b'{"id": 1}', **spec).version is None
    exc = bad(b'{"id": "a", "meta": {"created": "soon"}}', **spec)
    assert "`meta.created`, which `since` compares, is no RFC 3339 instant" in str(exc)
    assert exc.key == "a"
    spec["order"] = ["meta.created"]
    assert record(b'{"id": 1, "meta": {"created": "2026-01-01T00:00:00Z"}}', **spec).order == NEW_YEAR


@pytest.mark.parametrize(
    ("order", "value", "expected"),
    [
        ("n", b"10", Decimal(10)),
        ("n", b"1.50", Decimal("1.5")),
        ("n", b'"2026-01-01T00:00:00Z"', NEW_YEAR),
        ("n", b"null", None),
        ("id", b'"r10"', "r10"),
        ("id", b'"10"', "10"),
        ("id", b"10", Decimal(10)),
    ],
)
def test_order_values(order: str, value: bytes, expected: Any) -> None:
    """Numbers and instants by value; only the key may be ordered as a text."""
    row = b'{"id": ' + value + b"}" if order == "id" else b'{"id": 1, "n": ' + value + b"}"
    assert record(row, order=[order]).order == expected


@pytest.mark.parametrize("value", [b'"r10"', b"true", b"{}", b'""'])
def test_orders_that_have_no_value(value: bytes) -> None:
    """Another text could be ordered in any way: refused."""
    assert "neither a number nor an RFC 3339 instant" in str(bad(b'{"id": 1, "n": ' + value + b"}", order=["n"]))


# --- Tombstones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "deleted"),
    [
        (b"true", True),
        (b"1", True),
        (b'"2026-01-01T00:00:00Z"', True),
        (b'"yes"', True),
        (b"{}", False),
        (b"[ ]", False),
        (b'"no"', False),
        (b'"N"', False),
        (b'"null"', False),
        (b'{"state": "deleted"}', True),
        (b"1767225600", True),
        (b"0.5", True),
        (b"false", False),
        (b"null", False),
        (b"0", False),
        (b"0.0", False),
        (b'""', False),
        (b'"0"', False),
        (b'"False"', False),
        (b'"0000-00-00 00:00:00"', False),
        (b'"0000-00-00T00:00:00Z"', False),
    ],
)
def test_tombstones(value: bytes, deleted: bool) -> None:
    """A record is deleted if the field says anything but no; a date of zeros is how old databases say no."""
    assert record(b'{"id": 1, "gone": ' + value + b"}", deleted="gone").deleted is deleted


def test_tombstones_hold_little() -> None:
    """A tombstone needs its key; what else is read may be missing. Without the field, or a config for it, none is."""
    spec: dict[str, Any] = {"deleted": "meta.gone", "version": "at", "order": ["n"]}
    found = record(b'{"id": 1, "meta": {"gone": true}}', **spec)
    assert (found.deleted, found.version, found.order) == (True, None, None)
    assert not record(b'{"id": 1, "meta": null}', **spec).deleted
    assert not record(b'{"id": 1}', **spec).deleted
    assert not record(b'{"id": 1, "meta": {"gone": true}}').deleted
    assert "the key `id` is missing" in str(bad(b'{"meta": {"gone": true}}', **spec))


# --- Set aside --------------------------------------------------------------------------------------------------------

QUARANTINE: dict[str, Any] = {"on_bad_record": "quarantine", "version": "at"}


def test_bad_records_are_set_aside() -> None:
    """Each with its number, its own bytes, why, and its key if that can be read; the good ones stay in their order."""
    found = page(
        b'{"id": 1}',
        b'{ "n" : 1 }',
        b"7",
        b'{"id": "b", "at": "soon"}',
        b'{"id": "c", "x": "\\ud800 \\ud83d\\ude00", "y": "\\udc00"}',
        b'{"id": "\\udc00"}',
        b'{"id": 2}',
        **QUARANTINE,
    )
    assert [each.key for each in found.records] == ["1", "2"]
    assert found.rows == 7
    assert found.bad == (
        SetAside(2, b'{ "n" : 1 }', "the key `id` is missing or null"),
        SetAside(3, b"7", "the record is a number, not an object"),
        SetAside(4, b'{"id": "b", "at": "soon"}', "the version `at` is no RFC 3339 instant with a zone", "b"),
        SetAside(
            5,
            b'{"id": "c", "x": "\\ud800 \\ud83d\\ude00", "y": "\\udc00"}',
            "a text in the record holds half a surrogate pair",
            "c",
        ),
        SetAside(6, b'{"id": "\\udc00"}', "a text in the record holds half a surrogate pair"),
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"data": [{"id": 1}',
        b'{"data": [{"id": 1}], "note": "\\ud800"}',
        b'{"data": [{"id": "\\ud800"}], "note": "\\ud800"}',
        b'{"data": [{"id": "\\ud800"}, x]}',
        b'{"data": [{"id": "\\ud800"}], "data": []}',
        b'{"data": [{"id": 1, "v": "\xff"}]}',
        b'{"data": [{"id": 1}], "error": "x"}',
    ],
)
def test_answers_that_are_none_are_not_set_aside(body: bytes) -> None:
    """The quarantine is for records: an answer that is none stops the run all the same."""
    with pytest.raises(WrongAnswerError):
        cut(made(**QUARANTINE), body, NOW)


_PIECES = st.sampled_from(
    ["a", "é", "\\n", "\\\\", '\\"', "\\ud800", "\\udfff", "\\uDBFF", "\\ud83d\\ude00", "\\ufffc", "\\ufffd", "\\u0041",
     "\\\\ud800"]
)  # fmt: skip
_TEXTS = st.lists(_PIECES, max_size=6).map("".join)


@given(texts=st.lists(st.tuples(_TEXTS, _TEXTS), max_size=6))
@example(texts=[("\\ud800", "\\udfff"), ("", ""), ("\\ud83d\\ud800", "\\ufffd")])
def test_half_pairs_are_found_where_they_are(texts: list[tuple[str, str]]) -> None:
    """Whichever records hold half a pair, just these are set aside, byte by byte as they came."""
    rows = [f'{{"id": {n}, "{a}": [ "{b}" ]}}'.encode() for n, (a, b) in enumerate(texts)]
    found = page(*rows, **QUARANTINE)
    halved = {n for n, raw in enumerate(rows) if not _encodes(raw)}
    assert [int(each.key) for each in found.records] == [n for n in range(len(rows)) if n not in halved]
    assert [(each.number - 1, each.raw, each.key) for each in found.bad] == [
        (n, rows[n], str(n)) for n in sorted(halved)
    ]
    assert all(each.raw == rows[int(each.key)] for each in found.records)
    if halved:
        assert bad(*rows, version="at").record == min(halved) + 1
    for n, raw in enumerate(rows):
        alone = one_record(made(), raw)
        assert isinstance(alone, SetAside if n in halved else Record)
        assert (alone.raw, alone.key) == (raw, str(n))


def _encodes(raw: bytes) -> bool:
    try:
        json.dumps(json.loads(raw), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# --- One record -------------------------------------------------------------------------------------------------------


def test_one_record_by_itself() -> None:
    """As a record on a page, whatever `on_bad_record` says."""
    thing = made(version="at")
    good = one_record(thing, b' {"id": 7, "at": "2026-01-01T00:00:00Z"} ')
    assert good == Record("7", b'{"id": 7, "at": "2026-01-01T00:00:00Z"}', version=NEW_YEAR)
    assert one_record(thing, b'{"id": 7, "at": 1}') == SetAside(
        1, b'{"id": 7, "at": 1}', "the version `at` is no RFC 3339 instant with a zone", "7"
    )


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "it is no JSON"),
        (b"<x>", "it is no JSON"),
        (b'{"id": 1', "it is no JSON"),
        (b'{"id": "\xff"}', "it is no JSON"),
        (b'{"id": 1} {"id": 2}', "it is no JSON"),
        (b"[" * 9000 + b"]" * 9000, "it is nested too deeply to be read"),
        (b"[]", "the record is a list, not an object"),
        (b"{}", "the key `id` is missing or null"),
    ],
)
def test_one_record_that_is_none(raw: bytes, why: str) -> None:
    """Whatever lies in the quarantine, it is told why it stays there."""
    assert one_record(made(), raw) == SetAside(1, raw, why)


# --- A read by key ----------------------------------------------------------------------------------------------------


def one(body: bytes, record: str = "@", key: str | None = "a", **spec: Any) -> Page:
    """The page of a read by key."""
    return cut_one(made(by_key={"path": "/t/{{ key }}", "record": record}, **spec), body, NOW, key)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("@", b' {"id": "a", "error": "a field of the record"} '),
        ("data", b'{"data": {"id": "a"}, "error": null}'),
        ("data.thing", b'{"data": {"thing": {"id": "a"}, "more": []}}'),
    ],
)
def test_an_answer_to_a_read_by_key(path: str, body: bytes) -> None:
    """The answer is the record, or holds it; its own fields are no errors of the API."""
    found = one(body, path)
    assert (found.records[0].key, found.rows, found.began_at) == ("a", 1, NOW)
    assert found.records[0].raw in body


def test_an_answer_with_another_record() -> None:
    """The record of another key is never taken for the one that was asked for."""
    with pytest.raises(WrongAnswerError) as caught:
        one(b'{"id": "b"}')
    assert caught.value.key == "a"
    assert one(b'{"id": "b"}', key=None).records[0].key == "b"
    assert one(b'{"id": 7}', key="7").records[0].key == "7"


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("@", b"", WrongAnswerError),
        ("@", b"<html>", WrongAnswerError),
        ("@", b'{"id": "a"', WrongAnswerError),
        ("@", b'{"error": "gone"}', BadRecordError),
        ("@", b"null", BadRecordError),
        ("@", b"[]", BadRecordError),
        ("@", b'{"id": "a", "x": "\\ud800"}', BadRecordError),
        ("@", b'{"id": "a", "at": "soon"}', BadRecordError),
        ("data", b'{"data": {"id": "a"}, "data": {"id": "a"}}', WrongAnswerError),
        ("data", b'{"error": "x", "data": null}', WrongAnswerError),
        ("data", b'{"id": "a"}', RecordsPathError),
        ("data", b'[{"id": "a"}]', RecordsPathError),
        ("data.thing", b'{"data": null}', RecordsPathError),
        ("data", b'{"data": null}', BadRecordError),
        ("data", b'{"data": [{"id": "a"}]}', BadRecordError),
    ],
)
def test_answers_that_hold_no_record(path: str, body: bytes, kind: type[Exception]) -> None:
    """Nothing else is taken for the record, and none for its absence."""
    with pytest.raises(kind) as caught:
        one(body, path, version="at")
    if kind is RecordsPathError:
        assert "by_key.record" in str(caught.value)


def test_a_read_by_key_sets_aside() -> None:
    """A bad record is set aside here too; one whose key can be read must be the right one."""
    assert one(b'{"id": "a", "at": "soon"}', **QUARANTINE).bad[0].key == "a"
    assert one(b'{"at": "soon"}', **QUARANTINE).bad[0].key is None
    with pytest.raises(WrongAnswerError):
        one(b'{"id": "b", "at": "soon"}', **QUARANTINE)
