"""Records that cannot be stored as they are, kept in their own bytes (law: nothing bad is dropped silently)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import xxhash

from airflow_extract_provider.extract.page import SetAside
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Quarantined", "Taken", "delete", "ids", "keep", "listed", "set_aside", "stored", "take"]

_FILE = "quarantine.sql"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row of the quarantine, for people. ``raw`` is personal data: it is shown only to whoever asks for it."""

    id: int
    source: str
    object: str
    page: int | None
    number: int
    key: str | None
    why: str
    seen: int
    noted_at: datetime
    seen_at: datetime
    raw: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """A row of the quarantine that is being replayed, locked. ``sent_at`` is that of the last page that showed it."""

    id: int
    page: int | None
    number: int
    raw: bytes
    sent_at: datetime


def set_aside(
    conn: Connection,
    schema: str,
    source: str,
    object: str,
    page: int | None,
    sent_at: datetime,
    cause: str,
    bad: Iterable[SetAside],
) -> None:
    """Keep bad records of a page, in the current transaction. One that is there already is noted as seen again."""
    # The same bytes twice on a page are one record.
    by_digest = {xxhash.xxh3_128_digest(each.raw): each for each in bad}
    if by_digest:
        found = by_digest.values()
        asked = {
            "source": source,
            "object": object,
            "page": page,
            "sent_at": sent_at,
            "cause": cause,
            "numbers": [each.number for each in found],
            "keys": [_key(each.key) for each in found],
            "raws": [each.raw for each in found],
            "digests": list(by_digest),
            "whys": [each.why for each in found],
        }
        conn.execute(statement(_FILE, "set_aside", schema), asked)


def listed(
    conn: Connection, schema: str, source: str | None = None, object: str | None = None, limit: int = 100
) -> list[Quarantined]:
    """What is in the quarantine, in the order of the pages; of one source or object, or of all."""
    asked = {"source": source, "object": object, "limit": limit}
    return [Quarantined(*row) for row in conn.execute(statement(_FILE, "listed", schema), asked)]


def ids(conn: Connection, schema: str, source: str, object: str, limit: int | None = None) -> list[int]:
    """The rows of an object, the last seen at the API first."""
    asked = {"source": source, "object": object, "limit": limit}
    return [row[0] for row in conn.execute(statement(_FILE, "ids", schema), asked)]


def take(conn: Connection, schema: str, ids: Sequence[int]) -> list[Taken]:
    """Lock rows until the end of the transaction; those that are gone are left out. The last seen come first."""
    return [Taken(*row) for row in conn.execute(statement(_FILE, "take", schema), {"ids": list(ids)})]


def delete(conn: Connection, schema: str, ids: Sequence[int]) -> None:
    """Delete rows that need not be kept."""
    conn.execute(statement(_FILE, "delete", schema), {"ids": list(ids)})


def stored(
    conn: Connection, schema: str, table: tuple[str, str], keys: Sequence[str]
) -> dict[str, tuple[datetime, datetime | None]]:
    """When the rows of keys in a record table were last changed, and their versions; keys without one are left out."""
    rows = conn.execute(statement(_FILE, "stored", schema, table), {"keys": list(keys)}, binary=True).fetchall()
    return {key: (applied_at, version and version.replace(tzinfo=timezone.utc)) for key, applied_at, version in rows}


def keep(conn: Connection, schema: str, rows: Sequence[tuple[Taken, SetAside]]) -> None:
    """Keep rows that are still bad, with the reason found now."""
    if rows:
        asked: dict[str, Any] = {"ids": [row.id for row, _ in rows]}
        asked |= {"keys": [_key(bad.key) for _, bad in rows], "whys": [bad.why for _, bad in rows]}
        conn.execute(statement(_FILE, "keep", schema), asked)


def _key(key: str | None) -> str | None:
    """A key as Postgres can hold it; what it cannot, is to be found in the raw bytes."""
    if key is None or "\0" in key:
        return None
    try:
        key.encode()
    except UnicodeEncodeError:
        return None
    return key
