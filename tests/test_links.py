"""The buttons on a task, as Airflow's task runner stores them when the task ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import DAG, TaskInstanceState
from airflow.serialization.serialized_objects import DagSerialization

from airflow_extract_provider.links import CursorLink, ErrorLink
from airflow_extract_provider.operators.by_key import ByKeyOperator
from airflow_extract_provider.operators.consume import ConsumeEventsOperator
from airflow_extract_provider.operators.incremental import IncrementalOperator
from tests.loopback import Fault
from tests.operators.test_backfill import Shop
from tests.operators.test_backfill import shop as shop

DOCS = "https://git.example.com/docs"


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Airflow that says where it and the docs are."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/behind/")
    monkeypatch.setenv("AIRFLOW__EXTRACT__DOCS_URL", f"{DOCS}/")


def stored(shop: Shop) -> Mapping[str, Any]:
    """What the last task's buttons lead to."""
    keys = {CursorLink().xcom_key: "Cursor", ErrorLink().xcom_key: "What to do"}
    return {keys[msg.key]: msg.value for msg in shop.airflow.of("SetXCom") if msg.key in keys}


def test_a_task_that_succeeds(shop: Shop, configured: None) -> None:
    """The Variables, filtered for its own; no error."""
    assert shop.run(finished=True).state is TaskInstanceState.SUCCESS
    key = "extract_shop_things_backfill_cursor"
    assert key in shop.airflow.variables
    assert stored(shop) == {
        "Cursor": f"https://airflow.example.com/behind/variables?name_pattern={key}",
        "What to do": "",
    }


def test_a_task_that_fails_and_is_done_again(shop: Shop, configured: None) -> None:
    """The place of its error in the docs, until a try has succeeded."""
    shop.api.fault = lambda number, asked: Fault(200, b"<!doctype html>")
    assert shop.run(finished=True).state is TaskInstanceState.FAILED
    assert stored(shop)["What to do"] == f"{DOCS}/errors.md#wrong-answer"
    shop.api.fault = lambda number, asked: None
    assert shop.run(try_number=2, finished=True).state is TaskInstanceState.SUCCESS
    assert stored(shop)["What to do"] == ""


def test_nobody_has_said_where_the_docs_are(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """No button then."""
    monkeypatch.delenv("AIRFLOW__EXTRACT__DOCS_URL", raising=False)
    shop.api.fault = lambda number, asked: Fault(200, b"<!doctype html>")
    assert shop.run(finished=True).state is TaskInstanceState.FAILED
    assert stored(shop)["What to do"] == ""


def test_a_walk_without_a_cursor(shop: Shop, configured: None) -> None:
    """What reads notes by key stands nowhere."""
    operator = shop.operator(ByKeyOperator)
    assert CursorLink().get_link(operator, ti_key=None) == ""  # type: ignore[arg-type]  # it is not looked at


def test_airflow_knows_them(shop: Shop) -> None:
    """By the provider's description, and by the serialized task."""
    manager = ProvidersManager()  # type: ignore[no-untyped-call]  # Airflow's
    ours = {name for name in manager.extra_links_class_names if name.startswith("airflow_extract_provider.")}
    assert ours == {f"{kind.__module__}.{kind.__qualname__}" for kind in (CursorLink, ErrorLink)}
    with DAG("d", schedule=None) as dag:
        IncrementalOperator(task_id="walk", source=shop.source, object="things")
        ConsumeEventsOperator(task_id="consume", consumer="mail", handler=print)
    again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert set(again.get_task("walk").extra_links) == {"Cursor", "What to do"}
    assert set(again.get_task("consume").extra_links) == {"What to do"}
