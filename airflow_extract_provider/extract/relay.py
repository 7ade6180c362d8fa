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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

import psycopg

from airflow_extract_provider.extract.errors import EventRefusedError, ExtractError, FencedError, StoreUnavailableError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.store import consumer as consumers
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.consumer import Parked, Start, Waiting, Whose
from airflow_extract_provider.extract.store.fence import Fence, acquire, hold, holding, release
from airflow_extract_provider.extract.store.outbox import Wanted, prune, read, stamp

__all__ = ["Consumed", "EachEvent", "Handler", "InTransaction", "Runner", "ToSink", "consume"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT = 3600.0
_PRUNED_PER_RUN = 10_000


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


@dataclass(slots=True)
class _Batch:
    """Events on their way through a handler, and what has become of them.

    ``blocked`` are keys that nothing more may be handled of now. ``halted`` tells that it is time to commit; ``beat``
    shows that this run is alive. ``reached`` is the place of the last event that was looked at.
    """

    items: Sequence[Waiting]
    blocked: set[Whose]
    tries: int
    backoff: timedelta
    halted: Callable[[], bool]
    beat: Callable[[], object]
    handled: list[Waiting] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    reached: int | None = None
    through: bool = False

    def each(self) -> Iterator[Waiting]:
        """The events to handle next. Those of blocked keys are parked unseen, or stay so; at least one is passed."""
        for item in self.items:
            if self.reached is not None and self.halted():
                return
            self.reached = item.placed.place
            if item.placed.whose not in self.blocked:
                yield item
            elif not item.parked:
                self.parked.append(Parked(item.placed))
        self.through = True

    def failed(self, item: Waiting, exc: Exception, *, never: bool = False) -> None:
        """Park an event, its key with it; after its last try, or if it can ``never`` succeed, it is dead, and its key
        goes on."""
        tries, why = item.tries + 1, _reason(exc)
        dead = never or tries >= self.tries
        wait = None if dead else self._wait(tries)
        self.parked.append(Parked(item.placed, tries, why, wait, dead))
        if not dead:
            self.blocked.add(item.placed.whose)
        told = "dead letter" if dead else "parked"
        # Not why: an exception of the handler may quote the record.
        _log.warning("%s: event %s, try %d: %s", told, item.placed.event.id, tries, type(exc).__name__)

    def _wait(self, tries: int) -> timedelta:
        seconds = self.backoff.total_seconds() * 2.0 ** min(tries - 1, 60)
        return timedelta(seconds=min(seconds, _LONGEST_WAIT))


@dataclass(frozen=True, slots=True)
class EachEvent:
    """Calls ``function`` with one event at a time. A crash calls it again, with the same ids: at least once.

    Whatever it raises parks the event. A call must be shorter than ``silent_after``: there is no sign of life in it.
    """

    function: Callable[[Event], object]

    def handle(self, batch: _Batch, conn: Connection) -> None:  # noqa: ARG002
        """Handle what the batch gives."""
        for item in batch.each():
            try:
                self.function(item.placed.event)
            except Exception as exc:
                batch.failed(item, exc)
            else:
                batch.handled.append(item)


@dataclass(frozen=True, slots=True)
class InTransaction:
    """Calls ``function`` with one event and the connection, inside the transaction that moves the consumer's place:
    what it writes there is committed exactly once. Each call has a savepoint: whatever it raises undoes its own writes,
    and parks the event.

    It must neither commit nor leave the connection unused for a minute: Postgres ends the transaction then. Constraints
    deferred to the commit would fail the run, not the event: make them immediate.
    """

    function: Callable[[Event, Connection], object]

    def handle(self, batch: _Batch, conn: Connection) -> None:
        """Handle what the batch gives."""
        for item in batch.each():
            try:
                with conn.transaction():
                    self.function(item.placed.event, conn)
            except Exception as exc:
                if conn.closed:
                    raise
                batch.failed(item, exc)
            else:
                batch.handled.append(item)


@dataclass(frozen=True, slots=True)
class ToSink:
    """Publishes events to a sink, many at a time: at least once, with the same ids.

    An event that the sink refuses is a dead letter at once, and the rest is published; where the sink does not tell
    which it was, halves are. When the sink cannot be reached, or must be set up first, that is raised, and nothing
    moves.
    """

    sink: Sink

    def handle(self, batch: _Batch, conn: Connection) -> None:  # noqa: ARG002
        """Handle what the batch gives."""
        waiting = [list(batch.each())]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            batch.beat()
            try:
                self.sink.publish([item.placed.event for item in part])
            except EventRefusedError as exc:
                waiting += self._without(batch, part, exc)
            else:
                batch.handled += part

    def _without(self, batch: _Batch, part: list[Waiting], exc: EventRefusedError) -> tuple[list[Waiting], ...]:
        """What is still to be published, the first half last."""
        named = [item for item in part if _names(exc, item.placed.event)]
        if len(part) == 1 or len(named) == 1:
            refused = part[0] if len(part) == 1 else named[0]
            batch.failed(refused, exc, never=True)
            part = [item for item in part if item is not refused]
        return part[len(part) // 2 :], part[: len(part) // 2]


Handler: TypeAlias = EachEvent | InTransaction | ToSink
"""What is done with events."""


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
    hour. At most ``limit`` events are handled per transaction. After ``run_for``, or once ``stop`` is set, the run ends
    after the event that is being handled. At its end some events are deleted that all consumers have passed and that
    are older than ``keep_for``. ``take_over`` takes the consumer from whoever runs it.

    Raises WalkBusyError: another run of it is alive. Raises FencedError: it was taken over, or dropped. Raises
    SinkUnavailableError, SinkRefusedError: as the sink does. Raises SchemaMissingError, StoreUnavailableError,
    StoreRightsError.
    """
    try:
        with _held(consumer, postgres, schema, runner or _Process(), take_over, silent_after) as (conn, fence):
            run = _Run(consumer, handler, conn, schema, fence, wanted or Wanted(), limit, tries, backoff, silent_after)
            return run.run(start, run_for, stop or threading.Event(), keep_for)
    except ExtractError as exc:
        raise exc.at(kept="what was committed; the consumer goes on from its place.", object=consumer) from None


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
    over: Callable[[], bool] = lambda: False
    _beaten: float = field(default_factory=time.monotonic)

    def run(self, start: Start, run_for: timedelta | None, stop: threading.Event, keep_for: timedelta) -> Consumed:
        until = time.monotonic() + run_for.total_seconds() if run_for is not None else float("inf")
        self.over = lambda: stop.is_set() or time.monotonic() >= until
        self.place = consumers.begin(self.conn, self.schema, self.consumer, start)
        consumers.wake(self.conn, self.schema, self.consumer)
        while not self.over() and self._step():
            pass
        # More than it has handled: otherwise a busy outbox would grow for ever.
        pruned = prune(self.conn, self.schema, keep_for, max(_PRUNED_PER_RUN, 2 * self.handled))
        return self._consumed(pruned)

    def _step(self) -> bool:
        """The parked events that are due, then the next ones; tells whether there was anything."""
        waiting = consumers.due(self.conn, self.schema, self.consumer, self.limit)
        if waiting:
            self._settle(waiting, self.place, set())
        return (not self.over() and self._next()) or bool(waiting)

    def _next(self) -> bool:
        stamp(self.conn, self.schema)
        portion = read(self.conn, self.schema, self.place, self.limit, self.wanted)
        if portion.upto == self.place:
            return False
        keys = [each.whose for each in portion.placed]
        blocked = consumers.blocked(self.conn, self.schema, self.consumer, keys) if keys else set()
        self._settle([Waiting(each) for each in portion.placed], portion.upto, blocked)
        return True

    def _settle(self, items: Sequence[Waiting], upto: int, blocked: set[Whose]) -> None:
        """Handle events; then, or around it, the transaction that stores how far that came (law: once)."""
        batch = _Batch(items, blocked, self.tries, self.backoff, self._halted, self._beat)
        inside = isinstance(self.handler, InTransaction)
        if not inside:
            self.handler.handle(batch, self.conn)
        with holding(self.conn, self.schema, self.fence):
            if inside:
                self.handler.handle(batch, self.conn)
            place = upto if batch.through else max(batch.reached or 0, self.place)
            consumers.settle(self.conn, self.schema, self.consumer, place, batch.handled, batch.parked)
        self._beaten = time.monotonic()
        self.place, self.handled = place, self.handled + len(batch.handled)

    def _halted(self) -> bool:
        """Whether to commit what was handled so far: at the end, and often enough to be known as alive."""
        return self.over() or self._silent()

    def _silent(self) -> bool:
        return time.monotonic() - self._beaten >= self.silent_after.total_seconds() / 5

    def _beat(self) -> None:
        if self._silent():
            hold(self.conn, self.schema, self.fence)
            self._beaten = time.monotonic()

    def _consumed(self, pruned: int) -> Consumed:
        found = consumers.consumers(self.conn, self.schema, self.consumer)
        if not found:
            raise consumers.dropped(self.consumer)
        at = found[0]
        _log.info("consumer %s   %d handled · %d parked · %d dead · %d behind", at.name, self.handled, *_left(at))
        return Consumed(at.name, self.handled, at.parked, at.dead, at.behind, at.place, pruned)


def _left(at: consumers.Consumer) -> tuple[int, int, int]:
    return at.parked, at.dead, at.behind


def _names(exc: EventRefusedError, event: Event) -> bool:
    """Whether an error tells of this event, as far as it tells."""
    told = ((exc.source, event.source), (exc.object, event.object))
    return exc.key == event.key and all(said in (None, its) for said, its in told)


def _reason(exc: Exception) -> str:
    """An exception in one line that Postgres can hold. Only its first: further ones of Postgres's own quote rows."""
    lines = str(exc).replace("\0", " ").strip().splitlines()
    text = lines[0].strip()[:200].encode(errors="replace").decode() if lines else ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
