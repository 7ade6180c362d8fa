"""What every hash map does: it is never wrong about what is stored, and it is of some use."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_extract_provider.extract.hashes.hash_map import HashMap, HashMapAwayError
from tests.hashes.story import KEYS, Kept, Story, hashed, tell

A, B = hashed("a", 0), hashed("a", 1)


def entered(kept: Kept, number: int, identity: str = "one") -> HashMap:
    """A run of its own."""
    found = kept.open()
    found.enter("copy", identity, number)
    return found


def filled(kept: Kept, number: int, identity: str = "one") -> HashMap:
    """A run that has looked for the key `a` and read A."""
    found = entered(kept, number, identity)
    marker, hashes = found.look(["a"])
    assert hashes == [None]
    found.learn(marker, {"a": A})
    return found


def known(run: HashMap, *keys: str) -> list[bytes | None]:
    """What the run is told of these keys."""
    return list(run.look(keys).hashes)


def test_it_never_answers_what_is_not_stored(kept: Kept) -> None:
    """Runs, zombies and flushes in any order."""
    tell(Story, kept)


def test_threads_leave_nothing_wrong(kept: Kept) -> None:
    """They read and write the same rows at the same time, with row locks as in Postgres."""
    run, keys = entered(kept, 1), [f"key {number}" for number in range(8)]
    stored = {key: hashed(key, 0) for key in keys}
    locks = {key: threading.Lock() for key in keys}

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for turn in range(60):
            some = sorted(chance.sample(keys, 3))
            if chance.random() < 0.5:
                marker, hashes = run.look(some)
                run.learn(marker, {key: stored[key] for key, hash in zip(some, hashes, strict=True) if hash is None})
                continue
            written = {key: hashed(key, (seed + turn) % 3) for key in some}
            with contextlib.ExitStack() as transaction:
                for key in some:
                    transaction.enter_context(locks[key])
                marker = run.claim(some)
                stored.update(written)
            run.learn(marker, written)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    known = {key: hash for key, hash in zip(keys, run.look(keys).hashes, strict=True) if hash is not None}
    assert known == {key: stored[key] for key in known}
    assert known


def test_what_was_read_after_a_look_is_known(kept: Kept) -> None:
    """In the order of the keys, also of those asked twice."""
    run = entered(kept, 1)
    marker, hashes = run.look(["b", "a", "c", "a"])
    assert hashes == [None] * 4
    run.learn(marker, {"a": A, "c": hashed("c", 0)})
    assert known(run, "b", "a", "c", "a") == [None, A, hashed("c", 0), A]
    assert known(run) == []


def test_what_was_not_looked_for_is_not_learned(kept: Kept) -> None:
    """Without its marker nobody knows what has happened since it was read."""
    run = entered(kept, 1)
    marker, _ = run.look(["b"])
    run.learn(marker, {"a": A})
    run.learn(marker, {})
    assert known(run, "a") == [None]


def test_a_claim_takes_the_entry_out_until_the_commit_is_learned(kept: Kept) -> None:
    """For everybody, at once."""
    run = filled(kept, 1)
    marker = run.claim(["a", "b"])
    run.claim([])
    assert known(run, "a") == [None]
    run.learn(marker, {"a": B, "b": hashed("b", 1)})
    assert known(run, "a", "b") == [B, hashed("b", 1)]


def test_what_was_deleted_leaves_nothing(kept: Kept) -> None:
    """Only where the marker still stands: another may have brought it back."""
    run = filled(kept, 1)
    first = run.claim(["a", "b"])
    run.learn(first, {"a": None, "b": hashed("b", 1)})
    assert known(run, "a", "b") == [None, hashed("b", 1)]
    deleted, revived = run.claim(["a"]), run.claim(["a"])
    run.learn(deleted, {"a": None})
    run.learn(revived, {"a": B})
    run.learn(deleted, {"a": None})
    assert known(run, "a") == [B]


def test_a_look_leaves_a_claim_of_its_own_run_in_place(kept: Kept) -> None:
    """One thread looks ahead, while another is about to commit."""
    run = entered(kept, 1)
    claim = run.claim(["a"])
    look, hashes = run.look(["a"])
    assert hashes == [None]
    run.learn(look, {"a": A})
    assert known(run, "a") == [None]
    run.learn(claim, {"a": B})
    run.learn(look, {"a": A})
    assert known(run, "a") == [B]


def test_each_claim_has_a_marker_of_its_own(kept: Kept) -> None:
    """What a transaction learns late must not stand in while the next one of the same run commits."""
    run = entered(kept, 1)
    first, second = run.claim(["a"]), run.claim(["a"])
    run.learn(first, {"a": A})
    assert known(run, "a") == [None]
    run.learn(second, {"a": B})
    run.learn(first, {"a": A})
    assert known(run, "a") == [B]


def test_a_writer_that_wakes_late_learns_nothing(kept: Kept) -> None:
    """It was stopped between its commit and `learn`, while another has claimed and learned."""
    stopped = entered(kept, 1)
    late = stopped.claim(["a"])
    other = entered(kept, 2)
    marker = other.claim(["a"])
    stopped.learn(late, {"a": A})
    other.learn(marker, {"a": B})
    stopped.learn(late, {"a": A})
    assert known(other, "a") == [B]


def test_a_reader_that_wakes_late_learns_nothing(kept: Kept) -> None:
    """It has read the row that another was about to write, whether that one has committed or not."""
    stopped = entered(kept, 1)
    late, _ = stopped.look(["a"])
    other = entered(kept, 2)
    marker = other.claim(["a"])
    stopped.learn(late, {"a": A})
    assert known(other, "a") == [None]
    other.learn(marker, {"a": B})
    stopped.learn(late, {"a": A})
    assert known(other, "a") == [B]


def test_a_run_that_was_taken_over_cannot_displace_a_claim(kept: Kept) -> None:
    """Its look or its claim comes between the other one's claim and commit."""
    stopped = entered(kept, 1)
    other = entered(kept, 2)
    marker = other.claim(["a"])
    late, hashes = stopped.look(["a"])
    assert hashes == [None]
    stopped.learn(late, {"a": A})
    stopped.claim(["a"])
    ahead, hashes = other.look(["a"])
    assert hashes == [None]
    other.learn(ahead, {"a": A})
    assert known(other, "a") == [None]
    other.learn(marker, {"a": B})
    assert known(other, "a") == [B]


