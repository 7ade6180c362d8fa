"""What was answered 2xx is in the inbox, to the byte, whatever crashes: workers, the whole receiver, Postgres."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types
import psycopg
import pytest

from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import EmbeddedPostgres
from tests.databases import lone_server, stopped
from tests.webhooks.receiving import Attempt, Delivery, Process, Sender, deliveries

pytestmark = pytest.mark.slow

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
COUNT = 50_000 if SOAK else 2_000
CONNECTIONS = 50
PAUSE = 0.1
"""The most that a connection waits between two, in seconds: so that some are on their way when something dies."""
AWAY = 3.0 if SOAK else 2.0
STOPPED = 3.0


@dataclass
class Outage:
    """The store was away, or did not answer, from one instant to another (monotonic)."""

    name: str
    began: float
    ended: float


@dataclass
class Crashes:
    """What is done to receiver and store, each in the midst of deliveries; and when it was over."""

    receiver: Process
    postgres: EmbeddedPostgres
    outages: list[Outage] = field(default_factory=list)
    struck: list[float] = field(default_factory=list)
    repaired: dict[str, float] = field(default_factory=dict)

    def all(self) -> list[Callable[[], None]]:
        """In an order in which each meets a receiver that has recovered from the one before."""
        return [
            self.worker_killed,
            self.store_restarted,
            self.all_killed,
            self.store_killed,
            self.parent_killed,
            self.store_stopped,
        ]

    def worker_killed(self) -> None:
        """Its parent has to replace it."""
        before = self.receiver.workers()
        os.kill(before[0], signal.SIGKILL)
        self._repaired("a worker killed")
        until = time.monotonic() + 60
        while len(after := self.receiver.workers()) < len(before) or before[0] in after:
            assert time.monotonic() < until, self.receiver.told()
            time.sleep(0.1)

    def all_killed(self) -> None:
        """Somebody starts it again, such as systemd."""
        self.receiver.kill()
        self._repaired("the receiver killed")
        self.receiver.start()
        self.receiver.wait()

    def parent_killed(self) -> None:
        """Its workers end by themselves: another one could not listen otherwise."""
        os.kill(self.receiver.pid, signal.SIGKILL)
        self.receiver.ended()
        self._repaired("its parent killed")
        self._started_again()

    def store_restarted(self) -> None:
        """By an orderly, fast shutdown."""
        self.postgres.stop()
        with self._away("Postgres restarted"):
            time.sleep(AWAY)
        self.postgres.start()

    def store_killed(self) -> None:
        """It recovers from its log when it starts."""
        self.postgres.kill()
        with self._away("Postgres killed"):
            time.sleep(AWAY)
        self.postgres.start()

    def store_stopped(self) -> None:
        """All its processes, as on a machine that hangs."""
        with stopped(self.postgres), self._away(f"Postgres stopped for {STOPPED:.0f} s"):
            time.sleep(STOPPED)

    @contextmanager
    def _away(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.outages.append(Outage(name, began, time.monotonic()))
        self._repaired(name)

    def _repaired(self, name: str) -> None:
        self.repaired[name] = time.monotonic()

    def _started_again(self) -> None:
        """Started until it stays: as long as the old workers listen, it ends at once."""
        until = time.monotonic() + 60
        while True:
            self.receiver.start()
            with suppress(AssertionError):
                self.receiver.wait()
            if self.receiver.running():
                return
            assert time.monotonic() < until, self.receiver.told()


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server to be killed."""
    with lone_server() as server:
        yield server


