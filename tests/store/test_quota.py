"""Quotas: what every one of them does, and what Postgres's does between processes, losses and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from airflow_extract_provider.extract.api.limits import MemoryQuota, Quota, Told
from airflow_extract_provider.extract.errors import SchemaMissingError, StoreRightsError, StoreUnavailableError
from airflow_extract_provider.extract.rates import Rate
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.quota import PostgresQuota
from tests.store.applier import SOURCE
from tests.store.standstill import measured_again
from tests.ways import direct_only, migrate

ROOT = Path(__file__).resolve().parents[2]
HOUR = 3600


def rates(*texts: str) -> tuple[Rate, ...]:
    return tuple(map(Rate.parsed, texts))


class Counted(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose statements are counted, with those of all others."""

    asked = 0

    def execute(self, *args: Any, **named: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Count and execute."""
        type(self).asked += 1
        return super().execute(*args, **named)


class Far(Counted):
    """A connection to a Postgres that is far away: 20 ms there and back."""

    def wait(self, *args: Any, **named: Any) -> Any:
        """Send, and wait for what comes."""
        time.sleep(0.01)
        found = super().wait(*args, **named)
        time.sleep(0.01)
        return found


class Stopping(Counted):
    """A connection of a process that is stopped once, for longer than a second, in the middle of a transaction."""

    has_stopped = False

    def wait(self, *args: Any, **named: Any) -> Any:
        """Send, wait, and be stopped."""
        found = super().wait(*args, **named)
        if self.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS and not self.has_stopped:
            type(self).has_stopped = True
            time.sleep(1.4)
        return found


class Tasks:
    """Makes the quotas of tasks that share one."""

    def __init__(self, dsn: str) -> None:
        self.dsn, self.kind = dsn, Counted
        self.connections: list[Counted] = []
        self.made: list[PostgresQuota] = []

    def connect(self) -> Connection:
        """A counted connection."""
        self.connections.append(self.kind.connect(self.dsn, prepare_threshold=None))
        return self.connections[-1]

    def quota(self, *texts: str) -> PostgresQuota:
        """A task's quota."""
        self.made.append(PostgresQuota(self.connect, "extract", "shop", "shop_api", rates(*texts)))
        return self.made[-1]

    def asked(self, what: Callable[[], object]) -> int:
        """How many statements something takes."""
        before = Counted.asked
        what()
        return Counted.asked - before


@pytest.fixture
def tasks(dsn: str, connect: Connect) -> Iterator[Tasks]:
    """Tasks on a migrated database."""
    migrate(connect, [SOURCE])
    made = Tasks(dsn)
    yield made
    for each in made.made:
        each.close()


@pytest.fixture(params=["memory", "postgres"])
def two(request: pytest.FixtureRequest) -> Callable[..., tuple[Quota, Quota]]:
    """Two users of one quota: of the same object, or each with its own on Postgres."""
    if request.param == "memory":

        def shared(*texts: str) -> tuple[Quota, Quota]:
            quota = MemoryQuota(rates(*texts))
            return quota, quota

        return shared
    tasks: Tasks = request.getfixturevalue("tasks")
    return lambda *texts: (tasks.quota(*texts), tasks.quota(*texts))


def test_turns_by_turns(two: Callable[..., tuple[Quota, Quota]]) -> None:
    """Both get places two seconds apart and rising numbers; who would wait longer than it may takes no place."""
    one, other = two("1/2s")
    turns = [quota.turn(60) for quota in (one, other, other, one)]
    assert [turn.number for turn in turns] == [1, 2, 3, 4]
    assert [turn.wait for turn in turns] == pytest.approx([0, 2, 4, 6], abs=0.5)
    assert {turn.grace for turn in turns} == {2.0}
    assert [quota.turn(7).wait for quota in (one, other, one)] == pytest.approx([8, 8, 8], abs=0.5)
    last = other.turn(9)
    assert last.number == 5
    assert last.wait == pytest.approx(8, abs=0.5)
    assert one.left is None


def test_a_burst_and_what_is_left(two: Callable[..., tuple[Quota, Quota]]) -> None:
    """Four an hour, whoever takes them: they may go out at once, and the fifth in an hour."""
    one, other = two("4/h")
    assert [quota.turn(1).wait for quota in (one, other, other)] == [0, 0, 0]
    assert other.left == 0.25
    assert one.turn(1).wait == 0
    assert one.left == 0
    assert other.turn(60).wait == pytest.approx(HOUR, rel=0.02)


def test_a_pause_holds_for_all(two: Callable[..., tuple[Quota, Quota]]) -> None:
    """What one was told in Retry-After, the other keeps, and says so instead of waiting too long."""
    one, other = two("100/s")
    told = one.turn(1)
    other.turn(1)
    one.tell(told, Told(pause=20))
    for quota in (other, one):
        assert quota.turn(10).wait == pytest.approx(20, abs=0.5)
    assert other.turn(30).wait == pytest.approx(20, abs=0.5)


def test_what_the_api_tells_is_counted(two: Callable[..., tuple[Quota, Quota]]) -> None:
    """Without any declared rate: two are left, so each has one, and then both wait for the reset."""
    one, other = two()
    one.tell(one.turn(1), Told(remaining=2, limit=10, reset=30))
    assert one.left == 0.2
    assert one.turn(1).wait == 0
    assert one.left == 0.1
    for quota in (one, one):
        quota.turn(1)
    assert one.turn(10).wait == pytest.approx(30, abs=0.5)
    assert other.turn(10).wait == pytest.approx(30, abs=0.5)
    one.tell(one.turn(60), Told(remaining=9, limit=10))
    assert one.left == 0.9


def test_a_turn_that_waits_is_given_up(two: Callable[..., tuple[Quota, Quota]]) -> None:
    """Both have turns, the other's is to come; one is told to wait. The other is not to use its turn, which was before
    the pause's end, nor the one after it; the next is at that end, not behind those."""
    one, other = two("1/2s")
    refused, *given = one.turn(60), *(other.turn(60) for _ in range(20))
    assert all(map(other.stands, given))
    begun = time.monotonic()
    one.tell(refused, Told(pause=20))
    if other is not one:
        time.sleep(1.05)
    assert not any(map(other.stands, given))
    turn = other.turn(60)
    assert 20 - (time.monotonic() - begun) - 0.5 <= turn.wait <= 20.5
    assert other.stands(turn)
    assert one.stands(turn)


# -- Postgres ---------------------------------------------------------------------------------------------------------


def test_one_statement_a_turn(tasks: Tasks, conn: Connection) -> None:
    """Alone, after the first look. What an answer leaves goes along with the next turn; a pause goes out at once. The
    session's `synchronous_commit` is left as it is."""
    quota = tasks.quota("1000/s")
    turn = quota.turn(60)
    assert tasks.asked(lambda: [quota.turn(60) for _ in range(50)]) == 50
    assert tasks.asked(lambda: quota.tell(turn, Told(remaining=500, limit=1000, reset=60))) == 0
    assert tasks.asked(lambda: quota.turn(60)) == 1
    stored = conn.execute("select state -> 'told' -> 1, revision, state -> 'number' from extract.quota").fetchall()
    assert stored == [(500, 52, 52)]
    assert tasks.asked(lambda: quota.stands(turn)) == 0
    assert tasks.asked(lambda: quota.tell(turn, Told(pause=5))) == 1
    assert tasks.connections[0].execute("show synchronous_commit").fetchone() == ("on",)
    other = tasks.quota("1000/s")
    for _ in range(3):
        quota.turn(60), other.turn(60)
    # Whoever is not alone looks first: the vain statement is saved.
    assert tasks.asked(lambda: (quota.turn(60), other.turn(60))) == 4


def test_nothing_is_asked_where_nothing_limits(tasks: Tasks, conn: Connection) -> None:
    """A thousand turns of an unlimited API: Postgres is asked once a second, and nothing is written. What another task
    is told is obeyed from the next look on."""
    quota = tasks.quota()
    began = time.monotonic()
    told = Told(pause=0, remaining=5, limit=10)

    def ask() -> None:
        for _ in range(1000):
            turn = quota.turn(60)
            assert quota.stands(turn)
            quota.tell(turn, told)

    asked = tasks.asked(ask)
    assert quota.left == 0.5
    assert asked <= 1 + (time.monotonic() - began)
    assert conn.execute("select count(*) from extract.quota").fetchone() == (0,)
    other = tasks.quota()
    other.tell(other.turn(60), Told(pause=30))
    until = time.monotonic() + 5
    while quota.turn(0).wait == 0:
        assert time.monotonic() < until, "the other's pause was not seen"
        time.sleep(0.02)


def test_threads_at_once(tasks: Tasks, conn: Connection) -> None:
    """Eight tasks take 30 turns each, as fast as they can: every number is given once, and the hour holds no more."""
    quotas = [tasks.quota("200/h") for _ in range(8)]
    start = threading.Barrier(8)

    def take(quota: PostgresQuota) -> list[tuple[int, bool]]:
        start.wait()
        return [(turn.number, turn.wait <= 1) for turn in (quota.turn(1) for _ in range(30))]

    with ThreadPoolExecutor(8) as pool:
        turns = [turn for found in pool.map(take, quotas) for turn in found]
    assert sorted(number for number, is_taken in turns if is_taken) == list(range(1, 201))
    assert conn.execute("select revision from extract.quota").fetchall() == [(200,)]


@direct_only
def test_a_lost_connection(tasks: Tasks, conn: Connection) -> None:
    """It is opened again, once, and the count goes on; if that is lost too, or cannot be had, the error has a name."""
    quota = tasks.quota("100/h")
    quota.turn(1)

    def cut() -> None:
        pid = tasks.connections[-1].info.backend_pid
        conn.execute("select pg_terminate_backend(%s, 5000)", [pid])

    for number in (2, 3):
        cut()
        assert quota.turn(1).number == number
    tasks.dsn = "host=127.0.0.1 port=1 connect_timeout=1"
    cut()
    with pytest.raises(StoreUnavailableError, match="not reachable"):
        quota.turn(1)


def test_an_answer_is_not_lost_with_the_store(tasks: Tasks, conn: Connection, dsn: str) -> None:
    """A pause that cannot be written raises nothing; it holds for this task, and is written with its next turn."""
    quota = tasks.quota("100/h")
    turn = quota.turn(1)
    tasks.dsn = "host=127.0.0.1 port=1 connect_timeout=1"
    conn.execute("select pg_terminate_backend(%s, 5000)", [tasks.connections[-1].info.backend_pid])
    quota.tell(turn, Told(pause=30))
    tasks.dsn = dsn
    assert quota.turn(60).wait == pytest.approx(30, abs=1)
    assert tasks.quota("100/h").turn(10).wait == pytest.approx(30, abs=1)


@pytest.mark.skipif(not os.environ.get("EXTRACT_SOAK"), reason="waits for the lock for five seconds: `make soak`")
def test_a_stopped_transaction_is_waited_for_in_vain(tasks: Tasks, conn: Connection) -> None:
    """Somebody keeps the row locked: that is told, the connection stays, and later turns go on."""
    quota = tasks.quota("100/h")
    quota.turn(1)
    with psycopg.connect(tasks.dsn) as locker:
        locker.execute("select from extract.quota for update")
        with pytest.raises(StoreUnavailableError, match="keeps rows locked"):
            quota.turn(1)
    assert quota.turn(1).number == 2
    assert len(tasks.connections) == 1


def test_what_was_told_last_is_kept(tasks: Tasks, conn: Connection) -> None:
    """A task that ends writes what its last answer said, if it matters to others; if it cannot, that is no error."""
    quota = tasks.quota()
    quota.tell(quota.turn(1), Told(remaining=1, limit=10, reset=60))
    quota.close()
    other = tasks.quota()
    assert [round(other.turn(1).wait, -1) for _ in range(2)] == [0, 60]
    other.tell(other.turn(60), Told(remaining=5, limit=10, reset=600))
    tasks.dsn = "host=127.0.0.1 port=1 connect_timeout=1"
    conn.execute("select pg_terminate_backend(%s, 5000)", [tasks.connections[-1].info.backend_pid])
    other.close()
    assert tasks.asked(other.close) == 0


@direct_only
def test_an_answer_is_not_lost_for_lack_of_rights(tasks: Tasks, conn: Connection) -> None:
    """A role that may only read: neither what is told nor the end raises that, the next turn does."""
    role = f"reader_{os.getpid()}"
    conn.execute(f"create role {role}; grant usage on schema extract to {role}".encode())
    conn.execute(f"grant select on extract.quota to {role}".encode())
    tasks.dsn += f" options='-c role={role}'" if "://" not in tasks.dsn else f"?options=-c%20role%3D{role}"
    try:
        quota = tasks.quota()
        quota.tell(quota.turn(1), Told(pause=30))
        with pytest.raises(StoreRightsError):
            quota.turn(60)
        quota.close()
    finally:
        conn.execute(f"drop owned by {role}; drop role {role}".encode())


def test_a_row_edited_by_hand(tasks: Tasks, conn: Connection) -> None:
    """A number of more digits than Python reads, which `jsonb` holds: the quota begins anew."""
    quota = tasks.quota("5/h")
    quota.turn(1)
    digits = "9" * 5000
    conn.execute(f"update extract.quota set revision = 9, state = jsonb_set(state, '{{last}}', '{digits}')".encode())
    assert [quota.turn(1).number for _ in range(2)] == [1, 2]


def test_near_and_far(tasks: Tasks) -> None:
    """A task beside Postgres takes turns all the time, another one is 20 ms away: it gets its turns, too."""
    near = tasks.quota("200/s")
    tasks.kind = Far
    far, is_over = tasks.quota("200/s"), threading.Event()

    def hurry() -> int:
        turns = 0
        while not is_over.wait(near.turn(60).wait):
            turns += 1
        return turns

    near.turn(60)
    with ThreadPoolExecutor(1) as pool:
        near_turns = pool.submit(hurry)
        began = time.monotonic()
        try:
            for _ in range(20):
                far.turn(60)
            took = time.monotonic() - began
        finally:
            is_over.set()
    assert took < 4
    assert near_turns.result() > 20


def test_a_process_that_stops_with_the_row_locked(tasks: Tasks) -> None:
    """Others wait for a second, until Postgres ends its session; when it goes on, it gets another turn."""
    quota = tasks.quota("100/h")
    quota.turn(1)
    tasks.kind = Stopping
    stopped = tasks.quota("100/h")
    # As after two tries in vain.
    stopped._is_contended = True
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(stopped.turn, 1)
        while not Stopping.has_stopped:
            time.sleep(0.01)
        began = time.monotonic()
        assert quota.turn(1).number == 2
        assert 0.5 < time.monotonic() - began < 4
        assert late.result().number == 3
    assert len(tasks.connections) == 3


def test_without_the_table(dsn: str) -> None:
    """The error says what is missing."""
    quota = PostgresQuota(Tasks(dsn).connect, "elsewhere", "shop", "shop_api")
    with quota, pytest.raises(SchemaMissingError, match=r"elsewhere\.quota"):
        quota.turn(1)


def test_rates_change_between_runs(tasks: Tasks) -> None:
    """What earlier runs took counts for the new rate, of the same time or a shorter one; a larger one gives more."""
    first = tasks.quota("1000/h")
    for _ in range(50):
        first.turn(1)
    assert tasks.quota("50/h").turn(1).wait == pytest.approx(HOUR, rel=0.02)
    # By the hour's rate those requests might have gone out up to a minute later.
    assert 59 < tasks.quota("30/m").turn(1).wait < 121
    assert tasks.quota("51/h").turn(1).wait == 0
    assert tasks.quota().turn(1).wait == 0


def test_nothing_grows(tasks: Tasks, conn: Connection) -> None:
    """600 turns of four rates at once leave one row, small enough for its page, in a table of a few pages; without the
    row the quota begins anew."""
    quota = tasks.quota("1000/s", "90000/m", "900000/h", "9000000/d")
    for _ in range(600):
        quota.turn(60)
    found = conn.execute(
        "select count(*), max(pg_column_size(state)), pg_relation_size('extract.quota') / 8192 from extract.quota"
    ).fetchone()
    assert found is not None
    assert found[0] == 1
    assert found[1] < 2000
    assert found[2] <= 16
    conn.execute("delete from extract.quota")
    assert quota.turn(60).number == 1


class Children:
    """Processes that take turns and print when they would send."""

    def __init__(self, dsn: str, limit: str, count: int) -> None:
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.store.quota_child",
            json.dumps({"dsn": dsn, "rates": [limit]}),
        ]
        pipe = subprocess.PIPE
        self.processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]

    def wait_until_ready(self) -> None:
        """All have begun."""
        for each in self.processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"

    def sent(self) -> list[list[float]]:
        """Let them end; gives when each has sent."""
        for each in self.processes:
            assert each.stdin is not None
            each.stdin.close()
            each.stdin = None
        said = [each.communicate(timeout=60)[0] for each in self.processes]
        assert [each.returncode for each in self.processes] == [0] * len(said)
        return [[float(line) for line in each.split()] for each in said]

    def clear_away(self) -> None:
        """End those that have not."""
        for each in self.processes:
            each.kill()
            each.wait()
            for pipe in (each.stdin, each.stdout):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def children(tasks: Tasks) -> Iterator[Callable[..., Children]]:
    """Starts children; afterwards none is left."""
    made: list[Children] = []

    def start(*args: Any) -> Children:
        made.append(Children(tasks.dsn, *args))
        return made[-1]

    yield start
    for each in made:
        each.clear_away()


