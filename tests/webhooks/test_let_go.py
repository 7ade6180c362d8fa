"""What a connection leaves behind: nothing in memory, no timer that is missing, nobody else's place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.webhooks import exchange
from airflow_extract_provider.extract.webhooks.answers import ANSWERS, Outcome
from airflow_extract_provider.extract.webhooks.gathering import Gathering
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver, Room
from airflow_extract_provider.receiver.counts import Tally
from tests.databases import Databases
from tests.webhooks.listening import GUARDS, Listening, Talk, head, request

BODY = b"x" * 50_000
HALF = head("once", b"content-length: 100000") + BODY
SAID = {
    "taken": request("once", BODY),
    "forged": request("once", BODY, signed=[]),
    "another path": request("once", BODY, path="/webhooks/shop/none"),
    "another method": request("once", BODY, method="PUT"),
    "answered early": head("once", b"content-length: 100000", path="/early") + BODY,
    "by HTTP/1.0": request("once", BODY, version="1.0"),
    "to be closed": request("once", BODY, b"connection: close"),
    "half a body": HALF,
    "half a head": head("once", b"x-more: " + b"x" * 10_000)[:-2],
    "several, the last by half": request("once", b"{}") * 4 + HALF,
    "too many": request("once", b"{}") * 40,
    "nonsense": request("once", BODY) + b"nonsense\r\n\r\n" + BODY,
}


@pytest.fixture(scope="module")
def dsn(databases: Databases) -> Iterator[str]:
    """One database for all tests of this module."""
    with databases.with_books() as address:
        yield address


@pytest.fixture(scope="module")
def uncollected(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """A process without a garbage collector: what is kept there is kept."""
    with Listening(dsn, tmp_path_factory.mktemp("uncollected") / "log", collects=False) as started:
        yield started


@pytest.mark.parametrize("said", SAID)
def test_nothing_is_left_of_a_connection(uncollected: Listening, said: str) -> None:
    """Not until a garbage collector comes, which for what is old is late: each would hold a body for so long."""
    for _ in range(20):
        with Talk(uncollected.port) as talk:
            talk.say(SAID[said])
            time.sleep(0.01)
    until = time.monotonic() + 3 * (GUARDS.closed_within + 1)
    while uncollected.alive() != {"GuardedProtocol": 1, "Exchange": 1}:
        assert time.monotonic() < until, uncollected.alive()
        time.sleep(0.1)


@pytest.mark.parametrize("said", ["answered early", "forged", "taken"])
def test_nothing_is_left_of_a_request(uncollected: Listening, said: str) -> None:
    """On a connection that stays."""
    whole = head("once", b"content-length: 50000", path="/early") + BODY if said == "answered early" else SAID[said]
    with Talk(uncollected.port) as talk:
        for nth in range(1, 20):
            talk.say(whole)
            talk.statuses(nth)
        time.sleep(0.1)
        assert uncollected.alive() == {"GuardedProtocol": 2, "Exchange": 2}


def test_a_long_address_is_not_remembered() -> None:
    """Whoever sends it chose it; those of the endpoints are short."""
    exchange._known_address.cache_clear()
    url = b"/webhooks/shop/once?" + b"x" * exchange._LONGEST_KNOWN
    link: Any = type("Link", (), {"url": url, "root_path": ""})
    with pytest.raises(AttributeError):  # it asks for the parser next
        exchange.Exchange.of(link)
    assert exchange._known_address.cache_info().currsize == 0
    link.url = b"/webhooks/shop/once"
    with pytest.raises(AttributeError):
        exchange.Exchange.of(link)
    assert exchange._known_address.cache_info().currsize == 1


def test_who_was_answered_early_is_let_go(dsn: str, tmp_path: Path) -> None:
    """The rest of his body comes behind the answer; then he rests like any other."""
    with Listening(dsn, tmp_path / "log", keep_alive=2) as server, Talk(server.port) as talk:
        talk.say(head("once", b"content-length: 10", path="/early") + b"x")
        assert talk.statuses(1) == [405]
        talk.say(b"x" * 9)
        assert not talk.is_closed(1.0)
        assert talk.is_closed(3.0)


def test_we_who_do_not_read_are_not_his_slowness(dsn: str, tmp_path: Path) -> None:
    """While the store is slow, reading waits behind several requests: what he has sent long ago is then still to be
    read, and he must not be cut off for that."""
    first, second, third, fourth = (request("each", b"%d" % n) for n in range(4))
    with Listening(dsn, tmp_path / "log") as server, psycopg.connect(dsn) as held, Talk(server.port) as talk:
        held.execute("lock table extract.inbox in exclusive mode")
        talk.say(first + second + third[:40])
        time.sleep(0.1)
        talk.say(third[40:] + fourth[:40])
        time.sleep(0.1)
        talk.say(fourth[40:])
        time.sleep(2.5 * GUARDS.head_within)
        held.rollback()
        assert talk.statuses(4) == [200] * 4
        assert server.counted()[1].get("slow", 0) == 0


def test_by_http_1_0_nobody_waits_to_be_asked(uncollected: Listening) -> None:
    """What is no answer would be taken for one."""
    whole = request("each", b"{}", b"expect: 100-continue", version="1.0")
    with Talk(uncollected.port) as talk:
        talk.say(whole[:-2])
        time.sleep(0.2)
        talk.say(whole[-2:])
        talk.rest()
        assert b" 100 " not in talk.heard
        assert talk.statuses(1) == [200]


# --- bodies in parts, all of them together


def test_half_bodies_turn_nobody_away(dsn: str, tmp_path: Path) -> None:
    """Strangers fill all room for bodies in parts, again and again: who sends his in two parts is taken all the
    same."""
    half = head("once", b"content-length: 100000") + b"x" * 60_000
    honest = request("each", b"y" * 100)
    with Listening(dsn, tmp_path / "log", bytes=1_000_000) as server, ExitStack() as open:
        strangers = [open.enter_context(Talk(server.port)) for _ in range(40)]
        for round in range(3):
            for each in strangers:
                each.say(half if round == 0 else b"x" * 100)
            with Talk(server.port) as talk:
                for nth in (1, 2, 3):
                    talk.say(honest[:-50])
                    time.sleep(0.02)
                    talk.say(honest[-50:])
                    assert talk.statuses(nth) == [200] * nth
        counts = server.counted()[0]
        assert counts["shop/once busy"] >= 5
        assert counts["shop/once busy"] + counts.get("shop/once slow", 0) >= 30


@given(
    bodies=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_whatever_is_given_up_the_sums_are_right(bodies: list[list[int]], order: Any) -> None:
    """Each body is whole or refused; no more than the bound is held; in the end nothing is."""
    most = 100

    async def main() -> None:
        gathering = Gathering(30.0, most)
        queues: list[asyncio.Queue[dict[str, Any]]] = [asyncio.Queue() for _ in bodies]
        tasks = [asyncio.create_task(gathering.body(each.get, 120)) for each in queues]
        await asyncio.sleep(0)
        turns = [nth for nth, parts in enumerate(bodies) for _ in parts]
        order.shuffle(turns)
        left = [list(parts) for parts in bodies]
        for nth in turns:
            size = left[nth].pop(0)
            queues[nth].put_nowait({"type": "http.request", "body": b"x" * size, "more_body": bool(left[nth])})
            if order.random() < 0.7:
                await asyncio.sleep(0)
                assert gathering._bytes <= most
        found = await asyncio.gather(*tasks)
        for parts, body in zip(bodies, found, strict=True):
            if isinstance(body, Outcome):
                assert body is ANSWERS["large" if sum(parts) > 120 else "busy"] or body is ANSWERS["busy"]
            else:
                assert len(body) == sum(parts)
        assert (gathering._bytes, gathering._held, gathering._given_up) == (0, {}, set())
        assert all(not task.cancelling() for task in tasks)
        if sum(map(sum, bodies)) <= most:
            assert not any(isinstance(body, Outcome) for body in found)

    asyncio.run(main())


def test_who_holds_nothing_is_not_given_up() -> None:
    """It would give nothing back: only its head has come until now."""

    async def main() -> None:
        gathering = Gathering(30.0, 100)
        queues: list[asyncio.Queue[dict[str, Any]]] = [asyncio.Queue() for _ in range(52)]
        tasks = [asyncio.create_task(gathering.body(each.get, 1000)) for each in queues]
        await asyncio.sleep(0)
        for each in queues[50:]:
            each.put_nowait({"type": "http.request", "body": b"x" * 60, "more_body": True})
            await asyncio.sleep(0)
        for each in queues:
            each.put_nowait({"type": "http.request", "body": b"x", "more_body": False})
        found = await asyncio.gather(*tasks)
        assert found == [b"x"] * 50 + [ANSWERS["busy"], b"x" * 61]

    asyncio.run(main())


def test_no_more_is_held_than_there_is_room_for() -> None:
    """Bodies that are whole at once have come one by one: each is counted when it is there."""

    class Slow:
        def __init__(self) -> None:
            self.store = asyncio.Event()

        async def put(self, incoming: Incoming) -> bool:
            await self.store.wait()
            return True

    async def main() -> list[int]:
        keep, sent = Slow(), []
        door = Door("shop", "all", Endpoint(secret="shop", verify="gitlab_token"), lambda: ("token",))  # type: ignore[arg-type]
        receiver = Receiver([door], keep, Tally(), room=Room(bytes=2_000))
        scope = {"type": "http", "method": "POST", "path": "/webhooks/shop/all"}

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b"x" * 450}

        async def send(message: Any) -> None:
            sent.append(message)

        asked = {**scope, "headers": [(b"x-gitlab-token", b"token")]}
        tasks = [asyncio.create_task(receiver(asked, receive, send)) for _ in range(5)]
        await asyncio.sleep(0.05)
        keep.store.set()
        await asyncio.gather(*tasks)
        return sorted(each["status"] for each in sent if "status" in each)

    assert asyncio.run(main()) == [200, 200, 503, 503, 503]


def test_another_cancels_who_was_given_up() -> None:
    """Both at once: it ends as whoever cancelled it wants."""

    async def main() -> None:
        gathering = Gathering(30.0, 10)
        queues: list[asyncio.Queue[dict[str, Any]]] = [asyncio.Queue() for _ in range(2)]
        first, second = (asyncio.create_task(gathering.body(each.get, 100)) for each in queues)
        for each in queues:
            each.put_nowait({"type": "http.request", "body": b"x" * 8, "more_body": True})
        await asyncio.sleep(0)
        assert first.cancelling() == 1
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        queues[1].put_nowait({"type": "http.request", "body": b"", "more_body": False})
        assert await second == b"x" * 8

    asyncio.run(main())
