"""A source file that calls things otherwise: nothing is made beside what is there, and what is renamed goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    CursorAheadError,
    EventsUnreadError,
    ExtractError,
    LeftBehindError,
    PositionMismatchError,
    SchemaMissingError,
    SourceError,
    WalkBusyError,
)
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.relay import EachEvent, consume
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.fence import Scope, acquire, hold, holding
from airflow_extract_provider.extract.store.left_behind import left_behind
from airflow_extract_provider.extract.store.migrate import migrate, script
from airflow_extract_provider.extract.store.outbox import Wanted
from airflow_extract_provider.extract.store.owner import claim
from airflow_extract_provider.extract.store.rename import forget, rename, rename_source
from tests.extract.scene import KEYED, Scene, rows
from tests.extract.shown import Shown
from tests.loopback import Fault
from tests.store.applier import in_thread, wait_until_blocked

MakeScene = Callable[..., Scene]
BOOKS = ("brought", "inbox_parked", "ledger", "owner", "quarantine", "refetch", "rule_state", "sweep")
"""What is forgotten with an object."""
INBOX = ("inbox", "inbox_count", "inbox_seen")
"""What is forgotten with a source."""
BOTH_NAMES = ("fence", "birth", "hash_map")
"""These keep a row of the old name: numbers must never come twice."""
HISTORY = ("outbox", "parked", "quota")
"""Events keep the name that they were told under; quota is of a source."""


def ask(scene: Scene, text: str, **values: Any) -> list[tuple[Any, ...]]:
    """Rows by a statement with the scene's names."""
    names = {"books": sql.Identifier(scene.books), "schema": sql.Identifier(scene.name)}
    with scene.connect() as conn:
        found = conn.execute(sql.SQL(text).format(**names), values)
        return found.fetchall() if found.description else []


def everything(scene: Scene) -> dict[str, Any]:
    """All rows of the scene's books, but heartbeats, and the tables that there are."""
    told: dict[str, Any] = {"tables": ask(scene, "select schemaname, tablename from pg_tables order by 1, 2")}
    for table in (*BOOKS, *INBOX, *BOTH_NAMES[1:], "outbox", "quota"):
        found = ask(scene, "select to_jsonb(it) from {books}." + table + " as it order by 1")
        told[table] = [row[0] for row in found]
    told["fence"] = ask(
        scene, "select source, object, walk, part, number, runner from {books}.fence order by 1, 2, 3, 4"
    )
    return told


def half_way(scene: Scene, shown: Shown | None = None) -> None:
    """Two of six pages are stored, then the API is gone; a key is noted, and something of all else is in the books."""
    scene.api.rows = rows(55)
    scene.api.fault = lambda number, asked: Fault(500) if number > 2 else None
    scene.stops(ApiUnavailableError, cursor=shown)
    scene.api.fault = lambda number, asked: None
    del scene.api.asked[:]
    with scene.connect() as conn:
        refetch.note(conn, scene.books, scene.name, scene.object, ["r1"], "test")
    values = {"name": scene.name, "object": scene.object}
    ask(
        scene,
        "insert into {books}.quarantine (source, object, number, raw, digest, why, sent_at)"
        " values (%(name)s, %(object)s, 1, 'x', 'x', 'why', now());"
        "insert into {books}.rule_state values (%(name)s, %(object)s, 'rule', 'r1', 'made', true);"
        "insert into {books}.hash_map values (%(name)s, %(object)s, 4);"
        "insert into {books}.sweep (number, source, object, ended_at) values (%(number)s, %(name)s, %(object)s, now());"
        "insert into {books}.brought (source, object, key, revision, kind, by)"
        " values (%(name)s, %(object)s, 'r1', 1, 'created', 'poll');"
        "insert into {books}.inbox (source, endpoint, dedupe, body, done_at) values"
        " (%(name)s, 'main', gen_random_uuid(), 'parked', now()), (%(name)s, 'main', gen_random_uuid(), 'waits', null);"
        "insert into {books}.inbox_parked (place, nth, source, endpoint, object, key)"
        " select place, nth, source, endpoint, case when nth = 0 then '' else %(object)s end, ''"
        " from {books}.inbox, generate_series(0, 1) as nth"
        " where body = 'parked';"
        "insert into {books}.inbox_seen (source, endpoint, id) values (%(name)s, 'main', 'one');"
        "insert into {books}.inbox_count (source, endpoint, day, kind, count)"
        " values (%(name)s, 'main', '2026-01-01', 'received', 2);"
        "insert into {books}.quota (source, connection, state, revision) values (%(name)s, 'none', '{{}}', 3)".replace(
            "%(number)s", "(select max(sequence) from {books}.ledger)"
        )
        .replace("%(name)s", f"'{values['name']}'")
        .replace("%(object)s", f"'{values['object']}'"),
    )


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    """An object that publishes, in books of its own."""
    return make_scene(KEYED, own_books=True, events=["created", "deleted"], baseline="emit")


