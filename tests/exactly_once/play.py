"""An API, a store that is watched by the oracle, one walk, and what a consumer finds in Kafka."""

from __future__ import annotations

import json
import random
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.cursor import CursorStore
from airflow_extract_provider.extract.pipeline import Runner, Settings, Summary, WalkName, run
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.testing.hostile import HostileApi
from tests.broker import Broker
from tests.crash.child import FileCursor
from tests.crash.stage import wait_until
from tests.exactly_once.dying import PUBLISHED, live
from tests.exactly_once.oracle import RULES, Told, expected, logged, transitions, watch
from tests.forked import processes
from tests.hazards.kinds import KINDS
from tests.sinks.topics import Received, received
from tests.ways import Store

__all__ = ["KIND", "Play", "check_exact", "is_true"]

KIND = KINDS["token updated"]


class Play:
    """An object `things` of a source `shop`; its walks run in this process, or live and die in others.

    ``in_vain`` are the ids of what was published by lives that died before their commit. ``baseline`` is how much the
    oracle's log held after the first backfill.
    """

    def __init__(self, api: HostileApi, conn: Connection, store: Store, cursor: Path) -> None:
        self.api, self.conn, self.store, self.cursor = api, conn, store, cursor
        self.connect, self.dsn = store.connect, store.dsn
        self.chance = random.Random(7)
        self.kafka: Mapping[str, Any] = {}
        self.topic = ""
        self.source: dict[str, Any] = {}
        self.in_vain: set[str] = set()
        self.baseline = 0

    def prepare(self, sink: Sink | None = None, value: int = 30, run_for: timedelta | None = None, **over: Any) -> None:
        """Tables, and a first backfill, which is silent, of records with this value."""
        things = KIND.described(events=RULES, **over)
        self.source = {"source": "shop", "connection": "none", "objects": {"things": things}}
        self.store.migrate([parse_source(self.source, "test")])
        watch(self.conn, "shop.things")
        self.api.insert(14, value=value)
        self.api.clock.advance(timedelta(minutes=1))
        self.run("backfill", sink, run_for=run_for)
        self.baseline = logged(self.conn)

    def run(
        self,
        walk: WalkName = "incremental",
        sink: Sink | None = None,
        cursor: CursorStore | None = None,
        runner: str = "one",
        name: str = "things",
        **how: Any,
    ) -> Summary:
        """Run the walk in this process, to its end."""
        source = parse_source(self.source, "test")
        with requests.Session() as session:
            session.trust_env = False
            return run(
                source,
                name,
                walk,
                postgres=self.connect,
                client=ApiClient(source, session, self.api.url),
                runner=Runner(runner, f"the run called {runner}"),
                sink=sink,
                cursor=cursor or FileCursor(Path(f"{self.cursor}{walk}"), "one"),
                settings=Settings(batch=1, cursor_every=timedelta(0)),
                **how,
            )

    def live(self, step: str | None) -> None:
        """One life of the incremental walk in a process of its own."""
        noted = self.cursor.with_suffix(".noted")
        process = processes.Process(target=live, args=(self._asked(), step))
        process.start()
        process.join(60)
        assert process.exitcode == (0 if step is None else -signal.SIGKILL), step
        if noted.exists():
            if step in PUBLISHED:
                self.in_vain |= set(noted.read_text().split())
            noted.unlink()

    @contextmanager
    def stopped(self, step: str, seconds: float) -> Iterator[None]:
        """Within: the incremental walk's process has stopped at a step, and does not know; Postgres waits for it for so
        many seconds."""
        process = processes.Process(target=live, args=(self._asked() | {"stop": seconds}, step))
        process.start()
        try:
            wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            yield
        finally:
            process.kill()
            process.join()

    def _asked(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "walk": "incremental",
            "dsn": self.dsn,
            "url": self.api.url,
            "kafka": self.kafka,
            "topic": self.topic,
            "cursor": f"{self.cursor}incremental",
            "noted": str(self.cursor.with_suffix(".noted")),
        }

    def change(self) -> None:
        """Some records change, and one is new."""
        for key in self.chance.sample(self.api.ids, 4):
            self.api.update(key, value=self.chance.randrange(100))
        self.api.insert(1, value=self.chance.randrange(100))
        self.api.clock.advance(timedelta(seconds=5))

    def change_again(self) -> None:
        """Records that the killed run was about to store change once more."""
        for key in list(self.api.ids)[-6:]:
            self.api.update(key, value=self.chance.randrange(100))
        self.api.clock.advance(timedelta(seconds=5))

    def stands(self) -> tuple[Any, ...]:
        """Everything that a run which fails must leave alone: rows, outbox, what edges remember, ledger and cursor."""
        asked = (
            "select key, xmin, ctid, data, revision from shop.things order by key",
            "select id from extract.outbox order by id",
            "select rule, key, fired from extract.rule_state order by 1, 2",
            "select sequence, position from extract.ledger order by 1",
        )
        shown = Path(f"{self.cursor}incremental")
        books = tuple(self.conn.execute(each).fetchall() for each in asked)
        return (*books, shown.read_text() if shown.exists() else None)

    def true_events(self) -> Told:
        """What the rules ask for, since the baseline."""
        return expected(self.conn, self.baseline)


def is_true(message: Received, true: Mapping[tuple[str, int], Any]) -> bool:
    """Whether a message tells of a state that was committed."""
    known = true.get((message.key, int(message.attributes["revision"])), "nothing")
    return bool(known == _value(message))


def check_exact(play: Play, broker: Broker) -> tuple[Sequence[Received], set[str]]:
    """Every true event is in the topic, in order per key. Returns all messages, and the ids of those that tell of a
    state that was never committed."""
    messages = received(broker, play.topic)
    true = {(each.key, each.revision): each.now["value"] for each in transitions(play.conn)}
    assert _told_once(messages, true) == play.true_events()
    return messages, {each.id for each in messages if not is_true(each, true)}


def _told_once(messages: Sequence[Received], true: Mapping[tuple[str, int], Any]) -> Told:
    """The true events of each key, in the order in which a consumer who leaves out repeats meets them."""
    seen: set[str] = set()
    told: defaultdict[str, list[tuple[str, Any]]] = defaultdict(list)
    for each in messages:
        if is_true(each, true) and each.id not in seen:
            told[each.key].append((each.attributes["type"], _value(each)))
            seen.add(each.id)
    return dict(told)


def _value(message: Received) -> Any:
    """The record's value in a message."""
    if message.data is None:
        return None
    data = json.loads(message.data)
    record = data if message.attributes["type"] == "shop.things.change" else data["record"]
    return record["value"]
