"""What the crash tests play on: an API, a database with the tables, processes that are always cleared away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import Runner, Settings, Summary, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.migrate import migrate
from tests.loopback import LoopbackApi

__all__ = ["PAGE", "Child", "Stage", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = 10
_SIZE = {"size": {"send": "limit", "max": PAGE}}
SOURCE = {
    "source": "shop",
    "connection": "shop",
    "defaults": {"records": "data", "key": "id"},
    "objects": {
        "keyed": {"path": "/keyed", "pages": {"by": "last_key", "send": "starting_after", "more": "has_more", **_SIZE}},
        "tokens": {"path": "/tokens", "pages": {"by": "token", "take": "next_cursor", "send": "cursor", **_SIZE}},
    },
}


def wait_until(happened: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something, a bounded time."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.003)


class Child:
    """A pipeline in a process of its own."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.runner: str = asked["runner"]
        self.cursor = Path(asked["cursor"]) if asked["cursor"] else None
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.crash.child", json.dumps(asked)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def kill(self) -> None:
        """As `kill -9`. Harmless if it has ended."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: it does nothing more, and does not know; returns once it stands still."""
        os.kill(self._process.pid, signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def wake(self) -> None:
        """SIGCONT."""
        os.kill(self._process.pid, signal.SIGCONT)

    def finish(self, seconds: float = 60) -> tuple[int, dict[str, Any]]:
        """Wait for its end; returns its exit code and what it said."""
        said, _ = self._process.communicate(timeout=seconds)
        found: dict[str, Any] = json.loads(said) if said else {}
        return self._process.returncode, found

    def cursor_log(self) -> str:
        """Who has written the cursor, in order."""
        return self.cursor.with_suffix(".log").read_text() if self.cursor else ""

    def clear_away(self) -> None:
        """End it, however it is, and close what is open."""
        self.kill()
        if self._process.stdout:
            self._process.stdout.close()


class Stage:
    """An API with ``count`` records in order, a database, and the pipelines on them."""

    def __init__(self, api: LoopbackApi, dsn: str, conn: Connection, count: int, object: str = "keyed") -> None:
        self.api, self.dsn, self.conn, self.object = api, dsn, conn, object
        self.keys = [f"k{number:05}" for number in range(count)]
        api.rows = [json.dumps({"id": key, "value": number}).encode() for number, key in enumerate(self.keys)]
        self.children: list[Child] = []
        migrate(connecting(dsn), [Source.model_validate(SOURCE)])

    def start(self, runner: str = "one", *, take_over: bool = False, cursor: Path | None = None, **over: Any) -> Child:
        """Start a pipeline in a process of its own. A page a transaction, unless told otherwise."""
        settings = {"silent_after": 60.0, "idle_timeout": 60.0, "batch": PAGE, "ahead": 1, **over}
        asked = {
            "source": SOURCE,
            "object": self.object,
            "dsn": self.dsn,
            "url": self.api.url,
            "runner": runner,
            "label": f"the run called {runner}",
            "take_over": take_over,
            "cursor": str(cursor) if cursor else None,
            "settings": settings,
        }
        self.children.append(Child(asked))
        return self.children[-1]

    def run(self, runner: str = "one", silent_after: timedelta = timedelta(minutes=1), **how: Any) -> Summary:
        """Run a pipeline in this process."""
        source, session = Source.model_validate(SOURCE), requests.Session()
        with session:
            session.trust_env = False
            return run(
                source,
                self.object,
                postgres=connecting(self.dsn),
                client=ApiClient(source, session, self.api.url),
                runner=Runner(runner, f"the run called {runner}"),
                settings=Settings(batch=PAGE, silent_after=silent_after),
                **how,
            )

    @contextmanager
    def trap(self, key: str) -> Iterator[Connection]:
        """A record's row has another content and is locked: a pipeline that meets it hangs in its transaction."""
        insert = "insert into shop.keyed (key, data, raw_hash, applied_at, revision) values (%s, '{}', 'x', now(), 0)"
        self.conn.execute(insert, [key])
        # A connection of its own: within a transaction Postgres shows one and the same picture of who does what.
        with psycopg.connect(self.dsn) as locker:
            locker.execute("select 1 from shop.keyed where key = %s for update", [key])
            yield locker

    def pages(self) -> int:
        """Pages in the ledger."""
        row = self.conn.execute("select count(*) from extract.ledger where kind = 'page'").fetchone()
        assert row is not None
        return int(row[0])

    def place(self) -> dict[str, Any]:
        """Where the ledger stands; empty before its first row."""
        row = self.conn.execute(
            "select position -> 'place' from extract.ledger order by sequence desc limit 1"
        ).fetchone()
        return row[0] if row else {}

    def states(self) -> list[str]:
        """What the server processes of others do; a killed process's one may live a little longer than itself."""
        rows = self.conn.execute(
            "select state from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )
        return [row[0] for row in rows]

    def gone(self) -> bool:
        """Whether nothing is left of processes that were killed: in Postgres a commit may be under way that they had
        sent, and at the API a request that nobody has noted yet."""
        return not self.states() and not self.api.connections

    def waiting(self) -> bool:
        """Whether a server process waits for a lock."""
        row = self.conn.execute(
            "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ).fetchone()
        return row is not None

    def next_params(self) -> dict[str, str]:
        """What a correct run asks for first, given the ledger: the page behind the last committed one, with the last
        record but one as its anchor; found from the list of keys, not by the walk's own rules."""
        place, limit = self.place(), {"limit": str(PAGE)}
        if self.object == "tokens":
            return {**limit, "cursor": place["next"]} if place.get("next") else limit
        if place.get("after") is None:
            return limit
        return {**limit, "starting_after": self.keys[self.keys.index(place["after"]) - 1]}

    def store(self) -> tuple[list[Any], list[Any]]:
        """Every row of the ledger and of the record table, with the transactions that wrote them."""
        ledger = self.conn.execute("select sequence, cause, xmin, position from extract.ledger order by 1").fetchall()
        table = f"select key, xmin, ctid, revision, data from shop.{self.object} order by key"
        return ledger, self.conn.execute(table).fetchall()

    def check_exact(self) -> None:
        """The table holds what the API holds, each record stored once, and the ledger is complete."""
        rows = self.conn.execute(f"select key, data, revision from shop.{self.object} order by key").fetchall()
        assert rows == [(key, {"id": key, "value": number}, 1) for number, key in enumerate(self.keys)]
        done = "select position -> 'complete' from extract.ledger order by sequence desc limit 1"
        assert self.conn.execute(done).fetchone() == (True,)
