"""A run that applies webhooks in a process that kills itself, with signal 9, before its n-th word to Postgres."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Mapping
from typing import Any

import psycopg

from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.webhooks.drain import drain

__all__ = ["live"]


def live(source: Mapping[str, Any], dsn: str, statement: int | None, how: Mapping[str, Any]) -> None:
    """Apply what waits until nothing is left, or until so many statements were sent. Between two of them lies a commit
    now and then: what is killed before the one has committed nothing, behind the other everything."""
    if statement is not None:
        said, execute = itertools.count(1), psycopg.Connection.execute

        def dying(*args: Any, **kwargs: Any) -> Any:
            if next(said) == statement:
                os.kill(os.getpid(), signal.SIGKILL)
            return execute(*args, **kwargs)

        psycopg.Connection.execute = dying  # type: ignore[method-assign]
    drain(parse_source(source, "test"), postgres=connecting(dsn), **how)
