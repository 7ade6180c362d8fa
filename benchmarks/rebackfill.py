"""What it costs to read everything again when nothing has changed: a sweep over 1,000,000 records, beside a bare loop.

Records of 1 KB with nested parts, on pages of 100 by tokens, over loopback. The bare loop is what one writes without
all this: a raw socket, each page parsed, one binary upsert and a commit a page, into a table of the same shape that
holds all the records. It knows nothing of cursors, retries, changes or deletes. The same with `requests`, as the sweep
uses it, is told beside. Each reading is a process of its own,
in turns; the ratio is the median of the turns'. CPU is that of the reading, without its imports, and of its Postgres
backends; the API's server is another process, and does not count.

Both tables are vacuumed before each turn, as the autovacuum would do it. That is off: its CPU would be taken for a
backend's. Then comes a checkpoint, so that the log holds the whole blocks that are written once after each.

Prints the figures and fails (exit code 1) above the bounds. Run it with `python benchmarks/rebackfill.py [RECORDS]`: it
takes minutes, and some GB of disk meanwhile. Linux only: what a process has used is read from /proc.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import requests
from psycopg import sql

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.quota import PostgresQuota
from airflow_extract_provider.testing.postgres import EmbeddedPostgres

FEW, MANY, SIZE, TURNS = 50_000, 1_000_000, 100, 3
CPU, WAL, MEMORY = 0.7, 50, 1.1
NESTED: Mapping[str, object] = {
    "status": "active",
    "owner": {"name": "Some Owner", "mail": "owner@example.com", "tags": ["a", "b"]},
    "lines": [{"sku": f"s{n}", "count": n, "price": f"{n}.99", "note": "x" * 60} for n in range(6)],
    "address": {"street": "1 Long Street", "city": "Somewhere", "zip": "12345", "note": "y" * 100},
}
RECORD = b'{"id": "k%08d", "updated_at": "2026-03-01T10:00:00Z", ' + json.dumps(NESTED)[1:].encode()
PAGE = b'{"data": [' + b", ".join([RECORD] * SIZE) + b'], "next": %b}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
UPSERT = """
insert into bare (key, data, version, raw_hash, applied_at)
select key, data::jsonb, version, '', clock_timestamp()
from unnest(%b::text[], %b::text[], %b::timestamptz[]) as given (key, data, version)
on conflict (key) do update
    set data = excluded.data, version = excluded.version, raw_hash = excluded.raw_hash, applied_at = excluded.applied_at
"""
STOOD = """
select count(*), count(*) filter (where xmax <> 0),
       sum(hashtextextended(concat_ws(' ', key, ctid, xmin, revision, applied_at), 0))
