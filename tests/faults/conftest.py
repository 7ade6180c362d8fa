"""One database for all of these tests, and no real pauses between a client's tries."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.extract.conftest import pauses as pauses
from tests.faults.stage import Large, large


@pytest.fixture(scope="session")
def store(postgres_server: PostgresServer) -> Iterator[Connect]:
    """Opens connections to the database: each source has tables of its own in it."""
    name = f"faults_{os.getpid()}"
    yield connecting(postgres_server.create_database(name))
    postgres_server.drop_database(name)


@pytest.fixture(scope="module")
def hundred_thousand(store: Connect) -> Iterator[Large]:
    """100,000 records, a hundred pages."""
    with large(store, "truth_of_many", 100_000) as served:
        yield served


@pytest.fixture(scope="module")
def ten_thousand(store: Connect) -> Iterator[Large]:
    """10,000 records, ten pages."""
    with large(store, "truth_of_some", 10_000) as served:
        yield served
