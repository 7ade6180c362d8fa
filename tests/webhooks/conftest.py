"""A database whose record table is watched by the oracle, before an API that sends webhooks; and a topic for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.testing.hostile import HostileApi
from tests.broker import Broker
from tests.exactly_once.play import KIND
from tests.sinks.topics import create, unused_name
from tests.ways import Store
from tests.webhooks.hooked import Hooked
from tests.webhooks.kafka_stage import Consuming


@pytest.fixture
def conn(store: Store) -> Iterator[Connection]:
    """A connection of the tables' owner that commits each statement."""
    with store.owner() as opened:
        opened.autocommit = True
        yield opened


@pytest.fixture
def play(store: Store, conn: Connection, tmp_path: Path) -> Iterator[Hooked]:
    """A play whose API has no records yet."""
    with HostileApi(seed=5, listings={"/things": KIND.served()}) as api:
        yield Hooked(api, conn, store, tmp_path / "cursor")


@pytest.fixture
def topic(broker: Broker) -> str:
    """A topic of three partitions."""
    return create(broker, unused_name())


@pytest.fixture
def consuming(broker: Broker, topic: str, connect: Connect) -> Iterator[Consuming]:
    """Makes consumers of the topic."""
    made = Consuming(broker, topic, connect)
    yield made
    with suppress(ExtractError):
        made.end()
