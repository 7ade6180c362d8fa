"""Applies the webhooks that wait in the inbox, and reads what they told of by its keys."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, RetryPolicy, conf

from airflow_extract_provider import assets, config, stats
from airflow_extract_provider.extract.errors import ExtractError, QuotaSpentError, SourceError
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.links import ErrorLink
from airflow_extract_provider.operators.api_client import api_client
from airflow_extract_provider.operators.arguments import instant, interval
from airflow_extract_provider.operators.asked import check_fields
from airflow_extract_provider.operators.failing import RetryWhatMayPass, told_in_few_lines
from airflow_extract_provider.operators.instance import come_back, instance_of, stopped, wait_until
from airflow_extract_provider.operators.noted import Noted, Reading, sinks_of
from airflow_extract_provider.operators.walk import anew, cleared

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.store.connection import Connect
    from airflow_extract_provider.extract.store.inbox_run import Unreported
    from airflow_extract_provider.extract.webhooks.drain import Drained

__all__ = ["ApplyInboxOperator"]

_log = logging.getLogger(__name__)

_RETRY_WHAT_MAY_PASS = RetryWhatMayPass()
_AS_CONFIGURED = timedelta(0)
"""The `run_for` of who gives none: None means something else."""
_ALL = "all"
_PLACE = re.compile(r"[0-9]{1,18}")


class ApplyInboxOperator(BaseOperator):
    """Applies the webhooks of a source that wait, in order per record, until none is left; then reads by their keys the
    records of which they did not decide the newest state.

    What waits is what the inbox holds, whatever has started the run: webhooks that a run before has left, since it
    failed or died, are applied by the next one. Several runs may be at it at once.

    A message that cannot be applied is tried again by later runs; after ``tries`` it is a dead letter, of which the log
    warns with the command that lists them: the task succeeds all the same. Where another run holds an object, what is
    to be read of it stays noted: its own walk `by_key`, or the next run of this operator, reads it. A copy that is not
    what the source file describes fails the task while any message waits for it, once all others are applied and read.

    A run longer than ``run_for`` is cut into slices; between two of them the task is rescheduled, which frees its slot,
    costs no try and needs no triggerer. Where the API grants no request for longer than ``longest_wait``, the task
    leaves its slot until one is granted, or leaves the rest to the next run.

    The result in XCom tells what the last slice has done: messages by what became of them, changes by kind, what still
    waits and is dead; ``by_key``: what was read, by object; ``left``: of which objects something is still to be read,
    and why. Of each object of which webhooks have changed anything, by whichever slice or try, or by a run before that
    has failed, the task's success is an event of the asset ``extract://source/object``; not where the source is a path.

    :param source: the source, or the path of its YAML file, which is read when the task runs.
    :param store_conn_id: the Postgres connection of the copy; None: as Airflow's ``[extract] store_conn_id`` says.
    :param api_conn_id: the REST API connection; None: the one that the source names.
    :param limit: the most webhooks of one transaction.
    :param tries: how often a message is tried in all.
    :param backoff: how long a message that has failed waits first, as a timedelta or in seconds; then twice as long.
    :param run_for: how long a slice lasts, as ``backoff``; None: no slices. By default as ``[extract] run_for`` says.
    :param pause: how long the task leaves its slot to others between two slices, as ``backoff``.
    :param next_run_at: when the DAG's next run is due, as a datetime or ISO text: what the API does not grant before is
        left to that one, so that other webhooks need not wait for it. None: it is waited for.
    :param replay: dead letters to be tried again first: `all`, or the places of their webhooks, as texts with commas
        or numbers; nothing: none. Each once, until the task is cleared.
    :param fields: what a run's `conf` may hold; None: anything.
    :param longest_wait: how long a request may wait for its turn while the task keeps its slot, as ``backoff``.
    :param deferrable: wait longer than that in the triggerer; else the task is rescheduled. By default as Airflow's
        ``[operators] default_deferrable`` says.
    :param retry_policy: which errors are retried; by default none that a person has to act upon first.
    """

    template_fields: Sequence[str] = (
        "store_conn_id",
        "api_conn_id",
        "backoff",
        "run_for",
        "pause",
        "next_run_at",
        "replay",
        "longest_wait",
    )
    ui_color = "#f6e5cf"
    operator_extra_links = (ErrorLink(),)

    def __init__(
        self,
        *,
        source: Source | str | os.PathLike[str],
        store_conn_id: str | None = None,
        api_conn_id: str | None = None,
        limit: int = 500,
        tries: int = 5,
        backoff: timedelta | float | str = timedelta(seconds=30),
        run_for: timedelta | float | str | None = _AS_CONFIGURED,
        pause: timedelta | float | str = timedelta(seconds=60),
        next_run_at: datetime | str | None = None,
        replay: str | Sequence[int] | None = None,
        fields: Collection[str] | None = None,
        longest_wait: timedelta | float | str = timedelta(seconds=60),
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        retry_policy: RetryPolicy | None = _RETRY_WHAT_MAY_PASS,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.source = source
        self.store_conn_id = store_conn_id or config.store_conn_id()
        self.api_conn_id = api_conn_id
        self.limit = limit
        self.tries = tries
        self.backoff = backoff
        self.run_for = config.run_for() if run_for is _AS_CONFIGURED else run_for
        self.pause = pause
        self.next_run_at = next_run_at
        self.replay = replay
        self.fields = fields
        self.longest_wait = longest_wait
        self.deferrable = deferrable
        self._stop: threading.Event | None = None
        self._told: tuple[Connect, Unreported, datetime | None] | None = None
        self.on_success_callback = [*self.on_success_callback, _reported]
        if isinstance(source, Source):
            self.outlets = [*self.outlets, assets.alias_of(source.source)]

    def execute(self, context: Context) -> dict[str, Any]:
        """Run one slice; returns its result if it was the last.

        Raises AirflowRescheduleException: there is more to do, or the API grants no request now. Raises TaskDeferred:
        it waits for that in the triggerer.
        """
        with told_in_few_lines(self):
            check_fields(context["dag_run"].conf or {}, self.fields)
            places, source = _places(self.replay), self.read_source()
            replayed = {} if places == () else {"replayed": self._replayed(context, source, places)}
            return {**self._applied_or_later(context, source), **replayed}

    def execute_after_waiting(self, context: Context, event: Any) -> dict[str, Any]:
        """The same once the quota is not spent any more: first what has come meanwhile, then what is still noted."""
        del event
        with told_in_few_lines(self):
            return self._applied_or_later(context, self.read_source())

    def on_kill(self) -> None:
        """Ask the run to end after the batch that is being applied; :meth:`execute` then fails the task."""
        if self._stop is not None:
            self._stop.set()

    def reported(self) -> None:
        """Note that the asset events are out, for what they tell of: called once Airflow has taken the success. If that
        cannot be noted, the next run reports the same again."""
        from airflow_extract_provider.extract.settings import Settings
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.extract.store.inbox_run import reported

        if self._told is None:
            return
        connect, told, since = self._told
        try:
            with named_errors(), connect() as conn:
                reported(conn, Settings().schema, told, since)
        except ExtractError as exc:
            _log.warning("%s webhooks: the next run reports the same changes again: %s", told.source, exc.what)

    def read_source(self) -> Source:
        """The source as its file says now."""
        return self.source if isinstance(self.source, Source) else load_source(Path(self.source))

    def _applied_or_later(self, context: Context, source: Source) -> dict[str, Any]:
        """The result, if nothing is left."""
        # Read before anything is done: a slice that has run should not end in an error of the DAG.
        pause, next_run_at = interval("pause", self.pause), instant("next_run_at", self.next_run_at)
        run_for = None if self.run_for is None else interval("run_for", self.run_for)
        # Made here, not in __init__: an event holds a lock, which cannot be copied with the DAG.
        stop = self._stop = threading.Event()
        try:
            drained, noted = self._slice(context, source, run_for, stop)
        finally:
            self._stop = None
        if stop.is_set():
            raise stopped("what was committed; all other webhooks wait in the inbox.", source=source.source)
        self._raise_first(drained, noted)
        cut = run_for is not None and drained.seconds >= run_for.total_seconds()
        if (cut and drained.waiting) or not noted.complete:
            self._come_back(source, drained, pause)
        if noted.spent is not None:
            self._wait_or_leave(noted.spent, pause, next_run_at)
        self._warn_of(drained)
        self._tell(context, source, drained, noted)
        return {**drained.as_dict(), **noted.as_dict()}

    def _raise_first(self, drained: Drained, noted: Noted) -> None:
        """Raise what ends the task now that all that could be done is done: of copies that do not fit, else of what
        could not be read, which was logged."""
        first, *others = [*drained.broken.values(), noted.failed]
        for each in others[:-1]:
            _log.error("%s: %s", type(each).__name__, each)
        if first is not None:
            raise first

    def _slice(
        self, context: Context, source: Source, run_for: timedelta | None, stop: threading.Event
    ) -> tuple[Drained, Noted]:
        # Here, since a DAG file that only names the operator should not load drivers and clients.
        from airflow_extract_provider.extract.webhooks.drain import drain

        until = None if run_for is None else time.monotonic() + run_for.total_seconds()
        with sinks_of(source) as sinks:
            drained = drain(
                source,
                postgres=self._connect,
                sink_of=lambda object: sinks.get(object.name),
                limit=self.limit,
                tries=self.tries,
                backoff=interval("backoff", self.backoff),
                run_for=run_for,
                stop=stop,
                raises=False,
            )
            stats.emit_drained(drained)
            client = partial(api_client, source, self.store_conn_id, self.api_conn_id, self.longest_wait)
            reading = Reading(source, self._connect, client, sinks, instance_of(context), until, stop)
            # Also where webhooks are left: behind a flood of them the notes would never be read.
            return drained, reading.read()

    @property
    def _connect(self) -> Connect:
        from airflow_extract_provider.hooks.store import StoreHook

        return StoreHook(self.store_conn_id).connect

    def _replayed(self, context: Context, source: Source, places: Sequence[int] | None) -> Mapping[str, int]:
        """Put dead letters back, each once, whichever slice or try comes to it: what dies again would be replayed
        without end. Whoever clears the task means it again. Returns how many of each object."""
        from airflow_extract_provider.extract.settings import Settings
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.extract.store.dead import elsewhere, replay

        (instance, _), times = instance_of(context), cleared(context)
        run = anew(instance, times) if times else instance
        with named_errors(), self._connect() as conn:
            found = replay(conn, Settings().schema, source.source, places, endpoints=source.webhooks, run=run)
            left = elsewhere(conn, Settings().schema, source.source, source.webhooks, places)
        for endpoint, count in left.items():
            _log.warning(
                "%s/%s   %s left: no run takes what came to an address that the source file does not describe. "
                "Describe it there again, or drop them (`airflow extract inbox dead drop`).",
                *(source.source, endpoint, counted(count, "dead letter")),
            )
        told = ", ".join(f"{count:,} of {object or 'no object'}" for object, count in found.items())
        none = "there are none such, or this run has put them back before"
        _log.info("%s webhooks   dead letters that are tried again: %s", source.source, told or none)
        return found

    def _wait_or_leave(self, spent: QuotaSpentError, pause: timedelta, next_run_at: datetime | None) -> None:
        """Leave the slot until the API may be asked; or leave it to the next run, if that is due before."""
        if spent.until is None:
            raise spent
        if next_run_at is not None and spent.until >= next_run_at:
            return
        _log.info("%s webhooks   what is to be read by key waits: %s", spent.source, spent.what)
        wait_until(self, spent.until, pause, deferrable=self.deferrable)

    def _come_back(self, source: Source, drained: Drained, pause: timedelta) -> NoReturn:
        due = datetime.now(timezone.utc) + pause
        left = f"{counted(drained.waiting, 'webhook')} left to the next slice"
        _log.info("%s webhooks   %s; comes back at %s UTC", source.source, left, f"{due:%H:%M:%S}")
        come_back(due)

    def _warn_of(self, drained: Drained) -> None:
        if drained.dead:
            _log.warning(
                "%s webhooks: %s; `airflow extract inbox dead list --source %s` tells which, and why",
                *(drained.source, counted(drained.dead, "dead letter"), drained.source),
            )

    def _tell(self, context: Context, source: Source, drained: Drained, noted: Noted) -> None:
        """Let the success be an asset event of each object of which anything has changed."""
        found = {name: Counter(counts) for name, counts in drained.changed.items()}
        for name, summary in noted.read.items():
            found.setdefault(name, Counter()).update(summary.counts)
        for name, counts in self._unreported(source, busy=noted.busy).items():
            found[name] = found.get(name, Counter()) | counts
        if not isinstance(self.source, Source):
            return
        for name, counts in found.items():
            if (told := assets.told(counts)) is not None:
                assets.register(context, source.source, name, told)

    def _unreported(self, source: Source, *, busy: bool) -> Mapping[str, Counter[str]]:
        """What webhooks have changed that no success has told of: by slices and tries before, by runs that have failed,
        and perhaps by others besides. ``busy``: another run may be changing more."""
        from airflow_extract_provider.extract.settings import Settings
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.extract.store.inbox_run import changed, unreported

        schema, connect = Settings().schema, self._connect
        with named_errors(), connect() as conn:
            open = unreported(conn, schema, source.source)
            if open is None:
                return {}
            found = changed(conn, schema, source.source, source.objects, open.since)
        self._told = connect, open, open.looked_at if busy else None
        return found


def _reported(context: Context) -> None:
    """Airflow's callback after a success."""
    task = context["ti"].task
    if isinstance(task, ApplyInboxOperator):
        task.reported()


def _places(given: str | Sequence[int] | None) -> Sequence[int] | None:
    """Which dead letters are meant: at these places; None: all of them. Raises SourceError: nobody can tell."""
    texts = given.split(",") if isinstance(given, str) else [str(each) for each in given or ()]
    found = [each.strip() for each in texts]
    if found in ([], [""], ["None"]):
        return ()
    if found == [_ALL]:
        return None
    if not all(_PLACE.fullmatch(each) for each in found):
        raise SourceError(
            f"`replay` is {given!r}: neither `all` nor places of dead letters.",
            todo="Give `all`, or places as `airflow extract inbox dead list` shows them, such as 12, 15.",
        )
    return [int(each) for each in found]
