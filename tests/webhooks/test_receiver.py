"""The receiver: what senders are answered, and that nothing is stored but what was verified, whole and as it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from airflow_extract_provider.extract.errors import EventRefusedError
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver
from airflow_extract_provider.receiver.counts import Tally
from airflow_extract_provider.testing.postgres import free_port
from tests.databases import Databases
from tests.said import said_by
from tests.webhooks.listening import Listening, Talk, head, request, signature
from tests.webhooks.refusals import BEGIN, CASES, DOCUMENT, END, Case, Server, table


class Servers:
    """One process for each way a receiver may be, and the database of those that have one."""

    def __init__(self, dsn: str, folder: Path, open: ExitStack) -> None:
        self.dsn, self._folder, self._open = dsn, folder, open
        self._started: dict[Server, Listening] = {}

    def of(self, kind: Server) -> Listening:
        """That process, started when it is asked for."""
        if kind not in self._started:
            nowhere = f"host=127.0.0.1 port={free_port()} user=nobody dbname=none"
            dsn = nowhere if kind == "away" else self.dsn
            log = self._folder / f"{kind}.log"
            made = Listening(dsn, log, deliveries=0) if kind == "full" else Listening(dsn, log)
            self._started[kind] = self._open.enter_context(made)
        return self._started[kind]


@pytest.fixture(scope="module")
def servers(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """They serve all tests of this module; each counts what it has added itself."""
    with databases.with_books() as dsn, ExitStack() as open:
        yield Servers(dsn, tmp_path_factory.mktemp("receivers"), open)


@pytest.fixture
def conn(servers: Servers) -> Iterator[Connection]:
    """To their database, whose inbox is empty."""
    with psycopg.connect(servers.dsn, autocommit=True) as opened:
        opened.execute("truncate extract.inbox")
        yield opened


def _stored(conn: Connection) -> list[bytes]:
    return [body for (body,) in conn.execute("select body from extract.inbox order by place")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_sender_gets_his_answer(case: Case, servers: Servers, conn: Connection) -> None:
    """The status, the rows, and what becomes of the connection, as the table in the docs says."""
    server = servers.of(case.server)
    refusing = "alter table extract.inbox add constraint refuses check (false)"
    try:
        if case.server == "refusing":
            conn.execute(refusing)
        with Talk(server.port) as talk:
            case.send(talk)
            if case.answers:
                assert talk.statuses(len(case.answers)) == list(case.answers)
            if case.group != "Cut off":
                assert talk.is_closed(5.0 if case.closed else 0.1) == case.closed
            assert talk.statuses(0) == list(case.answers)
    finally:
        conn.execute("alter table extract.inbox drop constraint if exists refuses")
    _settled(server)
    until = time.monotonic() + 5
    # A commit that is on its way when its connection is closed.
    while len(_stored(conn)) < case.stored and time.monotonic() < until:
        time.sleep(0.01)
    assert len(_stored(conn)) == case.stored


def _settled(server: Listening) -> None:
    """Whatever was sent before is at its end when a webhook that is sent now is answered."""
    with Talk(server.port) as talk:
        talk.say(request("once", b"", signed=[]))
        assert talk.statuses(1)[0] in (401, 503)


@pytest.mark.parametrize("behind", [b"nonsense\r\n\r\n", b"POST http://x:99999999/ HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_no_answer_is_taken_for_anothers(behind: bytes, servers: Servers, conn: Connection) -> None:
    """What cannot be read, behind a webhook that waits for its commit: it is stored, and not told that it is wrong."""
    server = servers.of("usual")
    waits = "select count(*) from pg_locks where relation = 'extract.inbox'::regclass and not granted"
    with Talk(server.port) as talk:
        with psycopg.connect(servers.dsn) as holding:
            holding.execute("lock table extract.inbox in exclusive mode")
            talk.say(request("once", b"{}"))
            until = time.monotonic() + 10
            while conn.execute(waits).fetchone() == (0,):
                assert time.monotonic() < until
            talk.say(behind)
            assert talk.rest() == b""
        while not _stored(conn):
            assert time.monotonic() < until
    assert server.said == ""


def test_who_ends_his_side_is_answered(servers: Servers, conn: Connection) -> None:
    """To all that he sent whole; then it is closed, and so it is at once where something is missing."""
    whole = request("once", b"{}")
    with Talk(servers.of("usual").port) as talk:
        talk.say(whole + request("once", b"[]"))
        talk.end()
        assert talk.is_closed(5.0)
        assert talk.statuses(2) == [200, 200]
    with Talk(servers.of("usual").port) as talk:
        talk.say(whole[:-1])
        talk.end()
        assert talk.is_closed(5.0)
        assert talk.heard == b""
    assert sorted(_stored(conn)) == [b"[]", b"{}"]


def test_the_document_is_fresh() -> None:
    """What the docs say is what the tests have shown; `python -m tests.webhooks.refusals --write` writes it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table()


def test_a_delivery_is_stored_as_it_came(servers: Servers, conn: Connection) -> None:
    """Its bytes, whatever they are; of its headers those that the endpoint keeps, no login, no trailer."""
    body = bytes(range(256)) * 300
    lines = [
        *signature("once", body),
        b"X-GitHub-Event: push",
        b"x-kept: one",
        b"x-kept: two",
        b"authorization: secret",
    ]
    with Talk(servers.of("usual").port) as talk:
        talk.say(head("once", *lines, b"transfer-encoding: chunked"))
        talk.say(b"%x\r\n%b\r\n0\r\nx-kept: trailer\r\n\r\n" % (len(body), body))
        assert talk.statuses(1) == [200]
        # A trailer is not the next request's either.
        talk.say(request("once", b"{}", b"x-github-event: ping"))
        assert talk.statuses(2) == [200, 200]
    rows = conn.execute("select source, endpoint, headers, body, done_at from extract.inbox order by place").fetchall()
    assert rows == [
        ("shop", "once", {"x-github-event": "push", "x-kept": "one, two"}, body, None),
        ("shop", "once", {"x-github-event": "ping"}, b"{}", None),
    ]


