"""The line of all triggers over a network that swallows: nothing is refused, nothing is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.triggers import line
from tests.hooks.test_store import server
from tests.triggers.test_inbox import NEVER, SOON, running


class Swallowing:
    """A proxy of TCP. What is connected when it freezes stays so, and hears nothing more."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self._frozen: set[asyncio.Task[None]] = set()
        self._live: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serve for as long as the block lasts; gives the port."""
        served = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        try:
            yield served.sockets[0].getsockname()[1]
        finally:
            served.close()
            for each in self._live:
                each.cancel()
            await asyncio.gather(*self._live, return_exceptions=True)
            await asyncio.sleep(0.1)  # transports close in the next turns of the loop

    def freeze(self) -> None:
        """Swallow whatever comes by the connections there are now."""
        self._frozen |= self._live

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(*self._to)
        self._live |= {asyncio.create_task(self._pump(reader, here)), asyncio.create_task(self._pump(there, writer))}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while found := await reader.read(65536):
                if asyncio.current_task() not in self._frozen:
                    writer.write(found)
        except ConnectionError:
            pass
        finally:
            writer.close()


def test_a_server_that_falls_silent(
    dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The line is cut once no answer has come in time, whatever the driver would wait for; the log tells it, and a new
    one finds what came meanwhile. One who is cancelled while nothing is answered ends as well."""
    monkeypatch.setattr(line, "_ANSWER", 1.0)
    migrate(connect, [])
    parts = conninfo_to_dict(dsn)

    async def play(conn: Connection) -> None:
        proxy = Swallowing(str(parts["host"]), int(str(parts["port"])))
        put = [Incoming("shop", "main", b"{}")]
        async with proxy.serving() as port:
            with server(make_conninfo(dsn, port=port)).serving():
                async with running(every=0.5, again=NEVER) as next_event:
                    inbox.put(conn, "extract", put)
                    await next_event()
                    proxy.freeze()
                    inbox.put(conn, "extract", put)
                    began = time.monotonic()
                    await next_event()
                    assert time.monotonic() - began < SOON
                    proxy.freeze()
                    await asyncio.sleep(0.8)
                    began = time.monotonic()
                assert time.monotonic() - began < SOON

    with connect() as conn:
        conn.autocommit = True
        asyncio.run(play(conn))
    assert "shop webhooks: the inbox cannot be watched" in caplog.text


def test_who_waits_until_an_instant_waits_no_longer(dsn: str, connect: Connect) -> None:
    """Though the server has fallen silent, and the line is being repaired."""
    migrate(connect, [])
    parts = conninfo_to_dict(dsn)

    async def play() -> None:
        proxy = Swallowing(str(parts["host"]), int(str(parts["port"])))
        async with proxy.serving() as port:
            with server(make_conninfo(dsn, port=port)).serving():
                until = datetime.now(timezone.utc) + timedelta(seconds=3)
                async with running(every=0.2, until=until.isoformat()) as next_event:
                    await asyncio.sleep(1)
                    proxy.freeze()
                    event = await next_event()
                    assert event.payload["waiting"] is False
                    assert datetime.now(timezone.utc) - until < timedelta(seconds=5)

    asyncio.run(play())