from {}
"""


@dataclass(frozen=True)
class Reading:
    """What one reading took: seconds, CPU seconds of the process and of Postgres, bytes of log, the most KiB of memory
    that the process had."""

    seconds: float
    own: float
    postgres: float
    written: int
    peak: int

    @property
    def cpu(self) -> float:
        """CPU seconds of both."""
        return self.own + self.postgres


class Stage:
    """An object ``few`` and an object ``many``, both filled, and the table of the bare loop."""

    def __init__(
        self, server: EmbeddedPostgres, conn: Connection, place: Sequence[str], counts: Mapping[str, int]
    ) -> None:
        self._server, self._conn, self._place, self._counts = server, conn, place, counts
        migrate(connecting(place[0]), [a_source(counts)])
        for object in counts:
            self.reading("backfill", object)
        conn.execute("create table bare (like bench.many including all)")
        conn.execute("insert into bare select * from bench.many")

    def reading(self, what: str, object: str) -> Reading:
        """One reading of an object, in a process of its own."""
        self._conn.execute("vacuum (analyze)")
        self._conn.execute("checkpoint")
        idle, used, written = self._processes(), self._used(), self._written()
        command = [sys.executable, __file__, "--once", what, object, json.dumps(self._counts), *self._place]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        while self._processes() != idle:  # what a backend has used is known when it has ended
            time.sleep(0.01)
        told = json.loads(done.stdout.splitlines()[-1])
        return Reading(postgres=self._used() - used, written=self._written() - written, **told)

    def stood(self) -> tuple[int, ...]:
        """Of the large object's table: the rows, those ever locked, and a sum that is another one if a row was written.

        What counts updates in Postgres knows nothing of locks, which are written into the row, too.
        """
        row = self._conn.execute(sql.SQL(STOOD).format(sql.Identifier("bench", "many"))).fetchone()
        assert row is not None
        return row

    def _written(self) -> int:
        """How many bytes of log the server has written since ever."""
        row = self._conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert row is not None
        return int(row[0])

    def _used(self) -> float:
        """CPU seconds of the server's processes that have ended, so of all backends and their parallel workers but this
        one, and of those that read files for them."""
        readers = self._conn.execute("select pid from pg_stat_activity where backend_type = 'io worker'")
        own, ended = slice(11, 13), slice(13, 15)
        return times(self._server.pid, ended) + sum(times(pid, own) for (pid,) in readers)

    def _processes(self) -> str:
        pid = self._server.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def main() -> int:
    """Measure in turns, and compare."""
    counts = {"few": FEW, "many": int(sys.argv[1]) if len(sys.argv) > 1 else MANY}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(folder, {"autovacuum": "off"}) as server, serving(counts) as port:
            dsn = server.create_database("bench")
            with psycopg.connect(dsn, autocommit=True) as conn:
                return 0 if compared(Stage(server, conn, [dsn, str(port)], counts), counts["many"]) else 1


def compared(stage: Stage, many: int) -> bool:
    """Take turns, and print what they took; whether the bounds are kept."""
    before = stage.stood()
    turns = [
        [stage.reading(*of) for of in (("sweep", "few"), ("sweep", "many"), ("bare", "many"), ("usual", "many"))]
        for _ in range(TURNS)
    ]
    after = stage.stood()
    few, sweeps, loops, usual = zip(*turns, strict=True)
    print(f"{many:,} records of {len(RECORD)} bytes on pages of {SIZE}, nothing changed; medians of {TURNS} turns")
    tell("sweep", sweeps, many)
    tell("bare loop", loops, many)
    tell("  requests", usual, many)
    peaks = [statistics.median(each.peak for each in found) for found in (few, sweeps)]
    print(f"  peak memory of a sweep: {peaks[0] / 1024:.1f} MiB for {FEW:,}, {peaks[1] / 1024:.1f} MiB for {many:,}")
    ratio, beside = (
        statistics.median(ours.cpu / other.cpu for ours, other in zip(sweeps, others, strict=True))
        for others in (loops, usual)
    )
    print(f"  {'CPU as a multiple of that with requests':38} {beside:6.2f}")
    kept = [
        within("CPU as a multiple of the bare loop's", ratio, CPU),
        within("WAL in bytes a record", max(each.written for each in sweeps) / many, WAL),
        within("peak memory as a multiple", peaks[1] / peaks[0], MEMORY),
    ]
    stood = before == after and after[:2] == (many, 0)
    print(
        f"  rows of the table: {'none' if before == after else 'SOME'} written, {after[1]:,} locked"
        f"   {'ok' if stood else 'FAILED'}"
    )
    return all([*kept, stood])


def tell(what: str, found: Sequence[Reading], records: int) -> None:
    """Print what one way of reading takes."""
    own, postgres, cpu, written = (
        statistics.median(getattr(each, of) for each in found) / records for of in ("own", "postgres", "cpu", "written")
    )
    rate = records / statistics.median(each.seconds for each in found)
    parts = f"{own * 1e6:5.1f} of the process, {postgres * 1e6:5.1f} of Postgres"
    print(
        f"  {what:10} CPU {cpu * 1e6:5.1f} us a record ({parts})   WAL {written:7,.1f} bytes   {rate:7,.0f} records/s"
    )


def within(what: str, found: float, bound: float) -> bool:
    """Print one line; whether the bound is kept."""
    print(f"  {what:38} {found:6.2f}   bound {bound:4}   {'ok' if found <= bound else 'FAILED'}")
    return found <= bound


def times(pid: int | None, of: slice) -> float:
    """Seconds of a process, of those in /proc/*/stat behind its name (proc_pid_stat(5))."""
    behind = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, behind[of])) / os.sysconf("SC_CLK_TCK")


def once(what: str, object: str, counts: Mapping[str, int], dsn: str, port: int) -> None:
    """In a process of its own: one reading, and what it took."""
    began, used = time.monotonic(), time.process_time()
    loops = {"bare": raw, "usual": by_requests}
    if what in loops:
        records = bare_loop(loops[what](f"/{object}", port), dsn)
    else:
        records = walk(a_source(counts), object, what, dsn, port)
    found = {"seconds": time.monotonic() - began, "own": time.process_time() - used, "peak": peak()}
    assert records == counts[object]
    print(json.dumps(found))


def peak() -> int:
    """The most memory that this process has had, in KiB. (`getrusage` would count that of the one that started it.)"""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def walk(source: Source, object: str, what: str, dsn: str, port: int) -> int:
    """A backfill, or a sweep that finds nothing; returns how many records it has read."""
    connect = connecting(dsn)
    with requests.Session() as session:
        quota = PostgresQuota(connect, "extract", source.source, source.connection)
        with closing(ApiClient(source, session, f"http://127.0.0.1:{port}", quota=quota)) as client:
            if what == "backfill":
                return run(source, object, postgres=connect, client=client).records
            summary = run(source, object, "rebackfill", postgres=connect, client=client, reset=True)
    assert summary.counts["unchanged"] == summary.records
    assert summary.sweep is not None
    assert [summary.sweep[name] for name in ("seen", "absent", "changed")] == [summary.records, 0, 0]
    return summary.records


def bare_loop(pages: Iterator[dict[str, Any]], dsn: str) -> int:
    """Page after page: fetch, parse, upsert, commit. Returns how many records it has read."""
    read = 0
    with psycopg.connect(dsn) as conn, closing(pages):  # type: ignore[type-var]  # they are generators
        for page in pages:
            data = page["data"]
            versions = [datetime.fromisoformat(record["updated_at"]) for record in data]
            columns = [[record["id"] for record in data], [json.dumps(record) for record in data], versions]
            conn.execute(UPSERT, columns, binary=True)
            conn.commit()
            read += len(data)
    return read


def raw(path: str, port: int) -> Iterator[dict[str, Any]]:
    """The pages, through a socket."""
    token: str | None = ""
    with socket.create_connection(("127.0.0.1", port)) as api, api.makefile("rb") as got:
        while token is not None:
            api.sendall(b"GET %b?cursor=%b HTTP/1.1\r\nHost: api\r\n\r\n" % (path.encode(), token.encode()))
            length = 0
            while (header := got.readline()) != b"\r\n":
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            page = json.loads(got.read(length))
            token = page["next"]
            yield page


def by_requests(path: str, port: int) -> Iterator[dict[str, Any]]:
    """The pages, through the library."""
    token: str | None = ""
    with requests.Session() as session:
        while token is not None:
            page = session.get(f"http://127.0.0.1:{port}{path}", params={"cursor": token}).json()
            token = page["next"]
            yield page


def a_source(counts: Mapping[str, int]) -> Source:
    """A source with these objects."""
    things = {"records": "data", "key": "id", "version": "updated_at"}
    pages = {"by": "token", "take": "next", "send": "cursor"}
    objects = {name: {**things, "path": f"/{name}", "pages": pages} for name in counts}
    return parse_source({"source": "bench", "connection": "none", "objects": objects}, "bench")


@contextmanager
def serving(counts: Mapping[str, int]) -> Iterator[int]:
    """The port of the API, a process of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(target=serve, args=(listening, counts), daemon=True)
    process.start()
    try:
        yield listening.getsockname()[1]
    finally:
        process.terminate()
        process.join()
        listening.close()


def serve(listening: socket.socket, counts: Mapping[str, int]) -> None:
    """Answer one connection after the other."""
    while True:
        taken, _ = listening.accept()
        with taken:
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while asked := taken.recv(65536):
                path, _, query = asked.split(b" ", 2)[1].decode().partition("?cursor=")
                taken.sendall(answer(int(query or 0), counts[path[1:]]))


def answer(start: int, count: int) -> bytes:
    """A page, to the letter."""
    end = start + SIZE
    body = PAGE % (*range(start, end), b'"%d"' % end if end < count else b"null")
    return HEAD % len(body) + body


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
    else:
        sys.exit(main())
