"""Event rules: what a file may say is read exactly, what is not understood is refused in its words."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from airflow_extract_provider.extract.rules import (
    Changed,
    Created,
    Edge,
    Every,
    FallingEdge,
    Python,
    RisingEdge,
    Rule,
    Rules,
    When,
    unkept,
)

RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(Rules)
ALL = """
- created
- deleted: {name: subscription.gone}
- undeleted
- changed
- changed: {field: status, name: status}
- changed: {fields: [status, plan.amount], name: plan}
- changed: {field: status, from: trialing, to: [active, null, 1.50], name: subscription.activated}
- rising_edge: {value: "items.data[].price.unit_amount | sum(@)", above: 1000000, rearm_below: 900000, name: passed_10k}
- falling_edge: {value: balance, below: 0, rearm_above: 10}
- when: {condition: "before.status == 'trialing' && after.plan.id == 'x'", name: trial.converted}
- every: change
- python: {function: "my_package.detectors:big_orders", name: order.big, reads: [total, plan.id]}
"""


def parsed(text: str) -> tuple[Rule, ...]:
    """The rules that a piece of YAML holds."""
    return RULES.validate_python(yaml.safe_load(text))


def one(text: str) -> Rule:
    """The only rule of a piece of YAML."""
    (rule,) = parsed(f"- {text}")
    return rule


def test_every_kind() -> None:
    """Each kind is read, with its name, its type and the fields it needs."""
    told = [(rule.kind, rule.name, rule.type_of("stripe", "subscriptions"), rule.reads()) for rule in parsed(ALL)]
    assert told == [
        ("created", "created", "stripe.subscriptions.created", ()),
        ("deleted", "subscription.gone", "subscription.gone", ()),
        ("undeleted", "undeleted", "stripe.subscriptions.undeleted", ()),
        ("changed", "changed", "stripe.subscriptions.changed", None),
        ("changed", "status", "status", (("status",),)),
        ("changed", "plan", "plan", (("status",), ("plan", "amount"))),
        ("changed", "subscription.activated", "subscription.activated", (("status",),)),
        ("rising_edge", "passed_10k", "passed_10k", (("items", "data"),)),
        ("falling_edge", "falling_edge", "stripe.subscriptions.falling_edge", (("balance",),)),
        ("when", "trial.converted", "trial.converted", (("plan", "id"), ("status",))),
        ("every", "change", "stripe.subscriptions.change", ()),
        ("python", "order.big", "order.big", (("total",), ("plan", "id"))),
    ]


def test_values_are_json_values() -> None:
    """`from` and `to` hold one value or several, null among them, and no float."""
    activated = parsed(ALL)[6]
    assert isinstance(activated, Changed)
    assert (activated.from_, activated.to) == (("trialing",), ("active", None, Decimal("1.5")))
    null = one("changed: {field: status, from: null}")
    assert isinstance(null, Changed)
    assert (null.from_, null.to) == ((None,), None)


def test_words_for_short() -> None:
    """A single rule needs no list, an empty mapping is none, and a name can be given to `every` too."""
    assert RULES.validate_python("created") == RULES.validate_python([{"created": None}]) == (Created(),)
    assert one("every: {of: change, name: my.change}") == Every(of="change", name="my.change")
    assert parsed("[]") == ()


def test_from_python() -> None:
    """Values made in Python are taken as they are, a detector's function too; all of them can be sent to a worker."""
    rules = (
        Python(function=print, name="x"),
        RisingEdge(value="total", above=Decimal(5)),
        When(condition="after.a", name="w"),
        Changed(fields=(("a", "b"),)),
    )
    assert RULES.validate_python(rules) == rules
    assert pickle.loads(pickle.dumps(rules)) == rules
    assert rules[0].reads() is None
    assert RULES.json_schema()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[creatd]", "0: 'creatd' is no kind of rule; there are created, deleted, undeleted, changed, rising_edge"),
        ("[5]", "0: a rule is a word, such as created, or has one: changed: {field: status}"),
        ("[{}]", "0: a rule is a word"),
        ("{created: {}}", "events is a list of rules, such as [created, deleted]"),
        ("[{changed: , field: status}]", "0: `changed`, `field` stand side by side: begin each rule with a dash"),
        ("[{changed: status}]", "0: `changed` takes a mapping, such as changed: {name: my.changed}"),
        ("[{changed: {feld: x}}]", "0.changed: `feld` is no known key here; known are: fields, from, name, to"),
        ("[{created: {field: x}}]", "0.created: `field` is no known key here; known are: name"),
        ("[{created: {kind: x}}]", "0: `kind` is no known key here"),
        ("[{changed: {field: a, fields: [b]}}]", "0.changed: say either `field` or `fields`"),
        ("[{changed: {field: [a, b]}}]", "0.changed: `field` takes one field; for several write `fields:"),
        ("[{changed: {fields: []}}]", "0.changed.fields: the list of fields is empty"),
        ("[{changed: {field: 'a b'}}]", "0.changed.fields.0: 'a b' is no path"),
        ("[{changed: {from: a}}]", "0.changed: `from` and `to` need exactly one field: say which by `field`"),
        ("[{changed: {fields: [a, b], to: x}}]", "0.changed: `from` and `to` need exactly one field"),
        ("[{changed: {field: a, to: []}}]", "0.changed.to: the list of values is empty"),
        ("[{changed: {field: a, to: 2026-01-01}}]", "0.changed.to: a value of type date is no JSON"),
        ("[{created: {name: 'a b'}}]", "0.created.name: 'a b': use letters, digits, _, . and - (200 at most)"),
        (f"[{{created: {{name: {'a' * 201}}}}}]", "(200 at most)"),
        ("[created, created]", "two rules are called `created`: give one of them a `name`"),
        ("[created, {changed: {name: created}}]", "two rules are called `created`: give one of them a `name`"),
        ("[rising_edge]", "0.rising_edge.value: Field required"),
        ("[{rising_edge: {value: a}}]", "0.rising_edge.above: Field required"),
        ("[{rising_edge: {value: a.., above: 1}}]", "0.rising_edge.value: 'a..' is no JMESPath expression: '.' at its"),
        ("[{when: {condition: '!after.a', name: x}}]", "asks for the field b of `!a`, which has none; write `!(a.b)`"),
        ("[{rising_edge: {value: a, above: true}}]", "0.rising_edge.above: this is no number: write one such as"),
        ("[{rising_edge: {value: a, above: .nan}}]", "0.rising_edge.above: this is no number"),
        ("[{rising_edge: {value: a, above: .inf}}]", "0.rising_edge.above: this is no number"),
        ("[{rising_edge: {value: a, above: 'Infinity'}}]", "0.rising_edge.above: this is no number"),
        ("[{rising_edge: {value: a, above: many}}]", "0.rising_edge.above: this is no number"),
        ("[{rising_edge: {value: a, above: null}}]", "0.rising_edge.above: this is no number"),
        (
            "[{rising_edge: {value: a, above: 1, rearm_below: 2}}]",
            "0.rising_edge: the number that arms the edge again lies past",
        ),
        ("[{rising_edge: {value: a, below: 1}}]", "`below` is no known key here; known are: above, name, rearm_below"),
        (
            "[{falling_edge: {value: a, below: 2, rearm_above: 1}}]",
            "0.falling_edge: the number that arms the edge again lies",
        ),
        ("[{when: after.a}]", "0.when.name: Field required"),
        ("[{when: {condition: status, name: x}}]", "0.when.condition: the condition reads `status`, but knows only"),
        (
            "[{when: {condition: 'before == null', name: x}}]",
            "reads `null`, but knows only `before` and `after` (true,",
        ),
        ("[{when: {condition: '', name: x}}]", "0.when.condition: '' is no JMESPath expression: it is empty"),
        ("[every]", "0.every.of: Field required"),
        ("[{every: record}]", "0.every.of: Input should be 'change'"),
        ("[{python: 'a.b:c'}]", "0.python.name: Field required"),
        ("[{python: {function: a.b.c, name: x}}]", "'a.b.c' names no function: write its module and name, such as"),
        ("[{python: {function: 5, name: x}}]", "0.python.function"),
    ],
)
def test_refused_in_words(text: str, words: str) -> None:
    """What is not understood is an error that says where and why."""
    with pytest.raises(ValidationError) as caught:
        parsed(text)
    told = [
        ".".join(map(str, error["loc"])) + ": " + error["msg"].removeprefix("Value error, ")
        for error in caught.value.errors()
    ]
    assert any(words in each for each in told), told


