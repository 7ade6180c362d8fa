"""From the inbox into the records: webhooks are claimed, split, ordered and applied, in one transaction a batch.

A webhook only says that there may be something newer. What it holds is stored where its version proves that; anything
else notes that the record must be read by its key. So it does not matter whether it comes late, twice or in another
order, and polling finds what never came.

What cannot be applied is parked by message, and tried again later; after its last try it is a dead letter, and the
others go on. A run that dies in the middle has claimed nothing: its locks are gone with its connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import tenacity

from airflow_extract_provider.extract.errors import ExtractError, SourceError
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.settings import Settings
from airflow_extract_provider.extract.sinks.sink import Sink, check_sink
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.store import inbox, inbox_run, outbox
from airflow_extract_provider.extract.store.claims import Claims, left
from airflow_extract_provider.extract.store.connection import CROSSED, Connect, Connection, named_errors
from airflow_extract_provider.extract.store.migrate import check_books
from airflow_extract_provider.extract.store.storable import may_blame_a_row
from airflow_extract_provider.extract.webhooks.bringing import Targets
from airflow_extract_provider.extract.webhooks.fitting import kept_waiting, unfit
from airflow_extract_provider.extract.webhooks.messages import delivery_of
from airflow_extract_provider.extract.webhooks.second import Second
from airflow_extract_provider.extract.webhooks.turn import Turn

__all__ = ["Drained", "SinkOf", "drain"]

_log = logging.getLogger(__name__)

SinkOf = Callable[[ApiObject], Sink | None]
"""The sink of an object that publishes its events outside of Postgres; None: they go to the outbox."""

_SECONDS_BETWEEN_ANNOUNCEMENTS = 0.2
_PRUNED_PER_RUN = 1_000
_FROM_THE_FRONT = 50
"""So many batches later deliveries are looked for from the front again: another run may have given some back."""
_BROUGHT_FOR = timedelta(days=90)
"""How long it is kept at least what brought a change: the audit looks back as far."""


@dataclass(frozen=True, slots=True)
class Drained:
    """What a run did. ``counts``: the ``messages`` by what became of them (see docs/webhooks.md), changes by kind and
    ``events``. ``noted`` are the objects of which records must be read by key. ``waiting`` are the deliveries and
    messages that wait still, ``dead`` the dead letters. ``changed``: changes and events by object. ``broken``: the
    objects whose messages wait for a person, and the errors that tell why."""

    source: str
    deliveries: int
    counts: Counter[str]
    noted: tuple[str, ...]
    waiting: int
    dead: int
    seconds: float
    changed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    broken: Mapping[str, ExtractError] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values, small enough for XCom."""
        told = {"source": self.source, "deliveries": self.deliveries, **self.counts, "noted": list(self.noted)}
        return {**told, "waiting": self.waiting, "dead": self.dead, "seconds": round(self.seconds, 3)}


def drain(
    source: Source,
    *,
    postgres: Connect,
    sink_of: SinkOf = lambda _: None,
    limit: int = 500,
    most_bytes: int = 4 << 20,
    tries: int = 5,
    backoff: timedelta = timedelta(seconds=30),
    run_for: timedelta | None = None,
    stop: threading.Event | None = None,
    settings: Settings | None = None,
    keep_for: timedelta | None = timedelta(days=30),
    raises: bool = True,
) -> Drained:
    """Apply the webhooks of a source that wait, until none is left or for a while.

    At most ``limit`` deliveries, and ``most_bytes`` of bodies, are claimed at once. A message that fails is tried
    ``tries`` times in all, after ``backoff``, then twice as long, up to an hour. After ``run_for``, or once ``stop`` is
    set, the run ends with the batch that is under way. Several runs may be at it at once; where more than a batch
    waits, this one takes two at a time, over two connections. At its end some webhooks, of whatever source, are deleted
    that were applied longer than ``keep_for`` ago; None: none.

    Raises SourceError: the source has no webhooks. SchemaMissingError: the store is older than this version. At the end
    SchemaMissingError, PositionMismatchError, LeftBehindError: a record table is missing, or a copy is not what the
    source file describes; what tells of it waits, the rest is applied. Without ``raises`` they are ``broken`` in the
    result. StoreUnavailableError, StoreRightsError, and what a sink raises that is away. What is committed stays so.
    """
    if not source.webhooks:
        raise SourceError("the source declares no `webhooks`.", source=source.source, todo="Declare what comes in.")
    settings = settings or Settings()
    with _told(source), _connected(postgres) as conn:
        _check(conn, source, settings, sink_of)
        targets = Targets(source, settings.schema, sink_of, unfit(conn, settings.schema, source))
        run = _Run(source, conn, settings, targets, limit, most_bytes, tries, backoff)
        drained = run.run(run_for, stop or threading.Event(), postgres if _may_be_two(source, sink_of) else None)
        broken = {name: _placed(source, exc) for name, exc in run.finish(keep_for).items()}
    for exc in broken.values() if raises else ():
        raise exc
    return replace(drained, broken=broken)


