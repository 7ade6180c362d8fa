"""Templates: a value that is inserted arrives as that value, and cannot change what is asked for."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_extract_provider.extract import api_object
from airflow_extract_provider.extract.api import templates
from airflow_extract_provider.extract.api.templates import by_key_request, request
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.sourcefile import parse_source

NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)
EXACT = datetime(2026, 1, 1, 0, 0, 0, 123_456, tzinfo=timezone.utc)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
ODD = [
    '"',
    "\\",
    '", "x": "',
    "a\nb",
    "\u2028",
    "\x7f",
    "{{ size }}",
    "\\u0000",
    "\\",
    "\x01",
    "é😀",
    "'",
    "</",
    "%",
    "&a=b",
]


def made(**spec: Any) -> ApiObject:
    """An object paged by tokens that are sent by a template, unless told otherwise."""
    usual = {"path": "/things", "records": "data", "key": "id", "version": "at", "pages": {"by": "token", "take": "n"}}
    if "body" in spec:
        spec = {"path": "/things", "method": "POST", **spec}
    given = {**usual, **spec}
    if "token" not in json.dumps([given.get(name) for name in ("path", "params", "headers", "body")]):
        given["pages"] = {"by": "token", "take": "n", "send": "cursor"}
    if "since" in json.dumps([given.get("params"), given.get("body"), given.get("path")]):
        given.setdefault("since", {"inclusive": True})
    text = {"source": "crm", "connection": "none", "objects": {"things": given}}
    return parse_source(text, "test").object("things")


def param(template: str, **values: Any) -> str | None:
    """What a parameter's template makes of values."""
    spec = values.pop("spec", {})
    return request(made(params={"q": template}, **spec), values, {}, 1).params.get("q")


def body(template: str, **values: Any) -> str:
    """What a body's template makes of values."""
    found = request(made(body=template), values, {}, 1).body
    assert found is not None
    return found


def refused(**arguments: Any) -> str:
    """The message of the error that a request raises."""
    with pytest.raises(SourceError) as caught:
        request(made(**arguments.pop("spec")), arguments, {}, 1)
    assert caught.value.object == "things"
    assert caught.value.todo
    assert "s3cret" not in str(caught.value)
    return str(caught.value)


def test_values_and_filters_are_those_that_sources_know() -> None:
    """What a source file may use is what there is."""
    assert {*templates._NAMES, "account"} == api_object._VALUES
    assert {*templates._FILTERS, "json"} == set(api_object._FILTERS)


def test_a_request_without_templates() -> None:
    """Plain texts go out as they are; what the paginator sends lies over the parameters."""
    found = request(made(params={"a": "1", "b": ""}, headers={"X-A": "b"}), {}, {"cursor": "t", "a": "2"}, 7)
    assert (found.path, found.page, found.method, found.body, found.link, found.key) == (
        "/things",
        7,
        "GET",
        None,
        None,
        None,
    )
    assert dict(found.params) == {"a": "2", "b": "", "cursor": "t"}
    assert dict(found.headers) == {"X-A": "b"}


def test_a_search_in_the_body() -> None:
    """HubSpot's search: numbers and instants as numbers, the upper bound rounded up, a token that is null at first."""
    text = """{"filterGroups": [{"filters": [
        {"propertyName": "lastmodifieddate", "operator": "GTE", "value": {{ since | ms }} },
        {"propertyName": "lastmodifieddate", "operator": "LT", "value": {{ until | ms }} }]}],
      "limit": {{ size }}, "after": {{ token | json }} }"""
    values = {"since": NEW_YEAR, "until": EXACT, "size": 200}
    first, second = json.loads(body(text, **values)), json.loads(body(text, **values, token='x"'))
    assert [each["value"] for each in first["filterGroups"][0]["filters"]] == [1767225600000, 1767225600124]
    assert (first["limit"], first["after"], second["after"]) == (200, None, 'x"')


