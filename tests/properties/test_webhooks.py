"""Webhooks in any history: whatever the API does, however late and often it tells of it, and whatever polls beside."""

from __future__ import annotations

import os
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from airflow_extract_provider.testing.hostile import HostileApi
from tests.databases import Databases
from tests.exactly_once.play import KIND
from tests.ways import Store
from tests.webhooks.hooked import ENDPOINT, Hooked

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
THIN = {"thing.deleted": ENDPOINT["types"]["thing.deleted"], "thing.*": {"object": "things", "key": "data.id"}}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "payloads": (ENDPOINT, {}),
    "ids": ({**ENDPOINT, "types": THIN}, {}),
    "without versions": (ENDPOINT, {"version": None, "since": None}),
    "another hash": (ENDPOINT, {"hash": "md5"}),
}
_PLACES = st.integers(0, 1_000_000)


class Telling(RuleBasedStateMachine):
    """What happens at the API, what of it is told when, and what reads it otherwise."""

    databases: Databases
    endpoint: dict[str, Any]
    over: dict[str, Any]

    @initialize(first=st.integers(1, 14), chance=st.integers(0, 99))
    def begin(self, first: int, chance: int) -> None:
        self.stack = ExitStack()
        store = Store("owner", self.stack.enter_context(self.databases.with_books()), None)
        conn = self.stack.enter_context(store.owner())
        conn.autocommit = True
        api = self.stack.enter_context(HostileApi(seed=chance, listings={"/things": KIND.served()}))
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.play = Hooked(api, conn, store, Path(folder) / "cursor")
        self.play.chance = random.Random(chance)
        self.play.hook(self.endpoint, records=first, **self.over)
        self.noted = 0

    def _one(self, place: int) -> Any:
        ids = self.play.api.ids
        return ids[place % len(ids)]

    @rule(place=_PLACES, value=st.integers(0, 99), touch=st.booleans())
    @precondition(lambda self: self.play.api.ids)
    def update(self, place: int, value: int, touch: bool) -> None:
        self.play.api.update(self._one(place), value=value, touch=touch)

    @rule(count=st.integers(1, 12))
    def insert(self, count: int) -> None:
        self.play.api.insert(count, value=30)

    @rule(place=_PLACES)
    @precondition(lambda self: len(self.play.api.ids) > 1)
    def delete(self, place: int) -> None:
        self.play.api.delete(self._one(place))

    @rule(places=st.lists(_PLACES, min_size=1, max_size=8), recent=st.booleans())
    def tell(self, places: list[int], recent: bool) -> None:
        """Of any versions that ever were, or of the newest ones: late, twice, in any order."""
        history = self.play.api.history()
        known = history[-8:] if recent else history
        self.play.put(*self.play.bodies([known[place % len(known)] for place in places]))

    @rule(limit=st.integers(1, 5))
    def apply(self, limit: int) -> None:
        self.play.drain(limit=limit)

    @rule(seconds=st.integers(0, 90))
    @precondition(lambda self: self.play.versioned)
    def poll(self, seconds: int) -> None:
        self.play.api.clock.advance(seconds)
        self.play.poll("incremental", f"poll {self.play.chance.random()}")

    @rule()
    def sweep(self) -> None:
        self.play.poll("rebackfill", f"sweep {self.play.chance.random()}")

    @rule()
    def read_by_key(self) -> None:
        self.play.refetch()

    def teardown(self) -> None:
        """All is quiet: everything that waits is applied, and a sweep finds what nobody told of."""
        if not hasattr(self, "play"):
            return
        with self.stack:
            self.play.come_to_rest()
            self.play.check()


BUDGET = settings(
    max_examples=300 if SOAK else 8,
    stateful_step_count=40 if SOAK else 20,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
)


@pytest.mark.timeout(0 if SOAK else 300)
@pytest.mark.parametrize("kind", KINDS)
def test_any_history(kind: str, databases: Databases) -> None:
    """The copy is the API in the end, and each change of the copy was told once."""
    endpoint, over = KINDS[kind]
    machine: type[Telling] = type("Telling", (Telling,), {"databases": databases, "endpoint": endpoint, "over": over})
    run_state_machine_as_test(machine if SOAK else seed(len(kind))(machine), settings=BUDGET)