def go_on(scene: Scene, shown: Shown) -> None:
    """The rest of the walk asks for the pages behind, creates what they hold, and touches nothing before them."""
    summary = scene.run(cursor=shown)
    assert scene.api.asked[0].params["starting_after"]
    assert summary.complete
    scene.assert_exact()
    assert scene.revisions() == {1}
    assert ask(scene, "select count(*), count(distinct key) from {books}.outbox") == [(55, 55)]
    assert len(scene.api.asked) == 4


def test_an_object_is_renamed(scene: Scene) -> None:
    """Nothing is made and nothing is read under the new name before that is said; then it goes on where it stood."""
    shown = Shown()
    half_way(scene, shown)
    scene.object = "people"
    before = everything(scene)
    with pytest.raises(LeftBehindError, match=r"does not know the object people.*things \(19 records read\)") as caught:
        scene.migrate()
    assert f"airflow extract rename {scene.name} things people" in str(caught.value)
    scene.stops(SchemaMissingError, cursor=shown)
    assert everything(scene) == before
    moved = rename(scene.connect, scene.source, "things", "people", scene.books)
    assert (moved.to_table, moved.same) == ((scene.name, "people"), True)
    assert ask(scene, "select key from {books}.refetch where object = 'people'") == [("r1",)]
    scene.migrate()
    go_on(scene, shown)
    assert set(shown.texts) == {f"extract_{scene.name}_{name}_backfill_cursor" for name in ("things", "people")}


def test_everything_follows(scene: Scene) -> None:
    """No row of any table stays with the old name, but where numbers must never come twice; there it is free."""
    half_way(scene)
    scene.object = "people"
    rename(scene.connect, scene.source, "things", "people", scene.books)
    tables = ask(
        scene,
        "select table_name from information_schema.columns"
        " join information_schema.tables using (table_schema, table_name)"
        f" where table_schema = '{scene.books}' and column_name = 'object' and table_type = 'BASE TABLE'",
    )
    for (table,) in tables:
        told = {row[0] for row in ask(scene, "select distinct object from {books}." + table)}
        if table == "inbox_parked":
            assert told == {"people", ""}, "of a body that could not be read nobody knows the object"
        elif table not in HISTORY:
            assert told == ({"things", "people"} if table in BOTH_NAMES else {"people"}), table
    numbers = dict(ask(scene, "select object, number from {books}.fence where runner is null"))
    assert numbers["people"] > numbers["things"] - 1 > 1


def test_the_table_stays_where_its_name_is_given(make_scene: MakeScene) -> None:
    """With `table` nothing is renamed; and until the books are, the new name is not walked over the old copy."""
    scene, shown = make_scene(KEYED, own_books=True, events=["created"], baseline="emit", table="kept"), Shown()
    half_way(scene, shown)
    scene.object = "people"
    with pytest.raises(LeftBehindError):
        scene.migrate()
    scene.stops(LeftBehindError, cursor=shown)
    assert scene.api.asked == []
    moved = rename(scene.connect, scene.source, "things", "people", scene.books)
    assert moved.table == moved.to_table == (scene.name, "kept")
    go_on(scene, shown)


