"""Fixtures of the engine's tests: scenes in one database, and no real pauses between tries."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from airflow_extract_provider.extract.api import client
from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.extract.scene import KEYED, TOKENS, Scene
from tests.loopback import LoopbackApi

_databases = itertools.count()


@pytest.fixture(scope="session")
def scenes_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """One database for all scenes: each has schemas of its own in it."""
    name = f"scenes_{os.getpid()}_{next(_databases)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the pauses between tries away; they are noted here instead, in seconds."""
    noted: list[float] = []
    monkeypatch.setattr(client, "pause", lambda halted, seconds: noted.append(seconds))
    return noted


@pytest.fixture
def make_scene(api: LoopbackApi, scenes_dsn: str, pauses: list[float]) -> Iterator[Callable[..., Scene]]:
    """Makes scenes over the test's API: `make_scene(TOKENS, key=["a", "b"])` is an object with another key.

    ``own_books``: not the books that all scenes share, which no test may spoil.
    """
    made: list[Scene] = []
    connect: Connect = connecting(scenes_dsn)

    def make(spec: Mapping[str, Any] = KEYED, *, own_books: bool = False, **changes: Any) -> Scene:
        scene = Scene(api, connect, {**spec, **changes}, None if own_books else "books")
        made.append(scene)
        scene.migrate()
        return scene

    yield make
    for scene in made:
        scene.close()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    """An object paged by its last key, its tables made."""
    return make_scene()


@pytest.fixture(params=["keyed", "tokens"])
def any_scene(request: pytest.FixtureRequest, make_scene: Callable[..., Scene]) -> Scene:
    """An object paged by its last key, and one paged by tokens; their tables made."""
    return make_scene(KEYED if request.param == "keyed" else TOKENS)
