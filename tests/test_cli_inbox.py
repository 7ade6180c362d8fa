"""`airflow extract inbox ...`, through Airflow's own parser, on a real Postgres."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from airflow_extract_provider.extract.store.inbox import channel
from tests.test_cli import _connection, extract

BY_KEY = '{path: "/things/{{ key }}", record: "@"}'
NOT_TAKEN = (
    "no run takes what came to an address that the source file does not describe. Describe it there again, "
    "or drop them."
)
HOOKS = """
webhooks:
  main: {verify: github, secret: none, type: type, types: {thing: {object: things, key: id}}}
"""
SECRET = "marked-secret-4711"
SHOP = """
source: shop
connection: shop
defaults: {records: data, key: id, pages: {by: last_key, send: after}}
objects:
  things: {path: /things}
  people: {path: /people, private: true}
"""


@pytest.fixture
def store(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with the books, known to Airflow as `extract_store`."""
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", _connection(dsn))
    return dsn


@pytest.fixture
def sources(tmp_path: Path) -> str:
    """A folder with one source, of which one object is private."""
    (tmp_path / "shop.yaml").write_text(SHOP)
    return str(tmp_path)


def run(dsn: str, text: str) -> list[tuple[object, ...]]:
    """Run statements; the rows of the last one."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        found = conn.execute(text.encode())
        while found.nextset():
            pass
        return found.fetchall() if found.description else []


def fill(dsn: str) -> None:
    """Webhooks of three endpoints: some wait, some are applied, one has messages that are parked and dead."""
    run(
        dsn,
        f"""
        insert into extract.inbox (source, endpoint, body, received_at, done_at) values
          ('shop', 'main', '{SECRET}', now() - interval '3 days', now() - interval '3 days'),
          ('shop', 'main', '{SECRET}', now() - interval '2 days', now()),
          ('shop', 'main', '{SECRET}', now() - interval '100 minutes', now()),
          ('shop', 'main', '{SECRET}', now() - interval '90 minutes', null),
          ('shop', 'main', '{SECRET}', now() - interval '50 minutes', null),
          ('shop', 'other', '{SECRET}', now() - interval '40 days', now() - interval '40 days'),
          ('crm', 'main', '{SECRET}', now() - interval '40 days', null);
        insert into extract.inbox_parked (place, nth, source, endpoint, object, key, tries, reason, dead) values
          (2, 1, 'shop', 'main', 'things', E'a\\x1b[2J', 5, E'BadRecordError: a\\x1b[2J is bad', true),
          (2, 2, 'shop', 'main', 'people', 'bob@example.com', 5, 'bob@example.com is nobody', true),
          (2, 3, 'shop', 'main', 'things', 'c', 1, 'later', false),
          (3, 0, 'shop', 'main', '', '', 5, 'the body is no JSON', true);
        insert into extract.inbox_count (source, endpoint, day, kind, count, last_at) values
          ('shop', 'main', (now() at time zone 'UTC')::date, 'duplicate', 2, now() - interval '1 day'),
          ('shop', 'main', (now() at time zone 'UTC')::date - 1, 'duplicate', 1, now() - interval '1 day'),
          ('shop', 'main', (now() at time zone 'UTC')::date - 2, 'duplicate', 70, now() - interval '2 days'),
          ('shop', 'main', (now() at time zone 'UTC')::date - 40, 'duplicate', 70, now() - interval '40 days'),
          ('shop', 'main', (now() at time zone 'UTC')::date, 'received', 1200, now() - interval '1 day'),
          ('strange', 'main', (now() at time zone 'UTC')::date, 'forged', 7, now())
        """,
    )


def test_what_the_inbox_holds(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each endpoint, also of one that nothing genuine has come to; no body is shown."""
    extract("inbox", "show")
    assert capsys.readouterr().out == "No webhook has come.\n"
    fill(store)
    extract("inbox", "show")
    told = capsys.readouterr().out
    assert SECRET not in told
    crm, main, other, strange = told.splitlines()
    assert crm.startswith("crm/main   1 waiting   0 parked   0 dead   0 applied (0 today)   oldest 40 d   last came 20")
    assert main.startswith(
        "shop/main   2 waiting   1 parked   3 dead   1 applied (0 today)   oldest 2 d   last came 20"
    )
    assert main.endswith("since yesterday 3 duplicates, 0 forged")
    assert other.startswith("shop/other   0 waiting   0 parked   0 dead   1 applied (0 today)   last came 20")
    assert strange == (
        "strange/main   0 waiting   0 parked   0 dead   0 applied (0 today)   since yesterday 0 duplicates, 7 forged"
    )
    run(store, "delete from extract.inbox_parked")
    extract("inbox", "show", "shop")
    main, other = capsys.readouterr().out.splitlines()
    assert main.startswith("shop/main   2 waiting   0 parked   0 dead   3 applied (2 today)   oldest 1 h")


