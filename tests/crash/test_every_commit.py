"""kill -9 at every step of every commit, of a backfill and of an incremental run: the result is the same, and nothing
is read again before the last committed page."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.testing.hostile import HostileApi
from tests.crash.dying import Step, live
from tests.extract.scene import Scene, exact
from tests.forked import processes
from tests.hazards.kinds import KINDS

_numbers = itertools.count()


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
        process = processes.Process(target=live, args=(asked, step))
        process.start()
        process.join(60)
        assert process.exitcode == (0 if step is None else -signal.SIGKILL)
        return [request.params or {"body": request.body} for request in self.api.requests[before:]]

    def stands(self, walk: WalkName) -> tuple[int, bool]:
        """How many pages the walk has committed, and whether it has come to its end."""
        with self.scene.connect() as conn:
            head = Ledger(self.scene.books, self.scene.name, self.scene.object, walk).head(conn)
        return (
            (0, False) if head is None else (head.position.pages, bool(head.position.pages and head.position.complete))
        )


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


def killed_everywhere(lives: Lives, walk: WalkName, advance: Step) -> int:
    """Kill a walk before and within each of its commits, and behind each at ``advance``, until it has come to its end.
    Returns how many commits it had."""
    expected: Mapping[str, str] | None = None
    for commits in itertools.count():
        for step in ("before", "inside", advance):
            pages, ended = lives.stands(walk)
            if ended:
                return commits
            asked = lives.live(walk, step)
            assert expected in (None, asked[0]), "the first request is not the one behind the last committed page"
            committed = lives.stands(walk)[0] - pages
            assert (committed > 0) == (step == advance)
            expected = asked[0]
        # What was fetched ahead tells what comes behind the pages that were committed: a page without records may have
        # arrived with its neighbour, and share its transaction.
        expected = asked[committed] if len(asked) > committed else None
        assert expected or lives.stands(walk)[1]
    raise AssertionError("never")


def live_records(api: HostileApi) -> dict[str, Any]:
    """What the API holds."""
    return {key: exact(json.dumps(record)) for key, record in api.live().items()}


@pytest.mark.parametrize("advance", ["after", "shown"])
def test_killed_at_every_step(lives: Lives, advance: Step) -> None:
    """Each step of each commit, of the backfill and the lap after it: the copy is exact, each record was written once
    for each of its changes, and nothing is read again before the last committed page."""
    commits = killed_everywhere(lives, "backfill", advance)
    assert commits >= 3
    assert lives.live("backfill", None) == []
    assert lives.scene.stored() == live_records(lives.api)
    assert lives.scene.revisions() == {1}
    if not lives.scene.source.object(lives.scene.object).incremental:
        return
    lives.api.update(*lives.api.ids)
    lives.api.insert(3)
    lives.api.clock.advance(timedelta(minutes=1))
    assert killed_everywhere(lives, "incremental", advance) >= 3
    assert lives.scene.stored() == live_records(lives.api)
    assert lives.scene.revisions() == {1, 2}
