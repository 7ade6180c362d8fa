"""Many processes write the same records at once: the table is right, and each true transition is one event."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from airflow_extract_provider.extract.store.connection import Connection
from tests.exactly_once.oracle import expected, found, watch
from tests.exactly_once.writers import a_source, late, overlapping, versions, walking
from tests.forked import processes
from tests.store.applier import Applier, a_record
from tests.ways import Store

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
WRITERS = 8


def at_once(*work: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """Do all of it at the same time, each in a process of its own."""
    running = [processes.Process(target=function, args=args) for function, args in work]
    for each in running:
        each.start()
    for each in running:
        each.join(240)
    assert [each.exitcode for each in running] == [0] * len(running)


def deadlocks(conn: Connection) -> int:
    """How many the server has had to end in this database."""
    conn.execute("select pg_stat_clear_snapshot()")
    row = conn.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


def test_versions(store: Store, conn: Connection) -> None:
    """8 processes, 10,000 records of 4 versions each, overlapping pages in random order with repeats."""
    records, count = 10_000, 4
    store.migrate([a_source(version="updated_at")])
    watch(conn, "shop.things")
    at_once(*[(overlapping, (store.dsn, n, records, count, 200 if SOAK else 40)) for n in range(WRITERS)])
    stored: dict[str, int] = dict(conn.execute("select key, data -> 'value' from shop.things").fetchall())
    last = [versions(key, count)[-1] for key in range(records)]
    wanted = {each.key: a_value for each, a_value in zip(last, map(value_of, last), strict=True)}
    assert stored == wanted
    told, true = found(conn), expected(conn)
    assert told == true
    assert sum(map(len, true.values())) > 3 * records
    assert deadlocks(conn) == 0
    print(f"{sum(map(len, told.values())):,} events of {records:,} records, each once; no deadlock")


def test_no_versions(store: Store, conn: Connection) -> None:
    """One walk beside 7 processes that note refetches and hand in late payloads: these change nothing but notes."""
    records = 1_000
    store.migrate([a_source()])
    watch(conn, "shop.things")
    first = Applier(store.connect, "things", "backfill", a_source())
    first.apply([a_record(f"k{key:05}", 0) for key in range(records)])
    first.conn.close()
    laps = 60 if SOAK else 12
    at_once(
        (walking, (store.dsn, records, laps)),
        *[(late, (store.dsn, n, records, 300 if SOAK else 60)) for n in range(1, WRITERS)],
    )
    stored: dict[str, int] = dict(
        conn.execute("select key, data -> 'value' from shop.things where deleted_at is null").fetchall()
    )
    assert stored == {f"k{key:05}": key % 100 for key in range(records)}
    told, true = found(conn), expected(conn)
    assert told == true
    assert len(true) == records
    assert deadlocks(conn) == 0
    noted = conn.execute("select count(*) from extract.refetch").fetchone()
    print(f"{sum(map(len, told.values())):,} events, each once; {noted} notes; no deadlock")


def value_of(record: Any) -> Any:
    """The value that a record of the applier's holds."""
    return json.loads(record.raw)["value"]