@pytest.mark.parametrize(
    "change", [{"table": "kept"}, {"schema": "elsewhere"}, {"table": "kept", "schema": "elsewhere"}], ids=str
)
def test_another_table(scene: Scene, change: dict[str, str]) -> None:
    """The copy is moved on command, and the walk goes on: its cursor is taken for no edit."""
    shown = Shown()
    half_way(scene, shown)
    scene.spec |= {name: f"{scene.name}_{value}" for name, value in change.items()}
    with pytest.raises(LeftBehindError, match="19 records were stored"):
        scene.migrate()
    before = everything(scene)
    with pytest.raises(SchemaMissingError, match="no table"):
        rename(scene.connect, scene.source, "things", "things", scene.books, table=(scene.name, "nothing"))
    assert everything(scene) == before
    rename(scene.connect, scene.source, "things", "things", scene.books, table=(scene.name, "things"))
    go_on(scene, shown)
    assert "edit" not in {row[0] for row in ask(scene, "select kind from {books}.ledger")}


def test_a_source_is_renamed(scene: Scene) -> None:
    """With its schema, and what was used of its limits; said to be all there is, it is noticed."""
    shown = Shown()
    half_way(scene, shown)
    old, scene.name = scene.name, f"{scene.name}_anew"
    with pytest.raises(LeftBehindError, match=f"but {old}, which no file describes") as caught:
        scene.migrate(whole=True)
    assert f"airflow extract rename-source {old} {scene.name}" in str(caught.value)
    (moved,) = rename_source(scene.connect, scene.source, old, scene.books)
    assert (moved.table, moved.to_table) == ((old, "things"), (scene.name, "things"))
    assert ask(scene, "select source, revision from {books}.quota") == [(scene.name, 3)]
    for table in (*BOOKS, *INBOX):
        assert ask(scene, "select distinct source from {books}." + table) == [(scene.name,)], table
    scene.migrate(whole=True)
    go_on(scene, shown)


def test_a_source_that_is_new_or_beside(scene: Scene) -> None:
    """Said to be new it is; and where the store is for other sources too, nobody is asked."""
    half_way(scene)
    others = parse_source(
        {"source": f"{scene.name}_other", "connection": "none", "objects": {"things": scene.spec}}, "test"
    )
    assert migrate(scene.connect, [scene.source, others], scene.books, whole=True)
    beside = others.model_copy(update={"source": f"{scene.name}_beside"})
    assert migrate(scene.connect, [beside], scene.books)
    new = others.model_copy(update={"source": f"{scene.name}_new"})
    assert migrate(scene.connect, [new], scene.books, new=[new.source], whole=True)


def test_new_beside_one_that_was_taken_out(scene: Scene) -> None:
    """An object that is said to be new is made, once; the one that was taken out keeps its rows, and is told of."""
    half_way(scene)
    scene.object = "people"
    scene.migrate(new=[f"{scene.name}/people"])
    scene.migrate()
    scene.run()
    scene.assert_exact()
    with scene.connect() as conn:
        (told, endpoint) = left_behind(conn, scene.books, [scene.source])
        (unknown, _, inbox) = left_behind(conn, scene.books, [])
    assert "things" in told
    assert "19 records read" in told
    assert f"{scene.name}/main: webhooks wait in the inbox, and the file does not describe the endpoint" in endpoint
    assert "rename-source" in unknown
    assert f"no file describes the source {scene.name}" in inbox
    assert ask(scene, "select count(*) from {schema}.things") == [(19,)]


def test_a_crash_in_the_middle(scene: Scene) -> None:
    """Whatever fails, nothing is changed; the same command then does it all."""
    half_way(scene)
    before = everything(scene)
    ask(
        scene,
        "create function {books}.crash() returns trigger language plpgsql as $$ begin raise 'crash'; end $$;"
        "create trigger crash before insert or update on {books}.fence for each row"
        " when (new.object = 'people' and new.runner is null) execute function {books}.crash()",
    )
    old, scene.object = "things", "people"
    with pytest.raises(ExtractError, match="refuses a statement"):
        rename(scene.connect, scene.source, old, "people", scene.books)
    assert everything(scene) == before
    ask(scene, "drop trigger crash on {books}.fence")
    rename(scene.connect, scene.source, old, "people", scene.books)
    go_on(scene, Shown())


