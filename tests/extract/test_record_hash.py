"""The canonical hash: equal exactly when Postgres calls two values equal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.hashes.record_hash import canonical_hash
from airflow_extract_provider.extract.store.connection import Connect

SAME_DATABASE = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
"""A property that asks Postgres about many pairs in each example."""

numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,3})?([eE][+-]?[0-4])?", fullmatch=True)
long_numbers = st.from_regex(r"-?[1-9][0-9]{15,40}(\.[0-9]{0,20}[1-9])?([eE]-?[0-9]{1,2})?", fullmatch=True)
texts = st.sampled_from(["", "1", "1e0", "a", "A", "é", "e\u0301", "\U0001f600", "true", "null", "\\", '"', "\x01"])


def spelled(text: str) -> st.SearchStrategy[str]:
    """The JSON spellings of a text."""
    return st.sampled_from([json.dumps(text), json.dumps(text, ensure_ascii=False)])


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays and objects of JSON texts, with white space; names in any order."""
    space = st.sampled_from(["", " ", "\n\t"])
    names = st.lists(st.sampled_from(["a", "b", "aa", "B", "é", "1", ""]), unique=True, max_size=3)
    pairs = names.flatmap(lambda found: st.tuples(*(st.tuples(spelled(name), inner) for name in found)))
    objects = st.builds(lambda gap, told: "{" + ",".join(f"{gap}{k}:{gap}{v}" for k, v in told) + "}", space, pairs)
    arrays = st.builds(lambda gap, told: "[" + f",{gap}".join(told) + gap + "]", space, st.lists(inner, max_size=3))
    return objects | arrays


scalars = st.one_of(st.sampled_from(["null", "true", "false"]), numbers, long_numbers, texts.flatmap(spelled))
values = st.recursive(scalars, grown, max_leaves=5)


def respelled(text: str) -> st.SearchStrategy[str]:
    """The same value or nearly so: other names first, other spellings of numbers."""
    value = json.loads(text, parse_int=_Spelled, parse_float=_Spelled)
    return _respelled(value)


class _Spelled(str):
    """A number as it is spelled."""


def _respelled(value: Any) -> st.SearchStrategy[str]:
    if isinstance(value, _Spelled):
        more = [
            value,
            value + ("0" if "." in value and "e" not in value.lower() else "e0" if "e" not in value.lower() else ""),
        ]
        return st.sampled_from([*more, value.lower(), value.removeprefix("-")])
    if isinstance(value, dict):
        pairs = [st.tuples(st.just(json.dumps(name)), _respelled(each)) for name, each in value.items()]
        return st.tuples(*pairs).flatmap(st.permutations).map(lambda told: "{" + ",".join(map(":".join, told)) + "}")
    if isinstance(value, list):
        return st.tuples(*map(_respelled, value)).map(lambda told: "[" + ",".join(told) + "]")
    return st.just(json.dumps(value))


some_pairs = st.one_of(
    st.tuples(values, values),
    values.flatmap(lambda text: st.tuples(st.just(text), respelled(text))),
    st.tuples(numbers, numbers),
)


@SAME_DATABASE
@given(told=st.lists(some_pairs, min_size=1, max_size=60))
def test_equal_exactly_when_jsonb_is(connect: Connect, told: list[tuple[str, str]]) -> None:
    """Whatever is compared, numbers of all spellings, texts, objects and arrays: hash and Postgres agree."""
    query = "select a::jsonb = b::jsonb from unnest(%s::text[], %s::text[]) with ordinality as t(a, b, n) order by n"
    with connect() as conn:
        asked = conn.execute(query, ([one for one, _ in told], [other for _, other in told])).fetchall()
    for (one, other), (equal,) in zip(told, asked, strict=True):
        assert (canonical_hash(one.encode()) == canonical_hash(other.encode())) == equal, (one, other)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1", "1.0", True),
        ("1", "1e0", True),
        ("100", "1E+2", True),
        ("0.5", "5e-1", True),
        ("-0.05", "-5E-2", True),
        ("0", "-0", True),
        ("0", "-0.0e5", True),
        ("1", "true", False),
        ("1", '"1"', False),
        ("10", "1", False),
        ("9007199254740993", "9007199254740992", False),
        ("0.1", "0.10000000000000000001", False),
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ("[1, 2]", "[2, 1]", False),
        ("[]", "{}", False),
        ("[]", "null", False),
        ('{"a": null}', "{}", False),
        ('"\\u00e9"', '"é"', True),
        ('"\\ud83d\\ude00"', '"\U0001f600"', True),
    ],
)
def test_spellings_and_values(one: str, other: str, equal: bool) -> None:
    """What is one value in two spellings has one hash, what are two values have two."""
    assert (canonical_hash(one.encode()) == canonical_hash(other.encode())) is equal


def test_numbers_of_any_length() -> None:
    """Digits are compared as text: neither Python's limits nor a large exponent matter."""
    long = "1" * 20_000
    assert canonical_hash(long.encode()) == canonical_hash((long + ".0").encode())
    assert canonical_hash(long.encode()) != canonical_hash((long + "1").encode())
    assert canonical_hash(b"1e131071") == canonical_hash(("1" + "0" * 131_071).encode())


def test_sixteen_bytes_that_stay() -> None:
    """The hash is stored and goes into ids of events: it may never become another one."""
    assert canonical_hash(b'{"b": [1.50, "x"], "a": null}').hex() == "28cf8e0da6eb0e472a2ec5235981f05e"


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "{'a': 1}"])
def test_no_json(text: str) -> None:
    """What is no JSON has no hash."""
    with pytest.raises(ValueError, match=r"."):
        canonical_hash(text.encode())
