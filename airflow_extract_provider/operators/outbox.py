"""What the operators that read the outbox have in common: slices, who gives way to whom, waiting for events."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, RetryPolicy, conf

from airflow_extract_provider import config
from airflow_extract_provider.extract.errors import SourceError, WalkBusyError
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.links import ErrorLink
from airflow_extract_provider.operators.arguments import flag, interval, named
from airflow_extract_provider.operators.failing import RetryWhatMayPass, told_in_few_lines
from airflow_extract_provider.operators.instance import TRIGGERER_MISSING, come_back, instance_of, stopped

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.relay import Consumed, Handler
    from airflow_extract_provider.extract.store.consumer import Start

__all__ = ["OutboxOperator"]

_log = logging.getLogger(__name__)

_RETRY_WHAT_MAY_PASS = RetryWhatMayPass()


class OutboxOperator(BaseOperator):
    """Gives the events of the outbox to a handler, from where its consumer stands until none is left; its subclasses
    say which handler.

    A consumer is a name under which a place in the outbox is kept: it outlives runs and DAGs, and one task at a time
    uses it. While another one does, the task is rescheduled, until that one has ended or died. Events come in the order
    of their changes per record. One that fails is tried again by later runs, with the later ones of its record waiting
    behind it; after ``tries`` it is a dead letter, of which the log warns: the task succeeds all the same.

    The result in XCom tells what the last slice has ``handled`` and ``pruned``, and how the consumer stands: its
    ``place``, ``behind``, ``parked``, ``dead``.

    :param consumer: the consumer's name; it is made when it is first used.
    :param source: only events of this source; None: of all.
    :param object: only events of the objects of this name.
    :param types: only events of these types.
    :param start: where a new consumer begins: ``beginning``, the oldest event that is kept, or ``end``.
    :param tries: how often an event is tried in all.
    :param backoff: how long an event that has failed waits first, as a timedelta or in seconds; then twice as long.
    :param limit: the most events of one transaction.
    :param run_for: how long a slice lasts, as ``backoff``; None: no slices. Between two, the task is rescheduled.
    :param pause: how long the task leaves its slot to others between two slices, as ``backoff``. Not too short: a
        scheduler that has not yet read the end of the slice before takes the next one for lost, which costs a try.
    :param wait: how long to wait for an event when there is none, as ``backoff``; None: not at all.
    :param deferrable: wait in the triggerer, which takes no slot and knows of an event at once; else look again after
        each ``pause``. By default as Airflow's ``[operators] default_deferrable`` says.
    :param take_over: take the consumer from another run that holds it. A boolean or its text.
    :param store_conn_id: the Postgres connection of the store; None: as Airflow's ``[extract] store_conn_id`` says.
    :param retry_policy: which errors are retried; by default none that a person has to act upon first.
    """

    template_fields: Sequence[str] = (
        "consumer",
        "source",
        "object",
        "types",
        "start",
        "backoff",
        "run_for",
        "pause",
        "wait",
        "take_over",
        "store_conn_id",
    )
    ui_color = "#e8e2f4"
    operator_extra_links = (ErrorLink(),)

    def __init__(
        self,
        *,
        consumer: str,
        source: str | None = None,
        object: str | None = None,
        types: Sequence[str] | None = None,
        start: Start = "beginning",
        tries: int = 5,
        backoff: timedelta | float | str = timedelta(seconds=30),
        limit: int = 500,
        run_for: timedelta | float | str | None = timedelta(minutes=30),
        pause: timedelta | float | str = timedelta(seconds=60),
        wait: timedelta | float | str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        take_over: bool | str = False,
        store_conn_id: str | None = None,
        retry_policy: RetryPolicy | None = _RETRY_WHAT_MAY_PASS,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.consumer = consumer
        self.source = source
        self.object = object
        self.types = types
        self.start = start
        self.tries = tries
        self.backoff = backoff
        self.limit = limit
        self.run_for = run_for
        self.pause = pause
        self.wait = wait
        self.deferrable = deferrable
        self.take_over = take_over
        self.store_conn_id = store_conn_id or config.store_conn_id()
        self._stop: threading.Event | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one slice; returns its result if it was the last.

        Raises AirflowRescheduleException: there is more to do, another run holds the consumer, or it waits for events.
        Raises TaskDeferred: it waits for them in the triggerer.
        """
        with told_in_few_lines(self):
            until = None if self.wait is None else _began(context) + interval("wait", self.wait)
            return self._handled_or_later(context, until)

    def execute_after_waiting(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """The same after the trigger has fired, for whatever reason: what there is to do, the outbox tells."""
        with told_in_few_lines(self):
            return self._handled_or_later(context, datetime.fromisoformat(event["until"]))

    def on_kill(self) -> None:
        """Ask the run to end after the event that is being handled; :meth:`execute` then fails the task."""
        if self._stop is not None:
            self._stop.set()

    @abstractmethod
    def _handler(self) -> AbstractContextManager[Handler]:
        """The handler, for as long as a slice lasts."""

    def _handled_or_later(self, context: Context, until: datetime | None) -> dict[str, Any]:
        pause = interval("pause", self.pause)
        run_for = None if self.run_for is None else interval("run_for", self.run_for)
        began = time.monotonic()
        try:
            consumed = self._slice(context, run_for)
        except WalkBusyError as exc:
            self._come_back(pause, f"waits: {exc.what} Take over (`take_over`) does not wait")
        # Also once the time is up: what came after the last look is for another run, or this one would never end.
        cut = run_for is not None and time.monotonic() - began >= run_for.total_seconds()
        if cut and consumed.behind:
            self._come_back(pause, f"{counted(consumed.behind, 'event')} left to the next slice")
        if until is not None and not consumed.handled and datetime.now(timezone.utc) < until:
            self._wait(until, pause)
        self._warn_of(consumed)
        return consumed.as_dict()

    def _slice(self, context: Context, run_for: timedelta | None) -> Consumed:
        # Made here, not in __init__: an event holds a lock, which cannot be copied with the DAG.
        stop = self._stop = threading.Event()
        try:
            consumed = self._run(instance_of(context), run_for, stop)
        finally:
            self._stop = None
        if stop.is_set():
            raise stopped("what was committed; the consumer goes on from its place.", object=self.consumer)
        return consumed

    def _run(self, runner: tuple[str, str], run_for: timedelta | None, stop: threading.Event) -> Consumed:
        # Here, since a DAG file that only names the operator should not load drivers and clients.
        from airflow_extract_provider.extract.pipeline import Runner
        from airflow_extract_provider.extract.relay import consume
        from airflow_extract_provider.extract.store.outbox import Wanted
        from airflow_extract_provider.hooks.store import StoreHook

        self._check()
        with self._handler() as handler:
            return consume(
                self.consumer,
                handler,
                postgres=StoreHook(self.store_conn_id).connect,
                wanted=Wanted(self.source, self.object, None if self.types is None else tuple(self.types)),
                start=self.start,
                limit=self.limit,
                tries=self.tries,
                backoff=interval("backoff", self.backoff),
                runner=Runner(*runner),
                take_over=flag("take_over", self.take_over),
                run_for=run_for,
                stop=stop,
            )

    def _check(self) -> None:
        """See to what would pass events over in silence."""
        if self.start not in ("beginning", "end"):
            raise SourceError("the operator's `start` is neither beginning nor end.", todo="Correct the DAG.")
        if isinstance(self.types, str):
            raise SourceError("the operator's `types` is a text, no list of types.", todo="Correct the DAG.")
        if self.types is not None and not self.types:
            raise SourceError(
                "the operator's `types` is empty: no event is of none.", todo="Leave it out for all types."
            )
        for name, value in (("consumer", self.consumer), ("source", self.source), ("object", self.object)):
            named(name, value)
        for each in self.types or ():
            named("types", each)

    def _wait(self, until: datetime, pause: timedelta) -> NoReturn:
        if not self.deferrable:
            self._come_back(min(pause, until - datetime.now(timezone.utc)), "waits for events")
        from airflow_extract_provider.triggers.outbox import OutboxTrigger

        trigger = OutboxTrigger(
            consumer=self.consumer,
            source=self.source,
            object=self.object,
            types=self.types,
            store_conn_id=self.store_conn_id,
            until=until.isoformat(),
        )
        timeout = until - datetime.now(timezone.utc) + TRIGGERER_MISSING
        self.defer(trigger=trigger, method_name=self.execute_after_waiting.__name__, timeout=timeout)

    def _come_back(self, pause: timedelta, why: str) -> NoReturn:
        due = datetime.now(timezone.utc) + pause
        _log.info("consumer %s   %s; comes back at %s UTC", self.consumer, why, f"{due:%H:%M:%S}")
        come_back(due)

    def _warn_of(self, consumed: Consumed) -> None:
        if consumed.dead:
            _log.warning(
                "consumer %s has %s: `airflow extract events dead list --consumer %s` tells which, and why",
                *(consumed.consumer, counted(consumed.dead, "dead letter"), consumed.consumer),
            )


def _began(context: Context) -> datetime:
    """When the task has begun to wait: it may have been rescheduled meanwhile."""
    return context["ti"].get_first_reschedule_date(context) or datetime.now(timezone.utc)
