"""Events for tests, and writers that commit them out of the order of their numbers."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime

from airflow_extract_provider.extract.events.event import Event, event_id
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.outbox import append, stamp
from tests.store.applier import EPOCH, in_thread

__all__ = ["an_event", "begin_writing", "fill", "left", "revisions", "table_of_records"]


def an_event(
    key: str,
    revision: int = 1,
    *,
    object: str = "things",
    type: str = "changed",
    time: datetime = EPOCH,
    data: bytes | None = b'{"n": 1}',
) -> Event:
    """An event of the source ``shop``."""
    id = event_id("shop", object, 1, key, type, revision, 0)
    return Event(id, "shop", object, type, key, time, revision, data)


def fill(conn: Connection, events: Sequence[Event], *, place: bool = True) -> None:
    """Store events in one transaction, and give them their places."""
    with conn.transaction():
        append(conn, "extract", events)
    if place:
        stamp(conn, "extract")


def table_of_records(conn: Connection, keys: int) -> None:
    """A table whose rows' locks the writers hold, as apply does."""
    conn.execute("create table record (key text primary key, revision bigint not null default 0)")
    conn.execute("grant select, update on record to public")
    conn.execute("insert into record (key) select 'k' || n from generate_series(0, %s) as n", [keys - 1])


def begin_writing(connect: Connect, writers: int, transactions: int, keys: int) -> list[Future[int]]:
    """Writers in threads, each with transactions of some records, committed after random delays; each tells how many
    events it has stored."""
    return [in_thread(lambda seed=seed: _write(connect, seed, transactions, keys)) for seed in range(writers)]  # type: ignore[misc]


def _write(connect: Connect, seed: int, transactions: int, keys: int) -> int:
    rng, stored = random.Random(seed), 0
    with connect() as conn:
        conn.autocommit = True
        for _ in range(transactions):
            # In one order, so that no two wait for each other; of each record one event or two.
            chosen = [f"k{number}" for number in sorted(rng.sample(range(keys), rng.randint(1, 3)))]
            with conn.transaction():
                for key in chosen:
                    stored += _change(conn, key, rng.randint(1, 2))
                    time.sleep(rng.random() * 0.002)
                time.sleep(rng.random() * 0.01 if rng.random() < 0.3 else 0)
    return stored


def _change(conn: Connection, key: str, times: int) -> int:
    asked = "update record set revision = revision + %s where key = %s returning revision"
    row = conn.execute(asked, [times, key]).fetchone()
    assert row is not None
    append(conn, "extract", [an_event(key, row[0] - back) for back in reversed(range(times))])
    return times


def revisions(events: Iterable[Event]) -> dict[str, list[int]]:
    """The revisions of each key's events, in the order in which they come."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for event in events:
        found[event.key].append(event.revision)
    return dict(found)


def left(conn: Connection) -> list[int]:
    """The places of the events that are kept."""
    return [row[0] for row in conn.execute("select place from extract.outbox order by place")]
