"""Sources: what a file may say is read exactly, what is not understood is refused in the words of the file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import airflow_extract_provider
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.paging import LastKeyPages, PageSize, TokenPages
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source, load_sources, parse_source
from airflow_extract_provider.extract.storing import HashMapRef, RecordHash

ROOT = Path(airflow_extract_provider.__file__).resolve().parents[1]
PRESETS = ROOT / "airflow_extract_provider" / "sources"
FILES = [*PRESETS.glob("*.yaml"), *(ROOT / "demo" / "sources").glob("*.yaml")]
Write = Callable[..., Path]

CRM = """
source: crm
connection: crm_api
objects:
  contacts:
    path: /v1/contacts
    records: data
    key: id
    pages: {by: token, take: next_cursor, send: cursor, size: {send: limit, max: 100}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a source file."""

    def written(text: str, name: str = "crm.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_a_source_in_a_few_lines(write: Write) -> None:
    """What the file says is what the source holds; nothing else is assumed but the names of schema and table."""
    source = load_source(write(CRM))
    contacts = source.object("contacts")
    assert (source.source, source.connection, dict(source.headers)) == ("crm", "crm_api", {})
    assert (contacts.name, contacts.path, contacts.records, contacts.key) == (
        "contacts",
        "/v1/contacts",
        ("data",),
        (("id",),),
    )
    size = PageSize(send="limit", max=100)
    assert contacts.pages == TokenPages(by="token", take=("next_cursor",), send="cursor", last=("null",), size=size)
    assert (contacts.version, contacts.order, dict(contacts.params)) == (None, None, {})
    assert source.table("contacts") == ("crm", "contacts")


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_every_file_that_ships_loads(path: Path) -> None:
    """Presets and the demo's sources are understood, and have objects."""
    assert load_source(path).objects


def test_every_preset_can_be_extended(write: Write) -> None:
    """A file of two lines takes a preset over as it is."""
    for path in PRESETS.glob("*.yaml"):
        extended = load_source(write(f"extends: {path.stem}\nconnection: mine\n"))
        assert extended.model_copy(update={"connection": load_source(path).connection}) == load_source(path)


def test_a_file_lies_over_its_preset(write: Write) -> None:
    """A file changes single words of its preset, adds objects and leaves some out; the preset stays as it was."""
    text = """
extends: stripe
source: billing
connection: mine
defaults: {order: [created], pages: {size: {max: 50}}}
objects:
  invoices: {order: [-date], table: bills}
  plans: null
  coupons: {path: /v1/coupons}
"""
    source, preset = load_source(write(text)), load_source(PRESETS / "stripe.yaml")
    assert set(source.objects) == (set(preset.objects) | {"coupons"}) - {"plans"}
    orders = {name: (found.order.field, found.order.falling) for name, found in source.objects.items() if found.order}
    assert orders == {
        "customers": (("created",), False),
        "products": (("created",), False),
        "subscriptions": (("created",), False),
        "coupons": (("created",), False),
        "invoices": (("date",), True),
    }
    pages = source.object("customers").pages
    assert isinstance(pages, LastKeyPages)
    assert (pages.send, pages.more, pages.size) == ("starting_after", ("has_more",), PageSize(send="limit", max=50))
    assert source.object("subscriptions").params == {"status": "all"}
    assert source.table("invoices") == ("billing", "bills")
    assert preset == load_source(PRESETS / "stripe.yaml")


def test_defaults_lie_under_each_object(write: Write) -> None:
    """What an object says itself goes before the defaults; mappings are merged, lists are replaced."""
    text = """
source: crm
connection: crm_api
defaults: {records: data, key: [a, b], params: {x: 1, y: "true"}, pages: {by: token, take: next, send: cursor}}
objects:
  one: {path: /one}
  two: {path: /two, key: id, params: {y: false}, pages: {send: page, last: [absent, empty]}}
"""
    source = load_source(write(text))
    one, two = source.object("one"), source.object("two")
    assert (one.key, two.key) == ((("a",), ("b",)), (("id",),))
    assert (dict(one.params), dict(two.params)) == ({"x": "1", "y": "true"}, {"x": "1", "y": "false"})
    assert isinstance(one.pages, TokenPages)
    assert isinstance(two.pages, TokenPages)
    assert (one.pages.send, two.pages.send, two.pages.take, two.pages.last) == (
        "cursor",
        "page",
        ("next",),
        ("absent", "empty"),
    )


def test_sources_are_frozen(write: Write) -> None:
    """A source is a value: nothing can be changed in it."""
    source = load_source(write(CRM))
    with pytest.raises(ValidationError):
        source.connection = "other"


def test_parsing_leaves_its_argument_alone() -> None:
    """A source made from Python values does not change them: they may be used twice."""
    given: dict[str, Any] = {"extends": "stripe", "connection": "mine", "objects": {"plans": None}}
    once = parse_source(given, "test")
    assert given == {"extends": "stripe", "connection": "mine", "objects": {"plans": None}}
    assert parse_source(given, "test") == once


def _crm(old: str, new: str) -> str:
    assert old in CRM
    return CRM.replace(old, new)


def _pages(spec: str) -> str:
    return _crm("{by: token, take: next_cursor, send: cursor, size: {send: limit, max: 100}}", spec)


def _also(*lines: str) -> str:
    """The object with further keys."""
    return CRM + "".join(f"    {line}\n" for line in lines)


BAD = {
    "an unknown key": (
        CRM + "    swep: {every: 1d}\n",
        "`objects.contacts.swep` is no known key; known here: accept, baseline, body, by_key, columns, deleted, ",
    ),
    "an unknown key at the top": (
        CRM + "limits: 20/s\n",
        "`limits` is no known key; known here: accounts, connection, def",
    ),
    "a misspelt paginator": (
        _crm("by: token", "by: tokens"),
        "`objects.contacts.pages.by` is none of: last_key, key, page, offset, token, next_link, link_header, position",
    ),
    "a misspelt pages": (_crm("pages:", "page:"), "`objects.contacts.pages` is missing"),
    "no paginator": (CRM.replace(CRM[CRM.index("    pages") :], ""), "`objects.contacts.pages` is missing"),
    "a paginator without by": (_crm("by: token, ", ""), "`objects.contacts.pages.by` is missing"),
    "a paginator that is a word": (
        _crm("{by: token, take: next_cursor, send: cursor, size: {send: limit, max: 100}}", "token"),
        "`objects.contacts.pages`",
    ),
    "a paginator that is null": (
        _crm("{by: token, take: next_cursor, send: cursor, size: {send: limit, max: 100}}", "null"),
        "`objects.contacts.pages`",
    ),
    "a paginator's unknown key": (
        _crm("send: cursor", "send: cursor, sent: x"),
        "`objects.contacts.pages.sent` is no known key",
    ),
    "a size of one": (_crm("max: 100", "max: 1"), "`objects.contacts.pages.size.max`"),
    "a size's unknown key": (
        _crm("max: 100", "maximum: 100"),
        "`objects.contacts.pages.size.maximum` is no known key; known here: max, send",
    ),
    "an end that is none": (_crm("send: cursor", "send: cursor, last: never"), "`objects.contacts.pages.last.0`"),
    "a key twice": (_crm("    key: id", "    key: id\n    key: id"), "line 9: 'key' stands here twice"),
    "an object twice": (CRM + CRM[CRM.index("  contacts") :], "'contacts' stands here twice"),
    "a key twice in braces": (_crm("send: cursor", "send: cursor, send: x"), "'send' stands here twice"),
    "a list as a key": (CRM + "? [a, b]\n: c\n", "is no YAML"),
    "a mapping as a key": (CRM + "? {a: b}\n: c\n", "is no YAML"),
    "a path that is a date": (_crm("/v1/contacts", "2026-13-45"), "`objects.contacts.path`"),
    "a number of 5,000 digits": (_crm("max: 100", "max: " + "1" * 5000), "is no YAML"),
    "an odd tag": (CRM + "x: !!python/object:os.system {}\n", "is no YAML"),
    "a tab": (_crm("  contacts", "\tcontacts"), "is no YAML (line 5"),
    "an open brace": (_crm("}}", "}"), "is no YAML"),
    "two documents": (CRM + "---\n" + CRM, "is no YAML"),
    "a control character": (CRM + "\x07", "is no YAML"),
    "an alias of itself": (CRM + "defaults: &a {params: *a}\n", "`objects.contacts.params.params`"),
    "empty": ("", "holds no mapping"),
    "a list": ("- a\n", "holds no mapping"),
    "a word": ("crm", "holds no mapping"),
    "no source": (_crm("source: crm\n", ""), "`source` is missing"),
    "no connection": (_crm("connection: crm_api\n", ""), "give either `connection`, or several `accounts`"),
    "an empty connection": (_crm("crm_api", '""'), "`connection`"),
    "no objects": (CRM[: CRM.index("objects")], "`objects` is missing"),
    "objects null": (CRM[: CRM.index("objects")] + "objects:\n", "`objects`"),
    "objects a list": (CRM[: CRM.index("objects")] + "objects: [a]\n", "`objects`"),
    "objects empty": (CRM[: CRM.index("objects")] + "objects: {}\n", "`objects`"),
    "an object that is a word": (CRM + "  deals: yes please\n", "`objects.deals`"),
    "no path": (_crm("    path: /v1/contacts\n", ""), "`objects.contacts.path` is missing"),
    "a whole address as path": (_crm("/v1/contacts", "https://crm.example/v1"), "`objects.contacts.path`"),
    "no records": (_crm("    records: data\n", ""), "`objects.contacts.records` is missing"),
    "no key": (_crm("    key: id\n", ""), "`objects.contacts.key` is missing"),
    "an empty key": (_crm("key: id", "key: []"), "`objects.contacts.key`"),
    "a key that is a number": (_crm("key: id", "key: 7"), "`objects.contacts.key`"),
    "a path that reshapes": (_crm("records: data", 'records: "data[*].x"'), "is no path: write field names with dots"),
    "several keys paged by the last": (
        CRM.replace("key: id", "key: [a, b]").replace("by: token, take: next_cursor", "by: last_key"),
        "sends one key, but `key` has several fields",
    ),
    "a key and a value below it": (_crm("key: id", "key: [a, a.b]"), "lies below a field"),
    "the same key twice": (_crm("key: id", "key: [a, a]"), "key names a field twice"),
    "three orders": (CRM + "    order: [a, b, c]\n", "order takes one field, or two"),
    "two orders, one falling": (CRM + "    order: [-a, b]\n", "order takes two fields only where both rise"),
    "an order of numbers": (CRM + "    order: [1]\n", "order takes one field, or two"),
    "a parameter that pages send": (CRM + "    params: {limit: 5}\n", "which `pages` or `since` sends itself"),
    "a parameter that is a list": (CRM + "    params: {a: [1]}\n", "`objects.contacts.params.a`"),
    "a parameter that is null": (CRM + "    params: {a: }\n", "`objects.contacts.params.a`"),
    "an upper-case source": (_crm("source: crm", "source: CRM"), "use a lower-case letter"),
    "an object of 64 letters": (_crm("contacts:", "c" * 64 + ":"), "63 at most"),
    "an object called true": (_crm("  contacts:", "  true:"), "`objects."),
    "an object called 7": (_crm("  contacts:", "  7:"), "`objects."),
    "a schema with a quote": (CRM + "    schema: 'a\"b'\n", "use a lower-case letter"),
    "two objects, one table": (
        CRM + CRM[CRM.index("  contacts") :].replace("contacts:", "people:") + "    table: contacts\n",
        "share the table crm.contacts",
    ),
    "defaults a list": (CRM + "defaults: [a]\n", "`defaults`"),
    "defaults with an unknown key": (CRM + "defaults: {kee: id}\n", "`objects.contacts.kee` is no known key"),
    "an unknown preset": (CRM + "extends: strype\n", "extends 'strype', which is no preset"),
    "a preset by path": (CRM + "extends: ../demo/stripe\n", "which is no preset"),
    "a preset that is a list": (CRM + "extends: [stripe]\n", "which is no preset"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood(name: str, write: Write) -> None:
    """Each mistake is told with the file, the place in it and what to do, in a few lines; nothing is guessed."""
    text, words = BAD[name]
    with pytest.raises(SourceError) as caught:
        load_source(write(text))
    told = str(caught.value)
    assert words in told
    assert "crm.yaml" in told
    assert caught.value.todo
    assert len(told.splitlines()) <= 5
    assert len(told) < 1000


VERSION = "version: at"
BAD_PROMISES = {
    "a token from nowhere": (_crm("take: next_cursor, ", ""), "either `take`, a path in the answer, or `header`"),
    "a token from two places": (_crm("take: next_cursor", "take: next, header: X-Next"), "either `take`, a path"),
    "a token sent nowhere": (_crm("send: cursor, ", ""), "pages.send is missing, and no template uses token"),
    "a token sent twice": (_also("params: {at: '{{ token }}'}"), "`token` is sent as cursor and by a template"),
    "a link from nowhere": (_pages("{by: next_link}"), "either `take`, a path in the answer, or `header`"),
    "a link that is sent": (_pages("{by: link_header, send: x}"), "`objects.contacts.pages.send` is no known key"),
    "pages counted from 2": (_pages("{by: page, send: page, first: 2}"), "`objects.contacts.pages.first`"),
    "a page sent nowhere": (_pages("{by: page}"), "pages.send is missing, and no template uses page"),
    "an offset sent nowhere": (_pages("{by: offset}"), "pages.send is missing, and no template uses offset"),
    "a last key sent nowhere": (_pages("{by: last_key}"), "pages.send is missing, and no template uses after"),
    "a key filter without order": (_pages("{by: key, send: id_gt}"), "pages.by: key needs `order` rising by the key"),
    "a key filter, falling": (
        _pages("{by: key, send: id_gt}") + "    order: [-id]\n",
        "needs `order` rising by the key",
    ),
    "a position without version": (
        _pages("{by: position}") + "    params: {q: '{{ after.key }}'}\n",
        "pages.by: position needs `version`, and `order: [<version>, <key>]`",
    ),
    "a position sent nowhere": (
        _pages("{by: position}") + "    version: at\n    order: [at, id]\n",
        "no template uses after",
    ),
    "a position of several keys": (
        _pages("{by: position}").replace("key: id", "key: [a, b]") + "    params: {q: '{{ after.key }}'}\n",
        "pages.by: position sends one key, but `key` has several fields",
    ),
    "no pages but since, without since": (_pages("{by: since}"), "pages.by: since needs `since`, and `order` rising"),
    "a cap without since": (_crm("send: cursor,", "send: cursor, cap: 100,"), "pages.cap needs `since` with `until`"),
    "a cap without until": (
        _crm("send: cursor,", "send: cursor, cap: 100,")
        + "    version: at\n    total: total\n    since: {send: a, inclusive: true}\n",
        "pages.cap needs `since` with `until`, and `total`",
    ),
    "a cap without total": (
        _crm("send: cursor,", "send: cursor, cap: 100,")
        + "    version: at\n    since: {send: a, until: b, inclusive: true}\n",
        "pages.cap needs `since` with `until`, and `total`",
    ),
    "since sent nowhere": (_also(VERSION, "since: {inclusive: true}"), "since.send is missing, and no template"),
    "since without what it compares": (
        _also("since: {send: a, inclusive: true}"),
        "since needs `version`, or a `field`",
    ),
    "since that may include": (_also(VERSION, "since: {send: a}"), "`objects.contacts.since.inclusive` is missing"),
    "since and its unknown key": (
        _also(VERSION, "since: {send: a, inclusive: true, presicion: 1s}"),
        "`objects.contacts.since.presicion` is no known key; known here: field, format, inclusive, precision",
    ),
    "since without precision": (
        _also(VERSION, "since: {send: a, inclusive: true, precision: 0s}"),
        "`objects.contacts.since.precision`",
    ),
    "since from an instant without zone": (
        _also(VERSION, "since: {send: a, inclusive: true, start: 2020-01-01T00:00:00}"),
        "`objects.contacts.since.start`: start needs a zone",
    ),
    "since in an unknown format": (
        _also(VERSION, "since: {send: a, inclusive: true, format: iso}"),
        "`objects.contacts.since.format`: 'iso' is none of rfc3339, unix, unix_ms, unix_us, nor a pattern with %",
    ),
    "since in a pattern without zone": (
        _also(VERSION, "since: {send: a, inclusive: true, format: '%Y-%m-%d'}"),
        "since.format without %z needs timestamps.zone",
    ),
    "since sent beside a parameter": (
        _also(VERSION, "params: {a: 1}", "since: {send: a, inclusive: true}"),
        "params sets ['a'], which `pages` or `since` sends itself",
    ),
    "since in a template only": (
        _also("params: {a: '{{ since }}'}"),
        "uses since or until, but `since` is not declared",
    ),
    "until in a template only": (
        _also("params: {a: '{{ until }}'}"),
        "uses since or until, but `since` is not declared",
    ),
    "a duration in words": (_also("late: soon"), "`objects.contacts.late`: 'soon' is no duration: write a number with"),
    "a duration without unit": (_also("late: 30"), "`objects.contacts.late`: 30 is no duration"),
    "a duration that is yes": (_also("late: yes"), "`objects.contacts.late`: 'yes' is no duration"),
    "a duration below zero": (_also("lookback: -30s"), "`objects.contacts.lookback`: '-30s' is no duration"),
    "a duration in weeks": (_also("lookback: 1 week"), "`objects.contacts.lookback`: '1 week' is no duration"),
    "an unknown format": (_also("timestamps: {format: iso}"), "'iso' is none of rfc3339, unix, unix_ms, unix_us"),
    "an unknown zone": (_also("timestamps: {zone: Mars/Olympus}"), "'Mars/Olympus' is no zone of the time zone"),
    "a zone by path": (_also("timestamps: {zone: ../UTC}"), "`objects.contacts.timestamps.zone`"),
    "a pattern without zone": (_also("timestamps: {format: '%d/%m/%Y'}"), "a pattern without %z needs `zone`"),
    "a pattern with a zone's name": (_also("timestamps: {format: '%Y %Z', zone: UTC}"), "(%Z) cannot be read"),
    "a misspelt format": (
        _also("timestamps: {fromat: unix}"),
        "`objects.contacts.timestamps.fromat` is no known key; known here: format, zone",
    ),
    "an unknown value": (_also("params: {a: '{{ tenant }}'}"), "a template uses ['tenant']; known are ['account', "),
    "an account where there are none": (_also("params: {a: '{{ account }}'}"), "there are no `accounts`"),
    "an unknown value in the path": (_crm("/v1/contacts", "'/{{ nope }}'"), "a template uses ['nope']"),
    "an unknown value in a header": (_also("headers: {a: '{{ nope }}'}"), "a template uses ['nope']"),
    "an unknown value in the body": (
        _crm("path: /v1/contacts", "request: POST /v1/search") + "    body: '{{ nope }}'\n",
        "a template uses ['nope']",
    ),
    "an open template": (_also("params: {a: '{{ token'}"), "a template is wrong in its line 1: unexpected end"),
    "an unknown filter": (_also("params: {a: '{{ page | secnods }}'}"), "No filter named 'secnods'"),
    "a read by no key": (_also("by_key: {path: /v1/contacts}"), "by_key.path is a template over `key`, such as"),
    "a read by something else": (_also("by_key: {path: '/{{ token }}'}"), "by_key.path is a template over `key`"),
    "a read by key without path": (_also("by_key: {record: a}"), "`objects.contacts.by_key.path` is missing"),
    "a read by key from elsewhere": (_also("by_key: {path: 'v1/{{ key }}'}"), "`objects.contacts.by_key.path`"),
    "a read by key, misspelt": (
        _also("by_key: {path: '/{{ key }}', records: a}"),
        "`objects.contacts.by_key.records` is no known key; known here: path, record",
    ),
    "a read by key in a word": (_also("by_key: '/{{ key }}'"), "`objects.contacts.by_key`"),
    "a method that changes": (_crm("path: /v1/contacts", "request: DELETE /v1/c"), "request takes a method and a path"),
    "a request without path": (_crm("path: /v1/contacts", "request: POST"), "request takes a method and a path"),
    "a request beside a path": (_also("request: POST /v1/c"), "such as POST /v1/search, instead of `path`"),
    "a body that is not posted": (_also("body: '{}'"), "a body is sent only with POST"),
    "bad records passed over": (_also("on_bad_record: skip"), "`objects.contacts.on_bad_record`"),
    "a tombstone below the key": (_also("deleted: id.gone"), "id.gone lies below a field"),
    "position by another order": (
        _pages("{by: position, size: {max: 9}}")
        + "    version: at\n    order: [made, id]\n    params: {q: '{{ after.key }}'}\n",
        "pages.by: position needs `version`, and `order: [<version>, <key>]`",
    ),
    "newest first beside another filter": (
        _also("version: at", "order: [-at]", "since: {send: a, inclusive: true, field: made}"),
        "since.field is not the `version`",
    ),
    "one parameter for two values": (
        _pages("{by: offset, send: n, size: {send: n, max: 9}}"),
        "`pages` and `since` send two values by one parameter",
    ),
    "a token beside a bare list": (_crm("records: data", "records: '@'"), "(records: @): `pages.take` finds nothing"),
    "a total beside a bare list": (
        _pages("{by: page, send: p}").replace("records: data", "records: '@'") + "    total: n\n",
        "`total` finds nothing",
    ),
    "a pattern of each machine's own": (_also("timestamps: {format: '%s', zone: UTC}"), "%s means another thing"),
    "a pattern without year": (
        _also("timestamps: {format: '%d/%m %H:%M', zone: UTC}"),
        "does not tell year, month and",
    ),
    "a pattern without morning": (_also("timestamps: {format: '%Y-%m-%d %I:%M', zone: UTC}"), "%I without %p"),
    "a duration of ages": (_also("late: 99999999999d"), "is longer than 3660 days"),
    "a total that is no path": (_also("total: 'count(data)'"), "`objects.contacts.total`: 'count(data)' is no path"),
}


@pytest.mark.parametrize("name", BAD_PROMISES)
def test_promises_that_do_not_fit_together(name: str, write: Write) -> None:
    """What is promised but not complete, or said in two ways, is told when the file is read, not at the first page."""
    text, words = BAD_PROMISES[name]
    with pytest.raises(SourceError) as caught:
        load_source(write(text))
    told = str(caught.value)
    assert words in told
    assert "crm.yaml" in told
    assert len(told.splitlines()) <= 5
    assert len(told) < 1000


PAGES = {
    "last_key": "{by: last_key, send: after, more: has_more}",
    "key": "{by: key, send: id_gt}",
    "page": "{by: page, send: page, first: 0}",
    "offset": "{by: offset, send: skip, size: {send: limit, max: 50}}",
    "token": "{by: token, header: X-Next, send: cursor, last: [absent, empty], stable: false}",
    "next_link": "{by: next_link, take: paging.next, last: absent}",
    "link_header": "{by: link_header, stable: true, size: {send: per_page, max: 100}}",
    "position": "{by: position, size: {max: 2000}}",
    "since": "{by: since, size: {send: limit, max: 10}}",
    "single": "{by: single}",
}


@pytest.mark.parametrize("kind", PAGES)
def test_pages_of_every_kind(kind: str, write: Write) -> None:
    """Each kind of pages is read from a line, with what it needs of the other promises."""
    order = "order: [id]" if kind == "key" else "order: [at, id]"
    lines = [VERSION, order, "params: {q: '{{ after.key }} {{ size }}'}" if kind == "position" else "params: {}"]
    lines += ["since: {send: since, inclusive: false}"] if kind == "since" else []
    source = load_source(write(_pages(PAGES[kind]) + "".join(f"    {line}\n" for line in lines)))
    assert source.object("contacts").pages.by == kind


def test_a_search_in_the_body(write: Write) -> None:
    """A search by POST, its values in the body, is what HubSpot's looks like."""
    text = """
source: hubspot
connection: hubspot
objects:
  contacts:
    request: POST /crm/v3/objects/contacts/search
    body: |
      {"from": {{ since | ms }}, "to": {{ until | ms }}, "limit": {{ size }}, "after": {{ token | json }}}
    records: results
    key: id
    version: properties.lastmodifieddate
    deleted: archived
    total: total
    pages: {by: token, take: paging.next.after, size: {max: 200}, cap: 10000, last: absent}
    since: {inclusive: true, precision: 1ms, field: properties.lastmodifieddate, format: unix_ms, start: 2006-01-01}
    timestamps: {zone: UTC}
    late: 1h
    lookback: 1.5d
    by_key: {path: "/crm/v3/objects/contacts/{{ key }}", record: "@"}
    on_bad_record: quarantine
"""
    with pytest.raises(SourceError, match=r"since\.start"):
        load_source(write(text))
    contacts = load_source(write(text.replace("2006-01-01", "2006-01-01T01:00:00+01:00"))).object("contacts")
    assert (contacts.method, contacts.path) == ("POST", "/crm/v3/objects/contacts/search")
    assert contacts.used() == {"since", "until", "size", "token"}
    assert (contacts.late, contacts.lookback) == (timedelta(hours=1), timedelta(hours=36))
    assert contacts.since is not None
    assert contacts.since.precision == timedelta(milliseconds=1)
    assert contacts.since.start == datetime(2006, 1, 1, tzinfo=timezone.utc)
    assert contacts.since_field == ("properties", "lastmodifieddate")
    assert contacts.by_key is not None
    assert contacts.by_key.record == ()
    assert (contacts.on_bad_record, contacts.deleted) == ("quarantine", ("archived",))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("250ms", 0.25), ("5us", 0.000005), ("1.5h", 5400), ("7d", 604_800), ("'10 m'", 600), ("0s", 0)],
)
def test_durations(text: str, seconds: float, write: Write) -> None:
    """A duration is a number with its unit."""
    assert load_source(write(_also(f"late: {text}"))).object("contacts").late == timedelta(seconds=seconds)


def test_an_order_of_two_fields(write: Write) -> None:
    """The second field of an order settles ties of the first."""
    order = load_source(write(_also("order: [updated_at, id]"))).object("contacts").order
    assert order is not None
    assert (order.field, order.then, order.falling) == (("updated_at",), (("id",),), False)


def test_many_mistakes_at_once(write: Write) -> None:
    """Five mistakes are told, the others are counted."""
    names = "".join(f"odd{number}: 1\n" for number in range(8))
    with pytest.raises(SourceError, match=r"and 3 more"):
        load_source(write(CRM + names))


def test_a_value_in_the_wrong_place_is_not_told(write: Write) -> None:
    """A password pasted into the file is not repeated by the message."""
    with pytest.raises(SourceError) as caught:
        load_source(write(CRM + "headers: {Authorization: [s3cret]}\npassword: s3cret\n"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"source: \xe9\n"])
def test_a_file_in_another_encoding(content: bytes, tmp_path: Path) -> None:
    """Files are UTF-8; others are refused, not misread."""
    (tmp_path / "crm.yaml").write_bytes(content)
    with pytest.raises(SourceError, match=r"crm\.yaml is no YAML"):
        load_source(tmp_path / "crm.yaml")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    """A file that is not there, or is a folder, is told as such."""
    with pytest.raises(SourceError, match="cannot be read"):
        load_source(tmp_path / name)


def test_a_folder_of_sources(write: Write, tmp_path: Path) -> None:
    """A folder's sources come by name, whatever the files are called; two files for one source are refused."""
    write(CRM.replace("source: crm", "source: zoo"), "a.yaml")
    write(CRM, "b.yml")
    write("nothing of ours", "notes.txt")
    assert list(load_sources(tmp_path)) == ["crm", "zoo"]
    write(CRM, "c.yaml")
    with pytest.raises(SourceError, match="a second time"):
        load_sources(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"), [("empty", "holds no source file"), ("missing", "there is no folder"), ("file", "is no folder")]
)
def test_a_folder_without_sources(name: str, told: str, tmp_path: Path) -> None:
    """A folder without a source file is a mistake, not an empty list."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=told) as caught:
        load_sources(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for an empty one. (Whoever runs the tests may be one who can read all.)"""

    def iterdir(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SourceError, match=r"cannot be read \(Permission denied\)"):
        load_sources(tmp_path)


def test_sources_from_python() -> None:
    """A source can be written in Python with the same words."""
    made = Source.model_validate(
        {
            "source": "crm",
            "connection": "crm_api",
            "objects": {
                "contacts": {"path": "/c", "records": "@", "key": "id", "pages": {"by": "last_key", "send": "a"}}
            },
        }
    )
    assert made.object("contacts").records == ()
    with pytest.raises(SourceError, match="Choose one of: contacts"):
        made.object("deals")


def test_two_sources_with_one_table(tmp_path: Path) -> None:
    """Objects of two sources that would overwrite each other's records are refused, by both names."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(
            f"""
source: {name}
connection: api
objects:
  things: {{path: /things, records: data, key: id, schema: shared, pages: {{by: last_key, send: after}}}}
"""
        )
    with pytest.raises(SourceError, match=r"one/things and two/things share the table shared\.things"):
        load_sources(tmp_path)


def test_words_stay_what_they_are(write: Write) -> None:
    """As in YAML 1.2: older readings of NO, 010, 12:30:00 and 1_000 would ask for other records."""
    lines = ["a: NO", "b: 010", "c: 12:30:00", "d: 1_000", "e: 2026-01-01", "f: true", "g: 7", "h: off"]
    params = "".join(f"      {line}\n" for line in lines)
    found = load_source(write(f"{CRM}    params:\n{params}")).object("contacts").params
    assert dict(found) == {
        "a": "NO",
        "b": "010",
        "c": "12:30:00",
        "d": "1_000",
        "e": "2026-01-01",
        "f": "true",
        "g": "7",
        "h": "off",
    }


def test_pages_of_another_kind_replace_the_defaults(write: Write) -> None:
    """Their keys mean other things."""
    text = CRM.replace("objects:", "defaults:\n  pages: {by: offset, send: skip, more: has_more}\nobjects:")
    assert load_source(write(text)).object("contacts").pages.by == "token"


def test_two_objects_with_one_cursor(tmp_path: Path) -> None:
    """Names run together: crm/eu_contacts and crm_eu/contacts."""
    for source, thing in (("crm", "eu_contacts"), ("crm_eu", "contacts")):
        text = CRM.replace("source: crm", f"source: {source}").replace("contacts:", f"{thing}:")
        (tmp_path / f"{source}.yaml").write_text(text)
    with pytest.raises(SourceError, match="share the Variable extract_crm_eu_contacts_backfill_cursor"):
        load_sources(tmp_path)


def test_the_hash_in_short_and_in_full(write: Write) -> None:
    """A function's name alone, or with what does not count; by default the usual one, and all fields count."""
    assert load_source(write(CRM)).object("contacts").hash == RecordHash()
    assert load_source(write(_also("hash: md5"))).object("contacts").hash == RecordHash(by="md5")
    text = "hash: {exclude: [stats.viewed_at, url], map: {redis: cache}}"
    found = load_source(write(_also(text))).object("contacts").hash
    assert (found.by, found.exclude) == ("xxh3", (("stats", "viewed_at"), ("url",)))
    assert found.map == HashMapRef(redis="cache")
    assert load_source(write(_also("hash: {exclude: url}"))).object("contacts").hash.exclude == (("url",),)


def test_another_hash_beside_the_defaults(write: Write) -> None:
    """It is laid over them word by word: an object with another function leaves out the same."""
    text = CRM.replace("objects:", "defaults:\n  hash: {by: md5, exclude: [url]}\nobjects:")
    found = load_source(write(text + "    hash: {by: sha256}\n")).object("contacts").hash
    assert found == RecordHash(by="sha256", exclude=(("url",),))


READ = {
    "the key": ("", "id", "key, version, deleted, order or since"),
    "below the version": ("version: meta.at", "meta.at.x", "key, version, deleted, order or since"),
    "above the version": ("version: meta.at", "meta", "key, version, deleted, order or since"),
    "the tombstone": ("deleted: gone", "gone", "key, version, deleted, order or since"),
    "the order": ("order: [created, id]", "created", "key, version, deleted, order or since"),
    "since": (
        "since: {send: from, inclusive: true, field: changed}",
        "changed",
        "key, version, deleted, order or since",
    ),
    "a column": ("columns: {views: {path: stats.views, type: bigint}}", "stats", "columns"),
    "where of a fold": ("fold: {table: org, where: {id: org.id}, set: {name: name}}", "org.id", "fold"),
    "set of a fold": ("fold: {table: org, where: {id: org.id}, set: {name: name}}", "name.first", "fold"),
    "a changed field": ("events: [{changed: {field: stats, name: moved}}]", "stats.views", "the event rule moved"),
    "an edge": (
        "events: [{rising_edge: {value: stats.views, above: 1, name: high}}]",
        "stats.views",
        "the event rule high",
    ),
    "a condition": (
        "events: [{when: {condition: after.stats.views != before.stats.views, name: seen}}]",
        "stats",
        "the event rule seen",
    ),
    "a whole condition": (
        "events: [{when: {condition: after != before, name: any}}]",
        "url",
        "the event rule any, which reads the whole record",
    ),
    "a function": (
        "events: [{python: {function: 'mine:large', name: big}}]",
        "url",
        "the event rule big, which reads the whole record",
    ),
    "a function's field": (
        "events: [{python: {function: 'mine:large', name: big, reads: [stats.views]}}]",
        "stats.views",
        "the event rule big",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_not_excluded(name: str, write: Write) -> None:
    """It would be out of date without a word: refused, with its name and who reads it; any other field may be."""
    text, exclude, reader = READ[name]
    told = f"hash.exclude leaves out {exclude}, but it is read by {reader}"
    with pytest.raises(SourceError) as caught:
        load_source(write(_also(f"{text}\n    hash: {{exclude: [{exclude}, other]}}")))
    assert told in str(caught.value)
    if "whole" not in reader:
        load_source(write(_also(f"{text}\n    hash: {{exclude: [other]}}")))


def test_changed_without_fields_means_what_counts(write: Write) -> None:
    """So do rules that read no field."""
    text = "events: [created, changed, deleted, undeleted, {every: change}]\n    hash: {exclude: [url]}"
    assert load_source(write(_also(text))).object("contacts").hash.exclude == (("url",),)


@pytest.mark.parametrize("text", ["crc32", "{by: xxh64}", "{exclude: ['a[0]']}", "{map: {redis: ''}}", "{maps: {}}"])
def test_a_hash_that_is_none(text: str, write: Write) -> None:
    """A function that is not known, a field that is no path, a connection without a name."""
    with pytest.raises(SourceError, match="hash"):
        load_source(write(_also(f"hash: {text}")))
