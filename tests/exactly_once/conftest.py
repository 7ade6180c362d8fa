"""A database whose record table is watched by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.testing.hostile import HostileApi
from tests.exactly_once.oracle import watch
from tests.exactly_once.play import KIND, Play
from tests.exactly_once.writers import a_source
from tests.store.applier import Applier
from tests.ways import Store


@pytest.fixture
def conn(store: Store) -> Iterator[Connection]:
    """A connection of the tables' owner that commits each statement."""
    with store.owner() as opened:
        opened.autocommit = True
        yield opened


@pytest.fixture
def watched(store: Store, conn: Connection) -> Iterator[Callable[..., Applier]]:
    """Makes appliers of the object `things`, whose table is watched."""
    store.migrate([a_source()])
    watch(conn, "shop.things")
    made: list[Applier] = []

    def make(walk: str = "backfill", **spec: Any) -> Applier:
        store.migrate([a_source(**spec)])  # what it folds into needs rights too
        made.append(Applier(store.connect, "things", walk, a_source(**spec)))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


@pytest.fixture
def play(store: Store, conn: Connection, tmp_path: Path) -> Iterator[Play]:
    """A play whose API has no records yet."""
    with HostileApi(seed=5, listings={"/things": KIND.served()}) as api:
        yield Play(api, conn, store, tmp_path / "cursor")
