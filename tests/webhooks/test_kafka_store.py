"""Between Kafka and a store that hangs, loses its standby, or allows too little: a real server that is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from airflow.cli import cli_parser
from confluent_kafka import Producer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_extract_provider.extract.errors import StoreRightsError
from airflow_extract_provider.extract.store import dead
from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.grants import from_kafka_grants, receiver_grants
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.webhooks import kafka_store
from airflow_extract_provider.extract.webhooks.kafka_inbox import Consumed, consume
from tests.broker import Broker
from tests.databases import lone_server
from tests.webhooks.kafka_stage import Consuming, lag, put_all, rows, some

COUNT = "select count(*) from extract.inbox"
BACKENDS = """select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"""
WAITING = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.fixture
def own_dsn() -> Iterator[str]:
    """The books on a server of their own, whose settings may be changed."""
    with lone_server() as server:
        dsn = server.create_database("books")
        migrate(connecting(dsn), [])
        yield dsn


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """A role with no rights, on the database of the test."""
    name = f"from_kafka_of_{conninfo_to_dict(dsn)['dbname']}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        yield name
        conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


@contextmanager
def _standby_down(conn: Connection) -> Iterator[None]:
    """Within: each commit waits for a standby that is not there."""
    conn.execute("alter system set synchronous_standby_names = 'standby_that_is_down'")
    conn.execute("select pg_reload_conf()")
    time.sleep(1.0)
    try:
        yield
    finally:
        conn.execute("alter system reset synchronous_standby_names")
        conn.execute("select pg_reload_conf()")


def _ready(consuming: Consuming, dsn: str) -> int:
    """Wait until it has stored one; the process of the server that serves it."""
    put_all(consuming.broker.config, consuming.topic, some(1))
    consuming.until(lambda: rows(dsn, COUNT) == [(1,)])
    consuming.until(lambda: lag(consuming.broker, consuming.topic, consuming.group) == 0)
    return _backend(consuming, dsn)


def _backend(consuming: Consuming, dsn: str) -> int:
    """The process of the server that serves it. Those that have told of it before may still be ending."""
    found: list[tuple[int]] = []

    def alone() -> bool:
        found[:] = rows(dsn, BACKENDS)
        return len(found) == 1

    consuming.until(alone)
    ((pid,),) = found
    return pid


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_what_no_standby_has_is_not_committed(
    broker: Broker, topic: str, consuming: Consuming, own_dsn: str, caplog: pytest.LogCaptureFixture, known: bool
) -> None:
    """Somebody ends the wait for it, and all that tells of it is a warning: nothing is committed in Kafka before a
    standby has it, though the next try finds it there. It is counted once."""
    consuming.connect = connecting(own_dsn)
    sent = some(1, dedupe=known)
    consuming.begin()
    _ready(consuming, own_dsn)
    with psycopg.connect(own_dsn, autocommit=True) as conn:
        with _standby_down(conn):
            put_all(broker.config, topic, sent)
            for _ in range(2):
                consuming.until(lambda: conn.execute(WAITING).fetchone() == (1,))
                conn.execute("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
                time.sleep(1)
            assert "the store is away: Postgres does not answer in time, or a synchronous standby" in caplog.text
            assert rows(own_dsn, COUNT) == [(2,)]
            assert lag(broker, topic, consuming.group) == 1
        consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
    assert consuming.end() == [Consumed(read=2, stored=2)]
    assert rows(own_dsn, "select kind, count from extract.inbox_count") == [("received", 2)]


def test_a_server_that_hangs_is_given_up(
    broker: Broker, topic: str, consuming: Consuming, own_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process is stopped, the connection stays open: it is said, and the next one goes by another connection."""
    consuming.connect = connecting(own_dsn)
    consuming.deadline = 1.0
    consuming.begin()
    pid = _ready(consuming, own_dsn)
    os.kill(pid, signal.SIGSTOP)
    try:
        put_all(broker.config, topic, some(10))
        consuming.until(lambda: rows(own_dsn, COUNT) == [(11,)])
        assert "the store is away: Postgres does not answer in time" in caplog.text
        consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert consuming.end() == [Consumed(read=11, stored=11)]


