"""What the DAGs of a source have in common: retries, timeouts, pool, owner, tags."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow_extract_provider import config
from airflow_extract_provider.extract.source import Source

__all__ = ["dag_arguments", "task_arguments"]

_BEYOND = timedelta(hours=1)
"""How much longer than its slice a task may take: for the pages under way, an answer that dribbles, a lock."""


def task_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of all tasks, those ``given`` over ours: retries with growing pauses, and a bound of time.

    A slice ends by itself, so that the bound catches what hangs; without slices there is none.
    """
    run_for = given.get("run_for", config.run_for())
    bound = None if run_for is None else _seconds(run_for) + _BEYOND
    return {
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
        "execution_timeout": bound,
        **given,
    }


def dag_arguments(source: Source, kind: str, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a source's DAG of a kind; ``tasks`` are those of its tasks."""
    own: dict[str, Any] = {} if source.owner is None else {"owner": source.owner}
    if source.pool_name is not None:
        own["pool"] = source.pool_name
    tags = dict.fromkeys(["extract", source.source, kind, *source.tags])
    return {"default_args": {**own, **tasks}, "tags": list(tags)}


def _seconds(value: object) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=float(str(value)))
