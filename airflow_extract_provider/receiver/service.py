"""What one worker of the receiver runs: the doors with their secrets, the keep behind them, the counts."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg

from airflow_extract_provider.extract.errors import ConnectionMissingError, ExtractError, SourceError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.webhooks.keeping import AsyncConnect, AsyncConnection, Commit, PostgresKeep
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver
from airflow_extract_provider.hooks import kafka
from airflow_extract_provider.hooks.store_async import AsyncStoreHook
from airflow_extract_provider.receiver.connections import Find, Secrets
from airflow_extract_provider.receiver.counts import Tally
from airflow_extract_provider.receiver.metrics import Numbers, Shared, exposed
from airflow_extract_provider.receiver.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_extract_provider.extract.webhooks.kafka_keep import KafkaKeep

__all__ = ["Service", "kept_in_kafka", "loaded", "store_connection"]

_STORE = "--conn-type postgres --conn-host HOST --conn-schema DATABASE --conn-login USER --conn-password PASSWORD"
_SHOWN_EVERY, _WRITTEN_EVERY = 1.0, 5.0
"""Seconds after which the other workers see this one's numbers, and after which the table has them."""
_CLOSING = 10.0
"""Seconds for what is to be done at the end."""

_log = logging.getLogger(__name__)


def loaded(settings: Settings, find: Find) -> tuple[Mapping[str, Source], Secrets]:
    """The sources that have webhooks, and the secrets of their endpoints.

    Raises SourceError: the folder or a file is wrong, or none has webhooks. Raises ConnectionMissingError: a connection
    is missing, or holds no secret.
    """
    sources = {name: each for name, each in load_sources(settings.sources).items() if each.webhooks}
    if not sources:
        raise SourceError(
            f"no source in the folder {settings.sources.name} has `webhooks`.",
            todo="Say in a source file where its API sends them.",
        )
    specs = [spec for each in sources.values() for spec in each.webhooks.values()]
    return sources, Secrets(find, [(spec.secret, spec.verify) for spec in specs])


def store_connection(settings: Settings, find: Find) -> Connection:
    """The Airflow connection of the store. Raises ConnectionMissingError: there is none."""
    return find(settings.store_conn_id, _STORE)


def kept_in_kafka(settings: Settings, find: Find) -> KafkaKeep:
    """The Kafka topic as a keep; nothing is opened yet. Raises ConnectionMissingError, SinkRefusedError."""
    conn_id = settings.kafka_conn_id
    return kafka.kafka_keep(conn_id, settings.topic, connection=find(conn_id, kafka.EXAMPLE))


def _doors(sources: Iterable[Source], secrets: Secrets) -> list[Door]:
    return [
        Door(source.source, endpoint, spec, secrets.of(spec.secret))
        for source in sources
        for endpoint, spec in source.webhooks.items()
    ]


class Service:
    """Receives webhooks from its start to its close; :attr:`receive` is the ASGI application that does."""

    def __init__(self, settings: Settings, find: Find) -> None:
        """Read the source files and the secrets; nothing is opened yet. Raises as :func:`loaded`."""
        self._settings = settings
        sources, self._secrets = loaded(settings, find)
        self._tally, self._shared = Tally(), Shared(settings.numbers)
        self._totals: Counter[str] = Counter()
        self._connect = _connecting(settings, find)
        self._keep = self._kept(find)
        doors = _doors(sources.values(), self._secrets)
        self.receive = Receiver(doors, self._keep, self._tally, public_url=settings.public_url)
        self._ending: list[Callable[[], None]] = []
        self._busy: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the keep, and begin to look after secrets and counts. The store may be away: it is looked for."""
        await self._keep.start()
        self._ending.append(self._secrets.refreshing(self._settings.secrets_every.total_seconds()).set)
        self._busy.append(asyncio.create_task(self._showing()))
        if self._settings.keep == "postgres":
            self._busy.append(asyncio.create_task(self._writing()))

    async def close(self) -> None:
        """Store what waits, write the last counts, and let go; it takes some seconds at most."""
        for each in self._ending:
            each()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self._keep.close()
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether webhooks can be stored now, as far as is known."""
        return self._keep.ready

    def metrics(self) -> bytes:
        """All numbers, of the other workers too, in Prometheus's text format."""
        return exposed(self._numbers(), self._shared)

    def _kept(self, find: Find) -> PostgresKeep | KafkaKeep:
        if self._settings.keep == "kafka":
            return kept_in_kafka(self._settings, find)
        return PostgresKeep(self._connect, self._settings.schema, told=self._committed)

    def _committed(self, commit: Commit) -> None:
        for name, more in (("commits", 1), ("deliveries", commit.deliveries), ("bytes", commit.bytes)):
            self._totals[f"extract_webhook_{name}"] += more

    def _numbers(self) -> Numbers:
        return Numbers(self._tally.counted, self._totals, self._keep.ready)

    async def _showing(self) -> None:
        """Let the other workers see the numbers, until it is cancelled."""
        try:
            while True:
                self._tally.take()
                self._shared.show(self._numbers())
                await asyncio.sleep(_SHOWN_EVERY)
        except OSError as exc:
            _log.warning("the numbers are not shared with the other workers (%s)", type(exc).__name__)
        finally:
            with suppress(OSError):
                self._shared.show(self._numbers())

    async def _writing(self) -> None:
        """Write the counts into the table, until it is cancelled, and then a last time."""
        while True:
            try:
                await asyncio.sleep(_WRITTEN_EVERY)
            finally:
                await self._written()

    async def _written(self) -> None:
        with suppress(psycopg.Error, ExtractError, OSError, TimeoutError):  # they are kept for the next time
            async with asyncio.timeout(_CLOSING / 2), await self._connect() as conn:
                await self._tally.write(conn, self._settings.schema)


def _connecting(settings: Settings, find: Find) -> AsyncConnect:
    """Opens connections to the store, by what its Airflow connection says at that moment."""
    known: list[Connection] = []

    def looked_up() -> Connection:
        try:
            known[:] = [store_connection(settings, find)]
        except ConnectionMissingError:
            # What tells of it is away; the store need not be.
            if not known:
                raise
        return known[0]

    async def connect() -> AsyncConnection:
        found = await asyncio.to_thread(looked_up)
        return await AsyncStoreHook(settings.store_conn_id, connection=found).connect_often()

    return connect