@pytest.mark.parametrize("walk", ["*", "window"])
def test_not_while_it_is_walked(scene: Scene, walk: str) -> None:
    """Whoever holds it, in whichever part, is named; a holder that was overtaken by the renaming commits nothing."""
    half_way(scene)
    scope = Scope(scene.name, "things", walk, "" if walk == "*" else "part")
    with scene.connect() as holder:
        holder.autocommit = True
        fence = acquire(holder, scene.books, scope, "walk", "the walk", silent_after=timedelta(minutes=5))
        before = everything(scene)
        scene.object = "people"
        for change in (
            lambda: rename(scene.connect, scene.source, "things", "people", scene.books),
            lambda: forget(scene.connect, scene.name, "things", scene.books),
        ):
            with pytest.raises(WalkBusyError, match="held by the walk"):
                change()
        assert everything(scene) == before
        # It has been stopped for long, and wakes when the name is another one's.
        ask(scene, "update {books}.fence set heartbeat = now() - interval '1 hour'")
        rename(scene.connect, scene.source, "things", "people", scene.books)
        with pytest.raises(ExtractError, match="lost the walk"):
            hold(holder, scene.books, fence)


def test_names_that_do_not_fit(scene: Scene) -> None:
    """What the store does not know, or knows already, and a table that is in the way: named, and nothing is changed."""
    half_way(scene)
    old, scene.object = "things", "people"
    before = everything(scene)
    with pytest.raises(SourceError, match=r"does not know .*/nothing"):
        rename(scene.connect, scene.source, "nothing", "people", scene.books)
    with pytest.raises(SourceError, match="no object 'things'"):
        rename(scene.connect, scene.source, "things", "things", scene.books)
    with pytest.raises(SourceError, match="no source"):
        rename_source(scene.connect, scene.source, "nothing", scene.books)
    with pytest.raises(SourceError, match="does not know"):
        forget(scene.connect, scene.name, "nothing", scene.books)
    assert everything(scene) == before
    scene.migrate(new=["people"])
    with pytest.raises(SchemaMissingError, match="already"):
        rename(scene.connect, scene.source, old, "people", scene.books)
    scene.run()
    with pytest.raises(SourceError, match=r"knows .*/people already"):
        rename(scene.connect, scene.source, old, "people", scene.books)


def test_with_other_records_too(scene: Scene) -> None:
    """Renamed together with its request it is told of, and stops by name until the backfill has started over."""
    half_way(scene)
    scene.object, scene.spec["params"] = "people", {"status": "all"}
    assert not rename(scene.connect, scene.source, "things", "people", scene.books).same
    scene.stops(PositionMismatchError)
    scene.run(reset=True)
    scene.assert_exact()
    assert scene.revisions() == {1}


def test_forgotten(scene: Scene) -> None:
    """The books are empty but for what keeps ids and fences apart; begun again, events have ids of their own, and the
    old cursor is refused rather than followed."""
    shown = Shown()
    half_way(scene, shown)
    scene.run(cursor=shown)
    with scene.connect() as holder:
        holder.autocommit = True
        scope = Scope(scene.name, "things", "*")
        stopped = acquire(holder, scene.books, scope, "stopped", "stopped", silent_after=timedelta(0))
        ask(scene, "update {books}.fence set heartbeat = now() - interval '1 hour'")
        table = (scene.name, "things")
        (gone,) = forget(scene.connect, scene.name, None, scene.books, drop=[table], described=[scene.source])
        assert gone.table == table
        for name in (*BOOKS, *INBOX, "sweep_seen"):
            assert ask(scene, "select * from {books}." + name) == [], name
        scene.migrate(whole=True)
        scene.stops(CursorAheadError, cursor=shown)
        shown.texts.clear()
        scene.run(cursor=shown)
        scene.assert_exact()
        with pytest.raises(ExtractError, match="lost the walk"), holding(holder, scene.books, stopped):
            pass
    assert ask(scene, "select count(*), count(distinct id) from {books}.outbox") == [(110, 110)]


