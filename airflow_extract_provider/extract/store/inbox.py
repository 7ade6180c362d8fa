"""The inbox: webhooks as they came, durable before they are answered, until they are applied."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from psycopg.errors import Diagnostic

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = ["Pruned", "announce", "channel", "ended_waiting", "new", "parameters", "prune", "put"]

_WAITS_FOR_STANDBY, _ADMIN_SHUTDOWN = "SyncRepWaitForLSN", "57P01"

_FILE = "inbox.sql"
_STORABLE = dict.fromkeys((0, *range(0xD800, 0xE000)), "\ufffd")
"""For what `jsonb` cannot hold."""
_PRUNED_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted: ``deliveries``, ``ids`` of messages, ``counts`` of days, and notes of what ``brought`` a
    change."""

    deliveries: int
    ids: int
    counts: int
    brought: int


def put(conn: Connection, schema: str, incoming: Sequence[Incoming]) -> list[bool]:
    """Store deliveries in one transaction; returns which of them are new. Once it is committed they are on the disk."""
    with conn.transaction():
        stored = conn.execute(statement(_FILE, "put", schema), parameters(incoming), binary=True).fetchall()
    return new(incoming, [row[0] for row in stored])


def new(incoming: Sequence[Incoming], stored: Sequence[uuid.UUID | None]) -> list[bool]:
    """Which deliveries are new, as the rows that were stored tell."""
    if len(stored) == len(incoming):
        return [True] * len(incoming)
    left = {each for each in stored if each is not None}
    found = []
    for each in incoming:
        # Of two alike in one statement the first one is stored.
        found.append(each.dedupe is None or each.dedupe in left)
        left.discard(each.dedupe)
    return found


def parameters(incoming: Sequence[Incoming]) -> dict[str, Any]:
    """Deliveries as parameters of the statement that stores them."""
    several = len({(each.source, each.endpoint) for each in incoming}) > 1
    return {
        "source": incoming[0].source if incoming else None,
        "endpoint": incoming[0].endpoint if incoming else None,
        "sources": [each.source for each in incoming] if several else [],
        "endpoints": [each.endpoint for each in incoming] if several else [],
        "dedupes": sparse([each.dedupe for each in incoming]),
        "headers": sparse([_headers(each.headers) for each in incoming]),
        "bodies": [each.body for each in incoming],
        "received": sparse([each.received_at for each in incoming]),
    }


def _headers(headers: Mapping[str, str]) -> str | None:
    """Headers as `jsonb` takes them: one that it refuses would keep those that came with it from being stored."""
    if not headers:
        return None
    with suppress(UnicodeEncodeError):
        text = msgspec.json.encode(headers).decode()
        if "\\u0000" not in text:
            return text
    return msgspec.json.encode({name: value.translate(_STORABLE) for name, value in headers.items()}).decode()


def announce(conn: Connection, schema: str) -> None:
    """Wake whoever listens on the channel. On a connection in no transaction, after the commit: in it, all commits of
    the server that announce something would wait for each other."""
    conn.execute(statement(_FILE, "announce", schema), {"channel": channel(schema)})


def channel(schema: str) -> str:
    """The name to LISTEN to; at most 63 bytes, as Postgres asks."""
    return schema.encode()[:57].decode(errors="ignore") + ".inbox"


def prune(
    conn: Connection,
    schema: str,
    keep_for: timedelta,
    limit: int = 10_000,
    *,
    brought_for: timedelta = timedelta(days=90),
) -> Pruned:
    """Delete what is older than ``keep_for``, up to ``limit`` rows of each kind: deliveries since they were done, ids
    since their messages were taken out, the counts of days; and notes of what brought a change, after ``brought_for``.
    What waits is kept, and a delivery with a message that is parked or dead. The connection is in no transaction: each
    thousand rows are deleted in one of their own.
    """
    asked = {"keep_for": keep_for}
    return Pruned(
        _prune_done(conn, schema, keep_for, limit),
        _prune_rows(conn, schema, "prune_seen", asked, limit),
        _prune_rows(conn, schema, "prune_count", asked, limit),
        _prune_brought(conn, schema, brought_for, limit),
    )


def _prune_done(conn: Connection, schema: str, keep_for: timedelta, limit: int) -> int:
    pruned, after = 0, {"after_at": None, "after": 0}
    while pruned < limit:
        most = min(_PRUNED_AT_ONCE, limit - pruned)
        asked = {"keep_for": keep_for, "limit": most, **after}
        with conn.transaction():
            row = conn.execute(statement(_FILE, "prune", schema), asked, binary=True).fetchone()
        if row is None:
            break
        deleted, looked, after["after_at"], after["after"] = row
        pruned += deleted
        if looked < most:
            break
    return pruned


def _prune_rows(conn: Connection, schema: str, name: str, asked: Mapping[str, Any], limit: int) -> int:
    return sum(_portions(conn, schema, name, asked, limit))


def _portions(conn: Connection, schema: str, name: str, asked: Mapping[str, Any], limit: int) -> Iterator[int]:
    while limit > 0:
        most = min(_PRUNED_AT_ONCE, limit)
        with conn.transaction():
            deleted = conn.execute(statement(_FILE, name, schema), {**asked, "limit": most}).rowcount
        yield deleted
        if deleted < most:
            break
        limit -= deleted


def _prune_brought(conn: Connection, schema: str, keep_for: timedelta, limit: int) -> int:
    pruned = 0
    # Object by object, or the index would not serve.
    for source, object in conn.execute(statement(_FILE, "brought_objects", schema)).fetchall():
        asked = {"keep_for": keep_for, "source": source, "object": object}
        pruned += _prune_rows(conn, schema, "prune_brought", asked, limit - pruned)
    return pruned


def ended_waiting(notice: Diagnostic) -> bool:
    """Whether a warning of the server's says that a commit has not waited for its standby to the end: then what was
    stored is on one disk only. By the server's function, since its words are translated."""
    return notice.source_function == _WAITS_FOR_STANDBY or notice.sqlstate == _ADMIN_SHUTDOWN
