"""The inbox: webhooks as they came, durable before they are answered, until they are applied."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from psycopg.errors import Diagnostic, ReadOnlySqlTransaction

from airflow_extract_provider.extract.errors import InboxFilteredError, SchemaMissingError
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store.connection import Connection, named_errors
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = [
    "Pruned",
    "announce",
    "channel",
    "check_reached",
    "ended_waiting",
    "filtered",
    "look",
    "new",
    "parameters",
    "passed_over",
    "prune",
    "put",
]

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
    """Store deliveries in one transaction; returns which of them are new: the others are there already. Once it is
    committed they are on the disk, on all that a commit waits for.

    Raises InboxFilteredError: some would not be stored, though Postgres tells no error; none is.
    """
    with conn.transaction():
        asked = parameters(incoming)
        ((count, dedupes),) = conn.execute(statement(_FILE, "put", schema), asked, binary=True).fetchall()
        found = new(incoming, count, dedupes)
        if None in found:
            raise filtered()
        if False in found:
            asked = passed_over(incoming, found)
            ((absent, _),) = conn.execute(statement(_FILE, "confirm", schema), asked, binary=True).fetchall()
            if absent:
                raise filtered()
    return [each is True for each in found]


def new(incoming: Sequence[Incoming], stored: int, dedupes: Sequence[uuid.UUID]) -> list[bool | None]:
    """Which deliveries are new, by how many rows were ``stored`` and what the dedupes of these are. None: it has no
    dedupe by which it could be there already, and not all such ones were stored."""
    if stored == len(incoming):
        return [True] * len(incoming)
    left = set(dedupes)
    found: list[bool | None] = []
    for each in incoming:
        # Of two alike in one statement the first one is stored.
        found.append(each.dedupe is None or each.dedupe in left)
        left.discard(each.dedupe)
    if stored - len(dedupes) < sum(each.dedupe is None for each in incoming):
        return [None if each.dedupe is None else is_new for each, is_new in zip(incoming, found, strict=True)]
    return found


def passed_over(incoming: Sequence[Incoming], new: Sequence[bool | None]) -> dict[str, Any]:
    """Those that are not new, as parameters of the statement that confirms them."""
    passed = [(nth, each) for nth, (each, is_new) in enumerate(zip(incoming, new, strict=True)) if is_new is False]
    return {
        "sources": [each.source for _, each in passed],
        "endpoints": [each.endpoint for _, each in passed],
        "dedupes": [each.dedupe for _, each in passed],
        "nths": [nth for nth, _ in passed],
    }


def filtered() -> InboxFilteredError:
    """What is to be said of deliveries that Postgres did not store, and told no error."""
    return InboxFilteredError(
        "Postgres does not store some webhooks, and tells no error: a trigger, a rule or a policy on the table inbox "
        "keeps them out.",
        todo="Look at it by `\\d+` in psql, and take away what keeps rows out. Whoever sent them sends them again.",
    )


def look(conn: Connection, schema: str) -> None:
    """See that deliveries can be stored here: as :func:`check_reached`."""
    check_reached(conn.execute(statement(_FILE, "reach", schema), {"schema": schema}).fetchall())


def check_reached(rows: Sequence[tuple[Any, ...]]) -> None:
    """See that deliveries can be stored, as the statement tells that reaches for the inbox.

    Raises StoreUnavailableError: this server only reads. SchemaMissingError: the table does not outlive a crash.
    """
    ((writes, persistent),) = rows
    if not writes:
        with named_errors():
            raise ReadOnlySqlTransaction
    if not persistent:
        raise SchemaMissingError(
            "the table inbox is unlogged: when Postgres crashes, all that is in it is gone.",
            todo="`alter table extract.inbox set logged`, in the schema of the bookkeeping.",
        )


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
