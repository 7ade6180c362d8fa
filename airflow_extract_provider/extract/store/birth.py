"""How often an object's copy was started over, and whether it was ever complete: what ids and the baseline go by."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Born", "born", "reborn"]

_FILE = "birth.sql"


@dataclass(frozen=True, slots=True)
class Born:
    """``number`` is part of each event's id. ``filled``: a backfill has come to its end since the table was empty, so
    that what is new is new to the API, and not only to the copy."""

    number: int
    filled: bool


def born(conn: Connection, schema: str, source: str, object: str) -> Born:
    """What is known of an object's copy."""
    row = conn.execute(statement(_FILE, "born", schema), {"source": source, "object": object}).fetchone()
    assert row is not None
    return Born(*row)


def reborn(conn: Connection, schema: str, source: str, object: str, sequence: int, *, empty: bool) -> None:
    """Count a start of the backfill, in the transaction of its ledger row. Revisions may begin at 1 again for rows that
    were deleted by hand; over an ``empty`` table the baseline begins anew."""
    asked = {"source": source, "object": object, "sequence": sequence, "empty": empty}
    conn.execute(statement(_FILE, "reborn", schema), asked)
