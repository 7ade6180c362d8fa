"""Messages of webhooks that were tried in vain: they wait for a person, who puts them back or drops them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["BURIED", "DeadMessage", "bury", "dead", "drop", "elsewhere", "replay"]

_FILE = "dead.sql"
BURIED = "-"
"""Stands for the source of what has none; no source is called so."""


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """The ``nth`` message of the delivery at ``place``, how often it was tried, and how the last try failed. ``object``
    and ``key`` are empty where nobody can tell them; ``nth`` is 0 of a body that cannot be read."""

    place: int
    nth: int
    source: str
    endpoint: str
    object: str
    key: str
    tries: int
    reason: str
    received_at: datetime


def dead(conn: Connection, schema: str, source: str | None = None, limit: int = 100) -> list[DeadMessage]:
    """The dead messages of a source, or of all, in the order in which they came."""
    rows = conn.execute(statement(_FILE, "dead", schema), {"source": source, "limit": limit})
    return [DeadMessage(*row) for row in rows]


def bury(conn: Connection, schema: str, endpoint: str, reasons: Mapping[uuid.UUID, str]) -> None:
    """Have deliveries of no source, by their ``dedupe``, be dead from the beginning, each with its reason; in the
    transaction that stores them."""
    if reasons:
        asked = {"source": BURIED, "endpoint": endpoint, "dedupes": [*reasons], "reasons": [*reasons.values()]}
        conn.execute(statement(_FILE, "bury", schema), asked)


def replay(
    conn: Connection,
    schema: str,
    source: str,
    places: Sequence[int] | None = None,
    *,
    endpoints: Iterable[str] | None = None,
    run: str = "",
) -> Mapping[str, int]:
    """Put dead messages of a source back, those of the deliveries at these places or all: due now, with all their
    tries. Returns how many of each object. What came later of their records was applied without them; an older version
    is then passed over. ``endpoints`` are those that are described: at others no run would take them, so there they
    stay dead; None: not known. ``run``: who asks, in each of its tries and slices; what it has put back it does not put
    back again. Nothing: whoever asks means it."""
    described = None if endpoints is None else [*endpoints]
    return _changed(conn, schema, "replay", source, places, endpoints=described, run=run)


def elsewhere(
    conn: Connection, schema: str, source: str, endpoints: Iterable[str], places: Sequence[int] | None = None
) -> Mapping[str, int]:
    """Of what is dead, at these places or all: how many messages came to other addresses than these, by address."""
    asked: dict[str, object] = {"source": source, "endpoints": [*endpoints]}
    asked["places"] = None if places is None else list(places)
    return dict(conn.execute(statement(_FILE, "elsewhere", schema), asked).fetchall())


def drop(conn: Connection, schema: str, source: str, places: Sequence[int] | None = None) -> Mapping[str, int]:
    """Delete dead messages of a source, as :func:`replay` chooses them; returns how many of each object. Their
    deliveries stay until they are pruned."""
    return _changed(conn, schema, "drop", source, places)


def _changed(
    conn: Connection, schema: str, name: str, source: str, places: Sequence[int] | None, **more: object
) -> Mapping[str, int]:
    asked = {"source": source, "places": None if places is None else list(places), **more}
    return dict(conn.execute(statement(_FILE, name, schema), asked).fetchall())