def test_a_query_in_a_parameter() -> None:
    """Salesforce's query: nothing is escaped in it, since the whole parameter is."""
    text = "where at > {{ after.version }} or (at = {{ after.version }} and Id > '{{ after.key }}') limit {{ size }}"
    spec = {"pages": {"by": "position"}, "order": ["at", "id"]}
    after = SimpleNamespace(version="2026-01-01T00:00:00.000+0000", key="a&b")
    assert param(text, after=after, size=5, spec=spec) == (
        "where at > 2026-01-01T00:00:00.000+0000 or (at = 2026-01-01T00:00:00.000+0000 and Id > 'a&b') limit 5"
    )


def test_nothing_is_left_out() -> None:
    """A parameter or header whose template renders to nothing is not sent; one that is written empty is."""
    spec = {"a": "{{ token }}", "b": "", "c": "x{{ token }}", "d": "{% if token %} y {% endif %} "}
    found = request(made(params=spec, headers={"X-A": "{{ token }}", "X-B": "1"}), {"token": None}, {}, 1)
    assert (dict(found.params), dict(found.headers)) == ({"b": "", "c": "x"}, {"X-B": "1"})
    found = request(made(params=spec, headers={"X-A": "{{ token }}"}), {"token": "t"}, {}, 1)
    assert found.params["a"] == found.headers["X-A"] == "t"
    assert request(made(params={"a": "{{ after.key }}"}), {"after": None}, {}, 1).params == {}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ since }}", "2026-01-01T00:00:00Z"),
        ("{{ since | iso }}", "2026-01-01T00:00:00.123456Z"),
        ("{{ until | iso }}", "2026-01-01T00:00:00Z"),
        ("{{ since | s }}", "1767225600"),
        ("{{ since | ms }}", "1767225600123"),
        ("{{ since | us }}", "1767225600123456"),
        ("{{ since | date }}", "2025-12-31"),
        ("{{ since | format('%d.%m.%Y %H:%M') }}", "31.12.2025 19:00"),
        ("{{ since | format('%Y-%m-%dT%H:%M%z') }}", "2025-12-31T19:00-0500"),
        ("{{ (since | s) - 1 }}", "1767225599"),
        ("updated:>={{ since }}", "updated:>=2026-01-01T00:00:00Z"),
        ("{{ after.version | ms }}", "1767225600123"),
        ("{{ token | ms }}", None),
    ],
)
def test_instants(template: str, expected: str | None) -> None:
    """An instant is written as the API compares it, or by a filter; local dates in the declared zone."""
    spec = {"timestamps": {"zone": "America/New_York"}, "since": {"inclusive": True, "precision": "1s", "send": "s"}}
    if "since" in template:
        spec["since"] = {"inclusive": True, "precision": "1s"}
    after = SimpleNamespace(version="2026-01-01T00:00:00.123456Z", key="k")
    assert param(template, since=EXACT, until=NEW_YEAR, after=after, spec=spec) == expected


@pytest.mark.parametrize(
    ("timestamps", "since", "expected"),
    [
        ({"format": "unix"}, {}, "1767225600"),
        ({"format": "unix_ms"}, {"precision": "1ms"}, "1767225600123"),
        ({"format": "unix"}, {"format": "rfc3339", "precision": "1ms"}, "2026-01-01T00:00:00.123Z"),
        ({"format": "%d/%m/%Y %H:%M", "zone": "Europe/Berlin"}, {}, "01/01/2026 01:00"),
    ],
)
def test_instants_in_the_api_s_own_format(timestamps: Any, since: Any, expected: str) -> None:
    """Without a filter an instant is written as `since.format` or `timestamps` say."""
    spec = {"timestamps": timestamps, "since": {"inclusive": True, **since}}
    assert param("{{ since }}", since=EXACT, spec=spec) == expected


