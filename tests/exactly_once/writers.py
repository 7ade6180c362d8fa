"""What the many writers do, each in a process of its own."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import connecting
from tests.exactly_once.oracle import RULES
from tests.store.applier import EPOCH, Applier, a_record

__all__ = ["a_source", "late", "overlapping", "versions", "walking"]

PAGE = 100


def a_source(**spec: Any) -> Source:
    """The source `shop`, whose object `things` has all kinds of rules."""
    things = {
        "path": "/things",
        "records": "data",
        "key": "id",
        "pages": {"by": "single"},
        "events": RULES,
        **spec,
    }
    return parse_source({"source": "shop", "connection": "shop", "objects": {"things": things}}, "test")


def versions(key: int, count: int) -> list[Record]:
    """All that a record will ever be, oldest first: the same for whoever asks."""
    chance = random.Random(key)
    return [a_record(f"k{key:05}", chance.randrange(100), version) for version in range(count)]


def overlapping(dsn: str, writer: int, records: int, count: int, pages: int) -> None:
    """Apply pages of random records in random versions, some twice on one page; at last each record's newest."""
    chance = random.Random(f"{writer} {records}")
    one = Applier(connecting(dsn), "things", f"w{writer}", a_source(version="updated_at"))
    for _ in range(pages):
        start = chance.randrange(records)
        keys = [(start + n) % records for n in range(PAGE)]
        page = [versions(key, count)[chance.randrange(count)] for key in [*keys, *keys[:10]]]
        chance.shuffle(page)
        cut = chance.choice([0, len(page) // 2])
        one.apply(*[part for part in (page[:cut], page[cut:]) if part])
    mine = [key for key in range(records) if key % 8 == writer]
    chance.shuffle(mine)
    for at in range(0, len(mine), PAGE):
        one.apply([versions(key, count)[-1] for key in mine[at : at + PAGE]])
    one.conn.close()


def walking(dsn: str, records: int, laps: int) -> None:
    """The one walk of an API without versions: each lap sees other values, and some records gone; in the last all are
    there."""
    chance = random.Random(records)
    one = Applier(connecting(dsn), "things", "backfill", a_source())
    for lap in range(laps):
        keys = [f"k{key:05}" for key in range(records)]
        gone = {key for key in keys if lap % 3 == 1 and chance.random() < 0.2}
        for at in range(0, records, PAGE):
            part = keys[at : at + PAGE]
            page = [a_record(key, _final(key) if lap == laps - 1 else chance.randrange(100)) for key in part]
            absent = tuple(key for key in part if key in gone)
            one.apply([each for each in page if each.key not in gone], gone=absent)
    one.conn.close()


def late(dsn: str, writer: int, records: int, turns: int) -> None:
    """Note records to be read again, and hand in looks at them that were taken long ago."""
    chance = random.Random(f"late {writer}")
    one = Applier(connecting(dsn), "things", f"w{writer}", a_source())
    for _ in range(turns):
        keys = sorted(chance.sample([f"k{key:05}" for key in range(records)], 20))
        refetch.note(one.conn, "extract", "shop", "things", keys[:10], "test")
        page = [a_record(key, chance.randrange(100)) for key in keys[10:]]
        one.apply(page, sent_at=EPOCH - timedelta(days=1), by_key=True)
    one.conn.close()


def _final(key: str) -> int:
    return int(key[1:]) % 100
