"""One quota for all tasks of a source: a row of Postgres, changed by compare-and-set.

Each turn is taken by one statement, which succeeds only if nobody else has changed the row since it was last seen; else
it is read and tried again. So a process that is stopped holds up nobody, and a pooler may stand between.

Whoever is far from Postgres would always be too late for that where others are near. After two tries in vain a turn is
taken with the row locked, for which all stand in line, and so are those after it until nobody else asks any more. A
process that is stopped then holds the others up for a second: Postgres ends its session. All turns of a quota are taken
one after another, so there are no more in a second than round trips of those that are far: 50 at 20 ms.

The time is Postgres's, since the clocks of workers differ. If its server crashes, the last turns before may not be
counted (`synchronous_commit` is off for these statements: with it each turn would wait for the disk); that can make a
few requests too many, and touches no record.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from airflow_extract_provider.extract.api.limits import Told, Turn
from airflow_extract_provider.extract.api.usage import Usage
from airflow_extract_provider.extract.errors import ExtractError, StoreUnavailableError
from airflow_extract_provider.extract.rates import Rate
from airflow_extract_provider.extract.store.connection import CROSSED, Connect, Connection, named_errors
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["PostgresQuota"]

_FILE = "quota.sql"
_LOOK_EVERY = 1.0
"""How often, in seconds, it is looked whether others were told to wait, where nothing else tells."""
_TRIES, _FREE_TRIES = 10, 2
_LOST = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.IdleInTransactionSessionTimeout)


class PostgresQuota:
    """The quota of a source and its connection, shared with all processes that name the same two.

    It opens a connection of its own at the first turn, and once more when that was lost; `close` it, or use it in a
    `with` block. One thread at a time may use it, any may close it: then what is being written is not waited for.

    Where no ``rates`` are declared and the API tells none, turns are not counted, and Postgres is asked about once a
    second whether others were told to wait.
    """

    def __init__(self, connect: Connect, schema: str, source: str, connection: str, rates: Sequence[Rate] = ()) -> None:
        self._connect, self._schema = connect, schema
        self._key = {"source": source, "connection": connection}
        self._rates = tuple(rates)
        self._conn: Connection | None = None
        self._usage, self._revision = Usage(), 0
        self._in_use = threading.Lock()
        self._is_current = self._is_contended = False
        self._looked_at: float | None = None
        self._clock: tuple[float, float] | None = None
        self._unwritten: list[tuple[int, Told, float]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what was told last, if that can be, and close the connection. The next turn would open another."""
        if self._in_use.acquire(blocking=False):
            try:
                with suppress(ExtractError):
                    if self._conn is not None and self._unwritten and self._noted().binds(self._now()):
                        self._change(lambda usage: (usage, True))
            finally:
                self._in_use.release()
        self._disconnect()

    def turn(self, most: float) -> Turn:
        """The next request's turn. It is taken, unless its ``wait`` is longer than ``most`` seconds.

        Raises StoreUnavailableError: Postgres cannot be asked, or so many stand in line that it took five seconds.
        Raises StoreRightsError, SchemaMissingError.
        """
        with self._in_use:
            if self._is_unlimited():
                return Turn(0.0, self._noted().number)
            return self._taken(most)

    def stands(self, turn: Turn) -> bool:
        """Whether a turn that was waited for may still be used: not when the API has told others to wait meanwhile.

        Nothing is asked if it was looked within the last second. Raises what `turn` raises.
        """
        with self._in_use:
            self._look()
            return self._noted().stands(turn.number, self._now())

    def tell(self, turn: Turn, told: Told) -> None:
        """Note what the answer to a turn's request says: together with the next turn, or at once if all must wait.

        It raises nothing: what cannot be written now stays noted, and an answer has come that must not be lost.
        """
        if not told.refused and told.remaining is None and not self._noted().interval:
            return
        with self._in_use, suppress(ExtractError):
            now = self._now()
            # Only what still holds is kept: without a limit nothing may be written for days.
            holds = [
                each for each in self._unwritten if each[2] + (each[1].pause or 0.0) > now or each[0] > turn.number
            ]
            self._unwritten = [*holds, (turn.number, told, now)]
            if told.refused or self._noted().held(now):
                self._change(lambda usage: (usage, True))

    @property
    def left(self) -> float | None:
        """Which part of the quota is left, from 0 to 1, as far as it is known; None: it is not. Nothing is asked."""
        return None if self._clock is None else self._noted().left(self._now(), self._rates)

    def _taken(self, most: float) -> Turn:
        at = wait = 0.0

        def taken(usage: Usage) -> tuple[Usage, bool]:
            nonlocal at, wait
            now = self._now()
            usage, at = usage.turn(now, self._rates)
            wait = at - now
            return usage, wait <= most

        usage = self._change(taken)
        if wait <= most:
            # The statement took a part of it.
            wait = max(at - self._now(), 0.0)
        return Turn(wait, usage.number, usage.grace)

    def _is_unlimited(self) -> bool:
        if self._rates:
            return False
        self._look()
        return not self._noted().binds(self._now())

    def _look(self) -> None:
        if self._looked_at is None or time.monotonic() - self._looked_at >= _LOOK_EVERY:
            self._read()

    def _noted(self) -> Usage:
        """The usage as it was last seen, with what is not written yet."""
        usage = self._usage
        for number, told, at in self._unwritten:
            usage = usage.tell(number, told, at)
        return usage

    def _change(self, change: Callable[[Usage], tuple[Usage, bool]]) -> Usage:
        """What ``change`` makes of the usage; it is stored if it says so, else it was made of what is stored now."""
        before, is_fresh = self._revision, False
        for tries in range(_TRIES):
            if self._is_contended or tries >= _FREE_TRIES:
                found = self._change_locked(change)
                if found is not None:
                    return found
            if not self._is_current:
                self._read()
                is_fresh = True
            usage, is_wanted = change(self._noted())
            if not is_wanted and is_fresh:
                return usage
            if is_wanted and self._write(usage):
                # Where others take turns, too, the next one is read first: that is one statement less.
                self._is_current = self._revision == before + 1
                return usage
            self._is_current = False
        raise StoreUnavailableError(
            "this task did not get its turn to ask the API: its connection to Postgres was lost each time.",
            todo="Run again: the walk goes on where it stands. If it stays so, look what cuts connections.",
            source=self._key["source"],
        )

    def _change_locked(self, change: Callable[[Usage], tuple[Usage, bool]]) -> Usage | None:
        """The same in a transaction that locks the row. None: there is no row yet, or the connection was lost."""
        before, usage = self._revision, None
        try:
            row = self._execute("begin", "bounds", "lock")
            if row is not None:
                self._see(*row)
                self._is_contended = self._revision != before
                usage, is_wanted = change(self._noted())
                if is_wanted:
                    if self._write(usage, "commit"):
                        self._is_current = not self._is_contended
                        return usage
                    self._disconnect()
                    return None
            self._execute("rollback")
            return usage
        except StoreUnavailableError:
            if self._conn is None:
                return None
            self._disconnect()
            raise
        except BaseException:
            # Whatever stops this task, the lock goes with it.
            self._disconnect()
            raise

    def _read(self) -> None:
        was_open = self._conn is not None
        try:
            row = self._execute("read")
        except StoreUnavailableError:
            if not was_open or self._conn is not None:
                raise
            row = self._execute("read")
        assert row is not None
        self._see(*row)

    def _see(self, state: str | None, revision: int | None, _: float) -> None:
        self._usage, self._revision, self._is_current = Usage(), revision or 0, True
        # A person may have put a number there that has more digits than Python reads.
        with suppress(ValueError, RecursionError):
            self._usage = Usage.from_json(json.loads(state or "null"))

    def _write(self, usage: Usage, *then: str) -> bool:
        """Store it, unless somebody else has changed the row, or the connection was lost and nobody knows."""
        asked = {"state": Jsonb(usage.as_json()), "revision": self._revision}
        try:
            row = self._execute("change" if self._revision else "add", *then, **asked)
        except StoreUnavailableError:
            if self._conn is not None:
                raise
            return False
        if row is None:
            return False
        self._usage, self._revision, self._unwritten = usage, self._revision + 1, []
        return True

    def _execute(self, *names: str, **asked: Any) -> tuple[Any, ...] | None:
        """The last row that some statements give, sent together; its last column is Postgres's clock. None: there is
        none, or another was faster.

        Raises StoreUnavailableError: with no connection left, if it was lost.
        """
        with named_errors(source=self._key["source"]):
            if self._conn is None:
                self._conn = self._connect()
                self._conn.autocommit = True
            sent = time.monotonic()
            try:
                row = self._sent(self._conn, names, {**self._key, **asked})
            except CROSSED:
                if names == ("read",):
                    raise
                return None
            except _LOST:
                if self._conn.closed:
                    self._disconnect()
                raise
        if row is not None:
            self._looked_at = time.monotonic()
            self._set_clock(row[-1], sent, self._looked_at)
        return row

    def _sent(self, conn: Connection, names: Sequence[str], asked: dict[str, Any]) -> tuple[Any, ...] | None:
        made = [statement(_FILE, name, self._schema) for name in names]
        if len(made) == 1:
            cursor = conn.execute(made[0], asked)
        else:
            # One message, with its values in the text. A transaction that a pipeline leaves open is never ended for
            # being idle (tried with PostgreSQL 18 and psycopg 3.3): who is stopped would hold the row for ever.
            cursor = psycopg.ClientCursor(conn).execute(sql.SQL(";\n").join(made), asked)
        row = None
        while True:
            row = cursor.fetchone() if cursor.description else row
            if not cursor.nextset():
                return row

    def _disconnect(self) -> None:
        conn, self._conn, self._is_current = self._conn, None, False
        if conn is not None:
            conn.close()

    def _set_clock(self, shown: float, sent: float, received: float) -> None:
        """Postgres's clock is now between what it showed and that plus the statement's way; as late as it was known to
        be, within that. A pause of this process between the two must not make its turns late."""
        known = shown if self._clock is None else self._clock[0] + received - self._clock[1]
        self._clock = (min(max(shown, known), shown + received - sent), received)

    def _now(self) -> float:
        """Postgres's clock, in seconds since 1970."""
        if self._clock is None:
            self._read()
        assert self._clock is not None
        return self._clock[0] + time.monotonic() - self._clock[1]
