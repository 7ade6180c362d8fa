"""A cell of the table: one kind of API and one hazard, what must come of it, and how that is played and judged."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.page import Page, Reply, Request
from airflow_extract_provider.extract.pipeline import WalkName
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.testing.hostile import Asked, HostileApi, Key, NewKeys
from tests.extract.scene import Scene, exact
from tests.hazards.kinds import KINDS

__all__ = ["AGAIN", "BACKFILL", "INCREMENTAL", "Cell", "Run", "Stage", "Verdict", "played"]

_MOST = 300
"""Requests of a cell: more is a walk that never ends. The longest cell needs fewer than half of them."""

Outcome: TypeAlias = Literal["exact", "lost", "stale", "invented", "stopped", "unnoticed", "not held", "endless"]


@dataclass(frozen=True)
class Run:
    """One run of the engine. ``stops``: it must stop with the cell's error."""

    walk: WalkName
    reset: bool = False
    stops: bool = False

    @property
    def stopping(self) -> Run:
        """The same, stopped by the cell's error."""
        return replace(self, stops=True)


BACKFILL = Run("backfill")
AGAIN = Run("backfill", reset=True)
INCREMENTAL = Run("incremental")


@dataclass(frozen=True)
class Verdict:
    """How a cell ended. ``lost`` records are missing, ``stale`` ones are not as the API has them, after a run that
    counted as complete; ``unnoticed``: the named error did not come."""

    outcome: Outcome
    why: str = ""


class _NotHeldError(Exception):
    """What ends a cell before its time."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.verdict = Verdict(outcome, why)


@dataclass
class Stage:
    """What a script may use: the API, and what the walks have read, page by page, each page's keys in its order."""

    api: HostileApi
    read: list[list[Key]] = field(default_factory=list)
    failed: Asked | None = None
    """The request at which a run has stopped: the next run must begin with it."""

    @property
    def now(self) -> datetime:
        """The API's clock."""
        return self.api.clock.now

    def unread(self) -> list[Key]:
        """The records that no page has held so far."""
        read = {key for page in self.read for key in page}
        return [key for key in self.api.ids if key not in read]

    def filled(self, count: int = 45) -> None:
        """So many records, a second apart, and a minute of peace."""
        for _ in range(count):
            self.api.insert()
            self.api.clock.advance(1)
        self.api.clock.advance(60)

    def before(self, number: int, action: Callable[[], object]) -> None:
        """Do this before the ``number``-th request from now on is answered."""
        self.api.before(self.api.count + number, action)


Script: TypeAlias = Callable[[Stage], Iterator[Run]]
"""What happens, as a generator: it yields the runs. Its docstring is what the table says."""


@dataclass(frozen=True)
class Cell:
    """``script`` on an API of a kind. ``ends``: the named error that its stopping runs must have; None: it is exact.

    ``defence`` is what must be switched off for the cell to come to ``without`` instead.
    """

    kind: str
    script: Script
    defence: str
    without: Outcome = "lost"
    ends: type[ExtractError] | None = None
    note: str = ""
    listing: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    keys: NewKeys = "int"
    tick: timedelta = timedelta(milliseconds=1)

    @property
    def hazard(self) -> str:
        """What happens, in words."""
        told = " ".join((self.script.__doc__ or "").split()).rstrip(".")
        return f"{told}; {self.note}" if self.note else told

    @property
    def name(self) -> str:
        """Short, for pytest."""
        told = f"{self.kind}: {self.script.__name__.strip('_').replace('_', ' ')}"
        return f"{told}, {self.note}" if self.note else told

    @property
    def described(self) -> dict[str, Any]:
        """The object as in a source file."""
        return KINDS[self.kind].described(**self.spec)


class _Watched:
    """A client that notes what was read, and bounds the requests."""

    def __init__(self, stage: Stage, client: ApiClient) -> None:
        self._stage, self._client = stage, client

    @property
    def requests(self) -> int:
        return self._client.requests

    @property
    def left(self) -> float | None:
        return self._client.left

    def stop_with(self, stop: threading.Event) -> None:
        self._client.stop_with(stop)

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        if self._stage.api.count >= _MOST:
            raise _NotHeldError("endless", f"no end after {_MOST} requests")
        reply = self._client.fetch(object, request)
        keys = [record.key for record in reply.records] if isinstance(reply, Page) else []
        self._stage.read.append([int(key) if key.isdigit() else key for key in keys])
        return reply


