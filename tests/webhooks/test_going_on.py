"""What breaks after the receiver has begun: its workers go on with what was good."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests

from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import EmbeddedPostgres
from tests.webhooks.listening import Talk
from tests.webhooks.receiving import PATH, SHOP, Process, deliveries
from tests.webhooks.test_service import eventually, send

pytestmark = pytest.mark.slow

BROKEN = "source: other\nobjects: [\n"
BACKEND = """
import os, time
class Slow:
    def _set_connection_class(self, kind): pass
    def get_connection(self, conn_id):
        with open(os.environ["ASKED"], "a") as file: file.write(conn_id + chr(10))
        while os.path.exists(os.environ["HANGS"]): time.sleep(0.1)
"""


def replaced(process: Process) -> None:
    """Kill its workers, and return when there are others."""
    before = process.workers()
    for each in before:
        os.kill(each, signal.SIGKILL)
    until = time.monotonic() + 60
    while set(before) & set(process.workers()) or len(process.workers()) < len(before):
        assert time.monotonic() < until, process.told()
        time.sleep(0.1)
    process.wait()


def test_a_file_that_is_broken_meanwhile(dsn: str, tmp_path: Path) -> None:
    """Neither a worker that replaces another nor a hangup minds it; once it is mended, a hangup reads it."""
    with Process(tmp_path, dsn, "--workers", "2") as process:
        file = tmp_path / "sources" / "other.yaml"
        file.write_text(BROKEN, encoding="utf-8")
        replaced(process)
        assert set(send(process.port, 20)) == {200}
        os.kill(process.pid, signal.SIGHUP)
        until = time.monotonic() + 60
        while "What was read before stays" not in process.told():
            assert time.monotonic() < until, process.told()
            time.sleep(0.1)
        assert set(send(process.port, 20)) == {200}
        file.write_text(SHOP.replace("source: shop", "source: other"), encoding="utf-8")
        os.kill(process.pid, signal.SIGHUP)
        while requests.post(f"{process.url}/webhooks/other/all", timeout=30).status_code == 404:
            assert time.monotonic() < until, process.told()


def test_a_store_that_refuses_a_new_worker(dsn: str, tmp_path: Path) -> None:
    """It lives, says 503, and stores as soon as it may."""
    with Process(tmp_path, dsn, "--workers", "2") as process, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("alter table extract.inbox rename to inbox_gone")
        for each in process.workers():
            os.kill(each, signal.SIGKILL)
        answer, until, body = None, time.monotonic() + 60, next(deliveries(1))
        head, _, content = body.request.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        while answer is None:
            assert time.monotonic() < until, process.told()
            try:
                answer = requests.post(process.url + PATH, data=content, headers=headers, timeout=20)
            except requests.RequestException:
                time.sleep(0.1)
        assert answer.status_code == 503
        assert requests.get(f"{process.url}/health", timeout=5).ok
        conn.execute("alter table extract.inbox_gone rename to inbox")
        process.wait()
        assert set(send(process.port, 5)) == {200}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that may be restarted."""
    tmp_path.chmod(0o755)
    with EmbeddedPostgres(tmp_path / "server") as server:
        yield server


def test_a_secrets_backend_that_hangs(own: EmbeddedPostgres, tmp_path: Path) -> None:
    """The store is found again where it was; who is idle asks for it no more than once in a while."""
    dsn = own.create_database("books")
    migrate(connecting(dsn), [])
    asked, hangs = tmp_path / "asked", tmp_path / "hangs"
    (tmp_path / "slow_secrets.py").write_text(BACKEND, encoding="utf-8")
    process = Process(tmp_path, dsn, "--workers", "1")
    process.environment |= {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "AIRFLOW__SECRETS__BACKEND": "slow_secrets.Slow",
        "ASKED": str(asked),
        "HANGS": str(hangs),
    }
    with process:
        assert set(send(process.port, 5)) == {200}
        eventually(process, "extract_webhook_store_up", 1)
        time.sleep(6)
        before = asked.read_text(encoding="utf-8").count("extract_store")
        time.sleep(11)
        assert asked.read_text(encoding="utf-8").count("extract_store") == before
        hangs.touch()
        own.stop()
        own.start()
        until, statuses = time.monotonic() + 60, [0]
        while statuses != [200]:
            assert time.monotonic() < until, process.told()
            with Talk(process.port) as talk:
                talk.say(next(deliveries(1)).request)
                statuses = talk.statuses(1)
        process.stop()


def test_numbers_that_cannot_be_shared_for_a_while(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk can be written to again, they are."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Process(tmp_path, dsn, "--workers", "2") as process:
        eventually(process, "extract_webhook_workers", 2)
        (folder,) = (tmp_path / "tmp").glob("airflow-extract-receiver-*")
        away = folder.rename(tmp_path / "away")
        until = time.monotonic() + 60
        while process.told().count("not shared") < 2:
            assert time.monotonic() < until, process.told()
            time.sleep(0.1)
        away.rename(folder)
        assert set(send(process.port, 30)) == {200}
        eventually(process, 'extract_webhooks_total{endpoint="all",outcome="stored",source="shop"}', 30)
        eventually(process, "extract_webhook_workers", 2)


def test_each_outcome_is_there_from_the_beginning(dsn: str, tmp_path: Path) -> None:
    """As 0: an increase of what begins at 1 is none."""
    with Process(tmp_path, dsn, "--workers", "1") as process:
        for outcome in ("stored", "forged", "away"):
            eventually(process, f'extract_webhooks_total{{endpoint="all",outcome="{outcome}",source="shop"}}', 0)
