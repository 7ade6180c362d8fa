"""Detectors: each rule finds what it says in a change, each time the same, and nothing else."""

from __future__ import annotations

import importlib.resources
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from airflow_extract_provider.extract.errors import DetectorError, SourceError
from airflow_extract_provider.extract.events.change import Change, ChangeKind, differing
from airflow_extract_provider.extract.events.detectors import Detected, Emitter, Found
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.exact import exact, read, same
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.rules import Python, Rule, Rules

RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(Rules)
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
SCHEMA = json.loads(
    importlib.resources.files("airflow_extract_provider.extract.events")
    .joinpath("event.schema.json")
    .read_text("utf-8")
)
EVERYTHING: list[Any] = [
    "created",
    "deleted",
    "undeleted",
    "changed",
    {"rising_edge": {"value": "n", "above": 10}},
    {"falling_edge": {"value": "n", "below": 0, "rearm_above": 5}},
    {"when": {"condition": "after.n", "name": "with.n"}},
    {"every": "change"},
]


def emitter(*rules: Any, keep: list[FieldPath] | None = None) -> Emitter:
    """An emitter of the rules as a file writes them."""
    return Emitter.of("crm", "contacts", RULES.validate_python(list(rules)), 1, keep)


def change(before: str | None, after: str | None, kind: ChangeKind | None = None, revision: int = 2) -> Change:
    """A change of the record `k`."""
    if kind is None:
        kind = "created" if before is None else "deleted" if after is None else "updated"
    raw = [None if text is None else text.encode() for text in (before, after)]
    return Change("k", kind, revision, raw[0], raw[1], NOW)


def kinds(found: Detected) -> list[str]:
    """The last words of the events' types."""
    return [event.type.rpartition(".")[2] for event in found.events]


def data(event: Event) -> Any:
    """What an event holds."""
    assert event.data is not None
    return read(event.data)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (change(None, '{"n": 11}'), ["created", "rising_edge", "n", "change"]),
        (change('{"n": 1}', '{"n": 11}'), ["changed", "rising_edge", "n", "change"]),
        (change('{"n": 1}', '{"n": 11}', "regressed"), ["changed", "rising_edge", "n", "change"]),
        (change('{"n": 1}', '{"n": 11}', "undeleted"), ["undeleted", "changed", "rising_edge", "n", "change"]),
        (change('{"n": 1}', '{"n": 1.0}', "undeleted"), ["undeleted", "n", "change"]),
        (change('{"n": 12}', '{"n": 11}'), ["changed", "n", "change"]),
        (change('{"n": 1}', '{"n": -1}'), ["changed", "falling_edge", "n", "change"]),
        (change('{"n": 12}', None), ["deleted", "change"]),
    ],
)
def test_what_each_kind_finds(told: Change, found: list[str]) -> None:
    """Each rule fires at its changes, in the order of the rules."""
    assert kinds(emitter(*EVERYTHING).detect(told, {})) == found


def test_an_event_tells_where_it_comes_from() -> None:
    """Its attributes are those of the change; its id is computed, and another one for another rule."""
    (event, other) = emitter("created", {"every": "change"}).detect(change(None, '{"n": 1}', revision=7), {}).events
    assert (event.source, event.object, event.type, event.key) == ("crm", "contacts", "crm.contacts.created", "k")
    assert (event.time, event.revision, event.baseline) == (NOW, 7, False)
    assert event.id != other.id
    assert other.data == b'{"n": 1}'


def test_data_keep_every_digit() -> None:
    """Records are written into events as the bytes they came in, numbers to the last digit."""
    after = '{ "n": 12345678901234567890.10, "a":1e0 }'
    rule = {"rising_edge": {"value": "n", "above": "10.0000000000000000001"}}
    (event,) = emitter(rule).detect(change('{"n": 1.50}', after), {}).events
    assert event.data == (
        b'{"record":' + after.encode() + b',"before":{"n": 1.50},"changed":["a","n"],'
        b'"value":12345678901234567890.10,"threshold":10.0000000000000000001}'
    )


