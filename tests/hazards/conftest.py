"""One database for all cells, and no real pauses between a client's tries."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer


@pytest.fixture(scope="session")
def hazards_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """The cells' database: each has schemas of its own in it."""
    name = f"hazards_{os.getpid()}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def store(hazards_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Opens connections to it."""
    monkeypatch.setattr("airflow_extract_provider.extract.api.client.pause", lambda halted, seconds: None)
    return connecting(hazards_dsn)
