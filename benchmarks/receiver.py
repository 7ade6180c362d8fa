"""What the receiver costs beside what it is made of, and what it gains over the usual way.

Three servers take the same signed webhooks of about 1 KB over 50 connections, in turns, into the same table, each in
one process on uvicorn: `airflow-extract receiver` as it is installed; a bare ASGI application with the same group
commit, which checks an HMAC and does nothing else; and a FastAPI handler that makes one INSERT a webhook, on a pool of
ten connections. All of them answer when the commit has come.

Prints requests per second, p99 and the ratios, and fails (exit code 1) beyond the bounds. Run it with
`python benchmarks/receiver.py`; it takes about a minute and a half.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Annotated, Any

import psycopg
import uvicorn
import uvloop
from fastapi import FastAPI, Header, HTTPException, Request, Response

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.testing.postgres import ends_with_starter, free_port, postgres_or_embedded

TURNS, SECONDS, CONNECTIONS, SIZE = 15, 1.0, 50, 1000
OF_BARE, OF_FASTAPI = 0.85, 3.0
SECRET = b"it signs what the shop sends"
PATH = "/webhooks/shop/all"
SHOP = """\
source: shop
connection: shop_api
objects:
  orders: {path: /orders, records: data, key: id, pages: {by: last_key, send: after}}
webhooks:
  all: {verify: github, secret: shop_webhooks, dedupe: "{header:x-github-delivery}"}
"""


def main() -> int:
    """Measure all in turns, and compare."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as open:
        folder = Path(name)
        folder.chmod(0o755)
        server = open.enter_context(postgres_or_embedded(folder))
        dsn = server.create_database("bench")
        migrate(connecting(dsn), [])
        ports = {"ours": open.enter_context(receiver(folder, dsn))}
        for kind, app in (("bare", bare), ("fastapi", fastapi)):
            ports[kind] = open.enter_context(served(app, dsn))
        found = measured(ports, dsn, open.enter_context(loading()))
    return told(found)


def measured(ports: dict[str, int], dsn: str, load: Pipe) -> dict[str, list[tuple[float, float]]]:
    """Requests per second and p99 in milliseconds of each turn; the first one is to warm up."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ports}
    for turn in range(TURNS + 1):
        # Not always after the same one.
        for kind in list(ports)[turn % 3 :] + list(ports)[: turn % 3]:
            load.send((ports[kind], turn * len(ports) + list(ports).index(kind)))
            rate, p99, count = load.recv()
            with psycopg.connect(dsn, autocommit=True) as conn:
                assert conn.execute("select count(*) from extract.inbox").fetchone() == (count,)
                conn.execute("truncate extract.inbox")
                conn.execute("checkpoint")
            if turn:
                found[kind].append((rate, p99))
    return found


def told(found: dict[str, list[tuple[float, float]]]) -> int:
    """Print it; the exit code."""
    print(f"webhooks of {SIZE} bytes over {CONNECTIONS} connections, one process each; medians of {TURNS} turns")
    for kind, turns in found.items():
        rate, p99 = (statistics.median(each) for each in zip(*turns, strict=True))
        print(f"  {kind:8} {rate:8,.0f} requests/s   p99 {p99:5.1f} ms")
    bad = 0
    for other, bound in (("bare", OF_BARE), ("fastapi", OF_FASTAPI)):
        # Of the turns that were next to each other: what else the machine does then hits both.
        ratio = statistics.median(one / two for (one, _), (two, _) in zip(found["ours"], found[other], strict=True))
        bad += ratio < bound
        print(f"  ours     {ratio:5.2f} x {other:8} bound {bound}   {'ok' if ratio >= bound else 'FAILED'}")
    return 1 if bad else 0


# --- the three servers


@contextmanager
def receiver(folder: Path, dsn: str) -> Iterator[int]:
    """The receiver, as its command starts it; its port."""
    port, sources = free_port(), folder / "sources"
    sources.mkdir()
    (sources / "shop.yaml").write_text(SHOP, encoding="utf-8")
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    store = {"host": parts.get("host"), "login": parts.get("user"), "password": parts.get("password")}
    store |= {"schema": parts.get("dbname"), "port": parts.get("port") and int(str(parts["port"]))}
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW_CONN_EXTRACT_STORE": json.dumps({"conn_type": "postgres", **store}),
        "AIRFLOW_CONN_SHOP_WEBHOOKS": json.dumps({"conn_type": "webhook", "password": SECRET.decode()}),
    }
    command = [sys.executable, "-m", "airflow_extract_provider.receiver.main", "receiver", "--workers", "1"]
    command += ["--sources", str(sources), "--port", str(port)]
    with (folder / "receiver.log").open("wb") as log:
        ends = ends_with_starter(signal.SIGTERM)
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, preexec_fn=ends)  # noqa: PLW1509
    try:
        wait(port, "/ready", lambda: process.poll() is None)
        yield port
    except AssertionError:
        print((folder / "receiver.log").read_text(encoding="utf-8"))
        raise
    finally:
        process.terminate()
        process.wait()


@contextmanager
def served(app: Callable[[str], Any], dsn: str) -> Iterator[int]:
    """One of the others, in a process of its own; its port."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(app, dsn, port), daemon=True)
    process.start()
    try:
        wait(port, "/", process.is_alive)
        yield port
    finally:
        process.terminate()
        process.join()


def serve(app: Callable[[str], Any], dsn: str, port: int) -> None:
    """Serve until the process is ended."""
    uvicorn.run(
        app(dsn),
        port=port,
        http="httptools",
        loop="uvloop",
        interface="asgi3",
        access_log=False,
        log_level="warning",
        # As for the receiver: both cost each request something.
        proxy_headers=False,
        server_header=False,
    )


