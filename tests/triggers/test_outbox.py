"""The trigger on a real Postgres: it fires when there is something to do, hears of it at once, and outlives losses."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetWatcher
from airflow.serialization.serialized_objects import DagSerialization
from airflow.triggers.base import TriggerEvent

from airflow_extract_provider.extract.relay import EachEvent, consume
from airflow_extract_provider.extract.store.connection import Connect, Connection, opened
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.outbox import announce, append
from airflow_extract_provider.triggers import outbox as trigger
from airflow_extract_provider.triggers.outbox import OutboxTrigger
from tests.hooks.test_store import server
from tests.store.eventful import an_event, fill

SOON = 5.0
"""Seconds within which everything here must happen; what takes longer has waited for the next look."""

NEVER = 3600.0
_LOOKED = b"""
select count(*) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and query like '%with consumer as%' and state = 'idle'
"""

_OTHERS = b"select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


@dataclass
class Shop:
    """A database with the books, a connection to it, and an Airflow that knows it."""

    conn: Connection
    connect: Connect

    def store(self, *keys: str, announced: bool = True) -> None:
        """Store events, as apply does."""
        fill(self.conn, [an_event(key) for key in keys], place=False)
        if announced:
            announce(self.conn, "extract")

    def consume(self, handle: Callable[[Any], object] = str, **more: Any) -> None:
        """Run the consumer once."""
        consume("mail", EachEvent(handle), postgres=self.connect, **more)

    def cut(self) -> None:
        """End all other connections to the database."""
        self.conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )

    async def listened_to(self) -> None:
        """Return once somebody listens."""
        while self.conn.execute(_LOOKED).fetchone() == (0,):
            await asyncio.sleep(0.02)


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test."""
    migrate(connect, [])
    with connect() as conn, server(dsn).serving():
        conn.autocommit = True
        yield Shop(conn, connect)


@asynccontextmanager
async def running(**arguments: Any) -> AsyncIterator[Callable[[], Awaitable[TriggerEvent]]]:
    """A trigger that looks seldom, unless told otherwise; gives a function that waits for its next event."""
    watching = OutboxTrigger(consumer="mail", **{"every": NEVER, "again": NEVER, **arguments})
    fired: asyncio.Queue[TriggerEvent] = asyncio.Queue()

    async def run() -> None:
        async for event in watching.run():
            fired.put_nowait(event)

    task = asyncio.create_task(run())
    try:
        yield lambda: asyncio.wait_for(fired.get(), SOON)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def quiet(next_event: Callable[[], Awaitable[TriggerEvent]], seconds: float = 0.5) -> None:
    """It does not fire for a while."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(next_event(), seconds)


def test_it_can_be_made_again_from_what_is_stored() -> None:
    """All arguments, as JSON, without a secret."""
    given = {
        "consumer": "mail", "source": "crm", "object": "contacts", "types": ["a", "b"], "store_conn_id": "there",
        "schema": "books", "every": 5.0, "again": 7.0, "until": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    name, stored = OutboxTrigger(**given).serialize()  # type: ignore[arg-type]  # one mapping for all
    module, _, kind = name.rpartition(".")
    again = getattr(importlib.import_module(module), kind)(**json.loads(json.dumps(stored)))
    assert stored == given
    assert again.serialize() == (name, stored)


def test_an_asset_can_be_watched_by_it() -> None:
    """A DAG that is scheduled on such an asset can be stored."""
    inbox = Asset("mail", watchers=[AssetWatcher(name="mail", trigger=OutboxTrigger(consumer="mail"))])
    with DAG("mails", schedule=[inbox]) as dag:
        pass
    assert "OutboxTrigger" in json.dumps(DagSerialization.serialize_dag(dag))


def test_behind_a_pooler(request: pytest.FixtureRequest, dsn: str, connect: Connect) -> None:
    """It does not listen, on a session that is somebody else's a moment later; it looks, and misses nothing."""
    pooled: str = request.getfixturevalue("pooler").dsn(dsn)

    async def play() -> None:
        async with running(every=0.3) as next_event:
            await quiet(next_event)
            scene.store("a", announced=False)
            assert (await next_event()).payload["waiting"]
        # All sessions of the pool, one after the other: none was left listening.
        with opened(pooled, autocommit=True) as through:
            heard = [through.execute("select count(*) from pg_listening_channels()").fetchone() for _ in range(20)]
        assert heard == [(0,)] * 20

    with connect() as conn, server(pooled).serving():
        conn.autocommit = True
        scene = Shop(conn, connect)
        asyncio.run(play())


def test_what_waits_already_is_told_at_once(shop: Shop) -> None:
    """Nobody announces it any more."""

    async def play() -> None:
        async with running() as next_event:
            assert (await next_event()).payload == {"consumer": "mail", "waiting": True, "until": None}
            await quiet(next_event)

    shop.store("a", announced=False)
    asyncio.run(play())


