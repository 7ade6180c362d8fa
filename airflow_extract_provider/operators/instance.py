"""The task instance that an operator runs as: its name to other runs, and its way to come back later."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowRescheduleException

from airflow_extract_provider.extract.errors import TryAgain

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

__all__ = ["TRIGGERER_MISSING", "come_back", "instance_of", "stopped", "wait_until"]

TRIGGERER_MISSING = timedelta(minutes=10)
"""How long after the end of the waiting a triggerer that should have said so is taken for absent."""


def instance_of(context: Context) -> tuple[str, str]:
    """The task instance's name, the same for all its tries and slices, and what people are shown of it."""
    ti = context["ti"]
    instance = "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index)))
    return instance, f"{instance}, try {ti.try_number}"


def come_back(due: datetime) -> NoReturn:
    """Leave the slot until then. That costs no try."""
    raise AirflowRescheduleException(due)  # type: ignore[no-untyped-call]  # Airflow's


def wait_until(operator: BaseOperator, due: datetime, pause: timedelta, *, deferrable: bool) -> NoReturn:
    """Leave the slot until then, in the triggerer if the operator is ``deferrable``; its `execute_after_waiting` goes
    on. Else the task is rescheduled, after the ``pause`` at the earliest."""
    if not deferrable:
        come_back(max(due, datetime.now(timezone.utc) + pause))
    from airflow.providers.standard.triggers.temporal import DateTimeTrigger

    operator.defer(
        trigger=DateTimeTrigger(moment=due),
        method_name="execute_after_waiting",
        timeout=due - datetime.now(timezone.utc) + TRIGGERER_MISSING,
    )


def stopped(kept: str, **place: Any) -> TryAgain:
    """The error of a task that was asked to stop: Airflow would take a return for success."""
    return TryAgain(
        "Airflow has stopped the task.",
        kept=kept,
        todo="Nothing: a retry, or the next run, goes on from there.",
        **place,
    )