def test_a_run_that_was_taken_over_takes_entries_out_all_the_same(kept: Kept) -> None:
    """It may have committed just before."""
    stopped = entered(kept, 1)
    other = filled(kept, 2)
    stopped.claim(["a"])
    assert known(other, "a") == [None]


def test_what_a_flush_took_cannot_be_learned(kept: Kept) -> None:
    """Neither by who had looked, nor by who had claimed; and nothing by who looks afterwards, until it enters again."""
    run = entered(kept, 1)
    look, _ = run.look(["a"])
    claim = run.claim(["b"])
    kept.flush()
    run.learn(look, {"a": A})
    run.learn(claim, {"b": hashed("b", 0)})
    look, hashes = run.look(["a", "b"])
    assert hashes == [None, None]
    run.learn(look, {"a": A})
    assert known(run, "a") == [None]
    later = entered(kept, 2)
    assert known(later, "a", "b") == [None, None]
    run.learn(look, {"a": A})
    assert known(later, "a", "b") == [None, None]


def test_the_claim_of_a_run_that_died_gives_way_to_the_next_run(kept: Kept) -> None:
    """One read, and the key is known again."""
    entered(kept, 1).claim(["a"])
    run = filled(kept, 2)
    assert known(run, "a") == [A]


def test_entries_are_kept_from_run_to_run(kept: Kept) -> None:
    """Also by a run that enters again."""
    filled(kept, 7)
    run = kept.open()
    assert run.enter("copy", "one", 8)
    assert known(run, "a") == [A]
    assert run.enter("copy", "one", 8)
    assert known(run, "a") == [A]


