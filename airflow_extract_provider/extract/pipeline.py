"""The way of the data. Start reading here: :func:`run` is the whole picture.

::

    API ──► client ──► page ──► walk ──► batch ──► apply ──► commit ──► cursor

The reader asks for pages, one at a time, as the walk says; what has arrived is applied in one transaction, with a
ledger row per page; then, seldom, the cursor is shown. A crash between any two of these loses nothing: the next run
begins where the ledger stands.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Literal, TypeAlias

import psycopg
import tenacity
from msgspec.structs import replace as replace_struct

from airflow_extract_provider.extract.beginnings import where_begins
from airflow_extract_provider.extract.cursor import Cursor, CursorStore, Position
from airflow_extract_provider.extract.errors import CursorUnreadableError, ExtractError, FencedError
from airflow_extract_provider.extract.hashes.hash_map import HashMap
from airflow_extract_provider.extract.held import walk_held
from airflow_extract_provider.extract.progress import Progress, Summary, counted
from airflow_extract_provider.extract.reader import Arrived, Client, LowerClock, Reader
from airflow_extract_provider.extract.resume import Books, begin, check_copied, show, start_anew, tell_unshown
from airflow_extract_provider.extract.settings import Runner, Settings
from airflow_extract_provider.extract.sinks.sink import Sink, check_sink
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.store import outbox, refetch, sweep, webhook_audit
from airflow_extract_provider.extract.store.apply import Applied, Batch, apply
from airflow_extract_provider.extract.store.birth import born
from airflow_extract_provider.extract.store.brought import Brings
from airflow_extract_provider.extract.store.connection import CROSSED, Connect
from airflow_extract_provider.extract.store.coverage import covers
from airflow_extract_provider.extract.store.fence import hold
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.prefilter import Prefilter
from airflow_extract_provider.extract.store.report import Report
from airflow_extract_provider.extract.store.storable import REFUSALS
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.store.unreadable import first_unreadable
from airflow_extract_provider.extract.sweeps import Sweeps
from airflow_extract_provider.extract.walks.backfill import backfill
from airflow_extract_provider.extract.walks.by_key import by_key
from airflow_extract_provider.extract.walks.incremental import incremental
from airflow_extract_provider.extract.walks.rebackfill import rebackfill
from airflow_extract_provider.extract.walks.step import Absent, Answer, Ask, DueKey, Walk
from airflow_extract_provider.extract.walks.window import Window, opened
from airflow_extract_provider.extract.walks.window import window as window_walk

__all__ = ["Runner", "Settings", "Summary", "WalkName", "Window", "run"]

_log = logging.getLogger(__name__)

WalkName: TypeAlias = Literal["backfill", "incremental", "rebackfill", "by_key", "window"]
"""``backfill`` reads an object from the beginning, ``incremental`` what has changed since, ``by_key`` what was noted;
``rebackfill`` reads everything again, when that is due by the object's `sweep` or with ``reset``, and deletes what is
gone; ``window`` reads what changed within a window, unless the copy is known to be complete for it (or with ``reset``),
and moves no other walk."""

_SECONDS_BETWEEN_ANNOUNCEMENTS = 0.2
_KEPT = "what was committed; the walk goes on where the ledger stands."
_WALKS: Mapping[WalkName, Callable[[ApiObject, Position], Walk]] = {
    "backfill": backfill,
    "incremental": incremental,
    "rebackfill": rebackfill,
    "by_key": by_key,
    "window": window_walk,
}
_BRINGS: Mapping[WalkName, Brings] = {"rebackfill": "sweep", "by_key": "refetch"}


def run(
    source: Source,
    object: str,
    walk: WalkName = "backfill",
    *,
    postgres: Connect,
    client: Client,
    runner: Runner | None = None,
    sink: Sink | None = None,
    cursor: CursorStore | None = None,
    hash_map: HashMap | None = None,
    reset: bool = False,
    take_over: bool = False,
    max_deletes: int | None = None,
    window: Window | None = None,
    run_for: timedelta | None = None,
    stop: threading.Event | None = None,
    settings: Settings | None = None,
) -> Summary:
    """Walk one object of a source into Postgres, from where the walk stands to its end, or for a while.

    ``walk`` as :data:`WalkName`. ``postgres`` opens connections to the store. ``sink`` takes the events of an object
    that publishes them outside of Postgres. ``cursor`` is where the position is shown to people and may be edited
    (None: nowhere), ``hash_map`` knows much of what is stored. ``reset`` starts over (once for a ``runner``: its
    retries go on), ``take_over`` takes the walk from whoever holds it. ``max_deletes``: how many records a sweep may
    delete (None: as `sweep` says). ``window``: of the walk of that name. After ``run_for``, or once ``stop`` is set,
    the run ends with the pages that have arrived. Everything is committed page by page: run again after any error.

    Raises one of the errors of :mod:`~airflow_extract_provider.extract.errors`, each with the place and what was kept.
    """
    settings, runner = settings or Settings(), runner or Runner()
    with _told(source, object, walk):
        check_sink(source.object(object), sink, within=settings.idle_timeout)
        with walk_held(source, object, postgres, runner, take_over, settings) as (conn, fence):
            ledger = Ledger(settings.schema, source.source, object, walk, "" if window is None else str(window))
            shown = cursor if walk not in ("by_key", "window") else None
            books = Books(conn, settings.schema, fence, ledger, source.table(object), shown, runner.identity)
            known = Prefilter(settings.schema, source.source, object, hash_map)
            job = _Run(source, object, walk, books, client, sink, settings, known, max_deletes, window)
            return job.run(reset, run_for, stop or threading.Event())


@contextmanager
def _told(source: Source, object: str, walk: WalkName) -> Iterator[None]:
    """Errors as people may see them, with the place and what was kept."""
    try:
        yield
    except ExtractError as exc:
        private = object in source.objects and source.object(object).private
        shown = exc.without_key() if private else exc
        raise shown.at(kept=_KEPT, source=source.source, object=object, walk=walk) from None


class _Run:
    """One run of a walk: from :meth:`run` down, in the order of the data. ``at`` is what has been committed."""

    def __init__(
        self,
        source: Source,
        object: str,
        walk: WalkName,
        books: Books,
        client: Client,
        sink: Sink | None,
        settings: Settings,
        prefilter: Prefilter,
        max_deletes: int | None,
        window: Window | None,
    ) -> None:
        self._object, self._walk, self._made = source.object(object), walk, source.made(object)
        self._books, self._client, self._sink, self._settings = books, client, sink, settings
        self._prefilter = prefilter
        self._source, self._target = source, Target.of(source, object, settings.schema)
        self._sweeps = Sweeps(books, self._object, max_deletes) if walk == "rebackfill" else None
        self._window = window
        what = f"{source.source}/{object} {'sweep' if self._sweeps else walk if window is None else f'window {window}'}"
        version = ".".join(self._object.version or ()) or None
        every, private = settings.log_every.total_seconds(), self._object.private
        self._progress = Progress(what, every, private, lambda: client.left, version)
        self._beat_every = settings.silent_after.total_seconds() / 5
        self._beaten = self._shown = self._announced = time.monotonic()
        self._untold = False
        self._sent = client.requests

    def run(self, reset: bool, run_for: timedelta | None, stop: threading.Event) -> Summary:
        beginning = self._beginning(reset)
        if self._window is not None and self._is_done(self._window, beginning, reset):
            self._at = Cursor(0, beginning)
            return self._summary(self._at, True, None)
        before = self._at = begin(self._books, beginning, reset=reset)
        if self._sweeps is not None:
            before = self._at = self._sweeps.begin(before, self._made, self._called_complete())
        self._target = self._known_target()
        clock = LowerClock(self._beat())
        walk = _WALKS[self._walk](self._object, before.position)
        reader = Reader(self._object, walk, self._client, clock, self._settings.ahead)
        reader.start()
        try:
            self._follow(reader, clock, run_for, stop)
            self._at = self._ended(reader.finished)
            show(self._books, self._at)
        except ExtractError as exc:
            self._show_after(exc)
            raise exc.at(kept=self._kept(), position=self._at.position.as_json()) from None
        finally:
            reader.stop()
            self._announce(now=True)
        # A walk that begins where it was complete, and is stopped before its first page, is not: it has read nothing.
        complete = self._at.position.complete and not reader.cut_off
        report = self._report()
        self._progress.end(self._at.position, "stopped" if stop.is_set() else "paused", complete=complete, found=report)
        return self._summary(before, complete, report)

    def _known_target(self) -> Target:
        """Where records go, once the books of the start are written: a start is a birth, and a first backfill is told
        from later ones by it; and who sweeps adds to what is seen, as every walk does while a sweep is open."""
        conn, (schema, _, object) = self._books.conn, self._target.whose
        known = born(conn, *self._target.whose)
        self._prefilter.enter(conn, self._target.table, self._object, known.number, self._books.fence.number)
        target = Target.of(self._source, object, schema, known)
        open = sweep.opened(conn, *self._target.whose)
        brings = _BRINGS.get(self._walk, "poll")
        return replace(target, sweep=open, sweeps=self._sweeps is not None, brings=brings)

    def _beginning(self, reset: bool) -> Position:
        """Where the walk begins if it has not begun, or starts over."""
        if self._window is not None:
            self._window.check_past(datetime.now(timezone.utc))
            largest = max((each.largest for each in self._stood()), default=0)
            return opened(self._object, self._window, self._made, largest)
        return where_begins(self._object, self._books.ledger, self._books.conn, self._made, reset=reset)

    def _is_done(self, window: Window, beginning: Position, reset: bool) -> bool:
        """Whether the copy is complete for a window, by whichever walk. If it is not, what was read of it before counts
        only for a copy that was not begun anew since, and its end only for the runner that came to it."""
        books, by_version = self._books, self._object.since_field in (None, self._object.version)
        check_copied(books, beginning, reset=False)
        if not reset and by_version and covers(books.conn, *self._target.whose, window.start, window.until):
            _log.info("%s   nothing to do: that is covered; `reset` reads it again", self._progress.what)
            return True
        if books.ledger.is_outdated(books.conn, books.runner):
            start_anew(books, beginning)
        return False

    def _called_complete(self) -> datetime | None:
        """Up to when the incremental walk says that all is there; None: the API cannot be asked so."""
        if not self._object.incremental:
            return None
        return next((each.closed for each in self._stood() if each.closed), None)

    def _stood(self) -> list[Position]:
        """Where the incremental walk stands, and the backfill, as far as they have begun."""
        heads = (self._books.ledger.of(walk).head(self._books.conn) for walk in ("incremental", "backfill"))
        return [head.position for head in heads if head is not None]

    def _ended(self, finished: Position | None) -> Cursor:
        """Where the walk stands now. ``finished``: the store told its end, and no page brought that to the ledger."""
        if finished is not None and self._sweeps is not None:
            return self._sweeps.end(finished)
        return replace_struct(self._at, position=finished or self._at.position)

    def _report(self) -> Report | None:
        """What the sweep has found that this run has taken part in."""
        open = self._target.sweep
        return None if self._sweeps is None else self._sweeps.report(open.number if open is not None else None)

    def _follow(self, reader: Reader, clock: LowerClock, run_for: timedelta | None, stop: threading.Event) -> None:
        """Apply what arrives until the walk is complete or the time is up."""
        until = time.monotonic() + run_for.total_seconds() if run_for is not None else float("inf")
        while not reader.ended and not stop.is_set():
            if time.monotonic() >= until:
                reader.stop()
            arrived = list(reader.arrived(self._settings.batch, seconds=min(self._beat_every, 1.0)))
            if arrived:
                self._commit(arrived, clock)
            if reader.question is not None:
                reader.answer(self._answer(reader.question))
            elif not arrived and time.monotonic() - self._beaten >= self._beat_every:
                clock.set(self._beat())

    def _answer(self, question: Ask) -> Answer:
        if isinstance(question, Absent):
            assert self._sweeps is not None
            return self._sweeps.answer(question)
        found = refetch.due(self._books.conn, *self._target.whose, question.limit)
        return Answer(tuple(DueKey(item.key, item.number) for item in found))

    def _commit(self, arrived: list[Arrived], clock: LowerClock) -> None:
        """Apply pages in one transaction; then, and only then, tell of them."""
        batches = self._batches(arrived)
        applied = self._applied(batches)
        clock.set(applied.clock)
        self._beaten = time.monotonic()
        self._at = Cursor(applied.sequence, arrived[-1].step.position)
        self._progress.add([batch.entry.records for batch in batches], applied.counts, self._at.position)
        self._untold = self._untold or (self._sink is None and applied.counts["events"] > 0)
        self._announce(now=False)
        if time.monotonic() - self._shown >= self._settings.cursor_every.total_seconds():
            self._show_now()

    def _announce(self, *, now: bool) -> None:
        """Tell who waits for events, a few times a second at most. After the commit: inside, all commits that tell
        would wait for each other. Whoever is not told looks by himself after a while."""
        if not self._untold or (not now and time.monotonic() - self._announced < _SECONDS_BETWEEN_ANNOUNCEMENTS):
            return
        self._announced, self._untold = time.monotonic(), False
        with suppress(psycopg.Error):
            outbox.announce(self._books.conn, self._settings.schema)

    def _batches(self, arrived: list[Arrived]) -> list[Batch]:
        """The pages with their ledger rows. A row counts what is new to the walk: pages overlap by a record."""
        batches, before = [], self._at.position.records
        for item in arrived:
            batches.append(self._batch(item, before))
            before = item.step.position.records
        # What was sent since the last commit, retries included, so that a run can be added up over its slices.
        sent, self._sent = self._client.requests - self._sent, self._client.requests
        batches[-1] = replace(batches[-1], entry=replace(batches[-1].entry, counts={"requests": sent}))
        return batches

    def _batch(self, item: Arrived, before: int) -> Batch:
        """A page with its ledger row; ``before`` it, so many records had been read."""
        step, position, absent = item.step, item.step.position, item.step.absent
        # What a sweep has not seen was sent by nobody: no page is counted for it.
        sent_at = item.sent_at if absent is None else None
        entry = Entry("page", position, self._books.runner, sent_at, position.records - before)
        due = tuple(refetch.Due(one.key, one.number) for one in step.settled)
        return Batch(
            step.records,
            absent or item.sent_at,
            entry,
            gone=step.gone,
            bad=step.bad,
            settled=due,
            by_key=bool(due) and absent is None,
            absent=absent is not None,
        )

    def _applied(self, batches: list[Batch]) -> Applied:
        """Apply; once more when Postgres chose this transaction to end a deadlock. Nothing was written then."""
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(CROSSED),
            stop=tenacity.stop_after_attempt(5),
            wait=tenacity.wait_random_exponential(0.05, max=2),
            reraise=True,
        )
        books = self._books
        try:
            aside = self._object.on_bad_record == "quarantine"
            given = (books.conn, self._target, books.fence, books.ledger, batches)
            return again(apply, *given, sink=self._sink, quarantine=aside, prefilter=self._prefilter)
        except REFUSALS as exc:
            raise first_unreadable(books.conn, batches) or exc from None

    def _beat(self) -> datetime:
        """Show that this run is alive; returns Postgres's clock. Raises FencedError when the walk was taken over."""
        self._beaten = time.monotonic()
        return hold(self._books.conn, self._settings.schema, self._books.fence)

    def _show_now(self) -> None:
        """Show the cursor in between. That Airflow cannot take it now is no reason to stop: the ledger has it."""
        self._shown = time.monotonic()
        try:
            show(self._books, self._at)
        except CursorUnreadableError as exc:
            tell_unshown(self._books, exc)

    def _show_after(self, exc: ExtractError) -> None:
        """After an error the cursor is still brought up to what was committed, if that can be done."""
        if not isinstance(exc, FencedError):
            with suppress(ExtractError, psycopg.Error):
                show(self._books, self._at)

    def _kept(self) -> str:
        position = self._at.position
        if not position.pages:
            return "nothing was read or written before."
        read = f"{counted(position.pages, 'page')}, {counted(position.records, 'record')}"
        return f"{read}; the cursor stands behind them, nothing was skipped."

    def _summary(self, before: Cursor, complete: bool, report: Report | None) -> Summary:
        position, ledger = self._at.position, self._books.ledger
        totals = ledger.totals(self._books.conn, self._books.runner)
        return Summary(
            source=self._target.source,
            object=self._target.object,
            walk=ledger.walk,
            complete=complete,
            pages=totals["pages"],
            requests=totals["requests"],
            records=totals["records"],
            counts=totals,
            seconds=self._progress.seconds,
            cursor_before=before.position.as_json(),
            cursor_after=position.as_json(),
            complete_to=position.closed if position.complete and self._window is None else None,
            without_version=position.nulls,
            sweep=None if report is None else report.as_dict(private=self._object.private),
            window=None if self._window is None else str(self._window),
            slice={**self._progress.counts, "records": self._progress.records},
            quota_left=self._client.left,
            webhooks=self._webhooks(),
        )

    def _webhooks(self) -> Mapping[str, int] | None:
        """What webhooks of the object were worth today. Warns if polling finds what they should have told of: they have
        stopped, or nothing applies them."""
        if self._source.grace(self._object.name) is None:
            return None
        whose, name = self._target.whose, self._object.name
        hooks = self._source.webhooks.items()
        telling = [address for address, each in hooks if any(told.object == name for told in each.types.values())]
        if silent := webhook_audit.silence(self._books.conn, whose, telling):
            _log.warning("%s/%s: %s", *whose[1:], silent)
        return webhook_audit.today(self._books.conn, whose)