def test_which_events_hold_what_was_before() -> None:
    """Only those of rules that ask for the stored copy: what an event holds does not hang on the other rules."""
    undeleted = change('{"n": 1}', '{"n": 11}', "undeleted")
    held = {event.type: sorted(read(event.data or b"")) for event in emitter(*EVERYTHING).detect(undeleted, {}).events}
    assert held == {
        "crm.contacts.undeleted": ["record"],
        "crm.contacts.changed": ["before", "changed", "record"],
        "crm.contacts.rising_edge": ["before", "changed", "record", "threshold", "value"],
        "with.n": ["before", "changed", "record"],
        "crm.contacts.change": ["n"],
    }
    assert [data(event) for event in emitter("created").detect(change(None, "{}"), {}).events] == [{"record": {}}]
    assert [data(event) for event in emitter("deleted").detect(change('{"n": 1}', None), {}).events] == [
        {"before": {"n": 1}}
    ]
    (gone,) = emitter({"every": "change"}).detect(change("{}", None), {}).events
    assert gone.data is None


def test_what_is_asked_of_the_store() -> None:
    """Without a rule that looks at it, the stored copy is not needed; only edges with two thresholds are remembered."""
    assert not emitter("created", "undeleted", {"every": "change"}).needs_before
    assert not emitter().needs_before
    for rule in ("deleted", "changed", EVERYTHING[4], EVERYTHING[6]):
        assert emitter("created", rule).needs_before
    rules = emitter(*EVERYTHING)
    assert rules.remembers == (("falling_edge", rules.rules[5].fingerprint),)  # type: ignore[union-attr]


def test_nothing_is_read_that_no_rule_needs() -> None:
    """Rules that need no value leave the records as they are: they need not even be JSON."""
    assert kinds(emitter("deleted", "undeleted").detect(change("no JSON", None), {})) == ["deleted"]
    assert kinds(emitter("deleted").detect(change("no JSON", "no JSON"), {})) == []


@pytest.mark.parametrize(
    ("rule", "before", "after", "fires"),
    [
        ({}, '{"a": 1}', '{"a": 1.0}', False),
        ({}, '{"a": 1}', '{"a": true}', True),
        ({}, '{"a": null}', "{}", True),
        ({}, '{"a": [1]}', '{"a": [1, 2]}', True),
        ({}, '{"a": {}}', '{"a": []}', True),
        ({"field": "a"}, '{"b": 1}', '{"b": 2}', False),
        ({"field": "a.b"}, '{"a": {"b": 1, "c": 1}}', '{"a": {"b": 1, "c": 2}}', False),
        ({"field": "a.b"}, '{"a": {"b": 1}}', '{"a": 5}', True),
        ({"field": "a.b"}, '{"a": 4}', '{"a": 5}', False),
        ({"fields": ["a", "b"]}, '{"a": 1, "b": 1}', '{"a": 1, "b": 2}', True),
        ({"field": "a", "from": 1}, '{"a": 1.0}', '{"a": 2}', True),
        ({"field": "a", "from": 1}, '{"a": true}', '{"a": 2}', False),
        ({"field": "a", "to": ["x", "y"]}, '{"a": "z"}', '{"a": "y"}', True),
        ({"field": "a", "to": ["x", "y"]}, '{"a": "y"}', '{"a": "z"}', False),
        ({"field": "a", "to": "y"}, '{"a": "y"}', '{"a": "y"}', False),
        ({"field": "a", "from": None}, "{}", '{"a": "y"}', True),
        ({"field": "a", "from": None, "to": "y"}, '{"a": null}', '{"a": "y"}', True),
        ({"field": "a", "to": 0.1}, '{"a": 1}', '{"a": 0.10}', True),
        ({"field": "a", "to": 0.1}, '{"a": 1}', '{"a": 0.10000000000000000001}', False),
        ({"field": "a", "to": [[1, 2]]}, '{"a": 1}', '{"a": [1, 2.0]}', True),
        ({"field": "a"}, '{"a": 9007199254740993}', '{"a": 9007199254740992}', True),
    ],
)
def test_changed(rule: Mapping[str, Any], before: str, after: str, fires: bool) -> None:
    """A field has changed when its value is another JSON value, from one of those to one of these."""
    assert bool(emitter({"changed": rule}).detect(change(before, after), {}).events) is fires


