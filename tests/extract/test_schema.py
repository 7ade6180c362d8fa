"""The JSON schema of source files: it takes every file that loads, and what it refuses never loads."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.schema import source_schema, spelled
from airflow_extract_provider.extract.sourcefile import _Loader, parse_source, presets
from airflow_extract_provider.extract.sweeping import Deletes

Place: TypeAlias = tuple[str | int, ...]

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = source_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
FREE = {"accounts", "params", "headers", "columns", "where", "set", "objects", "webhooks", "types"}
"""Where keys are the user's own words."""

EVERYTHING = """
source: everything
connection: crm_api
headers: {X-Version: 2}
limit: [20/s, 10000/d]
schedule: 10m
windows: "@daily"
relay: {kafka: kafka_default, topic: everything}
pool: 4
owner: data
tags: [crm]
webhooks_by: sensor
webhooks_every: 1m
webhooks:
  first:
    verify: stripe
    secret: everything_webhook
    max_bytes: "65536"
    dedupe: "{header:x-id}"
    headers: X-Topic
    messages: events
    type: "{header:x-topic}.{kind}"
    id: event.id
    types:
      contact.created: {object: second, record: data.contact, key: [data.contact.id], read: payload}
      contact.deleted: {object: first, key: data.id, change: deleted}
      "*": {object: first, key: data.id, read: refetch}
    forward: [ping.*]
    ignore: note.*
    grace: 10m
  second: {verify: {scheme: slack, tolerance: 10m, ahead: null}, secret: s, dedupe: null, messages: "@"}
  third:
    verify:
      header: X-Signature
      algorithm: sha512
      encoding: base64
      prefix: "v1,"
      separator: " "
      template: "{id}.{timestamp}.{body}"
      timestamp: X-Timestamp
      unit: ms
      tolerance: 1.5h
      ahead: 0s
      id: X-Id
      key: whsec
    secret: everything_webhook
  fourth:
    verify:
      {header: X-Sig, separator: ";", element: "ts=", prefix: "h1=", template: "{url}{timestamp}{body}", url: decoded}
    secret: everything_webhook
    headers: []
  fifth: {verify: {header: Authorization, algorithm: token, prefix: "Bearer "}, secret: everything_webhook}
defaults:
  records: data
  pages: {by: page, send: page, first: 0, more: more, size: {send: limit, max: "100"}}
  timestamps: {format: "%d/%m/%Y %H:%M:%S", zone: Europe/Berlin}
  publish: {kafka: kafka_default, topic: "{source}"}
  hash: {by: md5, exclude: [seen], map: {redis: redis_default}}
  fold: {table: org, where: {id: org.id}, set: {note: note}}
objects:
  first:
    request: POST /v1/first
    params: {a: 1, b: true, c: text}
    headers: {X-A: b}
    body: "{}"
    key: [account.id, id]
    version: updated_at
    deleted: archived
    total: meta.total
    order: [updated_at]
    since: {send: s, until: u, inclusive: yes, precision: 1ms, field: updated_at, start: 2000-01-01T00:00:00Z}
    late: 1.5h
    lookback: 0s
    by_key: {path: "/v1/first/{{ key[0] }}", record: "@"}
    sweep: {every: 7d, max_deletes: 2.5 %}
    on_bad_record: quarantine
    private: no
    keep: [account, id, status, plan, org, note, archived]
    columns: {status: text, amount: {path: plan.amount, type: numeric}}
    fold: {set: {name: status}, insert: true, deleted: {gone: true, why: 1}}
    events:
      - created
      - deleted: {name: first.gone}
      - undeleted:
      - changed: {fields: [status, plan.amount], name: first.moved}
      - changed: {field: status, from: [a, null], to: 1, name: first.status}
      - rising_edge: {value: plan.amount, above: "1000", rearm_below: 900, name: first.high}
      - falling_edge: {value: plan.amount, below: 0.5, rearm_above: 1, name: first.low}
      - when: {condition: after.status == before.status, name: first.same}
      - every: change
      - python: {function: "my.module:find", name: first.found, reads: [status]}
    baseline: emit
    schema: elsewhere
    table: firsts
    accept: [late-zero, passed-over]
  second:
    path: /v1/second
    by_key: {path: "/v1/second/{{ key }}"}
    method: GET
    key: id
    version: at
    since: {send: s, inclusive: "true", format: unix_ms}
    pages: {by: token, header: X-Next, send: cursor, last: [absent, empty], stable: false}
    order: -created
    keep: none
    hash: xxh3
    fold: [{table: sales.org, where: {id: org}, set: {name: name}, deleted: keep}]
    events: created
    publish: outbox
  third: {path: /v1/third, key: id, pages: {by: next_link, take: next, last: absent, stable: true}}
  fourth: {path: /v1/fourth, key: id, pages: {by: link_header, stable: true}, sweep: {every: 6h, max_deletes: 5}}
  fifth: {path: /v1/fifth, key: id, pages: {by: single}, fold: {deleted: remove}}
  sixth: null
"""
"""Every key that there is, in each of its spellings."""

