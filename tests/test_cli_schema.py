"""`airflow extract schema`, through Airflow's own parser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_extract_provider.extract.schema import source_schema
from tests.test_cli import extract


def test_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON and nothing else."""
    extract("schema")
    assert json.loads(capsys.readouterr().out) == source_schema()


def test_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over an older one."""
    file = tmp_path / "schema.json"
    file.write_text("older", encoding="utf-8")
    extract("schema", "--output", str(file))
    assert json.loads(file.read_text(encoding="utf-8")) == source_schema()
    assert str(file) in capsys.readouterr().out


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told with its name, and ends with code 1."""
    with pytest.raises(SystemExit) as stopped:
        extract("schema", "--output", str(tmp_path))
    assert stopped.value.code == 1
    assert f"--output: {tmp_path} cannot be written" in capsys.readouterr().err