def test_forgotten_and_the_table_kept(scene: Scene) -> None:
    """The records stay, and are found unchanged when the object is described again."""
    half_way(scene)
    scene.run()
    (gone,) = forget(scene.connect, scene.name, "things", scene.books)
    assert gone.table == (scene.name, "things")
    assert ask(scene, "select object from {books}.inbox_parked") == [("",)]
    assert ask(scene, "select body from {books}.inbox where done_at is null") == [(b"waits",)]
    with pytest.raises(SourceError):
        forget(scene.connect, scene.name, "things", scene.books)
    summary = scene.run()
    assert (summary.counts["unchanged"], summary.counts["created"]) == (55, 0)


def test_back_and_forth(scene: Scene) -> None:
    """Renamed twice, to where it came from: the old Variable is none that was edited, and no id comes twice."""
    shown = Shown()
    half_way(scene, shown)
    scene.object = "people"
    rename(scene.connect, scene.source, "things", "people", scene.books)
    scene.object = "things"
    rename(scene.connect, scene.source, "people", "things", scene.books)
    go_on(scene, shown)


def test_a_table_of_others_is_not_dropped(scene: Scene) -> None:
    """Neither one that is no record table, nor one that is not there; and nothing is forgotten then."""
    half_way(scene)
    ask(scene, "create table {schema}.mine (id text)")
    before = everything(scene)
    for name in ("mine", "nothing"):
        with pytest.raises(SchemaMissingError):
            forget(scene.connect, scene.name, "things", scene.books, drop=[(scene.name, name)])
    assert everything(scene) == before


def test_a_table_in_use(scene: Scene) -> None:
    """Somebody reads the table: the renaming waits for it, and is done then."""
    half_way(scene)
    scene.object = "people"
    with scene.connect() as reader:
        reader.execute(sql.SQL("select from {}.things").format(sql.Identifier(scene.name)))
        timer = threading.Timer(0.3, reader.rollback)
        timer.start()
        rename(scene.connect, scene.source, "things", "people", scene.books)
        timer.join()
        assert reader.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


# The inbox -----------------------------------------------------------------------------------------------------------


def test_webhooks_that_came_meanwhile(scene: Scene) -> None:
    """Under the new name before the books were renamed, and under the old one afterwards: none is lost, and what is the
    same under both is applied twice. What was counted is added up."""
    half_way(scene)
    old, scene.name = scene.name, f"{scene.name}_anew"
    came = (
        "insert into {books}.inbox (source, endpoint, dedupe, body)"
        f" select '{scene.name}', endpoint, dedupe, 'again' from {{books}}.inbox"
        f" where source = '{old}' and body = 'waits';"
        f"insert into {{books}}.inbox_count (source, endpoint, day, kind, count)"
        f" values ('{scene.name}', 'main', '2026-01-01', 'received', 5);"
        f"insert into {{books}}.inbox_seen (source, endpoint, id) values ('{scene.name}', 'main', 'one')"
    )
    ask(scene, came)
    rename_source(scene.connect, scene.source, old, scene.books)
    kept = ask(scene, "select source, body, dedupe is null from {books}.inbox order by body")
    assert kept == [(scene.name, b"again", False), (scene.name, b"parked", False), (scene.name, b"waits", True)]
    assert ask(scene, "select source, count from {books}.inbox_count") == [(scene.name, 7)]
    assert ask(scene, "select source, id from {books}.inbox_seen") == [(scene.name, "one")]
    ask(scene, f"insert into {{books}}.inbox (source, endpoint, body) values ('{old}', 'main', 'late')")
    assert rename_source(scene.connect, scene.source, old, scene.books) == []
    assert ask(scene, "select distinct source from {books}.inbox") == [(scene.name,)]
    with pytest.raises(SourceError, match="no source"):
        rename_source(scene.connect, scene.source, old, scene.books)


