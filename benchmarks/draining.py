"""How fast webhooks that wait are applied: 100,000 of them, of 1 KB, each about another version of one of 20,000
records, with an event a change.

They stand in the inbox of a real Postgres, as the receiver stores them, in the order of their versions and in none; the
records are there already. Each draining is a process of its own, in turns. Beside the rate: the most memory that the
process has had for 30,000 waiting webhooks and for all of them, which must not differ. (With fewer, its two runs are
hardly ever both at their largest batch: for 10,000 it is a tenth less.)

Prints the figures and fails (exit code 1) beyond the bounds. Run it with `python benchmarks/draining.py [WEBHOOKS]`.
Linux only: what a process has used is read from /proc.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.webhooks.drain import drain
from airflow_extract_provider.testing.postgres import EmbeddedPostgres

FEW, MANY, RECORDS, TURNS = 30_000, 100_000, 20_000, 3
RATE, MEMORY = 5_000, 1.1
FIRST = datetime(2026, 3, 1, tzinfo=timezone.utc)
FILLING = "x" * 800


def main() -> int:
    """Measure in turns."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else MANY
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(folder) as server:
            dsn = server.create_database("bench")
            migrate(connecting(dsn), [a_source()])
            with psycopg.connect(dsn, autocommit=True) as conn:
                return 0 if measured(conn, dsn, many) else 1


def measured(conn: Connection, dsn: str, many: int) -> bool:
    """Take turns, and print what they took; whether the bounds are kept."""
    turns = []
    for turn in range(TURNS):
        few = drained(conn, dsn, FEW, f"few {turn}", shuffled=False)
        turns.append((few, *(drained(conn, dsn, many, f"{turn}", shuffled=shuffled) for shuffled in (False, True))))
    size = len(next(bodies(1, random.Random(1), shuffled=False)))
    print(f"{many:,} webhooks of {size} bytes about {RECORDS:,} records; medians of {TURNS} turns")
    rates = []
    for nth, what in ((1, "in their order"), (2, "in no order")):
        found = [turn[nth] for turn in turns]
        rates.append(many / statistics.median(each["seconds"] for each in found))
        stored = statistics.median(each["updated"] for each in found)
        older = many - stored
        print(f"  {what:16} {rates[-1]:8,.0f} records/s   {stored:,.0f} stored, {older:,.0f} older ones passed over")
    peaks = [statistics.median(turn[nth]["peak"] for turn in turns) for nth in (0, 1)]
    print(f"  peak memory: {peaks[0] / 1024:.1f} MiB for {FEW:,}, {peaks[1] / 1024:.1f} MiB for {many:,}")
    kept = [
        told("records/s", min(rates), RATE, min(rates) >= RATE),
        told("peak memory as a multiple", peaks[1] / peaks[0], MEMORY, peaks[1] / peaks[0] <= MEMORY),
    ]
    return all(kept)


def told(what: str, found: float, bound: float, kept: bool) -> bool:
    """Print one line; whether the bound is kept."""
    print(f"  {what:30} {found:10,.2f}   bound {bound:8,}   {'ok' if kept else 'FAILED'}")
    return kept


def drained(conn: Connection, dsn: str, count: int, seed: str, *, shuffled: bool) -> dict[str, float]:
    """Let webhooks wait, and apply them in a process of its own."""
    prepare(conn)
    found = list(bodies(count, random.Random(seed), shuffled=shuffled))
    for begin in range(0, count, 1000):
        inbox.put(conn, "extract", [Incoming("bench", "main", each) for each in found[begin : begin + 1000]])
    conn.execute("vacuum (analyze) extract.inbox, bench.things, extract.outbox, extract.brought")
    done = subprocess.run([sys.executable, __file__, "--once", dsn], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert result["messages"] == count
    newest = conn.execute("select count(*), count(*) filter (where revision > 1) from bench.things").fetchone()
    assert newest is not None
    assert newest[0] == RECORDS
    return result


def prepare(conn: Connection) -> None:
    """The records as a backfill has stored them, and nothing else."""
    conn.execute("truncate extract.inbox, extract.outbox, extract.brought, bench.things, extract.ledger")
    conn.execute(
        """insert into bench.things (key, data, version, raw_hash, applied_at)
           select n::text, jsonb_build_object('id', n, 'value', 0, 'updated_at', %(first)s::text), %(first)s, '', now()
           from generate_series(1, %(records)s) as n""",
        {"first": FIRST, "records": RECORDS},
    )
    conn.execute(
        """insert into extract.ledger (source, object, walk, kind, position) values
           ('bench', 'things', 'backfill', 'page', '{"complete": true}')"""
    )


def bodies(count: int, chance: random.Random, *, shuffled: bool) -> Iterator[bytes]:
    """Webhooks of rising versions; or in no order."""
    versions = list(range(1, count + 1))
    if shuffled:
        chance.shuffle(versions)
    for n in versions:
        at = (FIRST + timedelta(seconds=n)).isoformat()
        data = {"id": n % RECORDS + 1, "value": n, "updated_at": at, "note": FILLING}
        yield json.dumps({"id": f"evt_{n}", "type": "thing.updated", "data": data}).encode()


def once(dsn: str) -> None:
    """In a process of its own: apply what waits, and tell what it took."""
    began = time.monotonic()
    done = drain(a_source(), postgres=connecting(dsn))
    told = {"seconds": time.monotonic() - began, "peak": peak(), "messages": done.counts["messages"]}
    assert done.waiting == 0
    assert done.counts["events"] == done.counts["updated"]
    print(json.dumps({**told, "updated": done.counts["updated"]}))


def peak() -> int:
    """The most memory that this process has had, in KiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def a_source() -> Source:
    """An object with versions, events and webhooks."""
    things = {
        "path": "/things",
        "records": "data",
        "key": "id",
        "version": "updated_at",
        "pages": {"by": "single"},
        "by_key": {"path": "/things/{{ key }}"},
        "events": [{"changed": {"field": "value"}}],
    }
    types = {"thing.updated": {"object": "things", "record": "data"}}
    hooks = {"main": {"verify": "github", "secret": "none", "type": "type", "types": types}}
    spec = {"source": "bench", "connection": "none", "objects": {"things": things}, "webhooks": hooks}
    return parse_source(spec, "benchmark")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2])
    else:
        sys.exit(main())
