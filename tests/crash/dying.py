"""A run of the engine in a process that kills itself, with signal 9, at a chosen step of its first commit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import requests

from airflow_extract_provider.extract import pipeline
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import Runner, Settings, run
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import apply
from airflow_extract_provider.extract.store.connection import connecting
from tests.crash.child import FileCursor

__all__ = ["Step", "live"]

Step: TypeAlias = Literal["before", "inside", "after", "shown"]
"""Before the transaction; in it, all but the commit done; after the commit; after the cursor was written as well."""


def live(asked: dict[str, Any], step: Step | None) -> None:
    """Run a walk until it ends, or until the step is reached. ``asked`` holds source, object, walk, dsn, url, books and
    the cursor's file."""
    cursor = FileCursor(Path(asked["cursor"]), "one")
    if step is not None:
        _arm(step, cursor)
    source, session = parse_source(asked["source"], "test"), requests.Session()
    session.trust_env = False
    run(
        source,
        asked["object"],
        asked["walk"],
        postgres=connecting(asked["dsn"]),
        client=ApiClient(source, session, asked["url"]),
        runner=Runner("one", "the run called one"),
        cursor=cursor,
        settings=Settings(schema=asked["books"], batch=1, cursor_every=Settings().cursor_every * 0),
    )


def _arm(step: Step, cursor: FileCursor) -> None:
    patched: Any = pipeline
    if step == "before":
        patched.apply = _die
    elif step == "after":
        patched.apply = _and_die(patched.apply)
    elif step == "inside":
        _set(apply, "_publish", _and_die(apply._publish))
        _set(apply, "_compare", _uncommitted(apply._compare))
    else:
        # The first writing shows where the run begins.
        _set(cursor, "write", _and_die(cursor.write, lives=1))


def _uncommitted(compare: Callable[..., Any]) -> Callable[..., Any]:
    """A page without news is one statement, which commits itself: here it is the last one of a transaction."""

    def last(given: Any, *args: Any, **kwargs: Any) -> Any:
        given.conn.execute("begin")
        done = compare(given, *args, **kwargs)
        if isinstance(done, apply.Applied):
            _die()
        given.conn.execute("rollback")
        return done

    return last


def _set(of: Any, name: str, value: Any) -> None:
    setattr(of, name, value)


def _and_die(function: Callable[..., Any], lives: int = 0) -> Callable[..., Any]:
    left = [lives]

    def last(*args: Any, **kwargs: Any) -> Any:
        done = function(*args, **kwargs)
        if left[0] == 0:
            _die()
        left[0] -= 1
        return done

    return last


def _die(*_: Any, **__: Any) -> None:
    # What is fetched ahead has been asked for by then.
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
