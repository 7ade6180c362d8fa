"""What is changed behind the APIs' backs leaves no trace, a sweep reports just that, and the judge sees all else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import Summary, WalkName, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import PostgresServer
from demo.behind import Done, change_contacts, change_stripe
from demo.events import compare, expected, newest, outbox, steps, untold_contacts
from demo.kinto_contacts import Json, Truth, connection_kept_open, fill, truth_over_http, write_batches
from demo.kinto_server import Kinto
from demo.localstripe_server import LocalStripe
from demo.rounds import BY_KEY, VERSION
from demo.seed import KEY, Amounts, Stripe, seed
from demo.sweeps import COUNTS, KINDS, SweepVerdict, Swept, judge_sweep, stored_reports
from demo.table import print_sweeps
from demo.verify import LISTS, Listing, listings, verify, verify_contacts
from tests.kinto_stage import crm, start_kinto

SOURCES = Path(__file__).resolve().parents[2] / "demo" / "sources"
AMOUNTS = Amounts(customers=130, products=40, plans=12, subscriptions=60, canceled=5)


def contact(at: int, **fields: object) -> Json:
    """A record with an instant."""
    return {"last_modified": Decimal(at), **fields}


BEFORE: Listing = {
    "same": contact(9, city="Rome"),
    "silent": contact(5, city="Rome", address={"zip": "1", "lines": ["a"]}, tags=["x"]),
    "backdated": contact(3, city="Rome"),
    "updated": contact(4, city="Rome"),
    "gone": contact(2, city="Rome"),
}
AFTER: Listing = {
    "same": contact(9, city="Rome"),
    "silent": contact(5, address={"zip": "2", "lines": ["a"]}, tags=["y"], phone=None),
    "backdated": contact(6, city="Bern"),
    "updated": contact(10, city="Bern"),
    "imported": contact(1, city="Oslo"),
    "new": contact(11, city="Oslo"),
}
DONE = Done(
    frozenset({"silent"}), frozenset({"backdated", "updated"}), frozenset({"imported", "new"}), frozenset({"gone"})
)
SWEPT = Swept(BEFORE, AFTER, "last_modified", by_key=True)
FIELDS = {"city": 1, "address.zip": 1, "tags": 1, "phone": 1}
REPORT: Mapping[str, Any] = {
    **dict.fromkeys(KINDS, 0),
    **dict.fromkeys(("absent", "missed", "silent", "late", "deleted", "confirmed"), 1),
    "stored": 7,
    "seen": 6,
    "new": 2,
    "changed": 3,
    "fields": FIELDS,
}


def judged(report: Mapping[str, Any], done: Done = DONE) -> SweepVerdict:
    """The verdict on a report."""
    return judge_sweep("contacts", done, SWEPT, {"XCom": REPORT, "extract.sweep": report})


def test_two_looks_tell_what_a_sweep_has_to_report() -> None:
    """An instant above the newest one of the look before is none that the incremental walk had missed."""
    assert SWEPT.done() == DONE
    assert SWEPT.report() == REPORT
    assert judged(REPORT).equal


def test_without_instants_nothing_is_silent() -> None:
    """Nor can it be missed: no walk but the sweep brings it. Without a read by key nothing is confirmed."""
    none = {**dict.fromkeys(("missed", "silent", "late", "confirmed"), 0), "fields": {}}
    assert Swept(BEFORE, AFTER).report() == {**REPORT, **none}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [-1, 1])
def test_one_wrong_number_is_seen(kind: str, by: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever it is, and wherever it stands."""
    number: int = REPORT[kind]
    verdict = judged({**REPORT, kind: number + by})
    assert verdict.wrong == (f"{kind} {number + by} in extract.sweep, not {number}",)
    print_sweeps([verdict], [])
    assert " NO\n" in capsys.readouterr().out


@pytest.mark.parametrize("report", [{}, {**REPORT, "fields": {**FIELDS, "city": 2}}, {**REPORT, "fields": {}}])
def test_a_missing_report_or_another_field_is_seen(report: Mapping[str, Any]) -> None:
    """The fields count too."""
    assert not judged(report).equal


@pytest.mark.parametrize("part", ["silent", "backdated", "imported", "removed"])
def test_what_the_script_says_counts(part: str) -> None:
    """Another record is another account, though the numbers are the same."""
    verdict = judged(REPORT, replace(DONE, **{part: frozenset({"another"})}))
    assert not verdict.equal
    assert "by the script" in verdict.complaint()


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("(7, 'contacts', null, false)", "not to the end"),
        ("(7, 'contacts', now(), true)", "not to the end"),
        ("(7, 'contacts', now(), false), (8, 'contacts', now(), false)", "swept twice"),
    ],
)
def test_only_one_whole_sweep_counts(empty_dsn: str, rows: str, complaint: str) -> None:
    """One that was given up, or is open, has no report; of two nobody knows which was meant."""
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("""
            create schema extract;
            create table extract.sweep (
                number bigint, object text, ended_at timestamptz, given_up bool, stored bigint default 1,
                seen bigint default 1, absent bigint default 0, counts jsonb default '{"new": 1}',
                fields jsonb default '{}'
            )
        """)
        connection.execute(f"insert into extract.sweep (number, object, ended_at, given_up) values {rows}".encode())
    with pytest.raises(ValueError, match=complaint):
        stored_reports(empty_dsn, 6)
    assert stored_reports(empty_dsn, 8) == {}


