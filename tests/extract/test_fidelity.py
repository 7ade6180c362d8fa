"""Fidelity: what the API sent is what Postgres holds, equal as JSON to the last digit, or the page is refused."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from airflow_extract_provider.extract.errors import BadRecordError, WrongAnswerError
from airflow_extract_provider.extract.store.storable import unstorable
from tests.extract.scene import KEYED, TOKENS, Scene, exact
from tests.loopback import Fault

MakeScene = Callable[..., Scene]


def _nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


KEPT: Mapping[str, bytes] = {
    "an integer beyond 64 bits": b"12345678901234567890123",
    "an integer of 5,000 digits": b"7" * 5000,
    "a negative integer of 130,000 digits": b"-" + b"3" * 130_000,
    "a decimal beyond a double": b"0.1000000000000000055",
    "a decimal of 16,000 digits": b"0." + b"3" * 16_000,
    "1.0": b"1.0",
    "1.00": b"1.00",
    "1e400": b"1e400",
    "1E+2": b"1E+2",
    "1e-400": b"1e-400",
    "a small number": b"-1.5e-300",
    "-0": b"-0",
    "-0.0": b"-0.0",
    "escaped letters": b'"\\u00e9\\u00E9 \\ud83d\\ude00"',
    "raw letters": '"\u00e9 e\u0301 \U0001f600 \u2028"'.encode(),
    "all short escapes": b'"\\"\\\\\\/\\b\\f\\n\\r\\t"',
    "control characters": b'"\\u0001\\u001f\\u007f"',
    "the text of an escape": b'"\\\\u0000 \\\\ud800"',
    "backslashes before such a text": b'"\\\\\\\\u0000 \\\\\\\\\\\\u0000"',
    "noncharacters": b'"\\uffff\\ufffe"',
    "null": b"null",
    "empty": b'["", {}, [], " "]',
    "literals": b"[true, false, null, 0, 1]",
    "white space": b' {\t"a" :\r\n 1 } ',
    "nested deeply": _nested(400),
    "names that differ in case": b'{"a": 1, "A": 2, "\\u00e9": 3, "e\\u0301": 4, "": 5}',
    "a date as text": b'"2026-01-01T00:00:00.123456789+02:00"',
    "a long text": b'"' + b"abc " * 100_000 + b'"',
}


@pytest.fixture
def tokens(make_scene: MakeScene) -> Scene:
    """An object paged by tokens."""
    return make_scene(TOKENS)


@pytest.mark.parametrize("name", KEPT)
def test_arrives_as_it_was_sent(name: str, tokens: Scene) -> None:
    """Numbers of any size, spellings of letters, null and everything else that JSON can say arrive equal."""
    raw = b'{"id": "a", "v": ' + KEPT[name] + b"}"
    tokens.api.rows = [raw]
    tokens.run()
    assert tokens.stored() == {"a": exact(raw)}


def test_spelled_digits_stay(tokens: Scene) -> None:
    """Not only the value: the digits themselves are in Postgres, trailing zeros included."""
    tokens.api.rows = [b'{"id": "a", "v": 12345678901234567890123, "w": 0.1000000000000000055, "x": 1.00, "y": 1.0}']
    tokens.run()
    table = sql.Identifier(*tokens.source.table(tokens.object))
    with tokens.connect() as conn:
        found = conn.execute(sql.SQL("select data->>'v', data->>'w', data->>'x', data->>'y' from {}").format(table))
        assert found.fetchone() == ("12345678901234567890123", "0.1000000000000000055", "1.00", "1.0")


def test_null_is_not_absent(tokens: Scene) -> None:
    """A field that is null and one that is not there are two things, and turning one into the other is a change."""
    tokens.api.rows = [b'{"id": "a", "v": null}', b'{"id": "b"}']
    tokens.run()
    tokens.assert_exact()
    tokens.api.rows = [b'{"id": "a"}', b'{"id": "b", "v": null}']
    summary = tokens.run(reset=True)
    assert summary.counts["updated"] == 2
    tokens.assert_exact()


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (b"1.0", b"1.00", False),
        (b"1e2", b"100", False),
        (b'"\\u00e9"', '"\u00e9"'.encode(), False),
        (b'{"a": 1, "b": 2}', b'{"b":2,"a":1}', False),
        (b"0.1", b"0.1000000000000000055", True),
        (b"9007199254740993", b"9007199254740992", True),
        (b'"e\\u0301"', b'"\\u00e9"', True),
        (b"[1, 2]", b"[2, 1]", True),
        (b"1", b"true", True),
        (b"1", b'"1"', True),
    ],
)
def test_what_counts_as_a_change(before: bytes, after: bytes, changed: bool, tokens: Scene) -> None:
    """Another spelling of the same value is no change, a difference in the last digit is one."""
    for value in (before, after):
        tokens.api.rows = [b'{"id": "a", "v": ' + value + b"}"]
        summary = tokens.run(reset=True)
    assert summary.as_dict()["updated"] == int(changed)
    assert tokens.revisions() == {2 if changed else 1}
    tokens.assert_exact()


REFUSED: Mapping[str, bytes] = {
    "a name twice": b'{"x": 1, "x": 2}',
    "a name twice, with equal values": b'{"x": 1, "x": 1}',
    "a name twice, once escaped": b'{"x": 1, "\\u0078": 2}',
    "a name twice, deep inside": b'[{"y": [{"x": {}, "z": 0, "x": {}}]}]',
    "half a pair, high": b'"\\ud800"',
    "half a pair, low": b'"\\udc00 "',
    "a pair in the wrong order": b'"\\udc00\\ud800"',
    "a high half before a text": b'"\\ud83d\\\\ude00"',
    "half a pair in a name": b'{"\\uDBFF": 1}',
    "NUL": b'"a\\u0000b"',
    "NUL in a name": b'{"\\u0000": 1}',
    "NUL behind a backslash": b'"\\\\\\u0000"',
    "1e200000": b"1e200000",
    "an integer of 140,000 digits": b"1" * 140_000,
    "1e-200000": b"1e-200000",
    "an exponent beyond all measure": b"1e99999999999999999999",
    "nested beyond all measure": _nested(5000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused(name: str, tokens: Scene) -> None:
    """What `jsonb` cannot hold, or would change in silence, stops the run; nothing of its page is stored."""
    tokens.api.rows = [b'{"id": "r%d", "v": 1}' % number for number in range(20)]
    right, tokens.api.rows[14] = tokens.api.rows[14], b'{"id": "r14", "v": ' + REFUSED[name] + b"}"

    exc = tokens.stops(BadRecordError)

    assert exc.page == 2
    # How deep a body is nested is known before it is cut into records.
    assert exc.record == (None if "nested" in name else 5)
    assert len(tokens.stored()) == tokens.ledger()[-1].position.records <= 10
    tokens.api.rows[14] = right
    tokens.assert_exact_after_repair()


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [{"id": "a"}], "note": "\\ud800", "next_cursor": null}',
        b'{"data": [{"id": "a"}], "\\udfff": 1, "next_cursor": null}',
    ],
)
def test_half_a_pair_beside_the_records(body: bytes, tokens: Scene) -> None:
    """Half a surrogate pair outside of the records spoils the whole answer; no record is blamed for it."""
    tokens.api.fault = lambda number, asked: Fault(body=body)
    exc = tokens.stops(WrongAnswerError)
    assert (exc.page, exc.record) == (1, None)
    assert tokens.stored() == {}


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [{"id": "a"}], "data": [{"id": "b"}], "next_cursor": null}',
        b'{"data": [{"id": "a"}], "next_cursor": null, "\\u0064ata": []}',
        b'{"data": [{"id": "a"}], "next_cursor": "t1", "next_cursor": null}',
    ],
)
def test_a_name_twice_beside_the_records(body: bytes, tokens: Scene) -> None:
    """One of two lists, or of two tokens, would be lost in silence: the answer is refused."""
    tokens.api.fault = lambda number, asked: Fault(body=body)
    exc = tokens.stops(WrongAnswerError)
    assert (exc.page, exc.record) == (1, None)
    assert "twice" in str(exc)
    assert tokens.stored() == {}


# --- Any JSON value: it arrives equal, or its page is refused -------------------------------------------------------

_CHARACTERS = st.one_of(
    st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=0x20),
    st.sampled_from(
        ['\\"', "\\\\", "\\/", "\\b", "\\n", "\\u00e9", "\\u0041", "\\ud83d\\ude00", "\\u001f", "\\\\u0000"]
    ),
)
_ODD_CHARACTERS = st.one_of(_CHARACTERS, st.sampled_from(["\\ud800", "\\udc00", "\\u0000", "\\uD83D", "\\\\\\u0000"]))
_DIGITS = st.text(string.digits, min_size=1, max_size=40)


def _texts(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(characters, max_size=8).map(lambda parts: '"' + "".join(parts) + '"')


def _numbers(exponents: st.SearchStrategy[int]) -> st.SearchStrategy[str]:
    whole = _DIGITS.map(lambda text: text.lstrip("0") or "0")
    fraction = st.one_of(st.just(""), _DIGITS.map(lambda text: "." + text))
    exponent = st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["e", "E+", "e-"]), exponents))
    return st.builds("{}{}{}{}".format, st.sampled_from(["", "-"]), whole, fraction, exponent)


def _values(texts: st.SearchStrategy[str], numbers: st.SearchStrategy[str], unique: bool) -> st.SearchStrategy[str]:
    """JSON as text, so that it is spelled in ways no encoder would choose."""

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        lists = st.lists(inner, max_size=4).map(lambda items: "[" + ", ".join(items) + "]")
        unique_by: Any = (lambda pair: json.loads(pair[0])) if unique else None
        members = st.lists(st.tuples(texts, inner), max_size=4, unique_by=unique_by)
        return st.one_of(
            lists, members.map(lambda pairs: "{" + ",".join(f"{name} :{value}" for name, value in pairs) + "}")
        )

    return st.recursive(st.one_of(st.sampled_from(["null", "true", "false"]), texts, numbers), grown, max_leaves=12)


GOOD = _values(_texts(_CHARACTERS), _numbers(st.integers(0, 400)), unique=True)
ANY = _values(_texts(_ODD_CHARACTERS), _numbers(st.integers(0, 150_000)), unique=False)
UNHURRIED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@UNHURRIED
@given(values=st.lists(GOOD, min_size=1, max_size=6))
def test_any_good_value_arrives(values: list[str], tokens: Scene) -> None:
    """Whatever JSON says without a name twice, half pairs, NUL or monstrous exponents arrives equal."""
    tokens.api.rows = [b'{"id": %d, "v": %s}' % (number, value.encode()) for number, value in enumerate(values)]
    tokens.run(reset=True)
    assert {key: tokens.stored()[key] for key in tokens.served()} == tokens.served()


@UNHURRIED
@given(value=ANY)
@example(value='{"\\\\u0000": 1, "\\\\": "u0000"}')
@example(value='"\\ud83d\\ude00\\ude00"')
def test_any_value_arrives_or_is_refused(value: str, tokens: Scene) -> None:
    """Any JSON at all arrives equal, or, if there is cause, stops the run with BadRecordError; nothing is stored."""
    table = sql.Identifier(*tokens.source.table(tokens.object))
    with tokens.connect() as conn:
        conn.execute(sql.SQL("truncate {}").format(table))
    tokens.api.rows = [b'{"id": "a"}', b'{"id": "b", "v": ' + value.encode() + b"}", b'{"id": "c"}']
    if _has_cause(value):
        exc = tokens.stops(BadRecordError, reset=True)
        assert (exc.page, exc.record) == (1, 2)
        assert tokens.stored() == {}
    else:
        tokens.run(reset=True)
        tokens.assert_exact()


def _has_cause(value: str) -> bool:
    """Whether there is a reason to refuse a value, found in another way than the engine's."""
    doubled: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        doubled.extend(name for name, _ in found if [other for other, _ in found].count(name) > 1)
        return dict(found)

    def too_large(text: str) -> Decimal:
        number = Decimal(text)
        _, digits, exponent = number.as_tuple()
        assert isinstance(exponent, int)
        # What Postgres holds: 131,072 digits before the point, 16,383 behind it. A zero has no digits before it.
        if (any(digits) and len(digits) + exponent > 131_072) or exponent < -16_383:
            doubled.append(text)
        return number

    loaded = json.loads(value, object_pairs_hook=pairs, parse_float=too_large, parse_int=too_large)
    text = json.dumps(loaded, ensure_ascii=False, default=str)
    return bool(doubled) or "\\u0000" in text.replace("\\\\", "") or any("\ud800" <= c <= "\udfff" for c in text)


