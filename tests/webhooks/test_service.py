"""`airflow-extract receiver` as a process: what it says before it listens, its addresses, its numbers, its workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from psycopg import sql

from airflow_extract_provider.extract.store.grants import receiver_grants
from airflow_extract_provider.receiver import main, receive
from airflow_extract_provider.testing.postgres import free_port
from tests.webhooks.receiving import PATH, SECRET, SHOP, Process, Sender, connection, deliveries

pytestmark = pytest.mark.slow

OTHER = SHOP.replace("source: shop", "source: other").replace("verify: github", "verify: {scheme: github}")


@pytest.fixture
def receiver(dsn: str, tmp_path: Path) -> Iterator[Process]:
    """Two workers."""
    with Process(tmp_path, dsn, "--workers", "2", "--secrets-every", "1") as started:
        yield started


def send(port: int, count: int, path: str = PATH) -> list[int | None]:
    """The statuses of so many genuine webhooks."""

    async def work() -> list[int | None]:
        sender = Sender(port)
        async with sender.sending(8):
            await sender.deliver(list(deliveries(count, path)))
        return [each.status for each in sender.attempts]

    return asyncio.run(work())


def metrics(receiver: Process) -> dict[str, float]:
    """The numbers, by their names with labels."""
    text = requests.get(f"{receiver.url}/metrics", timeout=5).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def eventually(receiver: Process, numbers: Mapping[str, float]) -> None:
    """Return when the numbers have these values, all at once and whichever worker is asked."""
    until, same = time.monotonic() + 60, 0
    while same < 8:
        told = metrics(receiver)
        found = {name: told.get(name) for name in numbers}
        same = same + 1 if found == numbers else 0
        assert time.monotonic() < until, (numbers, found, receiver.told())
        time.sleep(0.1)


def outcomes(endpoint: str = "all", **counts: float) -> dict[str, float]:
    """The numbers that tell how often each outcome came at an endpoint of the shop."""
    labels = f'endpoint="{endpoint}",outcome="{{}}",source="shop"'
    return {f"extract_webhooks_total{{{labels.format(name)}}}": count for name, count in counts.items()}


def test_webhooks_are_stored_and_counted(receiver: Process, dsn: str) -> None:
    """In the inbox, in the metrics of all workers together, and in the table; a second try is no second one. The log
    shows no secret, nor what came."""
    assert set(send(receiver.port, 300)) == {200}
    assert set(send(receiver.port, 300)) == {200}
    refused = requests.post(receiver.url + PATH, data=b"{}", headers={"X-Hub-Signature-256": "sha256=00"}, timeout=5)
    assert (refused.status_code, refused.content) == (401, b"")
    assert "server" not in refused.headers
    counted = {
        'extract_webhook_seconds_count{endpoint="all",source="shop"}': 601,
        "extract_webhook_deliveries_total": 600,
        "extract_webhook_workers": 2,
        "extract_webhook_store_up": 1,
        "extract_webhook_bytes_total": 2 * sum(len(each.body) for each in deliveries(300)),
    }
    eventually(receiver, {**outcomes(stored=300, duplicate=300, forged=1), **counted})
    assert receiver.stop() == 0
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select count(*) from extract.inbox").fetchone() == (300,)
        rows = conn.execute("select source, endpoint, kind, count from extract.inbox_count order by kind").fetchall()
    assert rows == [
        ("shop", "all", "duplicate", 300),
        ("shop", "all", "forged", 1),
        ("shop", "all", "received", 300),
    ]
    told = receiver.told()
    assert "listening on 127.0.0.1" in told
    assert SECRET not in told
    assert PATH not in told


def test_its_addresses_and_what_a_hangup_adds(receiver: Process, dsn: str, tmp_path: Path) -> None:
    """Health, readiness, metrics; nothing else but endpoints. On a hangup the files are read anew, worker by worker,
    so that one of them always receives."""
    assert requests.get(f"{receiver.url}/health", timeout=5).text == "alive\n"
    assert requests.get(f"{receiver.url}/ready", timeout=5).text == "ready\n"
    assert requests.get(f"{receiver.url}/metrics", timeout=5).headers["content-type"].startswith("text/plain")
    assert requests.get(f"{receiver.url}/", timeout=5).status_code == 404
    assert requests.post(f"{receiver.url}/webhooks/shop/none", timeout=5).status_code == 404
    assert requests.post(f"{receiver.url}/health", timeout=5).status_code == 405
    assert requests.post(f"{receiver.url}/webhooks/other/all", timeout=5).status_code == 404
    before = receiver.workers()
    (tmp_path / "sources" / "other.yaml").write_text(OTHER, encoding="utf-8")
    os.kill(receiver.pid, signal.SIGHUP)
    statuses: set[int] = set()
    until = time.monotonic() + 60
    while set(before) & set(receiver.workers()) or len(receiver.workers()) != 2:
        with contextlib.suppress(requests.ConnectionError):  # one that was opened as its worker ended
            statuses.add(requests.get(f"{receiver.url}/health", timeout=30).status_code)
        assert time.monotonic() < until, receiver.told()
    assert statuses == {200}
    found = metrics(receiver)
    assert found["extract_webhook_store_up"] == 1, "of those that have ended nothing is expected"
    assert (found["extract_webhook_workers"], found["extract_webhook_workers_died_total"]) == (2, 0)
    assert set(send(receiver.port, 20, "/webhooks/other/all")) == {200}
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select count(*) from extract.inbox where source = 'other'").fetchone() == (20,)


# --- what is said before it listens


def asked(tmp_path: Path, *options: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a receiver that must not begin to listen."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")}
    return ["receiver", "--port", str(free_port()), *options], {
        **clean,
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        **environment,
    }


class Forking:
    """A process that has imported the command once, which takes seconds; each time it is asked for, the command runs
    in a child of its own, as workers are made."""

    def __init__(self, folder: Path) -> None:
        self._said = folder / "said"
        _, environment = asked(folder)
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
        """Exit code and messages of a run; one that does not end is ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, environment, str(self._said)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), self._said.read_text(encoding="utf-8")

    def end(self) -> None:
        """It ends with its input."""
        self._process.communicate(timeout=60)


