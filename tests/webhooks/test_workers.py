"""What a receiver tells of its workers, and what it does with signals."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import uvicorn
from uvicorn.supervisors import Multiprocess

from airflow_extract_provider.extract.errors import StoreUnavailableError
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.receiver import workers
from airflow_extract_provider.receiver.metrics import Numbers, Shared, exposed
from airflow_extract_provider.receiver.rereading import Rereading
from airflow_extract_provider.receiver.serving import _Server


def _told(folder: Path) -> tuple[str, str]:
    lines = exposed(Numbers(), Shared(folder)).decode().splitlines()
    found = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    return found["extract_webhook_workers"], found["extract_webhook_workers_died_total"]


def test_who_has_died_stays_dead(tmp_path: Path) -> None:
    """Another process may get its number: then the count would go back, and begin anew for whoever sums it up. Who has
    ended in order has not died."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    Shared(tmp_path).show(Numbers())
    assert _told(tmp_path) == ("2.0", "0.0")
    dead = Shared(tmp_path)
    dead.show(Numbers(process=ended.pid))
    assert _told(tmp_path) == ("2.0", "1.0")
    dead.show(Numbers())  # its number is that of one who lives
    assert _told(tmp_path) == ("2.0", "1.0")
    Shared(tmp_path).show(Numbers(process=ended.pid, ended=True))
    assert _told(tmp_path) == ("2.0", "1.0")


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_hangup_that_is_to_be_ignored(before: signal.Handlers) -> None:
    """As `nohup` wants it. Else it ends one worker alone in order."""
    server = _Server(uvicorn.Config(lambda: None, log_config=None))
    kept = signal.signal(signal.SIGHUP, before)
    try:
        with server.capture_signals():
            signal.raise_signal(signal.SIGHUP)
            handled = signal.getsignal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert (handled is signal.SIG_IGN) == (before is signal.SIG_IGN)
    assert server.should_exit == (before is signal.SIG_DFL)


class Stopped:
    """A worker that can neither answer nor end."""

    def __init__(self) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        os.kill(self.pid, signal.SIGSTOP)

    def terminate(self) -> None:
        """Tell it to end."""
        os.kill(self.pid, signal.SIGTERM)


def test_who_cannot_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was replaced, and all at the end: else no other worker would be replaced, and the receiver not end."""
    monkeypatch.setattr(workers, "_SPARE", 0.5)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    config = uvicorn.Config(lambda: None, log_config=None, workers=2, timeout_graceful_shutdown=0)
    parent: workers._Parent[Any] = workers._Parent(config, [], knowing=None)  # type: ignore[arg-type]
    old, *others = there = [Stopped() for _ in range(3)]
    try:
        old.terminate()
        parent._left(old)  # type: ignore[arg-type]
        assert not old.process.is_alive()
        parent.processes = [others[0]]  # type: ignore[list-item]
        others[1].terminate()
        parent.signal_queue.append(signal.SIGTERM)
        parent._left(others[1])  # type: ignore[arg-type]  # it is not waited for where we are to end
        assert others[1].process.is_alive()
        parent.terminate_all()
        parent.join_all()
        assert not any(each.process.is_alive() for each in there)
    finally:
        for each in there:
            each.process.kill()


def test_no_more_processes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a hangup nor a worker that died ends the parent then, without whom nobody would be replaced or told to
    end: it is tried again and again, and said once."""

    def full(*_: object) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    config = uvicorn.Config(lambda: None, log_config=None, workers=2)
    parent: workers._Parent[Any] = workers._Parent(config, [], knowing=SimpleNamespace(read_anew=full))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", full)
        parent.handle_hup()
        assert parent._reading is None
        patched.setattr(Multiprocess, "keep_subprocess_alive", full)
        parent.keep_subprocess_alive()
        parent.keep_subprocess_alive()
        patched.setattr(workers, "_Worker", full)
        assert not parent._replaced(0)
    assert caplog.messages == [
        "nothing can be read anew now (too many open files). What was read before stays.",
        "no worker can be begun now (too many open files): it is tried again and again",
        "no worker can be begun now (too many open files)",
    ]


def test_the_dead_are_replaced_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before one that hangs is asked, for half a minute, whether it lives."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    config = uvicorn.Config(lambda: None, log_config=None, workers=2)
    parent: workers._Parent[Any] = workers._Parent(config, [], knowing=None)  # type: ignore[arg-type]
    hangs, dead = [
        SimpleNamespace(process=SimpleNamespace(is_alive=lambda alive=each: alive)) for each in (True, False)
    ]
    parent.processes = [hangs, dead, hangs]  # type: ignore[list-item]
    order = list[Any]()
    monkeypatch.setattr(Multiprocess, "keep_subprocess_alive", lambda self: order.extend(self.processes))
    parent.keep_subprocess_alive()
    assert order == [dead, hangs, hangs]


def test_who_stops_while_he_hands_over_what_was_read(caplog: pytest.LogCaptureFixture) -> None:
    """He is not waited for beyond his time, though a part has come."""
    reading = Rereading(lambda: "x" * 1_000_000, 1.0)
    pid, begun = reading._process.pid, time.monotonic()
    assert pid is not None
    while "pipe" not in Path(f"/proc/{pid}/wchan").read_text() and time.monotonic() < begun + 0.5:
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    while not reading.over:
        assert time.monotonic() < begun + 20
    assert reading.found() is None
    assert caplog.messages == ["Reading all anew does not end."]


def test_what_is_read_anew(caplog: pytest.LogCaptureFixture) -> None:
    """In a process of its own: what it reads, or that it reads nothing, dies, or does not end."""

    def found(read: Callable[[], Any], seconds: float = 30) -> Any:
        reading = Rereading(read, seconds)
        while not reading.over:
            time.sleep(0.01)
        return reading.found()

    assert found(os.getpid) != os.getpid()
    assert found(lambda: "x" * 1_000_000) == "x" * 1_000_000
    assert found(lambda: None) is None
    assert caplog.messages == []
    assert found(lambda: os.kill(os.getpid(), signal.SIGKILL)) is None
    assert found(lambda: time.sleep(60), 0.3) is None
    assert caplog.messages == ["The process that read all anew has died.", "Reading all anew does not end."]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("could not receive data: No route to host", "no route to host"),
        ("[Errno -2] failed to resolve host 'nohost': Name or service not known", "failed to resolve host"),
        ('connection failed: FATAL:  database "s3cret" does not exist', "there is no such database"),
        (
            'connection failed: FATAL:  Password Authentication failed for user "s3cret"',
            "password authentication failed",
        ),
    ],
)
def test_why_a_store_is_not_reached(text: str, told: str) -> None:
    """In words that show nothing of the connection."""
    with pytest.raises(StoreUnavailableError, match=told) as caught, named_errors():
        raise psycopg.OperationalError(text)
    assert "s3cret" not in str(caught.value)
    assert "nohost" not in str(caught.value)
