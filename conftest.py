"""Gives the tests an Airflow home of their own. Here, since it must be set before anything imports Airflow."""

from __future__ import annotations

import os
import shutil
import tempfile

_HOME = tempfile.mkdtemp(prefix="extract-airflow-home-")

os.environ.update(
    {
        "AIRFLOW_HOME": _HOME,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": f"{_HOME}/dags",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    }
)


def pytest_unconfigure() -> None:
    """Remove it."""
    shutil.rmtree(_HOME, ignore_errors=True)
