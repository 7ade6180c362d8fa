"""The receiver on uvicorn in a process of its own, bounded closely, so that tests need not wait; and who talks to it in
bytes.

::

    # It says its port, and listens until its input ends.
    python -m tests.webhooks.listening '{"dsn": "...", "keep_alive": 20, "collects": true}'
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import hmac
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeAlias

import uvicorn

from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.webhooks.exchange import Exchange
from airflow_extract_provider.extract.webhooks.guards import Guards
from airflow_extract_provider.extract.webhooks.inbox_writer import opened
from airflow_extract_provider.extract.webhooks.keeping import PostgresKeep
from airflow_extract_provider.extract.webhooks.protocol import GuardedProtocol
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver, Room
from airflow_extract_provider.testing.postgres import ends_with_starter

__all__ = ["ENDPOINTS", "GUARDS", "LIMIT", "PATIENCE", "SECRETS", "Listening", "Talk", "head", "request", "signature"]

LIMIT = 200_000
"""Bytes of the largest body that is taken."""
PATIENCE = 1.0
GUARDS = Guards(head_within=1.0, request_within=3.0, written_within=1.0, closed_within=1.0)
SECRETS = {
    "once": b"the secret of once",
    "each": b"the secret of each",
    "timed": b"the secret of timed",
    "token": b"the secret of token",
    "login": b"user:the secret of login",
}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "once": {"verify": "github", "dedupe": "{header:x-github-delivery}", "headers": ["x-github-event", "x-kept"]},
    "each": {"verify": "github"},
    "timed": {"verify": "stripe"},
    "token": {"verify": "gitlab_token"},
    "login": {"verify": "basic"},
}
_START_SECONDS = 60.0
_COUNTED = (GuardedProtocol, Exchange)
_Scope: TypeAlias = dict[str, Any]


# --- the process


class _Counts:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, source: str, endpoint: str, kind: str, seconds: float | None = None) -> None:
        """Count by endpoint and kind."""
        self.counts[f"{source}/{endpoint} {kind}"] += 1


def _door(name: str, spec: dict[str, Any]) -> Door:
    return Door("shop", name, Endpoint(secret="shop", max_bytes=LIMIT, **spec), lambda: (SECRETS[name].decode(),))


class _App:
    """The receiver; and what it has counted, at another path."""

    def __init__(self, dsn: str, room: Room) -> None:
        self._counts = _Counts()
        self._keep = PostgresKeep(lambda: opened(dsn))
        doors = [_door(name, spec) for name, spec in ENDPOINTS.items()]
        self._receiver = Receiver(doors, self._keep, self._counts, patience=timedelta(seconds=PATIENCE), room=room)

    async def __call__(self, scope: _Scope, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Serve, from its start to its end."""
        if scope["type"] == "lifespan":
            await receive()
            await self._keep.start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._keep.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"] == "/early":
            # As frameworks do: it answers, whatever is still to come.
            await send({"type": "http.response.start", "status": 405, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        elif scope["path"] == "/counts":
            alive = Counter(type(each).__name__ for each in gc.get_objects() if type(each) in _COUNTED)
            found = {"counts": self._counts.counts, "refusals": GuardedProtocol.refusals, "alive": alive}
            body = json.dumps(found).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": body})
        else:
            await self._receiver(scope, receive, send)


def main() -> None:
    """Listen on a free port until the other end of our input is closed."""
    asked = json.loads(sys.argv[1])
    if not asked["collects"]:
        gc.disable()
    GuardedProtocol.guards = GUARDS
    config = uvicorn.Config(
        _App(asked["dsn"], Room(**asked.get("room", {}))),
        http=GuardedProtocol,
        interface="asgi3",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=asked["keep_alive"],
        timeout_graceful_shutdown=10,
    )
    bound = socket.create_server(("127.0.0.1", 0), backlog=512)
    # So few answers that are not read fill it.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    server = uvicorn.Server(config)

    def ends() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=ends, daemon=True).start()
    print(bound.getsockname()[1], flush=True)
    server.run(sockets=[bound])


class Listening:
    """That process; as a context manager it is ended. ``said`` is what it has written, once it is."""

    def __init__(self, dsn: str, log: Path, *, keep_alive: int = 20, collects: bool = True, **room: int) -> None:
        self._asked = json.dumps({"dsn": dsn, "keep_alive": keep_alive, "collects": collects, "room": room})
        self._log = log
        self.port = 0

    def __enter__(self) -> Self:
        """Start, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.webhooks.listening", self._asked],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=ends_with_starter(signal.SIGKILL),  # noqa: PLW1509 - it makes one system call
            )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        until = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError, ValueError):
                self.counted()
                return self
            assert time.monotonic() < until, self.said
            time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        """Stop it in an orderly way."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def stop(self) -> None:
        """Tell it to end; return when it takes no more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", self.port)).close()
                time.sleep(0.01)

    @property
    def said(self) -> str:
        """What it has logged."""
        return self._log.read_text(encoding="utf-8")

    def counted(self) -> tuple[dict[str, int], dict[str, int]]:
        """What the receiver has counted, and what was refused before it was asked."""
        told = self._told()
        return told["counts"], told["refusals"]

    def alive(self) -> dict[str, int]:
        """How many connections and requests are in its memory, with those of who asks."""
        found: dict[str, int] = self._told()["alive"]
        return found

    def _told(self) -> dict[str, Any]:
        with Talk(self.port) as talk:
            talk.say(b"GET /counts HTTP/1.1\r\nhost: x\r\n\r\n")
            told: dict[str, Any] = json.loads(re.search(rb"\{.*\}", talk.rest())[0])  # type: ignore[index]
        return told

    def peak(self) -> int:
        """The most memory that it ever held, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


# --- who talks to it


def signature(endpoint: str, body: bytes, *, at: float | None = None) -> list[bytes]:
    """The header lines that make a body genuine for an endpoint."""
    key = SECRETS[endpoint]
    if endpoint == "token":
        return [b"x-gitlab-token: " + key]
    if endpoint == "login":
        return [b"authorization: Basic dXNlcjp0aGUgc2VjcmV0IG9mIGxvZ2lu"]
    if endpoint == "timed":
        now = b"%d" % (time.time() if at is None else at)
        made = hmac.new(key, now + b"." + body, hashlib.sha256).hexdigest().encode()
        return [b"stripe-signature: t=" + now + b",v1=" + made]
    made = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    return [b"x-hub-signature-256: sha256=" + made, b"x-github-delivery: " + uuid.uuid4().hex.encode()]


def head(endpoint: str, *lines: bytes, method: str = "POST", version: str = "1.1", path: str | None = None) -> bytes:
    """A request's head."""
    where = f"/webhooks/shop/{endpoint}" if path is None else path
    return b"\r\n".join([f"{method} {where} HTTP/{version}".encode(), b"host: hooks.example.com", *lines, b"", b""])


def request(endpoint: str, body: bytes, *lines: bytes, signed: Sequence[bytes] | None = None, **how: Any) -> bytes:
    """A whole request, genuine unless ``signed`` says otherwise."""
    found = signature(endpoint, body) if signed is None else signed
    return head(endpoint, *found, b"content-length: %d" % len(body), *lines, **how) + body


_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


@dataclass
class Talk:
    """A connection; ``closed`` once the other side has closed it. ``room``: bytes that may come without being read."""

    port: int
    seconds: float = 10.0
    closed: bool = False
    room: int = 0
    heard: bytes = b""
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(self.seconds)
        if self.room:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.room)
        self._socket.connect(("127.0.0.1", self.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def say(self, *parts: bytes) -> None:
        """Send; that the other side has closed is no error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            for part in parts:
                self._socket.sendall(part)

    def flood(self, part: bytes, size: int) -> int:
        """Send the same again and again, so many bytes, or until the other side ends it; how many were sent."""
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            while sent < size:
                self._socket.sendall(part)
                sent += len(part)
        return sent

    def end(self) -> None:
        """Say that no more will be sent; what comes is still read."""
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Close it."""
        self._socket.close()
        self.closed = True

    def statuses(self, count: int) -> list[int]:
        """The statuses of so many final answers; fewer, if the connection ends before."""
        while len(self._found()) < count and not self.closed:
            self._hear()
        return self._found()

    def hear(self, text: bytes) -> None:
        """Read until this was heard, or the connection ends."""
        while text not in self.heard and not self.closed:
            self._hear()

    def answer(self) -> bytes:
        """The head of the last final answer."""
        return [found[0] for found in _STATUS.finditer(self.heard)][-1]

    def rest(self) -> bytes:
        """All that comes until the connection ends."""
        while not self.closed:
            self._hear()
        return self.heard

    def is_closed(self, within: float) -> bool:
        """Whether the other side closes the connection in so many seconds."""
        self._socket.settimeout(within)
        with contextlib.suppress(TimeoutError):
            self.rest()
        self._socket.settimeout(self.seconds)
        return self.closed

    def _hear(self) -> None:
        try:
            found = self._socket.recv(65536)
        except ConnectionResetError:
            found = b""
        self.heard += found
        self.closed = self.closed or not found

    def _found(self) -> list[int]:
        return [status for found in _STATUS.finditer(self.heard) if (status := int(found[1])) >= 200]


if __name__ == "__main__":
    main()