def test_dead_messages(store: str, sources: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each on one line that a terminal does not obey. Keys only of objects that are known not to be private, nor does
    the reason tell any other; never a body."""
    extract("inbox", "dead", "list")
    assert capsys.readouterr().out == "There are no dead messages.\n"
    fill(store)
    extract("inbox", "dead", "list", "--source", "shop")
    told = capsys.readouterr().out
    first, second, third = told.splitlines()
    assert first.startswith("place 2, message 1   shop/things   key ***   tried 5 times, came 20")
    assert first.endswith(" to main   BadRecordError: *** is bad")
    assert second.endswith("*** is nobody")
    assert third.startswith("place 3, the whole body   shop, of no object   tried 5 times, came 20")
    assert third.endswith("the body is no JSON")
    assert SECRET not in told
    assert "bob" not in told
    extract("inbox", "dead", "list", "--sources", sources, "--limit", "2")
    told = capsys.readouterr().out
    first, second, more = told.splitlines()
    assert "key a\\x1b[2J   tried" in first
    assert first.endswith("BadRecordError: a\\x1b[2J is bad")
    assert "shop/people   key ***   tried" in second
    assert "bob" not in told
    assert more == "... and more: see --limit (now 2)."
    extract("inbox", "dead", "list", "--source", "crm")
    assert capsys.readouterr().out == "There are no dead messages.\n"


def test_dead_messages_are_put_back(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All of the places that are named, as if they had not been tried; whoever waits for webhooks is told."""
    fill(store)
    with psycopg.connect(store, autocommit=True) as listening:
        listening.execute(f'listen "{channel("extract")}"')
        extract("inbox", "dead", "replay", "shop", "--place", "2", "77")
        assert len(list(listening.notifies(timeout=10, stop_after=1))) == 1
    assert capsys.readouterr().out == (
        "shop/people   1 dead message put back for the next run\n"
        "shop/things   1 dead message put back for the next run\n"
    )
    stand = (
        "select place, nth, dead, tries, reason, due_at <= clock_timestamp() from extract.inbox_parked order by 1, 2"
    )
    assert run(store, stand) == [
        (2, 1, False, 0, "", True),
        (2, 2, False, 0, "", True),
        (2, 3, False, 1, "later", None),
        (3, 0, True, 5, "the body is no JSON", None),
    ]
    extract("inbox", "dead", "replay", "shop", "--all")
    assert capsys.readouterr().out == "shop, of no object   1 dead message put back for the next run\n"
    assert run(store, "select count(*) from extract.inbox_parked where dead") == [(0,)]


def test_what_no_run_takes_is_told(
    store: str, sources: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At an address that the file does not describe, or of a source without a file: it stays dead, and can be
    dropped."""
    fill(store)
    (tmp_path / "shop.yaml").write_text(SHOP.replace("{path: /things}", f"{{path: /things, by_key: {BY_KEY}}}") + HOOKS)
    run(store, "update extract.inbox_parked set endpoint = 'former' where place = 3")
    extract("inbox", "dead", "replay", "shop", "--place", "2", "--sources", sources)
    assert "does not describe" not in capsys.readouterr().out
    extract("inbox", "dead", "replay", "shop", "--all", "--sources", sources)
    assert capsys.readouterr().out == f"shop/former   1 dead message left: {NOT_TAKEN}\n"
    assert run(store, "select endpoint, count(*) from extract.inbox_parked where dead group by 1") == [("former", 1)]
    extract("inbox", "dead", "drop", "shop", "--all")
    assert run(store, "select count(*) from extract.inbox_parked where dead") == [(0,)]
    capsys.readouterr()
    run(store, "update extract.inbox_parked set dead = true")
    (tmp_path / "shop.yaml").unlink()
    (tmp_path / "crm.yaml").write_text(SHOP.replace("source: shop", "source: crm"))
    extract("inbox", "dead", "replay", "shop", "--all", "--sources", sources)
    assert f"shop/main   3 dead messages left: {NOT_TAKEN}" in capsys.readouterr().out


def test_dead_messages_are_dropped(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is parked and will be tried again is not; the webhook itself goes with pruning."""
    fill(store)
    extract("inbox", "dead", "drop", "shop", "--place", "2", "--place", "3")
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run(store, "select place, nth from extract.inbox_parked") == [(2, 3)]
    assert run(store, "select count(*) from extract.inbox") == [(7,)]


def test_prune(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As old as asked; it says how much, and what is kept."""
    fill(store)
    extract("inbox", "prune")
    told = capsys.readouterr().out
    assert told.startswith("Deleted: 1 webhook, 0 ids, 1 count of a day, 0 notes of what brought a change.\n")
    assert "What waits is kept" in told
    run(store, "insert into extract.inbox_seen values ('shop', 'main', 'one', now() - interval '50 hours')")
    run(
        store,
        "insert into extract.brought (source, object, key, revision, kind, by, at)"
        " values ('shop', 'things', 'a', 1, 'created', 'poll', now() - interval '2 days')",
    )
    extract("inbox", "prune", "--older-than", "48h", "--brought-older-than", "1d")
    assert capsys.readouterr().out.startswith("Deleted: 1 webhook, 1 id, 0 counts of a day, 1 note of")
    assert run(store, "select place from extract.inbox order by 1") == [(2,), (3,), (4,), (5,), (7,)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["prune", "--older-than", "a month"], "such as 30d"),
        (["prune", "--brought-older-than", "0d"], "such as 30d"),
        (["prune", "--schema", "nowhere"], "airflow extract migrate"),
        (["show", "--schema", "nowhere"], "airflow extract migrate"),
        (["dead", "list", "--schema", "nowhere"], "airflow extract migrate"),
        (["dead", "list", "--limit", "0"], "--limit: '0'"),
        (["dead", "list", "--sources", "nowhere"], "nowhere"),
        (["dead", "replay", "shop"], "or --all"),
        (["dead", "drop", "shop", "--place", "1", "--all"], "or --all"),
        (["dead", "replay", "shop", "--place", "1"], "No such dead message of 'shop'"),
        (["dead", "drop", "nobody", "--all"], "No such dead message of 'nobody'"),
    ],
)
def test_what_is_not_understood(
    store: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line or two that say what is wrong, and code 1; nothing is changed."""
    fill(store)
    with pytest.raises(SystemExit) as ended:
        extract("inbox", *arguments)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert run(store, "select count(*) from extract.inbox_parked where dead") == [(3,)]
