"""The task instance that an operator runs as: its name to other runs, and its way to come back later."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowRescheduleException

from airflow_extract_provider.extract.errors import TryAgain

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["come_back", "instance_of", "stopped"]


def instance_of(context: Context) -> tuple[str, str]:
    """The task instance's name, the same for all its tries and slices, and what people are shown of it."""
    ti = context["ti"]
    instance = "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index)))
    return instance, f"{instance}, try {ti.try_number}"


def come_back(due: datetime) -> NoReturn:
    """Leave the slot until then. That costs no try."""
    raise AirflowRescheduleException(due)  # type: ignore[no-untyped-call]  # Airflow's


def stopped(kept: str, **place: Any) -> TryAgain:
    """The error of a task that was asked to stop: Airflow would take a return for success."""
    return TryAgain(
        "Airflow has stopped the task.",
        kept=kept,
        todo="Nothing: a retry, or the next run, goes on from there.",
        **place,
    )
