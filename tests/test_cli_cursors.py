"""`airflow extract cursors ...` and the commands for changed names: a real store, Airflow's API on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from airflow.cli import cli_parser

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.cursor import Cursor, cursor_key
from airflow_extract_provider.extract.pipeline import Summary, WalkName, run
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.rest_cursors import RestCursors, login_from
from airflow_extract_provider.testing.hostile import HostileApi
from tests.hazards.kinds import KINDS
from tests.test_cli import _connection
from tests.variables_api import VariablesApi

KIND = KINDS["page updated"]
BACKFILL, INCREMENTAL = (cursor_key("shop", "things", walk) for walk in ("backfill", "incremental"))


class Shop:
    """A source of forty records, copied and once changed; its store, and the Variables beside it."""

    def __init__(self, dsn: str, folder: Path, api: HostileApi, variables: VariablesApi) -> None:
        self.dsn, self.folder, self.api, self.variables = dsn, folder, api, variables
        self.login = {"AIRFLOW_EXTRACT_API_TOKEN": variables.token}
        self.sources = str(folder)
        self.brought: Summary | None = None

    def write(self, name: str = "shop", object: str = "things", **changes: Any) -> None:
        """The source file, anew."""
        for file in self.folder.glob("*.yaml"):
            file.unlink()
        source = {"source": name, "connection": "shop", "objects": {object: KIND.described(**changes)}}
        (self.folder / f"{name}.yaml").write_text(json.dumps(source))

    def run(self, walk: WalkName = "backfill", object: str = "things", *, shown: bool = True) -> Summary:
        """Run a walk to its end."""
        (file,) = self.folder.glob("*.yaml")
        source = load_source(file)
        cursor = RestCursors(self.variables.url, login_from(self.login)) if shown else None
        client = ApiClient(source, requests.Session(), self.api.url)
        return run(source, object, walk, postgres=connecting(self.dsn), client=client, cursor=cursor)

    def change(self) -> Summary:
        """Three records change, and are brought an hour later."""
        self.api.update(*self.api.ids[:3])
        self.api.clock.advance(3600)
        return self.run("incremental")

    def ask(self, text: str) -> list[tuple[Any, ...]]:
        """Rows of the store."""
        with psycopg.connect(self.dsn) as conn:
            found = conn.execute(text.encode())
            return found.fetchall() if found.description else []

    def cursor(self, key: str) -> dict[str, Any]:
        """A cursor as people see it."""
        found: dict[str, Any] = json.loads(self.variables.values[key])
        return found


@pytest.fixture
def shop(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The shop, copied and changed, with a login for commands."""
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", _connection(dsn))
    with HostileApi(seed=1, listings={"/things": KIND.served()}) as api, VariablesApi() as variables:
        monkeypatch.setenv("AIRFLOW_EXTRACT_API_TOKEN", variables.token)
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", variables.url)
        made = Shop(dsn, tmp_path, api, variables)
        made.write()
        extract_now("migrate", "--sources", made.sources)
        api.insert(40)
        api.clock.advance(3600)
        made.run()
        made.brought = made.change()
        yield made


def extract_now(*arguments: str) -> None:
    """Run a command in this process."""
    args = cli_parser.get_parser().parse_args(["extract", *arguments])
    work: Callable[..., None] = args.func
    work(args)


@pytest.fixture
def extract(capsys: pytest.CaptureFixture[str], shop: Shop) -> Callable[..., str]:
    """Runs a command; gives what it prints."""

    def work(*arguments: str) -> str:
        capsys.readouterr()
        extract_now(*arguments)
        return capsys.readouterr().out

    return work


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], shop: Shop) -> Callable[..., str]:
    """Runs a command that must end with code 1 and a few lines, without a change of store or Variables."""

    def work(*arguments: str) -> str:
        capsys.readouterr()
        before = shop.ask("select * from extract.ledger order by sequence"), dict(shop.variables.values)
        with pytest.raises(SystemExit) as ended:
            extract_now(*arguments)
        assert ended.value.code == 1
        assert (shop.ask("select * from extract.ledger order by sequence"), shop.variables.values) == before
        told = capsys.readouterr().err
        assert len(told.splitlines()) <= 4
        assert all(len(line) < 500 for line in told.splitlines())
        assert shop.variables.token not in told
        return told

    return work


