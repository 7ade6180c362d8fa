"""What keeps hashes, for the suite of all hash maps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from airflow_extract_provider.extract.hashes.hash_map import HashMap
from airflow_extract_provider.extract.hashes.marker import hash_in
from airflow_extract_provider.extract.hashes.memory import MemoryHashMap
from airflow_extract_provider.extract.hashes.redis import RedisHashMap
from tests.hashes.story import Kept
from tests.redis_server import RedisServer, running


@contextlib.contextmanager
def _in_memory() -> Iterator[Kept]:
    first = MemoryHashMap()

    def flush() -> None:
        first.enter("copy", "flushed", 0)
        first.clear()

    def shown(map: HashMap) -> Mapping[str, bytes]:
        assert isinstance(map, MemoryHashMap)
        return {key: hash for key, value in (map._entries() or {}).items() if (hash := hash_in(value)) is not None}

    yield Kept(first.beside, flush, shown, stories=500)


def kept_by(server: RedisServer) -> Kept:
    """In that Redis."""
    asked = server.client()

    def shown(map: HashMap) -> Mapping[str, bytes]:
        assert isinstance(map, RedisHashMap)
        found: Any = asked.hgetall("extract:hashes:copy")
        # What a server has brought back from an earlier life of its is answered to nobody.
        life: Any = asked.info("server")["run_id"].encode()
        known = map._born is not None and map._born == found.get(b"\xff") and map._born.startswith(life)
        return {key.decode(): value[1:] for key, value in found.items() if known and value.startswith(b"h")}

    return Kept(lambda: RedisHashMap(server.client()), asked.flushall, shown, stories=50)


@contextlib.contextmanager
def _in_redis() -> Iterator[Kept]:
    with running() as server:
        yield kept_by(server)


KINDS: dict[str, Callable[[], contextlib.AbstractContextManager[Kept]]] = {"memory": _in_memory, "redis": _in_redis}


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    """What keeps the entries of a test's maps."""
    with KINDS[request.param]() as found:
        yield found
