"""Coverage: which instants of an object the copy is complete for, and where it has holes, as the ledger tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Interval", "coverage", "covers"]

_FILE = "coverage.sql"


@dataclass(frozen=True, slots=True)
class Interval:
    """Instants of an object that are covered or, if it is a ``gap`` between two such, not. Aware; ``start`` None: from
    the beginning."""

    source: str
    object: str
    start: datetime | None
    end: datetime
    gap: bool


def coverage(conn: Connection, schema: str, source: str | None = None, object: str | None = None) -> list[Interval]:
    """The covered intervals of a source, an object or all, with the gaps between them, the earliest first.

    An object whose walks have never come to an end has none.
    """
    asked = {"source": source, "object": object}
    return [Interval(*row) for row in conn.execute(statement(_FILE, "coverage", schema), asked)]


def covers(conn: Connection, schema: str, source: str, object: str, start: datetime, until: datetime) -> bool:
    """Whether an object's copy is complete for all instants from ``start`` on and before ``until``."""
    asked = {"source": source, "object": object, "start": start, "until": until}
    return conn.execute(statement(_FILE, "covers", schema), asked).fetchone() == (True,)
