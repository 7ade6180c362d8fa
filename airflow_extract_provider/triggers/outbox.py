"""Waits for events in the outbox: for a deferred task, or for an asset that a DAG is scheduled on.

::

    mail = Asset("mail", watchers=[AssetWatcher(name="mail", trigger=OutboxTrigger(consumer="mail"))])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from airflow_extract_provider.extract.store.consumer import waiting
from airflow_extract_provider.extract.store.outbox import Wanted, channel
from airflow_extract_provider.triggers.listening import ListeningTrigger

__all__ = ["OutboxTrigger"]


class OutboxTrigger(ListeningTrigger):
    """Fires when a consumer has something to do: events that it wants and has not come to, or parked ones that are due.

    It hears of them at once, and looks every ``every`` seconds all the same. It fires again when something new has
    come, not sooner than after ``every`` seconds, and every ``again`` seconds for as long as something waits: see
    :class:`~airflow_extract_provider.triggers.listening.ListeningTrigger`.

    :param consumer: the consumer's name. While it was never begun, all events wait for it.
    :param source: only events of this source; None: of all. So ``object`` and ``types``, as the operator is given them.
    :param store_conn_id: the Postgres connection of the store.
    :param schema: the schema of the bookkeeping.
    :param every: seconds between two looks.
    :param again: seconds after which it fires again for what waits still.
    :param until: an instant as ISO text, at which it fires in any case; None: never.
    """

    def __init__(
        self,
        *,
        consumer: str,
        source: str | None = None,
        object: str | None = None,
        types: Sequence[str] | None = None,
        store_conn_id: str = "extract_store",
        schema: str = "extract",
        every: float = 30.0,
        again: float = 600.0,
        until: str | None = None,
    ) -> None:
        super().__init__(store_conn_id=store_conn_id, schema=schema, every=every, pause=every, again=again, until=until)
        self.consumer = consumer
        self.source = source
        self.object = object
        self.types = types

    def _arguments(self) -> dict[str, Any]:
        return {
            "consumer": self.consumer,
            "source": self.source,
            "object": self.object,
            "types": None if self.types is None else list(self.types),
            "store_conn_id": self.store_conn_id,
            "schema": self.schema,
            "every": self.every,
            "again": self.again,
            "until": self.until,
        }

    def _watched(self) -> str:
        return f"consumer {self.consumer}: the outbox"

    def _channel(self) -> str:
        return channel(self.schema)

    def _question(self) -> tuple[sql.Composed, Mapping[str, Any]]:
        wanted = Wanted(self.source, self.object, None if self.types is None else tuple(self.types))
        return waiting(self.schema, self.consumer, wanted)

    def _whose(self) -> dict[str, Any]:
        return {"consumer": self.consumer}