FORKING = """
import json, os, signal, sys
from airflow_extract_provider.receiver import main, serving

for line in sys.stdin:
    arguments, environment, said = json.loads(line)
    if not (child := os.fork()):
        os.environ.clear()
        os.environ.update(environment)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.alarm(120)
        main.main(arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forking]:
    """Runs the command."""
    made = Forking(tmp_path_factory.mktemp("forking"))
    yield made
    made.end()


@pytest.fixture
def told(dsn: str, tmp_path: Path) -> dict[str, str]:
    """The environment and the source file that would do."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "shop.yaml").write_text(SHOP, encoding="utf-8")
    secret = json.dumps({"conn_type": "webhook", "password": SECRET})
    return {"AIRFLOW_CONN_EXTRACT_STORE": connection(dsn), "AIRFLOW_CONN_SHOP_WEBHOOKS": secret}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": "nowhere"}, "SourceError: there is no folder "),
        ({"webhooks": "objects"}, "SourceError: no source in the folder sources has `webhooks`"),
        ({"AIRFLOW_CONN_SHOP_WEBHOOKS": ""}, "ConnectionMissingError: the connection 'shop_webhooks' is not there"),
        ({"AIRFLOW_CONN_SHOP_WEBHOOKS": "webhook://"}, "the Webhook connection 'shop_webhooks' holds no secret"),
        ({"AIRFLOW_CONN_EXTRACT_STORE": ""}, "ConnectionMissingError: the connection 'extract_store' is not there"),
        ({"schema": "none"}, 'SchemaMissingError: Postgres: relation "none.inbox" does not exist'),
        ({"host": "192.0.2.1"}, " (Cannot assign requested address)."),
    ],
)
def test_what_is_missing_is_named(
    forking: Forking, told: dict[str, str], tmp_path: Path, change: dict[str, str], said: str
) -> None:
    """Before anything listens."""
    given = {**told, **{name: value for name, value in change.items() if name.isupper()}}
    if change.get("webhooks"):
        text = SHOP[: SHOP.index("webhooks:")]
        (tmp_path / "sources" / "shop.yaml").write_text(text, encoding="utf-8")
    options = [
        "--sources",
        str(tmp_path / change.get("sources", "sources")),
        "--schema",
        change.get("schema", "extract"),
    ]
    code, words = forking.run(*asked(tmp_path, *options, "--host", change.get("host", "127.0.0.1"), **given))
    assert code == 1
    assert "listening" not in words
    assert said in words
    assert "attempting to bind" not in words
    assert SECRET not in words


