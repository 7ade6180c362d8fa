"""What breaks after the receiver has begun: its workers go on with what was good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psycopg
import pytest
import requests

from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.receiver import workers
from airflow_extract_provider.testing.postgres import EmbeddedPostgres, free_port
from tests.databases import stopped
from tests.webhooks.listening import Talk
from tests.webhooks.receiving import PATH, SHOP, Process, deliveries
from tests.webhooks.test_service import eventually, outcomes, send

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
STAYS = "What was read before stays"


def comes(process: Process, found: Callable[[], bool], seconds: float = 60) -> None:
    """Return when something is so; the receiver runs until then."""
    until = time.monotonic() + seconds
    while not found():
        assert process.running(), process.told()
        assert time.monotonic() < until, process.told()
        time.sleep(0.05)


def killed(process: Process) -> None:
    """Kill its workers, and return when there are as many others."""
    before = process.workers()
    for each in before:
        os.kill(each, signal.SIGKILL)
    comes(process, lambda: replaced(process, before))


def replaced(process: Process, before: list[int]) -> bool:
    """Whether it has as many workers as before, and none of those."""
    now = process.workers()
    return len(now) == len(before) and not set(before) & set(now)


def alive(process: Process, workers: int) -> bool:
    """Whether it answers, with so many workers."""
    try:
        return requests.get(f"{process.url}/health", timeout=5).ok and len(process.workers()) == workers
    except requests.RequestException:
        return False


def ready(process: Process) -> None:
    """Return when it is ready to store, whichever worker is asked. The numbers would tell the same later: for seconds
    those of a worker that has ended are among them."""
    told: deque[bool] = deque(maxlen=8)

    def all_say_so() -> bool:
        try:
            told.append(requests.get(f"{process.url}/ready", timeout=5).ok)
        except requests.RequestException:
            told.append(False)
        return len(told) == told.maxlen and all(told)

    comes(process, all_say_so)


def known(process: Process, path: str) -> bool:
    """Whether there is such an endpoint. Who connects just as a worker ends is not answered."""
    with contextlib.suppress(requests.ConnectionError):
        return requests.post(process.url + path, timeout=30).status_code != 404
    return False


def hung_up(process: Process, said: str) -> None:
    """Send SIGHUP, and return when the log says so once more."""
    before = process.told().count(said)
    os.kill(process.pid, signal.SIGHUP)
    comes(process, lambda: process.told().count(said) > before, 90)


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


# --- two workers to which one thing after another happens


def test_two_workers_go_on(dsn: str, tmp_path: Path) -> None:
    """What each of these must not do to them is told there."""
    endpoint = SHOP.splitlines(keepends=True)[-1]
    more = "".join(endpoint.replace("all:", f"{each}:", 1) for each in ("unused", "file", "connection", "store"))
    process = Process(tmp_path, dsn, "--workers", "2", sources={"shop.yaml": SHOP + more})
    (tmp_path / "tmp").mkdir()
    process.environment["TMPDIR"] = str(tmp_path / "tmp")
    told = Told(process, tmp_path / "held.json")
    with process:
        each_outcome_is_there_from_the_beginning(process)
        a_worker_dies_while_it_is_asked(process)
        numbers_cannot_be_shared_for_a_while(process, tmp_path / "tmp")
        a_file_is_broken_meanwhile(process, tmp_path / "sources" / "other.yaml")
        a_hangup_while_the_stores_connection_is_wrong(process, told)
        the_store_refuses_new_workers(process, dsn)


def each_outcome_is_there_from_the_beginning(process: Process) -> None:
    """As 0: an increase of what begins at 1 is none."""
    eventually(process, outcomes("unused", stored=0, forged=0, away=0))


def a_worker_dies_while_it_is_asked(process: Process) -> None:
    """Whether it is alive is asked twice a second: who dies before he has answered is replaced as soon as any other.
    The numbers tell of it, and count no dead one."""
    before = process.workers()
    os.kill(before[0], signal.SIGSTOP)
    time.sleep(1.2)  # longer than the pause between two questions
    os.kill(before[0], signal.SIGKILL)
    comes(process, lambda: before[0] not in process.workers() and len(process.workers()) == 2, 5)
    process.wait()
    eventually(process, {"extract_webhook_workers": 2, "extract_webhook_workers_died_total": 1})


def numbers_cannot_be_shared_for_a_while(process: Process, folder: Path) -> None:
    """When the disk can be written to again, they are."""
    eventually(process, {"extract_webhook_workers": 2})
    (shared,) = folder.glob("airflow-extract-receiver-*")
    away = shared.rename(folder / "away")
    comes(process, lambda: process.told().count("not shared") >= 2)
    away.rename(shared)
    assert set(send(process.port, 30)) == {200}
    eventually(process, {**outcomes(stored=30), "extract_webhook_workers": 2})


def a_file_is_broken_meanwhile(process: Process, file: Path) -> None:
    """Neither a worker that replaces another nor a hangup minds it; once it is mended, a hangup reads it."""
    path = "/webhooks/shop/file"
    file.write_text(BROKEN, encoding="utf-8")
    killed(process)
    process.wait()
    assert set(send(process.port, 20, path)) == {200}
    hung_up(process, STAYS)
    assert set(send(process.port, 20, path)) == {200}
    file.write_text(SHOP.replace("source: shop", "source: other"), encoding="utf-8")
    before = process.workers()
    os.kill(process.pid, signal.SIGHUP)
    comes(process, lambda: known(process, "/webhooks/other/all"))
    comes(process, lambda: replaced(process, before))


def a_hangup_while_the_stores_connection_is_wrong(process: Process, told: Told) -> None:
    """Those who store go on; once it is right, they are replaced."""
    path = "/webhooks/shop/connection"
    ready(process)
    before = process.workers()
    told.tell(port=free_port())
    hung_up(process, STAYS)
    assert process.workers() == before
    assert set(send(process.port, 20, path)) == {200}
    told.tell()
    hung_up(process, "each worker is replaced")
    comes(process, lambda: replaced(process, before))
    ready(process)
    assert set(send(process.port, 20, path)) == {200}


def the_store_refuses_new_workers(process: Process, dsn: str) -> None:
    """They live, say 503, and store as soon as they may."""
    path = "/webhooks/shop/store"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("alter table extract.inbox rename to inbox_gone")
        killed(process)
        answer, until, body = None, time.monotonic() + 60, next(deliveries(1, path))
        head, _, content = body.request.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        while answer is None:
            assert time.monotonic() < until, process.told()
            try:
                answer = requests.post(process.url + path, data=content, headers=headers, timeout=20)
            except requests.RequestException:
                time.sleep(0.05)
        assert answer.status_code == 503
        assert requests.get(f"{process.url}/health", timeout=5).ok
        conn.execute("alter table extract.inbox_gone rename to inbox")
    ready(process)
    assert set(send(process.port, 5, path)) == {200}
    eventually(process, {"extract_webhook_store_up": 1})


# --- a hangup while something is wrong


def test_a_hangup_with_a_wrong_kafka_connection(tmp_path: Path) -> None:
    """A promise that is not kept, and a setting that only librdkafka refuses: all goes on as it was, and whoever
    replaces a worker later does not know it either."""
    process = Process(tmp_path, "host=x", "--workers", "2", "--keep", "kafka")
    extra = {"bootstrap.servers": f"127.0.0.1:{free_port()}"}
    process.environment["AIRFLOW_CONN_EXTRACT_STORE"] = json.dumps({"conn_type": "kafka", "extra": extra})
    told = Told(process, tmp_path / "held.json", "kafka_default")
    try:
        process.start()
        for wrong in ({"acks": "1"}, {"security.protocol": "nonsense"}):
            comes(process, lambda: alive(process, 2))
            before = process.workers()
            told.tell(extra={**extra, **wrong})
            hung_up(process, STAYS)
            assert process.workers() == before, wrong
            killed(process)
            comes(process, lambda: alive(process, 2))
    finally:
        process.kill()


class Knowing:
    """What workers know."""

    def __init__(self) -> None:
        self.known = "old"

    def read_anew(self) -> str:
        """Read it."""
        return "new"

    def know(self, read: str) -> None:
        """Let them know it."""
        self.known = read

    def put_back(self) -> None:
        """Let them know what they knew."""
        self.known = "old"


def test_what_one_worker_cannot_begin_with_is_undone_for_all() -> None:
    """The first one was replaced already: it is replaced again, by one that knows what the others do."""
    knowing = Knowing()

    class Worker:
        """One that begins, or not; it is no process."""

        begun: ClassVar[list[Worker]] = []

        def __init__(self, config: Any, sockets: Any) -> None:
            self.knows, self.ended = knowing.known, False
            self.process = SimpleNamespace(is_alive=lambda: not self.ended)
            self.begun.append(self)

        def start(self) -> None:
            """Nothing to do."""

        def wait_until_ready(self, timeout: float, ended: threading.Event) -> bool:
            """The second new one does not begin."""
            if begins := sum(each.knows == "new" for each in self.begun) < 2 or self.knows == "old":
                return begins
            self.terminate()
            return False

        def terminate(self) -> None:
            """It ends."""
            self.ended = True

        kill = terminate

        def join(self) -> None:
            """It has ended."""
            assert self.ended

    class Parent(workers._Parent[str]):
        def __init__(self) -> None:
            self.config = SimpleNamespace(timeout_worker_healthcheck=1, timeout_graceful_shutdown=1)  # type: ignore[assignment]
            self.sockets, self.should_exit, self.signal_queue = [], threading.Event(), []
            self.processes = [Worker(None, None) for _ in range(3)]  # type: ignore[misc]
            self._knowing, self._reading, self._leaving = knowing, None, []

    parent = Parent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_Worker", Worker)
        parent.handle_hup()
        while parent._reading is not None:
            parent._take_over()
    there: list[Any] = [*parent.processes]
    assert [(each.knows, each.ended) for each in there] == [("old", False)] * 3
    assert all(each.ended for each in Worker.begun if each not in there)


def test_a_hangup_while_a_secrets_backend_hangs(dsn: str, tmp_path: Path) -> None:
    """Whoever dies meanwhile is replaced, by one that knows what was known; and all end when they are told to."""
    (tmp_path / "slow_secrets.py").write_text(BACKEND, encoding="utf-8")
    process = Process(tmp_path, dsn, "--workers", "2")
    process.environment |= {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "AIRFLOW__SECRETS__BACKEND": "slow_secrets.Slow",
        "ASKED": str(tmp_path / "asked"),
        "HANGS": str(tmp_path / "hangs"),
    }
    with process:
        ready(process)
        before = process.workers()
        (tmp_path / "hangs").touch()
        hung_up(process, "is waited for: its secrets backend does not answer")
        for each in before:
            os.kill(each, signal.SIGKILL)
        # He who reads is one of the three.
        comes(process, lambda: len(process.workers()) == 3 and not set(before) & set(process.workers()))
        ready(process)
        assert set(send(process.port, 5)) == {200}
        os.kill(process.pid, signal.SIGTERM)
        assert process.ended() == 0
        assert "The receiver has stopped." in process.told()


# --- a store that hangs


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that may be restarted."""
    tmp_path.chmod(0o755)
    with EmbeddedPostgres(tmp_path / "server") as server:
        yield server