def test_what_a_run_parks_follows(scene: Scene) -> None:
    """A webhook is being taken out while its source is renamed: the renaming waits, and what was parked follows."""
    half_way(scene)
    old, scene.name = scene.name, f"{scene.name}_anew"
    opened: list[Connection] = []

    def watched() -> Connection:
        opened.append(connecting_to())
        return opened[-1]

    connecting_to = scene.connect
    with connecting_to() as drain, connecting_to() as looker:
        looker.autocommit = True
        books = sql.Identifier(scene.books)
        drain.execute(
            sql.SQL(
                "with taken as (update {0}.inbox set done_at = now() where body = 'waits' returning place)"
                " insert into {0}.inbox_parked (place, nth, source, endpoint, object)"
                " select place, 1, {1}, 'main', 'strange' from taken"
            ).format(books, old)
        )
        renaming = in_thread(lambda: rename_source(watched, scene.source, old, scene.books))
        while not opened:
            time.sleep(0.01)
        wait_until_blocked(looker, opened[0].info.backend_pid)
        drain.commit()
        assert len(renaming.result(20)) == 1
    for table in ("inbox", "inbox_parked"):
        assert ask(scene, "select distinct source from {books}." + table) == [(scene.name,)], table


def test_a_source_that_is_only_in_the_inbox(scene: Scene) -> None:
    """It was never walked: it can be renamed and given up all the same."""
    scene.migrate()
    old, scene.name = scene.name, f"{scene.name}_anew"
    ask(scene, f"insert into {{books}}.inbox (source, endpoint, body) values ('{old}', 'main', 'waits')")
    assert rename_source(scene.connect, scene.source, old, scene.books) == []
    assert ask(scene, "select source from {books}.inbox") == [(scene.name,)]
    with pytest.raises(SourceError, match="does not know"):
        forget(scene.connect, scene.name, "things", scene.books)
    assert forget(scene.connect, scene.name, None, scene.books) == []
    assert ask(scene, "select * from {books}.inbox") == []


# Whose a table is ----------------------------------------------------------------------------------------------------


def described(scene: Scene, **objects: Any) -> Source:
    """The scene's source with these objects."""
    return parse_source({"source": scene.name, "connection": "none", "objects": objects}, "test")


def things_by_another_name(scene: Scene) -> Source:
    """What was `things` is `people`, in the table `things`; a new object is called `things`, in the table `other`."""
    scene.api.rows = rows(12)
    scene.run()
    scene.object, scene.spec["table"] = "people", "things"
    rename(scene.connect, scene.source, "things", "people", scene.books)
    both = described(scene, people=scene.spec, things={**KEYED, "table": "other"})
    assert migrate(scene.connect, [both], scene.books) == [f"table {scene.name}.other"]
    run(both, "things", postgres=scene.connect, client=scene.client(), settings=scene.settings())
    return both


def test_the_table_of_another_is_not_dropped(make_scene: MakeScene) -> None:
    """However it is called: it is dropped only with the object that writes it."""
    scene = make_scene(KEYED, own_books=True)
    both = things_by_another_name(scene)
    before = everything(scene)
    for known in ([both], []):
        with pytest.raises(SourceError, match=rf"{scene.name}\.things holds the records of {scene.name}/people"):
            forget(scene.connect, scene.name, "things", scene.books, drop=[(scene.name, "things")], described=known)
    # Of a store where that was not noted, the source files tell; of objects that none describes, their names.
    ask(scene, "delete from {books}.owner")
    with pytest.raises(SourceError, match="holds the records of"):
        forget(scene.connect, scene.name, "things", scene.books, drop=[(scene.name, "things")], described=[both])
    with pytest.raises(SourceError, match=f"holds the records of {scene.name}/things"):
        forget(scene.connect, scene.name, "people", scene.books, drop=[(scene.name, "things")])
    migrate(scene.connect, [both], scene.books)
    assert everything(scene) == before
    (gone,) = forget(scene.connect, scene.name, "things", scene.books, drop=[(scene.name, "other")], described=[both])
    assert gone.table == (scene.name, "other")
    assert scene.run().complete
    scene.assert_exact()


