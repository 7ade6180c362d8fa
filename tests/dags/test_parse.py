"""What a DAG file costs that makes the DAGs of many sources."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "dag_parse.py"


def test_a_hundred_sources(measured: Callable[[str], None]) -> None:
    """All their DAGs from one file; nothing is touched but files, which are read."""
    found: dict[str, Any]
    (found,) = runpy.run_path(str(BENCHMARK))["measured"](100, rounds=1)
    assert found["dags"] == 200
    assert found["acts"] == []
    measured(
        f"DAG import of 100 sources, {found['dags']} DAGs, CPU beyond Airflow's own: {found['import']:.0f} ms for the "
        f"package, {found['parse']:.0f} ms for the DAGs, {found['again']:.0f} ms when they are parsed again"
    )
