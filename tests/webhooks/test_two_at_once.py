"""Where more than one batch waits, a run takes two at a time: as if two runs were at it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from airflow_extract_provider.extract.errors import StoreUnavailableError
from airflow_extract_provider.extract.sinks.memory import MemorySink
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.webhooks.drain import Drained, drain
from airflow_extract_provider.extract.webhooks.second import Second
from airflow_extract_provider.extract.webhooks.turn import Turn
from tests.webhooks.hooked import ENDPOINT, Hooked

WAITING = 300


class Watched:
    """Who settles batches, and how many connections there are; ``before`` is called in each batch. The first one waits
    for the second's start until they are ``together``."""

    def __init__(self, play: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
        self.play, self.opened, self.settled = play, 0, list[str]()
        self.before: Callable[[Turn], object] = lambda _: None
        self.connect: Callable[[], Connection] = self.counted
        self.together, self.awaited = threading.Event(), 0
        self.together.set()
        settle, begin = Turn.settle, Second.begin

        def watched(turn: Turn) -> None:
            if turn.busy:
                self.settled.append(threading.current_thread().name)
                if self.settled.count("drain") >= self.awaited:
                    self.together.set()
                time.sleep(0.01)  # the other one's turn
                self.before(turn)
            settle(turn)

        def begun(second: Second[Any]) -> None:
            begin(second)
            assert self.together.wait(30), self.settled

        monkeypatch.setattr(Turn, "settle", watched)
        monkeypatch.setattr(Second, "begin", begun)

    def awaits(self, count: int) -> None:
        """Let the first one take no more, once the second has begun, before that has settled so many: a busy machine
        may take as long for its connection as for all that waits."""
        self.awaited = count
        self.together.clear()

    def counted(self) -> Connection:
        """Connect, and count it."""
        self.opened += 1
        return self.play.connect()

    def drain(self, **how: Any) -> Drained:
        """Apply what waits, in small batches."""
        return drain(parse_source(self.play.source, "test"), postgres=self.connect, **{"limit": 20, **how})


@pytest.fixture
def watched(play: Hooked, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A play under watch."""
    return Watched(play, monkeypatch)


def waiting(play: Hooked, count: int = WAITING) -> None:
    """So many changes wait, of few records, in no order; some came twice."""
    for nth in range(count * 9 // 10):
        play.api.update(play.chance.choice(play.api.ids), value=nth)
    bodies = play.bodies(play.api.history()[-(count * 9 // 10) :])
    bodies += play.chance.sample(bodies, count - len(bodies))
    play.chance.shuffle(bodies)
    play.put(*bodies)


def left(play: Hooked) -> int:
    """How many webhooks wait."""
    return play.count("extract.inbox", "done_at is null")


def test_both_apply(play: Hooked, watched: Watched) -> None:
    """Each takes a part; what they tell is of both, and every change was told once."""
    play.hook()
    waiting(play)
    watched.awaits(1)
    drained = watched.drain()
    assert (watched.opened, set(watched.settled)) == (2, {"MainThread", "drain"})
    assert (drained.deliveries, drained.counts["messages"], drained.counts["applied"]) == (WAITING,) * 3
    assert drained.counts["events"] == play.count("extract.outbox")
    assert (drained.changed["things"]["updated"], drained.waiting, left(play)) == (drained.counts["updated"], 0, 0)
    play.check()


def test_few_are_taken_by_one(play: Hooked, watched: Watched) -> None:
    """For them another connection is not worth it."""
    play.hook()
    waiting(play, 10)
    assert (watched.drain().deliveries, watched.opened) == (10, 1)


@pytest.mark.parametrize("why", ["no version", "forwarded", "a sink", "a fold", "python"])
def test_where_it_must_be_one(play: Hooked, watched: Watched, why: str) -> None:
    """Where messages must not overtake each other, and where others' code would be called by two threads."""
    over: dict[str, dict[str, Any]] = {
        "no version": {"version": None, "since": None},
        "a fold": {"fold": {"table": "public.org", "where": {"grp": "grp"}, "set": {"value": "value"}}},
        "python": {"events": [{"python": {"function": f"{__name__}:nothing", "name": "none"}}]},
    }
    play.conn.execute("create table public.org (grp text primary key, value text)")
    play.hook({**ENDPOINT, "forward": ["thing.*"]} if why == "forwarded" else None, **over.get(why, {}))
    waiting(play, 50)
    sink = MemorySink() if why == "a sink" else None
    if sink is not None:
        play.source["objects"]["things"]["publish"] = {"kafka": "none"}
    assert (watched.drain(sink_of=lambda _: sink).deliveries, watched.opened) == (50, 1)


def nothing(before: object, after: object) -> None:
    """A detector that finds nothing."""


def test_large_ones_are_many_too(play: Hooked, watched: Watched) -> None:
    """Where a batch is as large as it may be."""
    play.hook()
    waiting(play, 50)
    assert (watched.drain(limit=500, most_bytes=1_000).deliveries, watched.opened) == (50, 2)


def test_the_second_cannot_connect(play: Hooked, watched: Watched) -> None:
    """The first one does it all: the other only makes it faster."""
    play.hook()
    waiting(play)

    def refused() -> Connection:
        if watched.opened:
            raise psycopg.OperationalError("too many connections")
        return watched.counted()

    watched.connect = refused
    drained = watched.drain()
    assert (drained.deliveries, left(play), set(watched.settled)) == (WAITING, 0, {"MainThread"})
    play.check()


def test_the_second_does_not_get_through(play: Hooked, watched: Watched) -> None:
    """Nobody waits for a connection that nothing is left for."""
    play.hook()
    waiting(play)
    released = threading.Event()

    def late() -> Connection:
        if watched.opened:
            released.wait(60)
        return watched.counted()

    watched.connect = late
    assert watched.drain().deliveries == WAITING
    assert not released.is_set()
    released.set()
    over(watched)
    assert set(watched.settled) == {"MainThread"}


def over(watched: Watched) -> None:
    """Wait until there is no second one."""
    until = time.monotonic() + 30
    while "drain" in {each.name for each in threading.enumerate()}:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert watched.settled


def test_what_is_raised_while_the_second_is_waited_for(play: Hooked, watched: Watched) -> None:
    """Such as by a task's time limit: it ends as well, and goes on claiming nothing."""
    play.hook()
    waiting(play)

    class Limit(BaseException):
        """It is over."""

    def slow(_: Turn) -> None:
        if threading.current_thread().name == "drain":
            time.sleep(1.0)

    def rings(*_: object) -> None:
        raise Limit

    watched.before = slow
    watched.awaits(1)
    before = signal.signal(signal.SIGALRM, rings)
    settle = Second._join

    def joined(second: Second[Any]) -> None:
        waiting(play, 200)  # so that it would go on for long
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        settle(second)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Second, "_join", joined)
            with pytest.raises(Limit):
                watched.drain()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it is not to ring in another test
        signal.signal(signal.SIGALRM, before)
    over(watched)
    assert left(play) > 0
    watched.before = lambda _: None
    watched.drain()
    play.check()


@pytest.mark.parametrize("whose", ["MainThread", "drain"])
def test_one_loses_its_connection(play: Hooked, watched: Watched, whose: str) -> None:
    """What it had claimed is claimed again; the other one is not left behind."""
    play.hook()
    waiting(play)

    def lost(turn: Turn) -> None:
        if threading.current_thread().name == whose and watched.settled.count(whose) == 3:
            turn.claims.conn.execute("select pg_terminate_backend(pg_backend_pid())")

    watched.before = lost
    watched.awaits(3 if whose == "drain" else 1)
    with pytest.raises(StoreUnavailableError):
        watched.drain()
    assert "drain" not in {each.name for each in threading.enumerate()}
    assert (left(play) > 0) is (whose == "MainThread")
    watched.before = lambda _: None
    watched.drain()
    assert left(play) == 0
    play.check()


def test_a_stop_ends_both(play: Hooked, watched: Watched) -> None:
    """With the batches that are under way."""
    play.hook()
    waiting(play)
    stop = threading.Event()

    def stopped(_: Turn) -> None:
        if len(watched.settled) >= 6:  # both may have come between
            stop.set()

    watched.before = stopped
    drained = watched.drain(stop=stop)
    assert len(watched.settled) <= 8
    assert drained.deliveries == WAITING - left(play)
    assert left(play) > 0
