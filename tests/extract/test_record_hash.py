"""The hashes of a record: of its bytes, and the canonical one, equal exactly when Postgres calls two values equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.hashes.record_hash import DIGESTS, canonical_hash
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.storing import HashName

SAME_DATABASE = settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
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


WITHOUT = """
create function without(record jsonb, path text[]) returns jsonb language plpgsql as $$
begin
    return record #- path;
exception when invalid_parameter_value or invalid_text_representation then
    -- There is no such place: something on the way to it is no object.
    return record;
end $$
"""
paths = st.lists(st.sampled_from(["a", "b", "aa", "B", "é", ""]), min_size=1, max_size=2).map(tuple)
excluded = st.lists(paths, min_size=1, max_size=2)


@pytest.fixture
def without(connect: Connect) -> Iterator[Connection]:
    """A connection to a database that takes a path out of a value."""
    with connect() as conn:
        conn.execute(WITHOUT)
        yield conn


@SAME_DATABASE
@given(told=st.lists(st.tuples(some_pairs, excluded), min_size=1, max_size=40), data=st.data())
def test_what_is_excluded_does_not_count(
    without: Connection, told: list[tuple[tuple[str, str], list[tuple[str, ...]]]], data: st.DataObject
) -> None:
    """By every function: two hashes are equal exactly when `jsonb` calls the values equal without those paths."""
    by = data.draw(st.sampled_from(get_args(HashName)))
    for (one, other), exclude in told:
        left = "without(without(%s::jsonb, %s), %s)"
        ways = [list(exclude[0]), list(exclude[-1])]
        row = without.execute(f"select {left} = {left}".encode(), [one, *ways, other, *ways]).fetchone()
        assert row is not None
        same = canonical_hash(one.encode(), exclude, by) == canonical_hash(other.encode(), exclude, by)
        assert same == row[0], (one, other, exclude, by)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ('{"a": {"v": 1, "w": 1}}', '{"a": {"w": 1.0}}', True),
        ('{"a": {"v": 1}}', '{"a": {}}', True),
        ('{"a": {"v": 1}}', "{}", False),
        ('{"a": null}', '{"a": {"v": 1}}', False),
        ('{"a": [{"v": 1}]}', '{"a": [{"v": 2}]}', False),
        ('{"u": 1, "a.v": 1}', '{"u": {"b": []}, "a.v": 2}', False),
        ('{"u": 1e99999}', '{"u": ' + "1" * 5_000 + "}", True),
        ('["u"]', '["v"]', False),
        ("null", '"u"', False),
    ],
)
def test_paths_lead_through_objects(one: str, other: str, equal: bool) -> None:
    """What is left out is named from the top, object by object; a list is not looked into."""
    exclude = [("a", "v"), ("u",)]
    assert (canonical_hash(one.encode(), exclude) == canonical_hash(other.encode(), exclude)) is equal


def test_sixteen_bytes_that_stay() -> None:
    """The hashes are stored and go into ids of events: they may never become others."""
    raw = b'{"b": [1.50, "x"], "a": null}'
    assert canonical_hash(raw).hex() == "28cf8e0da6eb0e472a2ec5235981f05e"
    assert {name: canonical_hash(raw, [("a",)], name).hex() for name in DIGESTS} == {
        "xxh3": "429a8239c7f6acfc39e0413e2270bce8",
        "md5": "4b725e772c29059235193b9da1bedad7",
        "sha256": "0fc22b262babe9a1fad4b883b0000221",
        "blake2b": "0520f93d7c038d9f573ff625c02f37cb",
    }
    assert {name: digest(b"abc").hex() for name, digest in DIGESTS.items()} == {
        "xxh3": "06b05ab6733a618578af5f94892f3950",
        "md5": "900150983cd24fb0d6963f7d28e17f72",
        "sha256": hashlib.sha256(b"abc").hexdigest()[:32],
        "blake2b": hashlib.blake2b(b"abc", digest_size=16).hexdigest(),
    }


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "{'a': 1}"])
def test_no_json(text: str) -> None:
    """What is no JSON has no hash."""
    with pytest.raises(ValueError, match=r"."):
        canonical_hash(text.encode())
