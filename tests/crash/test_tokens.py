"""Refresh tokens that can be used once, shared by real processes that are killed and stopped; counted at the server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_extract_provider.extract.errors import TokenLostError
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.login import LoginServer
from tests.crash.stage import wait_until
from tests.crash.token_child import Asked, get, live, started

_processes = multiprocessing.get_context("forkserver")

LIVES = 0.02
"""An access token's life, in seconds: every few requests need another."""


class Child:
    """A process that asks."""

    def __init__(self, asked: Asked) -> None:
        self.who = asked.who
        self._said, said = _processes.Pipe(duplex=False)
        self.process = _processes.Process(target=live, args=(started(asked), said))
        self.process.start()
        said.close()

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL

    def stop(self) -> None:
        """SIGSTOP; returns once it stands still."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def wake(self) -> None:
        """SIGCONT."""
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGCONT)

    def finish(self) -> dict[str, Any]:
        """What it says at its end."""
        assert self._said.poll(60), f"{self.who} says nothing"
        found: dict[str, Any] = self._said.recv()
        self.process.join()
        return found

    def clear_away(self) -> None:
        """End it, however it is."""
        self.process.kill()
        self.process.join()
        self._said.close()


class Scene:
    """A server, a migrated database, and processes."""

    def __init__(self, dsn: str, server: LoginServer, stop: Path) -> None:
        self.server, self.stop_file = server, stop
        migrate(connecting(dsn), [])
        self.asked = Asked("here", dsn, server.url, server.api_url, server.log_in(), str(stop))
        self.children: list[Child] = []
        self.made, self.go = threading.Event(), threading.Event()

    def start(self, who: str, **over: Any) -> Child:
        """Start a process."""
        self.children.append(Child(replace(self.asked, who=who, **over)))
        return self.children[-1]

    def hold_answer_to(self, who: str) -> None:
        """The next answer with tokens to this process is made, and is not sent until `go`."""
        self.made.clear()
        self.go.clear()

        def hold(number: int) -> None:
            if self.server.asked[-1]["who"] == who and not self.made.is_set():
                self.made.set()
                self.go.wait(60)

        self.server.before_sending = hold

    def kill_between_answer_and_store(self, child: Child) -> None:
        """Kill it when it has spent its refresh token and does not know what it got for it."""
        self.hold_answer_to(child.who)
        assert self.made.wait(60)
        child.kill()
        self.go.set()

    def asked_by(self, *who: str) -> bool:
        """Whether each of these processes has renewed tokens ten times."""
        by = Counter(fields["who"] for fields in self.server.asked)
        return min(by[each] for each in who) >= 10

    def ask(self, **over: Any) -> list[int]:
        """One request from this process, in a run of its own."""
        with requests.Session() as session:
            session.trust_env = False
            with replace(self.asked, **over).auth(session) as auth:
                return get(session, auth, self.server.api_url)


@pytest.fixture
def scene(dsn: str, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Sets a scene with a server of some habits; afterwards no process is left."""
    scenes: list[Scene] = []
    servers: list[LoginServer] = []

    def make(**habits: Any) -> Scene:
        servers.append(LoginServer(**habits).__enter__())
        scenes.append(Scene(dsn, servers[-1], tmp_path / "stop"))
        return scenes[-1]

    yield make
    for each in scenes:
        each.go.set()
        for child in each.children:
            child.clear_away()
    for server in servers:
        server.__exit__(None, None, None)


