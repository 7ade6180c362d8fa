"""The tokens of a login, shared by all processes: a refresh token that can be used once is spent by one, and stored.

A renewal may revoke the access token before, so none goes out with a request meanwhile::

    request:  shared lock ─ read ─ request ... whole answer ─ let go
    renewal:  exclusive lock ─ note "being spent, until ..." ─ commit
              exclusive lock ─ note still there ─ ask the token endpoint ─ store, note gone ─ commit

The note outlives a process that is killed between the answer and the commit, and a connection that is cut there, with
which the lock is gone. Only time tells these two apart: until the time in the note its writer may still come with an
answer, and who tried the refresh token again would spend it twice, for which some vendors revoke everything. So others
wait a moment, and then stop with an error that tells when to come again. After that time one tries the refresh token:
the request may never have arrived, and many servers accept a token that was just spent for a while. A writer that gives
up says so in the note, and nobody waits.

Only the connection's own refresh token, the seed, comes from a person, and it is spent with the first renewal. Another
seed than the row's means that somebody has logged in anew. One that the row has known before is out of date: a run that
read the connection before it was changed, which must not undo the change.

A process that is stopped for longer than ``longest`` loses its lock. Woken, it may send the one request that it was
about to send with a token that was revoked meanwhile: it gets a 401 and is signed anew.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import psycopg
import tenacity

from airflow_extract_provider.extract.api.endpoint import Denied, Grant
from airflow_extract_provider.extract.api.oauth import Renewing
from airflow_extract_provider.extract.errors import (
    ExtractError,
    QuotaSpentError,
    SchemaMissingError,
    StoreRightsError,
    StoreUnavailableError,
)
from airflow_extract_provider.extract.store import token_errors
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.sealing import Sealing
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.store.token_row import TokenRow
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["PostgresTokens"]

_log = logging.getLogger(__name__)

_FILE = "tokens.sql"
_CUT_OFF = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.IdleInTransactionSessionTimeout)
_ROUNDS = 20
_FIRST_LOOK, _LOOK_EVERY = 0.01, 0.5
"""Seconds between two looks at somebody's note, at first and at last."""


@dataclass(frozen=True, slots=True)
class _Note:
    """Ours. ``doubted``: it has taken another one's place, whose writer may have spent the token."""

    nonce: str
    doubted: bool


