"""Whatever happened before: after one more look at the API, and what was noted read by key, the copy agrees (law 8)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store.refetch import Due, due
from tests.store.applier import Applier, a_record, a_tombstone, clock

EXAMPLES = 1500 if os.environ.get("EXTRACT_SOAK") else 100
MakeApplier = Callable[..., Applier]


@dataclass
class Look:
    """What the API showed of the record when it was asked, and when that was."""

    sent_at: datetime
    record: Record | None
    by_key: bool
    claimed: tuple[Due, ...]


@dataclass
class Api:
    """One record, which is changed, deleted and made anew; its version may rise, stay, or go back."""

    one: Applier
    versions: bool
    value: int | None = None
    version: int = 10
    changes: int = 0
    looks: list[Look] = field(default_factory=list)

    def change(self, step: int, deleted: bool) -> None:
        self.changes += 1
        self.version += step
        self.value = None if deleted else self.changes

    def send(self, by_key: bool) -> Look:
        """Ask: a list shows a tombstone of what is deleted, a read by key finds nothing."""
        claimed = tuple(due(self.one.conn, "extract", "shop", self.one.target.object, 9)) if by_key else ()
        version = self.version if self.versions else None
        record = None if not self.changes else a_tombstone("k", version)
        if self.value is not None:
            record = a_record("k", self.value, version)
        look = Look(clock(self.one.conn), record, by_key, claimed)
        self.looks.append(look)
        return look

    def arrive(self, look: Look) -> None:
        self.looks.remove(look)
        gone = look.by_key and (look.record is None or look.record.deleted)
        page = [] if gone or look.record is None else [look.record]
        self.one.apply(
            page,
            sent_at=look.sent_at,
            by_key=look.by_key,
            settled=look.claimed,
            gone=("k",) if gone and self.changes else (),
        )

    def agrees(self) -> bool:
        found = {key: value for key, (value, _, deleted) in self.one.rows().items() if not deleted}
        return found == ({} if self.value is None else {"k": self.value})


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from([1, 1, 1, 0, -1]), st.booleans()),
        st.tuples(st.just("send"), st.booleans()),
        st.tuples(st.just("arrive"), st.integers(0, 5)),
    ),
    max_size=25,
)


@pytest.fixture(params=["things", "plain"])
def one(applier: MakeApplier, request: pytest.FixtureRequest) -> Applier:
    """An applier for records with versions, and without."""
    return applier(request.param)


@given(actions=ACTIONS)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_copy_agrees_in_the_end(one: Applier, actions: list[tuple]) -> None:  # type: ignore[type-arg]
    """With versions looks arrive in any order; without, in the order in which they were sent."""
    one.conn.execute("truncate shop.things, shop.plain, extract.refetch")
    api = Api(one, one.target.object == "things")
    for action, *more in actions:
        if action == "change":
            api.change(*more)
        elif action == "send":
            api.send(*more)
        elif api.looks:
            api.arrive(api.looks[more[0] % len(api.looks) if api.versions else 0])
    while api.looks:
        api.arrive(api.looks[0])
    api.arrive(api.send(by_key=False))
    for _ in range(2):
        if one.noted():
            api.arrive(api.send(by_key=True))
    assert api.agrees()
    assert one.noted() == {}
    revisions = one.rows()
    api.arrive(api.send(by_key=False))
    api.arrive(api.send(by_key=True))
    assert one.rows() == revisions, "nothing has changed since: nothing is written"
