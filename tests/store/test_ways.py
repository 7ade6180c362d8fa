"""Whole runs as the documented least role, and through a real PgBouncer that pools transactions."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.errors import FencedError, StoreUnavailableError, WalkBusyError
from airflow_extract_provider.extract.pipeline import Runner, Settings, Summary, WalkName, Window, run
from airflow_extract_provider.extract.relay import EachEvent, consume
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import opened
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.testing.hostile import HostileApi
from tests.exactly_once.oracle import RULES
from tests.exactly_once.play import KIND
from tests.extract.sweeping import BY_KEY, Returning
from tests.ways import Pooler, Store

FOLD = [
    {"table": "public.org", "where": {"id": "id"}, "set": {"value": "value"}, "insert": True, "deleted": "remove"},
]
HOLDER = """
import sys, time
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.fence import Scope, acquire, holding
from datetime import timedelta
conn = connecting(sys.argv[1])()
conn.autocommit = True
fence = acquire(conn, "extract", Scope("shop", "things", "*"), "one", "one", silent_after=timedelta(minutes=5))
with holding(conn, "extract", fence):
    print("holds", flush=True)
    time.sleep(600)
"""


class Shop:
    """An API and a store, with all that a run may need of it."""

    def __init__(self, api: HostileApi, store: Store) -> None:
        self.api, self.store = api, store
        things = KIND.described(
            by_key=BY_KEY,
            on_bad_record="quarantine",
            events=RULES,
            fold=FOLD,
            sweep={"every": "1d"},
        )
        self.source = Source.model_validate({"source": "shop", "connection": "none", "objects": {"things": things}})
        with store.owner() as conn:
            conn.execute("create table public.org (id text primary key, value int)")
        store.migrate([self.source])

    def run(self, walk: WalkName, runner: str = "one", **how: Any) -> Summary:
        """Run a walk to its end, a page a transaction."""
        with requests.Session() as session:
            session.trust_env = False
            client = ApiClient(self.source, session, self.api.url)
            return run(
                self.source,
                "things",
                walk,
                postgres=self.store.connect,
                client=client,
                runner=Runner(runner, runner),
                settings=Settings(batch=1),
                **how,
            )

    def alive(self) -> dict[str, Any]:
        """The copy."""
        with self.store.owner() as conn:
            return dict(
                conn.execute("select key, data -> 'value' from shop.things where deleted_at is null").fetchall()
            )

    def folded(self) -> dict[str, Any]:
        """The same in the other table."""
        with self.store.owner() as conn:
            return dict(conn.execute("select id, value from public.org").fetchall())

    def true(self) -> dict[str, Any]:
        """What the API has."""
        return {key: record["value"] for key, record in self.api.live().items()}


@pytest.fixture
def shop(store: Store) -> Iterator[Shop]:
    """An API with 30 records, and an empty store."""
    with Returning(KIND.served()) as api:
        shop = Shop(api, store)
        api.insert(30, value=30)
        api.clock.advance(timedelta(minutes=1))
        yield shop


def test_all_that_a_run_does(shop: Shop) -> None:
    """Each walk, changes, deletes, the other table, bad records, edges, events and their consumer."""
    assert shop.run("backfill").records == 30
    shop.api.update(*shop.api.ids[:5], value=60)
    shop.api.delete(*shop.api.ids[-2:])
    shop.api.insert(1, value=5)
    shop.api.clock.advance(timedelta(minutes=1))
    shop.run("incremental")
    with shop.store.connect() as conn:
        refetch.note(conn, "extract", "shop", "things", [str(shop.api.ids[7])], "test")
    shop.run("by_key")
    swept = shop.run("rebackfill", reset=True, max_deletes=5)
    assert swept.complete
    assert shop.alive() == shop.folded() == shop.true()
    handled: list[str] = []
    found = consume("mail", EachEvent(lambda event: handled.append(event.type)), postgres=shop.store.connect)
    assert found.handled == len(handled) > 0
    assert {"shop.things.created", "shop.things.deleted", "over.50"} <= set(handled)


def test_a_window(shop: Shop) -> None:
    """Read by itself, before any backfill; the second time the books are asked, and the API is not."""
    shop.api.clock.advance(timedelta(hours=1))
    until = shop.api.clock.now - timedelta(minutes=30)
    window = Window(until - timedelta(hours=1), until)
    assert shop.run("window", window=window).records == 30
    asked = shop.api.count
    assert shop.run("window", window=window).complete
    assert shop.api.count == asked


def test_sessions_change(store: Store, store_way: str) -> None:
    """Behind a pooler a connection has no session of its own, and prepares nothing; else it does."""
    with store.connect() as conn:
        conn.autocommit = True
        asked = [conn.execute("select pg_backend_pid(), %s::int", [number]).fetchone() for number in range(20)]
        sessions = {row[0] for row in asked if row is not None}
        if store_way == "pgbouncer":
            assert len(sessions) > 1
            assert conn.prepare_threshold is None
        else:
            assert sessions == {conn.info.backend_pid}
            assert conn.prepare_threshold == 5


def test_who_sets_it_is_obeyed(store: Store) -> None:
    """A pooler that knows prepared statements, or a server that should prepare none."""
    for given in (None, 1):
        with opened(store.dsn, prepare_threshold=given) as conn:
            assert conn.prepare_threshold == given
    with opened(store.dsn, autocommit=True) as conn:
        assert conn.autocommit
    with opened(store.dsn) as conn:
        assert not conn.autocommit


def test_killed_in_a_transaction(shop: Shop) -> None:
    """A process is killed while it holds the fence's row and locks: the transaction ends with it, the next run takes
    over, and the copy is right."""
    shop.run("backfill")
    shop.api.update(*shop.api.ids[:5], value=60)
    shop.api.clock.advance(timedelta(minutes=1))
    with subprocess.Popen([sys.executable, "-c", HOLDER, shop.store.dsn], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(WalkBusyError):
            shop.run("incremental", "two")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        shop.run("incremental", "two", take_over=True)
    assert shop.alive() == shop.folded() == shop.true()


def test_taken_over(shop: Shop) -> None:
    """A run that was taken over in the middle commits nothing more."""
    shop.run("backfill")
    shop.api.update(*shop.api.ids, value=60)
    shop.api.clock.advance(timedelta(minutes=1))

    def takes_over() -> None:
        scope = Scope("shop", "things", "*")
        with shop.store.connect() as conn:
            conn.autocommit = True
            acquire(conn, "extract", scope, "two", "two", silent_after=timedelta(minutes=5), take_over=True)

    shop.api.before(shop.api.count + 2, takes_over)
    with pytest.raises(FencedError):
        shop.run("incremental", "one")
    assert shop.alive() != shop.true()
    shop.run("incremental", "two")
    assert shop.alive() == shop.folded() == shop.true()


def test_the_pooler_is_restarted(shop: Shop, store_way: str, request: pytest.FixtureRequest) -> None:
    """All its clients are cut off: the run ends with a named error, and the next one goes on."""
    if store_way != "pgbouncer":
        pytest.skip("there is no pooler on this way")
    pooler: Pooler = request.getfixturevalue("pooler")
    shop.run("backfill")
    shop.api.update(*shop.api.ids, value=60)
    shop.api.clock.advance(timedelta(minutes=1))
    restarted = threading.Event()

    def restart() -> None:
        pooler.restart()
        restarted.set()

    shop.api.before(shop.api.count + 2, restart)
    with pytest.raises(StoreUnavailableError):
        shop.run("incremental")
    assert restarted.wait(30)
    assert shop.run("incremental").complete
    assert shop.alive() == shop.folded() == shop.true()