@pytest.mark.parametrize(
    ("condition", "told", "fires"),
    [
        ("before.s == 'a' && after.s == 'b'", change('{"s": "a"}', '{"s": "b"}'), True),
        ("before.s == 'a' && after.s == 'b'", change('{"s": "b"}', '{"s": "b"}'), False),
        ("before == `null`", change(None, "{}"), True),
        ("after == `null` && before.s", change('{"s": "a"}', None), True),
        ("after.n > before.n", change('{"n": 0.10000000000000000001}', '{"n": 0.10000000000000000002}'), True),
        ("after.n", change(None, '{"n": 0}'), True),
        ("after.n", change(None, '{"n": ""}'), False),
        ("after.n", change(None, '{"n": []}'), False),
        ("after.n", change(None, '{"n": {}}'), False),
        ("after.n", change(None, '{"n": false}'), False),
    ],
)
def test_when(condition: str, told: Change, fires: bool) -> None:
    """A condition is asked about before and after, each null where there is none; what is false JMESPath says."""
    found = emitter({"when": {"condition": condition, "name": "x"}}).detect(told, {})
    assert bool(found.events) is fires


def test_ids() -> None:
    """The same change has the same ids; another state another one, except where the fact alone counts."""
    rules = emitter(*EVERYTHING)
    told = change('{"n": 1}', '{"n": 11}')
    ids = [event.id for event in rules.detect(told, {}).events]
    assert ids == [event.id for event in rules.detect(change('{"n": 1}', '{ "n": 11.0 }'), {}).events]
    other = [event.id for event in rules.detect(change('{"n": 1}', '{"n": 12}'), {}).events]
    assert [one == two for one, two in zip(ids, other, strict=True)] == [False, True, False, False]
    later = [event.id for event in rules.detect(change('{"n": 1}', '{"n": 11}', revision=3), {}).events]
    assert not set(later) & set(ids)
    reborn = Emitter.of("crm", "contacts", rules.rules, 2)
    assert not {event.id for event in reborn.detect(told, {}).events} & set(ids)


# ---- edges

numbers = st.sampled_from(
    [None, "x", True, Decimal(8), 9, Decimal("9.5"), 10, Decimal("10.0"), Decimal("10.5"), 11, 12]
)


def spelled(value: Any) -> str:
    """A record with this number, or without one."""
    return (
        "{}"
        if value is None
        else f'{{"n": {value if isinstance(value, (int, Decimal)) and value is not True else json.dumps(value)}}}'
    )


def as_number(value: Any) -> Decimal | None:
    """The value where it is a number."""
    return Decimal(value) if isinstance(value, (int, Decimal)) and not isinstance(value, bool) else None


def fired_at(values: list[Any], above: int, rearm: int | None) -> list[int]:
    """An oracle: at which of the values a rising edge fires. It knows all values at once, and no state but them."""
    found = []
    for place, value in enumerate(values):
        number = as_number(value)
        if number is None or not number > above:
            continue
        earlier = [as_number(each) for each in values[:place]]
        if rearm is None:
            quiet = not earlier or earlier[-1] is None or earlier[-1] <= above
        else:
            # The last of the numbers that say something: one past the threshold, or one that arms again.
            telling = [each for each in earlier if each is not None and (each > above or each < rearm)]
            quiet = not telling or telling[-1] < rearm
        if quiet:
            found.append(place)
    return found


