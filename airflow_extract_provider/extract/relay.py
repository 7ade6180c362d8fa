"""The way of the events. Start reading here: :func:`consume` is the whole picture.

::

    outbox ──► stamp ──► read ──► handler ──► one transaction: place, parked ──► prune

A consumer reads events by their places and gives them to a handler, in order. What fails is parked, with the later ones
of its key behind it. One transaction moves the place and stores what was parked: a crash repeats at most what was
handled since, in the same order, and what a handler writes inside that transaction happens exactly once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import psycopg

from airflow_extract_provider.extract.errors import ExtractError, FencedError, SourceError, StoreUnavailableError
from airflow_extract_provider.extract.handlers import (
    Batch,
    EachEvent,
    Handler,
    InTransaction,
    ToSink,
    TransactionLostError,
)
from airflow_extract_provider.extract.store import consumer as consumers
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.consumer import Start, Waiting, Whose
from airflow_extract_provider.extract.store.fence import Fence, acquire, hold, holding, release
from airflow_extract_provider.extract.store.outbox import Wanted, prune, read, stamp

__all__ = ["Consumed", "EachEvent", "Handler", "InTransaction", "Runner", "ToSink", "consume"]

_log = logging.getLogger(__name__)

_PRUNED_PER_RUN = 10_000
_ROUNDS_OF_STAMPING = 5
"""At most between two portions: so that a backlog does not keep a run from ending, or from showing that it lives."""


class Runner(Protocol):
    """Who runs: as the pipeline's. ``identity`` is the same for every try of one task instance, so that a retry takes
    its own consumer over at once; ``label`` is what another run's `WalkBusyError` shows to people."""

    @property
    def identity(self) -> str: ...

    @property
    def label(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Process:
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    label: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")


@dataclass(frozen=True, slots=True)
class Consumed:
    """What a run did: how many events it ``handled`` and ``pruned``. And how the consumer stands at its end: its
    ``place``, how many events are ``behind`` it unread, ``parked`` and to be tried again, and ``dead`` letters."""

    consumer: str
    handled: int
    parked: int
    dead: int
    behind: int
    place: int
    pruned: int

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values, small enough for XCom."""
        return asdict(self)


def consume(
    consumer: str,
    handler: Handler,
    *,
    postgres: Connect,
    schema: str = "extract",
    wanted: Wanted | None = None,
    start: Start = "beginning",
    limit: int = 500,
    tries: int = 5,
    backoff: timedelta = timedelta(seconds=30),
    runner: Runner | None = None,
    take_over: bool = False,
    silent_after: timedelta = timedelta(minutes=5),
    run_for: timedelta | None = None,
    stop: threading.Event | None = None,
    keep_for: timedelta = timedelta(days=1),
) -> Consumed:
    """Give a consumer's events to a handler, from where it stands until nothing is left to read, or for a while.

    Consumers are independent of each other; one that is new begins at ``start``. Those of its parked events that are
    due come first. An event that fails is tried ``tries`` times in all, after ``backoff``, then twice as long, up to an
    hour. At most ``limit`` events are handled per transaction. After ``run_for``, however short, or once ``stop`` is
    set, the run ends after the event that is being handled. At its end some events are deleted that all consumers have
    passed and that are older than ``keep_for``. ``take_over`` takes the consumer from whoever runs it.

    Raises WalkBusyError: another run of it is alive. Raises FencedError: it was taken over, or dropped. Raises
    SinkUnavailableError, SinkRefusedError: as the sink does. Raises SourceError: ``limit`` or ``tries`` is less than
    one. Raises FixConfig: a handler inside the transaction has ended it. Raises SchemaMissingError,
    StoreUnavailableError, StoreRightsError. What is no error but an order to stop, such as KeyboardInterrupt, is raised
    after what was handled is stored.
    """
    _check(consumer, limit=limit, tries=tries)
    try:
        with _held(consumer, postgres, schema, runner or _Process(), take_over, silent_after) as (conn, fence):
            asked = wanted or Wanted()
            run = _Run(consumer, handler, postgres, conn, schema, fence, asked, limit, tries, backoff, silent_after)
            return run.run(start, run_for, stop or threading.Event(), keep_for)
    except ExtractError as exc:
        raise exc.at(kept="what was committed; the consumer goes on from its place.", object=consumer) from None


def _check(consumer: str, **bounds: int) -> None:
    for name, bound in bounds.items():
        if bound < 1:
            raise SourceError(f"the consumer's `{name}` is less than one.", todo="Correct it.", object=consumer)


@contextmanager
def _held(
    consumer: str,
    postgres: Connect,
    schema: str,
    runner: Runner,
    take_over: bool,
    silent_after: timedelta,
) -> Iterator[tuple[Connection, Fence]]:
    """A connection, with the consumer's fence held; given back at the end, whatever the end is."""
    fence: Fence | None = None
    with named_errors():
        conn = postgres()
    try:
        conn.autocommit = True
        who, scope = (runner.identity, runner.label), consumers.scope(consumer)
        fence = acquire(conn, schema, scope, *who, silent_after=silent_after, take_over=take_over)
        yield conn, fence
    except psycopg.Error as exc:
        raise _named(exc, postgres, schema, fence) from None
    finally:
        with suppress(psycopg.Error):
            if fence is not None and not conn.closed:
                release(conn, schema, fence)
        conn.close()


def _named(exc: psycopg.Error, postgres: Connect, schema: str, fence: Fence | None) -> ExtractError:
    """What an error of Postgres means. Behind a lost connection there may be a takeover: a new connection tells."""
    try:
        with named_errors():
            raise exc
    except StoreUnavailableError as lost:
        with suppress(ExtractError):
            return _taken_over(postgres, schema, fence) or lost
        return lost
    except ExtractError as named:
        return named


def _taken_over(postgres: Connect, schema: str, fence: Fence | None) -> FencedError | None:
    if fence is not None:
        with named_errors(), postgres() as conn:
            conn.autocommit = True
            try:
                hold(conn, schema, fence)
            except FencedError as exc:
                return exc
    return None


@dataclass(slots=True)
class _Run:
    """One run of a consumer, from :meth:`run` down."""

    consumer: str
    handler: Handler
    postgres: Connect
    conn: Connection
    schema: str
    fence: Fence
    wanted: Wanted
    limit: int
    tries: int
    backoff: timedelta
    silent_after: timedelta
    handled: int = 0
    place: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    until: float = float("inf")
    _beaten: float = field(default_factory=time.monotonic)
    _committed: float = field(default_factory=time.monotonic)

    def run(self, start: Start, run_for: timedelta | None, stop: threading.Event, keep_for: timedelta) -> Consumed:
        self.until = time.monotonic() + run_for.total_seconds() if run_for is not None else float("inf")
        self.stop = stop
        self.place = consumers.begin(self.conn, self.schema, self.consumer, start)
        consumers.wake(self.conn, self.schema, self.consumer)
        # One step at least: or with too short a time a consumer would never move.
        while not self.stop.is_set() and self._step() and not self._over():
            pass
        # More than it has handled: otherwise a busy outbox would grow for ever.
        pruned = prune(self.conn, self.schema, keep_for, max(_PRUNED_PER_RUN, 2 * self.handled))
        return self._consumed(pruned)

    def _step(self) -> bool:
        """The parked events that are due, then the next ones; tells whether there was anything."""
        waiting = consumers.due(self.conn, self.schema, self.consumer, self.limit)
        if waiting:
            self._settle(waiting, self.place, set())
        return (not self.stop.is_set() and self._next()) or bool(waiting)

    def _next(self) -> bool:
        stamp(self.conn, self.schema, rounds=_ROUNDS_OF_STAMPING)
        portion = read(self.conn, self.schema, self.place, self.limit, self.wanted)
        if portion.upto == self.place:
            return False
        ahead = consumers.ahead(self.conn, self.schema, self.consumer)
        items = [Waiting(each) for each in portion.placed if each.place not in ahead]
        keys = [item.placed.whose for item in items]
        blocked = consumers.blocked(self.conn, self.schema, self.consumer, keys) if keys else set()
        self._settle(items, portion.upto, blocked)
        return True

    def _settle(self, items: Sequence[Waiting], upto: int, blocked: set[Whose]) -> None:
        """Handle events; then, or around it, the transaction that stores how far that came (law: once)."""
        batch = Batch(items, blocked, self.tries, self.backoff, self._halted, self._beat)
        inside = isinstance(self.handler, InTransaction)
        if not inside:
            self.handler.handle(batch, self.conn)
        try:
            with holding(self.conn, self.schema, self.fence):
                if inside:
                    self.handler.handle(batch, self.conn)
                place = upto if batch.through else max(batch.reached or 0, self.place)
                consumers.settle(self.conn, self.schema, self.consumer, place, batch.handled, batch.parked)
        except TransactionLostError as lost:
            self._count(lost)
            raise lost.error from None
        finally:
            if batch.ended is not None:
                raise batch.ended
        self._beaten = self._committed = time.monotonic()
        self.place, self.handled = place, self.handled + len(batch.handled)

    def _count(self, lost: TransactionLostError) -> None:
        """Store the try of the event at which the transaction was lost, in one of its own: or the event would end each
        run. Raises FencedError: the consumer was taken over."""
        self.conn.close()
        try:
            with named_errors(), self.postgres() as conn:
                conn.autocommit = True
                with holding(conn, self.schema, self.fence):
                    consumers.settle(conn, self.schema, self.consumer, self.place, [], [lost.parked])
                release(conn, self.schema, self.fence)
        except FencedError:
            raise
        except ExtractError as exc:
            _log.warning("consumer %s: the try could not be counted (%s)", self.consumer, type(exc).__name__)

    def _over(self) -> bool:
        return self.stop.is_set() or time.monotonic() >= self.until

    def _halted(self) -> bool:
        """Whether to commit what was handled so far: at the end, and often enough."""
        return self._over() or time.monotonic() - self._committed >= self._beat_every()

    def _beat(self, seconds: float) -> None:
        if time.monotonic() - self._beaten >= min(seconds, self._beat_every()):
            hold(self.conn, self.schema, self.fence)
            self._beaten = time.monotonic()

    def _beat_every(self) -> float:
        return self.silent_after.total_seconds() / 5

    def _consumed(self, pruned: int) -> Consumed:
        found = consumers.consumers(self.conn, self.schema, self.consumer)
        if not found:
            raise consumers.dropped(self.consumer)
        at = found[0]
        _log.info("consumer %s   %d handled · %d parked · %d dead · %d behind", at.name, self.handled, *_left(at))
        return Consumed(at.name, self.handled, at.parked, at.dead, at.behind, at.place, pruned)


def _left(at: consumers.Consumer) -> tuple[int, int, int]:
    return at.parked, at.dead, at.behind
