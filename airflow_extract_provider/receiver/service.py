"""What one worker of the receiver runs: the doors with their secrets, the keep behind them, the counts."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from airflow_extract_provider.extract.errors import ExtractError, SourceError
from airflow_extract_provider.extract.signing import Scheme
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.webhooks.answers import ANSWERS
from airflow_extract_provider.extract.webhooks.deadline import Deadline
from airflow_extract_provider.extract.webhooks.inbox_writer import AsyncConnect, AsyncConnection
from airflow_extract_provider.extract.webhooks.keeping import Commit, PostgresKeep
from airflow_extract_provider.extract.webhooks.receiver import Door, Receiver
from airflow_extract_provider.hooks import kafka
from airflow_extract_provider.hooks.store_async import AsyncStoreHook
from airflow_extract_provider.receiver.connections import Find, Secrets
from airflow_extract_provider.receiver.counts import Tally
from airflow_extract_provider.receiver.lookup import Lookup
from airflow_extract_provider.receiver.metrics import Numbers, Shared, exposed
from airflow_extract_provider.receiver.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_extract_provider.extract.webhooks.kafka_keep import KafkaKeep

__all__ = ["Loaded", "Service", "kept_in_kafka", "loaded"]

_STORE = "--conn-type postgres --conn-host HOST --conn-schema DATABASE --conn-login USER --conn-password PASSWORD"
_SHOWN_EVERY, _WRITTEN_EVERY = 1.0, 5.0
"""Seconds after which the other workers see this one's numbers, and after which the table has them."""
_CLOSING = 10.0
"""Seconds for what is to be done at the end."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read and is good: the sources that have webhooks, the secrets of their endpoints by connection, and the
    connection of where webhooks are kept."""

    sources: Mapping[str, Source]
    secrets: Mapping[str, tuple[str, ...]] = field(repr=False)
    store: Connection = field(repr=False)


def loaded(settings: Settings, find: Find) -> Loaded:
    """Read all that is needed.

    Raises SourceError: the folder or a file is wrong, or none has webhooks. Raises ConnectionMissingError: a connection
    is missing, or holds no secret.
    """
    sources = {name: each for name, each in load_sources(settings.sources).items() if each.webhooks}
    if not sources:
        raise SourceError(
            f"no source in the folder {settings.sources.name} has `webhooks`.",
            todo="Say in a source file where its API sends them.",
        )
    secrets = Secrets(find, _uses(sources.values())).known
    if settings.public_url is None:
        _warn_of_urls(sources.values())
    if settings.keep == "kafka":
        return Loaded(sources, secrets, find(settings.kafka_conn_id, kafka.EXAMPLE))
    return Loaded(sources, secrets, find(settings.store_conn_id, _STORE))


def _warn_of_urls(sources: Iterable[Source]) -> None:
    for source in sources:
        for endpoint, spec in source.webhooks.items():
            if spec.verify.signs_url:
                _log.warning(
                    "the API of %s/%s signs the address that it sends to, and no public URL is given: the address of "
                    "each request is taken, as it reaches this process. Behind a proxy it is most often another, and "
                    "each webhook is refused.",
                    source.source,
                    endpoint,
                )


def kept_in_kafka(settings: Settings, connection: Connection) -> KafkaKeep:
    """The Kafka topic as a keep; nothing is opened yet. Raises SinkRefusedError."""
    return kafka.kafka_keep(settings.kafka_conn_id, settings.topic, connection=connection)


def _uses(sources: Iterable[Source]) -> list[tuple[str, Scheme]]:
    return [(spec.secret, spec.verify) for each in sources for spec in each.webhooks.values()]


def _doors(sources: Iterable[Source], secrets: Secrets) -> list[Door]:
    return [
        Door(source.source, endpoint, spec, secrets.of(spec.secret))
        for source in sources
        for endpoint, spec in source.webhooks.items()
    ]


