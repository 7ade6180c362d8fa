"""Histories that failed once, as small as they could be made."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence

import pytest

from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.properties.habits import Habits
from tests.properties.history import World, prepare
from tests.properties.steps import Change, Run, in_step

_names = itertools.count(1)
Event = Change | Run


@pytest.fixture(scope="module")
def connect(postgres_server: PostgresServer) -> Iterator[Connect]:
    """Opens connections to one database for all of them; runs read in step."""
    name = f"found_{os.getpid()}"
    found = connecting(postgres_server.create_database(name))
    prepare(found)
    with in_step():
        yield found
    postgres_server.drop_database(name)


def check(connect: Connect, habits: Habits, events: Sequence[Event]) -> None:
    """Play it, let time pass, and see that one more run of each walk makes the copy exact."""
    world = World(connect, f"found{next(_names)}", habits)
    try:
        for event in events:
            if isinstance(event, Run):
                world.run(event)
                world.check()
            else:
                world.change(event)
        world.settle()
        for walk in ("backfill", "incremental", "by_key") if world.object.incremental else ("backfill", "by_key"):
            assert world.run(Run(walk, reset=walk == "backfill" and not world.object.incremental)) is None
            world.check()
        world.assert_exact()
    finally:
        world.close()


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("page_max", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["page id", "page newest", "page unordered", "page updated"])
def test_a_border_of_every_page_size(kind: str, page_max: int, more: bool, connect: Connect) -> None:
    """Behind 6 records no page of 2 or 3 holds both the sixth and the seventh: they are not missed, nor is the end."""
    for count in {2: (2, 3, 5), 3: (6, 7, 13), 4: (12, 13), 5: (60, 61)}[page_max]:
        habits = Habits(kind, page_max=page_max, more=more, looks_ahead=False)
        check(connect, habits, [("insert", 0, count), ("pass", 3, 5), Run(), ("delete", 0, 2), ("insert", 0, 3)])


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("kind", ["offset updated", "offset created falling", "page updated"])
def test_pages_that_end_with_a_tie(kind: str, more: bool, connect: Connect) -> None:
    """The server's page is filled by the record to overlap with and those tied behind it: the walk goes on all the
    same, and ends."""
    habits = Habits(kind, page_max=3, precision="1ms", more=more)
    check(connect, habits, [("insert", 0, 5), ("import", 0, 2), ("insert", 0, 3), ("pass", 3, 5), Run()])
