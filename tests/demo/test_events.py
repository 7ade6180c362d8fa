"""The judge of events: it must see every way in which they can be wrong, or the demo proves nothing."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import psycopg
import pytest
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.page import Reply, Request
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from demo.event_rules import RULES, Told
from demo.events import EventVerdict, compare, expected, outbox, polled_steps, steps, told, untold_contacts
from demo.kinto_contacts import Json, Operation, State, Truth, Written, exactly, settle
from demo.localstripe_server import LocalStripe
from demo.seed import KEY, Amounts, seed
from demo.stripe_changes import Somebody
from demo.table import print_events
from demo.verify import LISTS, listings

SOURCES = Path(__file__).resolve().parents[2] / "demo" / "sources"
AMOUNTS = Amounts(customers=120, products=40, plans=20, subscriptions=60, canceled=5)
SPOILED = {"missing": "missing", "doubled": "surplus", "of another type": "surplus", "of another record": "missing"}
SPOILED |= {"of another value": "surplus", "of an unknown type": "surplus"}


def subscription(status: str, amount: int) -> Json:
    """A subscription as far as its rules look at it."""
    return exactly_as({"customer": "cus_1", "status": status, "items": {"data": [{"plan": {"amount": amount}}]}})


def exactly_as(value: Json) -> Json:
    """The same with its numbers as decimals, as they come from an API."""
    found: Json = exactly(json.dumps(value))
    return found


BEFORE = {
    "same": subscription("active", 5),
    "canceled": subscription("active", 5),
    "risen": subscription("active", 100_000),
    "higher": subscription("active", 100_001),
    "fallen": subscription("active", 100_001),
}
AFTER = {
    "same": subscription("active", 5),
    "canceled": subscription("canceled", 5),
    "risen": subscription("active", 100_001),
    "higher": subscription("active", 100_002),
    "fallen": subscription("active", 100_000),
    "cheap": subscription("active", 100_000),
    "dear": subscription("active", 100_001),
}


def differing(verdicts: list[EventVerdict]) -> dict[str, str]:
    """What is wrong, by type."""
    return {each.type: each.complaint() for each in verdicts if not each.equal}


def test_two_listings_become_events_by_each_rule() -> None:
    """Reaching the threshold is not passing it; what is new may have passed it at once."""
    found = expected({"subscriptions": steps(BEFORE, AFTER)})
    assert sorted((each.type.split(".")[-1], each.key) for each in found) == [
        ("created", "cheap"),
        ("created", "dear"),
        ("passed_1000", "dear"),
        ("passed_1000", "risen"),
        ("status_changed", "canceled"),
    ]
    (canceled,) = (each for each in found if each.key == "canceled")
    assert str(canceled).split() == ["subscription.status_changed", "canceled", "active", "→", "canceled"]


def test_an_event_is_read_as_it_is_expected() -> None:
    """Whatever way the numbers are written; the version of what tells no instants is Postgres's clock."""
    data = json.dumps({"record": AFTER["risen"], "before": BEFORE["risen"], "value": 100_001}, default=float)
    stored = told("subscriptions", "subscription.passed_1000", "risen", datetime.now(timezone.utc), data)
    assert stored in expected({"subscriptions": steps(BEFORE, AFTER)})


def spoiled(how: str, events: list[Told]) -> list[Told]:
    """The events with one of them spoiled."""
    at = next(place for place, each in enumerate(events) if each.type.endswith(("status_changed", "moved")))
    one, rest = events[at], [*events[:at], *events[at + 1 :]]
    other = {
        "missing": [],
        "doubled": [one, one],
        "of another type": [replace(one, type=next(each.type for each in RULES if each.object == one.object))],
        "of another record": [replace(one, key="another")],
        "of another value": [replace(one, was=one.now)],
        "of an unknown type": [one, replace(one, type="unknown")],
    }
    return [*rest, *other[how]]