@pytest.fixture
def stripe(tmp_path: Path) -> Iterator[LocalStripe]:
    """A fake Stripe with a few objects of each kind."""
    with LocalStripe(tmp_path) as server:
        seed(server.url, AMOUNTS)
        yield server


@pytest.fixture
def kinto(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Kinto]:
    """A Kinto with contacts, some of them changed and some deleted."""
    with start_kinto(tmp_path, postgres_server) as served:
        fill(served.url, 120)
        write_batches(served.url, 0, 1, batches=10)
        yield served


def swept(name: str, before: Listing, after: Listing) -> Swept:
    """An object of the demo between two looks."""
    return Swept(before, after, VERSION.get(name), name in BY_KEY)


class Copying:
    """Walks over the objects of a source, all by one client."""

    def __init__(self, source: Source, session: requests.Session, url: str, connect: Connect) -> None:
        self.source, self.connect = source, connect
        self.client = ApiClient(source, session, url)
        migrate(connect, [source])

    def walk(self, name: str, walk: WalkName = "backfill", *, reset: bool = False) -> Summary:
        """One walk to its end."""
        summary = run(self.source, name, walk, postgres=self.connect, client=self.client, reset=reset)
        assert summary.complete
        return summary


def test_a_sweep_of_stripe_reports_just_what_was_done(stripe: LocalStripe, connect: Connect, dsn: str) -> None:
    """Its own events tell nothing of it, no record has an instant, and the copy is equal after the sweep."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    copying = Copying(load_source(SOURCES / "stripe.yaml"), session, stripe.url, connect)
    for name in LISTS:
        copying.walk(name)
    before, events = listings(stripe.url), Stripe(stripe.url).everything("events")
    done = change_stripe(stripe.url, before, seed=3)
    after = listings(stripe.url)
    assert Stripe(stripe.url).everything("events") == events
    assert [verdict.object for verdict in verify(after, dsn) if verdict.equal] == []
    told = {name: copying.walk(name, "rebackfill", reset=True).sweep or {} for name in LISTS}
    stored = stored_reports(dsn, 0)
    for name in LISTS:
        reports = {"XCom": told[name], "extract.sweep": stored[name]}
        assert judge_sweep(name, done[name], swept(name, before[name], after[name]), reports).wrong == ()
    assert all(each.silent or each.removed for each in done.values())
    assert sum(len(each.removed) for each in done.values()) == sum(each["deleted"] for each in told.values()) >= 8
    assert [verdict.object for verdict in verify(after, dsn) if not verdict.equal] == []
    verdicts = compare(expected({name: steps(before[name], after[name]) for name in LISTS}), outbox(dsn))
    assert [verdict.complaint() for verdict in verdicts if not verdict.equal] == []
    assert {verdict.type for verdict in verdicts if verdict.in_outbox} == {
        "customer.described",
        "stripe.customers.deleted",
        "product.retired",
    }


def test_a_sweep_of_kinto_reports_just_what_was_done(kinto: Kinto, connect: Connect, dsn: str) -> None:
    """The incremental walk brings none of it; the sweep tells what moved no instant, and what should have come."""
    copying = Copying(crm(20, timedelta()), connection_kept_open(), kinto.url, connect)
    copying.walk("contacts")
    before, place = truth_over_http(kinto.url), newest(dsn)
    until_complete(copying, before)
    done = change_contacts(kinto.dsn, before, seed=3)
    after = truth_over_http(kinto.url)
    assert after.deleted == before.deleted
    idle = copying.walk("contacts", "incremental").counts
    assert (idle["created"], idle["updated"], idle["deleted"]) == (0, 0, 0)
    report = copying.walk("contacts", "rebackfill", reset=True).sweep or {}
    between = swept("contacts", before.live, after.live)
    told = {"XCom": report, "extract.sweep": stored_reports(dsn, 0)["contacts"]}
    assert judge_sweep("contacts", done, between, told).wrong == ()
    assert all(report[kind] > 0 for kind in COUNTS)
    assert report["fields"].keys() == {"city", "address.zip"}
    purged = {key: int(str(before.live[key]["last_modified"])) for key in done.removed}
    copied = Truth(after.live, {**known_deletes(dsn, after), **purged})
    assert [verdict.complaint() for verdict in verify_contacts(copied, dsn) if not verdict.equal] == []
    events = [replace(each, at=None) for each in outbox(dsn, place)]
    verdicts = compare(expected({"contacts": steps(before.live, after.live)}), events)
    assert [verdict.complaint() for verdict in verdicts if not verdict.equal] == []
    assert untold_contacts(dsn) == []


def until_complete(copying: Copying, there: Truth) -> None:
    """Ask for changes until the copy is complete up to the newest contact; the API's clock shows whole seconds."""
    last = max(int(str(record["last_modified"])) for record in there.live.values())
    while (upto := copying.walk("contacts", "incremental").complete_to) is None or upto.timestamp() * 1000 <= last:
        time.sleep(0.2)


def known_deletes(dsn: str, there: Truth) -> dict[str, int]:
    """The tombstones that the copy has: those from before the first copy do not matter."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("select key from crm.contacts where deleted_at is not null").fetchall()
    return {key: there.deleted[key] for (key,) in rows if key in there.deleted}
