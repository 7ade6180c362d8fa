"""What all operators that walk an object have in common: slices, flags, who gives way to whom, how a run ends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, RetryPolicy, conf
from airflow.sdk.exceptions import AirflowSkipException

from airflow_extract_provider import assets, config, stats
from airflow_extract_provider.extract.errors import (
    BackfillFirstError,
    ExtractError,
    QuotaSpentError,
    WalkBusyError,
)
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.links import CursorLink, ErrorLink
from airflow_extract_provider.operators.api_client import api_client
from airflow_extract_provider.operators.arguments import flag, instant, interval
from airflow_extract_provider.operators.failing import RetryWhatMayPass, told_in_few_lines
from airflow_extract_provider.operators.instance import come_back, instance_of, stopped, wait_until

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.api.client import ApiClient
    from airflow_extract_provider.extract.pipeline import Summary, WalkName

__all__ = ["WalkOperator", "anew", "cleared"]

_log = logging.getLogger(__name__)

_RETRY_WHAT_MAY_PASS = RetryWhatMayPass()
_AS_CONFIGURED = timedelta(0)
"""The `run_for` of who gives none: None means something else."""
_SHORTEST = timedelta(seconds=60)
"""The least that a slice lasts though the next run is due: starting a task costs seconds."""


class WalkOperator(BaseOperator):
    """Walks one object into Postgres, from where the walk stands to its end; its subclasses say which ``walk``.

    The walk is committed page by page: retries, later slices and later runs go on where it stands. A walk longer than
    ``run_for`` is cut into slices; between two of them the task is rescheduled, which frees its slot for the source's
    other objects, costs no try and needs no triggerer.

    Where the API, or the source's `limit`, grants no request for longer than ``longest_wait``, the task leaves its slot
    until one is granted, and goes on at the same page.

    While another run holds the object, the task is rescheduled too, until that one has ended its slice or died. With
    ``next_run_at`` nothing is waited for: what cannot be done before the next run is left to it.

    The summary of the last slice goes to XCom. If anything was changed, by whichever slice or try, the task's success
    is an event of the asset ``extract://source/object`` (see :mod:`~airflow_extract_provider.assets`); not where the
    source is a path, since what a task may report must be known when the DAG is parsed. The events of an object that
    publishes to Kafka go to the connection that the object names.

    An error of the engine is logged in a few lines, without a traceback unless debug logging is on, and is retried only
    where that can help.

    :param source: the source, or the path of its YAML file, which is read when the task runs.
    :param object: the object's name in the source.
    :param store_conn_id: the Postgres connection of the copy; None: as Airflow's ``[extract] store_conn_id`` says.
    :param api_conn_id: the REST API connection; None: the one that the source names.
    :param run_for: how long a slice lasts, as a timedelta or in seconds; None: no slices. The pages under way are
        finished, so that a slice lasts a little longer. By default as ``[extract] run_for`` says.
    :param pause: how long the task leaves its slot to others between two slices, as ``run_for``. Not too short: a
        scheduler that has not yet read the end of the slice before takes the next one for lost, which costs a try.
    :param next_run_at: when the DAG's next run is due, as a datetime or ISO text; None: nothing depends on that. Given,
        no slice begins after it and none lasts longer (but a minute at least): the task then succeeds, with
        ``complete: false`` in its summary. And it is skipped when another run holds the object, or the backfill that
        it builds upon has not come to its end; but if an earlier slice or try has changed anything, it succeeds so too,
        for a skipped task reports no asset event.
    :param selected: false skips the task. A boolean or its text, so that it may be a template.
    :param reset: start over, once in a DAG run: retries and slices go on. So does clearing the task, unless the walk
        had come to its end. As ``selected``.
    :param take_over: take the object from another run that holds it. As ``selected``.
    :param longest_wait: how long a request may wait for its turn while the task keeps its slot, as ``run_for``.
    :param deferrable: wait longer than that in the triggerer; else the task is rescheduled. By default as Airflow's
        ``[operators] default_deferrable`` says.
    :param retry_policy: which errors are retried; by default none that a person has to act upon first.
    """

    walk: WalkName
    template_fields: Sequence[str] = (
        "object",
        "store_conn_id",
        "api_conn_id",
        "run_for",
        "pause",
        "next_run_at",
        "selected",
        "reset",
        "take_over",
        "longest_wait",
    )
    ui_color = "#d6eaf0"
    operator_extra_links = (CursorLink(), ErrorLink())

    def __init__(
        self,
        *,
        source: Source | str | os.PathLike[str],
        object: str,
        store_conn_id: str | None = None,
        api_conn_id: str | None = None,
        run_for: timedelta | float | str | None = _AS_CONFIGURED,
        pause: timedelta | float | str = timedelta(seconds=60),
        next_run_at: datetime | str | None = None,
        selected: bool | str = True,
        reset: bool | str = False,
        take_over: bool | str = False,
        longest_wait: timedelta | float | str = timedelta(seconds=60),
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        retry_policy: RetryPolicy | None = _RETRY_WHAT_MAY_PASS,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.source = source
        self.object = object
        self.store_conn_id = store_conn_id or config.store_conn_id()
        self.api_conn_id = api_conn_id
        self.run_for = config.run_for() if run_for is _AS_CONFIGURED else run_for
        self.pause = pause
        self.next_run_at = next_run_at
        self.selected = selected
        self.reset = reset
        self.take_over = take_over
        self.longest_wait = longest_wait
        self.deferrable = deferrable
        self._stop: threading.Event | None = None
        if isinstance(source, Source):
            self.outlets = [*self.outlets, assets.alias_of(source.source)]

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one slice; returns its summary if it was the last.

        Raises AirflowRescheduleException: there is more to do, or another run holds the object. Raises
        AirflowSkipException: not selected, nothing to do for such an object, or left to the next run.
        """
        with told_in_few_lines(self):
            if not flag("selected", self.selected):
                raise AirflowSkipException(f"{self.object} is not among the objects that were selected")
            # Read before anything is done: a slice that has run should not end in an error of the DAG.
            pause, next_run_at = interval("pause", self.pause), instant("next_run_at", self.next_run_at)
            # Made here, not in __init__: an event holds a lock, which cannot be copied with the DAG.
            stop = self._stop = threading.Event()
            try:
                summary = self._slice(context, next_run_at, stop)
            except (WalkBusyError, BackfillFirstError, QuotaSpentError) as exc:
                return self._later(context, exc, pause, next_run_at)
            finally:
                self._stop = None
            stats.emit(summary)
            if not summary.complete and stop.is_set():
                raise stopped("every page that was committed.", **_place(summary))
        if not summary.complete:
            _go_on_later(summary, pause, next_run_at)
        self._tell(context, summary)
        return summary.as_dict()

    def execute_after_waiting(self, context: Context, event: Any) -> dict[str, Any]:
        """The same once the quota is not spent any more: the walk goes on from its position."""
        del event
        return self.execute(context)

    def on_kill(self) -> None:
        """Ask the walk to end after the pages that have arrived; :meth:`execute` then fails the task."""
        if self._stop is not None:
            self._stop.set()

    def nothing_to_do(self, source: Source) -> str | None:
        """Why this walk has nothing to do for the object, in words; None: it may have."""
        del source
        return None

    def given(self) -> dict[str, Any]:
        """What this walk alone is given, as arguments of :func:`~airflow_extract_provider.extract.pipeline.run`."""
        return {}

    def runner(self, context: Context) -> tuple[str, str]:
        """Who runs: the same for all tries and slices; and what people are shown of it."""
        return instance_of(context)

    @property
    def starts_over(self) -> bool:
        """Whether the task was asked to start over."""
        return flag("reset", self.reset)

    @contextmanager
    def client(self, source: Source) -> Iterator[ApiClient]:
        """What asks the API, logged in, in the quota that all tasks of the source share."""
        with api_client(source, self.store_conn_id, self.api_conn_id, self.longest_wait) as client:
            yield client

    def _later(
        self, context: Context, why: ExtractError, pause: timedelta, next_run_at: datetime | None
    ) -> dict[str, Any]:
        """Leave the slot until the walk may go on; or leave it to the next run, if that is due before."""
        spent = why.until if isinstance(why, QuotaSpentError) else None
        if next_run_at is not None and (spent is None or spent >= next_run_at):
            return self._left(context, why)
        if spent is not None:
            self._wait_until(spent, pause, why)
        if isinstance(why, WalkBusyError):
            _wait(why, pause)
        raise why

    def _wait_until(self, due: datetime, pause: timedelta, why: ExtractError) -> NoReturn:
        _log.info("%s/%s %s   waits: %s", why.source, why.object, why.walk, why.what)
        wait_until(self, due, pause, deferrable=self.deferrable)

    def _left(self, context: Context, why: ExtractError) -> dict[str, Any]:
        """Leave the rest to the next run: skip the task, or, if an earlier slice or try has changed anything, let it
        succeed with that."""
        summary = self._so_far(context)
        if summary is None or assets.changes(summary) is None:
            raise AirflowSkipException(f"{why.what} Left to the next run.") from None
        _log.info("%s/%s %s   %s Left to the next run", summary.source, summary.object, summary.walk, why.what)
        self._tell(context, summary)
        return summary.as_dict()

    def _so_far(self, context: Context) -> Summary | None:
        """What the task's slices and tries have done, as the ledger tells; None: the walk has never begun."""
        from airflow_extract_provider.extract.pipeline import Settings, Summary
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.extract.store.ledger import Ledger
        from airflow_extract_provider.hooks.store import StoreHook

        source, (instance, _), times = self.read_source(), instance_of(context), cleared(context)
        ledger = Ledger(Settings().schema, source.source, self.object, self.walk)
        with named_errors(), StoreHook(self.store_conn_id).connect() as conn:
            head = ledger.head(conn)
            counts = ledger.totals(conn, instance)
            if times:
                counts.update(ledger.totals(conn, anew(instance, times)))
        if head is None:
            return None
        position = head.position
        return Summary(
            source=source.source,
            object=self.object,
            walk=self.walk,
            complete=False,
            pages=counts["pages"],
            requests=counts["requests"],
            records=counts["records"],
            counts=counts,
            seconds=0.0,
            cursor_before=position.as_json(),
            cursor_after=position.as_json(),
            complete_to=None,
            without_version=position.nulls,
        )

    def shown_cursor(self) -> tuple[str, str, str] | None:
        """Source, object and walk of the Variable that shows the cursor; None: this walk has none."""
        if self.walk in ("by_key", "window"):
            return None
        return self.read_source().source, self.object, self.walk

    def read_source(self) -> Source:
        """The source as its file says now."""
        return self.source if isinstance(self.source, Source) else load_source(Path(self.source))

    def _tell(self, context: Context, summary: Summary) -> None:
        """Let the success be an asset event, if anything has changed: none is registered for a failure or a slice."""
        told = assets.changes(summary)
        if told is not None and isinstance(self.source, Source):
            assets.register(context, summary.source, summary.object, told)

    def _slice(self, context: Context, next_run_at: datetime | None, stop: threading.Event) -> Summary:
        source = self.read_source()
        if why := self.nothing_to_do(source):
            raise AirflowSkipException(why)
        instance, label = self.runner(context)
        # The same for all tries and slices, so that each takes over from the one before at once.
        summary = self._run(source, (instance, label), next_run_at, stop)
        times = cleared(context)
        again = anew(instance_of(context)[0], times)
        same = summary.complete and summary.cursor_before == summary.cursor_after
        if times and self.starts_over and same and instance != again:
            # Cleared after it had come to its end: whoever does that wants it done again. Under a name of its own, so
            # that the ledger does not take it for a retry.
            summary = self._run(source, (again, label), next_run_at, stop)
        return summary

    def _run(
        self, source: Source, runner: tuple[str, str], next_run_at: datetime | None, stop: threading.Event
    ) -> Summary:
        # Here, since a DAG file that only names the operator should not load drivers and clients.
        from airflow_extract_provider.cursors import VariableCursors
        from airflow_extract_provider.extract.pipeline import Runner, run
        from airflow_extract_provider.hooks.kafka import sink_of
        from airflow_extract_provider.hooks.redis import hash_map_of
        from airflow_extract_provider.hooks.store import StoreHook

        with (
            sink_of(source.object(self.object)) as sink,
            hash_map_of(source.object(self.object)) as hash_map,
            self.client(source) as client,
        ):
            return run(
                source,
                self.object,
                self.walk,
                postgres=StoreHook(self.store_conn_id).connect,
                client=client,
                runner=Runner(*runner),
                sink=sink,
                cursor=VariableCursors(),
                hash_map=hash_map,
                reset=self.starts_over,
                take_over=flag("take_over", self.take_over),
                run_for=_shortened(None if self.run_for is None else interval("run_for", self.run_for), next_run_at),
                stop=stop,
                **self.given(),
            )


