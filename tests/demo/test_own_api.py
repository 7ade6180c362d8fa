"""The judge of the copy of Airflow's own API: equal is equal in all columns, and whatever differs is told."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest

from demo.own_api import compare

AT = datetime(2026, 3, 1, 12, 0, 0, 250000, tzinfo=timezone.utc)
ID = UUID("01a21a03-5d9e-72ab-8839-7ca453c3cd4d")
KEY = ("busy", "manual__1")
TRUTH: Mapping[str, Any] = {
    "id": ID,
    "state": "success",
    "start_date": AT,
    "end_date": None,
    "pid": 7,
    "conf": {"a": 1},
}
COPY: Mapping[str, Any] = {**TRUTH, "id": str(ID), "start_date": "2026-03-01T12:00:00.250Z"}


def test_equal_rows_are_equal_in_another_spelling() -> None:
    """JSON has neither instants nor UUIDs."""
    verdict = compare("dag_runs", {KEY: COPY}, {KEY: TRUTH})
    assert (verdict.equal, str(verdict)) == (True, "dag_runs 1 = 1")


@pytest.mark.parametrize(
    "other",
    [
        {"id": "01a21a03-5d9e-72ab-8839-7ca453c3cd4e"},
        {"state": "failed"},
        {"start_date": "2026-03-01T12:00:00.250001Z"},
        {"start_date": None},
        {"start_date": "today"},
        {"end_date": "2026-03-01T12:00:00Z"},
        {"pid": 8},
        {"conf": {}},
    ],
)
def test_one_column_that_differs_is_told(other: Mapping[str, Any]) -> None:
    """By its name and its row."""
    verdict = compare("dag_runs", {KEY: {**COPY, **other}}, {KEY: TRUTH})
    ((name, value),) = other.items()
    assert not verdict.equal
    assert verdict.wrong == (f"{name} of busy/manual__1: {value!r}, not {TRUTH[name]!r}",)


def test_rows_that_only_one_of_them_has_are_told() -> None:
    """Deleted, and never read."""
    assert compare("dag_runs", {KEY: COPY}, {}).wrong == ("busy/manual__1 is only in the copy",)
    assert compare("dag_runs", {}, {KEY: TRUTH}).wrong == ("busy/manual__1 is only in the metadata",)
