"""A run of the engine in a process that kills itself, with signal 9, at a chosen step of a commit of changes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from airflow_extract_provider.extract import pipeline
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.pipeline import Runner, Settings, run
from airflow_extract_provider.extract.sinks.kafka import KafkaSink
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import apply, rows
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from tests.crash.child import FileCursor

__all__ = ["IN_TRANSACTION", "PUBLISHED", "STEPS", "live"]

STEPS = (
    "compared",
    "begun",
    "claimed",
    "locked",
    "written",
    "detected",
    "published",
    "noted",
    "committed",
    "told",
    "shown",
)
"""In the order in which they come. Compared without locks; begun, the fence is held; new ones claimed; changed ones
locked; written; all events found; published in Kafka; outbox and ledger rows added; committed; whoever waits for events
was told; the cursor was written."""

IN_TRANSACTION = STEPS[1:8]
"""Where locks are held."""

PUBLISHED = ("published", "noted")
"""Where events have left the process, and their commit has not come."""


def live(asked: dict[str, Any], step: str | None) -> None:
    """Run a walk until it ends, or until the step is reached. ``asked`` holds source, walk, dsn, url, the cursor's
    file, and for Kafka its settings, topic, and the file to note published ids in. ``stop``: at the step it is not
    killed, but stopped, and Postgres waits for it so many seconds."""
    if "stop" in asked:
        patched: Any = sys.modules[__name__]
        patched._END = signal.SIGSTOP
    cursor = FileCursor(Path(asked["cursor"]), "one")
    if step is not None:
        _arm(step, cursor)
    source, session = parse_source(asked["source"], "test"), requests.Session()
    session.trust_env = False
    sink = _Noting(asked["kafka"], asked["topic"], Path(asked["noted"])) if asked.get("kafka") else None
    run(
        source,
        "things",
        asked["walk"],
        postgres=connecting(asked["dsn"]),
        client=ApiClient(source, session, asked["url"]),
        runner=Runner("one", "the run called one"),
        sink=sink,
        cursor=cursor,
        settings=Settings(batch=1, cursor_every=timedelta(0), idle_timeout=timedelta(seconds=asked.get("stop", 60))),
    )
    if sink is not None:
        sink.close()


class _Noting(KafkaSink):
    """Writes down, for the test, the ids of what Kafka has acknowledged."""

    def __init__(self, config: Mapping[str, Any], topic: str, noted: Path) -> None:
        super().__init__(config, topic)
        self._noted = noted

    def publish(self, events: Sequence[Event]) -> None:
        super().publish(events)
        with self._noted.open("a") as file:
            file.writelines(f"{event.id}\n" for event in events)


def _arm(step: str, cursor: FileCursor) -> None:
    here: dict[str, tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
        "compared": (apply, "_transaction", lambda _: _die),
        "begun": (apply, "settle", lambda _: _die),
        "claimed": (rows, "_claimed", lambda old: _dying_after(old, lambda _, records: bool(records))),
        "locked": (rows.Work, "judged", _and_die),
        "written": (rows, "_counted", _and_die),
        "detected": (apply, "fold", lambda _: _die),
        "published": (Ledger, "extend", lambda old: _dying_before(old, _with_events)),
        "noted": (apply, "_publish", lambda old: _dying_after(old, lambda work, *_: bool(work.events))),
        "committed": (pipeline, "apply", lambda old: _dying_behind(old, lambda done: done.counts["events"] > 0)),
        "told": (pipeline._Run, "_announce", lambda old: _dying_after(old, _after_events)),
        # The first writing shows where the run begins.
        "shown": (cursor, "write", lambda old: _dying_after(old, lambda *_: next(_writes) > 0)),
    }
    of, name, dying = here[step]
    setattr(of, name, dying(getattr(of, name)))


_writes = iter(range(99))


def _after_events(run: Any, *, now: bool) -> bool:
    return not now and run._progress.counts["events"] > 0


def _with_events(_: Any, __: Any, entries: Sequence[Entry], *___: Any) -> bool:
    return entries[-1].counts.get("events", 0) > 0


def _and_die(function: Callable[..., Any]) -> Callable[..., Any]:
    return _dying_after(function, lambda *_, **__: True)


def _dying_behind(function: Callable[..., Any], here: Callable[[Any], bool]) -> Callable[..., Any]:
    def last(*args: Any, **kwargs: Any) -> Any:
        done = function(*args, **kwargs)
        if here(done):
            _die()
        return done

    return last


def _dying_after(function: Callable[..., Any], here: Callable[..., bool]) -> Callable[..., Any]:
    def last(*args: Any, **kwargs: Any) -> Any:
        dies = here(*args, **kwargs)
        done = function(*args, **kwargs)
        if dies:
            _die()
        return done

    return last


def _dying_before(function: Callable[..., Any], here: Callable[..., bool]) -> Callable[..., Any]:
    def last(*args: Any, **kwargs: Any) -> Any:
        if here(*args, **kwargs):
            _die()
        return function(*args, **kwargs)

    return last


_END = signal.SIGKILL


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), _END)