def _check(conn: Connection, source: Source, settings: Settings, sink_of: SinkOf) -> None:
    """See that the store and the sinks can take what comes."""
    check_books(conn, settings.schema)
    for object in map(source.object, source.told_of):
        check_sink(object, sink_of(object), within=settings.idle_timeout)


@contextmanager
def _told(source: Source) -> Iterator[None]:
    try:
        with named_errors():
            yield
    except ExtractError as exc:
        raise _placed(source, exc) from None


def _placed(source: Source, exc: ExtractError) -> ExtractError:
    kept = "what was committed; all other webhooks wait in the inbox."
    private = any(each.private for name, each in source.objects.items() if exc.object in (None, name))
    return (exc.without_key() if private else exc).at(kept=kept, source=source.source)


@contextmanager
def _connected(postgres: Connect) -> Iterator[Connection]:
    with named_errors():
        conn = postgres()
    try:
        conn.autocommit = True
        yield conn
    finally:
        conn.close()


@dataclass(slots=True)
class _Run:
    """One run, from :meth:`run` down. ``unknown`` are types that nothing is said about; ``limits`` tell how many
    deliveries of an address are claimed next, and ``after`` behind which place. ``full``: a batch of this round was as
    large as it may be. ``beside``: what goes on beside it then."""

    source: Source
    conn: Connection
    settings: Settings
    targets: Targets
    limit: int
    most_bytes: int
    tries: int
    backoff: timedelta
    deliveries: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    noted: set[str] = field(default_factory=set)
    changed: dict[str, Counter[str]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    reason: str = ""
    broken: dict[str, ExtractError] = field(default_factory=dict)
    announced: float = 0.0
    untold: bool = False
    full: bool = False
    beside: Second[_Run] | None = None

    def run(self, run_for: timedelta | None, stop: threading.Event, more: Connect | None) -> Drained:
        """Take all that waits. ``more``: opens a connection for a second one; None: there is to be none."""
        began = time.monotonic()
        until = began + run_for.total_seconds() if run_for is not None else float("inf")
        for endpoint in self.source.webhooks:
            self._claims(endpoint).wake()
        if more is None:
            self.work(until, stop.is_set)
        else:
            self.beside = second = Second(self.alone, partial(_connected, more))
            with second.around(until, stop):
                self.work(until, stop.is_set)
            if second.run is not None:
                self.add(second.run)
        if self.unknown:
            named = ", ".join(sorted(self.unknown)[:10])
            _log.warning("%s: nothing is said about webhooks of the types: %s", self.source.source, named)
        return self._drained(time.monotonic() - began)

    def work(self, until: float, stopped: Callable[[], bool]) -> None:
        """Take one batch after the other, until nothing is left."""
        try:
            # In turns, so that a flood at one address does not keep the others waiting. One turn of each at least.
            busy = True
            while busy and not stopped():
                steps = [self._step(endpoint) for endpoint in self.source.webhooks if not stopped()]
                busy = any(steps) and time.monotonic() < until
                if busy and self.full and self.beside is not None:
                    self.beside.begin()
                self.full = False
        finally:
            self._announce(now=True)

    def alone(self, conn: Connection) -> _Run:
        """Another one, over a connection of its own."""
        targets = replace(self.targets, _made={})
        return _Run(self.source, conn, self.settings, targets, self.limit, self.most_bytes, self.tries, self.backoff)

    def add(self, other: _Run) -> None:
        """Tell what another one has done as well."""
        self.deliveries += other.deliveries
        self._add(other)

    def _add(self, did: _Run | Turn) -> None:
        self.counts += did.counts
        self.noted |= did.noted
        for object, counts in did.changed.items():
            self.changed.setdefault(object, Counter()).update(counts)
        self.unknown |= did.unknown
        self.reason = did.reason or self.reason
        self.broken |= did.broken

    def finish(self, keep_for: timedelta | None) -> Mapping[str, ExtractError]:
        """Delete old webhooks: more than were applied, otherwise a busy inbox would grow for ever. Returns the objects
        of which something waits for a person, met in this run or not, and why."""
        if keep_for is not None:
            most = max(_PRUNED_PER_RUN, 2 * self.deliveries)
            inbox.prune(self.conn, self.settings.schema, keep_for, most, brought_for=max(keep_for, _BROUGHT_FOR))
        known = {**self.targets.unfit, **self.broken}
        claims = self._claims(next(iter(self.source.webhooks)))
        with self.conn.transaction():
            claims.limit(self.settings.idle_timeout)
            return {**known, **kept_waiting(claims, self.source, known)}

    def _claims(self, endpoint: str) -> Claims:
        return Claims(self.conn, self.settings.schema, self.source.source, endpoint)

    def _step(self, endpoint: str) -> bool:
        """One batch of an address; tells whether there was anything."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(CROSSED),
            stop=tenacity.stop_after_attempt(5),
            wait=tenacity.wait_random(0.05, 0.5),
            reraise=True,
        ):
            with attempt:
                turn = self._committed(endpoint)
        self.deliveries += turn.taken
        self._add(turn)
        self.untold = self.untold or turn.counts["events"] + turn.counts["forwarded"] > 0
        self._announce(now=False)
        return turn.busy

    def _committed(self, endpoint: str) -> Turn:
        """A batch. Where it cannot be committed, since Postgres has checked some rule only then: once more, in a way
        that tells which message has broken it."""
        try:
            return self._batch(endpoint, at_once=False)
        except psycopg.Error as exc:
            if not may_blame_a_row(exc):
                raise
        return self._batch(endpoint, at_once=True)

    def _batch(self, endpoint: str, *, at_once: bool) -> Turn:
        spec, claims = self.source.webhooks[endpoint], self._claims(endpoint)
        with self.conn.transaction():
            claims.limit(self.settings.idle_timeout)
            turn = Turn(self.source, endpoint, claims, self.targets, self.tries, self.backoff, at_once)
            turn.retry(claims.due(self.limit, self.most_bytes))
            limit = self.limits.get(endpoint, self.limit)
            after = self.after.get(endpoint, 0) if self.steps % _FROM_THE_FRONT else 0
            rows = claims.claim(limit, self.most_bytes, in_order=_in_order(self.source, spec), after=after)
            turn.take([delivery_of(row) for row in rows])
            turn.settle()
            size = sum(len(row[2]) for row in rows)
            self.full = self.full or turn.taken >= self.limit or 2 * size > self.most_bytes
            if any(turn.changed.values()):
                inbox_run.opened(self.conn, self.settings.schema, self.source.source)
        self.steps += 1
        self.after[endpoint] = rows[turn.taken - 1][0] if turn.taken else 0
        # Where not all of them went into one transaction, the next one's need not be fetched for nothing.
        self.limits[endpoint] = max(turn.taken, 1) if turn.taken < len(rows) else min(2 * limit, self.limit)
        return turn

    def _announce(self, *, now: bool) -> None:
        """Tell who waits for events; after the commit, as the walks do."""
        if not self.untold or (not now and time.monotonic() - self.announced < _SECONDS_BETWEEN_ANNOUNCEMENTS):
            return
        self.announced, self.untold = time.monotonic(), False
        with suppress(psycopg.Error):
            outbox.announce(self.conn, self.settings.schema)

    def _drained(self, seconds: float) -> Drained:
        name = self.source.source
        found = left(self.conn, self.settings.schema, name, self.source.webhooks)
        told = Drained(
            name,
            self.deliveries,
            Counter(dict(sorted((+self.counts).items()))),
            tuple(sorted(self.noted)),
            found.deliveries + found.parked,
            found.dead,
            seconds,
            self.changed,
        )
        if found.elsewhere:
            told_of = counted(found.elsewhere, "webhook")
            _log.warning("%s: %s at addresses that the source file does not describe wait for ever", name, told_of)
        if self.reason:
            _log.warning("%s webhooks   messages could not be applied: the last for a %s", name, self.reason)
        said = " ".join(f"{count:,} {kind}" for kind, count in told.counts.items() if kind != "messages")
        _log.info(
            "%s webhooks   %s in %s · %s · %d waiting · %d dead",
            *(name, counted(self.counts["messages"], "message"), counted(self.deliveries, "webhook")),
            *(said or "nothing to do", told.waiting, told.dead),
        )
        return told


def _may_be_two(source: Source, sink_of: SinkOf) -> bool:
    """Whether two runs gain anything, and ask nothing of others' code: not where messages must not overtake each other,
    where several records write one row, nor where a sink or a detector would be called by two threads."""
    told = [source.object(name) for name in source.told_of]
    in_order = any(_in_order(source, spec) for spec in source.webhooks.values())
    others = any(
        each.fold or sink_of(each) is not None or any(rule.kind == "python" for rule in each.events) for each in told
    )
    return not in_order and not others


def _in_order(source: Source, spec: Endpoint) -> bool:
    """Whether messages of the address must not overtake each other: some of their records have no version."""
    return bool(spec.forward) or any(source.object(told.object).version is None for told in spec.types.values())
