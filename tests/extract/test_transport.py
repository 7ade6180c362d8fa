"""One request over real sockets: an answer is whole and within its bounds, or it is told in a few words what failed."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from airflow_extract_provider.extract.api.transport import Answer, Bounds, Outgoing, Transport, Unanswered
from airflow_extract_provider.extract.errors import AnswerTooLargeError, RequestRefusedError

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answers each connection by a function over its socket, after one request was read; gives the server's URL."""
    listening: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: Callable[[socket.socket], None]) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def one(taken: socket.socket) -> None:
            with taken, contextlib.suppress(OSError):
                while taken.recv(65536):
                    answer(taken)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = server.accept()
                    thread = threading.Thread(target=one, args=(taken,), daemon=True)
                    threads.append(thread)
                    thread.start()

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in listening:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join(5)


def sent(url: str, bounds: Bounds | None = None) -> Answer:
    """What a GET of the URL gives."""
    with requests.Session() as session:
        return Transport(session, bounds or Bounds(2, 2)).send(Outgoing(url, "/things", 1), None)


def whole(body: bytes, head: str = "") -> bytes:
    """An answer to the letter."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def test_an_answer(serve: Serve) -> None:
    """Status, headers by names in lower case, and the whole body, unpacked."""
    packed = gzip.compress(b"a" * 300_000)
    url = serve(lambda taken: taken.sendall(whole(packed, "Content-Encoding: gzip\r\nX-Any: 1\r\n")))
    found = sent(url)
    assert (found.status, found.headers["x-any"], found.body) == (200, "1", b"a" * 300_000)


def _dribble(taken: socket.socket, head: bytes, part: bytes) -> None:
    taken.sendall(head)
    for _ in range(400):
        time.sleep(0.02)
        taken.sendall(part)


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Any: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"a"),
        (b"", b"H"),
    ],
    ids=["length", "chunks", "one chunk", "until closed", "headers", "one header", "the status"],
)
def test_an_answer_that_dribbles(head: bytes, part: bytes, serve: Serve) -> None:
    """No silence is longer than the timeout, and yet the answer must end some time."""
    url = serve(lambda taken: _dribble(taken, head, part))
    began = time.monotonic()
    with pytest.raises(Unanswered, match=r"is not complete after 0\.5 s"):
        sent(url, Bounds(2, 2, total=0.5))
    assert time.monotonic() - began < 4


def test_an_answer_in_time_is_not_cut_off(serve: Serve) -> None:
    """Many answers over one connection, each within its time, which is longer than what all take together."""
    url = serve(lambda taken: taken.sendall(whole(b"b" * 100_000)))
    with requests.Session() as session:
        transport = Transport(session, Bounds(2, 2, total=2.0))
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert len(transport.send(Outgoing(url, "/things", 1), None).body) == 100_000


def test_the_watch_survives_a_fork(serve: Serve) -> None:
    """A task is forked from a process that may have asked before: the child watches its answers itself."""
    sent(serve(lambda taken: taken.sendall(whole(b"c"))))
    url = serve(lambda taken: _dribble(taken, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"a"))
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                sent(url, Bounds(2, 2, total=0.3))
            except Unanswered as exc:
                code = 0 if "not complete" in exc.what else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "broke off in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "broke off in the middle"),
        (whole(b"{}", "Content-Encoding: gzip\r\n"), "not compressed in the way"),
        (b"no HTTP at all\r\n\r\n", "connection"),
    ],
    ids=["nothing", "length", "chunk", "gzip", "no HTTP"],
)
def test_what_may_pass(answer: bytes, what: str, serve: Serve) -> None:
    """It can be asked again."""

    def once(taken: socket.socket) -> None:
        taken.sendall(answer)
        taken.shutdown(socket.SHUT_RDWR)

    with pytest.raises(Unanswered, match=what):
        sent(serve(once))


def test_silence(serve: Serve) -> None:
    """No answer within the timeout."""
    with pytest.raises(Unanswered, match="no answer within the timeout"):
        sent(serve(lambda taken: None), Bounds(1, 0.2))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n[",
        whole(gzip.compress(b" " * 3_000_000), "Content-Encoding: gzip\r\n"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b" " * 3_000_000,
    ],
    ids=["announced", "packed", "endless"],
)
def test_an_answer_that_is_too_large(answer: bytes, serve: Serve) -> None:
    """It is not read to its end: memory is not the API's to fill."""

    def begun(taken: socket.socket) -> None:
        taken.sendall(answer)
        taken.shutdown(socket.SHUT_RDWR)

    with pytest.raises(AnswerTooLargeError) as caught:
        sent(serve(begun), Bounds(2, 2, size=1 << 20))
    assert "larger than 1,048,576 bytes" in caught.value.what