def test_list_and_show(shop: Shop, extract: Callable[..., str]) -> None:
    """What the ledger says, and how the Variable stands to it: untouched, behind, edited, deleted, nonsense."""
    told = extract("cursors", "list").splitlines()
    assert [line.split("   ")[:2] for line in told] == [["shop/things", "backfill"], ["shop/things", "incremental"]]
    assert all("complete   closed at" in line and line.endswith("the Variable agrees") for line in told)
    assert "40 records" in told[0]
    earlier = {"closed": shop.cursor(BACKFILL)["closed"]}
    ledger = Ledger("extract", "shop", "things", "incremental")
    for key, text, state in (
        (INCREMENTAL, json.dumps(shop.cursor(INCREMENTAL) | earlier), "EDITED"),
        (INCREMENTAL, "nonsense", "is no cursor"),
        (INCREMENTAL, None, "MISSING"),
    ):
        shop.variables.values.pop(key)
        shop.variables.values |= {} if text is None else {key: text}
        assert state in extract("cursors", "list", "shop", "things").splitlines()[1]
        shop.variables.values[key] = "kept for the next"
    with psycopg.connect(shop.dsn) as conn:
        head = ledger.head(conn)
        assert head is not None
        first = conn.execute("select min(sequence) from extract.ledger where walk = 'incremental'").fetchone()
        assert first is not None
        row = ledger.row(conn, first[0])
        assert row is not None
        conn.execute("update extract.ledger set shown = false where walk = 'incremental'")
    shop.variables.values[INCREMENTAL] = Cursor(first[0], row.position).as_text()
    assert "behind the ledger" in extract("cursors", "list").splitlines()[1]
    told_all = extract("cursors", "show", "shop", "things", "incremental")
    assert f"The Variable {INCREMENTAL}:" in told_all
    assert f'"sequence": {first[0]}' in told_all
    assert f'"sequence": {head.sequence}' in told_all
    assert "no walk" in extract("cursors", "list", "nothing")


def test_set_an_instant(shop: Shop, extract: Callable[..., str]) -> None:
    """The next run reads again what has changed since then, and says so; nothing is written that has not changed."""
    back_to = shop.cursor(BACKFILL)["closed"]
    told = extract("cursors", "set", "shop", "things", "incremental", "--closed", back_to, "--sources", shop.sources)
    assert "The next run follows the edited Variable" in told
    assert "EDITED" in extract("cursors", "list", "shop").splitlines()[1]
    again = shop.run("incremental")
    assert shop.brought is not None
    assert (again.records, again.counts["updated"]) == (shop.brought.records, 0)
    assert shop.brought.counts["updated"] == 3
    assert "agrees" in extract("cursors", "list", "shop").splitlines()[1]


def test_set_a_text(shop: Shop, extract: Callable[..., str], tmp_path: Path) -> None:
    """An older row of the ledger, as a text or a file, is gone back to; where the walk stands, nothing happens."""
    rows = shop.ask(
        "select (jsonb_build_object('sequence', sequence) || position)::text from extract.ledger"
        " where walk = 'backfill' and kind = 'page' order by sequence"
    )
    file = tmp_path / "cursor.txt"
    file.write_text(rows[0][0])
    given = ("cursors", "set", "shop", "things", "backfill", "--sources", shop.sources)
    told = extract(*given, "--file", str(file))
    assert "back to page 1 (10 records)" in told
    assert json.loads(shop.variables.values[BACKFILL]) == json.loads(rows[0][0])
    assert shop.run().requests > 2
    assert shop.run().requests == 0
    assert "stands already" in extract(*given, "--text", shop.variables.values[BACKFILL])
    assert shop.run().requests == 0


