"""`airflow extract migrate`, through Airflow's own parser, on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from airflow.cli import cli_parser
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.postgres import free_port

PROJECT = Path(__file__).resolve().parents[1]
SOURCES = str(PROJECT / "demo" / "sources")
SECRET = "marked-secret-4711"


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
