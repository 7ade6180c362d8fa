"""Migrate: once, twice, two at once, by script, without rights; check: what is missing is named, with the command."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from airflow_extract_provider.extract.errors import (
    ConnectionMissingError,
    SchemaMissingError,
    StoreRightsError,
    StoreUnavailableError,
)
from airflow_extract_provider.extract.store import migrate as migrate_module
from airflow_extract_provider.extract.store.connection import Connect, Connection, connecting, named_errors
from airflow_extract_provider.extract.store.migrate import check, migrate, script
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.store.applier import EPOCH, SOURCE, in_thread, wait_until_blocked

TABLE = (SOURCE, "plain")


@pytest.fixture
def dsn(empty_dsn: str) -> str:
    """A database with nothing in it: whoever is tested here makes the rest."""
    return empty_dsn


def layout(conn: Connection) -> dict[str, list[Any]]:
    """All that a schema consists of, as Postgres's own catalog tells it; nothing that differs by chance."""
    ours = "nspname not like 'pg%' and nspname not in ('information_schema', 'public')"
    asked = {
        "columns": f"""select nspname, relname, attname, attnum, format_type(atttypid, atttypmod), attnotnull,
            attidentity, collname, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
            from pg_attribute join pg_class on pg_class.oid = attrelid
            join pg_namespace on pg_namespace.oid = relnamespace
            left join pg_collation on pg_collation.oid = attcollation
            left join pg_attrdef on adrelid = attrelid and adnum = attnum
            where {ours} and attnum > 0 order by 1, 2, 4""",
        "relations": f"""select nspname, relname, relkind, relpersistence, obj_description(pg_class.oid, 'pg_class')
            from pg_class join pg_namespace on pg_namespace.oid = relnamespace where {ours} order by 1, 2""",
        "constraints": f"""select nspname, conname, pg_get_constraintdef(pg_constraint.oid)
            from pg_constraint join pg_namespace on pg_namespace.oid = connamespace where {ours} order by 1, 2, 3""",
        "indexes": "select schemaname, indexname, indexdef from pg_indexes where schemaname !~ '^pg_' order by 1, 2",
        "functions": "select oid::regprocedure::text, prosrc from pg_proc where pronamespace = 'extract'::regnamespace",
        "views": "select viewname, definition from pg_views where schemaname = 'extract' order by 1",
        "migrations": "select number, name from extract.migration order by 1",
    }
    return {name: conn.execute(text).fetchall() for name, text in asked.items()}


def test_twice_is_once(connect: Connect, conn: Connection) -> None:
    """Run again, nothing is done and nothing is lost."""
    done = migrate(connect, [SOURCE])
    assert len(done) == 10
    conn.execute("insert into shop.plain (key, data, raw_hash, applied_at) values ('k', '{}', 'x', now())")
    before = layout(conn)
    assert migrate(connect, [SOURCE]) == []
    assert layout(conn) == before
    assert conn.execute("select count(*) from shop.plain").fetchone() == (1,)