OBJECT = """
source: crm
connection: crm_api
objects:
  contacts:
    path: /v1/contacts
    records: data
    key: id
    pages: {by: last_key, send: after}
"""

ACCOUNTS = "accounts: {north: crm_north, south: crm_south}"


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _blocks() -> Iterator[tuple[str, Any]]:
    """What the docs show: a source, its webhooks, or what may stand below an object."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for number, block in enumerate(found):
            data = _read(block)
            if not data.keys() & {"source", "extends"}:
                whole = _read(OBJECT)
                (whole if "webhooks" in data else whole["objects"]["contacts"]).update(data)
                data = whole
            yield f"{path.name} {number}", data


def _valid() -> dict[str, Any]:
    files = [*(ROOT / "airflow_extract_provider/sources").glob("*.yaml"), *(ROOT / "demo/sources").glob("*.yaml")]
    shipped = {"/".join(path.parts[-2:]): _read(path.read_text(encoding="utf-8")) for path in files}
    one = {"one object": _read(OBJECT), "accounts": _read(OBJECT.replace("connection: crm_api", ACCOUNTS))}
    return {"everything": _read(EVERYTHING), **one, **shipped, **dict(_blocks())}


VALID = _valid()


def _loads(data: Any) -> bool:
    try:
        parse_source(copy.deepcopy(data), "a file")
    except SourceError:
        return False
    return True


def _mappings(node: Any, place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    if isinstance(node, dict):
        yield place, node
        for name, each in node.items():
            yield from _mappings(each, (*place, name))
    elif isinstance(node, list):
        for number, each in enumerate(node):
            yield from _mappings(each, (*place, number))


def _whose_keys_are_ours(place: Place) -> bool:
    # Below `deleted` of a fold stand columns; so they do below `fold.where`, in a list of folds or not.
    return not place or not (place[-1] in FREE or (place[-1] == "deleted" and "fold" in place) or "from" in place)


def test_it_is_a_schema() -> None:
    """Of the draft that it names, and nothing but JSON: an editor reads it."""
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert source_schema() == SCHEMA


@pytest.mark.parametrize("name", VALID)
def test_it_takes_what_loads(name: str) -> None:
    """Presets, the demo's sources, the docs' examples, and every key in each of its spellings."""
    assert _loads(VALID[name])
    assert [f"{list(error.absolute_path)}: {error.message}" for error in VALIDATOR.iter_errors(VALID[name])] == []


def test_everything_is_everything() -> None:
    """No key of an object was forgotten above."""
    used = {name for each in VALID["everything"]["objects"].values() if each for name in each}
    known = set(SCHEMA["$defs"]["ApiObject"]["properties"])
    assert known - used - set(VALID["everything"]["defaults"]) == set()
    assert set(SCHEMA["properties"]) - set(VALID["everything"]) == {"extends", "accounts"}


def test_each_key_is_described() -> None:
    """An editor shows the models' own words beside each key."""
    silent = [
        f"{part}.{name}"
        for part, made in {"Source": SCHEMA, **SCHEMA["$defs"]}.items()
        for name, told in made.get("properties", {}).items()
        if "description" not in told and name != "by"
    ]
    assert silent == []


@pytest.mark.parametrize("name", VALID)
def test_a_misspelt_key_is_shown_where_it_is(name: str) -> None:
    """One more key at any place of any file: neither takes it, and the schema says where, and which one."""
    for place in [place for place, _ in _mappings(VALID[name]) if _whose_keys_are_ours(place)]:
        data = copy.deepcopy(VALID[name])
        node = data
        for step in place:
            node = node[step]
        node["mispelt"] = "x"
        assert not _loads(data), place
        assert place in [place for place, words in _told(VALIDATOR.iter_errors(data)) if "'mispelt'" in words]