def test_it_hears_of_an_event(shop: Shop) -> None:
    """Long before the next look."""

    async def play() -> None:
        async with running() as next_event:
            await shop.listened_to()
            await quiet(next_event)
            shop.store("a")
            assert (await next_event()).payload["waiting"]

    asyncio.run(play())


def test_it_looks_without_being_told(shop: Shop) -> None:
    """What was not announced, or not heard."""

    async def play() -> None:
        async with running(every=0.2) as next_event:
            await shop.listened_to()
            shop.store("a", announced=False)
            await next_event()

    asyncio.run(play())


def test_it_fires_again_for_what_is_new(shop: Shop) -> None:
    """Once for what waits, however long; again for another event, after the pause; after ``again`` for the same."""

    async def play() -> None:
        shop.store("a")
        async with running(every=0.2) as next_event:
            await next_event()
            await quiet(next_event, 1)
            shop.store("b")
            await next_event()
            shop.consume()
            await quiet(next_event, 1)
        shop.store("c")
        async with running(every=0.2, again=0.5) as next_event:
            began = time.monotonic()
            await next_event()
            await next_event()
            assert time.monotonic() - began >= 0.5

    asyncio.run(play())


def test_it_fires_for_what_was_committed_late(shop: Shop) -> None:
    """An event whose number is lower than one that was told: its transaction took longer."""

    async def play() -> None:
        async with running(every=0.2) as next_event:
            await shop.listened_to()
            with shop.connect() as slow:
                append(slow, "extract", [an_event("slow")])
                shop.store("quick")
                await next_event()
                await asyncio.to_thread(shop.consume)
                slow.commit()
            announce(shop.conn, "extract")
            await next_event()

    asyncio.run(play())


def test_what_failed_is_waited_for(shop: Shop) -> None:
    """Until it is due again, and not before."""

    def fail(event: object) -> None:
        raise ValueError

    async def play() -> None:
        async with running(every=0.2) as next_event:
            await quiet(next_event)
            shop.conn.execute("update extract.parked set due_at = now()")
            await next_event()

    shop.store("a")
    shop.consume(fail)
    asyncio.run(play())


def test_only_what_is_wanted(shop: Shop) -> None:
    """Other events are no reason to fire."""

    async def play() -> None:
        async with running(every=0.2, types=["gone"], object="things") as next_event:
            shop.store("a")
            await quiet(next_event)
            fill(shop.conn, [an_event("b", type="gone")])
            await next_event()

    asyncio.run(play())


def test_it_ends_at_its_time(shop: Shop) -> None:
    """With an event that says so, also where there is no server."""

    async def play(**arguments: Any) -> None:
        until = (datetime.now(timezone.utc) + timedelta(seconds=0.5)).isoformat()
        async with running(until=until, **arguments) as next_event:
            assert (await next_event()).payload == {"consumer": "mail", "waiting": False, "until": until}

    asyncio.run(play())
    asyncio.run(play(store_conn_id="missing"))


def test_a_lost_connection_is_opened_again(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Events that came meanwhile are found; the log tells of the loss, without where the server is."""

    async def play() -> None:
        async with running(every=NEVER) as next_event:
            await shop.listened_to()
            shop.cut()
            shop.store("a", announced=False)
            await next_event()

    asyncio.run(play())
    assert "cannot be watched" in caplog.text


def test_cancelled_at_any_time(shop: Shop) -> None:
    """No connection is left open: while it connects, begins to listen, or listens."""

    async def one(seconds: float) -> None:
        async with running():
            await asyncio.sleep(seconds)

    async def play() -> None:
        for number in range(60):
            await asyncio.gather(*(one(number * 0.001 + more * 0.0001) for more in range(5)))
        began = time.monotonic()
        while (found := shop.conn.execute(_OTHERS).fetchone()) != (0,):
            assert time.monotonic() - began < SOON, found
            await asyncio.sleep(0.05)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(play())
    finally:
        gc.enable()


def test_tables_that_are_made_later(shop: Shop) -> None:
    """It goes on trying: whatever is wrong may be mended."""

    async def play() -> None:
        async with running(schema="books") as next_event:
            await quiet(next_event)
            migrate(shop.connect, [], "books")
            append(shop.conn, "books", [an_event("a")])
            await next_event()

    asyncio.run(play())


def test_where_nobody_may_listen(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks are enough."""
    monkeypatch.setattr(trigger, "channel", lambda schema: "")  # an error of Postgres

    async def play() -> None:
        async with running(every=0.2) as next_event:
            await shop.listened_to()
            shop.store("a")
            await next_event()

    asyncio.run(play())
