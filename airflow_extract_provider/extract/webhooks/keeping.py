"""Keeps deliveries in the inbox: whatever has arrived goes in by one statement, and is told after its commit."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import psycopg

from airflow_extract_provider.extract.errors import ExtractError, FixConfig, StoreUnavailableError, TryAgain
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import BACKEND, CROSSED, named_errors
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.webhooks.deadline import CANCEL_SECONDS, Deadline

__all__ = ["AsyncConnect", "AsyncConnection", "Bounds", "Commit", "PostgresKeep", "opened"]

_log = logging.getLogger(__name__)

_FILE = "inbox.sql"
_OPENING = 10.0
"""How long a new session may take to say its number."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries to reach the store."""
_CROSSED_PAUSES = (0.1, 0.3, 0.9)

AsyncConnection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]
AsyncConnect: TypeAlias = Callable[[], Awaitable[AsyncConnection]]
"""Opens a new connection that commits each statement, such as by :func:`opened`. The keep closes it, and opens another
after a loss."""


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


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much goes into one commit, how much may wait for one, and how long each may take, in seconds.

    One delivery is always taken, however large it is. ``deadline`` is for a commit, and for opening a connection;
    ``announce`` between two announcements of what has come; ``look`` between two looks whether the store is still
    there, while nothing comes.
    """

    batch: int = 1_000
    batch_bytes: int = 8 << 20
    waiting: int = 10_000
    waiting_bytes: int = 64 << 20
    deadline: float = 10.0
    announce: float = 0.1
    look: float = 5.0


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit stored: so many deliveries, so many bytes of bodies, in so many seconds."""

    deliveries: int
    bytes: int
    seconds: float


class _Waiting(msgspec.Struct, frozen=True):
    incoming: Incoming
    told: asyncio.Future[bool]