def _told(errors: Iterable[ValidationError]) -> Iterator[tuple[Place, str]]:
    for error in errors:
        yield tuple(error.absolute_path), error.message
        yield from _told(error.context or ())


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("pages: {by: last_key, sned: after}", ("pages",), "'sned' was unexpected"),
        ("pages: {by: last_kye, send: after}", ("pages", "by"), "'last_kye' is not one of"),
        ("pages: {send: after}", ("pages",), "'by' is a required property"),
        ("late: 30", ("late",), "30 is not of type 'string'"),
        ("late: 30 seconds", ("late",), "does not match"),
        ("key: 'data[0]'", ("key",), "'data[0]'"),
        ("order: [a, b, c]", ("order",), "['a', 'b', 'c']"),
        ("on_bad_record: skip", ("on_bad_record",), "'skip' is not one of ['stop', 'quarantine']"),
        ("baseline: loud", ("baseline",), "'loud' is not one of"),
        ("since: {send: s}", ("since",), "{'send': 's'}"),
        ("name: other", (), "'name' was unexpected"),
        ("request: PUT /v1", ("request",), "does not match"),
        ("events: [{changed: {feild: a}}]", ("events",), "feild"),
        ("sweep: {evry: 7d}", ("sweep",), "evry"),
        ("columns: {a: varchar}", ("columns", "a"), "'varchar'"),
    ],
)
def test_what_it_says(text: str, place: Place, words: str) -> None:
    """Each mistake has its place, as deep as one can tell, and a message that names it."""
    data = _read(OBJECT)
    data["objects"]["contacts"] |= _read(text)
    errors = [error for error in VALIDATOR.iter_errors(data) if words in error.message]
    assert ("objects", "contacts", *place) in [tuple(error.absolute_path) for error in errors]
    assert not _loads(data)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("sweep: {every: 7d, evry: 1d}", "every, max_deletes"),
        ("hash: {bye: md5}", "by, exclude, map"),
        ("hash: {map: {redis: a, reds: b}}", "redis"),
        ("columns: {sweep: {path: a, type: text, tpye: b}}", "path, type"),
        ("fold: {table: a, where: {b: c}, set: {d: e}, insrt: true}", "deleted, insert, set, table, where"),
        ("publish: {kafka: a, topc: b}", "kafka, topic"),
        ("pages: {by: last_key, send: a, size: {max: 5, mx: 5}}", "max, send"),
        ("by_key: {path: '/{{ key }}', recrd: a}", "path, record"),
    ],
)
def test_the_loader_names_the_keys_that_are_known_there(text: str, known: str) -> None:
    """Those of the part, not of the object that it belongs to."""
    data = _read(OBJECT)
    data["objects"]["contacts"] |= _read(text)
    with pytest.raises(SourceError) as caught:
        parse_source(data, "a file")
    assert f"is no known key; known here: {known}\n" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "known"),
    [
        ((), "dedupe, forward, grace, headers, id, ignore, max_bytes, messages, secret, type, types, verify"),
        (("types", "*"), "change, key, object, read, record"),
        (("verify",), "ahead, algorithm, element, encoding, header, id, key, prefix, scheme, separator, template, "),
    ],
)
def test_the_loader_names_the_keys_of_webhooks(place: Place, known: str) -> None:
    """Those of the endpoint, of what a type tells, or of the signature; an endpoint may be called as a part."""
    data = copy.deepcopy(VALID["everything"])
    data["webhooks"]["size"] = data["webhooks"].pop("first") | {"verify": {"scheme": "stripe"}}
    node = data["webhooks"]["size"]
    for step in place:
        node = node[step]
    node["mispelt"] = "x"
    where = ".".join(["webhooks", "size", *map(str, place), "mispelt"])
    with pytest.raises(SourceError) as caught:
        parse_source(data, "a file")
    assert f"`{where}` is no known key; known here: {known}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("strype", ("verify",), "'strype' is not valid under any of the given schemas"),
        ("{scheme: strype}", ("verify", "scheme"), "'strype' is not one of"),
        ("{scheme: stripe, tolerance: 10}", ("verify", "tolerance"), "10 is not of type 'string'"),
        ("{header: a, separator: '|'}", ("verify", "separator"), "'|' is not one of"),
        ("{header: a, algorithm: md5}", ("verify", "algorithm"), "'md5' is not one of"),
    ],
)
def test_what_it_says_of_a_signature(text: str, place: Place, words: str) -> None:
    """The names of the schemes, and the parts of one of one's own."""
    data = copy.deepcopy(VALID["everything"])
    data["webhooks"]["first"]["verify"] = _read(text)
    told = [at for at, message in _told(VALIDATOR.iter_errors(data)) if words in message]
    assert ("webhooks", "first", *place) in told
    assert not _loads(data)


