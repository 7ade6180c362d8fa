"""The stage of the crash tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import psycopg
import pytest

from airflow_extract_provider.testing.postgres import EmbeddedPostgres
from tests.crash.stage import Stage
from tests.crash.sweep_stage import SweepStage
from tests.databases import lone_server
from tests.loopback import LoopbackApi


@pytest.fixture
def stage(api: LoopbackApi, dsn: str) -> Iterator[Callable[..., Stage]]:
    """Sets the stage (number of records, object); afterwards no process of it is left."""
    made: list[Stage] = []
    with psycopg.connect(dsn, autocommit=True) as conn:

        def make(count: int, object: str = "keyed") -> Stage:
            made.append(Stage(api, dsn, conn, count, object))
            return made[-1]

        yield make
        for each in made:
            for child in each.children:
                child.clear_away()


@pytest.fixture
def sweeping(dsn: str) -> Iterator[Callable[..., SweepStage]]:
    """Sets the stage of sweeps: of an object of which so much more is said."""
    with ExitStack() as open:
        yield lambda **spec: open.enter_context(closing(SweepStage(dsn, **spec)))


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server to be killed."""
    with lone_server() as server:
        yield server
