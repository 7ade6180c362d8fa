"""Keeps deliveries in the inbox: whatever has arrived goes in by one statement, and is told after its commit."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from airflow_extract_provider.extract.errors import (
    ExtractError,
    FixConfig,
    InboxFilteredError,
    StoreUnavailableError,
    TryAgain,
)
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.webhooks.deadline import CANCEL_SECONDS
from airflow_extract_provider.extract.webhooks.inbox_writer import AsyncConnect, CanceledError, InboxWriter, LateError

__all__ = ["Bounds", "Commit", "PostgresKeep"]

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries to reach the store."""
_MOST_TRIES = 64
"""Statements that may fail for one batch in which something is looked for that Postgres refuses: one bad delivery
among a thousand costs ten."""
_FEW = 16
"""Deliveries of which each may be one that is refused."""


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
        self._most, self._tries = bounds.batch, 0
        self._takes: bool | None = None
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._loop: asyncio.AbstractEventLoop
        self._inbox: InboxWriter | None = None
        self._why = "it was not asked yet"
        self._unheard = self._unstored = ""
        self._closing = False
        self._resting: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._unannounced, self._announced = False, float("-inf")

    @property
    def ready(self) -> bool:
        """Whether the last attempt to reach the store has worked."""
        return self._inbox is not None

    async def start(self, *, anyway: bool = False) -> None:
        """Reach the store, and begin to write. That it is away now is no error: it is tried again and again.

        Raises FixConfig, or what Postgres refuses, unless it is to begin ``anyway``: a person has to change something
        first.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._inbox = await self._opened()
        except ExtractError as exc:
            if not (anyway or isinstance(exc, TryAgain)):
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
        if self._inbox is None or self._closing:
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
        while not self._closing or (self._inbox is not None and (self._queue or self._unannounced)):
            try:
                if self._inbox is None:
                    await self._come_back()
                else:
                    await self._turn(self._inbox)
                pause = _FIRST_PAUSE
            except Exception as exc:
                self._note(exc)
                await self._lose()
                await self._rest(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not all at once
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _come_back(self) -> None:
        self._inbox = await self._opened()
        _log.warning("webhooks: the store is back")

    async def _anew(self, inbox: InboxWriter) -> InboxWriter:
        """Another connection, in place of one that was ended while nobody asked anything: what waits need not fail."""
        await inbox.close()
        self._inbox = await self._opened()
        return self._inbox

    async def _opened(self) -> InboxWriter:
        return await InboxWriter.open(self._connect, self._schema, self._bounds.deadline)

    async def _turn(self, inbox: InboxWriter) -> None:
        """Do what is to be done now, or wait until something is."""
        bounds, now = self._bounds, time.monotonic()
        if self._queue:
            if inbox.cut_off:
                inbox = await self._anew(inbox)
            await self._store_all(inbox, self._taken())
        if self._unannounced and (self._closing or time.monotonic() - self._announced >= bounds.announce):
            # After the commit, and not at each: in it, all commits that announce something would wait for each other.
            self._announced, self._unannounced = time.monotonic(), False
            await self._announce(inbox)
        elif now - inbox.looked_at >= bounds.look:
            if inbox.cut_off:
                await self._anew(inbox)
            else:
                await inbox.look()
        elif not self._queue:
            due = self._announced + bounds.announce if self._unannounced else inbox.looked_at + bounds.look
            await self._rest(max(0.0, due - time.monotonic()))

    async def _announce(self, inbox: InboxWriter) -> None:
        """Tell those who listen. Where Postgres refuses just that, webhooks are stored all the same: it is said once.

        Raises StoreUnavailableError: the connection is lost.
        """
        try:
            await inbox.announce()
        except StoreUnavailableError:
            raise
        except ExtractError as exc:
            if inbox.lost:
                raise
            if exc.what != self._unheard:
                _log.warning("webhooks: they are stored, but nobody is told that they have come: %s", exc.what)
            self._unheard = exc.what
        else:
            self._unheard = ""

    def _taken(self) -> list[_Waiting]:
        """What goes into one commit: what has arrived, as much of it as may."""
        queue, bounds = self._queue, self._bounds
        if len(queue) <= self._most and self._bytes <= bounds.batch_bytes:
            taken, self._bytes = [*queue], 0
            queue.clear()
            return taken
        taken = []
        size = 0
        while queue and len(taken) < self._most:
            size += len(queue[0].incoming.body)
            if taken and size > bounds.batch_bytes:
                break
            self._bytes -= len(queue[0].incoming.body)
            taken.append(queue.popleft())
        return taken

    async def _store_all(self, inbox: InboxWriter, batch: Sequence[_Waiting]) -> None:
        """Store what has come. After what took too long less is tried at once, and from there twice as much each time:
        the same again would take too long again."""
        self._tries, self._takes, most = _MOST_TRIES, None, self._most
        try:
            await self._store(inbox, batch)
        except LateError:
            self._most = min(self._most, max(1, len(batch) // 2))
            raise
        except ExtractError as exc:
            if not self._is_spent:
                raise
            # So many of them are refused that it was not looked for all: of a few, they will be found.
            self._complain(exc)
            self._most = _FEW
            return
        if self._most >= most:
            self._most = min(self._bounds.batch, 2 * most)

    async def _store(self, inbox: InboxWriter, batch: Sequence[_Waiting]) -> None:
        """Store deliveries by one statement, and tell those who wait for them."""
        begun = time.monotonic()
        try:
            new = await inbox.put([each.incoming for each in batch])
        except BaseException as exc:
            await self._refused(inbox, batch, exc)
            return
        kept, errors = batch, dict[type[ExtractError], ExtractError]()
        for each, told in zip(batch, new, strict=True):
            if isinstance(told, ExtractError):
                _fail([each], told)
                errors[type(told)] = told
            elif not each.told.done():
                each.told.set_result(told)
        if errors:
            kept = [each for each, told in zip(batch, new, strict=True) if not isinstance(told, ExtractError)]
        self._note_kept(kept, begun)
        for error in errors.values():
            if not isinstance(error, InboxFilteredError):
                raise error  # the connection is lost, or nobody knows
            self._complain(error)

    def _note_kept(self, kept: Sequence[_Waiting], begun: float) -> None:
        if kept:
            self._unannounced = True
            if self._told is not None:
                size = sum(len(each.incoming.body) for each in kept)
                self._told(Commit(len(kept), size, time.monotonic() - begun))

    async def _refused(self, inbox: InboxWriter, batch: Sequence[_Waiting], exc: BaseException) -> None:
        """What was refused is looked for, half by half: the others are stored. Where nothing is, all are told."""
        try:
            lost = await self._is_lost(inbox, exc)
        except BaseException as worse:  # as that we are cancelled
            _fail(batch, _named(worse))
            raise
        if lost or len(batch) == 1:
            _fail(batch, _named(exc))
        if lost:
            raise exc
        if len(batch) == 1:
            self._complain(exc)
            return
        half = len(batch) // 2
        if isinstance(exc, CanceledError):
            self._most = half
        try:
            await self._store(inbox, batch[:half])
            await self._store(inbox, batch[half:])
        except BaseException as worse:
            _fail(batch, _named(worse))
            raise

    async def _is_lost(self, inbox: InboxWriter, exc: BaseException) -> bool:
        """Whether nothing can be stored now, whatever it is. A right may be missing for these rows alone, by a policy,
        or these many rows take longer than a timeout of the server's: then other ones can be."""
        if not isinstance(exc, Exception) or isinstance(exc, LateError) or inbox.lost:
            return True
        named = isinstance(exc, TryAgain | FixConfig)
        if named or self._takes is None:
            # Of the server's own errors, which are always the rows', it is asked once: a trigger may refuse all.
            self._takes = await inbox.takes()
        self._tries -= named
        return not self._takes or self._tries <= 0

    @property
    def _is_spent(self) -> bool:
        """Whether deliveries can be stored, but too many of those that came together cannot."""
        return self._tries <= 0 and bool(self._takes)

    def _complain(self, exc: BaseException) -> None:
        """Say of what is not stored while others are, why: once for each reason. What Postgres refuses by name is told
        by who receives it."""
        if isinstance(exc, TryAgain | FixConfig) and exc.what != self._unstored:
            self._unstored = exc.what
            _log.warning("webhooks: some are not stored: %s %s", exc.what, exc.todo)

    async def _lose(self) -> None:
        """Let the connection go, and tell all who wait."""
        inbox, self._inbox = self._inbox, None
        left, self._bytes = [*self._queue], 0
        self._queue.clear()
        _fail(left, self._away())
        if inbox is not None:
            await inbox.close()

    def _note(self, exc: Exception) -> None:
        """Say once that the store is away, and why: in our own words, which hold no secret."""
        why = exc.what.rstrip(".") if isinstance(exc, ExtractError) else type(exc).__name__
        if self._inbox is not None or why != self._why:
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


def _named(exc: BaseException) -> ExtractError:
    if isinstance(exc, ExtractError):
        return exc
    if isinstance(exc, Exception):
        return ExtractError(f"a webhook cannot be stored ({type(exc).__name__}).")
    return StoreUnavailableError("the receiver stops.")


def _fail(batch: Sequence[_Waiting], exc: ExtractError) -> None:
    for each in batch:
        if not each.told.done():
            # A copy for each: whoever raises it adds where.
            each.told.set_exception(exc.at())