def test_a_store_of_the_first_version(connect: Connect, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that holds pages, notes and records is upgraded to what a new one is; nothing of it is lost, and what its
    backfills had completed is told by the new views."""
    every = migrate_module._migrations
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "_migrations", lambda: every()[:1])
        patch.setattr(migrate_module, "_ADDED", {})
        conn.execute(script([SOURCE]).encode())
    conn.execute("insert into shop.plain (key, data, raw_hash, applied_at) values ('k', '{}', 'x', now())")
    conn.execute("insert into extract.refetch (source, object, key, reason) values ('shop', 'plain', 'k', 'x')")
    done = {"place": {"by": "last_key", "after": "k"}, "complete": True, "began_at": "2026-01-01T00:00:00Z"}
    for kind, position in (("start", {"complete": False}), ("page", {"complete": False}), ("page", done)):
        conn.execute(
            "insert into extract.ledger (source, object, walk, kind, position, records) "
            "values ('shop', 'plain', 'backfill', %s, %s, 1)",
            [kind, Jsonb(position)],
        )
    with pytest.raises(SchemaMissingError, match="older"):
        check(conn, "extract", *TABLE)
    assert migrate(connect, [SOURCE]) == [
        "schema extract: migration 0002 quarantine_and_coverage",
        "schema extract: migration 0003 events",
        "schema extract: migration 0004 quota_and_tokens",
        "schema extract: migration 0005 sweep",
        "schema extract: migration 0006 windows",
        "schema extract: migration 0007 owner",
        "schema extract: migration 0008 inbox",
        "table shop.things: column canonical_hash",
        "table shop.plain: column canonical_hash",
    ]
    check(conn, "extract", *TABLE)
    assert conn.execute("select sum(records) from extract.ledger").fetchone() == (3,)
    assert conn.execute("select key from shop.plain natural join extract.refetch").fetchall() == [("k",)]
    assert conn.execute("select * from extract.coverage").fetchall() == [("shop", "plain", None, EPOCH)]
    whose = "select source, object, schema, name from extract.owner order by object"
    assert conn.execute(whose).fetchall() == [("shop", "plain", "shop", "plain"), ("shop", "things", "shop", "things")]
    upgraded = layout(conn)
    conn.execute("drop schema extract cascade")
    migrate(connect, [SOURCE])
    assert layout(conn) == upgraded


def test_two_at_once(connect: Connect, conn: Connection) -> None:
    """The second waits for the first one's commit and then finds all done."""
    opened: list[Connection] = []

    def watched() -> Connection:
        opened.append(connect())
        return opened[-1]

    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(hashtext('airflow_extract_provider.migrate'))")
        work = [in_thread(lambda: migrate(watched, [SOURCE])) for _ in range(2)]
        with connect() as looker:
            looker.autocommit = True
            while len(opened) < 2:
                time.sleep(0.01)
            for each in opened:
                wait_until_blocked(looker, each.info.backend_pid)
    done = [each.result(20) for each in work]
    assert sorted(map(len, done)) == [0, 10]
    check(conn, "extract", *TABLE)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_that_cannot_hold_every_text(
    postgres_server: PostgresServer, conn: Connection, encoding: str
) -> None:
    """Nothing is made in it: the first record with another character would stop everything."""
    name = f"{conn.info.dbname}_{encoding.lower()}"
    conn.execute(f"create database {name} template template0 encoding '{encoding}' locale 'C'")
    try:
        other = connecting(postgres_server.dsn(name))
        with pytest.raises(ConnectionMissingError, match=f"the encoding of the database is {encoding}"):
            migrate(other, [SOURCE])
        with other() as looked:
            assert looked.execute("select to_regnamespace('extract')").fetchone() == (None,)
    finally:
        postgres_server.drop_database(name)


@pytest.mark.parametrize("schema", ["extract", "Books of 100%"])
def test_script_makes_the_same(
    postgres_server: PostgresServer, connect: Connect, conn: Connection, dsn: str, schema: str
) -> None:
    """The printed SQL, run on an empty database as psql would, makes what `migrate` makes: nothing is left to do."""
    if schema != "extract":
        conn.execute(script([SOURCE], schema).encode())
        check(conn, schema, *TABLE)
        assert migrate(connect, [SOURCE], schema) == []
        return
    name = conn.info.dbname + "_script"
    other = postgres_server.create_database(name)
    try:
        with psycopg.connect(other, autocommit=True) as scripted:
            scripted.execute(script([SOURCE]).encode())
            migrate(connect, [SOURCE])
            assert layout(scripted) == layout(conn)
            check(scripted, "extract", *TABLE)
        assert migrate(connecting(other), [SOURCE]) == []
    finally:
        postgres_server.drop_database(name)


def test_script_upgrades(connect: Connect, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a store of the first version it makes what a new one has; run again, nothing."""
    every = migrate_module._migrations
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "_migrations", lambda: every()[:1])
        patch.setattr(migrate_module, "_ADDED", {})
        conn.execute(script([SOURCE]).encode())
    conn.execute(script([SOURCE]).encode())
    check(conn, "extract", *TABLE)
    upgraded = layout(conn)
    conn.execute(script([SOURCE]).encode())
    assert layout(conn) == upgraded
    conn.execute("drop schema extract, shop cascade")
    migrate(connect, [SOURCE])
    assert layout(conn) == upgraded


def test_script_is_one_transaction(conn: Connection) -> None:
    """A script that fails in the middle leaves nothing behind."""
    conn.execute("create schema extract")
    conn.execute("create table extract.fence (theirs int)")
    with pytest.raises(psycopg.errors.DuplicateTable):
        conn.execute(script([SOURCE]).encode())
    conn.rollback()
    assert conn.execute("select tablename from pg_tables where schemaname = 'extract'").fetchall() == [("fence",)]


# Rights and checks --------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(postgres_server: PostgresServer, conn: Connection, dsn: str) -> Iterator[Connect]:
    """Connections of a role without rights, to the test's database."""
    role = sql.Identifier(f"stranger_of_{conn.info.dbname}")
    conn.execute(sql.SQL("create role {} login").format(role))
    conn.execute(sql.SQL("grant usage on schema public to {}").format(role))
    yield connecting(make_conninfo(dsn, user=f"stranger_of_{conn.info.dbname}"))
    conn.execute(sql.SQL("drop owned by {}").format(role))
    conn.execute(sql.SQL("drop role {}").format(role))


def test_migrate_without_rights(stranger: Connect) -> None:
    """A role that may not create gets a named error that says what to do."""
    with pytest.raises(StoreRightsError, match="permission denied") as caught:
        migrate(stranger, [SOURCE])
    assert caught.value.todo


def test_check_without_rights(connect: Connect, stranger: Connect) -> None:
    """A run as a role that may not read the books is told so."""
    migrate(connect, [SOURCE])
    with pytest.raises(StoreRightsError), stranger() as conn, named_errors():
        check(conn, "extract", *TABLE)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("drop schema extract cascade", "migration"),
        ("delete from extract.migration", "older"),
        ("drop table shop.plain", "shop.plain is missing"),
        ("drop schema shop cascade", "shop.plain is missing"),
        ("alter table shop.plain drop column raw_hash, drop column version", "has no raw_hash, version"),
    ],
)
def test_check_names_what_is_missing(connect: Connect, conn: Connection, broken: str, told: str) -> None:
    """What is missing or older is named, with the command or the change that helps."""
    migrate(connect, [SOURCE])
    check(conn, "extract", *TABLE)
    conn.execute(broken.encode())
    with pytest.raises(SchemaMissingError, match=told) as caught, named_errors():
        check(conn, "extract", *TABLE)
    assert "migrate" in caught.value.todo or "another `table`" in caught.value.todo


def test_a_table_of_theirs_is_left_alone(connect: Connect, conn: Connection) -> None:
    """A table of the same name that is none of ours stops the migration, which then has done nothing."""
    conn.execute("create schema shop")
    conn.execute("create table shop.things (id int)")
    with pytest.raises(SchemaMissingError, match=r"shop\.things"):
        migrate(connect, [SOURCE])
    assert conn.execute("select to_regnamespace('extract')").fetchone() == (None,)


def test_no_server() -> None:
    """A server that is not there is a named error, without the connection's address in it."""
    with pytest.raises(StoreUnavailableError) as caught:
        migrate(connecting("host=127.0.0.1 port=1 user=marked_user dbname=marked_name"), [SOURCE])
    assert "marked" not in str(caught.value)
