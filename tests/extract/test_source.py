"""Sources: what a file may say is read exactly, what is not understood is refused in the words of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import airflow_extract_provider
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.source import (
    LastKeyPages,
    PageSize,
    Source,
    TokenPages,
    load_source,
    load_sources,
    parse_source,
)

ROOT = Path(airflow_extract_provider.__file__).resolve().parents[1]
FILES = [*(ROOT / "airflow_extract_provider" / "sources").glob("*.yaml"), *(ROOT / "demo" / "sources").glob("*.yaml")]
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
    for path in (ROOT / "airflow_extract_provider" / "sources").glob("*.yaml"):
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
    source, preset = load_source(write(text)), load_source(FILES[0])
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
    assert preset == load_source(FILES[0])


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


BAD = {
    "an unknown key": (CRM + "    swep: {every: 1d}\n", "`objects.contacts.swep` is no known key; known here: key, "),
    "an unknown key at the top": (CRM + "limits: 20/s\n", "`limits` is no known key; known here: connection, defaults"),
    "a misspelt paginator": (
        _crm("by: token", "by: tokens"),
        "`objects.contacts.pages.by` is none of: last_key, token",
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
    "a paginator's missing key": (_crm("take: next_cursor, ", ""), "`objects.contacts.pages.take` is missing"),
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
    "a date that is none": (_crm("/v1/contacts", "2026-13-45"), "is no YAML"),
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
    "no connection": (_crm("connection: crm_api\n", ""), "`connection` is missing"),
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
    "two orders": (CRM + "    order: [a, b]\n", "order takes one field"),
    "a parameter that pages send": (CRM + "    params: {limit: 5}\n", "which `pages` sends itself"),
    "a parameter that is a list": (CRM + "    params: {a: [1]}\n", "`objects.contacts.params.a`"),
    "a parameter that is null": (CRM + "    params: {a: }\n", "`objects.contacts.params.a`"),
    "an upper-case source": (_crm("source: crm", "source: CRM"), "use a lower-case letter"),
    "an object of 64 letters": (_crm("contacts:", "c" * 64 + ":"), "63 at most"),
    "an object called yes": (_crm("  contacts:", "  yes:"), "`objects."),
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


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_sources(name: str, tmp_path: Path) -> None:
    """A folder without a source file is a mistake, not an empty list."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no source file"):
        load_sources(tmp_path / name)


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