@pytest.mark.parametrize(("how", "complaint"), SPOILED.items())
def test_one_spoiled_event_is_seen(how: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the number of events is the same."""
    right = expected({"subscriptions": steps(BEFORE, AFTER)})
    assert differing(compare(right, right)) == {}
    stored = spoiled(how, right)
    verdicts = compare(right, stored)
    assert complaint in " ".join(differing(verdicts).values())
    print_events(verdicts, stored)
    printed = capsys.readouterr().out
    assert " NO\n" in printed
    assert complaint in printed


def contact(city: str, at: int) -> State:
    """A state of the contact `ada`."""
    return State("ada", at, exactly_as({"id": "ada", "city": city, "last_modified": at}))


def gone(at: int, key: str = "ada") -> State:
    """A contact's deletion."""
    return State(key, at, None)


def held(*states: State) -> Truth:
    """What Kinto holds when these are the newest states."""
    live = {each.key: each.record for each in states if each.record is not None}
    return Truth(live, {each.key: each.at for each in states if each.record is None})


LIFE = [contact("Rome", 2), contact("Oslo", 3), gone(4), contact("Oslo", 5), contact("Bern", 6), gone(7)]
NOBODY_SAW = [State("eve", 8, exactly_as({"id": "eve", "city": "Riga", "last_modified": 8})), gone(9, "eve")]
FIRST = held(contact("Wien", 1))
LAST = held(gone(7), gone(9, "eve"))


def polled(seen: set[int]) -> list[Told]:
    """What the outbox holds when these instants of ada's were seen."""
    through = polled_steps(FIRST, LIFE + NOBODY_SAW, LAST, {("ada", at) for at in seen})
    return expected({"contacts": through})


def judged(stored: list[Told]) -> dict[str, str]:
    """What is wrong with what the outbox holds of ada and eve."""
    seen = {(each.key, each.at) for each in stored if each.at is not None}
    return differing(compare(expected({"contacts": polled_steps(FIRST, LIFE + NOBODY_SAW, LAST, seen)}), stored))


def test_a_life_seen_in_full() -> None:
    """Coming back is a change of what was last there. Of whom nobody saw alive nothing is told."""
    assert [(each.type.split(".")[-1], each.at) for each in polled({2, 3, 4, 5, 6, 7})] == [
        ("changed", 2),
        ("moved", 2),
        ("changed", 3),
        ("moved", 3),
        ("deleted", 4),
        ("changed", 5),
        ("undeleted", 5),
        ("changed", 6),
        ("moved", 6),
        ("deleted", 7),
    ]


@pytest.mark.parametrize("seen", [set(), {2, 6}, {3, 4, 6}, {2, 3, 4, 5, 6, 7}, {5}])
def test_whatever_the_polls_saw_is_right(seen: set[int]) -> None:
    """Between two looks states are overtaken by others; the last one is always seen."""
    assert judged(polled(seen)) == {}
    assert ("crm.contacts.deleted", 7) in {(each.type, each.at) for each in polled(seen)}


@pytest.mark.parametrize("seen", [{2, 6}, {3, 4, 6}, {2, 3, 4, 5, 6, 7}])
@pytest.mark.parametrize("how", SPOILED)
def test_one_spoiled_event_of_a_polled_record_is_seen(seen: set[int], how: str) -> None:
    """As for the others."""
    assert judged(spoiled(how, polled(seen))) != {}


def test_each_state_whose_events_are_all_lost_is_seen() -> None:
    """The next event does not join up with the one before; behind the last one none may be missing."""
    events = polled({2, 3, 4, 5, 6, 7})
    for lost in range(2, 8):
        assert judged([each for each in events if each.at != lost]) != {}
    assert judged([each for each in events if each.at not in (4, 5)]) != {}


@pytest.mark.parametrize(
    ("damage", "untold"),
    [
        ("select 1", []),
        ("delete from extract.outbox where revision = 4", ["new"]),
        ("delete from extract.outbox where revision >= 4", ["new"]),
        ("delete from extract.outbox where key = 'new'", ["new"]),
        ("delete from extract.outbox where revision <= 2", ["new", "old"]),
        ("update crm.contacts set revision = 2 where key = 'same'", ["same"]),
    ],
)
def test_a_stored_change_without_an_event_is_seen(empty_dsn: str, damage: str, untold: list[str]) -> None:
    """Somebody brought back and deleted again between two tombstones leaves no other trace."""
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("create schema extract; create schema crm")
        connection.execute("create table crm.contacts (key text, revision bigint)")
        connection.execute("create table extract.outbox (object text, key text, revision bigint)")
        connection.execute("insert into crm.contacts values ('same', 1), ('old', 3), ('gone', 1), ('new', 5)")
        connection.execute("""
            insert into extract.outbox
            select 'contacts', * from (values ('old', 2), ('old', 3), ('old', 3), ('new', 1), ('new', 2), ('new', 3),
                                              ('new', 4), ('new', 4), ('new', 5))
        """)
        connection.execute(damage.encode())
    assert untold_contacts(empty_dsn) == untold


def test_a_state_that_never_was_is_seen() -> None:
    """At another instant, or with something else in it."""
    events = polled({2})
    assert judged([replace(each, at=3) if each.at == 2 else each for each in events]) != {}
    assert judged([replace(each, now='"Rom"') if each.at == 2 else each for each in events]) != {}


def test_the_log_has_what_was_committed_only() -> None:
    """A refused operation takes those before it along."""
    done = Written()
    plan = [Operation("PUT", key, {}) for key in ("a", "b", "c")] + [Operation("DELETE", "c")]
    record = {"id": "c", "last_modified": 5}
    settle(
        done,
        plan,
        [
            {"status": 201, "body": {"data": {"id": "a", "last_modified": 4}}},
            {"status": 409, "body": {}},
            {"status": 201, "body": {"data": record}},
            {"status": 200, "body": {"data": {"id": "c", "last_modified": 6, "deleted": True}}},
        ],
    )
    assert done.states == [State("c", 5, record), State("c", 6, None)]


@pytest.fixture
def stripe(tmp_path: Path) -> Iterator[LocalStripe]:
    """A fake Stripe with a few objects of each kind."""
    with LocalStripe(tmp_path) as server:
        seed(server.url, AMOUNTS)
        yield server


class Disturbed:
    """A client before each of whose requests somebody does a few things."""

    def __init__(self, client: ApiClient, disturb: Callable[[], None]) -> None:
        self._client, self._disturb = client, disturb

    @property
    def requests(self) -> int:
        """What went out."""
        return self._client.requests

    @property
    def left(self) -> float | None:
        """What the quota has left."""
        return self._client.left

    def stop_with(self, stop: threading.Event) -> None:
        """End its waits with that."""
        self._client.stop_with(stop)

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        """The reply, after the disturbance."""
        self._disturb()
        return self._client.fetch(object, request)


def test_a_real_round(stripe: LocalStripe, connect: Connect, dsn: str) -> None:
    """The first copy is silent; then each change is one event, however it falls between the pages that are read."""
    source = load_source(SOURCES / "stripe.yaml")
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    calm = ApiClient(source, session, stripe.url)
    migrate(connect, [source])
    for name in LISTS:
        run(source, name, postgres=connect, client=calm)
    assert outbox(dsn) == []
    before, somebody, did = listings(stripe.url), Somebody(stripe.url, 7), Counter[str]()

    def disturb() -> None:
        did.update(somebody.act() for _ in range(20))

    for name in LISTS:
        run(source, name, postgres=connect, client=Disturbed(calm, disturb), reset=True)
    for name in LISTS:
        run(source, name, postgres=connect, client=calm, reset=True)
    after = listings(stripe.url)
    verdicts = compare(expected({name: steps(before[name], after[name]) for name in LISTS}), outbox(dsn))
    assert differing(verdicts) == {}
    counts = {each.type: each.in_outbox for each in verdicts}
    assert counts["customer.described"] == did["describe a customer"] > 0
    assert counts["product.retired"] == did["retire a product"] > 0
    assert counts["subscription.status_changed"] == did["cancel a subscription"] > 0
    assert counts["subscription.passed_1000"] >= did["upgrade a subscription"] > 0
    for name in ("customer", "product", "plan", "subscription"):
        assert counts[f"stripe.{name}s.created"] == did[f"make a {name}"]
