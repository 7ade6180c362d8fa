"""localstripe's own webhooks, signed by code that nobody here wrote, are delivered and found in the inbox."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psycopg
import pytest
import requests

from demo.localstripe_server import LocalStripe
from demo.seed import KEY, Stripe
from tests.webhooks.receiving import Process

pytestmark = pytest.mark.slow

SECRET = "whsec_of_localstripe"
SOURCE = """\
source: stripe
connection: stripe
objects:
  customers: {path: /v1/customers, records: data, key: id, pages: {by: last_key, send: starting_after}}
webhooks:
  events: {verify: stripe, secret: stripe_webhooks}
  others: {verify: stripe, secret: other_webhooks}
"""
WANTED = ["customer.created", "customer.updated", "customer.deleted"]


def test_what_it_sends_is_in_the_inbox(dsn: str, tmp_path: Path) -> None:
    """Each event of the types that were asked for; where another secret is expected, nothing."""
    (tmp_path / "receiver").mkdir()
    process = Process(tmp_path / "receiver", dsn, "--workers", "1", sources={"stripe.yaml": SOURCE})
    for name, secret in (("STRIPE", SECRET), ("OTHER", "whsec_another")):
        held = json.dumps({"conn_type": "webhook", "password": secret})
        process.environment[f"AIRFLOW_CONN_{name}_WEBHOOKS"] = held
    with LocalStripe(tmp_path) as stripe, process as receiver:
        for endpoint in ("events", "others"):
            answer = requests.post(
                f"{stripe.url}/_config/webhooks/{endpoint}",
                json={
                    "url": f"{receiver.url}/webhooks/stripe/{endpoint}",
                    "secret": SECRET,
                    "events": WANTED,
                },
                timeout=10,
            )
            assert answer.ok, answer.text
        client = Stripe(stripe.url)
        keys = [client.create("customers", {"name": f"customer {number}"}) for number in range(3)]
        client.change("customers", keys[0], {"name": "Zoé"})
        client.delete("customers", keys[1])
        client.create("products", {"name": "not asked for", "type": "good"})
        told = inbox(dsn, 5)
        receiver.stop()
    assert {(source, endpoint) for source, endpoint, _ in told} == {("stripe", "events")}
    events = [json.loads(body) for _, _, body in told]
    found = sorted((each["type"], each["data"]["object"]["id"]) for each in events)
    assert found == sorted(
        [
            *(("customer.created", key) for key in keys),
            ("customer.updated", keys[0]),
            ("customer.deleted", keys[1]),
        ]
    )
    assert KEY not in receiver.told()
    with psycopg.connect(dsn) as conn:
        counted = conn.execute("select endpoint, kind, count from extract.inbox_count order by endpoint").fetchall()
    assert counted == [("events", "received", 5), ("others", "forged", 5)]


def inbox(dsn: str, count: int) -> list[tuple[str, str, bytes]]:
    """What is in the inbox, once so much has come and nothing more does: it sends a second after an event."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        until, steady = time.monotonic() + 60, 0
        while steady < 20:
            rows = conn.execute("select source, endpoint, body from extract.inbox order by place").fetchall()
            steady = steady + 1 if len(rows) >= count else 0
            assert time.monotonic() < until, rows
            time.sleep(0.1)
    return [(source, endpoint, bytes(body)) for source, endpoint, body in rows]
