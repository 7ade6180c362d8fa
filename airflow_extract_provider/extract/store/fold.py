"""Folding: old ledger rows become few, so that the ledger does not grow for ever. What is covered stays the same."""

from __future__ import annotations

from datetime import timedelta

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["fold"]

_FILE = "fold.sql"


def fold(conn: Connection, schema: str, older_than: timedelta) -> int:
    """Fold the pages that were committed longer ago than that, walk by walk; returns how many rows are gone.

    A folded row carries the sums of its pages, what their completed laps have covered, and the position of the last. A
    walk may run meanwhile: its newest row, the one that its cursor shows, and those where it was started, reset or
    edited are never touched. What is lost: which task instance did what, and the places in between to go back to.
    """
    with conn.transaction():
        walks = conn.execute(statement(_FILE, "walks", schema)).fetchall()
    gone = 0
    for source, object, walk, part in walks:
        whose = {"source": source, "object": object, "walk": walk, "part": part}
        with conn.transaction():
            conn.execute(statement(_FILE, "lock", schema), {"schema": schema})
            row = conn.execute(statement(_FILE, "fold", schema), {**whose, "older_than": older_than}).fetchone()
            assert row is not None
            gone += row[0]
    return gone