# --- unstorable() on its own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith(("1e", "an "))])
def test_unstorable_tells_why(name: str) -> None:
    """Each thing that `jsonb` cannot hold has its own words, without the value."""
    why = unstorable(REFUSED[name])
    assert why is not None
    words = {"a name twice": "twice", "half": "surrogate", "a pair": "surrogate", "a high": "surrogate", "NUL": "NUL"}
    expected = next((word for start, word in words.items() if name.startswith(start)), "nested")
    assert expected in why


@pytest.mark.parametrize("name", KEPT)
def test_unstorable_lets_pass(name: str) -> None:
    """What can be held is not complained about."""
    assert unstorable(KEPT[name]) is None


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": }', b'"\x01"', b"[1 2]", b'{"a" 1}'])
def test_unstorable_knows_what_is_no_json(raw: bytes) -> None:
    """Bytes that are no JSON are told as such."""
    assert unstorable(raw) == "it is no JSON"


def test_unstorable_names_no_value() -> None:
    """A doubled name is shown only if it is a plain one: it may be a key of somebody's map."""
    assert unstorable(b'{"plain": 1, "plain": 2}') == "the name `plain` stands twice in one object"
    assert unstorable(b'{"a@b.example": 1, "a@b.example": 2}') == "a name stands twice in one object"


def test_a_page_of_last_keys_is_as_exact(make_scene: MakeScene) -> None:
    """The other way of paging carries the same bytes."""
    scene = make_scene(KEYED)
    scene.api.rows = [b'{"id": "k%d", "v": ' % number + value + b"}" for number, value in enumerate(KEPT.values())]
    scene.run()
    scene.assert_exact()
