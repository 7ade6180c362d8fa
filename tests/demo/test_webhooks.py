"""localstripe's webhooks reach the real receiver, each is applied once, and the judge sees whatever is not so."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.webhooks.drain import drain
from demo.events import compare, expected, outbox, steps
from demo.kinto_contacts import exactly
from demo.localstripe_server import LocalStripe
from demo.receiver import Receiver
from demo.rounds import BY_KEY
from demo.seed import KEY, Amounts, seed
from demo.services import connection_of
from demo.stripe_changes import Somebody
from demo.subscription import Subscription, forge, is_settled, replay
from demo.table import print_webhooks
from demo.verify import LISTS, canonical, listings, verify
from demo.webhooks import (
    COLUMNS,
    OBJECTS,
    TYPES,
    Change,
    Delivery,
    Sent,
    Stored,
    events,
    judge_endpoint,
    judge_objects,
    revisions,
    spread,
    stored,
)

SOURCES = Path(__file__).resolve().parents[2] / "demo" / "sources"
AMOUNTS = Amounts(customers=60, products=20, plans=12, subscriptions=30, canceled=3)
PATIENCE = 60.0
AT = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


# --- the judge, on what is made up

ADA, BOB = Sent("evt_1", "customers", "cus_ada"), Sent("evt_2", "customers", "cus_bob")
SENT = [ADA, BOB]
BEFORE = {name: {"cus_ada": 1, "cus_cid": 4} if name == "customers" else {} for name in OBJECTS}
REVISIONS = {**BEFORE, "customers": {"cus_ada": 2, "cus_bob": 1, "cus_cid": 5}}
AUDIT = {"customers": {**dict.fromkeys(COLUMNS, 0), "webhook": 1, "poll": 2, "late": 1, "missed": 1}}
STORED = Stored(
    deliveries=[Delivery(ADA, AT, AT + 2 * SECOND), Delivery(BOB, AT, AT + 2 * SECOND)],
    changes=[
        Change("customers", "cus_bob", "poll", AT - SECOND, told=True),
        Change("customers", "cus_ada", "webhook", AT + 3 * SECOND, told=True),
        Change("customers", "cus_cid", "poll", AT, told=False),
    ],
    counts={"received": 2, "duplicate": 1, "forged": 1, "applied": 2},
    parked=0,
    dead=0,
    noted=0,
    audit=AUDIT,
    revisions=REVISIONS,
)
RUNS = [{"dag_run_id": "one", "state": "success", "run_type": "asset_triggered"}]


def complaints(
    now: Stored, sent: list[Sent] = SENT, runs: list[dict[str, str]] = RUNS, before: Mapping[str, Any] = BEFORE
) -> str:
    """What the judge finds wrong."""
    found = [each.wrong for each in judge_objects(sent, before, now)]
    return "; ".join(text for texts in (*found, judge_endpoint(sent, now, runs).wrong) for text in texts)


def test_what_is_right_is_equal(capsys: pytest.CaptureFixture[str]) -> None:
    """One brought by its webhook, one late, one that no webhook told of."""
    assert complaints(STORED) == ""
    objects, endpoint = judge_objects(SENT, BEFORE, STORED), judge_endpoint(SENT, STORED, RUNS)
    assert endpoint.taken == [2.0, 2.0]
    assert endpoint.changed == [3.0]
    print_webhooks(objects, endpoint, RUNS)
    printed = capsys.readouterr().out
    assert "customers                 1      2      0        0      1       1     yes" in printed
    assert "3.0 s (median), 3.0 s (99 of 100)" in printed
    assert "1 started by the watcher, 0 by the clock" in printed
    assert " NO\n" not in printed


WRONG: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "lost": ({"deliveries": STORED.deliveries[:1]}, "1 were sent and not stored (evt_2)"),
    "stored twice": (
        {"deliveries": [*STORED.deliveries, STORED.deliveries[0]]},
        "1 more were stored than sent (evt_1)",
    ),
    "forged and stored": (
        {"deliveries": [*STORED.deliveries, Delivery(Sent("evt_x", "", ""), AT, AT)]},
        "1 more were stored than sent (evt_x)",
    ),
    "waiting": ({"deliveries": [*STORED.deliveries[:1], Delivery(BOB, AT, None)]}, "1 wait still"),
    "parked": ({"parked": 1}, "1 wait still"),
    "noted": ({"noted": 2}, "2 wait still"),
    "dead": ({"dead": 1}, "1 dead letters"),
    "the forged one not counted": ({"counts": {**STORED.counts, "forged": 0}}, "forged: 0, not 1"),
    "the replayed one not counted": ({"counts": {**STORED.counts, "duplicate": 0}}, "duplicate: 0, not 1"),
    "counted twice": ({"counts": {**STORED.counts, "received": 3}}, "received: 3, not 2"),
    "not applied": ({"counts": {**STORED.counts, "applied": 1}}, "applied: 1, not 2"),
    "none first": (
        {"changes": [replace(each, by="poll") for each in STORED.changes]},
        "no change was brought by a webhook first",
    ),
    "a change without an account": ({"changes": STORED.changes[:2]}, "2 changes have an account, of 3"),
    "an account of no change": ({"revisions": BEFORE}, "3 changes have an account, of 0"),
    "another view": ({"audit": {}}, "webhook 0 in the view, not 1"),
    "untold": (
        {"changes": [replace(STORED.changes[0], told=False), *STORED.changes[1:]]},
        "no change had the webhook of 1 records (cus_bob)",
    ),
}


@pytest.mark.parametrize(("spoiled", "complaint"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_seen(spoiled: Mapping[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And printed, with its line."""
    now = replace(STORED, **spoiled)
    assert complaint in complaints(now)
    print_webhooks(judge_objects(SENT, BEFORE, now), judge_endpoint(SENT, now, RUNS), RUNS)
    printed = capsys.readouterr().out
    assert " NO\n" in printed
    assert complaint in printed


