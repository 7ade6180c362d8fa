"""What docs/ shows works as it stands there: files load, the test runs, links lead somewhere, no key is left out."""

from __future__ import annotations

import re
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from airflow_extract_provider.extract import paging, receiving, storing, sweeping
from airflow_extract_provider.extract.api import templates
from airflow_extract_provider.extract.events.detectors import Found
from airflow_extract_provider.extract.rules import Rule
from airflow_extract_provider.extract.signing import SCHEMES, Scheme
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
MODELS: list[type[BaseModel]] = [
    Source,
    ApiObject,
    paging.PageSize,
    paging.Since,
    paging.Timestamps,
    paging.ByKey,
    receiving.Endpoint,
    receiving.Told,
    storing.Column,
    storing.Fold,
    storing.HashMapRef,
    storing.KafkaPublish,
    storing.RecordHash,
    sweeping.Sweep,
    *get_args(get_args(paging.Pages)[0]),
]
_LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", _text(name), flags=re.DOTALL)


def _places(path: Path) -> set[str]:
    """The anchors of a document, as they are made of its headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


_OBJECT = """\
source: crm
connection: crm_api
objects:
  contacts:
    path: /v1/contacts
    records: data
    key: id
    pages: {by: last_key, send: after}
"""
_EXAMPLES = [
    block
    for name in ("sources", "events", "webhook-signatures", "webhooks", "webhooks-applied")
    for block in _blocks(f"docs/{name}.md", "yaml")
]


@pytest.mark.parametrize("block", _EXAMPLES, ids=lambda block: block.splitlines()[0])
def test_every_example_of_a_source_loads(block: str, tmp_path: Path) -> None:
    """Copied into a file, it is a source; or it is the webhooks of one, or what may stand below an object."""
    file = tmp_path / "source.yaml"
    below = block if block.startswith("webhooks:") else textwrap.indent(block, "    ")
    whole = block if re.search(r"^source:", block, flags=re.MULTILINE) else _OBJECT + below
    file.write_text(whole, encoding="utf-8")
    assert load_source(file).objects


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_its_row(model: type[BaseModel]) -> None:
    """Each key of each part of a source file stands in a table of docs/sources.md."""
    explained = _text("docs/sources.md")
    keys = {field.alias or name for name, field in model.model_fields.items()} - {"name"}
    assert [key for key in sorted(keys) if f"| `{key}`" not in explained] == []


def test_every_part_of_a_signature_and_every_scheme_is_explained() -> None:
    """Each in a table of docs/webhook-signatures.md."""
    explained = _text("docs/webhook-signatures.md")
    assert [name for name in (*Scheme.model_fields, *SCHEMES) if f"| `{name}`" not in explained] == []


@pytest.mark.parametrize("rule", get_args(Rule), ids=lambda rule: rule.__name__)
def test_every_rule_and_its_keys_are_explained(rule: type[BaseModel]) -> None:
    """Each kind of event rule has its row in docs/events.md, an example, and each of its keys its place."""
    explained, kind = _text("docs/events.md"), rule.model_fields["kind"].default
    keys = {field.alias or name for name, field in rule.model_fields.items()} - {"kind"}
    rows = "\n".join(line for line in explained.splitlines() if line.startswith("|"))
    assert [key for key in sorted({kind, *keys}) if f"`{key}`" not in rows] == []
    assert f"  - {kind}" in explained


@pytest.mark.parametrize("name", ["README.md", "docs/events.md", "docs/operations.md"])
def test_every_statement_runs(name: str, connect: Connect, tmp_path: Path) -> None:
    """The SQL that is shown, on a store with the objects that it asks for."""
    file = tmp_path / "crm.yaml"
    file.write_text(_OBJECT, encoding="utf-8")
    migrate(connect, [load_source(file)])
    blocks = _blocks(name, "sql")
    assert blocks
    with connect() as conn:
        conn.execute("create schema sales; create table sales.org (); create table if not exists crm.deals ()")
        for role in ("worker", "reader"):
            if conn.execute("select from pg_roles where rolname = %s", [role]).fetchone() is None:
                conn.execute(f"create role {role}")
        for block in blocks:
            conn.execute(block.encode())
        conn.rollback()


def test_the_detector_finds_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function in docs/events.md, copied as it stands there."""
    (program,) = [block for block in _blocks("docs/events.md", "python") if "Found" in block]
    module = ModuleType("detectors_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(program, "docs/events.md", "exec"), module.__dict__)
    now = {"lines": [{"id": 1, "amount": Decimal(501)}, {"id": 2, "amount": Decimal(500)}]}
    assert list(module.dear_lines(None, now)) == [Found({"line": 1, "amount": Decimal(501)})]
    assert list(module.dear_lines(now, now)) == []
    assert list(module.dear_lines(now, None)) == []


@pytest.mark.parametrize("block", _blocks("docs/events.md", "python"), ids=lambda block: block.splitlines()[0])
def test_every_import_in_the_docs_works(block: str) -> None:
    """The names that the programs of docs/events.md import are there."""
    imports = [line for line in block.splitlines() if re.match(r"(from|import) ", line)]
    assert imports
    exec(compile("\n".join(imports), "docs/events.md", "exec"), {})


def test_every_kind_of_pages_and_every_filter_is_explained() -> None:
    """Ten kinds, and what a template can make of a value."""
    explained = _text("docs/sources.md")
    kinds = [get_args(model.model_fields["by"].annotation)[0] for model in get_args(get_args(paging.Pages)[0])]
    assert [name for name in (*kinds, "json") if f"| `{name}`" not in explained] == []
    assert [name for name in templates._FILTERS if f"`{name}" not in explained] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    """A link within the repository names a file that is there, and a heading in it."""
    wrong = []
    for name, anchor in _LINK.findall(path.read_text(encoding="utf-8")):
        target = path if not name else (path.parent / name)
        if not target.exists() or (anchor and anchor not in _places(target)):
            wrong.append(f"{name}#{anchor}")
    assert wrong == []


def test_every_command_in_the_readme_is_there() -> None:
    """`make NAME` is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", _text("Makefile"), flags=re.MULTILINE))
    asked = re.findall(r"(?:^|`)make ([a-z]+)", _text("README.md"), flags=re.MULTILINE)
    assert asked
    assert set(asked) <= targets


def test_the_test_of_a_source_runs(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source file and the test in docs/testing.md, copied as they stand there, pass."""
    (source,), (program,) = _blocks("docs/testing.md", "yaml"), _blocks("docs/testing.md", "python")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "crm.yaml").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXTRACT_POSTGRES_DSN", postgres_server.dsn())
    given: dict[str, Any] = {}
    exec(compile(program, "docs/testing.md", "exec"), given)
    try:
        given["test_the_copy_equals_the_api"]()
    finally:
        postgres_server.drop_database("test_crm")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_nothing_is_left_to_be_filled_in(path: Path) -> None:
    """A line that is one word in capitals holds the place of what was to be written; what is shown as code may."""
    told = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"^[A-Z_]{4,}[.:]?$|\b(?:TODO|FIXME|TBD|XXX)\b", told, flags=re.MULTILINE) == []
