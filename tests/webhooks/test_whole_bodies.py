"""A body is stored whole or not at all (law: no half of anything), however it comes and wherever it is cut off."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.signing import SCHEMES
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver
from tests.databases import Databases
from tests.webhooks.listening import SECRETS, Listening, Talk, head, request, signature
from tests.webhooks.memory import Memory

EXAMPLES = 2_000 if os.environ.get("EXTRACT_SOAK") else 150
LIMIT = 60


class Nowhere:
    """Where nothing is counted."""

    def count(self, source: str, endpoint: str, kind: str, seconds: float | None = None) -> None:
        """Nothing."""


def _messages(parts: Sequence[bytes], cut: int | None, pauses: Sequence[bool]) -> Iterator[dict[str, Any] | None]:
    """What a server hands on: the parts, cut off before one of them; None is a pause."""
    for nth, part in enumerate(parts):
        if nth == cut:
            break
        if pauses[nth % len(pauses)]:
            yield None
        yield {"type": "http.request", "body": part, "more_body": nth < len(parts) - 1}
    while True:
        yield {"type": "http.disconnect"}


@settings(max_examples=EXAMPLES * 4)
@given(
    parts=st.lists(st.binary(max_size=12), min_size=1, max_size=8),
    cut=st.none() | st.integers(0, 8),
    pauses=st.lists(st.booleans(), min_size=1, max_size=4),
)
def test_no_part_of_a_body_passes_for_the_whole(parts: list[bytes], cut: int | None, pauses: list[bool]) -> None:
    """Under a token that signs nothing, where every part would verify. Nobody is answered 2xx for less."""
    keep, sent = Memory(), []
    spec = Endpoint(verify=SCHEMES["gitlab_token"], secret="shop", max_bytes=LIMIT)
    receiver = Receiver([Door("s", "e", spec, lambda: ("token",))], keep, Nowhere(), patience=timedelta(seconds=30))
    messages = _messages(parts, cut, pauses)
    scope = {"type": "http", "method": "POST", "path": "/webhooks/s/e", "headers": [(b"x-gitlab-token", b"token")]}

    async def receive() -> dict[str, Any]:
        while (message := next(messages)) is None:
            await asyncio.sleep(0)
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(receiver({**scope, "root_path": "", "query_string": b""}, receive, send))
    whole = b"".join(parts)
    complete = (cut is None or cut >= len(parts)) and len(whole) <= LIMIT
    assert [each.body for each in keep.kept] == ([whole] if complete else [])
    assert [each["status"] for each in sent[:1]] in ([200] if complete else [413], [] if not complete else [200])


@pytest.fixture(scope="module")
def dsn(databases: Databases) -> Iterator[str]:
    """One database for all examples."""
    with databases.with_books() as address:
        yield address


@pytest.fixture(scope="module")
def server(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """One process for all examples."""
    with Listening(dsn, tmp_path_factory.mktemp("receiver") / "log") as started:
        yield started


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    pieces=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    chunked=st.booleans(),
    kept=st.integers(0, 1000),
    cut=st.booleans(),
    behind=st.booleans(),
)
def test_what_is_cut_off_on_the_wire_is_not_stored(
    server: Listening,
    dsn: str,
    body: bytes,
    sizes: list[int],
    pieces: list[int],
    chunked: bool,
    kept: int,
    cut: bool,
    behind: bool,
) -> None:
    """In chunks or by its length, in any pieces, alone or behind another one."""
    whole = _on_the_wire(body, sizes if chunked else [])
    sent = whole[: kept % len(whole)] if cut else whole
    first = request("token", b"first") if behind else b""
    expected = [b"first"] * behind + [body] * (not cut)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("truncate extract.inbox")
        with Talk(server.port) as talk:
            if behind:
                talk.say(first)
                assert talk.statuses(1) == [200]
            talk.say(*_pieces(sent, pieces))
            if not cut:
                assert talk.statuses(len(expected)) == [200] * len(expected)
        with Talk(server.port) as talk:
            # When this is answered, what came before is at its end.
            talk.say(request("token", b"x", signed=[]))
            assert talk.statuses(1) == [401]
        stored = [found for (found,) in conn.execute("select body from extract.inbox order by place")]
    assert stored == expected


def _on_the_wire(body: bytes, sizes: Sequence[int]) -> bytes:
    if not sizes:
        return request("token", body)
    said, at, nth = head("token", *signature("token", body), b"transfer-encoding: chunked"), 0, 0
    while at < len(body):
        part = body[at : at + sizes[nth % len(sizes)]]
        said += b"%x\r\n%b\r\n" % (len(part), part)
        at, nth = at + len(part), nth + 1
    return said + b"0\r\n\r\n"


def _pieces(sent: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at, nth = 0, 0
    while at < len(sent):
        yield sent[at : at + sizes[nth % len(sizes)]]
        at, nth = at + sizes[nth % len(sizes)], nth + 1


def test_the_token_is_one_that_signs_nothing() -> None:
    """Or what is shown above would be shown by the signature."""
    assert signature("token", b"one") == signature("token", b"two") == [b"x-gitlab-token: " + SECRETS["token"]]
