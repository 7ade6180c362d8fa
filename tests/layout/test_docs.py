"""What docs/ shows works as it stands there: files load, the test runs, links lead somewhere, no key is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from airflow_extract_provider.extract import paging
from airflow_extract_provider.extract.api import templates
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.sourcefile import load_source
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


@pytest.mark.parametrize("block", _blocks("docs/sources.md", "yaml"), ids=lambda block: block.splitlines()[0])
def test_every_example_of_a_source_loads(block: str, tmp_path: Path) -> None:
    """Copied into a file, it is a source."""
    file = tmp_path / "source.yaml"
    file.write_text(block, encoding="utf-8")
    assert load_source(file).objects


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_its_row(model: type[BaseModel]) -> None:
    """Each key of each part of a source file stands in a table of docs/sources.md."""
    explained = _text("docs/sources.md")
    keys = {field.alias or name for name, field in model.model_fields.items()} - {"name"}
    assert [key for key in sorted(keys) if f"| `{key}`" not in explained] == []


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