@given(values=st.lists(numbers, min_size=1, max_size=12), rearm=st.sampled_from([None, 9, 10]), falling=st.booleans())
def test_edges_by_an_oracle(values: list[Any], rearm: int | None, falling: bool) -> None:
    """Over any history of a number, an edge fires where it should; a falling one is a rising one upside down."""
    if falling:
        told = {"value": "n", "below": -10} | ({} if rearm is None else {"rearm_above": -rearm})
        rules = emitter({"falling_edge": told})
        texts = [spelled(value if as_number(value) is None else -value) for value in values]
    else:
        told = {"value": "n", "above": 10} | ({} if rearm is None else {"rearm_below": rearm})
        rules = emitter({"rising_edge": told})
        texts = [spelled(value) for value in values]
    state: dict[str, bool] = {}
    found = []
    for place, text in enumerate(texts):
        detected = rules.detect(change(texts[place - 1] if place else None, text), state)
        assert all(state.get(name, False) != fired for name, fired in detected.state.items())
        state |= detected.state
        found += [place] * len(detected.events)
    assert found == fired_at(values, 10, rearm)
    assert rearm is not None or not state


EDGE = {"rising_edge": {"value": "n", "above": 10, "rearm_below": 5}}


@pytest.mark.parametrize(
    ("told", "state", "events", "after"),
    [
        (change('{"n": 11}', '{"n": 12}'), {}, 0, {"rising_edge": True}),
        (change('{"n": 11}', '{"n": 6}'), {}, 0, {"rising_edge": True}),
        (change('{"n": 11}', '{"n": 4}'), {}, 0, {}),
        (change('{"n": 11}', "{}"), {}, 0, {"rising_edge": True}),
        (change('{"n": 6}', '{"n": 11}'), {}, 1, {"rising_edge": True}),
        (change('{"n": 6}', '{"n": 11}'), {"rising_edge": True}, 0, {}),
        (change('{"n": 6}', '{"n": 5}'), {"rising_edge": True}, 0, {}),
        (change('{"n": 6}', '{"n": 4}'), {"rising_edge": True}, 0, {"rising_edge": False}),
        (change('{"n": 12}', '{"n": 11}'), {"rising_edge": False}, 1, {"rising_edge": True}),
        (change('{"n": 12}', None), {"rising_edge": True}, 0, {}),
        (change('{"n": 12}', None), {}, 0, {}),
        (change('{"n": 6}', '{"n": 11}', "undeleted"), {"rising_edge": True}, 0, {}),
        (change('{"n": 6}', '{"n": 11}', "undeleted"), {}, 1, {"rising_edge": True}),
        (change(None, '{"n": 11}'), {"rising_edge": True}, 1, {}),
        (change(None, '{"n": 6}'), {"rising_edge": True}, 0, {"rising_edge": False}),
        (change(None, '{"n": 11}'), {}, 1, {"rising_edge": True}),
    ],
)
def test_what_an_edge_remembers(told: Change, state: dict[str, bool], events: int, after: dict[str, bool]) -> None:
    """What has fired is remembered, and where nothing is, taken from the record before; a new life begins anew."""
    found = emitter(EDGE).detect(told, state)
    assert (len(found.events), found.state) == (events, after)


# ---- changed paths

names = st.sampled_from(["a", "b", "c.d", "é"])
json_values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, Decimal("1.0"), "", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(names, json_values, max_size=4)


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All places of a record, with objects as the word that there is one."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[tuple[str, ...], Any] = {path: {}}
    for name, each in value.items():
        found |= flat(each, (*path, name))
    return found


def naively_differing(before: Any, after: Any) -> set[tuple[str, ...]]:
    """An oracle: the outermost places at which one record holds what the other does not."""
    one, two = flat(before), flat(after)
    differ = {
        path for path in one.keys() | two.keys() if path not in one or path not in two or not same(one[path], two[path])
    }
    return {path for path in differ if not any(path[:length] in differ for length in range(len(path)))}


@given(before=records, after=records)
def test_changed_paths_by_an_oracle(before: Any, after: Any) -> None:
    """The paths are those of the outermost differences; names that are no plain words are quoted."""
    plain = {"a": "a", "b": "b", "c.d": '"c.d"', "é": '"é"'}
    wanted = {".".join(plain[name] for name in path) for path in naively_differing(before, after)}
    found = differing(before, after)
    assert (set(found), len(found)) == (wanted, len(wanted))
    assert found == differing(exact(before), exact(after))


