"""The walks against an API that nobody here wrote, whose changes come late for real, while four writers write on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from airflow_extract_provider.testing.postgres import PostgresServer
from demo.kinto_contacts import BUCKET, connection_kept_open, create_contacts, truth, write_batches, writing
from demo.kinto_server import Kinto
from tests.kinto_stage import PROJECT, Copy, crm, milliseconds, start_kinto, texts

PAGE = 10
LATE = timedelta(seconds=12)
"""Kinto shows a change when its transaction commits: on a busy machine that may take longer than the demo's `late`."""
WRITING_SECONDS = LATE.total_seconds() + 3
"""So long that a run is complete to an instant at which they wrote."""
KILLS = 6
PAUSE = 0.05
"""Seconds between a writer's batches where processes are started meanwhile: without it a slow start is filled with
thousands of records, all of which must be read at the end."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Kinto]:
    """One server for all tests here: its start takes seconds."""
    with start_kinto(tmp_path_factory.mktemp("kinto"), postgres_server) as kinto:
        yield kinto


@pytest.fixture
def kinto(served: Kinto) -> Kinto:
    """The server with an empty collection of contacts."""
    with connection_kept_open() as session:
        session.delete(f"{served.url}/v1{BUCKET}", timeout=30).raise_for_status()
    create_contacts(served.url)
    return served


@pytest.fixture
def copy(kinto: Kinto, dsn: str) -> Copy:
    """A copy of its contacts, empty so far."""
    made = Copy(kinto.url, dsn, crm(PAGE))
    made.migrate()
    return made


def check_equal(kinto: Kinto, copy: Copy) -> None:
    """Every record in every field, every tombstone with its instant."""
    here, there = copy.held(), truth(kinto.dsn)
    assert len(there.live) > 5 * PAGE
    assert there.deleted
    assert texts(here) == texts(there)
    assert here.deleted == there.deleted


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_lost_while_four_write(kinto: Kinto, copy: Copy, seed: int) -> None:
    """Each run says up to when the copy is complete, and is right; when all is written, one more makes it equal."""
    copy = replace(copy, source=crm(PAGE, LATE))
    assert copy.run("backfill").complete
    until, laps = time.monotonic() + WRITING_SECONDS, 0
    with writing(kinto.url, seed, pause=PAUSE):
        while time.monotonic() < until:
            copy.check_complete_to(kinto, copy.sync().complete_to)
            laps += 1
    assert laps >= 2
    copy.check_complete_to(kinto, copy.sync().complete_to)
    check_equal(kinto, copy)


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are gone after the test, however it ends."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start_child(children: list[subprocess.Popen[str]], copy: Copy, walk: str) -> subprocess.Popen[str]:
    """Start a process that copies; it is at work when this returns."""
    late = copy.source.object("contacts").late.total_seconds()
    asked = {"url": copy.url, "dsn": copy.dsn, "page": PAGE, "walk": walk, "late": late}
    command = [sys.executable, "-W", "error", "-m", "tests.kinto.child", json.dumps(asked)]
    child = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_nothing_is_lost_when_the_process_is_killed(
    kinto: Kinto, copy: Copy, children: list[subprocess.Popen[str]]
) -> None:
    """Killed (-9) at any moment, again and again, while four write: the next one goes on, and the copy is equal."""
    chance = random.Random(4)
    # Kinto shows a change when its transaction commits: on a busy machine that may take longer than the demo's `late`.
    copy = replace(copy, source=crm(PAGE, timedelta(seconds=30)))
    assert copy.run("backfill").complete
    with writing(kinto.url, seed=4, pause=PAUSE):
        for _ in range(KILLS):
            child = start_child(children, copy, "incremental")
            time.sleep(0.1 + chance.random())
            child.kill()
            assert child.wait() == -9
    # The first one ends the lap that was begun while they wrote, and is complete to an instant before that: what was
    # committed late behind it is found by the next lap.
    assert copy.sync().complete
    assert copy.sync().complete
    check_equal(kinto, copy)


def test_a_backfill_hands_off_while_four_write(kinto: Kinto, copy: Copy, children: list[subprocess.Popen[str]]) -> None:
    """A backfill, killed three times, and the incremental walk after it lose nothing, whatever is written meanwhile."""
    chance = random.Random(5)
    copy = replace(copy, source=crm(PAGE, LATE))
    write_batches(kinto.url, 9, 5, batches=80)
    gone = truth(kinto.dsn).deleted
    # At work before they begin to write: on a loaded machine its start takes longer than `late` looks back.
    child = start_child(children, copy, "backfill")
    begin = datetime.now(timezone.utc)
    with writing(kinto.url, seed=5, pause=PAUSE):
        for kill in range(1, 4):
            child = child if kill == 1 else start_child(children, copy, "backfill")
            while copy.pages() < 4 * kill and child.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.03)
            child.kill()
            assert child.wait() == -9
        backfill = copy.run("backfill")
        copy.check_complete_to(kinto, copy.sync().complete_to, gone.keys())
    assert backfill.cursor_before["pages"] >= 12
    assert backfill.complete_to is not None
    assert backfill.complete_to < begin
    copy.sync()
    here, there = copy.held(), truth(kinto.dsn)
    assert texts(here) == texts(there)
    # What was deleted before the first request was never here; from then on every tombstone came.
    assert here.deleted.items() <= there.deleted.items()
    assert {key for key in there.deleted if key not in here.deleted} <= gone.keys()


def test_after_the_settle_time_the_copy_is_complete_to_the_last_write(kinto: Kinto, copy: Copy) -> None:
    """Once `late` has passed, a run says so, and has nothing left to change."""
    late = copy.source.object("contacts").late
    assert copy.run("backfill").complete
    with writing(kinto.url, seed=6):
        # Not for a time: a slow machine writes little in it.
        until = time.monotonic() + 60
        while len(truth(kinto.dsn).live) <= 8 * PAGE and time.monotonic() < until:
            time.sleep(0.2)
    copy.sync()
    last = max(truth(kinto.dsn).deleted.values())
    time.sleep((late + timedelta(seconds=1.2)).total_seconds())
    summary = copy.sync("another")
    assert summary.complete_to is not None
    assert milliseconds(summary.complete_to) >= last
    assert not sum(summary.counts.get(kind, 0) for kind in ("created", "updated", "deleted", "undeleted"))
    check_equal(kinto, copy)
