"""Walks of an object in a process that ends, or stands still, at a chosen step; and walks again and again, there to be
killed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psycopg
import requests
from psycopg.pq import TransactionStatus
from psycopg.waiting import Wait

from airflow_extract_provider.extract import held
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.page import Page, Reply, Request
from airflow_extract_provider.extract.pipeline import Runner, Settings, Summary, WalkName, run
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.sweeps import Sweeps
from airflow_extract_provider.extract.walks import rebackfill

__all__ = ["Asked", "Kind", "Step", "again_and_again", "live", "walked"]

Kind: TypeAlias = Literal["told", "sent", "committed", "asked", "answered", "judged"]
"""Postgres has told what a statement did; a statement was sent, and nobody waits for what comes of it; a transaction
was committed; a request goes out; its answer is there, and nothing was made of it; what a sweep has not seen is noted,
and nothing done about it."""


@dataclass(frozen=True)
class Step:
    """The ``number``-th of its kind in a process's life; ``signal`` is what the process then sends to itself."""

    kind: Kind
    number: int
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Asked:
    """What a process is told. Times are in seconds. ``age``: so old are the pages, out of a cache."""

    source: Mapping[str, Any]
    dsn: str
    url: str
    runner: str
    walk: WalkName = "rebackfill"
    silent_after: float = 60.0
    idle_timeout: float = 60.0
    age: float = 0.0
    how: Mapping[str, Any] = field(default_factory=dict)


class _Cached(ApiClient):
    """A client behind a cache."""

    def __init__(self, *args: Any, age: timedelta) -> None:
        super().__init__(*args)
        self._age = age

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        found = super().fetch(object, request)
        return replace(found, age=self._age) if isinstance(found, Page) else found


def walked(asked: Asked) -> Summary:
    """Run the walk, a page a transaction. Raises what `run` raises."""
    source = parse_source(asked.source, "test")
    with requests.Session() as session:
        session.trust_env = False
        return run(
            source,
            "things",
            asked.walk,
            postgres=connecting(asked.dsn),
            client=_Cached(source, session, asked.url, age=timedelta(seconds=asked.age)),
            runner=Runner(asked.runner, f"the run called {asked.runner}"),
            settings=Settings(
                batch=1,
                ahead=1,
                silent_after=timedelta(seconds=asked.silent_after),
                idle_timeout=timedelta(seconds=asked.idle_timeout),
            ),
            **asked.how,
        )


def live(asked: Asked, step: Step | None, said: Connection) -> None:
    """One life, until the step or to its end. Says its summary and how many steps of each kind there were; or its
    error, and of which class that is."""
    # One record a transaction: what is deleted takes several of them.
    rebackfill._AT_ONCE = 1
    passed = _count(step)
    try:
        summary = walked(asked)
    except ExtractError as exc:
        classes = [each.__name__ for each in type(exc).__mro__]
        said.send({"error": type(exc).__name__, "classes": classes, "steps": dict(passed)})
        return
    said.send({**summary.as_dict(), "steps": dict(passed)})


def again_and_again(asked: Asked, stop: str, parent: int, said: Connection) -> None:
    """Walk, each time as another run, until the file ``stop`` is there, or the ``parent`` not any more. Says how many
    runs ended with a summary (`Done`), and how many with each error."""
    ends: Counter[str] = Counter()
    for number in itertools.count():
        if Path(stop).exists() or not Path(f"/proc/{parent}").exists():
            break
        try:
            walked(replace(asked, runner=f"{asked.runner}, run {number}") if number else asked)
            ends["Done"] += 1
        except ExtractError as exc:
            ends[type(exc).__name__] += 1
        # For others to get the walk.
        time.sleep(0.01)
    said.send(dict(ends))


class _Steps:
    """Counts steps by kind from when the walk is held (before that nothing is written), and ends at the one chosen."""

    def __init__(self, step: Step | None) -> None:
        self._step = step
        self._begun = False
        self.passed: Counter[str] = Counter()

    def begin(self) -> None:
        """From here on."""
        self._begun = True

    def pass_by(self, kind: Kind) -> None:
        """End, if this is the step."""
        if self.comes(kind):
            self.end()

    def comes(self, kind: Kind) -> bool:
        """Whether this is the step."""
        self.passed[kind] += self._begun
        return (
            self._begun and self._step is not None and (kind, self.passed[kind]) == (self._step.kind, self._step.number)
        )

    def end(self) -> None:
        """The end; or, if the signal is to stop, a while without doing anything."""
        assert self._step is not None
        os.kill(os.getpid(), self._step.signal)


def _count(step: Step | None) -> Counter[str]:
    """Count the steps of this process's walk, which must not have begun."""
    steps = _Steps(step)
    connection: Any = psycopg.Connection
    client: Any = ApiClient
    sweeps: Any = Sweeps
    walk: Any = held
    connection.wait = _trips(connection.wait, steps)
    client.fetch = _around(client.fetch, lambda: steps.pass_by("asked"), lambda: steps.pass_by("answered"))
    sweeps.answer = _around(sweeps.answer, lambda: None, lambda: steps.pass_by("judged"))
    walk.acquire = _around(walk.acquire, lambda: None, steps.begin)
    return steps.passed


def _trips(wait: Callable[..., Any], steps: _Steps) -> Callable[..., Any]:
    """Every round trip to Postgres goes through this one function of the library's."""

    def counted(conn: Any, trip: Any, *args: Any, **kwargs: Any) -> Any:
        if steps.comes("sent"):
            trip = _until_sent(trip, steps.end)
        within = conn.info.transaction_status != TransactionStatus.IDLE
        done = wait(conn, trip, *args, **kwargs)
        steps.pass_by("told")
        if within and conn.info.transaction_status == TransactionStatus.IDLE:
            steps.pass_by("committed")
        return done

    return counted


def _until_sent(trip: Generator[Any, Any, Any], end: Callable[[], None]) -> Generator[Any, Any, Any]:
    """The round trip, which ends when nothing is left to be done but to wait for the answer."""
    ready, ended = None, False
    try:
        while True:
            state = trip.send(ready)
            if state == Wait.R and not ended:
                ended = True
                end()
            ready = yield state
    except StopIteration as done:
        if not ended:
            end()
        return done.value


def _around(work: Callable[..., Any], before: Callable[[], None], behind: Callable[[], None]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        before()
        done = work(*args, **kwargs)
        behind()
        return done

    return counted