def test_only_what_is_kept_is_compared() -> None:
    """Where the stored copy keeps a part, what it leaves out has not changed."""
    rules = emitter({"changed": {"field": "s"}}, keep=[("s",), ("p", "a"), ("l", "x"), ("q",)])
    before = '{"s": "a", "p": {"a": 1}, "l": [1], "q": {"r": {"t": 1}, "u": 1}}'
    after = '{"s": "b", "p": {"a": 2, "b": 3}, "l": [1], "q": {"r": {"t": 2}, "u": 1}, "z": 1}'
    (event,) = rules.detect(change(before, after), {}).events
    assert data(event)["changed"] == ["p.a", "q.r.t", "s"]
    nothing = emitter("deleted", {"every": "change"}, keep=[])
    assert kinds(nothing.detect(change("{}", after), {})) == ["change"]


# ---- detectors written in Python


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module of the user's, which can be imported by name."""
    made = types.ModuleType("users_detectors")
    sys.modules["users_detectors"] = made
    yield made
    del sys.modules["users_detectors"]


def of_function(function: Callable[..., Any]) -> Emitter:
    """An emitter with a detector of one's own."""
    return Emitter.of("crm", "contacts", (Python(function=function, name="mine"), *emitter("changed").rules), 1)


def test_a_detector_by_name(module: types.ModuleType) -> None:
    """It is found in its module, given both records with all digits, and may return several events."""
    given: list[Any] = []

    def big(before: Any, after: Any) -> Iterator[Any]:
        given.append((before, after))
        yield {"data": {"total": after["n"], "wide": 2**70}}
        yield Found(name="mine.other")
        yield {}

    module.big = big  # type: ignore[attr-defined]
    rules = emitter({"python": {"function": "users_detectors:big", "name": "mine"}})
    found = rules.detect(change('{"n": 0.10}', '{"n": 12345678901234567890.10}'), {}).events
    assert given == [({"n": Decimal("0.10")}, {"n": Decimal("12345678901234567890.10")})]
    assert [event.type for event in found] == ["mine", "mine.other", "mine"]
    assert len({event.id for event in found}) == 3
    assert (found[0].data or b"").endswith(
        b',"detail":{"total":12345678901234567890.10,"wide":1180591620717411303424}}'
    )
    assert "detail" not in data(found[1])


def test_a_detector_may_do_with_its_records_as_it_likes() -> None:
    """They are copies: the other rules see the change as it was."""

    def greedy(before: Any, after: Any) -> None:
        before.clear()
        after["l"].clear()

    (event,) = of_function(greedy).detect(change('{"l": [1]}', '{"l": [1], "n": 2}'), {}).events
    assert data(event)["changed"] == ["n"]


def test_a_detector_is_asked_about_every_change() -> None:
    """Where there is no record, it is given None."""
    seen: list[tuple[bool, bool]] = []
    rules = of_function(lambda before, after: seen.append((before is None, after is None)))
    for told in (change(None, "{}"), change("{}", "{}"), change("{}", None)):
        rules.detect(told, {})
    assert seen == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize("function", ["users_detectors:missing", "no_such_module:f", "users_detectors:number"])
def test_a_detector_that_cannot_be_loaded(module: types.ModuleType, function: str) -> None:
    """It is an error of the config that names the function, before any change is looked at."""
    module.number = 5  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match=f"{function} of the event rule `mine` (cannot be loaded|is no function)"):
        emitter({"python": {"function": function, "name": "mine"}})


