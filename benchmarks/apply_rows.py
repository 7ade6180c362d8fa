"""Rows per second into Postgres, each with what makes it exact: locked, compared, stored, its event in the outbox.

First as a text would say it, row by row: begin, `select ... for update`, compare, upsert, event, commit. Then the same
rows through apply, a page at a time, with the ledger and the fence, which the row-by-row text does without. Both on one
server with its default settings, in turns, in one run; the ratio is the median of the turns'. Records are 1 KB with
nested parts. Most of what the row-by-row text costs is a commit a row: the slower the disk, the higher the ratio.

Prints the ratios and fails (exit code 1) below the bounds. Run it with `python benchmarks/apply_rows.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import xxhash

from airflow_extract_provider.extract.cursor import AfterKey, Position
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.apply import Batch, apply
from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.testing.postgres import postgres_or_embedded

ROWS, FEW, TURNS = 4_000, 400, 7
SOURCE = parse_source(
    {
        "source": "bench",
        "connection": "none",
        "objects": {
            "things": {
                "path": "/things",
                "records": "data",
                "key": "id",
                "version": "updated_at",
                "pages": {"by": "single"},
                "events": ["created", "changed"],
            }
        },
    },
    "bench",
)
EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)
SETUP = """
create table by_row (key text primary key, data jsonb not null, version timestamptz, raw_hash bytea not null);
create table by_row_events (id text primary key, sequence bigint generated always as identity, key text, data jsonb);
"""


def main() -> int:
    """Measure both ways of each case, and compare."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder).chmod(0o755)
        with postgres_or_embedded(folder) as server:
            connect = connecting(server.create_database("bench"))
            migrate(connect, [SOURCE])
            with connect() as conn:
                conn.autocommit = True
                conn.execute(SETUP)
                return 0 if all(list(cases(conn))) else 1


def cases(conn: Connection) -> Iterator[bool]:
    """The cases. Each turn has rows of its own to begin with, or finds what the turn before has left."""
    print(f"{ROWS:,} records of {len(a_record(0, 0).raw)} bytes; rows per second, medians of {TURNS} turns")
    yield told(
        "all are new, pages of 1,000", conn, 1000, 15, lambda turn: [a_record(turn * ROWS + n, 0) for n in range(ROWS)]
    )
    conn.execute("truncate bench.things, by_row, by_row_events, extract.outbox")
    by_row(conn, records(0))
    by_page(conn, records(0), 1000)
    yield told("all differ, pages of 1,000", conn, 1000, 8, lambda turn: records(turn + 1))
    before = records(TURNS)
    yield told("1 % differ, pages of 100", conn, 100, 20, lambda turn: records(turn + 100, changed=100, before=before))
    last = records(TURNS + 99, changed=100, before=before)
    yield told("1 % differ, pages of 1,000", conn, 1000, 40, lambda turn: records(turn + 200, changed=100, before=last))
    last = records(TURNS + 199, changed=100, before=last)
    for size in (100, 1000):
        yield unchanged(conn, last, size)


def told(what: str, conn: Connection, size: int, bound: float, made: Callable[[int], list[Record]]) -> bool:
    """Take turns, and print one line; whether the bound is kept. Row by row only a part is done: it takes long."""
    rows, ours = [], []
    for turn in range(TURNS):
        found = made(turn)
        rows.append(by_row(conn, found[:FEW]))
        ours.append(by_page(conn, found, size))
    ratio = statistics.median(own / row for own, row in zip(ours, rows, strict=True))
    print(
        f"  {what:30} row by row {statistics.median(rows):7,.0f}   apply {statistics.median(ours):9,.0f}"
        f"   ratio {ratio:5.1f}   bound {bound:3}   {'ok' if ratio >= bound else 'FAILED'}"
    )
    return ratio >= bound