def played(cell: Cell, store: Connect) -> Verdict:
    """Play a cell to its end, or to where it went wrong."""
    kind = KINDS[cell.kind]
    listings = {cell.described["path"]: kind.served(**cell.listing)}
    with HostileApi(seed=7, listings=listings, keys=cell.keys, tick=cell.tick) as api:
        scene = Scene(api, store, cell.described, "books")
        scene.migrate()
        stage = Stage(api)
        try:
            for run in cell.script(stage):
                before = _live(api)
                if run.stops:
                    _stopped(cell, scene, stage, run)
                else:
                    _ran(scene, stage, run)
                    _check(scene, before)
            _check(scene, _live(api))
            _check_nothing_invented(scene)
        except _NotHeldError as exc:
            return exc.verdict
        finally:
            scene.close()
    return Verdict("exact")


def _live(api: HostileApi) -> dict[str, Any]:
    return {key: exact(json.dumps(record)) for key, record in api.live().items()}


def _ran(scene: Scene, stage: Stage, run: Run) -> None:
    first = stage.api.count
    try:
        summary = scene.run(walk=run.walk, reset=run.reset, client=_Watched(stage, scene.client()))
    except ExtractError as exc:
        raise _NotHeldError("stopped", f"{run.walk}: {type(exc).__name__}: {exc.what}") from None
    if not summary.complete:
        raise _NotHeldError("stopped", f"{run.walk} is not complete")
    if stage.failed is not None and not run.reset and _asked(stage.api.requests[first]) != _asked(stage.failed):
        raise _NotHeldError("not held", "the run after the error began elsewhere")
    stage.failed = None


def _check(scene: Scene, before: Mapping[str, Any]) -> None:
    """What the API held before a run, and holds unchanged after it, is in the copy, equal in every field."""
    stored = scene.stored()
    lasting = {key: record for key, record in _live(scene.api).items() if before.get(key) == record}
    if lost := sorted(lasting.keys() - stored.keys()):
        raise _NotHeldError("lost", f"{len(lost)} records are missing: {lost[:5]}")
    if stale := sorted(key for key, record in lasting.items() if stored[key] != record):
        raise _NotHeldError("stale", f"{len(stale)} records are not as the API has them: {stale[:5]}")


def _check_nothing_invented(scene: Scene) -> None:
    """What is in the copy only was at the API once, just so: no walk sees a record go (that is the sweep's)."""
    live = scene.api.live()
    once = {(str(one.id), json.dumps(scene.api.shown(one), sort_keys=True)) for one in scene.api.history()}
    known = {(key, json.dumps(exact(record), sort_keys=True, default=str)) for key, record in once}
    for key, record in scene.stored().items():
        if key not in live and (key, json.dumps(record, sort_keys=True, default=str)) not in known:
            raise _NotHeldError("invented", f"record {key} was never so")


def _stopped(cell: Cell, scene: Scene, stage: Stage, run: Run) -> None:
    """The run stops with the cell's error; what was read before it is stored, and the walk stands before it.

    That the next run begins with the very request that has failed is seen when it comes.
    """
    assert cell.ends is not None
    begun, before = len(stage.read), scene.ledger()
    try:
        scene.run(walk=run.walk, reset=run.reset, client=_Watched(stage, scene.client()))
    except ExtractError as exc:
        if type(exc) is not cell.ends:
            raise _NotHeldError("stopped", f"{type(exc).__name__}: {exc.what}") from None
    else:
        raise _NotHeldError("unnoticed", f"{run.walk} did not stop with {cell.ends.__name__}")
    if missing := {str(key) for page in stage.read[begun:-1] for key in page} - scene.stored().keys():
        raise _NotHeldError("not held", f"read before the error, and not stored: {sorted(missing)}")
    new = scene.ledger()[len(before) :]
    if any(row.position.complete and row.position.pages for row in new):
        raise _NotHeldError("not held", "the walk counts as complete")
    stage.failed = stage.api.requests[-1]


def _asked(asked: Asked) -> tuple[object, ...]:
    return asked.path, dict(asked.params), asked.body
