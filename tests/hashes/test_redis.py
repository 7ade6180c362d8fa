"""What only Redis does: it is killed and comes back with an older state; it stops, fills up, becomes a replica."""

from __future__ import annotations

import contextlib
import pickle
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from airflow_extract_provider.extract.hashes.hash_map import HashMapAwayError
from airflow_extract_provider.extract.hashes.redis import RedisHashMap, client
from airflow_extract_provider.testing.postgres import free_port
from tests.hashes.conftest import kept_by
from tests.hashes.story import Story, hashed, tell
from tests.redis_server import RedisServer, running

A, B = hashed("a", 0), hashed("a", 1)
KEY = "extract:hashes:copy"
SECRET = "marked-secret-4711"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis for one test, which may do anything to it."""
    with running() as found:
        yield found


@pytest.fixture
def entered(server: RedisServer) -> Iterator[Callable[[int], RedisHashMap]]:
    """Makes runs that have entered."""
    with contextlib.ExitStack() as opened:

        def enter(number: int) -> RedisHashMap:
            found = RedisHashMap(server.client())
            opened.callback(found.close)
            found.enter("copy", "one", number)
            return found

        yield enter


@pytest.fixture
def run(entered: Callable[[int], RedisHashMap]) -> RedisHashMap:
    """Run number 1, which knows of the key `a` that A is stored."""
    return filled(entered(1))


def filled(found: RedisHashMap) -> RedisHashMap:
    """It knows now."""
    found.learn(found.look(["a"]).marker, {"a": A})
    assert known(found) == A
    return found


def known(run: RedisHashMap) -> bytes | None:
    """What it is told of the key `a`."""
    (hash,) = run.look(["a"]).hashes
    return hash


class WithRestarts(Story):
    """The server, too, is killed, and comes back with what it had saved."""

    server: RedisServer

    @rule(what=st.sampled_from(["saves", "saves", "restarts"]))
    def server_does(self, what: str) -> None:
        if what == "saves":
            self.server.save()
        else:
            self.server.restart()
            self.reachable = False


def test_it_never_answers_what_is_not_stored(server: RedisServer) -> None:
    """Also when entries come back that had been taken out, and runs reconnect without noticing."""
    tell(WithRestarts, kept_by(server), server=server)


@pytest.mark.parametrize("saved", ["before the claim", "after it"])
def test_killed_between_claim_and_commit(
    server: RedisServer, entered: Callable[[int], RedisHashMap], run: RedisHashMap, saved: str
) -> None:
    """The run, which will commit, is told nothing more; and those after it begin with nothing."""
    server.save()
    marker = run.claim(["a"])
    if saved == "after it":
        server.save()
    server.restart()
    assert server.tell("HEXISTS", KEY, "a")
    with pytest.raises(HashMapAwayError, match="started again"):
        run.learn(marker, {"a": B})
    later = entered(2)
    assert known(later) is None
    later.learn(later.look(["a"]).marker, {"a": B})
    assert known(later) == B


def test_killed_between_commit_and_learn(
    server: RedisServer, entered: Callable[[int], RedisHashMap], run: RedisHashMap
) -> None:
    """Each question says so until the run enters again. Then it begins with nothing."""
    server.save()
    marker = run.claim(["a"])
    server.restart()
    questions: Sequence[Callable[[], object]] = [
        lambda: run.learn(marker, {"a": B}),
        lambda: run.look(["a"]),
        lambda: run.claim(["a"]),
    ]
    for ask in [*questions, *questions]:
        with pytest.raises(HashMapAwayError, match="started again"):
            ask()
    assert not run.enter("copy", "one", 1)
    run.learn(marker, {"a": A})
    assert known(run) is None


def test_a_lost_connection_alone_costs_nothing(server: RedisServer, run: RedisHashMap) -> None:
    """Servers end connections that have been idle."""
    server.tell("CLIENT", "KILL", "TYPE", "normal")
    assert known(run) == A


def test_a_server_that_has_forgotten_the_scripts_is_told_them(server: RedisServer, run: RedisHashMap) -> None:
    """In the middle of a run."""
    server.tell("SCRIPT", "FLUSH")
    assert known(run) == A


def test_a_server_that_does_not_answer(server: RedisServer, entered: Callable[[int], RedisHashMap]) -> None:
    """It has stopped, and its connections stand. What reaches it when it goes on does no harm."""
    run = RedisHashMap(server.client(timeout=timedelta(seconds=0.5)))
    run.enter("copy", "one", 1)
    marker = run.look(["a"]).marker
    with server.stopped():
        questions: Sequence[Callable[[], object]] = [
            lambda: run.learn(marker, {"a": A}),
            lambda: run.claim(["b"]),
            lambda: run.look(["a"]),
            lambda: run.enter("copy", "two", 1),
        ]
        for ask in questions:
            with pytest.raises(HashMapAwayError, match="TimeoutError"):
                ask()
    later = entered(2)
    later.learn(later.claim(["a"]), {"a": B})
    assert known(later) in (B, None)
    run.close()


def test_nobody_listens() -> None:
    """The message names the place, and no secret."""
    nowhere = RedisHashMap(client(host="127.0.0.1", port=free_port(), password=SECRET))
    with pytest.raises(HashMapAwayError, match="ConnectionError") as away:
        nowhere.enter("copy", "one", 1)
    assert SECRET not in str(away.value)
    assert away.value.__cause__ is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("--requirepass", "another"), "invalid|WRONGPASS"),
        # Redis repeats what it does not understand.
        (("--rename-command", "AUTH", ""), "unknown command"),
        (("--rename-command", "INFO", ""), "unknown|Unknown"),
        (("--rename-command", "EVALSHA", ""), "unknown command"),
    ],
    ids=["password", "no AUTH", "no INFO", "no scripts"],
)
def test_a_server_that_refuses(settings: Sequence[str], said: str) -> None:
    """The message tells why, and neither the login nor keys."""
    with running(*settings) as server:
        password = SECRET if "AUTH" in settings or "--requirepass" in settings else None
        refused = RedisHashMap(server.client(password=password))
        with pytest.raises(HashMapAwayError, match=said) as away:
            refused.enter(SECRET, "one", 1)
        assert SECRET not in str(away.value)
        refused.close()


def test_a_login_with_no_more_rights_than_are_needed(server: RedisServer) -> None:
    """Those that the docs name."""
    rights = ["+eval", "+evalsha", "+info", "+hget", "+hmget", "+hset", "+hdel", "+expire", "+unlink"]
    server.tell("ACL", "SETUSER", "map", "on", f">{SECRET}", "~extract:*", *rights)
    run = RedisHashMap(server.client(username="map", password=SECRET))
    run.enter("copy", "one", 1)
    run.learn(run.look(["a"]).marker, {"a": A})
    assert known(run) == A
    run.learn(run.claim(["a"]), {"a": None})
    assert server.tell("HLEN", KEY) == len(["born", "state"])
    run.clear()
    assert not run.enter("copy", "one", 1)
    server.tell("ACL", "SETUSER", "map", "-info")
    with pytest.raises(HashMapAwayError, match=r"permission|can't run"):
        run.look(["a"])
    run.close()


def test_a_full_server_keeps_no_entry_that_was_claimed(
    server: RedisServer, entered: Callable[[int], RedisHashMap], run: RedisHashMap
) -> None:
    """It has no memory for the marker, so all of them go. Nobody else is disturbed by it."""
    server.tell("CONFIG", "SET", "maxmemory", "1")
    marker, hashes = run.look(["a", "b"])
    assert hashes == [A, None]
    run.learn(marker, {"b": B})
    with pytest.raises(HashMapAwayError, match="memory"):
        entered(2)
    assert server.tell("HLEN", KEY) == len(["born", "state", "a"])
    run.claim(["a"])
    assert not server.tell("EXISTS", KEY)
    server.tell("CONFIG", "SET", "maxmemory", "0")
    assert known(run) is None
    assert known(entered(2)) is None


def test_what_is_evicted_is_not_known(
    server: RedisServer, entered: Callable[[int], RedisHashMap], run: RedisHashMap
) -> None:
    """A server that lets go of what was not used for long."""
    server.tell("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.tell("CONFIG", "SET", "maxmemory", "1")
    server.tell("GET", "x")
    server.tell("CONFIG", "SET", "maxmemory", "0")
    assert not server.tell("EXISTS", KEY)
    assert known(run) is None
    assert known(entered(2)) is None


def test_entries_stay_for_as_long_as_they_are_used(server: RedisServer, run: RedisHashMap) -> None:
    """Then they go by themselves."""
    server.tell("EXPIRE", KEY, "60")
    known(run)
    month = timedelta(days=30).total_seconds()
    assert 60 < server.tell("TTL", KEY) <= month
    server.tell("EXPIRE", KEY, "60")
    assert run.enter("copy", "one", 1)
    assert 60 < server.tell("TTL", KEY) <= month


def test_nothing_is_left_of_earlier_states(server: RedisServer, run: RedisHashMap) -> None:
    """Of one copy there is one hash, under the prefix."""
    for number in range(2, 5):
        run.enter("copy", f"state {number}", number)
        run.look(["a"])
    assert server.tell("KEYS", "*") == [KEY.encode()]
    run.clear()
    assert server.tell("KEYS", "*") == []


def test_what_is_somebody_elses_is_not_touched(server: RedisServer) -> None:
    """A name that is taken."""
    server.tell("SET", KEY, "theirs")
    run = RedisHashMap(server.client())
    with pytest.raises(HashMapAwayError, match="WRONGTYPE"):
        run.enter("copy", "one", 1)
    assert server.tell("GET", KEY) == b"theirs"
    run.close()


def test_prefixes_are_kept_apart(server: RedisServer, run: RedisHashMap) -> None:
    """Two installations in one Redis."""
    other = RedisHashMap(server.client(), prefix="staging:")
    assert not other.enter("copy", "one", 2)
    assert known(other) is None
    assert known(run) == A
    other.close()


def test_it_is_not_pickled(run: RedisHashMap) -> None:
    """It holds a login."""
    with pytest.raises(TypeError, match="secrets"):
        pickle.dumps(run)


def test_nothing_is_sent_twice() -> None:
    """Whoever makes the client, and whatever it is told: each try would last as long as the first."""
    came: list[int] = []

    class Refusing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            came.append(1)

    with socketserver.TCPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, args=(0.02,), daemon=True).start()
        asked = client(host="127.0.0.1", port=refusing.server_address[1], retry=None, decode_responses=True)
        with pytest.raises(HashMapAwayError):
            RedisHashMap(asked).enter("copy", "one", 1)
        refusing.shutdown()
        asked.close()
    assert came == [1]


@pytest.fixture
def replica(server: RedisServer) -> Iterator[RedisServer]:
    """A replica of it."""
    with running() as found:
        follow(found, server)
        yield found


def test_a_replica_is_not_asked(replica: RedisServer) -> None:
    """It may not have heard yet what was taken out; not even if it may be written to."""
    replica.tell("CONFIG", "SET", "replica-read-only", "no")
    behind = RedisHashMap(replica.client())
    with pytest.raises(HashMapAwayError, match="replica"):
        behind.enter("copy", "one", 2)
    behind.close()


def test_a_replica_that_is_made_master_begins_with_nothing(
    server: RedisServer, replica: RedisServer, entered: Callable[[int], RedisHashMap]
) -> None:
    """It has the entries, but has not heard of all that was taken out."""
    run = filled(entered(1))
    cut_off(replica, server)
    run.claim(["a"])
    assert replica.tell("HGET", KEY, "a") == b"h" + A
    promoted = RedisHashMap(replica.client())
    assert not promoted.enter("copy", "one", 2)
    assert known(promoted) is None
    promoted.close()


def test_a_master_that_was_a_replica_meanwhile_begins_with_nothing(
    server: RedisServer, replica: RedisServer, entered: Callable[[int], RedisHashMap]
) -> None:
    """It has run all the time, and holds again what had been taken out: the other one had not heard of it."""
    run = filled(entered(1))
    cut_off(replica, server)
    run.claim(["a"])
    follow(server, replica)
    server.tell("REPLICAOF", "NO", "ONE")
    assert server.tell("HGET", KEY, "a") == b"h" + A
    with pytest.raises(HashMapAwayError):
        run.look(["a"])


def cut_off(replica: RedisServer, server: RedisServer) -> None:
    """Make it a master, when it has all that the other one has."""
    until = time.monotonic() + 60
    while replica.tell("HGETALL", KEY) != server.tell("HGETALL", KEY):
        assert time.monotonic() < until
        time.sleep(0.02)
    replica.tell("REPLICAOF", "NO", "ONE")


def follow(replica: RedisServer, master: RedisServer) -> None:
    """Make it a replica, and wait until it has the master's data."""
    for each in (replica, master):
        each.tell("CONFIG", "SET", "repl-diskless-sync-delay", "0")
    replica.tell("REPLICAOF", "127.0.0.1", str(master.port))
    with contextlib.closing(replica.client()) as asked:
        until = time.monotonic() + 60
        link: dict[str, Any] = {}
        while link.get("master_link_status") != "up":
            assert time.monotonic() < until
            time.sleep(0.05)
            link = asked.info("replication")