def test_a_run_that_failed_is_seen() -> None:
    """Though the next one has applied everything."""
    assert "1 runs that apply webhooks have failed (one)" in complaints(STORED, runs=[{**RUNS[0], "state": "failed"}])


def test_the_spread_of_some_seconds() -> None:
    """Of a hundred, all but the longest are within."""
    assert spread([]) == "never"
    assert spread([float(each) for each in range(100, 0, -1)]) == "50.5 s (median), 99.0 s (99 of 100)"


# --- the real thing


@pytest.fixture
def stripe(tmp_path: Path) -> Iterator[LocalStripe]:
    """A fake Stripe with a few objects of each kind."""
    with LocalStripe(tmp_path) as server:
        seed(server.url, AMOUNTS)
        yield server


@pytest.fixture
def receiver(tmp_path: Path, dsn: str) -> Iterator[Receiver]:
    """The receiver, as the demo starts it."""
    with Receiver(tmp_path, SOURCES, connection_of(dsn)) as started:
        yield started


def test_what_is_read_by_key_is_what_the_list_holds(stripe: LocalStripe) -> None:
    """Of every kind, also after somebody has changed some: or a webhook would bring another record than polling."""
    somebody = Somebody(stripe.url, 7)
    for _ in range(60):
        somebody.act()
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {KEY}"
        for name, listing in listings(stripe.url).items():
            assert name in BY_KEY
            assert listing
            for key, record in listing.items():
                answer = session.get(f"{stripe.url}/v1/{name}/{key}", timeout=30)
                assert canonical(exactly(answer.text)) == canonical(record), (name, key)


def test_a_real_round(stripe: LocalStripe, receiver: Receiver, connect: Connect, dsn: str) -> None:
    """Webhooks bring changes first, polling what they do not tell of; forged and replayed ones store nothing."""
    source = load_source(SOURCES / "stripe.yaml")
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    client = ApiClient(source, session, stripe.url)
    migrate(connect, [source])
    for name in LISTS:
        run(source, name, postgres=connect, client=client)
    with psycopg.connect(dsn) as connection:
        subscription = Subscription(
            frozenset(str(each["id"]) for each in events(stripe.url)), revisions(connection, "stripe")
        )
    stripe.send_webhooks(receiver.address, receiver.secret, list(TYPES))
    before, somebody = listings(stripe.url), Somebody(stripe.url, 7)
    for _ in range(80):
        somebody.act()
    sent = subscription.sent(stripe.url)
    wait_for(sent, dsn)
    assert forge(receiver) == 401
    assert replay(receiver, dsn) == 200
    drained = drain(source, postgres=connect)
    assert (drained.waiting, drained.dead, set(drained.noted)) == (0, 0, {each.object for each in sent})
    for name in LISTS:
        run(source, name, "by_key", postgres=connect, client=client)
    for name in LISTS:
        run(source, name, postgres=connect, client=client, reset=True)
    until = time.monotonic() + PATIENCE
    while not is_settled({each.id for each in sent}, now := stored(dsn)):
        assert time.monotonic() < until, now.counts
        time.sleep(0.2)
    assert complaints(now, sent, before=subscription.before) == ""
    counts = {each.object: each.counts for each in judge_objects(sent, subscription.before, now)}
    assert counts["customers"]["webhook"] > 0
    assert counts["products"]["missed"] > 0
    assert {name: counts[name]["late"] for name in OBJECTS} == dict.fromkeys(OBJECTS, 0)
    after = listings(stripe.url)
    assert [verdict.object for verdict in verify(after, dsn) if not verdict.equal] == []
    verdicts = compare(expected({name: steps(before[name], after[name]) for name in LISTS}), outbox(dsn))
    assert [verdict.complaint() for verdict in verdicts if not verdict.equal] == []
    assert sum(verdict.in_outbox for verdict in verdicts) > 0


def wait_for(sent: list[Sent], dsn: str) -> None:
    """Return when all have come."""
    until = time.monotonic() + PATIENCE
    while lost := {each.id for each in sent} - {each.sent.id for each in stored(dsn).deliveries}:
        assert time.monotonic() < until, lost
        time.sleep(0.1)
