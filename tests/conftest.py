"""What all tests share: a real Postgres, a database of their own for each, a loopback API; and what is said at the end,
whichever worker has found it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import settings

from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer, postgres_or_embedded
from tests.broker import broker as broker
from tests.broker import broker_pair as broker_pair
from tests.broker import used as brokers_used
from tests.databases import Databases, databases_on, room
from tests.loopback import LoopbackApi
from tests.ways import EVERY_WAY, Pooler, Store, Way, chosen, pooled_or_skip
from tests.workers import Sharing, check_together, used

SLOW = ("crash", "demo", "exactly_once", "faults", "hazards", "kinto", "properties")

# A busy machine may keep any example waiting: how long one takes is no property of what is tested.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")

_FREE_PORT = re.compile(r"(127\.0\.0\.1:|127\.0\.0\.1 port=)\d+")
_measured: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark what takes long by where it stands."""
    check_together(items)
    for item in items:
        if item.path.parent.name in SLOW:
            item.add_marker("slow")
    yield  # their order is made random
    # Airflow takes a good part of the machine from the first of these to the last.
    items.sort(key=lambda item: "world" in used(item))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    """Share the tests out in our own way."""
    return Sharing(config, log)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Send some tests each way into the store."""
    module = metafunc.module.__name__
    several = not EVERY_WAY.isdisjoint((module, f"{module}::{metafunc.function.__name__}"))
    if several and "store_way" in metafunc.fixturenames:
        metafunc.parametrize("store_way", get_args(Way), indirect=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Leave free ports out of a test's name: workers must all call it the same."""
    found = _FREE_PORT.search(val) if isinstance(val, str) else None
    return _FREE_PORT.sub(r"\1PORT", found.string) if found else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands over what is to be said at the end."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput |= {"brokers": brokers_used, "measured": _measured}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take it from the worker."""
    told = getattr(node, "workeroutput", {})
    brokers_used.extend(told.get("brokers", ()))
    _measured.extend(told.get("measured", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which brokers the tests ran on, and what was measured."""
    for kind in brokers_used:
        terminalreporter.write_line(f"Kafka: {kind}")
    for line in _measured:
        terminalreporter.write_line(line)


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Takes a line for the end of the report."""
    return _measured.append


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real server: the one named by EXTRACT_POSTGRES_DSN, or an embedded one for this session."""
    with tempfile.TemporaryDirectory(prefix="extract-tests-", dir=room()) as folder:
        Path(folder).chmod(0o755)
        # The tests' data may be lost with the machine; the crashes tested are those of processes.
        settings = {"fsync": "off", "max_connections": "200", "max_wal_size": "256MB"}
        with postgres_or_embedded(folder, settings) as server:
            yield server


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Iterator[Databases]:
    """Makes databases on it."""
    with databases_on(postgres_server) as made:
        yield made


@pytest.fixture(scope="session")
def pooler(postgres_server: PostgresServer) -> Iterator[Pooler]:
    """A PgBouncer before it."""
    with pooled_or_skip(postgres_server) as started:
        yield started


@pytest.fixture
def store_way(request: pytest.FixtureRequest) -> Way:
    """How the test's program comes into the store."""
    found: Way = getattr(request, "param", chosen())
    return found


@pytest.fixture
def store(request: pytest.FixtureRequest, databases: Databases, store_way: Way) -> Iterator[Store]:
    """A database for one test; only the books are in it, as `airflow extract migrate` makes them."""
    pooler = request.getfixturevalue("pooler") if store_way == "pgbouncer" else None
    with databases.with_books() as address:
        made = Store(store_way, address, pooler)
        yield made
        made.close()


@pytest.fixture
def dsn(store: Store) -> str:
    """The program's way into that database."""
    return store.dsn


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """A database for one test, with nothing in it."""
    with databases.empty() as address:
        yield address


@pytest.fixture
def connect(request: pytest.FixtureRequest, dsn: str) -> Connect:
    """Opens connections to the test's database, the program's way."""
    store = request.getfixturevalue("store") if "store" in request.fixturenames else None
    return store.connect if store is not None and store.dsn == dsn else connecting(dsn)


@pytest.fixture
def api() -> Iterator[LoopbackApi]:
    """A loopback API without records."""
    with LoopbackApi() as served:
        yield served