class PostgresKeep:
    """The inbox as a keep, on one connection: a group commit.

    While one commit is on its way, the next one's deliveries gather; nobody waits for more of them to come. When the
    store is away, all who wait are told so, and whoever comes until it is back: nothing gathers meanwhile. Whether what
    was on its way then is stored is not known; it comes again, and is stored once if it has a dedupe.

    ``told`` is called after each commit. All methods belong to one event loop.
    """

    def __init__(
        self,
        connect: AsyncConnect,
        schema: str = "extract",
        *,
        bounds: Bounds = Bounds(),
        told: Callable[[Commit], None] | None = None,
    ) -> None:
        self._connect, self._schema, self._bounds, self._told = connect, schema, bounds, told
        # As bytes: psycopg would put them together at each commit.
        self._texts = {
            name: statement(_FILE, name, schema).as_bytes() for name in ("put", "confirm", "announce", "reach")
        }
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._loop: asyncio.AbstractEventLoop
        self._conn: AsyncConnection | None = None
        self._why = "it was not asked yet"
        self._unheard = ""
        self._closing = False
        self._resting: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._unannounced = self._unconfirmed = False
        self._announced = self._asked_at = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether the last attempt to reach the store has worked."""
        return self._conn is not None

    async def start(self, *, anyway: bool = False) -> None:
        """Reach the store, and begin to write. That it is away now is no error: it is tried again and again.

        Raises FixConfig, unless it is to begin ``anyway``: a person has to change something first. Raises what else the
        opening of the connection does.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._conn = await self._opened()
        except (TryAgain, FixConfig) as exc:
            if isinstance(exc, FixConfig) and not anyway:
                raise
            self._note(exc)
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Take no more, store what waits, announce it, and close the connection; within the time of a commit."""
        self._closing = True
        self._wake()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=self._bounds.deadline + 3 * CANCEL_SECONDS)
            self._writer.cancel()
            await asyncio.wait([self._writer])
        self._why = "the receiver stops"
        await self._lose()

    async def put(self, incoming: Incoming) -> bool:
        """Store a delivery; returns whether it is new, once that is on the disk.

        Raises StoreUnavailableError: it is not stored, or that is not known. Raises ExtractError: Postgres refuses it.
        """
        size = len(incoming.body)
        if self._conn is None or self._closing:
            raise self._away()
        bounds = self._bounds
        if self._queue and (len(self._queue) >= bounds.waiting or self._bytes + size > bounds.waiting_bytes):
            raise StoreUnavailableError("more webhooks come than Postgres stores: as many as may wait do so.")
        told: asyncio.Future[bool] = self._loop.create_future()
        self._queue.append(_Waiting(incoming, told))
        self._bytes += size
        if self._resting is not None:
            self._wake()
        return await told

    def _away(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"webhooks cannot be stored: {self._why}.", todo="Whoever sent them sends them again."
        )

    async def _write(self) -> None:
        """The one writer. Nothing but its cancellation ends it before it is told to close."""
        pause = _FIRST_PAUSE
        while not self._closing or (self._conn is not None and (self._queue or self._unannounced)):
            try:
                if self._conn is None:
                    await self._come_back()
                else:
                    await self._turn(self._conn)
                pause = _FIRST_PAUSE
            except Exception as exc:
                self._note(exc)
                await self._lose()
                await self._rest(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not all at once
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _come_back(self) -> None:
        self._conn = await self._opened()
        _log.warning("webhooks: the store is back")

    async def _turn(self, conn: AsyncConnection) -> None:
        """Do what is to be done now, or wait until something is."""
        bounds, now = self._bounds, time.monotonic()
        if self._queue:
            await self._store(conn, self._taken())
        if self._unannounced and (self._closing or time.monotonic() - self._announced >= bounds.announce):
            # After the commit, and not at each: in it, all commits that announce something would wait for each other.
            self._announced, self._unannounced = time.monotonic(), False
            await self._announce(conn)
        elif not self._queue and now - self._asked_at >= bounds.look:
            await self._look(conn)
        elif not self._queue:
            due = self._announced + bounds.announce if self._unannounced else self._asked_at + bounds.look
            await self._rest(max(0.0, due - time.monotonic()))

    async def _announce(self, conn: AsyncConnection) -> None:
        """Tell those who listen. Where Postgres refuses just that, webhooks are stored all the same: it is said once.

        Raises StoreUnavailableError: the connection is lost.
        """
        try:
            await self._ask(conn, "announce", {"channel": inbox.channel(self._schema)})
        except StoreUnavailableError:
            raise
        except ExtractError as exc:
            if conn.closed:
                raise
            if exc.what != self._unheard:
                _log.warning("webhooks: they are stored, but nobody is told that they have come: %s", exc.what)
            self._unheard = exc.what
        else:
            self._unheard = ""

    def _taken(self) -> list[_Waiting]:
        """What goes into one commit: what has arrived, as much of it as may."""
        queue, bounds = self._queue, self._bounds
        if len(queue) <= bounds.batch and self._bytes <= bounds.batch_bytes:
            taken, self._bytes = [*queue], 0
            queue.clear()
            return taken
        taken = []
        size = 0
        while queue and len(taken) < bounds.batch:
            size += len(queue[0].incoming.body)
            if taken and size > bounds.batch_bytes:
                break
            self._bytes -= len(queue[0].incoming.body)
            taken.append(queue.popleft())
        return taken

    async def _store(self, conn: AsyncConnection, batch: Sequence[_Waiting]) -> None:
        """Store deliveries by one statement, and tell those who wait for them."""
        incoming = [each.incoming for each in batch]
        begun = time.monotonic()
        try:
            stored = await self._ask(conn, "put", inbox.parameters(incoming))
            new = inbox.new(incoming, [row[0] for row in stored])
            if not all(new):
                await self._ask(conn, "confirm", {})
        except BaseException as exc:
            await self._refused(conn, batch, exc)
            return
        for each, is_new in zip(batch, new, strict=True):
            if not each.told.done():
                each.told.set_result(is_new)
        self._unannounced = True
        if self._told is not None:
            size = sum(len(each.body) for each in incoming)
            self._told(Commit(len(batch), size, time.monotonic() - begun))

    async def _refused(self, conn: AsyncConnection, batch: Sequence[_Waiting], exc: BaseException) -> None:
        """What was refused is looked for, half by half: the others are stored. Whatever else it is, all are told."""
        lost = isinstance(exc, TryAgain | FixConfig) or not isinstance(exc, Exception)
        if lost or len(batch) == 1:
            _fail(batch, exc if isinstance(exc, ExtractError) else self._unknown(exc))
        if lost:
            raise exc
        if len(batch) == 1:
            return
        half = len(batch) // 2
        try:
            await self._store(conn, batch[:half])
            await self._store(conn, batch[half:])
        except BaseException:
            _fail(batch, self._unknown(exc))
            raise

    def _unknown(self, exc: BaseException) -> ExtractError:
        if isinstance(exc, Exception):
            return ExtractError(f"a webhook cannot be stored ({type(exc).__name__}).")
        return StoreUnavailableError("the receiver stops.")

    async def _look(self, conn: AsyncConnection) -> None:
        """Raises StoreUnavailableError: this server only reads, or is away. SchemaMissingError: there is no inbox."""
        if await self._ask(conn, "reach", {}) != [(True,)]:
            with named_errors():
                raise psycopg.errors.ReadOnlySqlTransaction

    async def _ask(self, conn: AsyncConnection, name: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run a statement, which is a transaction of its own, within the deadline.

        Raises StoreUnavailableError for what seems to have worked, too, where the wait for a standby was given up: the
        server then tells no error, but the row is on one disk only, and is lost in a failover.
        """
        self._unconfirmed = False
        with Deadline(conn, self._bounds.deadline) as deadline, named_errors():
            found = await self._run(conn, name, asked)
        if deadline.is_over or self._unconfirmed:
            raise StoreUnavailableError("Postgres does not answer in time, or a synchronous standby does not.")
        self._asked_at = time.monotonic()
        return found

    async def _run(self, conn: AsyncConnection, name: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        text = self._texts[name]
        for pause in _CROSSED_PAUSES:
            with suppress(*CROSSED):
                return await (await conn.execute(text, asked, binary=True)).fetchall()
            # Another receiver stores the same ones in another order, and Postgres ended this one. Nothing was written;
            # at once it could be in the other's way again.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not both at once
        return await (await conn.execute(text, asked, binary=True)).fetchall()

    async def _opened(self) -> AsyncConnection:
        """A connection on which deliveries can be stored."""
        try:
            async with asyncio.timeout(self._bounds.deadline):
                with named_errors():
                    conn = await self._connect()
        except TimeoutError:
            raise StoreUnavailableError("Postgres does not answer.") from None
        try:
            await self._look(conn)
        except BaseException:
            await conn.close()
            raise
        conn.add_notice_handler(self._noticed)
        return conn

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        self._unconfirmed = self._unconfirmed or inbox.ended_waiting(notice)

    async def _lose(self) -> None:
        """Let the connection go, and tell all who wait."""
        conn, self._conn = self._conn, None
        left, self._bytes = [*self._queue], 0
        self._queue.clear()
        _fail(left, self._away())
        if conn is not None:
            await conn.close()

    def _note(self, exc: Exception) -> None:
        """Say once that the store is away, and why: in our own words, which hold no secret."""
        why = exc.what.rstrip(".") if isinstance(exc, ExtractError) else type(exc).__name__
        if self._conn is not None or why != self._why:
            _log.warning("webhooks: the store is away: %s", why)
        self._why = why

    async def _rest(self, seconds: float) -> None:
        """Wait until something comes, but no longer than so many seconds."""
        loop = asyncio.get_running_loop()
        self._resting = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._resting
        finally:
            timer.cancel()
            self._resting = None

    def _wake(self) -> None:
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(None)


def _fail(batch: Sequence[_Waiting], exc: ExtractError) -> None:
    for each in batch:
        if not each.told.done():
            # A copy for each: whoever raises it adds where.
            each.told.set_exception(exc.at())
