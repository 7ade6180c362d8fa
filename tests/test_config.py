"""The section [extract] of Airflow's configuration: as Airflow shows it, and as the package obeys it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_extract_provider import config
from airflow_extract_provider.get_provider_info import get_provider_info
from airflow_extract_provider.operators.consume import ConsumeEventsOperator
from airflow_extract_provider.operators.incremental import IncrementalOperator

OPTIONS = get_provider_info()["config"]["extract"]["options"]
ROOT = Path(__file__).parents[1]


def airflow(*words: str, **environment: str) -> str:
    """What an `airflow` command prints."""
    command = [str(Path(sys.executable).parent / "airflow"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout


def test_airflow_shows_the_section() -> None:
    """With descriptions and defaults."""
    shown = airflow("config", "list", "--section", "extract", "--show-values", "--include-descriptions")
    for name, option in OPTIONS.items():
        assert f"# {name} = {option['default']}" in shown.splitlines() or f"{name} = {option['default']}" in shown
    assert OPTIONS["docs_url"]["description"].split(":")[0] in shown


def test_airflow_tells_a_value() -> None:
    """Its default, and what the environment says."""
    assert airflow("config", "get-value", "extract", "store_conn_id").strip() == "extract_store"
    told = airflow("config", "get-value", "extract", "run_for", AIRFLOW__EXTRACT__RUN_FOR="600")
    assert told.strip() == "600"


def test_without_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is obeyed then is what Airflow shows as the default."""
    for name in [name for name in os.environ if name.startswith(("AIRFLOW__EXTRACT__", "EXTRACT_SOURCES"))]:
        monkeypatch.delenv(name)
    assert config.sources_folder() == OPTIONS["sources"]["default"]
    assert config.store_conn_id() == OPTIONS["store_conn_id"]["default"]
    assert config.run_for() == timedelta(seconds=float(OPTIONS["run_for"]["default"]))
    assert config.docs_url() == OPTIONS["docs_url"]["default"]


def test_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take what they are not given from there; None of `run_for` still means no slices."""
    monkeypatch.setenv("AIRFLOW__EXTRACT__STORE_CONN_ID", "elsewhere")
    monkeypatch.setenv("AIRFLOW__EXTRACT__RUN_FOR", "90")
    made = IncrementalOperator(task_id="walk", source="crm.yaml", object="contacts")
    assert (made.store_conn_id, made.run_for) == ("elsewhere", timedelta(seconds=90))
    assert ConsumeEventsOperator(task_id="consume", consumer="mail", handler=print).store_conn_id == "elsewhere"
    given = IncrementalOperator(
        task_id="walk", source="crm.yaml", object="contacts", store_conn_id="mine", run_for=None
    )
    assert (given.store_conn_id, given.run_for) == ("mine", None)


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable comes before the configuration."""
    monkeypatch.setenv("AIRFLOW__EXTRACT__SOURCES", "/configured")
    monkeypatch.setenv("EXTRACT_SOURCES", "/by/hand")
    assert config.sources_folder() == "/by/hand"
    monkeypatch.delenv("EXTRACT_SOURCES")
    assert config.sources_folder() == "/configured"


def test_the_docs_name_each() -> None:
    """Every option stands in the table, with its default."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert not [name for name in OPTIONS if f"| `{name}` |" not in text]
