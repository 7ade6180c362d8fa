"""The judge: it must see every way in which a copy can differ, or the demo proves nothing."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal

import psycopg
import pytest
import requests
from psycopg import sql

from airflow_extract_provider.testing.postgres import PostgresServer
from demo.kinto_contacts import truth, truth_over_http, write_batches
from demo.kinto_server import Kinto
from demo.localstripe_server import LocalStripe
from demo.seed import Amounts, seed
from demo.verify import LISTS, Verdict, by_key, canonical, canonical_number, listings, verify, verify_contacts
from tests.kinto_stage import start_kinto

AMOUNTS = Amounts(customers=110, products=5, plans=3, subscriptions=20, canceled=4)


@pytest.fixture(scope="module")
def stripe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStripe]:
    """A fake Stripe with a few objects, more than a page of one kind."""
    with LocalStripe(tmp_path_factory.mktemp("stripe")) as server:
        seed(server.url, AMOUNTS)
        yield server


@pytest.fixture
def copy(stripe: LocalStripe, dsn: str) -> str:
    """A database that holds what the API sent, byte for byte, without a page limit."""
    with psycopg.connect(dsn) as connection:
        connection.execute("create schema stripe")
        for name, query in LISTS.items():
            table = sql.Identifier("stripe", name)
            connection.execute(
                sql.SQL("create table {} (key text primary key, data jsonb, deleted_at timestamptz)").format(table)
            )
            everything = {**query, "limit": "10000"}
            answer = requests.get(f"{stripe.url}/v1/{name}", params=everything, auth=("sk_test_x", ""), timeout=60)
            connection.execute(
                sql.SQL(
                    "insert into {} select item ->> 'id', item from jsonb_array_elements(%s::jsonb -> 'data') item"
                ).format(table),
                [answer.text],
            )
    return dsn


def customers(url: str, dsn: str) -> Verdict:
    """Judge the customers only."""
    return next(verdict for verdict in verify(listings(url), dsn) if verdict.object == "customers")


def test_an_exact_copy_is_equal(stripe: LocalStripe, copy: str) -> None:
    """Every object is counted in full, canceled subscriptions too."""
    verdicts = verify(listings(stripe.url), copy)
    assert [verdict.object for verdict in verdicts if not verdict.equal] == []
    counts = {verdict.object: verdict.in_api for verdict in verdicts}
    expected = asdict(AMOUNTS)
    assert counts == {name: expected.get(name, counts["invoices"]) for name in LISTS}
    assert counts["invoices"] > 0


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            "update stripe.customers set data = jsonb_set(data, '{metadata,big}', '12345678901234567890124')",
            "different",
        ),
        ("update stripe.customers set data = data - 'phone'", "different"),
        ("update stripe.customers set data = jsonb_set(data, '{metadata,nothing}', '\"\"')", "different"),
        ("delete from stripe.customers where key = (select max(key) from stripe.customers)", "missing"),
        ("insert into stripe.customers values ('cus_x', '{}')", "surplus"),
        ("update stripe.customers set key = 'cus_x' where key = (select max(key) from stripe.customers)", "surplus"),
        ("update stripe.customers set deleted_at = now() where key < 'cus_M'", "missing"),
    ],
)
def test_a_damaged_copy_is_not(stripe: LocalStripe, copy: str, damage: str, complaint: str) -> None:
    """One digit, null instead of absent, empty instead of null, a record too few or too many."""
    with psycopg.connect(copy) as connection:
        connection.execute(damage.encode())
    verdict = customers(stripe.url, copy)
    assert not verdict.equal
    assert complaint in verdict.complaint()


def test_a_record_that_comes_twice_is_an_error() -> None:
    """Even when both are alike."""
    with pytest.raises(ValueError, match="cus_1 came twice"):
        by_key([{"id": "cus_1"}, {"id": "cus_2"}, {"id": "cus_1"}])


@pytest.fixture(scope="module")
def kinto(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Kinto]:
    """A Kinto with a few contacts, some of them deleted."""
    with start_kinto(tmp_path_factory.mktemp("kinto"), postgres_server) as served:
        write_batches(served.url, 0, 1, batches=15)
        yield served


@pytest.fixture
def contacts(kinto: Kinto, dsn: str) -> str:
    """A database that holds the contacts as Kinto's own table has them."""
    there = truth(kinto.dsn)
    instant = "to_timestamp(0) + %s * interval '1 millisecond'"
    with psycopg.connect(dsn) as connection:
        connection.execute("create schema crm")
        connection.execute(
            "create table crm.contacts (key text primary key, data jsonb, version timestamptz, deleted_at timestamptz)"
        )
        for key, record in there.live.items():
            row = f"insert into crm.contacts values (%s, %s::jsonb, {instant})"
            connection.execute(row.encode(), [key, json.dumps(record, default=number), record["last_modified"]])
        for key, modified in there.deleted.items():
            row = f"insert into crm.contacts values (%s, '{{}}', {instant}, now())"
            connection.execute(row.encode(), [key, modified])
    return dsn


def number(value: object) -> float:
    """Few digits only, but for one number that no float holds."""
    assert isinstance(value, Decimal)
    return int(value) if value == int(value) else float(value)


@pytest.mark.parametrize(
    ("damage", "complaints"),
    [
        ("select 1", ["", ""]),
        ("update crm.contacts set data = data || '{\"visits\": 1.5}' where deleted_at is null", ["different", ""]),
        ("update crm.contacts set deleted_at = null where deleted_at is not null", ["surplus", "missing"]),
        ("delete from crm.contacts where deleted_at is not null", ["", "missing"]),
        ("update crm.contacts set deleted_at = now()", ["missing", "surplus"]),
        ("update crm.contacts set version = version + interval '1 millisecond'", ["", "different"]),
    ],
)
def test_contacts_are_judged_with_their_tombstones(
    kinto: Kinto, contacts: str, damage: str, complaints: list[str]
) -> None:
    """A deletion that was missed or made up, another instant of it, and one changed field are seen."""
    with psycopg.connect(contacts) as connection:
        connection.execute(damage.encode())
    verdicts = verify_contacts(truth_over_http(kinto.url), contacts)
    assert all(verdict.in_api > 3 for verdict in verdicts)
    assert [verdict.equal for verdict in verdicts] == [not each for each in complaints]
    assert all(each in verdict.complaint() for verdict, each in zip(verdicts, complaints, strict=True))


@pytest.mark.parametrize(
    ("text", "same"),
    [("1e-7", "0.0000001"), ("1.0", "1"), ("-0", "0"), ("100", "1e2"), ("1" * 40 + "0", "1" * 40 + "e1")],
)
def test_equal_numbers_are_written_alike(text: str, same: str) -> None:
    """Postgres may write a number in another way than the API did."""
    assert canonical_number(Decimal(text)) == canonical_number(Decimal(same))


def test_digits_no_float_holds_count() -> None:
    """The hash must not be blind to what careless copies change."""
    for one, other in [("0.1000000000000000055", "0.1"), ("9" * 40, "9" * 39 + "8"), ("1e400", "1e401")]:
        assert canonical_number(Decimal(one)) != canonical_number(Decimal(other))


def test_only_the_order_of_keys_is_free() -> None:
    """Null is not absent, an empty text not null, and a list has an order."""
    assert canonical({"a": None, "b": [True, "é"]}) == canonical({"b": [True, "é"], "a": None})
    unequal: list[object] = [{}, {"a": None}, {"a": ""}, {"a": []}, {"a": ["1"]}, {"a": [Decimal(1)]}]
    assert len({canonical(value) for value in unequal}) == len(unequal)