def test_a_table_has_one_owner(make_scene: MakeScene) -> None:
    """A source of another name, whose table is given and so the same, reads nothing and makes nothing, whether it is
    said to be new or not; after the renaming the old one does."""
    scene = make_scene(KEYED, own_books=True, events=["created"], schema="pinned")
    scene.api.rows = rows(12)
    scene.run()
    old, scene.name = scene.name, f"{scene.name}_anew"
    asked = len(scene.api.asked)
    caught = scene.stops(LeftBehindError)
    assert f"the table pinned.things holds the records of {old}/things" in str(caught)
    assert f"airflow extract rename-source {old} {scene.name}" in str(caught)
    for new in ([], [scene.name]):
        with pytest.raises(LeftBehindError, match="two objects cannot write one table"):
            scene.migrate(new=new)
    rename_source(scene.connect, scene.source, old, scene.books)
    assert ask(scene, "select source, object, schema, name from {books}.owner") == [
        (scene.name, "things", "pinned", "things")
    ]
    now, scene.name = scene.name, old
    assert f"{now}/things" in str(scene.stops(LeftBehindError))
    assert len(scene.api.asked) == asked
    scene.name = now
    assert scene.run().complete


def test_a_table_that_was_only_made(scene: Scene) -> None:
    """Who was described and never walked keeps nobody from its table, nor from another one."""
    scene.spec["table"] = "kept"
    scene.migrate()
    scene.object = "people"
    scene.migrate()
    scene.api.rows = rows(12)
    scene.run()
    assert ask(scene, "select object, name from {books}.owner") == [("people", "kept")]
    scene.assert_exact()


def test_a_table_that_is_taken_meanwhile(scene: Scene) -> None:
    """Between the check of a first walk and its first row another object takes the table: nothing is read."""
    scene.api.rows = rows(12)
    opened: list[Connection] = []

    def watched() -> Connection:
        opened.append(connecting_to())
        return opened[-1]

    connecting_to, scene.connect = scene.connect, watched
    with connecting_to() as other, connecting_to() as looker:
        looker.autocommit = True
        claim(other, scene.books, scene.name, "people", (scene.name, "things"))
        walk = in_thread(lambda: scene.stops(LeftBehindError))
        while not opened:
            time.sleep(0.01)
        wait_until_blocked(looker, opened[0].info.backend_pid)
        other.commit()
        assert "two objects cannot write one table" in str(walk.result(20))
    assert scene.api.asked == []
    assert ask(scene, "select count(*) from {books}.ledger") == [(0,)]


def test_no_table_of_a_third_is_moved(make_scene: MakeScene) -> None:
    """Named by mistake as the one that holds the copy."""
    scene = make_scene(KEYED, own_books=True)
    both = things_by_another_name(scene)
    before = everything(scene)
    anew = described(scene, people=both.objects["people"], items={**KEYED})
    with pytest.raises(LeftBehindError, match=f"holds the records of {scene.name}/people"):
        rename(scene.connect, anew, "things", "items", scene.books, table=(scene.name, "things"))
    assert everything(scene) == before
    assert rename(scene.connect, anew, "things", "items", scene.books).table == (scene.name, "other")


@pytest.mark.parametrize("new", [False, True])
def test_tables_made_by_hand(scene: Scene, new: bool) -> None:
    """`migrate --sql` looks for nothing; the first walk does, unless the object was said to be new."""
    half_way(scene)
    scene.object = "people"
    text = script([scene.source], scene.books, new=[f"{scene.name}/people"] if new else [])
    ask(scene, text.replace("{", "{{").replace("}", "}}"))
    if new:
        assert scene.run().complete
    else:
        assert "rename" in scene.stops(LeftBehindError).todo
        assert scene.api.asked == []


def test_another_table_that_is_there(scene: Scene) -> None:
    """Found by `migrate` and by a run; the copy is in the other one."""
    half_way(scene)
    scene.spec["table"] = "kept"
    ask(scene, "create table {schema}.kept (like {schema}.things including all)")
    scene.stops(LeftBehindError)
    with pytest.raises(LeftBehindError, match=rf"in the table {scene.name}\.things, and the file says"):
        scene.migrate()
    scene.migrate(new=["things"])
    scene.stops(PositionMismatchError)
    assert scene.run(reset=True).complete
    scene.assert_exact()