class PostgresTokens(Unshown):
    """The tokens of one connection. One thread at a time uses it. It keeps one connection to Postgres open until
    it is closed; use it in a ``with`` block.

    ``seed`` is the refresh token that a person has put into the connection ``connection_id``, ``secret`` the client's
    secret, None for a public client. ``longest`` is above the longest time that an API request or a renewal takes:
    after it Postgres frees the locks of a process that has stopped. ``saving`` is for how long it tries to store what
    was given, where Postgres is away; above what a failover takes. ``passing`` is for how long it waits for somebody
    else's renewal whose lock is gone.
    """

    def __init__(
        self,
        connect: Connect,
        schema: str,
        connection_id: str,
        seed: str,
        secret: str | None = None,
        *,
        longest: timedelta = timedelta(minutes=10),
        saving: timedelta = timedelta(minutes=10),
        passing: timedelta = timedelta(seconds=5),
    ) -> None:
        self._connect, self._schema, self._id = connect, schema, connection_id
        self._seed, self._sealing = seed, Sealing(seed, secret)
        self._saving, self._passing = saving, passing
        # What a renewal may wait for its lock between its note and its request.
        self._queueing = saving / 10
        self._limits = {
            "place": f"airflow_extract_provider.oauth_token {schema} {connection_id}",
            "idle": _milliseconds(longest),
            "patience": _milliseconds(3 * longest),
        }
        self._kept: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def saving(self) -> float:
        """For how long, in seconds, it tries to store what was given, where Postgres is away."""
        return self._saving.total_seconds()

    def close(self) -> None:
        """Close the connection to Postgres; the next use opens another."""
        conn, self._kept = self._kept, None
        if conn is not None:
            with suppress(psycopg.Error):
                conn.close()

    @contextmanager
    def access(self, refused: str | None) -> Iterator[str | None]:
        """The access token, which nobody renews until the block ends; None: it must be renewed first.

        Raises StoreUnavailableError: Postgres cannot be reached, or somebody has held the lock for too long.
        Raises TokenLostError: it cannot be decrypted.
        """
        with self._locked("share") as conn:
            yield self._usable(self._read(conn), refused)

    def renew(self, refused: str | None, ask: Renewing, longest: float) -> None:
        """Renew the access token, unless somebody else has done so meanwhile, or it lasts until it can be renewed.
        ``ask`` takes ``longest`` seconds at most.

        Raises TokenLostError: the refresh token is spent or not accepted, or cannot be decrypted.
        Raises ApiUnavailableError, QuotaSpentError: the token endpoint has told somebody so, and is left alone; or the
        seed is out of date. Raises StoreUnavailableError: also while somebody else's renewal may be under way.
        Raises what ``ask`` answers with.
        """
        ours: _Note | None = None
        for _ in range(_ROUNDS):
            with self._locked("exclude") as conn:
                row = self._seeded(conn)
                if self._usable(row, refused) is not None:
                    return
                if row.is_put_off:
                    raise token_errors.put_off(row)
                is_ours = ours is not None and row.spending == ours.nonce
                if ours is not None and is_ours and not self._is_late(row, longest):
                    self._spend(conn, row, ask, ours, refused)
                    return
                if is_ours or row.spending is None or row.is_over:
                    ours = self._mark(conn, row, ours if is_ours else None, longest)
                    continue
            self._let_pass(row)
        raise StoreUnavailableError(
            "others keep renewing the tokens of this connection.", todo="Run again; the walk goes on where it stands."
        )

    def _let_pass(self, row: TokenRow) -> None:
        """Wait until a renewal has ended whose note is there; not for long if it has lost its lock.

        Raises StoreUnavailableError.
        """
        ends, pause = None, _FIRST_LOOK
        while True:
            # Behind the one that is under way: locks queue.
            with self._locked("share") as conn:
                found = self._read(conn)
            if found is None or found.spending != row.spending or found.is_over:
                return
            now = time.monotonic()
            ends = now + self._passing.total_seconds() if ends is None else ends
            if now >= ends:
                raise token_errors.under_way(self._id, found)
            time.sleep(pause)
            pause = min(1.5 * pause, _LOOK_EVERY)

    # -- under the exclusive lock -------------------------------------------------------------------------------

    def _seeded(self, conn: Connection) -> TokenRow:
        """The row, begun or begun anew from the connection's seed.

        Raises TokenLostError: there is nothing in it to renew by. Raises ApiUnavailableError: the seed is out of date.
        """
        row = self._read(conn)
        if row is None or not self._sealing.is_seed(row.salt, row.seed):
            if row is not None and any(self._sealing.is_seed(row.salt, each) for each in row.former):
                raise token_errors.outdated(self._id)
            row = self._sow(conn, secrets.token_bytes(16) if row is None else row.salt)
        self._opened_token(row, row.refresh)
        if row.is_lost:
            raise token_errors.lost(self._id, row)
        return row

    def _sow(self, conn: Connection, salt: bytes) -> TokenRow:
        """Write the seed. It is committed with the note that it is being spent."""
        refresh = self._sealing.sealed(salt, self._seed)
        self._execute(conn, "seed", salt=salt, seed=self._sealing.digest(salt), refresh=refresh)
        row = self._read(conn)
        assert row is not None, "it was written just now"
        return row

    def _mark(self, conn: Connection, row: TokenRow, ours: _Note | None, longest: float) -> _Note:
        """Leave a note; ``ours`` is the one that is there, None: it is somebody else's, or there is none."""
        note = _Note(secrets.token_hex(8), row.spending is not None if ours is None else ours.doubted)
        life = timedelta(seconds=longest) + self._saving + self._queueing
        self._execute(conn, "mark", spending=note.nonce, number=row.number, doubted=note.doubted, life=life)
        conn.commit()
        return note

    def _is_late(self, row: TokenRow, longest: float) -> bool:
        """Whether our note would end before what it tells of: it has waited too long for the lock."""
        return row.until is None or row.until - row.now < timedelta(seconds=longest) + self._saving

    def _spend(self, conn: Connection, row: TokenRow, ask: Renewing, ours: _Note, refused: str | None) -> None:
        answered = ask(self._opened_token(row, row.refresh))
        if isinstance(answered, Grant):
            self._save(conn, row, answered.refresh, answered)
        elif answered.refresh is not None:
            self._save(conn, row, answered.refresh, None)
            raise answered.error from None
        elif answered.lost:
            doubted = answered.again or ours.doubted
            if self._noted(conn, "lose", row, doubted=doubted):
                raise token_errors.lost(self._id, row if doubted else None)
        else:
            self._refuse(conn, row, answered, ours, refused)

    def _refuse(self, conn: Connection, row: TokenRow, answered: Denied, ours: _Note, refused: str | None) -> None:
        """Raises the error, unless there is a token that lasts a little longer."""
        error = answered.error
        self._noted(
            conn,
            "refuse",
            row,
            # What somebody else's note tells of remains true.
            doubted=answered.spent or answered.again or ours.doubted,
            pause=None if answered.pause is None else timedelta(seconds=answered.pause),
            refusal=None if answered.pause is None else error.what,
            leaves_slot=None if answered.pause is None else isinstance(error, QuotaSpentError),
        )
        if answered.pause is None or self._usable(self._read(self._opened()), refused) is None:
            raise error from None
        _log.info("%s Going on with the access token that there is, until its end", error.what)

    def _noted(self, conn: Connection, name: str, row: TokenRow, **given: Any) -> bool:
        """Write what came of it, if the note is still ours; over a new connection where this one is lost."""
        told = {"number": row.number, "spending": row.spending, **given}
        try:
            count = self._execute(conn, name, **told).rowcount
            conn.commit()
        except _CUT_OFF:
            self.close()
            conn = self._opened()
            count = self._execute(conn, name, **told).rowcount
            conn.commit()
        return count > 0

    def _save(self, conn: Connection, row: TokenRow, refresh: str | None, grant: Grant | None) -> None:
        lives, renew_after = (None, None) if grant is None else (grant.lives, grant.renew_after)
        new = {
            "access": None if grant is None else self._sealing.sealed(row.salt, grant.access),
            "refresh": None if refresh is None else self._sealing.sealed(row.salt, refresh),
            "asked_at": row.now,
            "lives": None if lives is None else timedelta(seconds=lives),
            "renew_after": None if renew_after is None else timedelta(seconds=renew_after),
            "number": row.number,
        }
        try:
            with named_errors():
                self._execute(conn, "store", **new)
                conn.commit()
        except ExtractError as exc:
            if not _may_pass(exc):
                raise
            self._save_at_last(new)

    def _save_at_last(self, new: Mapping[str, Any]) -> None:
        """Store what was given, though the connection and with it the lock are lost, or the server only reads: there
        will never be another answer to that refresh token. If the commit was done all the same, this changes nothing.

        Raises StoreUnavailableError: Postgres stays away for longer than ``saving``.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_delay(self._saving),
            wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=5.0),
            reraise=True,
        )
        for attempt in retrying:
            with attempt, named_errors():
                self.close()
                conn = self._opened()
                self._execute(conn, "store", **new)
                conn.commit()

    # -- the row ------------------------------------------------------------------------------------------------

    def _usable(self, row: TokenRow | None, refused: str | None) -> str | None:
        if row is None or row.access is None or not row.is_usable:
            return None
        if not self._sealing.is_seed(row.salt, row.seed):
            return None
        token = self._opened_token(row, row.access)
        return None if token == refused else token

    def _opened_token(self, row: TokenRow, token: bytes) -> str:
        found = self._sealing.opened(row.salt, token)
        if found is None:
            raise token_errors.undecipherable(self._id)
        return found

    def _read(self, conn: Connection) -> TokenRow | None:
        row = self._execute(conn, "read").fetchone()
        return None if row is None else TokenRow(*row)

    # -- Postgres -----------------------------------------------------------------------------------------------

    def _execute(self, conn: Connection, name: str, **given: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        return conn.execute(statement(_FILE, name, self._schema), {"connection": self._id, **given})

    @contextmanager
    def _locked(self, lock: str) -> Iterator[Connection]:
        """A transaction that holds the lock. At its end what was not committed is rolled back."""
        with named_errors():
            try:
                conn = self._begun(lock)
                yield conn
            finally:
                self._let_go()

    def _begun(self, lock: str) -> Connection:
        kept = self._kept
        try:
            conn = self._opened()
            self._execute(conn, lock, **self._limits)
            return conn
        except _CUT_OFF:
            # One that was kept may have been closed in the meantime. One that was just opened has not.
            if kept is None or not kept.closed:
                raise
        self.close()
        conn = self._opened()
        self._execute(conn, lock, **self._limits)
        return conn

    def _opened(self) -> Connection:
        if self._kept is None:
            self._kept = self._connect()
            # Each statement must see what was committed while it waited, whatever the role's default is.
            self._kept.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return self._kept

    def _let_go(self) -> None:
        """Without a word if the connection is gone: the lock is free then too, and what was to be stored is."""
        try:
            if self._kept is not None:
                self._kept.rollback()
        except psycopg.Error:
            self.close()


def _milliseconds(span: timedelta) -> str:
    return f"{span.total_seconds() * 1000:.0f}ms"


def _may_pass(exc: BaseException) -> bool:
    """Whether storing may succeed later. Missing rights and tables do not come by themselves."""
    return isinstance(exc, ExtractError) and not isinstance(exc, StoreRightsError | SchemaMissingError)