def test_rights_that_are_missing_are_named(told: dict[str, str], tmp_path: Path, dsn: str) -> None:
    """The role may look, but not store. It is the command itself that ends."""
    role = f"looker_{free_port()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = sql.Identifier(role)
        conn.execute(sql.SQL("create role {} login").format(name))
        conn.execute(
            sql.SQL("grant usage on schema extract to {}; grant select on extract.inbox to {}").format(name, name)
        )
        given = told | {"AIRFLOW_CONN_EXTRACT_STORE": connection(psycopg.conninfo.make_conninfo(dsn, user=role))}
        arguments, environment = asked(tmp_path, "--sources", str(tmp_path / "sources"), **given)
        command = [sys.executable, "-m", "airflow_extract_provider.receiver.main", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        conn.execute(sql.SQL("drop owned by {}; drop role {}").format(name, name))
    assert done.returncode == 1
    assert "listening" not in done.stderr
    assert "StoreRightsError" in done.stderr


def test_one_connection_is_enough(dsn: str, tmp_path: Path) -> None:
    """A role that may have one: what counts webhooks has it only while it is not needed to store them."""
    role = f"lonely_{free_port()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = sql.Identifier(role)
        conn.execute(sql.SQL("create role {} login connection limit 1").format(name))
        conn.execute(receiver_grants(role))
        try:
            with Process(tmp_path, psycopg.conninfo.make_conninfo(dsn, user=role), "--workers", "1") as receiver:
                assert set(send(receiver.port, 5)) == {200}
                conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [role])
                time.sleep(5.5)  # the counts are written before anybody has seen that
                assert 200 in send(receiver.port, 1)
                eventually(receiver, {"extract_webhook_store_up": 1})
        finally:
            conn.execute(sql.SQL("drop owned by {}; drop role {}").format(name, name))


@pytest.mark.parametrize("port", ["65536", "99999", "9" * 30, "-1", "x"])
def test_a_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No other is taken in its place."""
    with pytest.raises(SystemExit):
        main.main(["receiver", "--sources", "nowhere", f"--port={port}"])
    assert "is no number from 0 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("proxies", ["10.0.0.7/8", "127.0.0.1, gateway", "", "10.0.0.7,", "http://10.0.0.7"])
def test_proxies_that_are_none(proxies: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Else nobody would be trusted, and each signed address be another one."""
    with pytest.raises(SystemExit):
        main.main(["receiver", "--sources", "nowhere", f"--behind-proxy={proxies}"])
    assert "is no address such as 10.0.0.7, no network such as 10.0.0.0/8" in capsys.readouterr().err


@pytest.mark.parametrize("proxies", ["127.0.0.1", "10.0.0.0/8, ::1,fd00::/8", "*"])
def test_proxies(proxies: str) -> None:
    """Addresses and networks of both kinds, or all."""
    parser = ArgumentParser()
    receive.arguments(parser)
    given = parser.parse_args(["--sources", "sources", "--behind-proxy", proxies])
    assert given.behind_proxy == proxies.replace(" ", "")


@pytest.mark.parametrize("command", ["receiver --sources nowhere", "from-kafka"])
def test_an_argument_that_is_not_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown is how to call that command, in which the right name stands."""
    with pytest.raises(SystemExit) as ended:
        main.main([*command.split(), "--shema", "x"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: --shema x" in said
    assert "[--schema SCHEMA]" in said


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to install."""
    for name in [
        each for each in sys.modules if each.startswith(("uvicorn", "airflow_extract_provider.receiver.serv"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main.main(["receiver", "--sources", "nowhere"])
    assert ended.value.code == 1
    assert "pip install 'airflow-extract-provider[receiver]'" in capsys.readouterr().err


def test_a_store_that_is_away_is_waited_for(told: dict[str, str], tmp_path: Path) -> None:
    """It listens, says so, and is not ready."""
    store = json.dumps({"conn_type": "postgres", "host": "127.0.0.1", "port": free_port(), "login": "x"})
    (tmp_path / "other").mkdir()
    process = Process(tmp_path / "other", "host=127.0.0.1 port=1")
    process.environment["AIRFLOW_CONN_EXTRACT_STORE"] = store
    try:
        process.start()
        until, answer = time.monotonic() + 60, None
        while answer is None and time.monotonic() < until:
            try:
                answer = requests.get(f"{process.url}/ready", timeout=60)
            except requests.ConnectionError:
                time.sleep(0.1)
        assert answer is not None
        assert answer.status_code == 503
        assert requests.get(f"{process.url}/health", timeout=5).ok
        body = next(deliveries(1))
        head, _, content = body.request.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        refused = requests.post(process.url + PATH, data=content, headers=headers, timeout=20)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert metrics(process)["extract_webhook_store_up"] == 0
    finally:
        process.kill()
    assert "Webhooks are refused until it is there" in process.told()


def test_the_docs_name_each_argument() -> None:
    """In a table, with its default."""
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")
    wrong: list[Any] = []
    for name, said in receive._ARGUMENTS.items():
        found = re.search(rf"^\| `{name}[^`]*` \|([^|]*)\|", text, flags=re.MULTILINE)
        default = "required" if said.get("required") else f"`{said['default']}`" if "default" in said else ""
        if found is None or found[1].strip() != default:
            wrong.append((name, default, found and found[1]))
    assert wrong == []
