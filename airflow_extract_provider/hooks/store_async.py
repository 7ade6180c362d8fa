"""The store for those who wait: asynchronous connections, which do not block the triggerer."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from airflow.sdk import BaseHook

from airflow_extract_provider.extract.webhooks.keeping import opened
from airflow_extract_provider.hooks.store import StoreHook

__all__ = ["AsyncStoreHook"]


class AsyncStoreHook(StoreHook):
    """Opens psycopg 3's asynchronous connections, with the same arguments as :class:`StoreHook`."""

    async def connect_async(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """A new connection that commits each statement and prepares none; the caller closes it.

        Raises AirflowNotFoundException, and psycopg's own errors.
        """
        # In a thread: to look a connection up, or to ask for an IAM token, blocks.
        arguments = await asyncio.to_thread(self._looked_up)
        # Nothing is prepared: the connection may lead to a pooler.
        options = {**arguments, "autocommit": True, "prepare_threshold": None}
        found: psycopg.AsyncConnection[tuple[Any, ...]] = await psycopg.AsyncConnection.connect(**options)
        return found

    async def connect_often(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """A new connection that commits each statement, for one who runs the same ones again and again: they are
        prepared, unless a pooler is in between. The caller closes it. Raises as :meth:`connect_async`."""
        return await opened(**await asyncio.to_thread(self._looked_up))

    def _looked_up(self) -> dict[str, Any]:
        found = BaseHook.get_connection(self.get_conn_id()) if self._given is None else self._given
        return self._arguments(found)
