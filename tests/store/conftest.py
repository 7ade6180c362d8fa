"""A database with the books and the record tables, and appliers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_extract_provider.extract.store.connection import Connect, Connection
from tests.store.applier import SOURCE, Applier
from tests.ways import Store, as_owner


@pytest.fixture
def applier(store: Store, connect: Connect) -> Iterator[Callable[..., Applier]]:
    """Makes appliers (object, walk) on one migrated database."""
    store.migrate([SOURCE])
    made: list[Applier] = []

    def make(object: str = "plain", walk: str = "backfill") -> Applier:
        made.append(Applier(connect, object, walk))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


@pytest.fixture
def conn(connect: Connect) -> Iterator[Connection]:
    """A connection of the tables' owner that commits each statement: what a test itself does, it may do."""
    with as_owner(connect) as opened:
        opened.autocommit = True
        yield opened
