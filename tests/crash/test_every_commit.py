"""kill -9 at every step of every commit, of a backfill and of an incremental run: the result is the same, and nothing
is read again before the last committed page."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import HostileApi
from tests.crash.dying import STEPS, Step, live
from tests.extract.scene import Scene, exact
from tests.hazards.kinds import KINDS

_numbers = itertools.count()
# Each life is a process of its own, forked from one that has imported everything and has no threads.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.dying"])


class Lives:
    """One walk in many processes, each killed at a step; what each of them has asked of the API."""

    def __init__(self, api: HostileApi, scene: Scene, dsn: str, cursor: Path) -> None:
        self.api, self.scene, self.dsn, self.cursor = api, scene, dsn, cursor

    def live(self, walk: WalkName, step: Step | None) -> list[Mapping[str, str]]:
        """One life; what it asked for, in order."""
        source = {"source": self.scene.name, "connection": "none", "objects": {self.scene.object: self.scene.spec}}
        asked = {
            "source": source,
            "object": self.scene.object,
            "walk": walk,
            "dsn": self.dsn,
            "url": self.api.url,
            "books": self.scene.books,
            "cursor": str(self.cursor) + walk,
        }
        before = self.api.count
        process = _processes.Process(target=live, args=(asked, step))
        process.start()
        process.join(60)
        assert process.exitcode == (0 if step is None else -signal.SIGKILL)
        return [request.params or {"body": request.body} for request in self.api.requests[before:]]

    def pages(self) -> int:
        """How many pages the ledger holds of all walks."""
        return sum(1 for each in self.scene.ledger() if each.position.pages)


@pytest.fixture(params=["offset updated", "token updated", "since only", "position"])
def lives(request: pytest.FixtureRequest, dsn: str, connect: Connect, tmp_path: Path) -> Iterator[Lives]:
    """An API of 26 records in pages of 10."""
    kind = KINDS[request.param]
    with HostileApi(seed=next(_numbers), listings={"/things": kind.served()}) as api:
        api.insert(26)
        api.clock.advance(timedelta(minutes=1))
        scene = Scene(api, connect, kind.described())
        scene.migrate()
        yield Lives(api, scene, dsn, tmp_path / "cursor")
        scene.close()


def killed_everywhere(lives: Lives, walk: WalkName) -> int:
    """Kill a walk at each step of each of its commits; at last let it end. Returns how often it was killed."""
    expected: Mapping[str, str] | None = None
    for kills, step in enumerate(itertools.cycle(STEPS)):
        begun = lives.pages()
        asked = lives.live(walk, step) if not _at_the_end(lives, walk) else []
        if not asked:
            return kills
        assert expected in (None, asked[0]), "the first request is not the one behind the last committed page"
        committed = lives.pages() - begun
        assert committed == (step in ("after", "shown"))
        # What was fetched ahead tells what comes behind the page; if none was committed the same one must be asked for.
        expected = asked[0] if not committed else asked[1] if len(asked) > 1 else None
    raise AssertionError("never")


def _at_the_end(lives: Lives, walk: WalkName) -> bool:
    """Whether the walk has come to its end: its last row is complete."""
    rows = [each for each in lives.scene.ledger() if each.position.pages]
    return bool(rows) and rows[-1].position.complete and walk == "backfill"


def live_records(api: HostileApi) -> dict[str, Any]:
    """What the API holds."""
    import json

    return {key: exact(json.dumps(record)) for key, record in api.live().items()}


def test_a_backfill_killed_at_every_step(lives: Lives) -> None:
    """Each step of each commit; the hand-off and the incremental run after it bring what has changed meanwhile."""
    kills = killed_everywhere(lives, "backfill")
    assert kills >= 3 * len(STEPS)
    assert lives.live("backfill", None) == []
    assert lives.scene.stored() == live_records(lives.api)
    assert lives.scene.revisions() == {1}