def counted(dsn: str, count: int) -> bool:
    """Whether the table has so many: who has written them has a connection for it open."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute("select coalesce(sum(count), 0) from extract.inbox_count").fetchone() == (count,)


def ends_in_order(process: Process, signalled: signal.Signals, folder: Path) -> None:
    """On the signal its code is 0, and it leaves nothing behind in the folder for what is temporary."""
    assert len([*folder.glob("airflow-extract-receiver-*")]) == 1
    os.kill(process.pid, signalled)
    assert process.ended() == 0
    assert "The receiver has stopped." in process.told()
    assert [*folder.glob("airflow-extract-receiver-*")] == []


def test_a_secrets_backend_that_hangs(own: EmbeddedPostgres, tmp_path: Path) -> None:
    """The store is found again where it was; who is idle asks for it no more than once in a while. One worker ends in
    order all the same."""
    dsn = own.create_database("books")
    migrate(connecting(dsn), [])
    asked, hangs = tmp_path / "asked", tmp_path / "hangs"
    (tmp_path / "slow_secrets.py").write_text(BACKEND, encoding="utf-8")
    (tmp_path / "tmp").mkdir()
    process = Process(tmp_path, dsn, "--workers", "1")
    process.environment |= {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "AIRFLOW__SECRETS__BACKEND": "slow_secrets.Slow",
        "ASKED": str(asked),
        "HANGS": str(hangs),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    with process:
        assert set(send(process.port, 5)) == {200}
        eventually(process, {"extract_webhook_store_up": 1})
        comes(process, lambda: counted(dsn, 5))
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
        ends_in_order(process, signal.SIGHUP, tmp_path / "tmp")


def test_a_stop_while_postgres_hangs(own: EmbeddedPostgres, tmp_path: Path) -> None:
    """It ends, though the counts cannot be written: in the midst of that, or as its last one."""
    dsn = own.create_database("books")
    migrate(connecting(dsn), [])
    with Process(tmp_path, dsn, "--workers", "2") as process:
        assert set(send(process.port, 20)) == {200}
        comes(process, lambda: counted(dsn, 20))
        for _ in range(10):
            assert requests.post(process.url + PATH, data=b"{}", timeout=5).status_code == 401
        with stopped(own):
            assert process.stop() == 0


def test_a_store_that_hangs_or_is_locked_is_waited_for(dsn: str, tmp_path: Path) -> None:
    """Two receivers, since it takes long: the store of one takes connections, and says nothing; it listens all the
    same. Somebody changes the other's table when it starts. That one has one worker, and ends in order."""
    for each in ("silent", "locked", "tmp"):
        (tmp_path / each).mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server, psycopg.connect(dsn) as conn:
        address = f"host=127.0.0.1 port={server.getsockname()[1]} user=x dbname=x"
        silent = Process(tmp_path / "silent", address, "--workers", "2")
        locked = Process(tmp_path / "locked", dsn, "--workers", "1")
        locked.environment["TMPDIR"] = str(tmp_path / "tmp")
        conn.execute("lock table extract.inbox")
        try:
            silent.start()
            locked.start()
            comes(locked, lambda: "Webhooks are refused until it is there" in locked.told())
            conn.rollback()
            locked.wait()
            assert set(send(locked.port, 5)) == {200}
            ends_in_order(locked, signal.SIGINT, tmp_path / "tmp")
            comes(silent, lambda: alive(silent, 2))
            assert requests.get(f"{silent.url}/ready", timeout=5).status_code == 503
            assert "Postgres does not answer. Webhooks are refused until it is there" in silent.told()
        finally:
            silent.kill()
            locked.kill()