def anew(instance: str, cleared: int) -> str:
    """The name of a task instance that does again what it had done."""
    return f"{instance}/cleared {cleared}"


def cleared(context: Context) -> int:
    """A number that grows each time the task is cleared; 0: it never was."""
    ti = context["ti"]
    # Clearing gives the task its retries anew, on top of the tries that it has had.
    return max(0, ti.max_tries - int(ti.task.retries or 0))


def _shortened(run_for: timedelta | None, next_run_at: datetime | None) -> timedelta | None:
    if next_run_at is None:
        return run_for
    left = max(next_run_at - datetime.now(timezone.utc), _SHORTEST)
    return left if run_for is None else min(run_for, left)


def _go_on_later(summary: Summary, pause: timedelta, next_run_at: datetime | None) -> None:
    """Reschedule the task for its next slice; return if that is left to the DAG's next run."""
    due = datetime.now(timezone.utc) + pause
    if next_run_at is None or due < next_run_at:
        come_back(due)
    _log.info("%s/%s %s   left to the next run, which is due", summary.source, summary.object, summary.walk)


def _wait(busy: WalkBusyError, pause: timedelta) -> NoReturn:
    due = datetime.now(timezone.utc) + pause
    where = f"{busy.source}/{busy.object} {busy.walk}"
    _log.info("%s   waits until %s UTC: %s Take over (`take_over`) does not wait", where, f"{due:%H:%M:%S}", busy.what)
    come_back(due)


def _place(summary: Summary) -> dict[str, Any]:
    return {"source": summary.source, "object": summary.object, "walk": summary.walk}
