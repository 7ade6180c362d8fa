"""What breaks after the receiver has begun: its workers go on with what was good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types
import psycopg
import pytest
import requests

from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.receiver import workers
from airflow_extract_provider.testing.postgres import EmbeddedPostgres, free_port
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
        eventually(process, "extract_webhook_store_up", 1)  # of both workers
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


# --- a hangup while something is wrong


class Told:
    """What the secrets backend of a receiver holds: a file."""

    def __init__(self, process: Process, file: Path, store: str = "extract_store") -> None:
        self._file, self._store = file, store
        held = process.environment
        self._good = {
            store: json.loads(held.pop("AIRFLOW_CONN_EXTRACT_STORE")),
            "shop_webhooks": json.loads(held.pop("AIRFLOW_CONN_SHOP_WEBHOOKS")),
        }
        held["AIRFLOW__SECRETS__BACKEND"] = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
        held["AIRFLOW__SECRETS__BACKEND_KWARGS"] = json.dumps({"connections_file_path": str(file)})
        self.tell()

    def tell(self, **store: Any) -> None:
        """What is to be held, with other parts of the store's connection."""
        told = {**self._good, self._store: {**self._good[self._store], **store}}
        self._file.write_text(json.dumps(told), encoding="utf-8")


def hung_up(process: Process, said: str) -> None:
    """Send SIGHUP, and return when the log says so."""
    os.kill(process.pid, signal.SIGHUP)
    until = time.monotonic() + 90
    while said not in process.told():
        assert process.running(), process.told()
        assert time.monotonic() < until, process.told()
        time.sleep(0.1)


def alive(process: Process, workers: int = 2) -> None:
    """Return when it lives, with so many workers."""
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{process.url}/health", timeout=5).ok and len(process.workers()) == workers:
                return
        assert time.monotonic() < until, process.told()
        time.sleep(0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"acks": "1"}, {"security.protocol": "nonsense"}],
    ids=["a promise that is not kept", "a setting that only librdkafka refuses"],
)
def test_a_hangup_with_a_wrong_kafka_connection(wrong: dict[str, str], tmp_path: Path) -> None:
    """All goes on as it was, and whoever replaces a worker later does not know it either."""
    process = Process(tmp_path, "host=x", "--workers", "2", "--keep", "kafka")
    extra = {"bootstrap.servers": f"127.0.0.1:{free_port()}"}
    process.environment["AIRFLOW_CONN_EXTRACT_STORE"] = json.dumps({"conn_type": "kafka", "extra": extra})
    told = Told(process, tmp_path / "held.json", "kafka_default")
    try:
        process.start()
        alive(process)
        before = process.workers()
        told.tell(extra={**extra, **wrong})
        hung_up(process, "What was read before stays")
        assert process.workers() == before
        for each in before:
            os.kill(each, signal.SIGKILL)
            alive(process)
            until = time.monotonic() + 60
            while each in process.workers() or len(process.workers()) < 2:
                assert process.running(), process.told()
                assert time.monotonic() < until, process.told()
                time.sleep(0.1)
        alive(process)
        assert not set(before) & set(process.workers())
    finally:
        process.kill()


def test_a_hangup_while_the_stores_connection_is_wrong(dsn: str, tmp_path: Path) -> None:
    """Those who store go on; once it is right, they are replaced."""
    process = Process(tmp_path, dsn, "--workers", "2")
    told = Told(process, tmp_path / "held.json")
    with process:
        alive(process)
        eventually(process, "extract_webhook_store_up", 1)  # of both workers
        before = process.workers()
        told.tell(port=free_port())
        hung_up(process, "What was read before stays")
        assert process.workers() == before
        assert set(send(process.port, 20)) == {200}
        told.tell()
        hung_up(process, "each worker is replaced")
        until = time.monotonic() + 60
        while set(before) & set(process.workers()) or len(process.workers()) != 2:
            assert time.monotonic() < until, process.told()
            time.sleep(0.1)
        eventually(process, "extract_webhook_store_up", 1)
        assert set(send(process.port, 20)) == {200}