@pytest.mark.parametrize("written", ["1000000", "1000000.0", "'1000000'", "'1e6'", "'1000000.000'"])
def test_thresholds_are_numbers(written: str) -> None:
    """One number in all its spellings is one threshold: what has fired under it is not forgotten."""
    edge = one(f"rising_edge: {{value: total, above: {written}}}")
    assert isinstance(edge, Edge)
    assert edge.threshold == 1_000_000
    assert edge.fingerprint == RisingEdge(value="total", above=Decimal(1_000_000), name="other").fingerprint


def test_thresholds_keep_their_digits() -> None:
    """A text writes a number that a float cannot hold."""
    edge = one("rising_edge: {value: total, above: '12345678901234567890.123456789'}")
    assert isinstance(edge, Edge)
    assert str(edge.threshold) == "12345678901234567890.123456789"


def test_fingerprints_differ_by_what_decides() -> None:
    """Another kind, value or threshold is another edge."""
    edges = [
        RisingEdge(value="total", above=Decimal(5)),
        RisingEdge(value="sum", above=Decimal(5)),
        RisingEdge(value="total", above=Decimal(6)),
        RisingEdge(value="total", above=Decimal(5), rearm_below=Decimal(4)),
        RisingEdge(value="total", above=Decimal(5), rearm_below=Decimal(5)),
        FallingEdge(value="total", below=Decimal(5)),
    ]
    assert len({edge.fingerprint for edge in edges}) == len(edges)


@pytest.mark.parametrize(
    ("condition", "reads"),
    [
        ("before.a.b && after.c", (("a", "b"), ("c",))),
        ("before == `null` && after.a", (("a",),)),
        ("before == after", None),
        ("before", None),
        ("@", None),
        ("sum(after.items[].x) > before.total", (("items",), ("total",))),
        ("after.{x: a}.x", (("a",),)),
        ("`true`", ()),
    ],
)
def test_conditions_read(condition: str, reads: tuple[tuple[str, ...], ...] | None) -> None:
    """What a condition needs below `before` and `after`; None is all."""
    assert When(condition=condition, name="x").reads() == reads


def test_what_is_read_but_not_kept() -> None:
    """A kept path covers itself and what is below it, nothing else."""
    keep = [("a",), ("b", "c")]
    reads: list[tuple[str, ...]] = [("a",), ("a", "x"), ("b", "c", "d"), ("b",), ("b", "x"), ("ab",)]
    assert unkept(reads, keep) == (("b",), ("b", "x"), ("ab",))
    assert unkept(None, keep) == ((),)
    assert unkept(None, [()]) == unkept((), []) == unkept(reads, [()]) == ()


def test_values_are_frozen() -> None:
    """A rule does not change once it is made."""
    rule: Any = Created()
    with pytest.raises(ValidationError, match="frozen"):
        rule.named = "x"
