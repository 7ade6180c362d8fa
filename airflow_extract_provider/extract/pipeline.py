"""The way of the data. Start reading here: :func:`run` is the whole picture.

::

    API ──► client ──► page ──► walk ──► batch ──► apply ──► commit ──► cursor

The reader asks for pages, one at a time, as the walk says; what has arrived is applied in one transaction, with a
ledger row per page; then, seldom, the cursor is shown. A crash between any two of these loses nothing: the next run
begins where the ledger stands.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import psycopg
import tenacity
from msgspec.structs import replace as replace_struct

from airflow_extract_provider.extract.cursor import Cursor, CursorStore, Position
from airflow_extract_provider.extract.errors import (
    CursorUnreadableError,
    ExtractError,
    FencedError,
    StoreUnavailableError,
)
from airflow_extract_provider.extract.progress import Progress, Summary, counted
from airflow_extract_provider.extract.reader import Arrived, Client, LowerClock, Reader
from airflow_extract_provider.extract.resume import Books, begin, show, tell_unshown
from airflow_extract_provider.extract.sinks.sink import Sink, check_sink
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.store import fields, outbox, refetch
from airflow_extract_provider.extract.store.apply import Applied, Batch, apply
from airflow_extract_provider.extract.store.birth import born
from airflow_extract_provider.extract.store.connection import CROSSED, Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Fence, Scope, acquire, hold, release
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.migrate import check
from airflow_extract_provider.extract.store.storable import REFUSALS
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.store.unreadable import first_unreadable
from airflow_extract_provider.extract.walks.backfill import backfill, beginning
from airflow_extract_provider.extract.walks.by_key import by_key, noted
from airflow_extract_provider.extract.walks.incremental import handed_off, incremental
from airflow_extract_provider.extract.walks.step import Answer, Due, DueKey, Walk

__all__ = ["Runner", "Settings", "Summary", "WalkName", "run"]

WalkName: TypeAlias = Literal["backfill", "incremental", "by_key"]
_SECONDS_BETWEEN_ANNOUNCEMENTS = 0.2
_KEPT = "what was committed; the walk goes on where the ledger stands."
_WALKS: Mapping[WalkName, Callable[[ApiObject, Position], Walk]] = {
    "backfill": backfill,
    "incremental": incremental,
    "by_key": by_key,
}


@dataclass(frozen=True, slots=True)
class Runner:
    """Who runs. ``identity`` is the same for every try of one task instance, so that a retry takes its own walk over at
    once; ``label`` is what another run's `WalkBusyError` shows to people."""

    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    label: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of a run. Intervals between log lines, cursor writes and heartbeats are lower bounds.

    ``silent_after`` must be longer than the longest request and than ``idle_timeout`` together: a holder that has not
    been heard of for so long may be taken over. ``idle_timeout`` is how long Postgres lets a transaction of a stopped
    process live. ``batch`` is the most records of one transaction (and one page), ``ahead`` the most pages waiting.
    """

    schema: str = "extract"
    silent_after: timedelta = timedelta(minutes=5)
    idle_timeout: timedelta = timedelta(seconds=60)
    batch: int = 2000
    ahead: int = 4
    cursor_every: timedelta = timedelta(seconds=5)
    log_every: timedelta = timedelta(seconds=5)


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
    reset: bool = False,
    take_over: bool = False,
    run_for: timedelta | None = None,
    stop: threading.Event | None = None,
    settings: Settings | None = None,
) -> Summary:
    """Walk one object of a source into Postgres, from where the walk stands to its end, or for a while.

    ``backfill`` reads it from the beginning, ``incremental`` what has changed since, ``by_key`` what was noted.
    ``postgres`` opens connections to the store. ``sink`` takes the events of an object that publishes them outside of
    Postgres; the others' go into the outbox. ``cursor`` is where the position is shown to people and may be edited;
    None: nowhere. ``reset`` starts over (once for a ``runner``: its retries go on), ``take_over`` takes the walk from
    whoever holds it. After ``run_for``, or once ``stop`` is set, the run ends after the pages that have arrived.

    Nothing of Airflow is needed. Everything is committed page by page; run again after any error or crash.

    Raises one of the errors of :mod:`~airflow_extract_provider.extract.errors`, each with the place and what was kept.
    """
    settings, runner = settings or Settings(), runner or Runner()
    place = {"source": source.source, "object": object, "walk": walk}
    try:
        check_sink(source.object(object), sink, within=settings.idle_timeout)
        with _walk_held(source, object, postgres, runner, take_over, settings) as (conn, fence):
            ledger = Ledger(settings.schema, source.source, object, walk)
            shown = cursor if walk != "by_key" else None
            books = Books(conn, settings.schema, fence, ledger, source.table(object), shown, runner.identity)
            job = _Run(source, object, walk, books, client, sink, settings)
            return job.run(reset, run_for, stop or threading.Event())
    except ExtractError as exc:
        raise _shown(exc, source, object).at(kept=_KEPT, **place) from None


def _shown(exc: ExtractError, source: Source, object: str) -> ExtractError:
    """The error as people may see it."""
    return exc.without_key() if object in source.objects and source.object(object).private else exc


@contextmanager
def _walk_held(
    source: Source, object: str, postgres: Connect, runner: Runner, take_over: bool, settings: Settings
) -> Iterator[tuple[Connection, Fence]]:
    """A checked connection, with the fence held; given back at the end, whatever the end is."""
    # One walk at a time per object: without versions two concurrent looks at a record cannot be told apart (A, B, A).
    # With them too, since `version` may be added or taken away while a run lives, and both must meet at one fence.
    scope = Scope(source.source, object, "*")
    fence: Fence | None = None
    with named_errors():
        conn = postgres()
    try:
        conn.autocommit = True
        check(conn, settings.schema, source, object)
        fields.check(conn, source.object(object).fold)
        fence = acquire(
            conn,
            settings.schema,
            scope,
            runner.identity,
            runner.label,
            silent_after=settings.silent_after,
            take_over=take_over,
            idle_timeout=settings.idle_timeout,
        )
        yield conn, fence
    except psycopg.Error as exc:
        raise _named(exc, postgres, settings, fence) from None
    finally:
        with suppress(psycopg.Error):
            if fence is not None and not conn.closed:
                release(conn, settings.schema, fence)
        conn.close()


def _named(exc: psycopg.Error, postgres: Connect, settings: Settings, fence: Fence | None) -> ExtractError:
    """What an error of Postgres means for this run.

    When the connection went away, the walk may have been taken over meanwhile: a process that was stopped in
    mid-transaction wakes up to find just this. A new connection tells.
    """
    try:
        with named_errors():
            raise exc
    except StoreUnavailableError as lost:
        if fence is None:
            return lost
        try:
            with named_errors(), postgres() as conn:
                conn.autocommit = True
                hold(conn, settings.schema, fence)
        except FencedError as fenced:
            return fenced
        except ExtractError:
            return lost
        return lost
    except ExtractError as named:
        return named


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
    ) -> None:
        self._object, self._walk, self._made = source.object(object), walk, source.made(object)
        self._books, self._client, self._sink, self._settings = books, client, sink, settings
        self._source, self._target = source, Target.of(source, object, settings.schema)
        what = f"{source.source}/{object} {books.ledger.walk}"
        self._progress = Progress(what, settings.log_every.total_seconds(), self._object.private, lambda: client.left)
        self._beat_every = settings.silent_after.total_seconds() / 5
        self._beaten = self._shown = self._announced = time.monotonic()
        self._untold = False
        self._sent = client.requests

    def run(self, reset: bool, run_for: timedelta | None, stop: threading.Event) -> Summary:
        before = self._at = begin(self._books, self._beginning(reset), reset=reset)
        # Afterwards: a start is a birth, and a first backfill is told from later ones by it.
        known = born(self._books.conn, *self._target.whose)
        self._target = Target.of(self._source, self._target.object, self._settings.schema, known)
        clock = LowerClock(self._beat())
        walk = _WALKS[self._walk](self._object, before.position)
        reader = Reader(self._object, walk, self._client, clock, self._settings.ahead)
        reader.start()
        try:
            self._follow(reader, clock, run_for, stop)
            self._at = replace_struct(self._at, position=reader.finished or self._at.position)
            show(self._books, self._at)
        except ExtractError as exc:
            self._show_after(exc)
            raise exc.at(kept=self._kept(), position=self._at.position.as_json()) from None
        finally:
            reader.stop()
            self._announce(now=True)
        # A walk that begins where it was complete, and is stopped before its first page, is not: it has read nothing.
        complete = self._at.position.complete and not reader.cut_off
        self._progress.end(self._at.position, "stopped" if stop.is_set() else "paused", complete=complete)
        return self._summary(before, complete)

    def _beginning(self, reset: bool) -> Position:
        """Where the walk begins if it has not begun, or starts over."""
        if self._walk == "by_key":
            return noted(self._object, self._made)
        if self._walk == "backfill":
            return beginning(self._object, self._made)
        ledger = self._books.ledger
        begun, backfilled = (ledger.of(walk).head(self._books.conn) for walk in ("incremental", "backfill"))
        done = backfilled is not None and backfilled.position.complete
        if begun is not None and begun.position.pages and begun.position.made == self._made and not done and not reset:
            # Under way: that the backfill was started over meanwhile is no matter.
            return replace_struct(beginning(self._object, self._made), complete=True, closed=begun.position.closed)
        return handed_off(self._object, backfilled.position if backfilled else None, self._made)

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

    def _answer(self, question: Due) -> Answer:
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
            position = item.step.position
            entry = Entry("page", position, self._books.runner, item.sent_at, position.records - before)
            step = item.step
            due = tuple(refetch.Due(one.key, one.number) for one in step.settled)
            batches.append(
                Batch(step.records, item.sent_at, entry, gone=step.gone, bad=step.bad, settled=due, by_key=bool(due))
            )
            before = position.records
        # What was sent since the last commit, retries included, so that a run can be added up over its slices.
        sent, self._sent = self._client.requests - self._sent, self._client.requests
        batches[-1] = replace(batches[-1], entry=replace(batches[-1].entry, counts={"requests": sent}))
        return batches

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
            return again(apply, *given, sink=self._sink, quarantine=aside)
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

    def _summary(self, before: Cursor, complete: bool) -> Summary:
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
            complete_to=position.closed if position.complete else None,
            without_version=position.nulls,
        )
