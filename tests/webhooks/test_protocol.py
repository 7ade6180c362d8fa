"""What strangers may do to the receiver: it keeps its memory, and honest senders their answers."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_extract_provider.extract.errors import FixConfig
from airflow_extract_provider.extract.webhooks import inside
from tests.databases import Databases
from tests.webhooks.listening import GUARDS, LIMIT, Listening, Talk, head, request, signature

FLOOD = 95_000_000
MEMORY = 24 << 20
"""What a flood may add to the most that the process ever held. Without a bound 95 MB cost 924 MB."""
SLOWEST = 2.0
"""Seconds within which 99 of 100 honest webhooks are answered, whatever others do meanwhile."""


@pytest.fixture(scope="module")
def dsn(databases: Databases) -> Iterator[str]:
    """One database for all tests of this module."""
    with databases.with_books() as address:
        yield address


@pytest.fixture(scope="module")
def server(dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    """One process."""
    with Listening(dsn, tmp_path_factory.mktemp("receiver") / "log") as started:
        yield started


class Honest:
    """Those who send webhooks as they should, one after another over two connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.seconds: list[float] = []
        self.answers: list[int] = []
        self.sent: list[bytes] = []

    @contextmanager
    def sending(self) -> Iterator[None]:
        """They do so meanwhile, and for a moment at least."""
        threads = [threading.Thread(target=self._send, args=(n,)) for n in range(2)]
        for each in threads:
            each.start()
        try:
            yield
            time.sleep(0.5)
        finally:
            self._stop.set()
            for each in threads:
                each.join()

    def told(self) -> str:
        """Their times, in milliseconds."""
        cuts = statistics.quantiles(self.seconds, n=100)
        return f"{len(self.seconds):5} sent, p50 {cuts[49] * 1000:6.1f} ms, p99 {cuts[98] * 1000:6.1f} ms"

    def _send(self, number: int) -> None:
        count = 0
        with Talk(self._port) as talk:
            while not self._stop.is_set():
                count += 1
                body = b'{"honest": %d, "nth": %d}' % (number, count) + b" " * 1000
                begun = time.perf_counter()
                talk.say(request("once", body))
                self.answers += talk.statuses(count)[count - 1 :]
                self.seconds.append(time.perf_counter() - begun)
                self.sent.append(body)
                time.sleep(0.002)


_CHUNKED = head("once", b"transfer-encoding: chunked")
_BEGUN = head("once")[:-2]
FLOODS: dict[str, tuple[bytes, bytes]] = {
    "one header": (_BEGUN + b"x-name: ", b"x" * 65536),
    "headers": (_BEGUN, b"x-name: value\r\n" * 4096),
    "headers of no length": (_BEGUN, b"a:\r\n" * 16384),
    "a path": (b"POST /", b"x" * 65536),
    "empty lines": (b"", b"\r\n" * 32768),
    "one trailer": (_CHUNKED + b"0\r\nx-name: ", b"x" * 65536),
    "trailers": (_CHUNKED + b"0\r\n", b"x-name: value\r\n" * 4096),
    "one chunk extension": (_CHUNKED + b"1;", b"x" * 65536),
    "chunk extensions": (_CHUNKED, (b"1;" + b"x" * 4000 + b"\r\nx\r\n") * 16),
    "a body that is too large": (head("once", b"content-length: 100000"), b"x" * 65536),
    "a body in chunks that is too large": (_CHUNKED, b"ffff\r\n" + b"x" * 65535 + b"\r\n"),
    "requests": (b"", request("once", b"{}", signed=[]) * 400),
    "small requests": (b"", b"GET / HTTP/1.1\r\n\r\n" * 3600),
}


def _flooding(first: bytes, part: bytes) -> Callable[[Listening], None]:
    """So many bytes in all, and for two seconds, over as many connections as it takes."""

    def attack(server: Listening) -> None:
        sent, begun = 0, time.monotonic()
        while sent < FLOOD or time.monotonic() < begun + 2:
            with Talk(server.port) as talk:
                talk.say(first)
                sent += talk.flood(part, FLOOD)

    return attack


