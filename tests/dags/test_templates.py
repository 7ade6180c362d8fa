"""The DAGs that are made of sources: they load, they are the same every time, their form accepts what it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization

from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.walk import WalkOperator

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE = PROJECT / "dags" / "extract.py"
SHOP = """
source: shop
connection: shop_api
defaults: {records: data, pages: {by: token, take: next, send: cursor}}
objects:
  orders: {path: /orders, key: id}
  lines: {path: /lines, key: [order.id, number], table: order_lines}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DAGs folder as a user would make it: the template, and the sources beside it."""
    shutil.copy(TEMPLATE, tmp_path / "extract.py")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "shop.yaml").write_text(SHOP)
    return tmp_path


def bag(folder: Path) -> DagBag:
    """What the DAG processor makes of a folder."""
    return DagBag(dag_folder=str(folder))


def shop(folder: Path) -> DAG:
    """The shop's backfill DAG."""
    return make_dags(folder / "sources")["shop_backfill"]


def chosen(folder: Path, conf: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a task sees of the form's values, after Airflow's check."""
    dag = shop(folder)
    found: Mapping[str, Any] = process_params(dag, dag.tasks[0], dict(conf), suppress_exception=False)
    return found


def test_the_template_loads_beside_its_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working directory is: Airflow's components have different ones."""
    monkeypatch.chdir("/")
    found = bag(folder)
    assert found.import_errors == {}
    assert set(found.dags) == {"shop_backfill", "shop_sync"}


def test_the_folder_can_be_configured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EXTRACT_SOURCES leads elsewhere, and several sources give several DAGs."""
    others = tmp_path / "others"
    others.mkdir()
    for name in ("mine", "theirs"):
        (others / f"{name}.yaml").write_text(SHOP.replace("shop", name))
    monkeypatch.setenv("EXTRACT_SOURCES", str(others))
    assert set(bag(folder).dags) == {"mine_backfill", "mine_sync", "theirs_backfill", "theirs_sync"}


def test_a_wrong_source_is_an_import_error_with_its_reason(folder: Path) -> None:
    """The banner in the UI ends with the named error."""
    (folder / "sources" / "shop.yaml").write_text(SHOP.replace("take:", "tkae:"))
    (told,) = bag(folder).import_errors.values()
    assert "SourceError" in told
    assert "tkae" in told
    with pytest.raises(SourceError, match="tkae"):
        make_dags(folder / "sources")


def test_the_template_is_short_and_passes_the_safe_mode() -> None:
    """Airflow skips files without these words."""
    text = TEMPLATE.read_text()
    assert len(text.splitlines()) <= 30
    assert "airflow" in text
    assert "dag" in text


def test_a_task_for_each_object(folder: Path) -> None:
    """Plain tasks, independent of each other, retried with growing pauses, started by a person only."""
    dag = shop(folder)
    assert dag.task_ids == ["orders", "lines"]
    assert all(isinstance(task, BackfillOperator) and not task.upstream_task_ids for task in dag.tasks)
    assert {(task.retries, task.retry_exponential_backoff) for task in dag.tasks} == {(3, 2.0)}
    assert not dag.timetable.can_be_scheduled
    assert dag.is_paused_upon_creation is False
    assert dag.tags == {"extract", "shop", "backfill"}
    assert "| lines | `/lines` | order.id, number | `shop.order_lines` |" in (dag.doc_md or "")


@pytest.mark.parametrize("dag", ["shop_backfill", "shop_sync"])
def test_the_dag_is_the_same_every_time(dag: str, folder: Path) -> None:
    """Airflow makes a new version of a DAG whose form differs."""
    forms = [json.dumps(DagSerialization.serialize_dag(bag(folder).dags[dag]), sort_keys=True) for _ in "12"]
    assert forms[0] == forms[1]


def test_default_args_lie_over_the_retries(folder: Path) -> None:
    """What is not named stays as it is."""
    (task, *_) = make_dags(folder / "sources", default_args={"retries": 0, "owner": "me"})["shop_backfill"].tasks
    assert (task.retries, task.owner, task.retry_exponential_backoff) == (0, "me", 2.0)


def test_default_args_set_the_slices(folder: Path) -> None:
    """As docs/operations.md says."""
    dags = make_dags(folder / "sources", default_args={"run_for": 600, "pause": 120})
    tasks = [task for dag in dags.values() for task in dag.tasks]
    assert {(task.run_for, task.pause) for task in tasks if isinstance(task, WalkOperator)} == {(600, 120)}


@pytest.mark.parametrize("conf", [{}, {"objects": ["lines"]}, {"reset": True, "take_over": True}])
def test_the_form_accepts(folder: Path, conf: dict[str, Any]) -> None:
    """All objects unless some are taken away."""
    assert chosen(folder, conf) == {"objects": ["orders", "lines"], "reset": False, "take_over": False} | conf


@pytest.mark.parametrize(
    "conf",
    [
        {"objects": ["customers"]},
        {"objects": []},
        {"objects": None},
        {"objects": "lines"},
        {"objects": ["lines", "lines"]},
        {"reset": "yes"},
        {"take_over": None},
    ],
)
def test_the_form_refuses(folder: Path, conf: dict[str, Any]) -> None:
    """Airflow answers 400 to what the schema refuses."""
    with pytest.raises(ParamValidationError):
        chosen(folder, conf)
