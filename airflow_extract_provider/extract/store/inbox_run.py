"""What a run that applies webhooks asks of the store besides: which records it has to read, what it has changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import datetime

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["changed", "noted"]

_FILE = "inbox_run.sql"


def noted(conn: Connection, schema: str, source: str) -> Mapping[str, int]:
    """Of which objects webhooks have asked for records to be read by their keys, now or before; and how many."""
    return dict(conn.execute(statement(_FILE, "noted", schema), {"source": source}).fetchall())


def changed(
    conn: Connection, schema: str, source: str, objects: Collection[str], since: datetime
) -> Mapping[str, Counter[str]]:
    """What webhooks have changed of these objects since then, by kind; read by key or not, by whichever run."""
    asked = {"source": source, "objects": sorted(objects), "since": since}
    found: dict[str, Counter[str]] = {}
    for object, kind, count in conn.execute(statement(_FILE, "changed", schema), asked):
        found.setdefault(object, Counter())[kind] = count
    return found
