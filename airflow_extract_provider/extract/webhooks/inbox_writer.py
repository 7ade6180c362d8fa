"""The inbox on one asynchronous connection: each statement is a transaction of its own, and none takes longer than it
may.
"""

from __future__ import annotations

import asyncio
import random
import select
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import psycopg

from airflow_extract_provider.extract.errors import ExtractError, StoreUnavailableError, TryAgain
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import BACKEND, CROSSED, named_errors
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.webhooks.deadline import Deadline

__all__ = ["AsyncConnect", "AsyncConnection", "CanceledError", "InboxWriter", "LateError", "opened"]

_FILE = "inbox.sql"
_OPENING = 10.0
"""How long a new session may take to say its number."""
_CROSSED_PAUSES = (0.1, 0.3, 0.9)

AsyncConnection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
AsyncConnect: TypeAlias = Callable[[], Awaitable[AsyncConnection]]
"""Opens a new connection that commits each statement, such as by :func:`opened`. Who asks for it closes it."""


class LateError(StoreUnavailableError):
    """Postgres has not answered in time, or has not told that a synchronous standby has what was stored."""


class CanceledError(StoreUnavailableError):
    """Postgres has given a statement up by a timeout of its own, or somebody has told it to: nothing was stored."""


async def opened(conninfo: str = "", **options: Any) -> AsyncConnection:
    """A new connection that commits each statement, by a connection string or by options of libpq and psycopg.

    Behind a pooler it prepares none, unless ``prepare_threshold`` says otherwise. Raises psycopg's own errors.
    """
    conn: AsyncConnection = await psycopg.AsyncConnection.connect(conninfo, **{**options, "autocommit": True})
    if "prepare_threshold" in options:
        return conn
    try:
        # A pooler gives its clients numbers of its own: no other sign of it is common to all of them.
        with Deadline(conn, _OPENING):
            session = await (await conn.execute(BACKEND)).fetchone()
        if session != (conn.info.backend_pid,):
            conn.prepare_threshold = None
    except BaseException:
        await conn.close()
        raise
    return conn


class InboxWriter:
    """Writes into the inbox, from its opening until it is closed, and never again then.

    Methods raise StoreUnavailableError: the store is away, or only reads; LateError: it does not answer within
    ``seconds``, and whether what was asked is done is not known; CanceledError: as it says; SchemaMissingError,
    StoreRightsError: tables or rights are not there.
    """

    def __init__(self, conn: AsyncConnection, schema: str, seconds: float) -> None:
        self._conn, self._seconds = conn, seconds
        # As bytes: psycopg would put them together at each commit.
        self._texts = {
            name: statement(_FILE, name, schema).as_bytes() for name in ("put", "confirm", "announce", "reach")
        }
        self._schema, self._unconfirmed = schema, False
        conn.add_notice_handler(self._noticed)
        self.looked_at = float("-inf")
        """When it was last looked, by the monotonic clock."""

    @classmethod
    async def open(cls, connect: AsyncConnect, schema: str, seconds: float) -> InboxWriter:
        """Open a connection on which deliveries can be stored, as the very statement with nothing to store tells: a
        table that somebody has locked takes none."""
        try:
            async with asyncio.timeout(seconds):
                with named_errors():
                    conn = await connect()
        except TimeoutError:
            raise StoreUnavailableError("Postgres does not answer.") from None
        made = cls(conn, schema, seconds)
        try:
            await made.look()
            await made.put([])
        except BaseException:
            await made.close()
            raise
        return made

    async def close(self) -> None:
        """Let the connection go."""
        await self._conn.close()

    @property
    def lost(self) -> bool:
        """Whether the connection has ended, as far as is known without asking."""
        return self._conn.closed

    @property
    def cut_off(self) -> bool:
        """Whether the server, or somebody in between, has ended the connection while nothing was asked. What is asked
        now would fail, and nobody know whether it was done; before, nothing is in doubt."""
        try:
            poll = select.poll()
            poll.register(self._conn.fileno(), select.POLLIN)
            # There may be a notice before the end, or alone.
            while poll.poll(0):
                self._conn.pgconn.consume_input()
        except (psycopg.Error, OSError):
            return True
        return self._conn.closed

    async def put(self, incoming: Sequence[Incoming]) -> list[bool | ExtractError]:
        """Store deliveries, in order; tells of each whether it is new, once it is on the disk, or why that is not so
        though the statement has worked: it is not there, or whether it is there could not be seen."""
        ((count, dedupes),) = await self._ask("put", inbox.parameters(incoming))
        if count == len(incoming):
            return [True] * count
        new = inbox.new(incoming, count, dedupes)
        told: list[bool | ExtractError] = [inbox.filtered() if each is None else each for each in new]
        if False in new:
            try:
                ((absent, _),) = await self._ask("confirm", inbox.passed_over(incoming, new))
            except ExtractError as exc:
                return [exc if each is False else each for each in told]
            for nth in absent:
                told[nth] = inbox.filtered()
        return told

    async def takes(self) -> bool:
        """Whether deliveries can be stored now, whatever they are: the very statement works with none."""
        try:
            await self.put([])
        except ExtractError:
            return False
        return True

    async def look(self) -> None:
        """See whether the server is there and writes, and whether there is an inbox that outlives it."""
        inbox.check_reached(await self._ask("reach", {"schema": self._schema}))
        self.looked_at = time.monotonic()

    async def announce(self) -> None:
        """Tell those who listen that something has come."""
        await self._ask("announce", {"channel": inbox.channel(self._schema)})

    async def _ask(self, name: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run a statement within the deadline.

        It fails, too, where it seems to have worked but the wait for a standby was given up: the server then tells no
        error, but the row is on one disk only, and is lost in a failover.
        """
        self._unconfirmed = False
        with Deadline(self._conn, self._seconds) as deadline:
            try:
                with named_errors():
                    found = await self._run(name, asked)
            except TryAgain:
                if not deadline.is_over:
                    raise
        if deadline.is_over or self._unconfirmed:
            raise LateError("Postgres does not answer in time, or a synchronous standby does not.")
        return found

    async def _run(self, name: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        for pause in _CROSSED_PAUSES:
            with suppress(*CROSSED):
                return await self._run_once(name, asked)
            # Another receiver stores the same ones in another order, and Postgres ended this one. Nothing was written;
            # at once it could be in the other's way again.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not both at once
        return await self._run_once(name, asked)

    async def _run_once(self, name: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        try:
            return await (await self._conn.execute(self._texts[name], asked, binary=True)).fetchall()
        except psycopg.errors.TransactionTimeout:
            raise LateError("Postgres has ended the connection, since a transaction took too long.") from None
        except psycopg.errors.QueryCanceled:
            raise CanceledError(
                "Postgres has given a statement up by a timeout of its own.",
                todo="See `statement_timeout` of the role and the database, and what keeps the table inbox busy.",
            ) from None

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        self._unconfirmed = self._unconfirmed or inbox.ended_waiting(notice)
