"""What can happen to runs that share a hash map, one step at a time: a run's threads look, read, claim, commit, learn;
it is stopped, killed, taken over; entries are flushed. A dict is Postgres.

Whatever the order: each entry that may be answered to the run that holds the fence is what is committed.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from airflow_extract_provider.extract.hashes.hash_map import HashMap, HashMapAwayError

__all__ = ["KEYS", "Kept", "Story", "hashed", "tell"]

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
KEYS = ("a", "b")
_THREADS = 3
"""At the same time, so that what they do gets between each other."""
_Answer = TypeVar("_Answer")


def hashed(key: str, version: int) -> bytes:
    """A raw hash. A key has two of them: what was can come again."""
    return f"{key}{version}".encode().rjust(16, b".")


@dataclass
class Kept:
    """What keeps entries, for as long as a story lasts: opens maps that share them, can lose them, and shows the hashes
    that a map may answer. ``stories`` can be told in a few seconds."""

    open: Callable[[], HashMap]
    flush: Callable[[], object]
    shown: Callable[[HashMap], Mapping[str, bytes]]
    stories: int


@dataclass(eq=False)
class _Run:
    """A process that has taken the fence. ``away``: it goes on without its map."""

    map: HashMap
    number: int
    entered: bool = False
    away: bool = False
    writing: bool = False


@dataclass(eq=False)
class _Thread:
    """What a run is at, one step after the other."""

    run: _Run
    steps: Iterator[None]


@dataclass(frozen=True)
class _Event:
    """``which`` run or thread, how many ``steps`` of it."""

    what: str
    which: int
    keys: Sequence[str]
    steps: int


# How often each of them, so that what takes many steps is come to.
_OFTEN = {
    "takes_over": 4,
    "enters": 2,
    "begins_to_read": 16,
    "begins_to_write": 16,
    "goes_on": 16,
    "is_flushed": 1,
    "is_cleared": 1,
    "is_killed": 1,
    "runs_without_a_map": 1,
}
_EVENTS = [
    _Event(*event)
    for what, often in _OFTEN.items()
    for event in itertools.product([what] * often, range(4), (["a"], ["b"], ["a", "b"]), range(4))
]

# The first ones of a list are drawn more often.
random.Random(0).shuffle(_EVENTS)


def _event(at: int) -> _Event:
    return _EVENTS[at]


class Story(RuleBasedStateMachine):
    """A map, a dict in place of Postgres, and what happens to both. ``seen`` counts entries that were checked."""

    kept: Kept
    seen: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.kept.flush()
        self.stored: dict[str, bytes | None] = {key: hashed(key, 0) for key in KEYS}
        self.number, self.epoch = 0, 0
        self.runs: list[_Run] = []
        self.threads: list[_Thread] = []
        self.opened: list[HashMap] = []
        self.reachable = True

    @rule(events=st.lists(st.sampled_from(range(len(_EVENTS))).map(_event), min_size=1, max_size=10))
    def happens(self, events: Sequence[_Event]) -> None:
        """Several at once: to draw them one by one takes longer than they do."""
        for event in events:
            if self.runs or event.what == "takes_over":
                getattr(self, event.what)(event)
            self.entries_are_what_is_committed()

    # What happens.

    def takes_over(self, event: _Event) -> None:
        """A run takes the fence, and enters the map now or, if it is stopped, later."""
        self.number += 1
        run = _Run(self.kept.open(), self.number)
        self.opened.append(run.map)
        self.runs.append(run)
        if event.steps:
            self.enters(event)

    def enters(self, event: _Event) -> None:
        """Late, or again."""
        run = self.run_of(event)
        if not run.writing:
            self.stop(run)
            run.entered, run.away = True, False
            self.asked(run, lambda: run.map.enter("copy", f"epoch {self.epoch}", run.number))

    def begins_to_read(self, event: _Event) -> None:
        run = self.run_of(event)
        if run.entered and len(self.threads) < _THREADS:
            self.threads.append(_Thread(run, self.reading(run, event.keys)))
            self.proceed(self.threads[-1], event.steps)

    def begins_to_write(self, event: _Event) -> None:
        """Only the holder of the fence can; it may have lost it before it commits."""
        run = self.run_of(event)
        if run.entered and not run.writing and run.number == self.number and len(self.threads) < _THREADS:
            run.writing = True
            self.threads.append(_Thread(run, self.writing(run, self.others(event), commits=event.steps > 0)))
            self.proceed(self.threads[-1], event.steps)

    def goes_on(self, event: _Event) -> None:
        if self.threads:
            self.proceed(self.threads[event.which % len(self.threads)], 1 + event.steps)

    def is_flushed(self, event: _Event) -> None:
        self.kept.flush()

    def is_cleared(self, event: _Event) -> None:
        run = self.run_of(event)
        if run.entered:
            self.asked(run, run.map.clear)

    def is_killed(self, event: _Event) -> None:
        run = self.run_of(event)
        self.stop(run)
        self.runs.remove(run)

    def runs_without_a_map(self, event: _Event) -> None:
        """Only its number tells of it."""
        self.number += 1
        self.stored |= self.others(event)

    # What a run does; after each step something else may happen.

    def reading(self, run: _Run, keys: Sequence[str]) -> Iterator[None]:
        """Looks, reads what is committed, without locks, and learns."""
        found = self.asked(run, lambda: run.map.look(keys))
        if found is None:
            return
        known = dict(zip(keys, found.hashes, strict=True))
        if run.number == self.number:
            self.check({key: hash for key, hash in known.items() if hash is not None})
        yield
        read = {key: self.stored[key] for key, hash in known.items() if hash is None}
        learned = {key: hash for key, hash in read.items() if hash is not None}
        yield
        self.asked(run, lambda: run.map.learn(found.marker, learned))

    def writing(self, run: _Run, writes: Mapping[str, bytes | None], commits: bool) -> Iterator[None]:
        """Claims, with the rows locked, commits and learns. Who goes on without the map moves the identity with it."""
        marker = self.asked(run, lambda: run.map.claim(list(writes)))
        yield
        run.writing = False
        if not commits or run.number != self.number:
            return
        self.stored |= writes
        self.epoch += run.away
        yield
        if marker is not None:
            self.asked(run, lambda: run.map.learn(marker, writes))

    # What is true.

    def entries_are_what_is_committed(self) -> None:
        run = self.runs[-1] if self.runs else None
        if run is not None and run.entered and not run.away and run.number == self.number:
            self.check(self.kept.shown(run.map))

    def check(self, answers: Mapping[str, bytes]) -> None:
        self.seen.append(len(answers))
        assert answers == {key: self.stored[key] for key in answers}

    def run_of(self, event: _Event) -> _Run:
        """The last run half of the time, one before it otherwise."""
        return self.runs[-1 - max(event.which - 2, 0) % len(self.runs)]

    def proceed(self, thread: _Thread, steps: int) -> None:
        for _ in range(steps):
            if next(thread.steps, thread) is thread:
                self.threads.remove(thread)
                break

    def stop(self, run: _Run) -> None:
        self.threads = [thread for thread in self.threads if thread.run is not run]
        run.writing = False

    def others(self, event: _Event) -> dict[str, bytes | None]:
        """Other hashes than are stored; None: the record is deleted."""
        all = {key: (hashed(key, 0), hashed(key, 1), None) for key in event.keys}
        return {key: [hash for hash in all[key] if hash != self.stored[key]][event.which % 2] for key in event.keys}

    def asked(self, run: _Run, question: Callable[[], _Answer]) -> _Answer | None:
        """Ask the map; None: it is away, or was already."""
        if run.away:
            return None
        try:
            return question()
        except HashMapAwayError:
            assert not self.reachable
            run.away = True
            return None

    def teardown(self) -> None:
        for each in self.opened:
            each.close()


def tell(kind: type[Story], kept: Kept, **more: object) -> None:
    """Tell stories of that kind. Raises AssertionError: one ended badly."""
    seen: list[int] = []
    told = type("Told", (kind,), {"kept": kept, "seen": seen, **more})
    many = settings(
        max_examples=5_000 if SOAK else kept.stories,
        stateful_step_count=15,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(told, settings=many)
    assert sum(seen) > many.max_examples, "they were about nothing"