def test_an_object_may_be_called_as_a_part() -> None:
    """Its keys are those of an object."""
    data = _read(OBJECT.replace("contacts:", "sweep:"))
    data["objects"]["sweep"]["evry"] = "1d"
    with pytest.raises(
        SourceError, match=r"`objects.sweep.evry` is no known key; known here: accept, baseline, body, by_key"
    ):
        parse_source(data, "a file")


@pytest.mark.parametrize("missing", ["path", "records", "key", "pages"])
def test_what_must_be_there(missing: str) -> None:
    """In the object, or in `defaults`, or in the preset."""
    data = _read(OBJECT)
    given_below = {missing: data["objects"]["contacts"].pop(missing)}
    assert not VALIDATOR.is_valid(data)
    assert VALIDATOR.is_valid({**data, "defaults": given_below})
    assert _loads({**data, "defaults": given_below})
    assert VALIDATOR.is_valid({"extends": presets()[0], "objects": data["objects"]})


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 200),
    st.floats(0, 9).map(lambda number: round(number, 1)),
    st.sampled_from(["", " ", "id", " id ", "a.b", "-id", "@", "/", "/v1", "GET", "10m", " 30s", "20/s", "5%", "100"]),
    st.sampled_from(["yes", "No", "true", "unix", "rfc3339", "UTC", "token", "last_key", "single", "created", "md5"]),
    st.sampled_from(["all", "none", "keep", "outbox", "text", "numeric", "change", "a b", "1.0", "2_0", "data[0]"]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["id", "name", "by", "send", "max", "every", "created", "path"]), inner, max_size=2
        ),
    ),
    max_leaves=4,
)


@st.composite
def _changed(draw: st.DrawFn) -> Any:
    """A file that loads, changed at one to three places: a key less, another value, a key more, another key."""
    data = copy.deepcopy(VALID[draw(st.sampled_from(sorted(VALID)))])
    for _ in range(draw(st.integers(1, 3))):
        _, node = draw(st.sampled_from(list(_mappings(data))))
        keys = sorted(node)
        change = draw(st.sampled_from(["less", "other", "more"])) if keys else "more"
        if change == "more":
            known = sorted(SCHEMA["$defs"]["ApiObject"]["properties"])
            node[draw(st.sampled_from(["new", "by", "send", "max", *known]))] = draw(_VALUES)
            continue
        key = draw(st.sampled_from(keys))
        if change == "less":
            del node[key]
        else:
            node[key] = draw(_VALUES)
    return data


@given(data=_changed())
@example(data={**_read(OBJECT), "defaults": None})
@example(data={**_read(OBJECT), "extends": None})
@example(data={"extends": "stripe", "objects": {}})
@settings(max_examples=1500)
def test_what_it_refuses_does_not_load(data: Any) -> None:
    """No false alarm: a file that an editor marks as wrong is wrong."""
    if (found := best_match(VALIDATOR.iter_errors(data))) is not None and _loads(data):
        assert _overlaid(data), f"{list(found.absolute_path)}: {found.message}"


def _overlaid(data: Mapping[str, Any]) -> bool:
    """Whether the mistake stands in `defaults` where each object says something else: loading does not look at it."""
    rest = {name: told for name, told in data.items() if name != "defaults"}
    below = data.get("defaults")
    return isinstance(below, Mapping) and VALIDATOR.is_valid({**rest, "defaults": {}, "extends": "stripe"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(seconds=60), "1m"),
        (timedelta(0), "0s"),
        (timedelta(seconds=90), "90s"),
        (timedelta(milliseconds=1), "1ms"),
        (Deletes(share=10_000), "10%"),
        (Deletes(count=5), 5),
        (("null",), ["null"]),
        (None, None),
    ],
)
def test_a_default_is_spelled_as_a_file_spells_it(value: Any, text: Any) -> None:
    """So that it can be copied from there."""
    assert spelled(value) == text
