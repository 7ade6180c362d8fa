"""Connections to the store that are shared by all who listen on them: one for each store and event loop, however many
triggers there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import psycopg
    from psycopg import Notify, sql

    _Connection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]

__all__ = ["Ear", "listening"]

# Nothing here loads the driver before it is needed: a DAG that names a trigger is parsed without one.

_ANSWER = 30.0
"""Seconds after which a server that does not answer counts as lost."""
_END = 5.0
"""Seconds within which whatever waits for a connection must notice that it was cut."""

_Job: TypeAlias = "Callable[[_Connection], Awaitable[Any]]"


class Ear:
    """One who listens to a channel, and asks questions, on a line that others use too."""

    def __init__(self, line: _Line, channel: str) -> None:
        self.channel = channel
        self._line = line
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something was announced on the channel, or the line is lost."""
        self._woken.set()

    async def begin(self) -> None:
        """Begin to listen, as far as one may, and can: behind a pooler the session would be somebody else's a moment
        later. Raises what opening the connection does."""
        await self._line.listen(self.channel)

    async def ask(self, question: sql.Composed, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The row that answers a question. Raises psycopg's own errors, and TimeoutError."""

        async def answered(conn: _Connection) -> tuple[Any, ...] | None:
            return await (await conn.execute(question, values)).fetchone()

        # What is announced before the question is asked, its answer tells.
        self._woken.clear()
        found: tuple[Any, ...] | None = await self._line.do(answered)
        return found

    async def heard(self, seconds: float) -> None:
        """Return when something is announced that the last answer may not have told, or when the time is over. Raises
        what has ended the connection, if it is lost."""
        with suppress(TimeoutError):
            # Not by `wait_for`: before Python 3.12 a cancellation is lost in it if both come together.
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._line.check()


@contextmanager
def listening(store_conn_id: str, channel: str) -> Iterator[Ear]:
    """Somebody's ear at a store's line, for as long as the block lasts. Who comes first opens the connection, who goes
    last closes it; a lost one is opened anew by whoever comes next."""
    loop = asyncio.get_running_loop()
    lines = _LINES.setdefault(loop, {})
    line = lines.get(store_conn_id)
    if line is None:
        line = lines[store_conn_id] = _Line(store_conn_id)
    ear = Ear(line, channel)
    line.ears.add(ear)
    try:
        yield ear
    finally:
        # Nothing is waited for: who is cancelled may be so again.
        line.ears.discard(ear)
        if not line.ears:
            line.close()


_LINES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Line]] = WeakKeyDictionary()
_working: set[asyncio.Task[None]] = set()
"""An event loop alone does not keep its tasks."""
_abandoned: set[asyncio.Future[Any]] = set()


