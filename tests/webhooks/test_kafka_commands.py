"""The commands `airflow-extract receiver --keep kafka` and `from-kafka`, as processes: from the vendor to the inbox."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.broker import Broker
from tests.webhooks.kafka_stage import Consuming, lag, put_all, rows, some
from tests.webhooks.receiving import Process, Sender, deliveries

NO_STORE = "host=127.0.0.1 port=1 user=nobody dbname=nowhere"


def _connection(broker: Broker, **config: str) -> str:
    return json.dumps({"conn_type": "kafka", "extra": json.dumps({**broker.config, **config})})


@contextmanager
def _command(broker: Broker, topic: str, dsn: str, *arguments: str, **config: str) -> Iterator[subprocess.Popen[str]]:
    """The command, beside no Airflow."""
    parts = conninfo_to_dict(dsn)
    store = {"conn_type": "postgres", "host": parts["host"], "login": parts["user"], "schema": parts["dbname"]}
    store["port"] = int(str(parts["port"]))
    environment = {
        **os.environ,
        "AIRFLOW_CONN_EXTRACT_STORE": json.dumps(store),
        "AIRFLOW_CONN_KAFKA_DEFAULT": _connection(broker, **config),
    }
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
    reading = partial(_command, broker, topic, dsn, "--group", consuming.group, **{"group.instance.id": "one"})
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
        consuming.until(lambda: lag(broker, topic, consuming.group) == 0)
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(60) == 0
    assert sorted(body for (body,) in rows(dsn)) == sorted(each.body for each in all)
    again = sum(not each.good for each in sender.attempts)
    measured(f"webhooks through Kafka: {len(all):,} answered 2xx are in the inbox, once; {again:,} tries failed")