def test_a_stop_does_not_wait_for_a_server_that_hangs(
    broker: Broker, topic: str, consuming: Consuming, own_dsn: str
) -> None:
    """Though the deadline is far; what was read is read again."""
    consuming.connect = connecting(own_dsn)
    consuming.begin()
    pid = _ready(consuming, own_dsn)
    os.kill(pid, signal.SIGSTOP)
    try:
        put_all(broker.config, topic, some(1))
        time.sleep(1)
        begun = time.monotonic()
        assert consuming.end() == [Consumed(read=1, stored=1)]
        assert time.monotonic() - begun < 25
    finally:
        os.kill(pid, signal.SIGCONT)
    assert lag(broker, topic, consuming.group) == 1


def test_a_table_that_stays_locked(
    broker: Broker, topic: str, consuming: Consuming, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait for it is given up on the server too, and tried again."""
    consuming.deadline = 1.0
    consuming.begin()
    _ready(consuming, dsn)
    with psycopg.connect(dsn) as conn:
        conn.execute("lock table extract.inbox in access exclusive mode")
        put_all(broker.config, topic, some(3))
        consuming.until(lambda: "the store is away: Postgres does not answer in time" in caplog.text)
        waiting = "select count(*) from pg_locks where relation = 'extract.inbox'::regclass and not granted"
        assert rows(dsn, waiting)[0][0] <= 1
        conn.rollback()
    consuming.until(lambda: rows(dsn, COUNT) == [(4,)])
    assert [each.stored for each in consuming.end()] == [4]


def test_a_lost_connection_is_found_while_nothing_comes(
    topic: str, consuming: Consuming, dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next webhook is not the one that finds it."""
    monkeypatch.setattr(kafka_store, "_LOOK_EVERY", 0.2)
    consuming.begin()
    pid = _ready(consuming, dsn)
    rows(dsn, f"select pg_terminate_backend({pid})")
    consuming.until(lambda: "the store is away" in caplog.text)
    consuming.until(lambda: "stored again" in caplog.text)
    assert _backend(consuming, dsn) != pid


def test_an_opening_that_hangs_is_given_up(
    broker: Broker, topic: str, consuming: Consuming, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As before a pooler that waits for its server: it is tried again, and what comes too late is closed."""
    opened: list[Connection] = []

    def connect() -> Connection:
        opened.append(found := connecting(dsn)())
        if len(opened) == 1:
            time.sleep(4)
        return found

    consuming.connect = connect
    consuming.deadline = 1.0
    consuming.begin()
    put_all(broker.config, topic, some(1))
    consuming.until(lambda: rows(dsn, COUNT) == [(1,)])
    assert "the store is away: Postgres does not answer" in caplog.text
    consuming.until(lambda: opened[0].closed)
    assert [each.stored for each in consuming.end()] == [1]


def test_the_rights_that_are_printed_are_enough(
    broker: Broker, topic: str, consuming: Consuming, dsn: str, conn: Connection, role: str
) -> None:
    """To store, to count, and to bury what nobody can read; to read nothing of what came."""
    conn.execute(from_kafka_grants(role).encode())
    theirs = make_conninfo(dsn, user=role)
    consuming.connect = connecting(theirs)
    put_all(broker.config, topic, some(2, dedupe=True))
    producer = Producer(broker.config)
    producer.produce(topic, value=b"foreign")
    assert producer.flush(30) == 0
    assert consuming.all_of(3, dsn) == Consumed(read=3, stored=2, unreadable=1)
    assert len(dead.dead(conn, "extract")) == 1
    with psycopg.connect(theirs, autocommit=True) as their:
        for statement in (
            "select body from extract.inbox",
            "select headers from extract.inbox",
            "update extract.inbox set body = ''",
            "delete from extract.inbox",
            "select from extract.inbox_parked",
            "delete from extract.inbox_count",
            "select from extract.oauth_token",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                their.execute(statement.encode())


def test_a_right_that_is_missing_is_named_at_the_start(
    broker: Broker, topic: str, dsn: str, conn: Connection, role: str
) -> None:
    """Not by the first message that nobody can read, which would be in the way of all others."""
    conn.execute(receiver_grants(role).encode())
    with pytest.raises(StoreRightsError, match="permission denied for table inbox"):
        consume(broker.config, topic, connecting(make_conninfo(dsn, user=role)), "extract")


def _printed(*words: str) -> None:
    args = cli_parser.get_parser().parse_args(["extract", "grants", *words])
    args.func(args)


def test_the_command_prints_the_rights(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one kind of role at a time."""
    _printed("reader", "--from-kafka")
    assert capsys.readouterr().out == from_kafka_grants("reader")
    with pytest.raises(SystemExit) as ended:
        _printed("reader", "--from-kafka", "--receiver")
    assert ended.value.code == 1