def _many(part: bytes, *, trickle: bytes = b"") -> Callable[[Listening], None]:
    """Two hundred connections that send a part, and then no more, or that slowly."""

    def attack(server: Listening) -> None:
        with ExitStack() as open:
            talks = [open.enter_context(Talk(server.port)) for _ in range(200)]
            for talk in talks:
                talk.say(part)
            for at in range(len(trickle)):
                for talk in talks:
                    talk.say(trickle[at : at + 1])
                time.sleep(0.05)
            assert all(talk.is_closed(5.0) for talk in talks)

    return attack


ATTACKS = {
    **{name: _flooding(*parts) for name, parts in FLOODS.items()},
    "connections that say nothing": _many(b""),
    "heads that do not end": _many(_BEGUN),
    "heads that come byte by byte": _many(b"", trickle=_BEGUN[:30]),
    "large heads that do not end": _many(_BEGUN + b"x: " + b"x" * 30_000),
    "bodies that do not end": _many(head("once", b"content-length: 100") + b"{"),
    "large bodies that do not end": _many(head("once", b"content-length: 200000") + b"x" * 50_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_senders_are_answered_meanwhile(
    attack: str, server: Listening, dsn: str, measured: Callable[[str], None]
) -> None:
    """All of them, and soon; all that they sent is stored, and nothing else; the memory stays what it was."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("truncate extract.inbox")
    alone, beside = Honest(server.port), Honest(server.port)
    with alone.sending():
        time.sleep(0.5)
    peak, begun = server.peak(), time.monotonic()
    with beside.sending():
        ATTACKS[attack](server)
    grown, lasted = server.peak() - peak, time.monotonic() - begun
    measured(
        f"webhooks beside {attack}, {lasted:4.1f} s: {beside.told()}; alone: {alone.told()}; +{max(grown, 0) >> 20} MiB"
    )
    assert set(alone.answers + beside.answers) == {200}
    assert statistics.quantiles(beside.seconds, n=100)[98] < SLOWEST
    bound = MEMORY + (200 * 60_000 if attack.startswith("large") else 0)
    assert grown < bound
    with psycopg.connect(dsn) as conn:
        stored = sorted(body for (body,) in conn.execute("select body from extract.inbox"))
    assert stored == sorted(alone.sent + beside.sent)


def test_a_request_may_come_in_any_two_pieces(server: Listening) -> None:
    """Cut between any two bytes; one after another on one connection."""
    body = b'{"id": 1}'
    lines = [*signature("each", body), b"transfer-encoding: chunked", b"x-more: " + b"x" * 50]
    whole = head("each", *lines) + b"9;name=value\r\n" + body + b"\r\n0\r\nx-trailer: value\r\n\r\n"
    with Talk(server.port) as talk:
        for at in range(1, len(whole)):
            talk.say(whole[:at])
            time.sleep(0.001)
            talk.say(whole[at:])
            assert talk.statuses(at)[at - 1 :] == [200]


def test_a_body_that_comes_behind_its_head(server: Listening) -> None:
    """It ends a request, and begins none: who has sent it waits as long as he likes before the next one."""
    body = b'{"two": "pieces"}'
    whole = request("each", body)
    with Talk(server.port) as talk:
        for nth in (1, 2):
            talk.say(whole[: -len(body)])
            time.sleep(0.1)
            talk.say(body)
            assert talk.statuses(nth) == [200] * nth
            time.sleep(1.5 * GUARDS.head_within)
        talk.say(whole[: -len(body)])
        time.sleep(0.1)
        talk.say(body)
        talk.end()
        assert talk.statuses(3) == [200] * 3


def test_who_waits_to_be_asked_for_his_body_is(server: Listening) -> None:
    """Who has begun to send it, or has sent all of it, is not."""
    body = b'{"asked": "for"}'
    expecting = request("each", body, b"expect: 100-continue")
    with Talk(server.port) as talk:
        talk.say(expecting[: -len(body)])
        talk.hear(b"HTTP/1.1 100 Continue\r\n\r\n")
        talk.say(body)
        assert talk.statuses(1) == [200]
        talk.say(expecting[:-3])
        time.sleep(0.1)
        talk.say(expecting[-3:])
        assert talk.statuses(2) == [200] * 2
        talk.say(expecting)
        assert talk.statuses(3) == [200] * 3
        assert talk.heard.count(b" 100 ") == 1


def test_who_rests_is_let_go(dsn: str, tmp_path: Path) -> None:
    """A stranger and one who is known, so many seconds after the last answer and not before."""
    keeps = 2
    with Listening(dsn, tmp_path / "log", keep_alive=keeps) as server:
        ways: tuple[list[bytes] | None, ...] = (None, [])
        for signed in ways:
            with Talk(server.port) as talk:
                for nth in (1, 2):
                    talk.say(request("each", b"{}", signed=signed))
                    talk.statuses(nth)
                    time.sleep(0.6 * keeps)
                assert not talk.is_closed(0.1 * keeps)
                assert talk.is_closed(keeps)


def test_the_largest_that_is_allowed_passes(server: Listening) -> None:
    """A head and a body at their bounds, in small chunks with extensions, behind each other on one connection."""
    body = b"x" * LIMIT
    lines = [*signature("each", body), b"transfer-encoding: chunked", *[b"x-name: " + b"x" * 330] * 90]
    chunks = b"".join(b"40;a=b\r\n%b\r\n" % body[at : at + 64] for at in range(0, LIMIT, 64))
    with Talk(server.port) as talk:
        for nth in (1, 2, 3):
            talk.say(head("each", *lines), chunks, b"0\r\n\r\n")
            assert talk.statuses(nth) == [200] * nth


def test_what_is_behind_a_large_body_is_no_part_of_the_next_head(server: Listening) -> None:
    """Both come in one reading of the socket: only the head's own bytes count for it."""
    body = b"x" * 100_000
    with Talk(server.port) as talk:
        talk.say((request("each", body) + request("each", b"{}")) * 4)
        assert talk.statuses(8) == [200] * 8


def test_who_does_not_read_his_answers_is_cut_off(server: Listening) -> None:
    """They would pile up in our memory, and the requests behind them wait for ever."""

    def unread() -> int:
        return server.counted()[1].get("unread", 0)

    def answered() -> int:
        return server.counted()[0].get("shop/once forged", 0)

    before, until = unread(), time.monotonic() + 60
    with Talk(server.port, room=4096) as talk:
        while unread() == before:
            assert time.monotonic() < until
            expected = answered() + 8
            talk.say(request("once", b"{}", signed=[]) * 8)
            # Or more than may be pipelined would gather while the server is busy.
            while answered() < expected and unread() == before:
                assert time.monotonic() < until
    assert server.said == ""


def test_refusals_are_counted_by_their_reason(server: Listening) -> None:
    """For who watches over it: the application is not asked, so it cannot count them."""
    _, before = server.counted()
    for sent in (b"nonsense\r\n\r\n", head("once", *[b"a: b"] * 101), head("once")[:-2]):
        with Talk(server.port) as talk:
            talk.say(sent)
            talk.rest()
    _, after = server.counted()
    assert {why: after[why] - before.get(why, 0) for why in ("malformed", "head", "slow")} == {
        "malformed": 1,
        "head": 1,
        "slow": 1,
    }


def test_uvicorn_is_inside_as_it_is_known_here() -> None:
    """Or the bounds would silently not hold."""
    inside.check()


@pytest.mark.parametrize("gone", ["on_header", "_start_asgi_task", "pipeline", "RequestResponseCycle"])
def test_another_uvicorn_is_refused_when_it_is_imported(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which version it is, and what has changed."""
    changed: type[HttpToolsProtocol] = HttpToolsProtocol
    if gone == "RequestResponseCycle":
        monkeypatch.delattr(httptools_impl, gone)
    elif gone == "pipeline":

        class Otherwise(HttpToolsProtocol):
            def __init__(self) -> None:
                self.parser = None  # type: ignore[assignment]

        changed = Otherwise
    else:
        monkeypatch.delattr(HttpToolsProtocol, gone)
    with pytest.raises(FixConfig) as caught:
        inside.check(changed)
    assert gone in caught.value.what or gone == "RequestResponseCycle"
    assert "uvicorn 0." in caught.value.what


def test_nothing_was_said(server: Listening, tmp_path: Path) -> None:
    """A stranger cannot fill the log: no line for what he does."""
    del tmp_path
    for sent in (
        b"nonsense\r\n\r\n",
        head("once", b"connection: upgrade", b"upgrade: websocket"),
        head("once", path="http://x"),
        head("once", path="http://x:99999999/"),
    ):
        with Talk(server.port) as talk:
            talk.say(sent)
            talk.rest()
    assert server.said == ""
