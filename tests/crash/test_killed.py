"""kill -9 of the pipeline at any moment, and run again: the same table, and no committed page is read again (law 2)."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.crash.stage import Child, Stage, wait_until
from tests.loopback import Asked

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
SetStage = Callable[..., Stage]


def check_goes_on(stage: Stage, expected: dict[str, str], asked_before: int) -> None:
    """The first request of a run was for the page behind the last committed one, and no later one went back."""
    asked = [dict(each.params) for each in stage.api.asked[asked_before:]]
    if not asked:
        return
    assert asked[0] == expected
    if stage.object == "keyed":
        anchors = [each.get("starting_after", "") for each in asked]
        assert anchors == sorted(set(anchors))


def killed_when(stage: Stage, child: Child, rng: random.Random) -> None:
    """Kill at a random moment: as a request comes in, before it is answered; as a page is committed; at any time."""
    how = rng.choice(["fetching", "committed", "any time"])
    start, ahead = len(stage.api.asked), rng.randint(1, 6)
    if how == "fetching":
        seen = threading.Event()

        def before(number: int, asked: Asked) -> None:
            if number == start + ahead:
                child.kill()
                seen.set()

        stage.api.before = before
        wait_until(lambda: seen.is_set() or not child.running)
        stage.api.before = lambda number, asked: None
    elif how == "committed":
        pages = stage.pages()
        wait_until(lambda: stage.pages() >= pages + ahead or not child.running)
    else:
        wait_until(lambda: len(stage.api.asked) > start or not child.running)
        time.sleep(rng.random() * 0.1)
    child.kill()
    # What the process had sent before it died, a commit perhaps, is still done by the server.
    wait_until(stage.gone)


@pytest.mark.parametrize("object", ["keyed", "tokens"])
@pytest.mark.parametrize("seed", range(20 if SOAK else 2))
def test_killed_again_and_again(stage: SetStage, object: str, seed: int) -> None:
    """However often and whenever the process is killed, the next one goes on behind the last committed page, and in
    the end the table equals the API, each record stored once."""
    scene, rng, kills = stage(200, object), random.Random(seed), 0
    scene.api.delay = 0.005
    while True:
        expected, asked_before = scene.next_params(), len(scene.api.asked)
        child = scene.start()
        if kills < 5:
            killed_when(scene, child, rng)
            kills += 1
        code, said = child.finish()
        check_goes_on(scene, expected, asked_before)
        if code == 0:
            break
        assert code == -9
    assert said["complete"]
    assert kills >= 3
    scene.check_exact()


def test_killed_in_mid_transaction(stage: SetStage) -> None:
    """Killed while its transaction waits for a row's lock: nothing of the page stays, and the retry is exact."""
    scene = stage(60)
    with scene.trap(scene.keys[25]):
        child = scene.start()
        wait_until(scene.waiting)
        before = scene.pages()
        child.kill()
        assert child.finish()[0] == -9
    wait_until(scene.gone)
    assert scene.pages() == before
    expected, asked_before = scene.next_params(), len(scene.api.asked)
    assert scene.start().finish()[0] == 0
    check_goes_on(scene, expected, asked_before)
    scene.check_exact()


def test_killed_right_after_a_commit(stage: SetStage) -> None:
    """Killed after each single page was committed: every page is asked for once, pages fetched ahead aside."""
    scene = stage(40)
    for page in range(1, 5):
        expected, asked_before = scene.next_params(), len(scene.api.asked)
        # The page after this one is never answered: the process is killed with one page committed.
        held = threading.Event()

        def before(number: int, asked: Asked, first: int = asked_before + 1, held: threading.Event = held) -> None:
            if number > first:
                held.wait(20)

        scene.api.before = before
        child = scene.start()
        wait_until(lambda page=page: scene.pages() == page)  # type: ignore[misc]
        child.kill()
        held.set()
        wait_until(scene.gone)
        check_goes_on(scene, expected, asked_before)
        assert scene.pages() == page
    scene.api.before = lambda number, asked: None
    assert scene.start().finish()[0] == 0
    scene.check_exact()


def test_a_row_deleted_by_hand(stage: SetStage) -> None:
    """A row that somebody deletes while the pipeline waits for its lock is tried again, and stored like a new one."""
    scene = stage(60)
    with scene.trap(scene.keys[25]) as locker:
        child = scene.start()
        wait_until(scene.waiting)
        locker.execute("delete from shop.keyed where key = %s", [scene.keys[25]])
    assert child.finish()[0] == 0
    scene.check_exact()
