"""The tokens of a login, shared by all processes: a refresh token that can be used once is spent by one, and stored.

A renewal may revoke the access token before, so none goes out with a request meanwhile::

    request:  shared lock ─ read ─ request ... whole answer ─ let go
    renewal:  exclusive lock ─ note "being spent" ─ commit
              exclusive lock ─ note still there ─ ask the token endpoint ─ store, note gone ─ commit

The note outlives a process that is killed between the answer and the commit. Who finds one that stays the same from one
exclusive lock to the next knows that its writer is not merely waiting in between: locks queue. It tries the refresh
token again: the request may never have arrived, and many servers accept a token that was just spent for a while.

Only the connection's own refresh token, the seed, comes from a person, and it is spent with the first renewal. Another
seed than the row's means that somebody has logged in anew. One that the row has known before is out of date: a run that
read the connection before it was changed, which must not undo the change.

Tokens are stored encrypted (Fernet, by a key that HKDF, RFC 5869, makes of the client's secret; of the seed for public
clients): who reads the books cannot log in. Where the client's secret is changed, a new seed has to come with it.

A process that is stopped for longer than ``longest`` loses its lock. Woken, it may send the one request that it was
about to send with a token that was revoked meanwhile: it gets a 401 and is signed anew.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Self

import psycopg
import tenacity
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from airflow_extract_provider.extract.api.endpoint import Denied, Grant
from airflow_extract_provider.extract.api.oauth import Renewing
from airflow_extract_provider.extract.errors import StoreUnavailableError, TokenLostError
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["PostgresTokens"]

_FILE = "tokens.sql"
_CUT_OFF = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.IdleInTransactionSessionTimeout)
_ROUNDS = 20
_SAVING = 60.0


@dataclass(frozen=True, slots=True)
class _Row:
    """What is stored. ``is_due``: the access token has nearly run out. ``spending`` is the note of who spends."""

    salt: bytes
    seed: bytes
    former: list[bytes]
    access: bytes | None = field(repr=False)
    refresh: bytes = field(repr=False)
    is_due: bool | None
    number: int
    spending: str | None
    since: datetime | None
    lost_at: datetime | None
    now: datetime


class PostgresTokens(Unshown):
    """The tokens of one connection. One thread at a time uses it. It keeps one connection to Postgres open until
    it is closed; use it in a ``with`` block.

    ``seed`` is the refresh token that a person has put into the connection ``connection_id``, ``secret`` the client's
    secret, None for a public client. ``longest`` is above the longest time that an API request or a renewal takes:
    after it Postgres frees the locks of a process that has stopped.
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
    ) -> None:
        self._connect, self._schema, self._id = connect, schema, connection_id
        self._seed, self._secret = seed, secret
        self._limits = {
            "place": f"airflow_extract_provider.oauth_token {schema} {connection_id}",
            "idle": _milliseconds(longest),
            "patience": _milliseconds(3 * longest),
        }
        self._kept: Connection | None = None
        self._keys: dict[tuple[bytes, str], bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def renew(self, refused: str | None, ask: Renewing) -> None:
        """Renew the access token, unless somebody else has done so meanwhile.

        Raises TokenLostError: the refresh token is spent or not accepted, is out of date, or cannot be decrypted.
        Raises StoreUnavailableError, and what ``ask`` raises or answers with.
        """
        seen = ours = ""
        for _ in range(_ROUNDS):
            with self._locked("exclude") as conn:
                row = self._seeded(conn)
                if self._usable(row, refused) is not None:
                    return
                if row.spending is None:
                    seen = ours = self._mark(conn, row)
                elif row.spending != seen:
                    # Its writer may stand behind us in the queue, alive: let it pass.
                    seen = row.spending
                else:
                    self._spend(conn, row, ask, is_ours=row.spending == ours)
                    return
        raise StoreUnavailableError(
            "others keep renewing the tokens of this connection.", todo="Run again; the walk goes on where it stands."
        )

    # -- under the exclusive lock -------------------------------------------------------------------------------

    def _seeded(self, conn: Connection) -> _Row:
        """The row, begun or begun anew from the connection's seed.

        Raises TokenLostError: there is nothing in it to renew by.
        """
        row = self._read(conn)
        if row is None or not self._is_seed(row, row.seed):
            if row is not None and any(self._is_seed(row, each) for each in row.former):
                raise self._outdated()
            row = self._sow(conn, secrets.token_bytes(16) if row is None else row.salt)
        self._decrypted(row, row.refresh)
        if row.lost_at is not None:
            raise self._lost(row)
        return row

    def _sow(self, conn: Connection, salt: bytes) -> _Row:
        """Write the seed. It is committed with the note that it is being spent."""
        digest = self._key(salt, "seed", self._seed)
        refresh = self._fernet(salt).encrypt(self._seed.encode())
        self._execute(conn, "seed", salt=salt, seed=digest, refresh=refresh)
        row = self._read(conn)
        assert row is not None, "it was written just now"
        return row

    def _mark(self, conn: Connection, row: _Row) -> str:
        nonce = secrets.token_hex(8)
        self._execute(conn, "mark", spending=nonce, number=row.number)
        conn.commit()
        return nonce

    def _spend(self, conn: Connection, row: _Row, ask: Renewing, *, is_ours: bool) -> None:
        answered = ask(self._decrypted(row, row.refresh))
        if isinstance(answered, Grant):
            self._save(conn, row, answered)
        elif answered.lost:
            spent = answered.again or not is_ours
            self._execute(conn, "lose", number=row.number, spent=spent)
            conn.commit()
            raise self._lost(row if spent else None)
        else:
            self._refuse(conn, row, answered, is_ours=is_ours)

    def _refuse(self, conn: Connection, row: _Row, answered: Denied, *, is_ours: bool) -> None:
        # Nothing was spent now. What somebody else's note tells of remains true.
        if is_ours and not answered.again:
            self._execute(conn, "unmark", number=row.number, spending=row.spending)
            conn.commit()
        raise answered.error from None

    def _save(self, conn: Connection, row: _Row, grant: Grant) -> None:
        fernet = self._fernet(row.salt)
        new = {
            "access": fernet.encrypt(grant.access.encode()),
            "refresh": None if grant.refresh is None else fernet.encrypt(grant.refresh.encode()),
            "asked_at": row.now,
            "lives": None if grant.lives is None else timedelta(seconds=grant.lives),
            "renew_after": None if grant.renew_after is None else timedelta(seconds=grant.renew_after),
            "number": row.number,
        }
        try:
            self._execute(conn, "store", **new)
            conn.commit()
        except _CUT_OFF:
            self._save_at_last(new)

    def _save_at_last(self, new: Mapping[str, Any]) -> None:
        """Store what was given, though the connection and with it the lock are lost: there will never be another answer
        to that refresh token. If the commit was done all the same, this changes nothing.

        Raises StoreUnavailableError: Postgres stays away for a minute.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailableError),
            stop=tenacity.stop_after_delay(_SAVING),
            wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=5.0),
            reraise=True,
        )
        for attempt in retrying:
            with attempt, named_errors():
                self.close()
                conn = self._opened()
                self._execute(conn, "store", **new)
                conn.commit()

    # -- errors -------------------------------------------------------------------------------------------------

    def _lost(self, row: _Row | None) -> TokenLostError:
        """``row`` tells of a note that its writer did not clear away; without one the token was simply refused."""
        since = row.since if row else None
        if since is None:
            what = f"the API does not accept the refresh token of the connection {self._id!r} any more."
        else:
            when = f"{since.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
            what = (
                f"the refresh token of the connection {self._id!r} was spent at {when} by a run that ended before it "
                "could store what it got for it."
            )
        return self._token_lost(what, "Log in anew at the vendor, and put the new refresh token")

    def _outdated(self) -> TokenLostError:
        return self._token_lost(
            f"the refresh token that this run has from the connection {self._id!r} was replaced by a newer one.",
            "If the connection holds the newer one, only run again. If not, log in anew at the vendor, and put a new "
            "refresh token",
        )

    def _undecipherable(self) -> TokenLostError:
        return self._token_lost(
            f"the stored tokens of the connection {self._id!r} cannot be decrypted: its client secret has changed.",
            "Log in anew at the vendor, and put the new refresh token",
        )

    def _token_lost(self, what: str, todo: str) -> TokenLostError:
        return TokenLostError(
            what,
            kept="everything that was committed.",
            todo=f"{todo} into the field `refresh_token` of the connection {self._id!r}; the next run starts from it.",
        )

    # -- the row ------------------------------------------------------------------------------------------------

    def _usable(self, row: _Row | None, refused: str | None) -> str | None:
        if row is None or row.access is None or row.is_due or row.spending is not None or row.lost_at is not None:
            return None
        if not self._is_seed(row, row.seed):
            return None
        token = self._decrypted(row, row.access)
        return None if token == refused else token

    def _is_seed(self, row: _Row, digest: bytes) -> bool:
        return hmac.compare_digest(self._key(row.salt, "seed", self._seed), digest)

    def _decrypted(self, row: _Row, token: bytes) -> str:
        try:
            return self._fernet(row.salt).decrypt(token).decode()
        except InvalidToken:
            raise self._undecipherable() from None

    def _fernet(self, salt: bytes) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(self._key(salt, "tokens", self._secret or self._seed)))

    def _key(self, salt: bytes, purpose: str, secret: str) -> bytes:
        """A key, or a digest. A refresh token cannot be guessed (RFC 6749, section 10.10), so a salted one says nothing
        of it."""
        if (salt, purpose) not in self._keys:
            info = f"airflow_extract_provider oauth_token {purpose}".encode()
            self._keys[salt, purpose] = HKDF(SHA256(), 32, salt, info).derive(secret.encode())
        return self._keys[salt, purpose]

    def _read(self, conn: Connection) -> _Row | None:
        row = self._execute(conn, "read").fetchone()
        return None if row is None else _Row(*row)

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
