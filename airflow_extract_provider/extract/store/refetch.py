"""Keys that must be read again by key (law: a need found is a need noted)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Due", "Met", "due", "forget", "lock", "note", "settle"]

_FILE = "refetch.sql"


@dataclass(frozen=True, slots=True)
class Due:
    """A key to be read again. Each note raises its ``number``: what was read fulfils only the notes made before."""

    key: str
    number: int


@dataclass(frozen=True, slots=True)
class Met:
    """A note that was fulfilled: why it had been made, and whether a webhook had asked for it."""

    key: str
    reason: str
    told: bool


def note(
    conn: Connection, schema: str, source: str, object: str, keys: Iterable[str], reason: str, *, told: bool = False
) -> None:
    """Note keys, in key order, in the transaction that found the need; noted again, their numbers are raised. ``told``:
    a webhook has found it."""
    if ordered := sorted(set(keys)):
        asked = {"source": source, "object": object, "keys": ordered, "reason": reason, "told": told}
        conn.execute(statement(_FILE, "note", schema), asked)


def due(conn: Connection, schema: str, source: str, object: str, limit: int) -> list[Due]:
    """The keys to read next, those noted first coming first."""
    asked = {"source": source, "object": object, "limit": limit}
    return [Due(key, number) for key, number in conn.execute(statement(_FILE, "due", schema), asked)]


def settle(conn: Connection, schema: str, source: str, object: str, done: Iterable[Due]) -> list[Met]:
    """Delete the notes that were fulfilled, in key order; returns them. A key noted again meanwhile stays."""
    ordered = sorted(set(done), key=lambda each: (each.key, each.number))
    if not ordered:
        return []
    asked: dict[str, Any] = {"source": source, "object": object, "keys": [each.key for each in ordered]}
    asked["numbers"] = [each.number for each in ordered]
    return [Met(*row) for row in conn.execute(statement(_FILE, "settle", schema), asked)]


def forget(conn: Connection, schema: str, source: str, object: str) -> None:
    """Delete all notes of an object: its keys mean other things now."""
    conn.execute(statement(_FILE, "forget", schema), {"source": source, "object": object})


def lock(conn: Connection, schema: str, source: str, object: str, keys: Sequence[str]) -> None:
    """Lock the notes of keys, in key order, before some are made and others settled in one transaction."""
    conn.execute(statement(_FILE, "lock", schema), {"source": source, "object": object, "keys": sorted(keys)})
