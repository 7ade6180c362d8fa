"""Where a walk begins: what the source file says, and what the walks before it have made complete."""

from __future__ import annotations

from msgspec.structs import replace

from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.extract.walks.backfill import beginning
from airflow_extract_provider.extract.walks.by_key import noted
from airflow_extract_provider.extract.walks.incremental import handed_off
from airflow_extract_provider.extract.walks.rebackfill import between_sweeps

__all__ = ["where_begins"]


def where_begins(object: ApiObject, ledger: Ledger, conn: Connection, made: str, *, reset: bool) -> Position:
    """Where the ledger's walk begins if it has not begun, or starts over.

    Raises BackfillFirstError: that is where the backfill ends, and it has not. SourceError: the object cannot be walked
    so.
    """
    if ledger.walk == "by_key":
        return noted(object, made)
    if ledger.walk == "backfill":
        return beginning(object, made)
    backfilled = ledger.of("backfill").head(conn)
    if ledger.walk == "rebackfill":
        return between_sweeps(object, backfilled.position if backfilled else None, made)
    begun = ledger.of("incremental").head(conn)
    done = backfilled is not None and backfilled.position.complete
    if begun is not None and begun.position.pages and begun.position.made == made and not done and not reset:
        # Under way: that the backfill was started over meanwhile is no matter.
        return replace(beginning(object, made), complete=True, closed=begun.position.closed)
    return handed_off(object, backfilled.position if backfilled else None, made)