def test_a_version_is_sent_back_as_it_came() -> None:
    """The version of the last record keeps its spelling; a filter reads it, and an instant is written exactly."""
    spec = {"timestamps": {"format": "unix"}}
    assert param("{{ after.version }}", after=SimpleNamespace(version=1767225600, key="k"), spec=spec) == "1767225600"
    assert param("{{ after.version | iso }}", after=SimpleNamespace(version="1767225600.5", key="k"), spec=spec) == (
        "2026-01-01T00:00:00.500000Z"
    )
    assert param("{{ after.version }}", after=SimpleNamespace(version=EXACT, key="k")) == "2026-01-01T00:00:00.123456Z"


def test_local_dates_need_a_zone() -> None:
    """Without a zone a date could lie a day too late."""
    assert "timestamps.zone" in refused(spec={"params": {"q": "{{ since | date }}"}}, since=EXACT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ token | ms }}",
        "{{ token.x }}",
        "{{ token + 1 }}",
        "{{ size / 0 }}",
        "{{ after }}",
        "{{ token[9] }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ token | int(1,2,3,4) }}",
    ],
)
def test_templates_that_cannot_be_filled(template: str) -> None:
    """Whatever goes wrong in a template is told with its place, without a value."""
    told = refused(spec={"params": {"q": template}}, token="s3cret", size=1)
    assert "the template `params.q` cannot be filled" in told


# --- Paths ------------------------------------------------------------------------------------------------------------


@given(value=TEXTS.filter(lambda text: text not in ("", ".", "..")))
@example(value="a/b?c=d#e")
@example(value="%2e%2e/")
@example(value="...")
def test_a_value_is_one_part_of_the_path(value: str) -> None:
    """Whatever a value holds, it stands between two slashes, and is itself again there."""
    found = request(made(path="/a/{{ token }}/b"), {"token": value}, {}, 1).path
    head, part, tail = found[1:].split("/")
    assert (head, tail) == ("a", "b")
    assert unquote(part) == value
    assert not {*"?#;& \\"} & {*part}
    assert by_key_request(made(by_key={"path": "/x/{{ key }}"}), value, 1).path == "/x/" + quote(value, safe="")


@pytest.mark.parametrize("value", ["", ".", "..", None])
def test_values_that_would_change_the_path(value: str | None) -> None:
    """Clients and servers resolve dots, and empty parts vanish: another list would be read."""
    assert "would change the path" in refused(spec={"path": "/a/{{ token }}/b"}, token=value)
    if value:
        with pytest.raises(SourceError, match="would change the path"):
            by_key_request(made(by_key={"path": "/x/{{ key }}"}), value, 1)


def test_paths_may_hold_a_query() -> None:
    """A value behind the question mark is encoded too, and may be nothing."""
    thing = made(path="/a/?t={{ token }}&x=1")
    assert request(thing, {"token": "a&b"}, {}, 1).path == "/a/?t=a%26b&x=1"
    assert request(thing, {"token": None}, {}, 1).path == "/a/?t=&x=1"


# --- Reading by key ---------------------------------------------------------------------------------------------------


def test_a_read_by_key() -> None:
    """The key is encoded into the path; of the list's request only the plain headers go along."""
    thing = made(
        headers={"X-Version": "2", "X-Token": "{{ token }}"},
        params={"status": "all"},
        by_key={"path": "/v1/things/{{ key }}?expand=all"},
    )
    found = by_key_request(thing, "a/b", 3)
    assert (found.path, found.key, found.page) == ("/v1/things/a%2Fb?expand=all", "a/b", 3)
    assert (dict(found.headers), dict(found.params), found.method, found.body) == ({"X-Version": "2"}, {}, "GET", None)


def test_a_read_by_a_key_of_several_fields() -> None:
    """Its parts are told apart by number."""
    thing = made(key=["a", "b"], by_key={"path": "/{{ key[0] }}/{{ key[1] }}"})
    found = by_key_request(thing, '["x/y","1"]', 1)
    assert (found.path, found.key) == ("/x%2Fy/1", '["x/y","1"]')
    with pytest.raises(SourceError, match=r"`by_key\.path` cannot be filled"):
        by_key_request(made(key=["a", "b"], by_key={"path": "/{{ key }}"}), '["x","1"]', 1)


