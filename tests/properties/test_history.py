"""Any history of an API, any faults, any ends of runs: once all is quiet, the copy is the API (laws 1 to 9).

Each example is one kind of API with habits of its own, served over HTTP, and a real Postgres.
"""

from __future__ import annotations

import itertools
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airflow_extract_provider.extract.errors import (
    AnchorLostError,
    ApiUnavailableError,
    BackfillFirstError,
    CursorAheadError,
    FencedError,
    MovingListError,
    RecordsPathError,
    RepeatedPageError,
    ShortOfTotalError,
    TiedPageError,
    TokenExpiredError,
    UnorderedStreamError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.pipeline import Runner
from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.hazards.kinds import KINDS
from tests.properties.habits import Habits
from tests.properties.history import World, prepare
from tests.properties.steps import STEPS, Change, Killed, Run, in_step

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
_names = itertools.count(1)

# What may stop a run that was disturbed ...
_DISTURBED = (
    ApiUnavailableError,
    MovingListError,
    RecordsPathError,
    RepeatedPageError,
    ShortOfTotalError,
    TiedPageError,
    UnorderedStreamError,
    WrongAnswerError,
)
# ... and what a disturbance may leave behind: only starting over helps.
_LOST = (AnchorLostError, TokenExpiredError)

_late = st.sampled_from([("0s", "0s"), ("30s", "0s"), ("0s", "30s"), ("30s", "30s")])


@st.composite
def habits(draw: st.DrawFn, kind: str) -> Habits:
    """An API of a kind."""
    late, lookback = draw(_late)
    return Habits(
        kind,
        precision=draw(st.sampled_from(["1us", "1ms", "1s"])),
        strict=draw(st.booleans()),
        # Where a page that is not full is the only sign of the end, the source file must know the page's size.
        page_max=10 if kind == "since only" else draw(st.sampled_from([10, 5, 3])),
        total=draw(st.booleans()),
        more=draw(st.booleans()),
        moves=draw(st.booleans()),
        refuse=draw(st.booleans()),
        looks_ahead=draw(st.booleans()),
        past_end=draw(st.sampled_from(["empty", "refuse", "last"])),
        fine=draw(st.booleans()),
        late=late,
        lookback=lookback,
    )


_at, _many = st.integers(0, 50), st.integers(1, 12)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.sampled_from(["insert", "import"]), st.just(0), _many),
    st.tuples(st.sampled_from(["update", "update", "delete", "delete"]), _at, _many),
    st.tuples(st.sampled_from(["late insert", "late update", "commit"]), _at, st.integers(1, 4)),
    st.tuples(st.just("pass"), st.integers(0, 4), st.integers(1, 9)),
    st.tuples(st.just("expire"), st.just(0), st.just(0)),
)
_meanwhile = st.dictionaries(st.integers(1, 8), st.lists(CHANGES, min_size=1, max_size=2), max_size=4)

DISTURBED: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "changes": _meanwhile,
        "end": st.sampled_from(["", "kill", "kill", "stop", "slice", "taken over"]),
        "step": st.sampled_from(STEPS),
        "number": st.integers(1, 6),
        "reset": st.integers(0, 9).map(lambda drawn: drawn == 9),
        "retry": st.booleans(),
    }
)