def test_source_and_object_renamed_at_once(scene: Scene) -> None:
    """Noticed, too, and told how: one after the other."""
    half_way(scene)
    old, scene.name, scene.object = scene.name, f"{scene.name}_anew", "people"
    with pytest.raises(LeftBehindError, match=f"but {old}, which no file describes") as caught:
        scene.migrate(whole=True)
    told = caught.value.todo
    assert told.index("rename-source") < told.index("airflow extract rename`") < told.index("forget")
    scene.object = "things"
    rename_source(scene.connect, scene.source, old, scene.books)
    scene.object = "people"
    rename(scene.connect, scene.source, "things", "people", scene.books)
    scene.migrate(whole=True)
    go_on(scene, Shown())


# Consumers -----------------------------------------------------------------------------------------------------------


def reading(scene: Scene, object: str, fail: bool = False) -> list[str]:
    """The keys that a consumer of an object's events is given, in order."""
    given: list[str] = []

    def take(event: Any) -> None:
        given.append(event.key)
        if fail:
            raise ValueError

    wanted, later = Wanted(scene.name, object), timedelta(hours=1)
    consume("mail", EachEvent(take), postgres=scene.connect, schema=scene.books, wanted=wanted, backoff=later)
    return given


@pytest.mark.parametrize("whole", [False, True], ids=["object", "source"])
def test_not_while_events_are_unread(scene: Scene, whole: bool) -> None:
    """Told to ask for the new name, a consumer would pass over them; one that has read them goes on with the rest."""
    half_way(scene)
    assert len(reading(scene, "things")) == 19
    scene.run()
    before = everything(scene)
    old = scene.name
    if whole:
        scene.name += "_anew"
    else:
        scene.object = "people"

    def change(**given: Any) -> None:
        if whole:
            rename_source(scene.connect, scene.source, old, scene.books, **given)
        else:
            rename(scene.connect, scene.source, "things", "people", scene.books, **given)

    with pytest.raises(EventsUnreadError, match=r"mail \(36 unread, 0 parked\)") as caught:
        change()
    assert "--though-unread" in caught.value.todo
    assert everything(scene) == before
    now, scene.name = scene.name, old
    assert len(reading(scene, "things")) == 36
    scene.name = now
    change()
    scene.api.rows = [*scene.api.rows, b'{"id": "new", "n": 1}']
    scene.run(reset=True)
    assert reading(scene, scene.object) == ["new"]


def test_not_while_one_is_parked(scene: Scene) -> None:
    """A later event of its record, under the new name, would not wait behind it."""
    scene.api.rows = rows(1)
    scene.run()
    (key,) = reading(scene, "things", fail=True)
    scene.object = "people"
    with pytest.raises(EventsUnreadError, match=r"mail \(0 unread, 1 parked\)"):
        rename(scene.connect, scene.source, "things", "people", scene.books)
    ask(scene, "update {books}.parked set due_at = now()")
    assert reading(scene, "things") == [key]
    rename(scene.connect, scene.source, "things", "people", scene.books)


def test_though_unread(scene: Scene) -> None:
    """If it is said, it is done."""
    half_way(scene)
    reading(scene, "things", fail=True)
    scene.object = "people"
    rename(scene.connect, scene.source, "things", "people", scene.books, though_unread=True)
    go_on(scene, Shown())


def test_columns(scene: Scene) -> None:
    """A column that is named no more stays, and is told of; one of another type is refused; so is none that is new."""
    scene.spec["columns"] = {"n": "bigint"}
    scene.stops(SchemaMissingError)
    scene.migrate()
    scene.spec["columns"] = {"n": "text"}
    with pytest.raises(SchemaMissingError, match="type bigint"):
        scene.migrate()
    scene.spec["columns"] = {}
    scene.migrate()
    with scene.connect() as conn:
        (told,) = left_behind(conn, scene.books, [scene.source])
    assert "nothing keeps the column n up to date" in told