def test_a_read_by_key_that_is_not_declared() -> None:
    """Without `by_key` nothing can be read so."""
    with pytest.raises(SourceError, match=r"cannot be read by key"):
        by_key_request(made(), "a", 1)


# --- Bodies -----------------------------------------------------------------------------------------------------------


@given(value=TEXTS.filter(lambda text: "\0" not in text))
@example(value='", "limit": 0, "x": "')
@example(value="\\")
@example(value="\\u0000")
@example(value="null")
def test_a_text_stays_a_text_in_the_body(value: str) -> None:
    """Inside quotes or by `json`, as value or as name: the text arrives as that text, and nothing beside it changes."""
    text = '{"a": "x{{ token }}y", "{{ token }}b": {{ token | json }}, "c": [1, "{{ after.key }}"]}'
    found = json.loads(body(text, token=value, after=SimpleNamespace(key=value)))
    assert found == {"a": f"x{value}y", f"{value}b": value, "c": [1, value]}


@given(value=st.one_of(TEXTS, st.sampled_from(["1", "null", "1, 2", "[]", '"', "{}", "true", " ", "1}", '"a"'])))
@pytest.mark.parametrize(
    "template",
    [
        '{"a": {{ token }} }',
        "[1, {{ token }}, 2]",
        "{{ token }}",
        '{"a": "b" {{ token }} }',
        '{"a": "\\{{ token }}"}',
        '{"a": "\\u00{{ token }}"}',
        '{"a": 1{{ token }} }',
    ],
)
def test_a_text_outside_of_quotes_is_refused(template: str, value: str) -> None:
    """There it would be a number, a list or more members: never sent, even if the body were JSON by chance."""
    told = refused(spec={"body": template}, token=value)
    assert "no JSON" in told
    assert "| json" in told


@pytest.mark.parametrize("value", [*ODD, "s3cret"])
def test_a_text_in_a_set_block_is_no_way_out(value: str) -> None:
    """Captured by Jinja and encoded again, a text would not be itself: refused."""
    text = '{% set x %}{{ token }}{% endset %}{"a": {{ x | json }} }'
    assert "no JSON" in refused(spec={"body": text}, token=value)


def test_numbers_in_the_body() -> None:
    """Whole numbers of any size and unix times stand as they are; a text becomes a number by `int`."""
    text = '{"a": {{ size }}, "b": {{ offset }}, "c": {{ token | int }}, "d": "{{ size }}"}'
    found = json.loads(body(text, size=5, offset=10**30, token="9" * 30))
    assert found == {"a": 5, "b": 10**30, "c": int("9" * 30), "d": "5"}
    thing = made(body='{"a": {{ since }}, "t": "{{ token }}"}', timestamps={"format": "unix"})
    assert json.loads(request(thing, {"since": EXACT}, {}, 1).body or "") == {"a": 1767225600, "t": ""}
    thing = made(body='{"a": "{{ since }}", "t": "{{ token }}"}')
    assert json.loads(request(thing, {"since": EXACT}, {}, 1).body or "") == {"a": "2026-01-01T00:00:00Z", "t": ""}


def test_what_the_body_says_beside_values() -> None:
    """Conditions, and JSON of every kind from `json`."""
    text = '{ {% if token %}"after": "{{ token }}",{% endif %} "x": {{ (token or none) | json }} }'
    assert json.loads(body(text)) == {"x": None}
    assert json.loads(body(text, token="t")) == {"after": "t", "x": "t"}


@pytest.mark.parametrize("template", ['{"a": {{ token }} }', "{", "", '{"a": {{ size }}, }', "{{ token | json }} x"])
def test_bodies_that_are_no_json(template: str) -> None:
    """A body that is no JSON is never sent; the error holds none of it."""
    assert "no JSON" in refused(spec={"body": template + " {# token #}", "pages": {"by": "single"}}, token="s3cret")