def test_what_one_worker_cannot_begin_with_is_undone_for_all() -> None:
    """The first one was replaced already: it is replaced again, by one that knows what the others do."""
    known = ["old"]

    class Worker:
        """One that begins, or not; it is no process."""

        begun: ClassVar[list[Worker]] = []

        def __init__(self, config: Any, sockets: Any) -> None:
            self.knows, self.ended = known[0], False
            self.begun.append(self)

        def start(self) -> None:
            """Nothing to do."""

        def wait_until_ready(self, timeout: float, ended: threading.Event) -> bool:
            """The second new one does not begin."""
            return sum(each.knows == "new" for each in self.begun) < 2 or self.knows == "old"

        def terminate(self) -> None:
            """It ends."""
            self.ended = True

        kill = terminate

        def join(self) -> None:
            """It has ended."""
            assert self.ended

    class Parent(workers._Parent):
        def __init__(self) -> None:
            self.config = SimpleNamespace(timeout_worker_healthcheck=1)  # type: ignore[assignment]
            self.sockets, self.should_exit = [], threading.Event()
            self.processes = [Worker(None, None) for _ in range(3)]  # type: ignore[misc]
            self._read_anew, self._put_back = self._new, lambda: known.__setitem__(0, "old")

        def _new(self) -> bool:
            known[0] = "new"
            return True

    parent = Parent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_Worker", Worker)
        parent.handle_hup()
    there: list[Any] = [*parent.processes]
    assert [(each.knows, each.ended) for each in there] == [("old", False)] * 3
    assert all(each.ended for each in Worker.begun if each not in there)


# --- a store that hangs


def everything(server: EmbeddedPostgres) -> list[psutil.Process]:
    """All processes of a server, the parent first: it would begin others."""
    parent = psutil.Process(server.pid)
    return [parent, *parent.children(recursive=True)]


def test_a_stop_while_postgres_hangs(own: EmbeddedPostgres, tmp_path: Path) -> None:
    """It ends, though the counts cannot be written: in the midst of that, or as its last one."""
    dsn = own.create_database("books")
    migrate(connecting(dsn), [])
    with Process(tmp_path, dsn, "--workers", "2") as process:
        assert set(send(process.port, 20)) == {200}
        # The connection for the counts is open then.
        until = time.monotonic() + 60
        with psycopg.connect(dsn, autocommit=True) as conn:
            while conn.execute("select coalesce(sum(count), 0) from extract.inbox_count").fetchone() != (20,):
                assert time.monotonic() < until
                time.sleep(0.1)
        for _ in range(10):
            assert requests.post(process.url + PATH, data=b"{}", timeout=5).status_code == 401
        stopped = everything(own)
        for each in stopped:
            each.suspend()
        try:
            assert process.stop() == 0
        finally:
            for each in reversed(stopped):
                each.resume()


def test_a_store_that_hangs_is_waited_for(tmp_path: Path) -> None:
    """It takes connections, and says nothing: the receiver listens all the same."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        process = Process(tmp_path, f"host=127.0.0.1 port={silent.getsockname()[1]} user=x dbname=x")
        try:
            begun = time.monotonic()
            process.start()
            alive(process)
            assert time.monotonic() - begun < 100
            assert requests.get(f"{process.url}/ready", timeout=5).status_code == 503
            assert "Postgres does not answer. Webhooks are refused until it is there" in process.told()
        finally:
            process.kill()


def test_a_table_that_is_locked_is_waited_for(dsn: str, tmp_path: Path) -> None:
    """Somebody changes it when the receiver starts."""
    process = Process(tmp_path, dsn, "--workers", "1")
    with psycopg.connect(dsn) as conn:
        conn.execute("lock table extract.inbox")
        try:
            process.start()
            until = time.monotonic() + 60
            while "Webhooks are refused until it is there" not in process.told():
                assert time.monotonic() < until, process.told()
                time.sleep(0.1)
            conn.rollback()
            process.wait()
            assert set(send(process.port, 5)) == {200}
        finally:
            process.kill()


@pytest.mark.parametrize("signalled", [signal.SIGTERM, signal.SIGINT])
def test_one_worker_ends_in_order(
    signalled: signal.Signals, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is 0, and it leaves nothing behind."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Process(tmp_path, dsn, "--workers", "1") as process:
        assert set(send(process.port, 5)) == {200}
        os.kill(process.pid, signalled)
        assert process.ended() == 0
        assert "The receiver has stopped." in process.told()
    assert list((tmp_path / "tmp").glob("airflow-extract-receiver-*")) == []


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
