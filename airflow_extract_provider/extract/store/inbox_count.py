"""How many webhooks came, per endpoint, day and kind: sums that outlive the processes that count."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, TypeAlias

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Sums", "add", "parameters"]

Sums: TypeAlias = Mapping[tuple[str, str, date, str], int]
"""Numbers by source, endpoint, day (in UTC) and kind."""


def add(conn: Connection, schema: str, sums: Sums) -> None:
    """Add to what is there."""
    conn.execute(statement("inbox.sql", "count", schema), parameters(sums))


def parameters(sums: Sums) -> dict[str, Any]:
    """Numbers as parameters of the statement `count` that adds them."""
    return {
        "sources": [source for source, _, _, _ in sums],
        "endpoints": [endpoint for _, endpoint, _, _ in sums],
        "days": [day for _, _, day, _ in sums],
        "kinds": [kind for _, _, _, kind in sums],
        "counts": list(sums.values()),
    }
