"""A database whose record table is watched by the oracle, before an API that sends webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.testing.hostile import HostileApi
from tests.exactly_once.play import KIND
from tests.ways import Store
from tests.webhooks.hooked import Hooked


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