def test_without_its_id_a_delivery_is_stored_each_time(servers: Servers, conn: Connection) -> None:
    """There is nothing to tell it from another one by."""
    signed = signature("once", b"{}")[:1]
    with Talk(servers.of("usual").port) as talk:
        talk.say(request("once", b"{}", signed=signed) * 2)
        assert talk.statuses(2) == [200, 200]
    assert _stored(conn) == [b"{}", b"{}"]


def test_what_is_too_large_is_refused_before_it_is_sent(servers: Servers) -> None:
    """Who asks first is not told to go on."""
    with Talk(servers.of("usual").port) as talk:
        talk.say(head("once", b"content-length: 100000000", b"expect: 100-continue"))
        talk.rest()
        assert b" 100 " not in talk.heard
        assert talk.statuses(1) == [413]


def test_who_is_still_sending_can_read_the_answer(servers: Servers) -> None:
    """Ten megabytes more are on their way when it is given: a reset would take it back."""
    with Talk(servers.of("usual").port) as talk:
        talk.say(head("once", b"content-length: 10000000"))
        talk.flood(b"x" * 100_000, 10_000_000)
        assert talk.statuses(1) == [413]


def test_answers_say_what_to_do_next(servers: Servers) -> None:
    """When to come again, which method, who must log in."""
    answers = {
        ("away", request("once", b"{}")): b"retry-after: 5",
        ("usual", request("once", b"{}", method="GET")): b"allow: POST",
        ("usual", request("login", b"{}", signed=[])): b"www-authenticate: Basic",
    }
    for (kind, sent), line in answers.items():
        with Talk(servers.of(kind).port) as talk:  # type: ignore[arg-type]
            talk.say(sent)
            talk.statuses(1)
            assert line in talk.answer()


def test_each_outcome_is_counted_apart(servers: Servers) -> None:
    """By endpoint and kind; what belongs to no endpoint as nobody's."""
    server = servers.of("usual")
    before, _ = server.counted()
    sent = {
        request("timed", b"{}"): "shop/timed stored",
        request("timed", b"{}", signed=[]): "shop/timed forged",
        request("timed", b"{}", signed=signature("timed", b"{}", at=1)): "shop/timed old",
        request("timed", b"{}", signed=signature("timed", b"{}", at=9_999_999_999)): "shop/timed future",
        request("none", b"{}", signed=[]): "/ unknown",
    }
    for each in sent:
        with Talk(server.port) as talk:
            talk.say(each)
            talk.statuses(1)
    after, _ = server.counted()
    assert {kind: after[kind] - before.get(kind, 0) for kind in sent.values()} == dict.fromkeys(sent.values(), 1)


class _Small:
    """A keep that never takes more than so many bytes, and says why; it keeps nothing."""

    async def put(self, incoming: Incoming) -> bool:
        """Whether it is new."""
        if len(incoming.body) > 10:
            raise EventRefusedError(f"{len(incoming.body)} bytes are never taken.", todo="Raise what it takes.")
        return True


def test_what_a_keep_never_takes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """With what to do about it, and once in a while, whatever its size; the sender is told that it is too large."""
    door = Door("shop", "token", Endpoint(secret="shop", verify="gitlab_token"), lambda: ("secret",))  # type: ignore[arg-type]
    receiver = Receiver([door], _Small(), Tally())
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/webhooks/shop/token",
        "headers": [(b"x-gitlab-token", b"secret")],
    }

    async def answered(body: bytes) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await receiver(scope, receive, send)
        return int(sent[0]["status"])

    async def main() -> list[int]:
        return [await answered(b"x" * size) for size in (1, 11, 12, 13)]

    assert asyncio.run(main()) == [200, 413, 413, 413]
    (record,) = said_by(Receiver.__module__, caplog)
    said = "webhooks of shop/token cannot be received: 11 bytes are never taken. Raise what it takes."
    assert (record.levelname, record.getMessage()) == ("ERROR", said)


def test_nothing_of_a_request_is_logged(databases: Databases, tmp_path: Path) -> None:
    """Whatever is sent, and whatever goes wrong: once where it came and what is the matter, however often."""
    with databases.with_books() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("alter table extract.inbox add constraint refuses check (body <> 'hushhush')")
        with Listening(dsn, tmp_path / "log") as server:
            for _ in range(3):
                for each in (request("once", b"hushhush", b"x-kept: hushhush"), b"hushhush\r\n\r\n"):
                    with Talk(server.port) as talk:
                        talk.say(each)
                        talk.rest()
        said = server.said
    assert "hushhush" not in said
    assert "secret of" not in said
    assert said.count("\n") == 1
    assert "shop/once" in said


def test_a_stop_answers_who_is_in_time(databases: Databases, tmp_path: Path) -> None:
    """Who is in the middle of sending when the receiver is told to end is still stored and answered."""
    with databases.with_books() as dsn:
        with Listening(dsn, tmp_path / "log") as server, Talk(server.port) as talk:
            whole = request("once", b"{}")
            talk.say(whole[:-1])
            _settled(server)
            server.stop()
            talk.say(whole[-1:])
            assert talk.statuses(1) == [200]
            assert talk.is_closed(5.0)
        with psycopg.connect(dsn) as conn:
            assert _stored(conn) == [b"{}"]