@pytest.mark.parametrize(
    ("copy", "identity", "number"),
    [("copy", "two", 8), ("copy", "one", 9), ("copy", "one", 7), ("copy", "one", 6), ("another", "one", 8)],
)
def test_entries_are_not_kept(kept: Kept, copy: str, identity: str, number: int) -> None:
    """Of another state of the copy, or where somebody may have run in between; nor by who learned them before."""
    before = filled(kept, 7)
    run = kept.open()
    assert not run.enter(copy, identity, number)
    assert known(run, "a") == [None]
    if copy == "copy":
        run.learn(run.look(["a"]).marker, {"a": B})
        assert known(before, "a") == [None]
        assert known(run, "a") == [B]


def test_a_run_that_enters_again_keeps_no_entries_of_another(kept: Kept) -> None:
    """One that was taken over has begun the map anew meanwhile."""
    run = entered(kept, 8)
    kept.flush()
    filled(kept, 7)
    assert not run.enter("copy", "one", 8)
    assert known(run, "a") == [None]


def test_copies_are_kept_apart(kept: Kept) -> None:
    """The same keys, other records."""
    run, other = filled(kept, 1), kept.open()
    assert not other.enter("another", "one", 1)
    other.claim(["a"])
    other.clear()
    assert known(run, "a") == [A]


def test_clear_drops_everything(kept: Kept) -> None:
    """For this run and those to come."""
    run = filled(kept, 1)
    run.clear()
    marker, hashes = run.look(["a"])
    assert hashes == [None]
    run.learn(marker, {"a": A})
    assert known(run, "a") == [None]
    assert not kept.open().enter("copy", "one", 2)


def test_nothing_is_asked_before_a_run_has_entered(kept: Kept) -> None:
    """Which copy's entries would it be about?"""
    run, marker = kept.open(), filled(kept, 1).look(["a"]).marker
    asked: list[Callable[[], object]] = [
        lambda: run.look(["a"]),
        lambda: run.claim(["a"]),
        lambda: run.learn(marker, {"a": A}),
        run.clear,
    ]
    for ask in asked:
        with pytest.raises(HashMapAwayError):
            ask()


@pytest.mark.parametrize("key", ["", "ä\U0001f600", "\udc80", "\0", "ÿ", "þ", "a" * 10_000])
def test_a_key_is_any_text(kept: Kept, key: str) -> None:
    """Also one that Postgres would not take: it is only not known."""
    run = entered(kept, 1)
    marker, hashes = run.look([key])
    assert hashes == [None]
    run.learn(marker, {key: A})
    assert known(run, key, *KEYS) == [A, None, None]


def test_many_keys_at_once(kept: Kept) -> None:
    """More than fit into one call of any kind; and hashes of any length and bytes."""
    keys = [f"key {number}" for number in range(4_567)]
    hashes = {key: bytes([number % 256]) * (16 + number % 9) for number, key in enumerate(keys)}
    run = entered(kept, 1)
    run.learn(run.look(keys).marker, hashes)
    assert known(run, *keys) == list(hashes.values())
    marker = run.claim(keys[::2])
    assert known(run, *keys) == [None if at % 2 == 0 else hashes[key] for at, key in enumerate(keys)]
    run.learn(marker, dict.fromkeys(keys, B))
    assert known(run, *keys) == [B if at % 2 == 0 else hashes[key] for at, key in enumerate(keys)]


def test_its_repr_shows_nothing(kept: Kept) -> None:
    """Neither keys nor hashes nor a login."""
    run = filled(kept, 1)
    assert "copy" not in repr(run)
    assert "127.0.0.1" not in repr(run)
