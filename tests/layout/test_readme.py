"""What the README shows works as it stands there, and every key of a source file is explained."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from airflow_extract_provider.extract.paging import LastKeyPages, PageSize, TokenPages
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.hooks import login

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_field_of_a_connection_is_explained() -> None:
    """Each key that its extra may hold has its place in docs/operations.md."""
    explained = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [key for key in (*login._FIELDS, *login._NETWORK) if f"`{key}`" not in explained] == []


@pytest.mark.parametrize("block", _blocks("yaml"), ids=lambda block: block.splitlines()[0])
def test_every_source_in_the_readme_loads(block: str, tmp_path: Path) -> None:
    """Copied into a file, it is a source."""
    file = tmp_path / "source.yaml"
    file.write_text(block, encoding="utf-8")
    assert load_source(file).objects


@pytest.mark.parametrize("block", _blocks("python"), ids=lambda block: block.splitlines()[0])
def test_every_import_in_the_readme_works(block: str) -> None:
    """The names it imports are there."""
    imported = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    assert imported
    for node in imported:
        module = importlib.import_module(str(node.module))
        assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("model", [Source, ApiObject, LastKeyPages, TokenPages, PageSize])
def test_every_key_of_a_source_file_is_explained(model: type[BaseModel]) -> None:
    """Each key has its row in docs/sources.md."""
    explained = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    keys = {field.alias or name for name, field in model.model_fields.items()} - {"name"}
    assert [key for key in sorted(keys) if f"| `{key}`" not in explained] == []