class History(RuleBasedStateMachine):
    """What happens at the API, and what runs."""

    connect: Connect
    kind: str

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(data=st.data(), first=st.integers(0, 45))
    def begin(self, data: st.DataObject, first: int) -> None:
        drawn = data.draw(habits(self.kind), label="habits")
        self.world = World(self.connect, f"history{next(_names)}", drawn)
        self.world.change(("import" if first % 5 == 0 else "insert", 0, first))
        self.world.change(("pass", 3, 2))

    @property
    def played(self) -> World:
        assert self.world is not None
        return self.world

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=4))
    def change(self, changes: list[Change]) -> None:
        for change in changes:
            self.played.change(change)

    @rule(at=_at)
    def change_unseen(self, at: int) -> None:
        """No filter on time finds it: only starting over does."""
        self.played.change(("update untouched", at, 1))

    @rule(data=st.data(), drawn=DISTURBED)
    def backfill(self, data: st.DataObject, drawn: dict[str, Any]) -> None:
        self.disturbed("backfill", data, drawn)

    @rule(data=st.data(), drawn=DISTURBED)
    def incremental(self, data: st.DataObject, drawn: dict[str, Any]) -> None:
        self.disturbed("incremental", data, drawn)

    @rule(data=st.data(), drawn=DISTURBED)
    def by_key(self, data: st.DataObject, drawn: dict[str, Any]) -> None:
        self.disturbed("by_key", data, drawn)

    @rule(walk=st.sampled_from(["backfill", "incremental"]))
    def whole(self, walk: Any) -> None:
        """A run that nothing disturbs."""
        self.go(Run(walk))

    def disturbed(self, walk: Any, data: st.DataObject, drawn: dict[str, Any]) -> None:
        if drawn["end"] == "stop":
            drawn = {**drawn, "step": "committed"}
        kinds = st.sampled_from(self.played.habits.faults())
        faults = data.draw(st.dictionaries(st.integers(1, 10), kinds, max_size=3), label="faults")
        self.go(Run(walk, faults=faults, **drawn))

    @rule(walk=st.sampled_from(["backfill", "incremental"]), at=_at)
    def put_back(self, walk: Any, at: int) -> None:
        self.played.put_back(walk, at)

    @rule(walk=st.sampled_from(["backfill", "incremental"]))
    @precondition(lambda self: self.played.shown.texts)
    def delete_cursor(self, walk: Any) -> None:
        self.played.delete_cursor(walk)

    @invariant()
    def nothing_is_invented_or_skipped(self) -> None:
        if self.world is not None:
            self.world.check()

    def go(self, plan: Run) -> BaseException | None:
        """Run; nothing may stop it but what was ordered."""
        world = self.played
        if plan.walk == "incremental" and not world.object.incremental:
            return None
        found = world.run(plan)
        allowed: tuple[type[BaseException], ...] = (BackfillFirstError, CursorAheadError, *_LOST)
        allowed += () if plan.quiet else _DISTURBED
        allowed += {"kill": (Killed,), "taken over": (FencedError,)}.get(plan.end, ())
        allowed += (TiedPageError,) if self.tied() else ()
        assert found is None or isinstance(found, allowed), f"stopped by {found!r}"
        return found

    def tied(self) -> bool:
        """Whether more records share an instant than can be read."""
        most = {"since only": self.played.habits.page_max, "search": 30}.get(self.played.habits.kind)
        return most is not None and self.played.most_tied() >= most

    def finish(self) -> None:
        """All is quiet: one run of each walk, and the copy is the API."""
        world = self.played
        world.settle()
        # Nobody's retry: it would go on with a start over that somebody else had asked for before.
        world.runner = Runner()
        again = world.untouched or not world.object.incremental
        if not self.ended("backfill", reset=again):
            return
        world.untouched = False
        world.check()
        # Twice: the first one may only end a lap that was begun before all was quiet.
        if world.object.incremental and not (self.ended("incremental") and self.ended("incremental")):
            return
        self.ended("by_key")
        world.check()
        world.assert_exact()

    def ended(self, walk: Any, reset: bool = False) -> bool:
        """Run to the walk's end, over again if that is what an error asks for."""
        for each in (Run(walk, reset=reset), Run(walk), Run(walk, reset=True)):
            found = self.go(each)
            if found is None:
                return True
        assert isinstance(found, TiedPageError), found
        return False

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if sys.exception() is None:
                self.finish()
        finally:
            self.world.close()


@pytest.fixture(scope="module")
def history_dsn(postgres_server: PostgresServer) -> Iterator[str]:
    """One database for all histories."""
    name = f"history_{os.getpid()}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


BUDGET = settings(
    max_examples=1_000 if SOAK else 6,
    stateful_step_count=25 if SOAK else 12,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
)


@pytest.fixture(scope="module")
def connect(history_dsn: str) -> Iterator[Connect]:
    """Opens connections to it; runs read in step."""
    connect = connecting(history_dsn)
    prepare(connect)
    with in_step():
        yield connect


@pytest.mark.timeout(0 if SOAK else 300)
@pytest.mark.parametrize("kind", KINDS)
def test_any_history(kind: str, connect: Connect) -> None:
    """The copy is the API in the end, whatever the history; and on the way nothing is invented, nothing skipped."""
    # A seed for each, or all kinds would see the same histories.
    machine: type[History] = type("History", (History,), {"connect": staticmethod(connect), "kind": kind})
    run_state_machine_as_test(machine if SOAK else seed(zlib.crc32(kind.encode()))(machine), settings=BUDGET)
