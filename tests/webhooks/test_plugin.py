"""The receiver below a path of Airflow's API server: mounted as Airflow does it, only if the configuration says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests
import uvicorn
from fastapi import FastAPI

from airflow_extract_provider.plugin import PREFIX, Mounted
from airflow_extract_provider.testing.postgres import free_port
from tests.webhooks.receiving import SECRET, SHOP, Delivery, connection, deliveries

ON = {"AIRFLOW__EXTRACT__RECEIVER_IN_API_SERVER": "True"}


def loaded(code: str, **environment: str) -> str:
    """What a fresh process of Airflow prints."""
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


@pytest.mark.parametrize(
    ("environment", "prefixes"),
    [({}, []), (ON, [PREFIX]), ({"AIRFLOW__EXTRACT__RECEIVER_IN_API_SERVER": "perhaps"}, [])],
)
def test_only_if_it_is_wanted(environment: dict[str, str], prefixes: list[str]) -> None:
    """By Airflow's own plugin manager, which finds the plugin by its entry point; a wrong value keeps nothing from
    starting. Whoever loads it gets neither a web framework nor the engine of webhooks along."""
    code = (
        "import json, sys; from airflow import plugins_manager as m;"
        "import airflow_extract_provider.plugin as p;"
        "ones = ('airflow_extract_provider.receiver.app', 'prometheus_client', 'uvicorn');"
        "heavy = [n for n in ones if n in sys.modules];"
        "ours = [a for a in p.ExtractPlugin.fastapi_apps];"
        "print(json.dumps([[a['url_prefix'] for a in ours], heavy]))"
    )
    found, heavy = json.loads(loaded(code, **environment).splitlines()[-1])
    assert found == prefixes
    assert heavy == []


def test_airflow_mounts_it() -> None:
    """Found by its entry point, and under its own path."""
    code = (
        "import json; from airflow import plugins_manager as m;"
        "apps, _ = m.get_fastapi_plugins(); print(json.dumps([a['url_prefix'] for a in apps]))"
    )
    assert PREFIX in json.loads(loaded(code, **ON).splitlines()[-1])


@pytest.fixture
def client(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application as Airflow mounts it, with connections in the environment."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "shop.yaml").write_text(SHOP, encoding="utf-8")
    monkeypatch.setenv("EXTRACT_SOURCES", str(tmp_path / "sources"))
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", connection(dsn))
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_WEBHOOKS", json.dumps({"conn_type": "webhook", "password": SECRET}))
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    app = FastAPI()
    app.mount(PREFIX, Mounted())
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def post(client: str, delivery: Delivery, path: str = f"{PREFIX}/webhooks/shop/all") -> int:
    """The status of a webhook."""
    head, _, body = delivery.request.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return requests.post(client + path, data=body, headers=headers, timeout=30).status_code


def test_webhooks_are_stored(client: str, dsn: str) -> None:
    """Below its path, and nowhere else; health, readiness and metrics are there too."""
    first, second = deliveries(2)
    assert post(client, first) == 200
    assert post(client, second) == 200
    assert post(client, first) == 200
    assert post(client, first, "/webhooks/shop/all") == 404
    assert post(client, first, f"{PREFIX}/webhooks/shop/none") == 404
    forged = first.request.replace(b"sha256=", b"sha256=0", 1)
    assert post(client, Delivery(first.id, first.body, forged)) == 401
    assert requests.get(f"{client}{PREFIX}/health", timeout=9).text == "alive\n"
    assert requests.get(f"{client}{PREFIX}/ready", timeout=9).text == "ready\n"
    assert 'outcome="stored",source="shop"} 2.0' in requests.get(f"{client}{PREFIX}/metrics", timeout=9).text
    with psycopg.connect(dsn) as conn:
        stored = conn.execute("select body from extract.inbox order by place").fetchall()
    assert [bytes(body) for (body,) in stored] == [first.body, second.body]


def test_what_is_missing_is_tried_again(
    client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503 and a named error as long as it cannot begin; once it can, it does."""
    monkeypatch.delenv("AIRFLOW_CONN_SHOP_WEBHOOKS")
    (delivery,) = deliveries(1)
    assert post(client, delivery) == 503
    assert "ConnectionMissingError" in caplog.text
    assert SECRET not in caplog.text
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_WEBHOOKS", json.dumps({"conn_type": "webhook", "password": SECRET}))
    until = time.monotonic() + 60
    while (status := post(client, delivery)) == 503 and time.monotonic() < until:
        time.sleep(0.1)
    assert status == 200
