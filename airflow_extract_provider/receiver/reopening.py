"""Opens connections to the store for a process that lives long: each time where it is now, and none that hangs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import ConnectionMissingError
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.unshown import Unshown
from airflow_extract_provider.extract.webhooks.giving_up import begun
from airflow_extract_provider.hooks.store import StoreHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["reopening"]

_PATIENCE = 2.5
"""Seconds that a secrets backend has: well below what the opening of a connection may take."""
_BOUNDS: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""Options of libpq, unless the connection gives its own: what a firewall has cut, or a machine that is gone, is found
by the kernel."""


def reopening(conn_id: str, find: Callable[[], Connection]) -> Connect:
    """Opens connections to the store, by what its Airflow connection says at that moment, as ``find`` tells it; it is
    asked once now. Raises ConnectionMissingError."""
    lookup = _Lookup(find)
    return lambda: _BoundedHook(conn_id, connection=lookup()).connect()


class _BoundedHook(StoreHook):
    def _arguments(self, conn: Connection) -> dict[str, Any]:
        return {**_BOUNDS, **super()._arguments(conn)}


class _Lookup(Unshown):
    """Tells the store's connection as it is found, else as it was last known: a password changes while we run."""

    def __init__(self, find: Callable[[], Connection]) -> None:
        """Find it. Raises ConnectionMissingError."""
        self._find, self._known = find, find()
        self._asked: Future[Connection] | None = None

    def __call__(self) -> Connection:
        """Ask, for a moment."""
        # One who hangs is not asked a second time meanwhile: each would be a thread that stays.
        if self._asked is None or self._asked.done():
            self._asked = begun(self._find)
        with suppress(ConnectionMissingError, TimeoutError):
            self._known = self._asked.result(_PATIENCE)
        return self._known
