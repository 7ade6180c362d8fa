"""What a receiver tells of its workers, and what it does with signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import uvicorn

from airflow_extract_provider.extract.errors import StoreUnavailableError
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.receiver.metrics import Numbers, Shared, exposed
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