@pytest.mark.parametrize("name", ["verify", "cert"])
def test_a_file_that_is_not_there(name: str) -> None:
    """A path of the connection that leads nowhere is a matter of the connection."""
    with requests.Session() as session:
        setattr(session, name, "/nowhere/ca.pem")
        with pytest.raises(RequestRefusedError, match="cannot be sent"):
            Transport(session, Bounds(2, 2)).send(Outgoing("https://127.0.0.1:1", "/things", 1), None)


def test_the_environment_stands_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the connection says of the network goes before variables of the environment; those fill up the rest."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    url = serve(lambda taken: taken.sendall(whole(b"{}")))
    with pytest.raises(Unanswered, match="the proxy cannot be reached"):
        sent(url)
    with requests.Session() as session:
        session.proxies = {"http": url}
        assert Transport(session, Bounds(2, 2)).send(Outgoing(url, "/things", 1), None).body == b"{}"


def test_two_clients_of_one_session(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one does not take the environment's network from the second, nor from whoever uses the session else."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    url = serve(lambda taken: taken.sendall(whole(b"{}")))
    with requests.Session() as session:
        for _ in range(2):
            with pytest.raises(Unanswered, match="the proxy cannot be reached"):
                Transport(session, Bounds(2, 2)).send(Outgoing(url, "/things", 1), None)
        assert session.trust_env


@pytest.mark.parametrize("proxies", [{"http": "{url}"}, {"http": "{bare}"}, {"http": "", "no_proxy": "localhost"}])
def test_proxies_as_people_write_them(proxies: dict[str, str], serve: Serve) -> None:
    """With and without a scheme, or empty; the head of an answer through one is bounded, too."""
    url = serve(lambda taken: taken.sendall(whole(b"{}")))
    with requests.Session() as session:
        session.proxies = {name: text.format(url=url, bare=url[7:]) for name, text in proxies.items()}
        assert Transport(session, Bounds(2, 2)).send(Outgoing(url, "/things", 1), None).body == b"{}"
    slow = serve(lambda taken: _dribble(taken, b"HTTP/1.1 200 OK\r\n", b"X-Any: 1\r\n"))
    with requests.Session() as session:
        session.proxies = {"http": slow}
        with pytest.raises(Unanswered, match="is not complete"):
            Transport(session, Bounds(2, 2, total=0.4)).send(Outgoing(url, "/things", 1), None)


def test_a_debug_log_has_no_paths(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 notes each request at DEBUG, with keys and page tokens in its path."""
    url = serve(lambda taken: taken.sendall(whole(b"{}")))
    with caplog.at_level(logging.DEBUG), requests.Session() as session:
        asked = Outgoing(f"{url}/records/marked-key", "/records", 1, params={"cursor": "marked-token"})
        Transport(session, Bounds(2, 2)).send(asked, None)
    assert "HTTP/1.1" in caplog.text
    assert "marked" not in caplog.text


def test_a_garbled_answer(serve: Serve) -> None:
    """A chunk whose size is no number may come right when it is asked for again."""
    url = serve(lambda taken: taken.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nab\r\n"))
    with pytest.raises(Unanswered):
        sent(url)
