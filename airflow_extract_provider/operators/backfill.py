"""Reads an object of an API from its beginning to its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, RetryPolicy
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSkipException

from airflow_extract_provider.extract.errors import SourceError, TryAgain
from airflow_extract_provider.extract.source import Source, load_source
from airflow_extract_provider.operators.failing import RetryWhatMayPass, told_in_few_lines

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.pipeline import Runner, Summary

__all__ = ["BackfillOperator"]

_RETRY_WHAT_MAY_PASS = RetryWhatMayPass()
_FLAGS = {"true": True, "false": False}


class BackfillOperator(BaseOperator):
    """Copies one object into Postgres, from where its walk stands to its end.

    The walk is committed page by page: retries, later slices and later runs go on where it stands. A walk longer than
    ``run_for`` is cut into slices; between two of them the task is rescheduled, which frees its slot for the source's
    other objects, costs no try and needs no triggerer.

    The summary of the last slice goes to XCom. An error of the engine is logged in a few lines, without a traceback
    unless debug logging is on, and is retried only where that can help.

    :param source: the source, or the path of its YAML file, which is read when the task runs.
    :param object: the object's name in the source.
    :param store_conn_id: the Postgres connection of the copy.
    :param api_conn_id: the REST API connection; None: the one that the source names.
    :param run_for: how long a slice lasts, as a timedelta or in seconds; None: no slices. The pages under way are
        finished, so that a slice lasts a little longer.
    :param pause: how long the task leaves its slot to others between two slices, as ``run_for``. Not too short: a
        scheduler that has not yet read the end of the slice before takes the next one for lost, which costs a try.
    :param selected: false skips the task. A boolean or its text, so that it may be a template.
    :param reset: start over from the first page, once in a DAG run: retries and slices go on. As ``selected``.
    :param take_over: take the walk from another run that holds it. As ``selected``.
    :param retry_policy: which errors are retried; by default none that a person has to act upon first.
    """

    template_fields: Sequence[str] = (
        "object",
        "store_conn_id",
        "api_conn_id",
        "run_for",
        "pause",
        "selected",
        "reset",
        "take_over",
    )
    ui_color = "#d6eaf0"

    def __init__(
        self,
        *,
        source: Source | str | os.PathLike[str],
        object: str,
        store_conn_id: str = "extract_store",
        api_conn_id: str | None = None,
        run_for: timedelta | float | str | None = timedelta(minutes=30),
        pause: timedelta | float | str = timedelta(seconds=60),
        selected: bool | str = True,
        reset: bool | str = False,
        take_over: bool | str = False,
        retry_policy: RetryPolicy | None = _RETRY_WHAT_MAY_PASS,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.source = source
        self.object = object
        self.store_conn_id = store_conn_id
        self.api_conn_id = api_conn_id
        self.run_for = run_for
        self.pause = pause
        self.selected = selected
        self.reset = reset
        self.take_over = take_over
        self._stop: threading.Event | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one slice; returns its summary if it was the last.

        Raises AirflowRescheduleException: there is more to do. Raises AirflowSkipException: not selected.
        """
        with told_in_few_lines():
            if not _flag("selected", self.selected):
                raise AirflowSkipException(f"{self.object} is not among the objects that were selected")
            # Read before anything is done: a slice that has run should not end in an error of the DAG.
            pause = _interval("pause", self.pause)
            # Made here, not in __init__: an event holds a lock, which cannot be copied with the DAG.
            stop = self._stop = threading.Event()
            try:
                summary = self._run(context, stop)
            finally:
                self._stop = None
            if not summary.complete and stop.is_set():
                # Airflow only asked to stop, and takes a return for success.
                raise TryAgain(
                    "Airflow has stopped the task.",
                    kept="every page that was committed.",
                    todo="Nothing: a retry, or the next run, goes on from there.",
                    source=summary.source,
                    object=summary.object,
                    walk=summary.walk,
                )
        if not summary.complete:
            due = datetime.now(timezone.utc) + pause
            raise AirflowRescheduleException(due)  # type: ignore[no-untyped-call]  # Airflow's
        return summary.as_dict()

    def on_kill(self) -> None:
        """Ask the walk to end after the pages that have arrived; :meth:`execute` then fails the task."""
        if self._stop is not None:
            self._stop.set()

    def _run(self, context: Context, stop: threading.Event) -> Summary:
        # Here, since a DAG file that only names the operator should not load drivers and clients.
        from airflow_extract_provider.cursors import VariableCursors
        from airflow_extract_provider.extract.pipeline import run
        from airflow_extract_provider.hooks.api import RestApiHook
        from airflow_extract_provider.hooks.store import StoreHook

        source = self.source if isinstance(self.source, Source) else load_source(Path(self.source))
        return run(
            source,
            self.object,
            "backfill",
            postgres=StoreHook(self.store_conn_id).connect,
            client=RestApiHook(self.api_conn_id or source.connection).client(source),
            runner=_runner(context),
            cursor=VariableCursors(),
            reset=_flag("reset", self.reset),
            take_over=_flag("take_over", self.take_over),
            run_for=None if self.run_for is None else _interval("run_for", self.run_for),
            stop=stop,
        )


def _runner(context: Context) -> Runner:
    """The same for all tries and slices of a task instance, so that each takes over from the one before at once."""
    from airflow_extract_provider.extract.pipeline import Runner

    ti = context["ti"]
    instance = "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index)))
    return Runner(identity=instance, label=f"{instance}, try {ti.try_number}")


def _flag(name: str, value: bool | str) -> bool:
    """A boolean, or the text that a template makes of one."""
    if isinstance(value, bool):
        return value
    found = _FLAGS.get(str(value).strip().lower())
    if found is None:
        raise SourceError(f"the operator's `{name}` is neither true nor false.", todo="Correct the DAG.")
    return found


def _interval(name: str, value: timedelta | float | str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    try:
        return timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        raise SourceError(f"the operator's `{name}` is no number of seconds.", todo="Correct the DAG.") from None
