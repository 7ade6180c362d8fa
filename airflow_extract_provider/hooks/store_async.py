"""The store for those who wait: asynchronous connections, which do not block the triggerer."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from airflow.sdk import BaseHook

from airflow_extract_provider.extract.webhooks.inbox_writer import opened
from airflow_extract_provider.hooks.store import StoreHook

__all__ = ["AsyncStoreHook"]


_WITHIN, _LEAST = 8, 2
"""Seconds for all of several hosts together, and for each at least. Who waits for a connection gives up after some ten
seconds (as the receiver does): one host that does not answer must leave time for the next."""


class AsyncStoreHook(StoreHook):
    """Opens psycopg 3's asynchronous connections, with the same arguments as :class:`StoreHook`. Of several hosts each
    has a few seconds, unless the connection's extra sets ``connect_timeout``."""

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
        arguments = self._arguments(found)
        hosts = max(str(arguments.get(name) or "").count(",") + 1 for name in ("host", "hostaddr"))
        if hosts > 1:
            arguments.setdefault("connect_timeout", max(_LEAST, _WITHIN // hosts))
        return arguments
