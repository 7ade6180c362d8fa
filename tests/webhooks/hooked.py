"""An API that sends webhooks of its changes, a store that the oracle watches, and what came of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow_extract_provider.extract.errors import WalkBusyError
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.webhooks.drain import Drained, drain
from airflow_extract_provider.testing.hostile_store import Version
from tests.exactly_once.oracle import RULES, expected, found, logged, watch
from tests.exactly_once.play import KIND, Play
from tests.extract.sweeping import BY_KEY

__all__ = ["ENDPOINT", "Hooked", "body"]

ENDPOINT: dict[str, Any] = {
    "verify": "github",
    "secret": "none",
    "type": "type",
    "types": {
        "thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"},
        "thing.*": {"object": "things", "record": "data"},
    },
    "grace": "1h",
}


def body(play: Play, version: Version) -> bytes:
    """The webhook of a version: the record as the API lists it; of a deletion its id."""
    kind = "deleted" if version.deleted else "created" if version.number == 1 else "updated"
    data = {"id": version.id} if version.deleted else play.api.shown(version)
    return json.dumps({"type": f"thing.{kind}", "data": data}).encode()


class Hooked(Play):
    """A play whose object has webhooks."""

    def hook(self, endpoint: dict[str, Any] | None = None, records: int = 14, **over: Any) -> None:
        """Tables, the endpoint `main`, and a first backfill."""
        things = KIND.described(**{"events": RULES, "by_key": BY_KEY, **over})
        hooks = {"main": endpoint or ENDPOINT}
        self.source = {"source": "shop", "connection": "none", "objects": {"things": things}, "webhooks": hooks}
        self.store.migrate([parse_source(self.source, "test")])
        watch(self.conn, "shop.things")
        self.api.insert(records, value=30)
        self.api.clock.advance(timedelta(minutes=1))
        self.run("backfill")
        self.baseline = logged(self.conn)

    def put(self, *bodies: bytes, endpoint: str = "main", headers: dict[str, str] | None = None) -> None:
        """Deliveries come in."""
        with self.store.connect() as conn:
            conn.autocommit = True
            inbox.put(conn, "extract", [Incoming("shop", endpoint, each, headers or {}) for each in bodies])

    def drain(self, **how: Any) -> Drained:
        """Apply what waits."""
        return drain(parse_source(self.source, "test"), postgres=self.connect, **how)

    def poll(self, walk: WalkName, runner: str) -> None:
        """Walk the object; a sweep may delete as much as it likes."""
        sweep: dict[str, Any] = {"reset": True, "max_deletes": 10_000} if walk == "rebackfill" else {}
        self.run(walk, runner=runner, **sweep)

    @property
    def versioned(self) -> bool:
        """Whether the API can be asked for what has changed."""
        return self.source["objects"]["things"]["version"] is not None

    def refetch(self) -> None:
        """Read what was noted by its keys."""
        self.run("by_key", runner=f"refetch {self.chance.random()}")

    @contextmanager
    def beside(self, *walks: WalkName | str) -> Iterator[None]:
        """Within: these go on, again and again; ``drain`` among them."""
        over, errors = threading.Event(), []

        def go_on(walk: str, number: int) -> None:
            while not over.is_set():
                try:
                    if walk == "drain":
                        self.drain(limit=20)
                    else:
                        self.poll(walk, f"{walk} {number}")  # type: ignore[arg-type]
                except WalkBusyError:
                    over.wait(0.02)
                except Exception as exc:
                    errors.append(exc)
                    raise
                over.wait(0.01)

        threads = [threading.Thread(target=go_on, args=(walk, number)) for number, walk in enumerate(walks)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not errors

    def come_to_rest(self) -> None:
        """All that waits is applied, and what was lost on the way is found by polling."""
        self.drain()
        self.api.clock.advance(timedelta(minutes=1))
        if self.versioned:
            self.run()
        self.poll("rebackfill", "the last")
        self.refetch()
        assert self.count("extract.refetch") == 0

    def check(self) -> None:
        """The copy is the API, and each true transition was told once."""
        alive: dict[str, Any] = dict(
            self.conn.execute("select key, data from shop.things where deleted_at is null").fetchall()
        )
        assert alive == self.api.live()
        assert found(self.conn) == expected(self.conn, self.baseline)

    def check_beside_endings(self) -> None:
        """The same, but for what was passed on."""
        alive: dict[str, Any] = dict(
            self.conn.execute("select key, data from shop.things where deleted_at is null").fetchall()
        )
        assert alive == self.api.live()
        told = {
            key: [each for each in events if each[0] != "shop.thing.ending"] for key, events in found(self.conn).items()
        }
        assert {key: events for key, events in told.items() if events} == expected(self.conn, self.baseline)

    def count(self, table: str, where: str = "true") -> int:
        """How many rows there are."""
        row = self.conn.execute(f"select count(*) from {table} where {where}").fetchone()
        assert row is not None
        return int(row[0])

    def bodies(self, versions: Sequence[Version]) -> list[bytes]:
        """The webhooks of versions."""
        return [body(self, each) for each in versions]
