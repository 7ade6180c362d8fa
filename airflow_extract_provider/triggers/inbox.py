"""Waits for webhooks in the inbox: for a deferred sensor, or for the asset that a source's webhooks DAG is scheduled on
(:func:`~airflow_extract_provider.assets.inbox_of`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.triggers.listening import ListeningTrigger

if TYPE_CHECKING:
    from psycopg import sql

__all__ = ["InboxTrigger"]


class InboxTrigger(ListeningTrigger):
    """Fires when webhooks of a source wait to be applied, or messages of them that were parked and are due.

    It hears of them at once, and looks every ``every`` seconds all the same. It fires again when something new has
    come, not sooner than after ``pause`` seconds, and every ``again`` seconds for as long as something waits: see
    :class:`~airflow_extract_provider.triggers.listening.ListeningTrigger`.

    :param source: the source.
    :param endpoints: only at these addresses of it, those that its file describes; None: at any.
    :param store_conn_id: the Postgres connection of the store.
    :param schema: the schema of the bookkeeping.
    :param every: seconds between two looks.
    :param pause: seconds at least between two events: each starts a run, which takes all that has come meanwhile.
    :param again: seconds after which it fires again for what waits still.
    :param until: an instant as ISO text, at which it fires in any case; None: never.
    """

    def __init__(
        self,
        *,
        source: str,
        endpoints: Sequence[str] | None = None,
        store_conn_id: str = "extract_store",
        schema: str = "extract",
        every: float = 30.0,
        pause: float = 5.0,
        again: float = 600.0,
        until: str | None = None,
    ) -> None:
        super().__init__(store_conn_id=store_conn_id, schema=schema, every=every, pause=pause, again=again, until=until)
        self.source = source
        self.endpoints = None if endpoints is None else list(endpoints)

    def _arguments(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "endpoints": self.endpoints,
            "store_conn_id": self.store_conn_id,
            "schema": self.schema,
            "every": self.every,
            "pause": self.pause,
            "again": self.again,
            "until": self.until,
        }

    def _watched(self) -> str:
        return f"{self.source} webhooks: the inbox"

    def _channel(self) -> str:
        # Here, since a DAG that is scheduled on webhooks names this class, and should not load the driver.
        from airflow_extract_provider.extract.store.inbox import channel

        return channel(self.schema)

    def _question(self) -> tuple[sql.Composed, Mapping[str, Any]]:
        from airflow_extract_provider.extract.store.claims import question

        return question(self.schema, self.source, self.endpoints)

    def _whose(self) -> dict[str, Any]:
        return {"source": self.source}
