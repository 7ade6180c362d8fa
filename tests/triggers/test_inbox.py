"""The trigger of the inbox on a real Postgres: it fires for the webhooks of its source, and shares its connection."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.serialization.serialized_objects import DagSerialization
from airflow.triggers.base import TriggerEvent

from airflow_extract_provider.assets import asset_of, inbox_of
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.triggers.inbox import InboxTrigger
from airflow_extract_provider.triggers.outbox import OutboxTrigger
from tests.hooks.test_store import server
from tests.store.eventful import an_event, fill
from tests.ways import direct_only

SOON = 5.0
"""Seconds within which everything here must happen; what takes longer has waited for the next look."""
NEVER = 3600.0

Next = Callable[[], Awaitable[TriggerEvent]]


@dataclass
class Shop:
    """A database with the books, a connection to it, and an Airflow that knows it."""

    conn: Connection
    connect: Connect

    def put(self, source: str = "shop", *, announced: bool = True) -> None:
        """A webhook comes in."""
        inbox.put(self.conn, "extract", [Incoming(source, "main", b"{}")])
        if announced:
            inbox.announce(self.conn, "extract")

    def apply(self) -> None:
        """What waits is taken out."""
        self.conn.execute("update extract.inbox set done_at = now() where done_at is null")

    def connected(self) -> int:
        """How many others are connected to the database."""
        row = self.conn.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def cut(self) -> None:
        """End all other connections to the database."""
        self.conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )

    async def until_connected(self, count: int) -> None:
        """Return once so many others are connected."""
        began = time.monotonic()
        while self.connected() != count:
            assert time.monotonic() - began < SOON, self.connected()
            await asyncio.sleep(0.02)


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test."""
    migrate(connect, [])
    with connect() as conn, server(dsn).serving():
        conn.autocommit = True
        yield Shop(conn, connect)


@asynccontextmanager
async def running(**arguments: Any) -> AsyncIterator[Next]:
    """A trigger that looks seldom, unless told otherwise; gives a function that waits for its next event."""
    given = {"source": "shop", "every": NEVER, "again": NEVER, "pause": 0.1, **arguments}
    fired: asyncio.Queue[TriggerEvent] = asyncio.Queue()
    task = asyncio.create_task(events(InboxTrigger(**given), fired))
    try:
        yield lambda: asyncio.wait_for(fired.get(), SOON)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def events(trigger: InboxTrigger | OutboxTrigger, fired: asyncio.Queue[TriggerEvent]) -> None:
    """Hand on what a trigger fires."""
    async for event in trigger.run():
        fired.put_nowait(event)