def share(instants: Sequence[float], begin: float, end: float, per_second: int) -> float:
    """Which part of the quota was used between two instants."""
    return sum(begin <= at < end for at in instants) / (end - begin) / per_second


def test_processes_at_once_and_one_that_stops(children: Callable[..., Children]) -> None:
    """Three processes share 20 a second. One is stopped for a while (SIGSTOP) and wakes up: nobody waits for it, no
    window of a second holds more than a tenth above the limit, and at least 90 % is used all the time."""

    def measure() -> tuple[int, float, float]:
        made = children("20/s", 3)
        made.wait_until_ready()
        begin = time.monotonic()
        time.sleep(0.4)
        stopped = made.processes[0]
        os.kill(stopped.pid, signal.SIGSTOP)
        quiet = time.monotonic()
        time.sleep(1.5)
        woken = time.monotonic()
        os.kill(stopped.pid, signal.SIGCONT)
        time.sleep(0.4)
        end = time.monotonic()
        one, *others = made.sent()
        assert not [at for at in one if quiet + 0.1 < at < woken]
        assert [at for at in one if at > woken]
        both = [at for each in others for at in each]
        instants = sorted([*one, *both])
        fullest = max(bisect_left(instants, at + 1) - index for index, at in enumerate(instants))
        return fullest, share(instants, begin, end, 20), share(both, quiet + 0.1, woken, 20)

    fullest, used, used_meanwhile = measured_again(measure, lambda found: found[0] <= 22 and min(found[1:]) >= 0.9)
    assert fullest <= 22
    assert used >= 0.9
    assert used_meanwhile >= 0.9
