"""As what an object's table was filled: whatever else writes it must be of that, and find it as it was left."""

from __future__ import annotations

from airflow_extract_provider.extract.errors import PositionMismatchError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.ledger import Ledger

__all__ = ["check_filled"]


def check_filled(conn: Connection, schema: str, source: Source, object: str, *, kept: str = "everything.") -> None:
    """See that the backfill has filled the table with what the source file describes now, and that it was not emptied
    since.

    Raises PositionMismatchError: it is not so. A row that was stored all the same would make the walks believe that the
    copy is what it was.
    """
    ledger = Ledger(schema, source.source, object, "backfill")
    filled = ledger.copied(conn)
    if filled is None:
        return
    now = source.object(object).key_name, source.made(object)
    if (filled.key, filled.made) not in (now, (now[0], None), (None, None)):
        raise PositionMismatchError(
            "the object's key, request, records or table are not those with which the table was filled.",
            kept=kept,
            todo="Put them back, or start the backfill over with `reset` first.",
            source=source.source,
            object=object,
        )
    if filled.records and ledger.is_empty(conn, source.table(object)):
        raise PositionMismatchError(
            f"the table {'.'.join(source.table(object))} is empty, but the ledger says that records were stored in it.",
            kept=kept,
            todo="Restore the table, or start the backfill over with `reset`.",
            source=source.source,
            object=object,
        )