def _raising(before: Any, after: Any) -> None:
    raise KeyError(f"secret {after}")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_raising, r"failed on a change \(KeyError\)"),
        (lambda _, after: 5, "returned no list of what it found"),
        (lambda _, after: "secret", "returned no list of what it found"),
        (lambda _, after: {"name": "x"}, "returned no list of what it found"),
        (lambda _, after: Found(), "returned no list of what it found"),
        (lambda _, after: ["secret"], "neither a Found nor a mapping"),
        (lambda _, after: [{"nmae": "secret"}], "neither a Found nor a mapping"),
        (lambda _, after: [{"name": "a secret"}], "a name that is no event type, or data that are no JSON"),
        (lambda _, after: [{"name": 5}], "a name that is no event type, or data that are no JSON"),
        (lambda _, after: [{"data": NOW}], "a name that is no event type, or data that are no JSON"),
        (lambda _, after: [{"data": float("nan")}], "a name that is no event type, or data that are no JSON"),
        (lambda _, after: [{"data": "\0secret"}], "a name that is no event type, or data that are no JSON"),
        (lambda _, after: [{"data": {1: 2}}], "a name that is no event type, or data that are no JSON"),
        (lambda _, after: (1 // 0 for _ in "a"), r"failed on a change \(ZeroDivisionError\)"),
    ],
)
def test_a_detector_that_fails(function: Callable[..., Any], words: str) -> None:
    """The error names the rule and the record's key; no value is shown, and the causing exception is not chained."""
    with pytest.raises(DetectorError, match=f"^crm/contacts: the event rule `mine` (returned .*)?{words}") as caught:
        of_function(function).detect(change("{}", '{"s": "secret"}'), {})
    assert (caught.value.key, caught.value.source, caught.value.object) == ("k", "crm", "contacts")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "rule",
    [
        {"rising_edge": {"value": "sum(n)", "above": 1}},
        {"when": {"condition": "length(after.n) > `1`", "name": "x"}},
    ],
)
def test_an_expression_that_fails(rule: Any) -> None:
    """A function that is given what it does not take stops the change, with the record's key and no value."""
    with pytest.raises(DetectorError, match=r"failed on a change \(JMESPathTypeError\)") as caught:
        emitter(rule).detect(change("{}", '{"n": true, "s": "secret"}'), {})
    assert caught.value.key == "k"
    assert "secret" not in str(caught.value)


def test_a_record_that_cannot_be_read() -> None:
    """Nesting beyond all measure, or a number of that kind, stops the change too."""
    for bad in ("[" * 100_000, '{"n": 1e999999999}'):
        with pytest.raises(DetectorError, match="failed on a change"):
            emitter("changed").detect(change("{}", bad), {})


# ---- independent readers

changes = st.builds(
    change,
    *(st.sampled_from(['{"n": 1, "p": {"é": [1.50]}}', '{"n": 11}', '{"n": -1e0}', "{}"]) for _ in "ba"),
    st.sampled_from(["updated", "regressed", "undeleted"]),
)
lives_end = st.sampled_from([change(None, '{"n": 11}'), change(None, "{}"), change('{"n": 1}', None)])


@given(told=changes | lives_end)
def test_events_are_read_by_others(told: Change) -> None:
    """Every event is as its schema says, and CloudEvents' own SDK reads what we have written."""
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
    rules = Emitter.of(
        "crm", "contacts", (*emitter(*EVERYTHING).rules, Python(function=lambda _, __: [Found(5)], name="mine")), 1
    )
    for event in rules.detect(told, {}).events:
        text = event.as_json()
        validator.validate(json.loads(text))
        theirs = JSONFormat().read(None, text)
        assert (theirs.get_id(), theirs.get_type(), theirs.get_subject()) == (event.id, event.type, event.key)
        assert (theirs.get_source(), theirs.get_time()) == ("extract://crm/contacts", NOW)
        assert theirs.get_extension("revision") == event.revision
        assert theirs.get_data() == (None if event.data is None else json.loads(event.data))


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "x"},
        {"revision": 0},
        {"revision": "1"},
        {"type": "a b"},
        {"source": "crm/contacts"},
        {"baseline": False},
        {"data": 5},
        {"data": None},
        {"datacontenttype": "text/plain"},
        {"more": 1},
    ],
)
def test_the_schema_refuses(wrong: Mapping[str, Any]) -> None:
    """What is none of our events is told from one."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    (event,) = emitter("created").detect(change(None, "{}"), {}).events
    told = json.loads(event.as_json())
    validator.validate(told)
    assert not validator.is_valid({**told, **wrong})