def test_set_a_row_that_was_never_shown(shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """After a renaming no row counts as shown; an older one that is given is gone back to, and not taken for a cursor
    that lags behind. One from before the last start over is refused."""
    rows = shop.ask(
        "select (jsonb_build_object('sequence', sequence) || position)::text from extract.ledger"
        " where walk = 'backfill' and kind = 'page' order by sequence"
    )
    shop.write(object="people")
    extract("rename", "shop", "things", "people", "--sources", shop.sources)
    (made,) = shop.ask("select position ->> 'made' from extract.ledger where walk = 'backfill' limit 1")[0]
    given = ("cursors", "set", "shop", "people", "backfill", "--sources", shop.sources, "--text")
    text = json.dumps(json.loads(rows[0][0]) | {"made": made})
    assert "back to page 1 (10 records)" in extract(*given, text)
    assert shop.run(object="people").requests > 2
    shop.ask("update extract.ledger set shown = false")
    extract("cursors", "reset", "shop", "people", "backfill", "--yes", "shop/people")
    shop.run(object="people")
    shop.ask("update extract.ledger set shown = false")
    assert "older than the walk's last start over" in refused(*given, text)


def _edited(shop: Shop, key: str, **changes: Any) -> str:
    return json.dumps({**shop.cursor(key), **changes})


REFUSED: Mapping[str, tuple[str, Callable[[Shop], list[str]], str]] = {
    "a later instant": ("incremental", lambda shop: ["--closed", "2030-01-01T00:00:00Z"], "CursorAheadError"),
    "without a zone": ("incremental", lambda shop: ["--closed", "2020-01-01T00:00:00"], "no instant with a zone"),
    "no instant": ("incremental", lambda shop: ["--closed", "yesterday"], "no instant with a zone"),
    "an instant of a backfill": ("backfill", lambda shop: ["--closed", "2020-01-01T00:00:00Z"], "CursorInvalidError"),
    "a naive instant in a text": (
        "incremental",
        lambda shop: ["--text", _edited(shop, INCREMENTAL, closed="2020-01-01T00:00:00")],
        "CursorInvalidError",
    ),
    "an instant beyond, in a text": (
        "incremental",
        lambda shop: ["--text", _edited(shop, INCREMENTAL, closed="2030-01-01T00:00:00Z")],
        "CursorAheadError",
    ),
    "no instant in a text": (
        "incremental",
        lambda shop: ["--text", _edited(shop, INCREMENTAL, closed=None)],
        "CursorAheadError",
    ),
    "a place never reached": (
        "backfill",
        lambda shop: ["--text", _edited(shop, BACKFILL, place={"by": "page", "number": 77}, complete=False)],
        "CursorAheadError",
    ),
    "another config's": (
        "backfill",
        lambda shop: ["--text", _edited(shop, BACKFILL, place={"by": "last_key", "after": "1"}, complete=False)],
        "CursorAheadError",
    ),
    "nonsense": ("backfill", lambda shop: ["--text", "nonsense"], "CursorInvalidError"),
    "a list": ("backfill", lambda shop: ["--text", "[]"], "CursorInvalidError"),
    "an unknown field": (
        "backfill",
        lambda shop: ["--text", _edited(shop, BACKFILL, surprise=1)],
        "CursorInvalidError",
    ),
    "a name twice": (
        "backfill",
        lambda shop: ["--text", shop.variables.values[BACKFILL].replace('"sequence"', '"sequence": 1, "sequence"')],
        "CursorInvalidError",
    ),
    "a walk without cursor": ("by_key", lambda shop: ["--text", "{}"], "is no walk that has a cursor"),
    "two of them": ("backfill", lambda shop: ["--text", "{}", "--closed", "x"], "Give one of"),
    "none of them": ("backfill", lambda shop: [], "Give one of"),
    "no file": ("backfill", lambda shop: ["--file", "/nowhere"], "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_set_refuses_what_a_run_would(name: str, shop: Shop, refused: Callable[..., str]) -> None:
    """Before anything is written."""
    walk, given, told = REFUSED[name]
    assert told in refused("cursors", "set", "shop", "things", walk, *given(shop), "--sources", shop.sources)


def test_not_beside_a_run(shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """The run would write its own cursor over it: it is named, and nothing is written, unless the walk is taken."""
    with psycopg.connect(shop.dsn, autocommit=True) as conn:
        scope = Scope("shop", "things", "*")
        acquire(conn, "extract", scope, "walk", "the walk", silent_after=timedelta(minutes=5))
    back_to = shop.cursor(BACKFILL)["closed"]
    given = ("cursors", "set", "shop", "things", "incremental", "--closed", back_to, "--sources", shop.sources)
    assert "held by the walk" in refused(*given)
    reset = ("cursors", "reset", "shop", "things", "incremental", "--yes", "shop/things")
    assert "held by the walk" in refused(*reset)
    assert "written" in extract(*given, "--take-over")
    assert shop.ask("select runner from extract.fence where source = 'shop'") == [(None,)]


@pytest.mark.parametrize("shown", [True, False])
def test_reset(shown: bool, shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """Only when it is meant; then the next run starts over, also where no cursor was ever written."""
    if not shown:
        shop.ask("update extract.ledger set shown = false")
        shop.variables.values.clear()
    given = ("cursors", "reset", "shop", "things", "backfill")
    assert "If that is meant, repeat it with --yes shop/things" in refused(*given)
    assert "repeat it with" in refused(*given, "--yes", "shop/thing")
    assert "starts over" in extract(*given, "--yes", "shop/things")
    assert BACKFILL not in shop.variables.values
    again = shop.run()
    assert (again.records, again.counts["updated"], again.counts["created"]) == (40, 0, 0)
    assert shop.ask("select count(*) from extract.ledger where kind = 'reset'") == [(1,)]
    assert shop.run().requests == 0


def test_reset_at_another_airflow(shop: Shop, refused: Callable[..., str]) -> None:
    """Nothing is claimed to be deleted where there was nothing; the address is told, without a login in it."""
    given = ("cursors", "reset", "shop", "things", "backfill", "--yes", "shop/things", "--api-url")
    with VariablesApi() as other:
        told = refused(*given, other.url.replace("//", "//ada:marked@"))
    assert f"there is none at {other.url}. Nothing was done. Is this the Airflow that runs it?" in told
    assert shop.run().requests == 0


def test_list_with_one_that_is_masked(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so, with what shows it; the others are told all the same, and the code is 1."""
    shop.variables.masked.add(BACKFILL)
    monkeypatch.setenv(f"AIRFLOW_VAR_{cursor_key('shop', 'things', 'rebackfill').upper()}", "x")
    shop.ask(
        "insert into extract.ledger (source, object, walk, kind, position)"
        " select source, object, 'rebackfill', 'start', position from extract.ledger where kind = 'start' limit 1"
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        extract_now("cursors", "list")
    told = capsys.readouterr()
    assert ended.value.code == 1
    first, second, third = told.out.splitlines()
    assert "40 records" in first
    assert "NOT READABLE" in first
    assert "Airflow masks it" in first
    assert second.endswith("the Variable agrees")
    assert "is hidden by the environment variable" in third
    assert told.err.startswith("CursorUnreadableError: ")
    assert f"`airflow variables get {BACKFILL}`" in told.err


def test_reset_of_nothing(shop: Shop, refused: Callable[..., str]) -> None:
    """A walk that never began, and an object that is not known."""
    for object, walk in (("things", "rebackfill"), ("nothing", "backfill")):
        name = f"shop/{object}"
        told = refused("cursors", "reset", "shop", object, walk, "--yes", name)
        assert f"knows no walk {walk} of {name}" in told


@pytest.mark.parametrize("answer", [(500, {}), (403, {"detail": "Forbidden"}), (404, "<html>"), (401, {})], ids=str)
def test_an_api_that_does_not_answer(answer: Any, shop: Shop, refused: Callable[..., str]) -> None:
    """Nothing is taken for missing, nothing is written, and no secret is told."""
    shop.variables.fault = lambda method, path: answer
    back_to = shop.cursor(BACKFILL)["closed"]
    for arguments in (
        ("list",),
        ("show", "shop", "things", "backfill"),
        ("set", "shop", "things", "incremental", "--closed", back_to, "--sources", shop.sources),
        ("reset", "shop", "things", "backfill", "--yes", "shop/things"),
    ):
        assert refused("cursors", *arguments).startswith("CursorUnreadableError: ")


@pytest.mark.parametrize("url", ["", "/", "localhost:8080"])
def test_where_is_the_api(url: str, shop: Shop, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address it is asked for; `--api-url` is obeyed."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", url)
    assert "Give --api-url" in refused("cursors", "list")
    extract_now("cursors", "list", "--api-url", shop.variables.url)


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_renamed_object(shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """`migrate` names the command; after it the walks go on, with cursors of their own."""
    shop.write(object="items")
    told = refused("migrate", "--sources", shop.sources)
    assert told.startswith("LeftBehindError: shop/items: the store does not know the object items")
    assert "airflow extract rename shop things items" in told
    told = extract("rename", "shop", "things", "items", "--sources", shop.sources)
    assert "shop/things is shop/items now   table shop.things is shop.items now" in told
    assert "extract_shop_things_..._cursor" in told
    assert "Nothing to do" in extract("migrate", "--sources", shop.sources)
    assert shop.run(object="items").requests == 0
    shop.api.update(*shop.api.ids[:2])
    shop.api.clock.advance(3600)
    assert shop.run("incremental", "items").counts["updated"] == 2
    assert "shop/items" in extract("cursors", "list")


def test_events_go_on_under_the_new_name(shop: Shop, extract: Callable[..., str]) -> None:
    """The copy was complete before it was renamed: what is new then is told of, once, and nothing else is."""
    shop.write(object="items", events=["created", "deleted"])
    extract("rename", "shop", "things", "items", "--sources", shop.sources)
    shop.run(object="items")
    shop.api.insert(1)
    shop.api.update(shop.api.ids[0])
    shop.api.clock.advance(3600)
    shop.run("incremental", "items")
    told = shop.ask("select object, key, type, baseline from extract.outbox")
    assert told == [("items", str(shop.api.ids[-1]), "shop.items.created", False)]


def test_a_renamed_source(shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """So of a source, with its schema."""
    shop.write(name="store")
    assert "airflow extract rename-source shop store" in refused("migrate", "--sources", shop.sources)
    told = extract("rename-source", "shop", "store", "--sources", shop.sources)
    assert "shop/things is store/things now   table shop.things is store.things now" in told
    assert "`usage` on the new schema" in told
    assert shop.run().requests == 0
    assert shop.ask("select count(*) from store.things") == [(40,)]


def test_another_table(shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """`table` in the file: the copy is moved on command; or, if it is said, a new one is made beside it."""
    shop.write(table="kept")
    assert "rename shop things things --table SCHEMA.TABLE" in refused("migrate", "--sources", shop.sources)
    for wrong in ("a.b.c", "shop."):
        assert "is no table" in refused(
            "rename", "shop", "things", "things", "--table", wrong, "--sources", shop.sources
        )
    told = extract("rename", "shop", "things", "things", "--table", "things", "--sources", shop.sources)
    assert told == "shop/things   table shop.things is shop.kept now\n"
    assert shop.run().requests == 0
    shop.write(table="anew")
    assert "table shop.anew" in extract("migrate", "--sources", shop.sources, "--new", "shop/things")


def test_taken_out_and_forgotten(shop: Shop, extract: Callable[..., str], refused: Callable[..., str]) -> None:
    """What no file describes is told of by `migrate`, and shown by `coverage`, until it is forgotten."""
    shop.write(name="other")
    told = extract("migrate", "--sources", shop.sources, "--new", "other")
    assert "table other.things" in told
    assert "shop/things: the store knows it (40 records read), and no file describes the source shop" in told
    assert "shop/things   covered" in extract("coverage")
    assert "repeat it with --yes shop" in refused("forget", "shop")
    drop = ("forget", "shop", "--sources", shop.sources, "--drop-table")
    assert "the table shop.things is dropped, with all its records" in refused(*drop, "shop.things")
    assert "is no table; write SCHEMA.TABLE" in refused(*drop, "things", "--yes", "shop")
    assert "holds the records of other/things" in refused(*drop, "other.things", "--yes", "shop")
    told = extract(*drop, "shop.things", "--yes", "shop")
    assert "shop/things   forgotten" in told
    assert "table shop.things dropped" in told
    assert shop.ask("select to_regclass('shop.things'), to_regclass('other.things') is null") == [(None, False)]
    assert "does not know shop" in refused("forget", "shop", "--yes", "shop")
    assert "Nothing is complete" in extract("coverage")
    assert extract("migrate", "--sources", shop.sources).startswith("Nothing to do")
