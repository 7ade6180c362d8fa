"""The commands `airflow-extract receiver --keep kafka` and `from-kafka`, as processes: from the vendor to the inbox."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from airflow.sdk import Connection
from psycopg.conninfo import make_conninfo

from airflow_extract_provider.extract.errors import ConnectionMissingError
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.receiver.reopening import reopening
from airflow_extract_provider.testing.postgres import EmbeddedPostgres
from tests.broker import Broker
from tests.databases import lone_server, stopped
from tests.webhooks.kafka_stage import Consuming, lag, put_all, rows, some
from tests.webhooks.receiving import Process, Sender, connection, deliveries
from tests.webhooks.test_going_on import BACKEND

NO_STORE = "host=127.0.0.1 port=1 user=nobody dbname=nowhere"


def _connection(broker: Broker, **config: str) -> str:
    return json.dumps({"conn_type": "kafka", "extra": json.dumps({**broker.config, **config})})


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that may be stopped, and whose logins may be changed."""
    with lone_server() as server:
        yield server


@pytest.fixture
def own_dsn(own_server: EmbeddedPostgres) -> str:
    """The books, on it."""
    dsn = own_server.create_database("books")
    migrate(connecting(dsn), [])
    return dsn


@contextmanager
def _command(
    broker: Broker,
    topic: str,
    store: str | Path,
    *arguments: str,
    config: Mapping[str, str] = {},
    variables: Mapping[str, str] = {},
) -> Iterator[subprocess.Popen[str]]:
    """The command, beside no Airflow; what leads to the store is in its environment, or in a file of secrets."""
    environment = {**os.environ, "AIRFLOW_CONN_KAFKA_DEFAULT": _connection(broker, **config), **variables}
    if isinstance(store, str):
        environment["AIRFLOW_CONN_EXTRACT_STORE"] = connection(store)
    else:
        backend = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
        environment["AIRFLOW__SECRETS__BACKEND"] = backend
        environment["AIRFLOW__SECRETS__BACKEND_KWARGS"] = json.dumps({"connections_file_path": str(store)})
    with subprocess.Popen(
        [sys.executable, "-m", "airflow_extract_provider.receiver.main", "from-kafka", "--topic", topic, *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_the_command(broker: Broker, topic: str, consuming: Consuming, dsn: str) -> None:
    """It reads as the group that is named, and ends in good order when it is told to: all is committed."""
    put_all(broker.config, topic, some(30))
    with _command(broker, topic, dsn, "--group", consuming.group) as started:
        consuming.until(lambda: rows(dsn, "select count(*) from extract.inbox") == [(30,)])
        started.terminate()
        out, err = started.communicate(timeout=60)
    assert started.returncode == 0, err
    assert out.splitlines()[-1] == "Stopped: 30 read, 30 stored, 0 known already, 0 unreadable, 0 lost."
    assert lag(broker, topic, consuming.group) == 0


def test_the_command_says_what_is_wrong(broker: Broker, dsn: str) -> None:
    """In a few lines, with code 1."""
    with _command(broker, "no-such-topic", dsn) as started:
        _, err = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "SinkRefusedError: the topic `no-such-topic` does not exist" in err
    assert "Traceback" not in err


def test_a_secrets_backend_that_hangs_is_told_of(broker: Broker, dsn: str, tmp_path: Path) -> None:
    """Whoever starts it would see nothing, and wait with it; a stop ends it all the same."""
    (tmp_path / "slow_secrets.py").write_text(BACKEND, encoding="utf-8")
    (tmp_path / "hangs").touch()
    environment = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "AIRFLOW__SECRETS__BACKEND": "slow_secrets.Slow",
        "ASKED": str(tmp_path / "asked"),
        "HANGS": str(tmp_path / "hangs"),
    }
    with _command(broker, "a-topic", dsn, variables=environment) as started:
        assert started.stderr is not None
        said = next(line for line in started.stderr if "is waited for" in line)
        started.terminate()
        assert started.wait(30) in (0, -signal.SIGTERM)
    assert "the connection 'extract_store' is waited for: its secrets backend does not answer." in said


def test_a_stop_ends_in_time_whatever_hangs(
    broker: Broker, topic: str, consuming: Consuming, own_server: EmbeddedPostgres, own_dsn: str
) -> None:
    """All of Postgres is stopped, while it writes and before: the command ends in good order within some seconds."""
    put_all(broker.config, topic, some(1))
    with _command(broker, topic, own_dsn, "--group", consuming.group) as started:
        consuming.until(lambda: rows(own_dsn, "select count(*) from extract.inbox") == [(1,)])
        with stopped(own_server):
            put_all(broker.config, topic, some(1))
            time.sleep(2)
            begun = time.monotonic()
            started.terminate()
            out, err = started.communicate(timeout=60)
            assert time.monotonic() - begun < 30
    assert started.returncode == 0, err
    assert "the store is away: Postgres does not answer" in err
    assert out.splitlines()[-1].startswith("Stopped: 1 read, 1 stored")


def test_a_password_that_is_changed(
    broker: Broker, topic: str, consuming: Consuming, own_server: EmbeddedPostgres, own_dsn: str, tmp_path: Path
) -> None:
    """The log says that the login is refused; as soon as the secrets backend has the new one, all goes on."""
    secrets, told = tmp_path / "secrets.json", list[str]()

    def know(password: str) -> None:
        dsn = make_conninfo(own_dsn, user="reader", password=password)
        secrets.write_text(json.dumps({"extract_store": json.loads(connection(dsn))}), encoding="utf-8")

    with psycopg.connect(own_dsn, autocommit=True) as conn:
        conn.execute("create role reader login superuser password 'the-old-one'")
        row = conn.execute("select setting from pg_settings where name = 'hba_file'").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text("host all reader 127.0.0.1/32 scram-sha-256\n" + rules.read_text(), encoding="utf-8")
        conn.execute("select pg_reload_conf()")
        know("the-old-one")
        with _command(broker, topic, secrets, "--group", consuming.group) as started:
            assert started.stderr is not None
            reading = threading.Thread(target=told.extend, args=(started.stderr,))
            reading.start()
            put_all(broker.config, topic, some(1))
            consuming.until(lambda: rows(own_dsn, "select count(*) from extract.inbox") == [(1,)])
            conn.execute("alter role reader password 'the-new-one'")
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'reader'")
            consuming.until(lambda: any("password authentication failed" in each for each in told))
            know("the-new-one")
            put_all(broker.config, topic, some(1))
            consuming.until(lambda: rows(own_dsn, "select count(*) from extract.inbox") == [(2,)])
            started.terminate()
            assert started.wait(60) == 0
            reading.join()
    assert not any("the-old-one" in each or "the-new-one" in each for each in told)


def test_where_the_store_is_now(dsn: str) -> None:
    """Asked at each opening; where that fails, or lasts, it is where it was last. What a firewall cuts is found by the
    kernel, unless the connection says otherwise."""
    known = json.loads(connection(dsn))
    asked, ended = list[str](), threading.Event()

    def find() -> Connection:
        asked.append("")
        if len(asked) == 2:
            raise ConnectionMissingError("the connection cannot be read.")
        if len(asked) == 4:
            ended.wait(60)
        extra = json.dumps({"keepalives_idle": 7} if len(asked) == 3 else {})
        return Connection(
            conn_id="extract_store",
            conn_type="postgres",
            host=known["host"],
            login=known["login"],
            schema=known["schema"],
            port=known["port"],
            extra=extra,
        )

    connect, found = reopening("extract_store", find), []
    try:
        for _ in range(4):
            with connect() as conn:
                found.append(conn.info.get_parameters())
    finally:
        ended.set()
    assert [each.get("keepalives_idle") for each in found] == ["10", "7", "7", "7"]
    assert {each.get("tcp_user_timeout") for each in found} == {"20000"}


def _answered(consuming: Consuming, sender: Sender, least: int) -> None:
    consuming.until(lambda: sum(each.good for each in sender.attempts) >= least)


@pytest.mark.slow
def test_from_the_vendor_to_the_inbox(
    broker: Broker, topic: str, consuming: Consuming, dsn: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """Signed webhooks while receivers and readers are killed, and the receiver has no Postgres at all:
    what was answered 2xx is in the inbox, to the byte and once."""
    receiver = Process(tmp_path, NO_STORE, "--workers", "2", "--keep", "kafka", "--topic", topic)
    receiver.environment["AIRFLOW_CONN_KAFKA_DEFAULT"] = _connection(broker)
    all = list(deliveries(2_100))
    # With a name of its own in the group, one that begins anew need not wait until its dead one is missed.
    member = {"group.instance.id": "one"}
    reading = partial(_command, broker, topic, dsn, "--group", consuming.group, config=member)
    with receiver, ThreadPoolExecutor(1) as thread:
        sender = Sender(receiver.port, pause=0.5)
        for number in range(3):
            portion = all[number * 700 : (number + 1) * 700]
            with reading() as reader:
                delivering = thread.submit(asyncio.run, sender.delivered(portion, 50))
                _answered(consuming, sender, 200 + 700 * number)
                if number < 2:
                    receiver.kill()
                    receiver.start()
                    reader.kill()
                delivering.result()
    with reading() as reader:
        # All may be committed before it has begun: then a signal would just end it.
        assert reader.stderr is not None
        assert any("webhooks go from" in line for line in reader.stderr)
        consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(60) == 0
    assert sorted(body for (body,) in rows(dsn)) == sorted(each.body for each in all)
    again = sum(not each.good for each in sender.attempts)
    measured(f"webhooks through Kafka: {len(all):,} answered 2xx are in the inbox, once; {again:,} tries failed")
