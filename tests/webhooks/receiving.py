"""The real command `airflow-extract receiver` as a child with its own process group, and who sends to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types
import requests
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.postgres import ends_with_starter, free_port

__all__ = ["PATH", "SECRET", "SHOP", "Attempt", "Delivery", "Process", "Sender", "connection", "deliveries"]

SECRET = "it signs what the shop sends"
PATH = "/webhooks/shop/all"
SHOP = """\
source: shop
connection: shop_api
objects:
  orders: {path: /orders, records: data, key: id, pages: {by: last_key, send: after}}
webhooks:
  all: {verify: github, secret: shop_webhooks, dedupe: "{header:x-github-delivery}"}
"""
START_SECONDS = 60.0


def connection(dsn: str) -> str:
    """A Postgres connection of Airflow, as its environment variable holds it."""
    parts = conninfo_to_dict(dsn)
    found = {"host": parts.get("host"), "login": parts.get("user"), "schema": parts.get("dbname")}
    found |= {"password": parts.get("password"), "port": int(str(parts["port"])) if "port" in parts else None}
    return json.dumps({"conn_type": "postgres", **{name: value for name, value in found.items() if value}})


class Process:
    """The receiver on a free port of 127.0.0.1, in a folder with source files; as a context manager it is ended."""

    def __init__(self, folder: Path, dsn: str, *options: str, sources: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "receiver.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")},
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW_CONN_EXTRACT_STORE": connection(dsn),
            "AIRFLOW_CONN_SHOP_WEBHOOKS": json.dumps({"conn_type": "webhook", "password": SECRET}),
        }
        (folder / "sources").mkdir()
        for name, text in (sources or {"shop.yaml": SHOP}).items():
            (folder / "sources" / name).write_text(text, encoding="utf-8")
        module = "airflow_extract_provider.receiver.main"
        self.command = [sys.executable, "-m", module, "receiver", "--sources", str(folder / "sources")]
        self.command += ["--port", str(self.port), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start, and wait until it is ready."""
        self.start()
        self.wait()
        return self

    def __exit__(self, *error: object) -> None:
        """End all of it."""
        self.kill()

    @property
    def pid(self) -> int:
        """The parent's."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, at the head of a group of its own."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ends_with_starter(signal.SIGTERM),  # noqa: PLW1509 - it makes one system call
            )

    def wait(self) -> None:
        """Return when it is ready to store."""
        until = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self._process is not None
            assert self._process.poll() is None, self.told()
            assert time.monotonic() < until, self.told()
            time.sleep(0.05)

    def ended(self, seconds: float = 60.0) -> int:
        """Wait for its end; its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def running(self) -> bool:
        """Whether the parent is there."""
        return self._process is not None and self._process.poll() is None

    def workers(self) -> list[int]:
        """The processes that receive."""
        found = []
        for each in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                found += [each.pid] if "receiver.main" in " ".join(each.cmdline()) else []
        return found

    def stop(self) -> int:
        """End it in order; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        """End all of its group as `kill -9` does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def told(self) -> str:
        """All that it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/ready", timeout=5).ok
        except requests.RequestException:
            return False


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook with its signature: the bytes of the request that brings it."""

    id: str
    body: bytes
    request: bytes


def deliveries(count: int, path: str = PATH, size: int = 1000) -> Iterator[Delivery]:
    """Genuine webhooks, of sizes around ``size``; no two are alike, and the same each time."""
    for number in range(count):
        id, pad = str(uuid.UUID(int=number)), random.Random(number).randbytes(size // 2 + number % size)
        body = b'{"number": %d, "pad": "' % number + pad + b'"}'
        signature = hmac.digest(SECRET.encode(), body, hashlib.sha256).hex()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: hooks.example.com\r\nContent-Type: application/json\r\n"
            f"X-GitHub-Delivery: {id}\r\nX-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        yield Delivery(id, body, head.encode() + body)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to deliver: when it began and ended (monotonic), and its status; None: no answer came."""

    delivery: Delivery
    began: float
    ended: float
    status: int | None

    @property
    def good(self) -> bool:
        """Whether it was answered 2xx."""
        return self.status is not None and 200 <= self.status < 300


class _Link:
    """One connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def answered(self, request: bytes) -> int:
        """The status of the answer. Raises OSError or EOFError: there is none."""
        if self._open is None:
            self._open = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._open
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].split(b"\r\n")[0].strip()
        await reader.readexactly(int(length or 0))
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ")[1])

    def close(self) -> None:
        """Close it, if it is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


@dataclass
class Sender:
    """Sends as an API does, over so many connections: again and again until it is answered 2xx. ``pause`` is the most
    that a connection waits after each try, in seconds."""

    port: int
    pause: float = 0.0
    patience: float = 20.0
    attempts: list[Attempt] = field(default_factory=list)
    waiting: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)

    @asynccontextmanager
    async def sending(self, connections: int) -> AsyncIterator[None]:
        """So many connections, at work for as long as the block lasts."""
        tasks = [asyncio.create_task(self._work()) for _ in range(connections)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        link = _Link(self.port)
        try:
            while True:
                delivery = await self.waiting.get()
                while not await self._tried(link, delivery):
                    pass
                self.waiting.task_done()
        finally:
            link.close()

    async def _tried(self, link: _Link, delivery: Delivery) -> bool:
        """Try once; returns whether it was answered 2xx."""
        began, status = time.monotonic(), None
        try:
            async with asyncio.timeout(self.patience):
                status = await link.answered(delivery.request)
        except (OSError, EOFError, TimeoutError):
            link.close()
        self.attempts.append(attempt := Attempt(delivery, began, time.monotonic(), status))
        # Spread by the delivery's own bytes. Who tried again at once would leave no time for whoever has to come back.
        await asyncio.sleep(max(self.pause * delivery.body[-3] / 255, 0 if attempt.good else 0.02))
        return attempt.good

    async def delivered(self, what: Sequence[Delivery], connections: int) -> None:
        """Deliver all, over so many connections."""
        self.waiting = asyncio.Queue()
        async with self.sending(connections):
            await self.deliver(what)

    async def deliver(self, what: Sequence[Delivery]) -> None:
        """Hand them out, and return when all are delivered."""
        for each in what:
            self.waiting.put_nowait(each)
        await self.waiting.join()
