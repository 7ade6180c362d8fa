"""Puts what was read from Kafka into the inbox: a batch is one transaction, and whatever hangs is given up."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import date, datetime, timezone

import psycopg

from airflow_extract_provider.extract.errors import ExtractError, FixConfig, StoreUnavailableError, TryAgain
from airflow_extract_provider.extract.store import dead, inbox, inbox_count
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.webhooks.giving_up import GivingUp, Until, begun
from airflow_extract_provider.extract.webhooks.kafka_read import Read

__all__ = ["DEADLINE", "KafkaStore"]

_log = logging.getLogger(__name__)

DEADLINE = 20.0
"""Seconds that a batch may take, or the opening of a connection: well below those after which a consumer that reads
nothing is taken for dead (`max.poll.interval.ms`, 5 minutes)."""
_LOOK_EVERY = 5.0
"""Seconds between two looks whether the store is still there, while nothing comes."""
_MOST_OPENINGS = 8


class KafkaStore:
    """The inbox on one connection, which is opened when it is needed.

    Methods raise StoreUnavailableError: the store is away, does not answer within ``deadline`` seconds, or has not
    told that a synchronous standby has what was stored; whether it is stored is not known. Soon after ``stop`` is set
    nothing is waited for any more. They raise SchemaMissingError, StoreRightsError: tables or rights are not there.
    """

    def __init__(
        self, connect: Connect, schema: str, topic: str, stop: threading.Event, deadline: float = DEADLINE
    ) -> None:
        """Nothing is opened yet."""
        self._connect, self._schema, self._topic = connect, schema, topic
        self._stop, self._deadline = stop, deadline
        self._conn: Connection | None = None
        self._opening: list[Future[Connection]] = []
        self._asked_at = float("-inf")
        self._unconfirmed, self._unheard = False, ""
        self._written: dict[uuid.UUID, bool] = {}
        """Of what a batch has stored that is tried again: whether it was new then."""

    def put(self, batch: Sequence[Read]) -> list[Read]:
        """Store messages; returns those that are new, each as it was stored."""
        fresh = self._halved(batch)
        self._written = {}
        return fresh

    def look(self, *, now: bool = False) -> bool:
        """See that deliveries can be stored, if that was not seen for a while, or ``now``; returns whether it was
        looked."""
        if not now and time.monotonic() - self._asked_at < _LOOK_EVERY:
            return False
        self._asked_at = time.monotonic()
        conn = self._opened()
        with self._bounded(conn):
            inbox.look(conn, self._schema)
        return True

    def announce(self) -> bool:
        """Wake whoever waits for webhooks; returns False if it is to be tried again. It raises nothing. Where Postgres
        refuses just that, webhooks are stored all the same: it is said once."""
        if self._conn is None:
            return False
        try:
            with self._bounded(self._conn):
                inbox.announce(self._conn, self._schema)
        except StoreUnavailableError:
            self.let_go()
            return False
        except ExtractError as exc:
            if exc.what != self._unheard:
                _log.warning("webhooks: nobody is told that some have come, they wait for the next run: %s", exc.what)
            self._unheard = exc.what
        return True

    def let_go(self) -> None:
        """Close the connection; the next one who needs it opens another."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    # --- the connection

    def _opened(self) -> Connection:
        if self._conn is None:
            # In a thread: nobody bounds the look-up of a name, or a pooler that waits for its server.
            self._opening = [each for each in self._opening if not each.done()]
            if len(self._opening) >= _MOST_OPENINGS:
                raise StoreUnavailableError("Postgres does not answer.")
            opening = begun(self._connect)
            if not Until(self._deadline, self._stop).waited(opening):
                self._opening.append(opening)
                opening.add_done_callback(_closed)
                raise StoreUnavailableError("Postgres does not answer.")
            conn = opening.result()
            try:
                self._begin(conn)
            except BaseException:
                conn.close()
                raise
            self._conn = conn
        return self._conn

    def _begin(self, conn: Connection) -> None:
        """See, by the very statements with nothing to store, that tables and rights are as they need them: the first
        message that nobody can read may come in a year."""
        conn.autocommit = True
        conn.add_notice_handler(self._noticed)
        with self._bounded(conn):
            inbox.put(conn, self._schema, [])
            inbox_count.add(conn, self._schema, {})
            dead.bury(conn, self._schema, self._topic, {uuid.uuid4(): ""})

    @contextmanager
    def _bounded(self, conn: Connection) -> Iterator[None]:
        """Within, Postgres is waited for until the deadline, and its errors are named."""
        self._unconfirmed = False
        with GivingUp(conn, Until(self._deadline, self._stop)) as giving_up:
            try:
                with named_errors():
                    yield
            except StoreUnavailableError:
                if not giving_up.happened:
                    raise
        if giving_up.happened or self._unconfirmed:
            # The server tells no error where it gave up the wait for a standby; the rows are on one disk only.
            raise StoreUnavailableError("Postgres does not answer in time, or a synchronous standby does not.")
        self._asked_at = time.monotonic()

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        self._unconfirmed = self._unconfirmed or inbox.ended_waiting(notice)

    # --- a batch

    def _halved(self, batch: Sequence[Read]) -> list[Read]:
        """Store messages. What Postgres refuses is looked for, half by half, and stored as dead with its reason: it
        would be in the way of all that come after it, for ever."""
        try:
            return self._in_one(batch)
        except (TryAgain, FixConfig):
            raise
        except ExtractError as exc:
            if len(batch) > 1:
                half = len(batch) // 2
                return self._halved(batch[:half]) + self._halved(batch[half:])
            try:
                return self._in_one([batch[0].buried(exc.what, whole=True)])
            except (TryAgain, FixConfig):
                raise
            except ExtractError:
                return self._in_one([batch[0].buried(exc.what, whole=False)])

    def _in_one(self, batch: Sequence[Read]) -> list[Read]:
        conn, before = self._opened(), self._written
        with self._bounded(conn):
            with conn.transaction():
                new = inbox.put(conn, self._schema, [each.incoming for each in batch])
                told = [*zip(batch, new, strict=True)]
                strange = {each.digest: f"{each.place}: {each.why}" for each, is_new in told if is_new and each.why}
                dead.bury(conn, self._schema, self._topic, strange)
                inbox_count.add(conn, self._schema, _sums([each for each in told if each[0].digest not in before]))
            fresh = [each for each, is_new in told if is_new or before.get(each.digest)]
            known = dict.fromkeys((each.digest for each in batch), False)
            self._written = {**before, **known, **dict.fromkeys((each.digest for each in fresh), True)}
        return fresh


def _closed(opening: Future[Connection]) -> None:
    """Close a connection that came too late."""
    with suppress(BaseException):
        opening.result().close()


def _sums(told: Sequence[tuple[Read, bool]]) -> inbox_count.Sums:
    """What is counted: deliveries that are new, and those that were sent twice; what we have read twice is neither."""
    today = datetime.now(timezone.utc).date()
    found: Counter[tuple[str, str, date, str]] = Counter()
    for each, is_new in told:
        if not each.why and (is_new or each.incoming.dedupe != each.digest):
            kind = "received" if is_new else "duplicate"
            found[each.incoming.source, each.incoming.endpoint, today, kind] += 1
    return found
