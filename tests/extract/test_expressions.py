"""JMESPath with all digits, and the fields that an expression reads."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import jmespath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.exact import exact, read, same, written
from airflow_extract_provider.extract.expressions import Expression
from airflow_extract_provider.extract.page import FieldPath

WHEN_ROOTS: frozenset[FieldPath] = frozenset({(), ("before",), ("after",)})


@pytest.mark.parametrize(
    ("text", "record", "found"),
    [
        ("a", '{"a": 12345678901234567890.123456789}', "12345678901234567890.123456789"),
        ("sum(a)", '{"a": [0.1, 0.2]}', "0.3"),
        ("sum(a)", '{"a": [12345678901234567890123456789012345678901, 0.1]}',
         "12345678901234567890123456789012345678901.1"),
        ("sum(a)", '{"a": []}', "0"),
        ("avg(a)", '{"a": [0.1, 0.3]}', "0.2"),
        ("avg(a)", '{"a": []}', "null"),
        ("max(a)", '{"a": [1, 1.5, 1.25]}', "1.5"),
        ("min(a)", '{"a": [1, 1.5, 0.25]}', "0.25"),
        ("sort(a)", '{"a": [1, 0.5, 0.75]}', "[0.5, 0.75, 1]"),
        ("sort_by(a, &b)[].b", '{"a": [{"b": 1}, {"b": 0.5}]}', "[0.5, 1]"),
        ("max_by(a, &b).b", '{"a": [{"b": 1}, {"b": 1.5}]}', "1.5"),
        ("abs(a)", '{"a": -1234567890123456789012345678901234567890.5}',
         "1234567890123456789012345678901234567890.5"),
        ("abs(a)", '{"a": -3}', "3"),
        ("ceil(a)", '{"a": 1234567890123456789012345678901234567890.5}', "1234567890123456789012345678901234567891"),
        ("floor(a)", '{"a": -0.5}', "-1"),
        ("to_number(a)", '{"a": "0.10000000000000000001"}', "0.10000000000000000001"),
        ("to_number(a)", '{"a": "1e3"}', "1000"),
        ("to_number(a)", '{"a": "NaN"}', "null"),
        ("to_number(a)", '{"a": "1_000"}', "null"),
        ("to_number(a)", '{"a": true}', "null"),
        ("to_number(a)", '{"a": 5}', "5"),
        ("to_string(a)", '{"a": {"b": [1.50, "x", true]}}', '"{\\"b\\":[1.50,\\"x\\",true]}"'),
        ("to_string(a)", '{"a": "x"}', '"x"'),
        ("type(a)", '{"a": 1.5}', '"number"'),
        ("type(a)", '{"a": true}', '"boolean"'),
        ("type(a)", '{}', '"null"'),
        ("a == `1`", '{"a": 1.0}', "true"),
        ("a == `true`", '{"a": 1}', "false"),
        ("a == `[true]`", '{"a": [1]}', "false"),
        ("a != `{\"b\": true}`", '{"a": {"b": 1}}', "true"),
        ("a == `0.1`", '{"a": 0.1}', "true"),
        ("a > `0.10000000000000000001`", '{"a": 0.10000000000000000002}', "true"),
        ("a > `0.1`", '{"a": 0.1}', "false"),
        ("a > `1`", '{"a": true}', "null"),
        ("a > `1`", '{"a": "2"}', "null"),
        ("a > 'b'", '{"a": "c"}', "true"),
        ("contains(a, `1`)", '{"a": [true]}', "false"),
        ("contains(a, `1`)", '{"a": [1.0]}', "true"),
        ("contains(a, 'b')", '{"a": "abc"}', "true"),
        ("contains(a, `1`)", '{"a": "1"}', "false"),
        ("a[?b > `1.5`].b", '{"a": [{"b": 1.5}, {"b": 1.50001}]}', "[1.50001]"),
        ("!a", '{"a": 0.0}', "false"),
        ("length(a)", '{"a": [1, 2]}', "2"),
    ],
)  # fmt: skip
def test_values(text: str, record: str, found: str) -> None:
    """Numbers keep their digits through functions and comparisons; true is no number."""
    assert same(Expression.compiled(text).value(read(record)), read(found))


def test_an_average_that_never_ends() -> None:
    """It is more exact than the numbers it is made of."""
    found = Expression.compiled("avg(a)").value(read('{"a": [1, 1, 0]}'))
    assert abs(found * 3 - 2) < Decimal("1e-27")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("a..b", "'.' at its character 3 is not expected there"),
        ("a.", "it ends too early"),
        ("a[0", "it ends too early"),
        ("a b", "'b' at its character 3 is not expected there"),
        ("a > 5", r"'5' at its character 5 is not expected there \(a number is written in backticks\)"),
        ("a == `x`", r"what begins at its character 6 is not understood \(in backticks stands JSON"),
        ("a == `1e999999`", "what begins at its character 6 is not understood"),
        ("a = 'x'", "what begins at its character 3 is not understood"),
        ("a#", "what begins at its character 2 is not understood"),
        ('"a', "what begins at its character 1 is not understood"),
        ("summ(a)", r"JMESPath has no function summ\(\); it has abs, avg,"),
        ("a[?nope(b)]", r"no function nope\(\)"),
        ("sum(a, b)", r"the function sum\(\) takes 1 values, not 2"),
        ("join(a)", r"the function join\(\) takes 2 values, not 1"),
        ("(" * 5000, "nested too deeply"),
    ],
)
def test_no_expression(text: str, words: str) -> None:
    """What is no expression is refused, and the message says where."""
    with pytest.raises(ValueError, match=words):
        Expression.compiled(text)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("a", ["a"]),
        ("a.b.c", ["a.b.c"]),
        ("a | b", ["a.b"]),
        ("(a).b", ["a.b"]),
        ("a[0].b", ["a"]),
        ("a.b[].c.d | sum(@)", ["a.b"]),
        ("a[?b == `1`].c", ["a"]),
        ("a.*.b", ["a"]),
        ("a[1:2]", ["a"]),
        ("a || b.c", ["a", "b.c"]),
        ("(a || b).c", ["a", "b.c"]),
        ("a && b", ["a", "b"]),
        ("!(a.b)", ["a.b"]),
        ("a.b.c.{x: d}", ["a.b.c", "a.b.c.d"]),
        ("a.b == 'x' && c > `5`", ["a.b", "c"]),
        ("{x: a.b, y: c}.x.d", ["a.b", "c"]),
        ("[a, b][].c", ["a", "b"]),
        ("a.{x: b}", ["a", "a.b"]),
        ("a == `null`", ["a"]),
        ("length(a.b)", ["a.b"]),
        ("map(&x, a)", ["a"]),
        ("not_null(a, b.c)", ["a", "b.c"]),
        ("`5`", []),
        ("@", [""]),
        ("keys(@)", [""]),
        ("*", [""]),
        ("[0]", [""]),
        ("@.a", ["a"]),
        ('"a b".c', ["a b.c"]),
    ],
)
def test_reads(text: str, reads: list[str]) -> None:
    """The fields that an expression reads; where it cannot be told which, all that are below."""
    assert sorted(".".join(path) for path in Expression.compiled(text).reads()) == sorted(reads)


names = st.sampled_from(["a", "b", "c"])
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "x", "y"]), st.decimals(-2, 2, places=1)
)
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
records = st.dictionaries(names, json_values, max_size=3)


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(inner, inner)
    return st.one_of(
        two.map(lambda pair: f"({pair[0]}).{pair[1]}" if pair[1] in "abc" else f"({pair[0]}) | {pair[1]}"),
        st.tuples(inner, st.sampled_from(["==", "!=", "<", ">", "||", "&&", "|"]), inner).map(
            lambda told: f"({told[0]}) {told[1]} ({told[2]})"
        ),
        two.map(lambda pair: f"({pair[0]})[?{pair[1]}].a"),
        inner.map(lambda text: f"({text})[].b"),
        inner.map(lambda text: f"({text})[0].b"),
        inner.map(lambda text: f"({text})[1:]"),
        inner.map(lambda text: f"({text}).*.b"),
        inner.map(lambda text: f"!({text})"),
        two.map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
        two.map(lambda pair: f"{{x: {pair[0]}, a: {pair[1]}}}"),
        two.map(lambda pair: f"({pair[0]}).{{b: {pair[1]}}}"),
        st.tuples(st.sampled_from(["type", "to_string", "to_array", "to_number", "not_null"]), inner).map(
            lambda told: f"{told[0]}({told[1]})"
        ),
        inner.map(lambda text: f"map(&({text}), to_array(a))"),
        inner.map(lambda text: f"({text}) == `null`"),
    )


expressions = st.recursive(st.sampled_from(["a", "b", "c", "a.b", "b.c.a", "@", "`1`", "'x'"]), _more, max_leaves=6)


def reduced(value: Any, paths: list[FieldPath]) -> Any:
    """A record with what stands at these paths, and nothing else below an object."""
    if () in paths or not isinstance(value, dict):
        return value
    return {
        name: reduced(each, [path[1:] for path in paths if path[0] == name])
        for name, each in value.items()
        if any(path[0] == name for path in paths)
    }


@settings(max_examples=600)
@given(record=records, text=expressions)
def test_what_is_not_read_does_not_matter(record: dict[str, Any], text: str) -> None:
    """Without the fields that are not read, the value is the same; or the same failure."""
    expression = Expression.compiled(text)
    assert outcome(expression, reduced(exact(record), list(expression.reads()))) == outcome(expression, exact(record))


@settings(max_examples=400)
@given(
    before=st.none() | records, after=st.none() | records, text=expressions, sides=st.sampled_from(["before", "after"])
)
def test_sides_that_are_null_stay_null(before: Any, after: Any, text: str, sides: str) -> None:
    """The same for conditions: fields are left out below `before` and `after`, which stay what they are."""
    expression = Expression.compiled(f"({sides}.a == (before | {text})) || [{sides} == `null`, after.{{a: b}}]")
    whole = exact({"before": before, "after": after})
    reads = expression.reads(WHEN_ROOTS)
    part = {
        side: None if whole[side] is None else reduced(whole, [*reads, (side, "-")]).get(side) for side in whole
    }  # fmt: skip
    assert outcome(expression, part) == outcome(expression, whole)


def outcome(expression: Expression, value: Any) -> bytes:
    """What an expression finds, or the kind of its failure."""
    try:
        return written(expression.value(value))
    except ValueError as exc:
        return type(exc).__name__.encode()


plain = st.recursive(
    st.none() | st.integers(2, 9) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(record=st.dictionaries(names, plain, max_size=3), text=expressions)
def test_otherwise_as_the_library(record: dict[str, Any], text: str) -> None:
    """Where there are no decimals, and neither 0 nor 1, the library says the same."""
    if "`1`" in text or "<" in text or ">" in text:
        return
    try:
        told = written(jmespath.search(text, record))
    except ValueError as exc:
        told = type(exc).__name__.encode()
    assert outcome(Expression.compiled(text), exact(record)) == told
