"""Runs a task in Airflow's own task runner, with a stand-in for the API server: no database, no other process."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from airflow.sdk import BaseOperator, TaskInstanceState
from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType, TIRunContext
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms, task_runner

__all__ = ["ApiServer", "Outcome", "run_task"]

_NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)


@dataclass
class ApiServer:
    """Answers what a task asks of Airflow. ``down`` holds kinds of messages that it answers with status 500, ``shadow``
    values that are read in place of the stored ones. ``began`` is when a task that was rescheduled has run first."""

    variables: dict[str, str] = field(default_factory=dict)
    connections: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    shadow: dict[str, str] = field(default_factory=dict)
    began: datetime | None = None
    sent: list[Any] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[ApiServer]:
        """Be the API server of everything inside."""
        with patch.object(task_runner, "SUPERVISOR_COMMS", self, create=True):
            yield self

    def send(self, msg: Any) -> Any:
        """Answer a message, as the supervisor does."""
        self.sent.append(msg)
        kind = type(msg).__name__
        if kind in self.down:
            raise AirflowRuntimeError(
                comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 500})
            )
        answer = getattr(self, f"_{kind}", None)
        return answer(msg) if answer else comms.OKResponse(ok=True)

    def of(self, kind: str) -> list[Any]:
        """The messages of one kind, in order."""
        return [msg for msg in self.sent if type(msg).__name__ == kind]

    def _GetVariable(self, msg: Any) -> Any:
        value = self.shadow.get(msg.key, self.variables.get(msg.key))
        if value is None:
            return comms.ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND, detail={"key": msg.key})
        return comms.VariableResult(key=msg.key, value=value)

    def _GetVariableKeys(self, msg: Any) -> Any:
        keys = [key for key in self.variables if key.startswith(msg.prefix or "")]
        return comms.VariableKeysResult(keys=keys, total_entries=len(keys))

    def _PutVariable(self, msg: Any) -> Any:
        self.variables[msg.key] = msg.value
        return comms.OKResponse(ok=True)

    def _ValidateInletsAndOutlets(self, msg: Any) -> Any:
        return comms.InactiveAssetsResult(inactive_assets=[])

    def _GetTaskRescheduleStartDate(self, msg: Any) -> Any:
        return comms.TaskRescheduleStartDate(start_date=self.began)

    def _GetConnection(self, msg: Any) -> Any:
        if msg.conn_id not in self.connections:
            return comms.ErrorResponse(error=ErrorType.CONNECTION_NOT_FOUND, detail={"conn_id": msg.conn_id})
        empty = dict.fromkeys(("host", "login", "password", "port", "schema", "extra"))
        return comms.ConnectionResult(conn_id=msg.conn_id, **{**empty, **self.connections[msg.conn_id]})


@dataclass
class Outcome:
    """How a task ended: its state, what was reported to the supervisor, the exception, what Airflow itself logged."""

    state: TaskInstanceState
    msg: Any
    error: BaseException | None
    events: list[tuple[str, str]]

    @property
    def tracebacks(self) -> list[str]:
        """What Airflow logged with a traceback."""
        return [event for level, event in self.events if level == "exception"]


class _Log:
    """A structlog logger that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, *args, **more: self.events.append((level, f"{event} {more.get('reason', '')}".rstrip()))


def run_task(
    operator: BaseOperator,
    server: ApiServer,
    *,
    conf: Mapping[str, Any] | None = None,
    try_number: int = 1,
    run_id: str = "manual__1",
    should_retry: bool = True,
    cleared: int = 0,
    resumed: tuple[str, Mapping[str, Any]] | None = None,
    run_type: DagRunType = DagRunType.MANUAL,
    interval: tuple[datetime, datetime] | None = None,
    finished: bool = False,
) -> Outcome:
    """Run a task as a worker does, up to the report of its state. ``should_retry``: tries are left. ``cleared``: so
    many tries had been used up when the task was cleared last. ``resumed``: it was deferred, and goes on with this
    method and what the trigger's event has told. ``interval``: the run's data interval. ``finished``: what Airflow
    does behind the report is done too."""
    max_tries = (operator.retries or 0) + cleared
    from_server = _run_context(operator.dag_id, run_id, conf, should_retry, max_tries, server.began is not None)
    from_server.dag_run.run_type = run_type
    from_server.dag_run.data_interval_start, from_server.dag_run.data_interval_end = interval or (None, None)
    if resumed is not None:
        from_server.next_method, from_server.next_kwargs = resumed[0], {"event": dict(resumed[1])}
    ti: Any = task_runner.RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(),
        task_id=operator.task_id,
        dag_id=operator.dag_id,
        run_id=run_id,
        try_number=try_number,
        map_index=-1,
        dag_version_id=uuid.uuid4(),
        task=operator,
        bundle_instance=SimpleNamespace(name="test", version=None),
        _ti_context_from_server=from_server,
        max_tries=max_tries,
        start_date=_NOW,
        state=TaskInstanceState.RUNNING,
        is_mapped=False,
    )
    log: Any = _Log()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with server.serving():
            context = ti.get_template_context()
            state, msg, error = task_runner.run(ti, context, log)
            if finished:
                task_runner.finalize(ti, state, context, log, error)
    finally:
        signal.signal(signal.SIGTERM, before)
    return Outcome(state, msg, error, log.events)


def _run_context(
    dag_id: str, run_id: str, conf: Mapping[str, Any] | None, should_retry: bool, max_tries: int, rescheduled: bool
) -> TIRunContext:
    dag_run = DagRun(
        dag_id=dag_id,
        run_id=run_id,
        logical_date=None,
        data_interval_start=None,
        data_interval_end=None,
        run_after=_NOW,
        start_date=_NOW,
        end_date=None,
        run_type=DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        conf=dict(conf or {}),
        consumed_asset_events=[],
        partition_key=None,
    )
    return TIRunContext(
        dag_run=dag_run, max_tries=max_tries, should_retry=should_retry, task_reschedule_count=int(rescheduled)
    )
