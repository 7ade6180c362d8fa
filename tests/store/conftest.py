"""A database with the books and the record tables, and appliers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import migrate
from tests.store.applier import SOURCE, Applier


@pytest.fixture
def applier(connect: Connect) -> Iterator[Callable[..., Applier]]:
    """Makes appliers (object, walk) on one migrated database."""
    migrate(connect, [SOURCE])
    made: list[Applier] = []

    def make(object: str = "plain", walk: str = "backfill") -> Applier:
        made.append(Applier(connect, object, walk))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


@pytest.fixture
def conn(connect: Connect) -> Iterator[Connection]:
    """A connection that commits each statement."""
    with connect() as opened:
        opened.autocommit = True
        yield opened
