"""A database whose record table is watched by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import HostileApi
from tests.exactly_once.oracle import watch
from tests.exactly_once.play import KIND, Play
from tests.exactly_once.writers import a_source
from tests.store.applier import Applier


@pytest.fixture
def conn(connect: Connect) -> Iterator[Connection]:
    """A connection that commits each statement."""
    with connect() as opened:
        opened.autocommit = True
        yield opened


@pytest.fixture
def watched(connect: Connect, conn: Connection) -> Iterator[Callable[..., Applier]]:
    """Makes appliers of the object `things`, whose table is watched."""
    migrate(connect, [a_source()])
    watch(conn, "shop.things")
    made: list[Applier] = []

    def make(walk: str = "backfill", **spec: Any) -> Applier:
        made.append(Applier(connect, "things", walk, a_source(**spec)))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


@pytest.fixture
def play(dsn: str, connect: Connect, conn: Connection, tmp_path: Path) -> Iterator[Play]:
    """A play whose API has no records yet."""
    with HostileApi(seed=5, listings={"/things": KIND.served()}) as api:
        yield Play(api, conn, connect, dsn, tmp_path / "cursor")
