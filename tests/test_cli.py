"""The commands `airflow extract ...`, through Airflow's own parser, on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from airflow import settings
from airflow.cli import cli_parser
from airflow.models.pool import Pool
from airflow.models.team import Team
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.extract.cursor import Position, Whole
from airflow_extract_provider.extract.page import SetAside
from airflow_extract_provider.extract.relay import EachEvent, consume
from airflow_extract_provider.extract.store import consumer as consumers
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.quarantine import set_aside
from airflow_extract_provider.testing.postgres import free_port
from tests.broker import Broker
from tests.sinks.topics import create, received, unused_name
from tests.store.eventful import an_event, fill

PROJECT = Path(__file__).resolve().parents[1]
SOURCES = str(PROJECT / "demo" / "sources")
SECRET = "marked-secret-4711"


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """A database with nothing in it: the command makes the rest."""
    return empty_dsn


@pytest.fixture
def store(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, known to Airflow as `extract_store`."""
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", _connection(dsn))
    return dsn


def _connection(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    found = {"host": parts.get("host"), "login": parts.get("user"), "schema": parts.get("dbname")}
    found |= {"password": parts.get("password"), "port": int(str(parts["port"])) if "port" in parts else None}
    return json.dumps({"conn_type": "postgres", **{name: value for name, value in found.items() if value}})


def extract(*arguments: str) -> None:
    """Run an `airflow extract` command in this process."""
    args = cli_parser.get_parser().parse_args(["extract", *arguments])
    run: Callable[..., None] = args.func
    run(args)


def tables(dsn: str) -> set[str]:
    """All tables of the database that are not Postgres's own."""
    with psycopg.connect(dsn) as conn:
        found = conn.execute(
            "select schemaname || '.' || tablename from pg_tables "
            "where schemaname not in ('pg_catalog', 'information_schema')"
        )
        return {row[0] for row in found}


def test_migrate_makes_books_and_tables_once(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The second time there is nothing to do, and it says so."""
    extract("migrate", "--sources", SOURCES)
    assert "table stripe.customers" in capsys.readouterr().out
    assert {"extract.ledger", "extract.fence", "stripe.customers", "stripe.invoices"} <= tables(store)
    extract("migrate", "--sources", SOURCES)
    assert "Nothing to do" in capsys.readouterr().out


def test_without_sources_only_the_books(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a schema of one's choice."""
    extract("migrate", "--schema", "books")
    assert "books.ledger" in tables(store)
    assert not [name for name in tables(store) if not name.startswith("books.")]


def test_the_sql_alone_makes_the_same(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed for a person with the rights; afterwards the command finds nothing to do."""
    extract("migrate", "--sources", SOURCES, "--sql")
    script = capsys.readouterr().out
    assert tables(store) == set()
    with psycopg.connect(store, autocommit=True) as conn:
        conn.execute(script.encode())
    extract("migrate", "--sources", SOURCES)
    assert "Nothing to do" in capsys.readouterr().out


def test_a_connection_of_another_name(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--conn-id` is obeyed."""
    monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", _connection(dsn))
    extract("migrate", "--conn-id", "elsewhere")
    assert "extract.ledger" in tables(dsn)


def test_errors_are_a_few_lines_and_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No sources, no server: named, without a traceback, without the password."""
    nowhere = {"conn_type": "postgres", "host": "127.0.0.1", "port": free_port(), "login": "me", "password": SECRET}
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", json.dumps(nowhere))
    for arguments, name in ((["--sources", str(tmp_path)], "SourceError"), ([], "StoreUnavailableError")):
        with pytest.raises(SystemExit) as ended:
            extract("migrate", *arguments)
        assert ended.value.code == 1
        told = capsys.readouterr().err
        assert told.startswith(f"{name}: ")
        assert len(told.splitlines()) <= 4
        assert "Traceback" not in told
        assert SECRET not in told


# Quarantine, coverage, folding ----------------------------------------------------------------------------------------

AN_INSTANT = datetime(2026, 1, 1, tzinfo=timezone.utc)
SHOP = """
source: shop
connection: shop
objects:
  things: {path: /things, key: id, records: data, pages: {by: last_key, send: after}}
"""


@pytest.fixture
def shop(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A folder with one source, whose tables are made in the store."""
    (tmp_path / "shop.yaml").write_text(SHOP)
    extract("migrate", "--sources", str(tmp_path))
    capsys.readouterr()
    return str(tmp_path)


def set_some_aside(dsn: str) -> None:
    """Two that can be read now, one that cannot, one of another object."""
    raws = [b'{"id": "a"}', b'{"id": "b", "secret": "%s"}' % SECRET.encode(), b'{"no": "key\x1b[2J \xff"}']
    bad = [SetAside(number, raw, "why", f"k{number}") for number, raw in enumerate(raws, start=1)]
    with psycopg.connect(dsn) as conn:
        set_aside(conn, "extract", "shop", "things", 7, AN_INSTANT, "test", bad)
        set_aside(conn, "extract", "other", "things", None, AN_INSTANT, "test", bad[:1])


def test_what_is_in_the_quarantine(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where, how often and why, without the records; with them, on one line each, only with `--raw`."""
    extract("quarantine", "list")
    assert capsys.readouterr().out == "Nothing is in the quarantine.\n"
    set_some_aside(store)
    extract("quarantine", "list")
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 4
    assert "shop/things   page 7, record 2   key k2   why   seen 1 time, last 2" in told
    assert SECRET not in told
    extract("quarantine", "list", "--source", "shop", "--object", "things", "--raw", "--limit", "3")
    told = capsys.readouterr().out
    assert len(told.splitlines()) == 6
    assert SECRET in told
    assert "\x1b" not in told
    extract("quarantine", "list", "--limit", "2")
    assert "and more" in capsys.readouterr().out


def test_replay(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be read now is in the table; what cannot is told, and stays."""
    set_some_aside(store)
    extract("quarantine", "replay", "shop", "things", "--sources", shop)
    told = capsys.readouterr().out
    assert "2 records replayed: 2 created" in told
    assert "1 record left" in told
    with psycopg.connect(store) as conn:
        assert conn.execute("select key from shop.things order by 1").fetchall() == [("a",), ("b",)]
        assert conn.execute("select count(*) from extract.quarantine").fetchone() == (2,)


def test_coverage(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is complete and the gaps between, of all or of one object."""
    extract("coverage")
    assert "Nothing is complete" in capsys.readouterr().out
    with psycopg.connect(store) as conn:
        for walk, since, closed in (("backfill", None, 1), ("incremental", 2, 3)):
            at = [None if days is None else AN_INSTANT + timedelta(days=days) for days in (since, closed)]
            entry = Entry("page", Position(Whole(), complete=True, since=at[0], closed=at[1]))
            Ledger("extract", "shop", "things", walk).append(conn, entry)
    told = [
        "shop/things   covered   the beginning .. 2026-01-02T00:00:00Z",
        "shop/things   GAP       2026-01-02T00:00:00Z .. 2026-01-03T00:00:00Z",
        "shop/things   covered   2026-01-03T00:00:00Z .. 2026-01-04T00:00:00Z",
    ]
    for arguments in ([], ["shop"], ["shop", "things"]):
        extract("coverage", *arguments)
        assert capsys.readouterr().out.splitlines() == told
    extract("coverage", "shop", "plain")
    assert "Nothing" in capsys.readouterr().out


def test_fold(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is older than asked; it says how much."""
    with psycopg.connect(store) as conn:
        ledger = Ledger("extract", "shop", "things", "backfill")
        for _ in range(5):
            ledger.append(conn, Entry("page", Position(Whole()), records=2))
        conn.execute("update extract.ledger set committed_at = committed_at - interval '20 days'")
    for arguments, count in (([], 0), (["--older-than", "30d"], 0), (["--older-than", "480h"], 3)):
        extract("fold", *arguments)
        assert capsys.readouterr().out.startswith(f"{count} ledger rows folded")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fold", "--older-than", "thirty days"], "such as 30d"),
        (["fold", "--older-than", "0d"], "such as 30d"),
        (["quarantine", "list", "--limit", "-1"], "--limit: '-1'"),
        (["quarantine", "replay", "nothing", "things", "--sources", "SHOP"], "Choose one of: shop"),
        (["quarantine", "replay", "shop", "nothing", "--sources", "SHOP"], "Choose one of: things"),
        (["quarantine", "replay", "shop", "things", "--sources", "nowhere"], "nowhere"),
        (["quarantine", "list", "--schema", "nowhere"], "airflow extract migrate"),
        (["coverage", "--schema", "nowhere"], "airflow extract migrate"),
        (["fold", "--schema", "nowhere"], "airflow extract migrate"),
        (["events", "consumers", "--schema", "nowhere"], "airflow extract migrate"),
        (["events", "dead", "list", "--schema", "nowhere"], "airflow extract migrate"),
        (["events", "dead", "list", "--limit", "0"], "--limit: '0'"),
        (["events", "dead", "list", "--consumer", "nobody"], "no consumer 'nobody'"),
        (["events", "dead", "replay", "nobody", "--all"], "no consumer 'nobody'"),
        (["events", "dead", "replay", "nobody"], "or --all"),
        (["events", "dead", "drop", "nobody", "1", "--all"], "or --all"),
        (["events", "drop-consumer", "nobody"], "airflow extract events consumers"),
    ],
)
def test_what_is_not_understood(shop: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line or two that say what is wrong, and code 1."""
    with pytest.raises(SystemExit) as ended:
        extract(*[shop if argument == "SHOP" else argument for argument in arguments])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


def test_no_replay_beside_a_walk(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The walk is named, and nothing is replayed."""
    set_some_aside(store)
    with psycopg.connect(store, autocommit=True) as conn:
        scope = Scope("shop", "things", "*")
        acquire(conn, "extract", scope, "walk", "the walk", silent_after=timedelta(minutes=5))
    with pytest.raises(SystemExit):
        extract("quarantine", "replay", "shop", "things", "--sources", shop)
    assert capsys.readouterr().err.startswith("WalkBusyError: shop/things: the walk is held by the walk")


def test_replay_publishes_to_kafka(
    store: str,
    shop: str,
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the object says so; its connection is named if it is missing, and nothing is stored then."""
    topic = create(broker, unused_name())
    more = f", events: [created], baseline: emit, publish: {{kafka: events, topic: {topic}}}}}"
    (tmp_path / "shop.yaml").write_text(SHOP.replace("}}", "}" + more))
    extract("migrate", "--sources", shop)
    set_some_aside(store)
    with pytest.raises(SystemExit):
        extract("quarantine", "replay", "shop", "things", "--sources", shop)
    assert "airflow connections add events" in capsys.readouterr().err
    monkeypatch.setenv("AIRFLOW_CONN_EVENTS", json.dumps({"conn_type": "kafka", "extra": json.dumps(broker.config)}))
    extract("quarantine", "replay", "shop", "things", "--sources", shop)
    assert "2 records replayed" in capsys.readouterr().out
    assert {each.key for each in received(broker, topic)} == {"a", "b"}


# Events ---------------------------------------------------------------------------------------------------------------


def fail_at_some(store: str) -> None:
    """Two of three events become dead letters of the consumer `mail`; another consumer has read none."""
    with psycopg.connect(store, autocommit=True) as conn:
        fill(conn, [an_event(key, data=f'"{SECRET}"'.encode()) for key in ("a\x1b[2J", "b", "c")])
        consumers.begin(conn, "extract", "slow")

    def handle(event: object) -> None:
        if getattr(event, "key") != "c":  # noqa: B009 - any event
            raise ValueError("no mail\x1b today")

    consume("mail", EachEvent(handle), postgres=connecting(store), tries=1)


def test_who_reads_the_events(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """How far each is, and what waits for it."""
    extract("events", "consumers")
    assert capsys.readouterr().out == "No consumer has begun.\n"
    fail_at_some(store)
    extract("events", "consumers")
    mail, slow = capsys.readouterr().out.splitlines()
    assert mail == "mail   place 3   0 behind   0 parked   2 dead"
    assert slow.startswith("slow   place 0   3 behind   0 parked   0 dead   oldest 20")
    extract("events", "drop-consumer", "slow")
    assert "slow   forgotten" in capsys.readouterr().out
    extract("events", "consumers")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_dead_letters(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its place, type, key, tries and reason, on one line that a terminal does not obey; never the data."""
    extract("events", "dead", "list")
    assert capsys.readouterr().out == "There are no dead letters.\n"
    fail_at_some(store)
    extract("events", "dead", "list", "--consumer", "mail")
    told = capsys.readouterr().out
    first, second = told.splitlines()
    assert first.startswith("mail   place 1   shop/things   changed   key a\\x1b[2J   tried 1 time, parked 20")
    assert second.startswith("mail   place 2   shop/things   changed   key b")
    assert second.endswith("ValueError: no mail\\x1b today")
    assert SECRET not in told
    extract("events", "dead", "list", "--limit", "1")
    assert "and more" in capsys.readouterr().out


def test_dead_letters_are_put_back_or_deleted(store: str, shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are named, or all of them."""
    fail_at_some(store)
    extract("events", "dead", "replay", "mail", "2", "77")
    assert capsys.readouterr().out == "mail   1 dead letter put back for its next run\n"
    handled: list[str] = []
    consume("mail", EachEvent(lambda event: handled.append(event.key)), postgres=connecting(store))
    assert handled == ["b"]
    extract("events", "dead", "drop", "mail", "--all")
    assert capsys.readouterr().out == "mail   1 dead letter deleted\n"
    extract("events", "dead", "replay", "mail", "--all")
    assert "0 dead letters put back" in capsys.readouterr().out


def test_pools(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a source file wants is made, once; what somebody has set is left."""
    Pool.metadata.create_all(settings.engine, tables=[Team.__table__, Pool.__table__])
    file = tmp_path / "pooled.yaml"
    text = "source: pooled\nconnection: one\nobjects: {x: {path: /x, records: '@', key: id, pages: {by: single}}}\n"
    file.write_text(f"{text}pool: 3")
    told = []
    for _ in "12":
        extract("migrate", "--sources", str(tmp_path))
        told.append([line for line in capsys.readouterr().out.splitlines() if "pool" in line and "table" not in line])
    assert told == [["pool extract_pooled: made, 3 slots"], []]
    file.write_text(f"{text}pool: 5")
    extract("migrate", "--sources", str(tmp_path))
    assert "has 3 slots, where the source file says 5; left as it is" in capsys.readouterr().out
    found = Pool.get_pool("extract_pooled")
    assert found is not None
    assert (found.slots, found.include_deferred) == (3, False)