class Service:
    """Receives webhooks from its start to its close; :attr:`receive` is the ASGI application that does."""

    def __init__(
        self,
        settings: Settings,
        find: Find,
        known: Loaded | None = None,
        refused: Mapping[str, int] | None = None,
    ) -> None:
        """Nothing is opened yet. ``known`` is what was read before: nothing is read now, so nothing that became wrong
        since then is in the way. ``refused`` counts what never becomes a request. Raises as :func:`loaded`."""
        self._settings, self._anyway = settings, known is not None
        known = known or loaded(settings, find)
        self._secrets = Secrets(find, _uses(known.sources.values()), known.secrets)
        self._tally, self._shared = Tally(), Shared(settings.numbers)
        self._totals: Counter[str] = Counter()
        self._refused = {} if refused is None else refused
        self._connect = _connecting(settings, find, known.store)
        self._books: AsyncConnection | None = None
        self._keep = self._kept(known.store)
        doors = _doors(known.sources.values(), self._secrets)
        self._tally.expect((each.source, each.endpoint, kind) for each in doors for kind in ANSWERS)
        self.receive = Receiver(doors, self._keep, self._tally, public_url=settings.public_url)
        self._ending: list[Callable[[], None]] = []
        self._busy: list[asyncio.Task[None]] = []
        self._told_to_end = asyncio.Event()

    async def start(self) -> None:
        """Open the keep, and begin to look after secrets and counts. The store may be away: it is looked for; and if
        all was good once, so it is where it refuses us: whoever sends is told so, while we live."""
        await self._keep.start(anyway=self._anyway)
        every = self._settings.secrets_every.total_seconds()
        self._ending.append(self._secrets.refreshing(every, now=self._anyway).set)
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
        # Who writes is not cancelled: psycopg might wait without end for a server that does not answer.
        self._told_to_end.set()
        await asyncio.gather(*self._busy, return_exceptions=True)
        await self._put_away()

    @property
    def ready(self) -> bool:
        """Whether webhooks can be stored now, as far as is known."""
        return self._keep.ready

    def metrics(self) -> bytes:
        """All numbers, of the other workers too, in Prometheus's text format."""
        return exposed(self._numbers(), self._shared)

    def _kept(self, connection: Connection) -> PostgresKeep | KafkaKeep:
        if self._settings.keep == "kafka":
            return kept_in_kafka(self._settings, connection)
        return PostgresKeep(self._connect, self._settings.schema, told=self._committed)

    def _committed(self, commit: Commit) -> None:
        for name, more in (("commits", 1), ("deliveries", commit.deliveries), ("bytes", commit.bytes)):
            self._totals[f"extract_webhook_{name}"] += more

    def _numbers(self) -> Numbers:
        # Of one that ends the others do not say, for as long as its numbers stand, that it cannot reach its store.
        up = self._keep.ready or self._told_to_end.is_set()
        return Numbers(self._tally.counted, self._totals, up, self._refused, self._told_to_end.is_set())

    async def _showing(self) -> None:
        """Let the other workers see the numbers, until the end is told, and then a last time."""
        said, ended = "", False
        while not ended:
            ended = self._told_to_end.is_set()
            self._tally.take()
            try:
                self._shared.show(self._numbers())
                said = ""
            except OSError as exc:  # a full disk, which may have room again
                if said != (said := type(exc).__name__):
                    _log.warning("the numbers are not shared with the other workers now (%s)", said)
            await self._ends_within(_SHOWN_EVERY)

    async def _writing(self) -> None:
        """Write the counts into the table, until the end is told, and then a last time; not where the store is away."""
        ended = False
        while not ended:
            ended = await self._ends_within(_WRITTEN_EVERY)
            if not await self._written():
                ended = self._told_to_end.is_set()

    async def _ends_within(self, seconds: float) -> bool:
        """Rest; whether the end was told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told_to_end.wait()
        return self._told_to_end.is_set()

    async def _written(self) -> bool:
        """Whether nothing is left to be written."""
        if not self._keep.ready and not self._told_to_end.is_set():
            # It may be the last connection that the role, or the server, has left: webhooks come first.
            await self._put_away()
            return False
        if not self._tally.unwritten:
            return True
        try:
            if self._books is None:
                async with asyncio.timeout(_CLOSING / 2):
                    self._books = await self._connect()
            with Deadline(self._books, _CLOSING / 2):
                await self._tally.write(self._books, self._settings.schema)
        except (psycopg.Error, ExtractError, OSError, TimeoutError):  # they are kept for the next time
            await self._put_away()
            return False
        return True

    async def _put_away(self) -> None:
        books, self._books = self._books, None
        if books is not None:
            with suppress(psycopg.Error, OSError):
                await books.close()


def _connecting(settings: Settings, find: Find, known: Connection) -> AsyncConnect:
    """Opens connections to the store, by what its Airflow connection says at that moment; that is ``known`` already."""
    lookup = Lookup(lambda: find(settings.store_conn_id, _STORE), known)

    async def connect() -> AsyncConnection:
        return await AsyncStoreHook(settings.store_conn_id, connection=await lookup()).connect_often()

    return connect