class _Line:
    """A connection, and the one task that uses it: it does what is asked, one after the other, and else listens."""

    def __init__(self, store_conn_id: str) -> None:
        self.ears: set[Ear] = set()
        self._store_conn_id = store_conn_id
        self._channels: set[str] = set()
        self._direct = self._closing = False
        self._lost: BaseException | None = None
        self._jobs: deque[tuple[_Job, asyncio.Future[Any]]] = deque()
        self._called = asyncio.Event()
        self._task = asyncio.create_task(self._work(), name=f"line to {store_conn_id}")
        _working.add(self._task)
        self._task.add_done_callback(_working.discard)

    def check(self) -> None:
        """Raise what has ended the connection, if it is lost."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """End the work, and the connection with it."""
        self._forget()
        # The driver waits by `wait_for`, in which a cancellation may be lost, before Python 3.12.
        self._closing = True
        self._called.set()
        self._task.cancel()

    async def listen(self, channel: str) -> None:
        """Hear what is announced on a channel. That the server refuses that is no error: then the looks must do."""
        import psycopg
        from psycopg import sql

        async def begin(conn: _Connection) -> None:
            if self._direct and channel not in self._channels:
                await conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                self._channels.add(channel)

        with suppress(psycopg.Error):
            await self.do(begin)
        self.check()

    async def do(self, job: _Job) -> Any:
        """Have something done on the connection; returns its result. Raises what it raises, and what ends the
        connection."""
        self.check()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, done))
        self._called.set()
        return await done

    async def _work(self) -> None:
        from airflow_extract_provider.hooks.store_async import AsyncStoreHook

        lost: BaseException = ConnectionError("the line was closed")
        try:
            conn = await AsyncStoreHook(self._store_conn_id).connect_async()
            try:
                self._direct = await _is_direct(conn)
                while not self._closing:
                    self._called.clear()
                    await self._do_jobs(conn)
                    await self._rest(conn)
            finally:
                await conn.close()
        except asyncio.CancelledError:
            # Not kept in the task: its traceback holds a connection that is half open, which only its end closes.
            if not self._closing:
                raise
        except Exception as exc:
            # Whatever it is, also a connection that Airflow does not find now: those who listen tell, and come back.
            lost = exc.with_traceback(None)
        finally:
            self._lose(lost)

    async def _do_jobs(self, conn: _Connection) -> None:
        import psycopg

        while self._jobs:
            job, done = self._jobs[0]
            try:
                found = await _answered(conn, job)
            except psycopg.Error as exc:
                if conn.closed:
                    raise
                if not done.done():
                    done.set_exception(exc)
            else:
                if not done.done():  # who has asked may have been cancelled
                    done.set_result(found)
            self._jobs.popleft()

    async def _rest(self, conn: _Connection) -> None:
        """Listen until there is something to do. Nothing that was announced is lost by that: what has come is told at
        once, what has not is still to be read."""
        if not self._channels:
            await self._called.wait()
            return
        called = asyncio.ensure_future(self._called.wait())
        heard = asyncio.ensure_future(self._hear(conn))
        try:
            await asyncio.wait({called, heard}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            called.cancel()
            while not heard.done():  # once is not enough, as above
                heard.cancel()
                await asyncio.wait({heard}, timeout=0.1)
        if not heard.cancelled():
            heard.result()

    async def _hear(self, conn: _Connection) -> None:
        found: AsyncIterator[Notify] = conn.notifies()
        async with aclosing(found):  # type: ignore[type-var]  # a generator
            async for each in found:
                for ear in [ear for ear in self.ears if ear.channel == each.channel]:
                    ear.wake()

    def _lose(self, exc: BaseException) -> None:
        self._lost = exc
        self._forget()
        for _, done in self._jobs:
            if not done.done():
                done.set_exception(exc)
        self._jobs.clear()
        for ear in self.ears:
            ear.wake()

    def _forget(self) -> None:
        lines = _LINES.get(self._task.get_loop(), {})
        if lines.get(self._store_conn_id) is self:
            del lines[self._store_conn_id]


async def _answered(conn: _Connection, job: _Job) -> Any:
    """What a job finds. Raises what it raises. Raises TimeoutError: the server does not answer, and the connection is
    cut; so it is if this is cancelled.

    The job itself is never cancelled: psycopg would ask the server to end the statement, and wait for it to say that it
    has, some releases without bound. What waits for a socket that is shut down here reads its end at once.
    """
    working = asyncio.ensure_future(job(conn))
    try:
        await asyncio.wait({working}, timeout=_ANSWER)
        if working.done():
            return working.result()
    finally:
        if not working.done():
            await _cut(conn, working)
    raise TimeoutError("the server does not answer")


async def _cut(conn: _Connection, working: asyncio.Future[Any]) -> None:
    """Shut a connection down below the driver, so that the job that waits for it ends; nothing more is asked of it."""
    from airflow_extract_provider.extract.store.connection import cut

    _abandoned.add(working)
    working.add_done_callback(_forsake)
    cut(conn)
    await asyncio.wait({working}, timeout=_END)


def _forsake(working: asyncio.Future[Any]) -> None:
    _abandoned.discard(working)
    if not working.cancelled():
        working.exception()  # nobody else asks for it


async def _is_direct(conn: _Connection) -> bool:
    """Whether the session is this connection's own: a pooler gives each transaction another one."""
    from airflow_extract_provider.extract.store.connection import BACKEND

    async def asked(conn: _Connection) -> tuple[Any, ...] | None:
        return await (await conn.execute(BACKEND)).fetchone()

    session = await _answered(conn, asked)
    return bool(session == (conn.info.backend_pid,))
