"""Where webhooks come in, and what they tell: as a source file says it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source

THINGS: dict[str, Any] = {
    "path": "/things",
    "records": "data",
    "key": "id",
    "version": "updated_at",
    "pages": {"by": "single"},
    "by_key": {"path": "/things/{{ key }}"},
}
UPDATED: dict[str, Any] = {"object": "things", "record": "data"}
HOOK: dict[str, Any] = {"verify": "github", "secret": "hooks", "type": "type", "types": {"thing.*": UPDATED}}


def a_source(hook: dict[str, Any], **over: Any) -> Source:
    """A source with one address, and one object."""
    things = {name: value for name, value in {**THINGS, **over}.items() if value is not None}
    spec = {"source": "shop", "connection": "none", "webhooks": {"main": hook}, "objects": {"things": things}}
    return parse_source(spec, "shop.yaml")


def test_an_exact_type_goes_before_a_pattern() -> None:
    """Whatever the order in the file."""
    gone = {"object": "things", "key": "data.id", "change": "deleted"}
    main = a_source({**HOOK, "types": {"thing.*": UPDATED, "thing.deleted": gone}}).webhooks["main"]
    told = [main.told_by(type) for type in ("thing.deleted", "thing.made", "other")]
    assert [each and each.change for each in told] == ["deleted", "changed", None]


def test_a_type_of_headers_and_fields() -> None:
    """The headers that it reads are kept beside the body, and no others."""
    main = a_source({**HOOK, "type": "{header:X-Event}.{action}", "headers": "X-Try"}).webhooks["main"]
    assert main.type is not None
    assert (main.type.headers, main.type.fields) == (("x-event",), (("action",),))
    assert main.kept_headers == ("x-event", "x-try")
    assert str(main.type) == "{header:x-event}.{action}"


@pytest.mark.parametrize(
    ("told", "over", "pays"),
    [
        (UPDATED, {}, True),
        (UPDATED, {"version": None}, False),
        ({**UPDATED, "read": "refetch"}, {}, False),
        ({"object": "things", "key": "id"}, {}, False),
    ],
)
def test_what_is_stored_and_what_is_read_again(told: dict[str, Any], over: dict[str, Any], pays: bool) -> None:
    """A payload is stored only where its version can prove that it is newer."""
    source = a_source({**HOOK, "types": {"thing": told}}, **over)
    assert source.pays(source.webhooks["main"].types["thing"]) is pays


@pytest.mark.parametrize(
    ("hook", "over", "why"),
    [
        ({"types": {"a": {"object": "others", "key": "id"}}}, {}, "there is no object 'others'"),
        ({"types": {"a": {"object": "things"}}}, {}, "say where the message holds the `key`, or the whole `record`"),
        ({"types": {"a": {**UPDATED, "read": "payload"}}}, {"version": None}, "without `version` a payload cannot"),
        (
            {"types": {"a": {"object": "things", "key": "id", "read": "payload"}}},
            {},
            "where the message holds the `rec",
        ),
        ({"types": {"a": UPDATED}}, {"by_key": None}, "declare `by_key` of things"),
        (
            {"types": {"a": UPDATED}},
            {"hash": {"map": {"redis": "r"}}},
            "`hash.map`, which what webhooks store bypasses",
        ),
        ({"types": {"a": UPDATED, "b": UPDATED}, "type": None}, {}, "several types need `type`"),
        ({"dedupe": "{header:x-id}-{id}"}, {}, "dedupe reads headers only"),
        ({"type": "{header:x-event"}, {}, "has a brace without its other"),
        ({"type": "{header:x event}"}, {}, "'x event' is no header's name"),
        ({"type": "{a..b}"}, {}, "is no path"),
        ({"verify": "none"}, {}, "none"),
        ({"verify": "gitlab_token", "headers": "X-Gitlab-Token"}, {}, "holds the secret itself"),
        ({"verify": "basic", "headers": ["x-event", "Authorization"]}, {}, "holds the secret itself"),
        ({"max_bytes": 0}, {}, "max_bytes"),
        ({"grace": "soon"}, {}, "is no duration"),
    ],
)
def test_what_cannot_work_is_named(hook: dict[str, Any], over: dict[str, Any], why: str) -> None:
    """When the file is read, and not when the first webhook comes."""
    with pytest.raises(SourceError, match="webhooks") as caught:
        a_source({**HOOK, **hook}, **over)
    assert why in caught.value.what


def test_a_deletion_may_be_believed() -> None:
    """Where nobody can ask."""
    gone = {"object": "things", "key": "data.id", "change": "deleted"}
    assert a_source({**HOOK, "types": {"thing.deleted": gone}}, by_key=None).webhooks["main"].types


def test_each_account_has_its_own_addresses() -> None:
    """Since it is a source of its own."""
    spec = {
        "source": "shop",
        "accounts": {"a": "one", "b": "two"},
        "webhooks": {"main": HOOK},
        "objects": {"things": THINGS},
    }
    found = parse_source(spec, "shop.yaml").by_account()
    assert {name: list(each.webhooks) for name, each in found.items()} == {"shop_a": ["main"], "shop_b": ["main"]}
