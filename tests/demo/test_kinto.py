"""Kinto as a real API: what it holds after several writers, how late commits come, and that nothing is left of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types
import pytest
import requests

from airflow_extract_provider.testing.postgres import PostgresServer
from demo.kinto_contacts import (
    RECORDS,
    Truth,
    connection_kept_open,
    create_contacts,
    truth,
    truth_over_http,
    write_batches,
    writing,
)
from demo.kinto_server import PAGE_SIZE, PROJECT, Kinto
from tests.kinto_stage import start_kinto

WRITING_SECONDS = 4.0
STARTER = """
import sys, time
from pathlib import Path
from demo.kinto_server import Kinto
with Kinto(Path(sys.argv[1]), sys.argv[2]) as kinto:
    print(kinto.port, kinto.child.process.pid, flush=True)
    time.sleep(300)
"""


@pytest.fixture
def kinto(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Kinto]:
    """A server with an empty collection of contacts."""
    with start_kinto(tmp_path, postgres_server) as served:
        yield served


class NaivePoller:
    """Reads what is newer than the newest it has seen: what is committed later than that is lost to it."""

    def __init__(self, url: str) -> None:
        self._list = f"{url}/v1{RECORDS}?_sort=last_modified&_since="
        self._session = connection_kept_open()
        self.newest = 0
        self.seen: dict[str, int] = {}

    def poll(self) -> None:
        """Read all pages, ascending."""
        address: str | None = f"{self._list}{self.newest}"
        while address:
            answer = self._session.get(address, timeout=30)
            answer.raise_for_status()
            for record in answer.json()["data"]:
                self.seen[record["id"]] = self.newest = record["last_modified"]
            address = answer.headers.get("Next-Page")

    def missed(self, there: Truth) -> list[str]:
        """The records of which it does not know the last version."""
        versions = {key: record["last_modified"] for key, record in there.live.items()} | there.deleted
        return [key for key, version in versions.items() if self.seen.get(key) != version]


def test_sql_and_http_tell_the_same_after_four_writers(kinto: Kinto) -> None:
    """Kinto's table, its API and the writers agree on what is there and what was deleted.

    How many records a naive poller misses is chance, so only printed: hundreds of a thousand are usual.
    """
    poller = NaivePoller(kinto.url)
    begun, there = time.monotonic(), truth(kinto.dsn)
    with writing(kinto.url, seed=1) as written:
        # Not only for a time: a slow machine writes little in it.
        while (spent := time.monotonic() - begun) < WRITING_SECONDS or (
            spent < 60 and not (len(there.live) > 2 * PAGE_SIZE and there.deleted)
        ):
            poller.poll()
            there = truth(kinto.dsn)
    poller.poll()
    there = truth(kinto.dsn)
    print(f"missed for good: {len(poller.missed(there))} of {len(there.live) + len(there.deleted)}")
    assert there == truth_over_http(kinto.url)
    assert all(each.operations for each in written)
    assert there.live.keys() == {key for each in written for key in each.live}
    assert there.deleted.keys() == {key for each in written for key in each.deleted}
    assert len(there.live) > PAGE_SIZE
    assert there.deleted


def test_one_writer_is_repeatable_and_a_naive_poller_misses_nothing(kinto: Kinto) -> None:
    """The same seed makes the same contacts; without a second writer nothing comes late."""
    poller = NaivePoller(kinto.url)
    first = write_batches(kinto.url, 0, 5, batches=30)
    poller.poll()
    there = truth(kinto.dsn)
    with connection_kept_open() as session:
        session.delete(f"{kinto.url}/v1/buckets/crm", timeout=30).raise_for_status()
    create_contacts(kinto.url)
    assert write_batches(kinto.url, 0, 5, batches=30) == first
    assert first.refused == 0
    assert poller.missed(there) == []
    assert without_times(truth(kinto.dsn)) == without_times(there)


def without_times(there: Truth) -> tuple[dict[str, dict[str, object]], set[str]]:
    """What does not differ from one day to the next."""
    live = {
        key: {name: value for name, value in record.items() if name != "last_modified"}
        for key, record in there.live.items()
    }
    return live, set(there.deleted)


def test_data_outlives_the_server(kinto: Kinto) -> None:
    """Stopped and started again it answers at the same address with the same data."""
    write_batches(kinto.url, 0, 2, batches=5)
    before = truth_over_http(kinto.url)
    assert kinto.child is not None
    process = psutil.Process(kinto.child.process.pid)
    kinto.stop()
    assert not process.is_running()
    with pytest.raises(requests.ConnectionError):
        truth_over_http(kinto.url)
    assert truth_over_http(kinto.start().url) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of their parent's end")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_its_starter(tmp_path: Path, dsn: str, how: signal.Signals) -> None:
    """However the process that started it is ended, the server goes with it."""
    command = [sys.executable, "-c", STARTER, str(tmp_path), dsn]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        port, pid = map(int, starter.stdout.readline().split())
        server = psutil.Process(pid)
        starter.send_signal(how)
        starter.wait(30)
    server.wait(30)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
