"""How the inbox stands: what waits, what was applied, what is dead, of each endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Standing", "standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """An endpoint: its deliveries that are ``waiting``, messages that are ``parked`` to be tried again or ``dead``;
    deliveries that are ``applied`` altogether and still kept, and those of them of ``today`` (in UTC). ``oldest`` is
    the age of the oldest that waits or is parked, ``received_at`` when the last one came, None where there is none.
    ``duplicates`` and ``forged`` ones are of today and yesterday."""

    source: str
    endpoint: str
    waiting: int
    parked: int
    dead: int
    applied: int
    today: int
    oldest: timedelta | None
    received_at: datetime | None
    duplicates: int
    forged: int


def standing(conn: Connection, schema: str, source: str | None = None) -> list[Standing]:
    """The endpoints of a source, or of all, that anything has come to. It reads the whole inbox, but no body."""
    rows = conn.execute(statement("standing.sql", "standing", schema), {"source": source})
    return [Standing(*row) for row in rows]
