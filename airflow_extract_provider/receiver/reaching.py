"""Whether the store is there, with the tables and the rights that the receiver needs: asked within a bound."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_extract_provider.extract.errors import StoreUnavailableError
from airflow_extract_provider.extract.store import inbox, inbox_count
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.webhooks.deadline import Deadline
from airflow_extract_provider.extract.webhooks.inbox_writer import AsyncConnection
from airflow_extract_provider.hooks.store_async import AsyncStoreHook
from airflow_extract_provider.receiver.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["reach"]

_OPENED, _ASKED = 10.0, 10.0
"""Seconds until a connection is open, and those that the statements on it may take."""


def reach(settings: Settings, connection: Connection) -> None:
    """See that deliveries can be stored and counted there; nothing is. It takes half a minute at most.

    Raises StoreUnavailableError: no server is there, or it does not answer. Raises SchemaMissingError,
    StoreRightsError, ConnectionMissingError: a person has to change something first.
    """
    asyncio.run(_reach(settings, connection))


async def _reach(settings: Settings, connection: Connection) -> None:
    hook = AsyncStoreHook(settings.store_conn_id, connection=connection)
    try:
        async with asyncio.timeout(_OPENED):
            with named_errors():
                conn = await hook.connect_async()
    except TimeoutError:
        raise _silent() from None
    try:
        await _asked(conn, settings.schema)
    finally:
        await conn.close()


async def _asked(conn: AsyncConnection, schema: str) -> None:
    """Run the very statements, with nothing to store: tables and rights are as they need them."""
    with Deadline(conn, _ASKED) as deadline:
        try:
            with named_errors():
                reached = await conn.execute(statement("inbox.sql", "reach", schema), {"schema": schema})
                inbox.check_reached(await reached.fetchall())
                await conn.execute(statement("inbox.sql", "put", schema), inbox.parameters([]), binary=True)
                await conn.execute(statement("inbox.sql", "count", schema), inbox_count.parameters({}))
        except StoreUnavailableError:
            if deadline.is_over:
                raise _silent() from None
            raise


def _silent() -> StoreUnavailableError:
    return StoreUnavailableError("Postgres does not answer.", todo="Check the connection of the store and the server.")
