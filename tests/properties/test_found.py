"""Histories that failed once, as small as they could be made."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Literal

import pytest

from airflow_extract_provider.extract.store.connection import Connect, connecting
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.properties.habits import FaultName, Habits
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
            if walk == "by_key" and not world.noted():
                continue  # it would ask for nothing; histories drawn at random run it all the same
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


@pytest.mark.parametrize("inserts", [1, 5, 9])
@pytest.mark.parametrize("kind", ["page newest", "offset created falling", "last key", "link newest"])
def test_records_come_before_every_page(kind: str, inserts: int, connect: Connect) -> None:
    """Whatever the list grows by at its head, each page is found again, and so is the end."""
    habits = Habits(kind, looks_ahead=False)
    busy = Run(changes={number: [("insert", 0, inserts)] for number in range(2, 30)})
    check(connect, habits, [("insert", 0, 34), ("pass", 3, 5), busy])


@pytest.mark.parametrize("number", range(3, 9))
@pytest.mark.parametrize("kind", ["page updated", "offset updated", "last key"])
def test_records_go_while_the_end_is_looked_for(kind: str, number: int, connect: Connect) -> None:
    """Behind the last page there is nothing, since the list has become shorter: no proof of the end."""
    habits = Habits(kind, page_max=5, precision="1s")
    gone = Run(changes={number: [("delete", 0, 4)], number + 1: [("delete", 1, 2)]})
    check(connect, habits, [("insert", 0, 9), ("pass", 3, 2), ("insert", 0, 3), ("pass", 3, 5), gone])


@pytest.mark.parametrize("number", range(3, 9))
@pytest.mark.parametrize("kind", ["link header", "token in disguise"])
def test_a_tie_that_ends_with_a_page_becomes_smaller(kind: str, number: int, connect: Connect) -> None:
    """The page behind it then begins further on than it should: what lies between is asked for."""
    undone = Run(changes={number: [("delete", 3, 12)]})
    check(connect, Habits(kind), [("import", 0, 20), ("pass", 3, 2), ("insert", 0, 34), ("pass", 3, 5), undone])


@pytest.mark.parametrize("kind", ["offset id", "page id", "offset created falling", "page unordered"])
def test_an_empty_answer_instead_of_the_first_page(kind: str, connect: Connect) -> None:
    """Asked for the beginning once more, an API that answers with nothing by mistake has not lost all its records."""
    for number in range(2, 6):
        faults: dict[int, FaultName] = {1: "short_page", number: "empty_page"}
        check(connect, Habits(kind), [("insert", 0, 2), ("pass", 3, 5), Run(faults=faults)])


SIZED, SIZELESS = ("page id", "page newest", "offset id"), ("page without size", "page alone")
BEYOND = [*itertools.product(SIZED, ("refuse", "last")), *itertools.product(SIZELESS, ("refuse",))]
"""Where pages have no size, none can overlap: the last page once more is an error, and never served (Habits)."""


@pytest.mark.parametrize("page_max", [2, 3, 10])
@pytest.mark.parametrize(("kind", "past_end"), BEYOND)
def test_apis_that_refuse_a_page_beyond_the_end(
    kind: str, page_max: int, past_end: Literal["refuse", "last"], connect: Connect
) -> None:
    """A 404, or the last page once more: neither stops a list of any length, nor goes on for ever."""
    for count in (1, 3, 6, 10):
        check(
            connect, Habits(kind, page_max=page_max, past_end=past_end), [("insert", 0, count), ("pass", 3, 5), Run()]
        )


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("kind", ["position", "token updated", "since only", "key filter"])
def test_the_record_read_last_is_changed(kind: str, number: int, connect: Connect) -> None:
    """It comes again, with another version: that is no page that was given before."""
    hot: list[Change] = [("update", 10 * (number - 1) - 1, 1)]
    run = Run(changes={number: hot, number + 1: [("update", 18, 2)]})
    events: list[Event] = [("insert", 0, 8), ("pass", 3, 2), ("insert", 0, 6), ("pass", 3, 2), ("insert", 0, 6), run]
    check(connect, Habits(kind), events)
    check(connect, Habits(kind, precision="1s", fine=True), events)


@pytest.mark.parametrize("fault", ["repeat_token", "repeat_page"])
@pytest.mark.parametrize("kind", ["token updated", "header token", "next link", "link newest"])
def test_what_comes_again_once_stops_nothing_for_good(kind: str, fault: FaultName, connect: Connect) -> None:
    """A cache that gave an old answer: the next run, if not this one, is exact."""
    check(connect, Habits(kind), [("insert", 0, 34), ("pass", 3, 5), Run(faults={3: fault}), Run()])