def unchanged(conn: Connection, found: Sequence[Record], size: int) -> bool:
    """What a page without news writes to the log of the database."""
    conn.execute("checkpoint")
    by_page(conn, found, size)  # the first change of a block after a checkpoint is logged as a whole block
    before = lsn(conn)
    rate = by_page(conn, found, size)
    written = (lsn(conn) - before) / len(found)
    ok = written < 50
    print(
        f"  {f'none differs, pages of {size:,}':30} apply {rate:9,.0f}   WAL {written:4.1f} bytes a record"
        f"   bound  50   {'ok' if ok else 'FAILED'}"
    )
    return ok


def lsn(conn: Connection) -> int:
    """How many bytes of log the server has written since ever."""
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def records(turn: int, *, changed: int = 1, before: Sequence[Record] = ()) -> list[Record]:
    """All records; each ``changed``-th one is of this turn, the others are as ``before``."""
    return [a_record(n, turn) if n % changed == 0 or not before else before[n] for n in range(ROWS)]


def a_record(number: int, turn: int) -> Record:
    """About 1 KB, nested, as APIs have them."""
    version = EPOCH + timedelta(seconds=turn)
    told = {
        "id": f"k{number:07}",
        "updated_at": version.isoformat(),
        "status": f"status {turn}",
        "amount": number * 100 + turn,
        "owner": {"name": f"Owner {number % 97}", "mail": f"owner{number % 97}@example.com", "tags": ["a", "b"]},
        "lines": [{"sku": f"s{n}", "count": n, "price": f"{n}.99", "note": "x" * 60} for n in range(6)],
        "address": {"street": f"{number} Long Street", "city": "Somewhere", "zip": "12345", "note": "y" * 100},
    }
    return Record(told["id"], json.dumps(told, separators=(",", ":")).encode(), version)  # type: ignore[arg-type]


def timed(work: Callable[[], None], rows: int) -> float:
    """Rows per second of one way."""
    began = time.perf_counter()
    work()
    return rows / (time.perf_counter() - began)


def by_row(conn: Connection, found: Sequence[Record]) -> float:
    """The text, row by row."""

    def work() -> None:
        for record in found:
            raw_hash = xxhash.xxh3_128_digest(record.raw)
            with conn.transaction():
                row = conn.execute(
                    "select raw_hash, version, data::text from by_row where key = %s for update", [record.key]
                ).fetchone()
                if row is not None and (row[0] == raw_hash or row[1] > record.version):
                    continue
                conn.execute(
                    "insert into by_row (key, data, version, raw_hash) values (%s, %s, %s, %s) on conflict (key)"
                    " do update set data = excluded.data, version = excluded.version, raw_hash = excluded.raw_hash",
                    [record.key, record.raw.decode(), record.version, raw_hash],
                )
                conn.execute(
                    "insert into by_row_events (id, key, data) values (%s, %s, %s)",
                    [uuid.uuid4().hex, record.key, event(record.raw, None if row is None else row[2])],
                )

    return timed(work, len(found))


def event(record: bytes, before: str | None) -> str:
    """What an event holds: the record, and what it was before."""
    told = {"record": msgspec.Raw(record)}
    if before is not None:
        told["before"] = msgspec.Raw(before.encode())
    return msgspec.json.encode(told).decode()


def by_page(conn: Connection, found: Sequence[Record], size: int) -> float:
    """Apply, a page a transaction."""
    target = Target.of(SOURCE, "things", "extract")
    fence = acquire(conn, "extract", Scope("bench", "things", "*"), "bench", "bench", silent_after=timedelta(minutes=5))
    ledger = Ledger("extract", "bench", "things", "backfill")

    def work() -> None:
        for start in range(0, len(found), size):
            page = tuple(found[start : start + size])
            entry = Entry("page", Position(AfterKey("x"), pages=1), "bench", EPOCH, len(page))
            sent_at = datetime.now(timezone.utc)
            apply(conn, target, fence, ledger, [Batch(page, sent_at, entry)])

    return timed(work, len(found))


if __name__ == "__main__":
    sys.exit(main())
