"""The stage of the crash tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.crash.stage import Stage
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
