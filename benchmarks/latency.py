"""Wall time of a backfill from an API that takes 100 ms to answer, against the time that is spent waiting for it.

One object by tokens, records of 1 KB, pages of 100; the quota is Postgres's. The server is a process of its own, and
adds up what it has slept. The next request should go out as soon as the last answer is there, while that is being
stored: then the walk takes hardly longer than the API. A bare loop, which reads the token, asks for the next page and
stores nothing, is measured beside it in turns: what it takes above the waiting is the machine's.

Prints the ratios and fails (exit code 1) above the bound. Run it with `python benchmarks/latency.py`.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.quota import PostgresQuota
from airflow_extract_provider.testing.postgres import postgres_or_embedded

LATENCY, PAGES, SIZE, TURNS, BOUND = 0.1, 100, 100, 3, 1.05


def main() -> int:
    """Measure both in turns, and compare with what the server has slept."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder).chmod(0o755)
        with postgres_or_embedded(folder) as server, serving() as (url, slept):
            connect = connecting(server.create_database("bench"))
            bare, walk = [], []
            for turn in range(TURNS):
                bare.append(ratio(partial(bare_loop, url), slept))
                source = a_source(f"bench{turn}")
                migrate(connect, [source])
                walk.append(ratio(partial(backfill, source, url, connect), slept))
    print(f"{PAGES * SIZE:,} records of 1 KB in {PAGES} pages, {LATENCY * 1000:.0f} ms each; medians of {TURNS} turns")
    print(f"  bare loop   {statistics.median(bare):5.3f} x the waiting")
    found = statistics.median(walk)
    print(f"  backfill    {found:5.3f} x the waiting   bound {BOUND}   {'ok' if found <= BOUND else 'FAILED'}")
    return 0 if found <= BOUND else 1


def ratio(work: Callable[[], None], slept: Pipe) -> float:
    """Wall time as a multiple of what the server has slept meanwhile."""
    slept.send(None)
    before = slept.recv()
    began = time.monotonic()
    work()
    took = time.monotonic() - began
    slept.send(None)
    waited: float = slept.recv() - before
    return took / waited


def bare_loop(url: str) -> None:
    """Page after page; nothing is done with the records."""
    with requests.Session() as session:
        token: str | None = ""
        while token is not None:
            token = session.get(f"{url}/things", params={"cursor": token}).json()["next"]


def backfill(source: Source, url: str, connect: Connect) -> None:
    """The whole of it: turns, pages cut, applied, ledger."""
    with requests.Session() as session:
        quota = PostgresQuota(connect, "extract", source.source, "none")
        with closing(ApiClient(source, session, url, quota=quota)) as client:
            summary = run(source, "things", postgres=connect, client=client)
    assert (summary.records, summary.requests) == (PAGES * SIZE, PAGES)


def a_source(name: str) -> Source:
    """A source with one object by tokens."""
    things = {"path": "/things", "records": "data", "key": "id", "version": "updated_at"}
    pages = {"by": "token", "take": "next", "send": "cursor"}
    return parse_source({"source": name, "connection": "none", "objects": {"things": {**things, "pages": pages}}}, "b")


@contextmanager
def serving() -> Iterator[tuple[str, Pipe]]:
    """The server's URL, and a pipe that tells what it has slept, in seconds, whenever something is sent."""
    ours, theirs = multiprocessing.Pipe()
    listening = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=serve, args=(listening, theirs), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", ours
    process.terminate()
    process.join()
    listening.close()


def serve(listening: socket.socket, told: Pipe) -> None:
    """Answer one connection after the other, from pages that were made before."""
    answers, slept = [answer(number) for number in range(PAGES)], 0.0
    listening.setblocking(False)
    while True:
        if told.poll(0.001):
            told.recv()
            told.send(slept)
        try:
            taken, _ = listening.accept()
        except BlockingIOError:  # nobody has connected yet
            continue
        with taken:
            taken.setblocking(True)
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := taken.recv(65536):
                cursor = head.partition(b"cursor=")[2].split(b" ")[0].split(b"&")[0]
                began = time.monotonic()
                time.sleep(LATENCY)
                slept += time.monotonic() - began
                taken.sendall(answers[int(cursor or 0)])


def answer(number: int) -> bytes:
    """A page, to the letter."""
    pad = {"name": f"n{uuid.uuid4()}", "tags": ["a", "b", "c"], "nested": {"text": "x" * 800, "n": number}}
    at = "2026-03-01T10:00:00Z"
    data = [{"id": f"k{number * SIZE + n:08}", "updated_at": at, **pad} for n in range(SIZE)]
    body = json.dumps({"data": data, "next": str(number + 1) if number + 1 < PAGES else None}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


if __name__ == "__main__":
    sys.exit(main())
