"""What is done with events: one of three handlers, and the batch that goes through it.

A handler is a person's code, and may do anything. Whatever it does costs its own event a try; what was handled before
is stored, and the consumer goes on without that event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from airflow_extract_provider.extract.errors import EventRefusedError, ExtractError, FixConfig, StoreUnavailableError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.consumer import Parked, Waiting, Whose

__all__ = ["Batch", "EachEvent", "Handler", "InTransaction", "ToSink", "TransactionLostError"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT = 3600.0
_BETWEEN_BEATS = 1.0


@dataclass(slots=True)
class Batch:
    """Events on their way through a handler, and what has become of them.

    ``blocked`` are keys that nothing more may be handled of now. ``halted`` tells that it is time to commit; ``beat``
    shows that this run is alive, if that was not shown for so many seconds, and raises if it was taken over.
    ``reached`` is the place of the last event that was handled or parked. ``ended`` is what ends the run.
    """

    items: Sequence[Waiting]
    blocked: set[Whose]
    tries: int
    backoff: timedelta
    halted: Callable[[], bool]
    beat: Callable[[float], object]
    handled: list[Waiting] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    reached: int | None = None
    through: bool = False
    ended: BaseException | None = None

    def each(self) -> Iterator[Waiting]:
        """The events to handle next. Those of blocked keys are parked unseen, or stay so; at least one is passed."""
        for nth, item in enumerate(self.items):
            if self.ended is not None or (nth and self.halted()):
                return
            if item.placed.whose not in self.blocked:
                yield item
            else:
                self._reach(item)
                if not item.parked:
                    self.parked.append(Parked(item.placed))
        self.through = self.ended is None

    def took(self, item: Waiting, raised: BaseException | None) -> None:
        """An event went through a function, or it failed. What is no error but an order to stop is no failure of the
        event, and ends the run; so does SystemExit, but that may come from the function itself, and counts."""
        if raised is None:
            self.done(item)
        elif isinstance(raised, Exception | SystemExit):
            self.failed(item, raised)
        if raised is not None and not isinstance(raised, Exception):
            self.ended = raised

    def done(self, *items: Waiting) -> None:
        """These are handled."""
        for item in items:
            self._reach(item)
            self.handled.append(item)

    def failed(self, item: Waiting, raised: BaseException, *, never: bool = False) -> Parked:
        """Park an event, its key with it; after its last try, or if it can ``never`` succeed, it is dead, and its key
        goes on."""
        tries = item.tries + 1
        dead = never or tries >= self.tries
        parked = Parked(item.placed, tries, _reason(raised), None if dead else self._wait(tries), dead)
        self._reach(item)
        self.parked.append(parked)
        if not dead:
            self.blocked.add(item.placed.whose)
        told = "dead letter" if dead else "parked"
        # Not why: an exception of the handler may quote the record.
        _log.warning("%s: event %s, try %d: %s", told, item.placed.event.id, tries, type(raised).__name__)
        return parked

    def _reach(self, item: Waiting) -> None:
        self.reached = max(self.reached or 0, item.placed.place)

    def _wait(self, tries: int) -> timedelta:
        seconds = self.backoff.total_seconds() * 2.0 ** min(tries - 1, 60)
        return timedelta(seconds=min(seconds, _LONGEST_WAIT))


class TransactionLostError(Exception):
    """A handler has ended the transaction, or the connection. Nothing that was handled in it can be stored; ``parked``
    is the event, with its try, and ``error`` what is to be raised."""

    def __init__(self, parked: Parked, error: ExtractError) -> None:
        super().__init__(str(error))
        self.parked, self.error = parked, error


@dataclass(frozen=True, slots=True)
class EachEvent:
    """Calls ``function`` with one event at a time. A crash calls it again, with the same ids: at least once.

    Whatever it raises parks the event. A call must be shorter than ``silent_after``: there is no sign of life in it.
    """

    function: Callable[[Event], object]

    def handle(self, batch: Batch, conn: Connection) -> None:  # noqa: ARG002
        """Handle what the batch gives."""
        for item in batch.each():
            # So that of two, after a takeover, the first soon stops.
            batch.beat(_BETWEEN_BEATS)
            batch.took(item, self._raised(item.placed.event))

    def _raised(self, event: Event) -> BaseException | None:
        try:
            self.function(event)
        except BaseException as exc:
            return exc
        return None


@dataclass(frozen=True, slots=True)
class InTransaction:
    """Calls ``function`` with one event and the connection, inside the transaction that moves the consumer's place:
    what it writes there is committed exactly once. Each call has a savepoint: whatever it raises undoes its own writes,
    and parks the event.

    It must neither commit nor leave the connection unused for a minute: Postgres ends the transaction then, the run
    stops, and the event has had a try. Constraints deferred to the commit would fail the run, not the event: make them
    immediate.
    """

    function: Callable[[Event, Connection], object]

    def handle(self, batch: Batch, conn: Connection) -> None:
        """Handle what the batch gives. Raises TransactionLostError: the function has ended the transaction."""
        for item in batch.each():
            raised = self._raised(item.placed.event, conn)
            if conn.info.transaction_status != TransactionStatus.INTRANS:
                raise _lost(batch, item, conn, raised)
            batch.took(item, raised)

    def _raised(self, event: Event, conn: Connection) -> BaseException | None:
        called = done = False
        try:
            with conn.transaction(), _as_it_was(conn):
                called = True
                self.function(event, conn)
                if conn.info.transaction_status == TransactionStatus.INERROR:
                    raise psycopg.errors.InFailedSqlTransaction("an error of Postgres was caught, but not undone")
                done = True
        except BaseException as exc:
            if not called:
                raise
            return exc
        # The savepoint swallows a Rollback, with what had been written.
        return None if done else psycopg.Rollback()


@dataclass(frozen=True, slots=True)
class ToSink:
    """Publishes events to a sink, many at a time: at least once, with the same ids.

    An event that the sink refuses is a dead letter at once, and the rest is published; where the sink does not tell
    which it was, halves are. When the sink cannot be reached, or must be set up first, that is raised, and nothing
    moves.
    """

    sink: Sink

    def handle(self, batch: Batch, conn: Connection) -> None:  # noqa: ARG002
        """Handle what the batch gives."""
        waiting = [list(batch.each())]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            # Each time: who has lost the consumer must not publish behind the one who has it now.
            batch.beat(0)
            try:
                self.sink.publish([item.placed.event for item in part])
            except EventRefusedError as exc:
                waiting += self._without(batch, part, exc)
            else:
                batch.done(*part)

    def _without(self, batch: Batch, part: list[Waiting], exc: EventRefusedError) -> tuple[list[Waiting], ...]:
        """What is still to be published, the first half last."""
        named = [item for item in part if _names(exc, item.placed.event)]
        if len(part) == 1 or len(named) == 1:
            refused = part[0] if len(part) == 1 else named[0]
            batch.failed(refused, exc, never=True)
            part = [item for item in part if item is not refused]
        return part[len(part) // 2 :], part[: len(part) // 2]


Handler: TypeAlias = EachEvent | InTransaction | ToSink
"""What is done with events."""


@contextmanager
def _as_it_was(conn: Connection) -> Iterator[None]:
    """Undo what a function does to the connection itself, which the engine goes on with."""
    rows, cursors = conn.row_factory, conn.cursor_factory
    try:
        yield
    finally:
        conn.row_factory, conn.cursor_factory = rows, cursors
        if conn.lock.locked():
            # A stream was left open, or a thread is at it: each further statement would wait for that, maybe for ever.
            conn.close()


def _lost(batch: Batch, item: Waiting, conn: Connection, raised: BaseException | None) -> BaseException:
    """What to raise when the transaction is gone."""
    if raised is not None and not isinstance(raised, Exception | SystemExit):
        return raised
    event = item.placed.event
    where = {"source": event.source, "object": event.object, "key": event.key}
    if conn.info.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INERROR):
        error: ExtractError = FixConfig(
            f"the handler must not commit or roll back: it has ended the transaction at the event {event.id}.",
            kept="what was committed before; what the handler has committed itself may come again.",
            todo="Take it out of the handler: the run commits when it has moved the consumer's place.",
            **where,
        )
        return TransactionLostError(batch.failed(item, error), error)
    error = StoreUnavailableError(
        f"the connection to Postgres was lost while the handler had the event {event.id}.",
        kept="what was committed before; the event has had a try.",
        todo="See that the handler leaves the connection open, uses it at least once a minute, and reads streams to "
        "their end.",
        **where,
    )
    return TransactionLostError(batch.failed(item, raised or error), error)


def _names(exc: EventRefusedError, event: Event) -> bool:
    """Whether an error tells of this event, as far as it tells."""
    told = ((exc.source, event.source), (exc.object, event.object))
    return exc.key == event.key and all(said in (None, its) for said, its in told)


def _reason(raised: BaseException) -> str:
    """An exception in one line that Postgres can hold. Only its first: further ones of Postgres's own quote rows."""
    try:
        lines = str(raised).strip().splitlines()
    except Exception:  # an exception's own code is a person's, too
        lines = []
    text = lines[0].strip()[:200] if lines else ""
    kind = type(raised).__name__
    return (f"{kind}: {text}" if text else kind).replace("\0", " ").encode(errors="replace").decode().strip()