async def quiet(next_event: Next, seconds: float = 0.8) -> None:
    """It does not fire for a while."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(next_event(), seconds)


def test_it_can_be_made_again_from_what_is_stored() -> None:
    """All arguments, as JSON, without a secret."""
    given = {
        "source": "crm", "endpoints": ["main"], "store_conn_id": "there", "schema": "books", "every": 5.0, "pause": 2.0,
        "again": 7.0, "until": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    name, stored = InboxTrigger(**given).serialize()  # type: ignore[arg-type]  # one mapping for all
    module, _, kind = name.rpartition(".")
    again = getattr(importlib.import_module(module), kind)(**json.loads(json.dumps(stored)))
    assert stored == given
    assert again.serialize() == (name, stored)


def test_the_asset_of_an_inbox_is_watched() -> None:
    """It can be stored with its DAG, and is none that an object may have; a misspelt one is refused."""
    with DAG("mine", schedule=[inbox_of("crm", "there", pause=3)]) as dag:
        pass
    stored = json.dumps(DagSerialization.serialize_dag(dag))
    assert "triggers.inbox.InboxTrigger" in stored
    assert '"there"' in stored
    assert inbox_of("crm").uri == "extract://crm/webhooks/inbox" == Asset("extract://crm/webhooks/inbox").uri
    assert asset_of("crm", "webhooks").uri != inbox_of("crm").uri
    for wrong in ("extract://crm/webhooks/inbx", "extract://crm/things/inbox", "extract://CRM/webhooks/inbox"):
        with pytest.raises(ValueError, match="extract://source/object"):
            Asset(wrong)


def test_a_dag_that_names_it_loads_no_driver() -> None:
    """The asset of an inbox is made whenever a DAG file is parsed."""
    code = (
        "import sys; import airflow.triggers.base; before = 'psycopg' in sys.modules;"
        "from airflow_extract_provider.assets import inbox_of; inbox_of('crm'); print(before, 'psycopg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]


def test_it_hears_of_a_webhook(shop: Shop) -> None:
    """Of its own source, long before the next look; what waits already is told at once."""

    async def play() -> None:
        async with running() as next_event:
            await shop.until_connected(1)
            shop.put("another")
            await quiet(next_event)
            shop.put()
            assert (await next_event()).payload == {"source": "shop", "waiting": True, "until": None}
        async with running() as next_event:
            await next_event()
            await quiet(next_event)

    asyncio.run(play())


def test_it_looks_without_being_told(shop: Shop) -> None:
    """What was not announced, or not heard."""

    async def play() -> None:
        async with running(every=0.3) as next_event:
            await quiet(next_event)
            shop.put(announced=False)
            await next_event()

    asyncio.run(play())


def test_it_fires_again_for_what_is_new(shop: Shop) -> None:
    """Once for what waits, however long; for another one after the pause; after ``again`` for the same."""

    async def play() -> None:
        shop.put()
        async with running(every=0.2, pause=0.7) as next_event:
            await next_event()
            began = time.monotonic()
            shop.put()
            await next_event()
            assert time.monotonic() - began > 0.6
            await quiet(next_event, 1.2)
            shop.apply()
            await quiet(next_event)
        shop.put()
        async with running(every=0.2, again=0.6) as next_event:
            await next_event()
            await next_event()

    asyncio.run(play())


def test_it_fires_for_what_was_committed_late(shop: Shop) -> None:
    """A webhook whose place is lower than one that was told: its transaction took longer."""

    async def play() -> None:
        async with running(every=0.2) as next_event:
            with shop.connect() as slow:
                slow.execute("insert into extract.inbox (source, endpoint, body) values ('shop', 'main', '')")
                shop.put()
                await next_event()
                shop.apply()
                await asyncio.sleep(0.5)
                slow.commit()
            await next_event()

    asyncio.run(play())


def test_what_is_parked_is_waited_for(shop: Shop) -> None:
    """Until it is due, and not before; a dead letter is nothing to do."""
    shop.put()
    shop.apply()
    shop.conn.execute(
        "insert into extract.inbox_parked (place, nth, source, endpoint, dead, due_at)"
        " select place, n, source, endpoint, n = 1, case n when 1 then now() else now() + '1h'::interval end"
        " from extract.inbox, generate_series(1, 2) as n"
    )

    async def play() -> None:
        async with running(every=0.2) as next_event:
            await quiet(next_event)
            shop.conn.execute("update extract.inbox_parked set due_at = now() where not dead")
            await next_event()

    asyncio.run(play())


def test_it_ends_at_its_time(shop: Shop) -> None:
    """With an event that says so, also where there is no server."""

    async def play(**arguments: Any) -> None:
        until = (datetime.now(timezone.utc) + timedelta(seconds=0.5)).isoformat()
        async with running(until=until, **arguments) as next_event:
            assert (await next_event()).payload == {"source": "shop", "waiting": False, "until": until}

    asyncio.run(play())
    asyncio.run(play(store_conn_id="missing"))


@direct_only
def test_many_triggers_share_one_connection(shop: Shop) -> None:
    """Of whatever source and kind; who ends leaves it to the others, the last one closes it."""

    async def play() -> None:
        sources = [f"s{number}" for number in range(12)]
        async with AsyncExitStack() as all:
            found = {name: await all.enter_async_context(running(source=name)) for name in sources}
            mail: asyncio.Queue[TriggerEvent] = asyncio.Queue()
            outbox = asyncio.create_task(events(OutboxTrigger(consumer="mail", every=NEVER), mail))
            await shop.until_connected(1)
            shop.put("s3")
            assert (await found["s3"]()).payload["source"] == "s3"
            fill(shop.conn, [an_event("a")])
            shop.conn.execute("select pg_notify('extract.outbox', '')")
            assert (await asyncio.wait_for(mail.get(), SOON)).payload["consumer"] == "mail"
            for name in ("s0", "s5"):
                await quiet(found[name], 0.1)
            async with running(source="one more") as more:
                shop.put("one more")
                await more()
            assert shop.connected() == 1
            outbox.cancel()
            await asyncio.gather(outbox, return_exceptions=True)
            shop.put("s4")
            await found["s4"]()
            assert shop.connected() == 1
        await shop.until_connected(0)

    asyncio.run(play())


@direct_only
def test_a_lost_connection_is_opened_again_by_whoever_is_left(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Once for all of them: what came meanwhile is found; the log tells of the loss, without where the server is."""

    async def play() -> None:
        async with AsyncExitStack() as all:
            found = {name: await all.enter_async_context(running(source=name)) for name in ("a", "b", "c")}
            await shop.until_connected(1)
            for _ in range(3):
                await asyncio.sleep(0.3)
                shop.cut()
                for name in found:
                    shop.put(name, announced=False)
                for next_event in found.values():
                    await next_event()
                shop.apply()
                assert shop.connected() == 1

    asyncio.run(play())
    assert "a webhooks: the inbox cannot be watched" in caplog.text
    assert "127.0.0.1" not in caplog.text


@direct_only
def test_one_that_comes_while_the_connection_is_lost(shop: Shop) -> None:
    """It opens another, and the last one to leave either of them closes it."""

    async def play() -> None:
        for number in range(20):
            async with AsyncExitStack() as all:
                await all.enter_async_context(running(source="a"))
                await asyncio.sleep(number * 0.003)
                shop.cut()
                shop.put("b")
                await (await all.enter_async_context(running(source="b")))()
                shop.apply()
        await shop.until_connected(0)

    asyncio.run(play())


@direct_only
def test_cancelled_at_any_time(shop: Shop) -> None:
    """No connection is left open: while it connects, begins to listen, listens, or others do."""

    async def one(name: str, seconds: float) -> None:
        async with running(source=name):
            await asyncio.sleep(seconds)

    async def play() -> None:
        for number in range(60):
            await asyncio.gather(*(one(f"s{more}", number * 0.001 + more * 0.0007) for more in range(5)))
        await shop.until_connected(0)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(play())
    finally:
        gc.enable()


def test_behind_a_pooler(request: pytest.FixtureRequest, dsn: str, connect: Connect) -> None:
    """It only looks, and misses nothing."""
    pooled: str = request.getfixturevalue("pooler").dsn(dsn)

    async def play() -> None:
        async with running(every=0.3) as next_event:
            await quiet(next_event)
            scene.put(announced=False)
            assert (await next_event()).payload["waiting"]

    with connect() as conn, server(pooled).serving():
        conn.autocommit = True
        scene = Shop(conn, connect)
        asyncio.run(play())
