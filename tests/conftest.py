"""What all tests share: a real Postgres, a database of their own for each, a loopback API."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer, postgres_or_embedded
from tests.broker import broker as broker
from tests.broker import broker_pair as broker_pair
from tests.broker import used as brokers_used
from tests.loopback import LoopbackApi

_numbers = itertools.count()

SLOW = ("crash", "demo", "exactly_once", "hazards", "kinto", "properties")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long by where it stands."""
    for item in items:
        if item.path.parent.name in SLOW:
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which brokers the tests ran on."""
    for kind in brokers_used:
        terminalreporter.write_line(f"Kafka: {kind}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real server: the one named by EXTRACT_POSTGRES_DSN, or an embedded one for this session."""
    with tempfile.TemporaryDirectory(prefix="extract-tests-") as folder:
        Path(folder).chmod(0o755)
        # The tests' data may be lost with the machine; the crashes tested are those of processes.
        with postgres_or_embedded(folder, {"fsync": "off", "max_connections": "200"}) as server:
            yield server


@pytest.fixture
def dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database for one test."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def connect(dsn: str) -> Connect:
    """Opens connections to the test's database."""
    return connecting(dsn)


@pytest.fixture
def api() -> Iterator[LoopbackApi]:
    """A loopback API without records."""
    with LoopbackApi() as served:
        yield served