def test_two_hundred_renewals(scene: Callable[..., Scene], capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes at once, single-use refresh tokens, a renewal revokes the access token before; one is killed
    between answer and store. No request goes out with a revoked token, and the spent token is found out: first by a
    server that takes it once more, then by one that does not, when the error says how to go on, and that is enough.

    With short times: by default the others would wait for a quarter of an hour until they take the process for dead."""
    stage = scene(lives=LIVES, leeway=60.0, grace=30.0)
    server, began = stage.server, time.monotonic()
    one, two = stage.start("one"), stage.start("two")
    wait_until(lambda: server.renewals >= 100 and stage.asked_by("one", "two"), 60)
    stage.kill_between_answer_and_store(one)
    three = stage.start("three")
    wait_until(lambda: server.renewals >= 200 and stage.asked_by("three"), 60)
    stage.stop_file.touch()
    said = [two.finish(), three.finish()]
    took = time.monotonic() - began
    by = Counter(fields["who"] for fields in server.asked)
    late = sum(each.pop("ApiUnavailableError", 0) for each in said)
    assert [set(each) for each in said] == [{"200"}, {"200"}]
    assert late <= 0.02 * server.uses, "tokens that run out before they are used, on a slow machine"
    assert server.revoked_uses == []
    assert server.reused == 1
    with capsys.disabled():
        print(
            f"\n{server.renewals} renewals by {dict(by)} in {took:.1f} s, {server.uses} API requests, "
            f"{len(server.revoked_uses)} with a revoked token, 1 process killed between answer and store, "
            f"{server.reused} spent refresh token tried again, {late} errors to try again"
        )
    _lost_and_seeded_again(stage)


def _lost_and_seeded_again(stage: Scene) -> None:
    server = stage.server
    server.grace = 0.0
    stage.stop_file.unlink()
    four, five = stage.start("four"), stage.start("five")
    wait_until(lambda: stage.asked_by("four", "five"), 60)
    stage.kill_between_answer_and_store(four)
    told = five.finish()
    assert told["error"] == "TokenLostError"
    assert "'shop' was spent at 20" in told["message"]
    assert "put the new refresh token into the field `refresh_token` of the connection 'shop'" in told["message"]
    count = len(server.asked)
    with pytest.raises(TokenLostError, match="was spent at 20"):
        stage.ask()
    assert len(server.asked) == count, "a token that is known to be lost is not asked about again"
    assert stage.ask(seed=server.log_in()) == [200]
    assert server.revoked_uses == []


def test_stopped_during_a_request(scene: Callable[..., Scene]) -> None:
    """A renewal waits for a process that is stopped in its request, and no longer than Postgres waits for it. Woken, it
    goes on with the new token, and has not sent the old one once it was revoked."""
    stage = scene(lives=0.4, leeway=60.0, takes=0.2)
    one = stage.start("one", longest=1.0)
    wait_until(lambda: stage.server.uses >= 2)
    # In the middle of a request: not between two, and not before it is sent.
    while True:
        wait_until(lambda: stage.server.under_way == 1)
        one.stop()
        if stage.server.under_way == 1:
            break
        one.wake()
    began = time.monotonic()
    while stage.server.renewals < 2:
        assert stage.ask(longest=5.0) == [200]
        assert time.monotonic() < began + 20
    one.wake()
    used = stage.server.uses
    wait_until(lambda: stage.server.uses >= used + 3)
    stage.stop_file.touch()
    assert set(one.finish()) == {"200"}
    assert stage.server.revoked_uses == []


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_stopped_during_a_renewal(scene: Callable[..., Scene], grace: float) -> None:
    """A process is stopped while it waits for new tokens, for longer than Postgres waits. Another run tries the spent
    token: the API takes it once more, or all seems lost. Woken, the first one stores what it got, if there is nothing
    newer, so that nobody has to log in again; and both go on."""
    stage = scene(grace=grace)
    stage.hold_answer_to("one")
    one = stage.start("one", longest=0.5, most=3)
    assert stage.made.wait(60)
    one.stop()
    stage.go.set()
    if grace:
        assert stage.ask(longest=5.0) == [200]
    else:
        with pytest.raises(TokenLostError, match="was spent at"):
            stage.ask(longest=5.0)
    one.wake()
    assert one.finish() == {"200": 3}
    assert stage.ask() == [200]
    assert stage.server.revoked_uses == []
    assert stage.server.renewals == (2 if grace else 1)