def wait(port: int, path: str, alive: Callable[[], bool]) -> None:
    """Return when something answers there."""
    while True:
        assert alive()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
            return
        except urllib.error.HTTPError as exc:
            if exc.code != 503:
                return
        except OSError:
            pass
        time.sleep(0.1)


def genuine(headers: dict[bytes, bytes], body: bytes) -> bool:
    """Whether the HMAC is right."""
    made = b"sha256=" + hmac.digest(SECRET, body, "sha256").hex().encode()
    return hmac.compare_digest(made, headers.get(b"x-hub-signature-256", b""))


def incoming(headers: dict[bytes, bytes], body: bytes) -> Incoming:
    """What goes into a row: the same as the receiver's."""
    digest = hashlib.blake2b(headers[b"x-github-delivery"] + body, digest_size=16).digest()
    return Incoming("shop", "all", body, {}, uuid.UUID(bytes=digest))


def bare(dsn: str) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """The least that can be called a receiver with a group commit."""
    waiting: list[tuple[Incoming, asyncio.Future[bool]]] = []
    news = asyncio.Event()
    busy: list[asyncio.Task[None]] = []
    text = statement("inbox.sql", "put", "extract").as_bytes()

    async def write() -> None:
        conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        while True:
            await news.wait()
            news.clear()
            batch = waiting[:]
            waiting.clear()
            all = [each for each, _ in batch]
            cursor = await conn.execute(text, inbox.parameters(all), binary=True)
            ((stored, dedupes),) = await cursor.fetchall()
            for is_new, (_, told) in zip(inbox.new(all, stored, dedupes), batch, strict=True):
                if not told.done():
                    told.set_result(bool(is_new))

    async def receive_one(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            busy.append(asyncio.create_task(write()))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers, status = dict(scope["headers"]), 401
        if genuine(headers, body):
            told = asyncio.get_running_loop().create_future()
            waiting.append((incoming(headers, body), told))
            news.set()
            await told
            status = 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return receive_one


def fastapi(dsn: str) -> Any:
    """A handler as FastAPI's documentation has one write it: parameters for what is read of the headers, a pool that is
    opened with the application."""
    pool: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for _ in range(10):
            pool.put_nowait(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post(PATH)
    async def receive(
        request: Request,
        x_github_delivery: Annotated[uuid.UUID, Header()],
        x_hub_signature_256: Annotated[str, Header()],
    ) -> Response:
        body = await request.body()
        if not genuine({b"x-hub-signature-256": x_hub_signature_256.encode()}, body):
            raise HTTPException(status_code=401)
        given = incoming({b"x-github-delivery": str(x_github_delivery).encode()}, body)
        conn = await pool.get()
        try:
            await conn.execute(
                "insert into extract.inbox (source, endpoint, dedupe, headers, body) values (%s, %s, %s, %s, %b) "
                "on conflict (source, endpoint, dedupe) where dedupe is not null do nothing",
                [given.source, given.endpoint, given.dedupe, "{}", given.body],
            )
        finally:
            pool.put_nowait(conn)
        return Response()

    return app


# --- who sends


@contextmanager
def loading() -> Iterator[Pipe]:
    """A process that sends: told a port and a number, it tells requests per second, p99 and how many it has sent."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=load, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    yield ours
    process.terminate()
    process.join()


def load(told: Pipe) -> None:
    """Send, whenever it is asked to."""
    while True:
        port, number = told.recv()
        # Signed before the clock runs.
        ready = [signed(number, nth) for nth in range(int(SECONDS * 30_000))]
        told.send(uvloop.run(send(port, ready)))


def signed(turn: int, nth: int) -> bytes:
    """A request."""
    id = uuid.UUID(int=(turn << 64) | nth)
    body = json.dumps({"id": str(id), "pad": "x" * (SIZE - 60)}).encode()
    signature = hmac.digest(SECRET, body, "sha256").hex()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: hooks.example.com\r\nUser-Agent: Shop/1.0\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nX-GitHub-Delivery: {id}\r\nX-Hub-Signature-256: sha256={signature}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection: sends the next when the answer to the last has come."""

    def __init__(self, ready: Iterator[bytes], until: float, took: list[float]) -> None:
        self._ready, self._until, self._took = ready, until, took
        self._began = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: Any = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        """The answer: small, so that it comes at once."""
        assert data.startswith(b"HTTP/1.1 200"), data
        assert data.endswith(b"\r\n\r\n"), data
        self._took.append(time.perf_counter() - self._began)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Too early, unless it is over."""
        if not self.ended.done():
            self.ended.set_exception(exc or EOFError())

    def _next(self) -> None:
        self._began = time.perf_counter()
        if self._began >= self._until:
            self.ended.set_result(None)
            self._transport.close()
        else:
            self._transport.write(next(self._ready))


async def send(port: int, ready: Sequence[bytes]) -> tuple[float, float, int]:
    """Send for some seconds: requests per second, p99 in milliseconds, how many."""
    took: list[float] = []
    began, loop, left = time.perf_counter(), asyncio.get_running_loop(), iter(ready)
    clients = [
        (await loop.create_connection(lambda: Client(left, began + SECONDS, took), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.gather(*(each.ended for each in clients))
    seconds = time.perf_counter() - began
    return len(took) / seconds, sorted(took)[int(0.99 * len(took))] * 1000, len(took)


if __name__ == "__main__":
    sys.exit(main())