def send_through(sender: Sender, all: list[Delivery], told: Crashes) -> None:
    """Deliver all, portion by portion; in the midst of each of the first ones something crashes.

    It crashes, and is started again, in this thread: servers end with the thread that has started them.
    """
    crashes = told.all()
    portions = len(crashes) + 1
    size = -(-len(all) // portions)
    with ThreadPoolExecutor(1) as thread:
        for number in range(portions):
            portion = all[number * size : (number + 1) * size]
            done = len(sender.attempts)
            delivering = thread.submit(asyncio.run, sender.delivered(portion, CONNECTIONS))
            if number < len(crashes):
                while sum(each.good for each in sender.attempts[done:]) < len(portion) // 3:
                    time.sleep(0.005)
                    assert not delivering.done()
                told.struck.append(time.monotonic())
                crashes[number]()
            delivering.result()


@pytest.mark.timeout(0 if SOAK else 280)
def test_what_was_answered_is_there(
    postgres: EmbeddedPostgres, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """Receiver killed three times, Postgres restarted, killed, stopped: no answered delivery is missing or changed,
    none is there twice, and while the store was away none was answered 2xx."""
    dsn = postgres.create_database("webhooks")
    migrate(connecting(dsn), [])
    all = list(deliveries(COUNT))
    with Process(tmp_path, dsn, "--workers", "2") as receiver:
        crashes = Crashes(receiver, postgres)
        sender = Sender(receiver.port, pause=PAUSE)
        send_through(sender, all, crashes)
        answered = {each.delivery.id: each.delivery.body for each in sender.attempts if each.good}
        with psycopg.connect(dsn) as conn:
            stored = [bytes(row[0]) for row in conn.execute("select body from extract.inbox")]
    assert set(answered) == {each.id for each in all}
    assert sorted(stored) == sorted(answered.values())
    for outage in crashes.outages:
        meanwhile = [each for each in sender.attempts if outage.began <= each.began <= outage.ended]
        assert meanwhile, outage
        # Begun after the store was gone and answered before it came back: such a 2xx would be a lie.
        assert [each for each in meanwhile if each.good and each.ended <= outage.ended] == [], outage
    for line in told(sender.attempts, crashes):
        measured(line)


def told(attempts: list[Attempt], crashes: Crashes) -> Iterator[str]:
    """How long answers took, and how long it took from each repair to the next 2xx."""
    good = sorted(each.ended - each.began for each in attempts if each.good)
    p50, p99 = statistics.median(good) * 1000, good[int(0.99 * len(good))] * 1000
    others = len(attempts) - len(good)
    yield (
        f"webhooks through crashes: {len(good):,} answered 2xx, p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
        f"{others:,} tries answered otherwise or not at all"
    )
    # From the repair to the next crash.
    spans = zip(crashes.repaired.items(), [*crashes.struck[1:], time.monotonic()], strict=True)
    for (name, at), until in spans:
        # Until the first 2xx behind the last try that failed: some worker may have answered meanwhile.
        failed = max((each.ended for each in attempts if not each.good and at <= each.ended < until), default=at)
        back = min((each.ended for each in attempts if each.good and each.ended >= failed), default=float("nan"))
        yield f"webhooks: {name}: all is answered 2xx again {back - at:.2f} s later"


def test_nothing_is_left_running(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """A stop answers what it has, and ends workers and parent with code 0; nobody else is in the group then."""
    dsn = postgres.create_database("webhooks")
    migrate(connecting(dsn), [])
    with Process(tmp_path, dsn, "--workers", "2") as receiver:
        workers = receiver.workers()
        ended = threading.Event()
        sender = Sender(receiver.port)

        async def work() -> None:
            async with sender.sending(CONNECTIONS):
                for each in deliveries(200_000):
                    if ended.is_set():
                        break
                    sender.waiting.put_nowait(each)
                    while sender.waiting.qsize() > CONNECTIONS and not ended.is_set():
                        await asyncio.sleep(0.001)

        thread = threading.Thread(target=lambda: asyncio.run(work()))
        thread.start()
        until = time.monotonic() + 60
        while len(sender.attempts) < 200 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(receiver.pid, signal.SIGTERM)
        code = receiver.ended()
        ended.set()
        thread.join()
        assert code == 0, receiver.told()
        assert [pid for pid in workers if psutil.pid_exists(pid)] == []
        answered = {each.delivery.body for each in sender.attempts if each.good}
        with psycopg.connect(dsn) as conn:
            stored = {bytes(row[0]) for row in conn.execute("select body from extract.inbox")}
            counted = conn.execute("select sum(count) from extract.inbox_count where kind = 'received'").fetchone()
    assert len(answered) >= 200
    assert answered <= stored
    # Those that were stored and whose answer was not read any more are counted too.
    assert counted == (len(stored),)
    # None of them was told 5xx: a stop is no outage.
    assert {each.status for each in sender.attempts} <= {200, None}
