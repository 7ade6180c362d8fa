"""The inbox: webhooks as they came, durable before they are answered, until they are applied."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = ["new", "parameters", "put"]

_FILE = "inbox.sql"


def put(conn: Connection, schema: str, incoming: Sequence[Incoming]) -> list[bool]:
    """Store deliveries in one transaction; returns which of them are new. The connection is in no transaction, or in
    one that says itself how durable it is."""
    with conn.transaction():
        conn.execute(statement(_FILE, "durable", schema))
        stored = conn.execute(statement(_FILE, "put", schema), parameters(incoming), binary=True).fetchall()
    return new(incoming, [row[0] for row in stored])


def new(incoming: Sequence[Incoming], stored: Sequence[uuid.UUID | None]) -> list[bool]:
    """Which deliveries are new, as the rows that were stored tell."""
    left = {each for each in stored if each is not None}
    found = []
    for each in incoming:
        # Of two alike in one statement the first one is stored.
        found.append(each.dedupe is None or each.dedupe in left)
        left.discard(each.dedupe)
    return found


def parameters(incoming: Sequence[Incoming]) -> dict[str, Any]:
    """Deliveries as parameters of the statement that stores them."""
    return {
        "sources": [each.source for each in incoming],
        "endpoints": [each.endpoint for each in incoming],
        "dedupes": sparse([each.dedupe for each in incoming]),
        "headers": [json.dumps(dict(each.headers)) for each in incoming],
        "bodies": [each.body for each in incoming],
    }
