"""The least rights: the docs show them, the command prints them, and the statements need no others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.grants import RIGHTS, grants
from tests.store.applier import SOURCE
from tests.ways import Door, as_owner

COMMANDS = {
    ("consumer", "delete"): "airflow extract events drop-consumer",
    ("ledger", "delete"): "airflow extract fold",
    ("migration", "insert"): "airflow extract migrate",
    ("quarantine", "delete"): "airflow extract quarantine replay",
}
"""What no run does."""

PEOPLES = {("events", "select")}
"""What no statement reads, but those of people do."""

CRM = Source.model_validate(
    {
        "source": "crm",
        "connection": "crm_api",
        "defaults": {"records": "data", "key": "id", "pages": {"by": "last_key", "send": "starting_after"}},
        "objects": {
            "contacts": {"path": "/contacts"},
            "deals": {
                "path": "/deals",
                "fold": [{"table": "sales.org", "where": {"customer": "id"}, "set": {"status": "status"}}],
            },
        },
    }
)
"""The example of the docs."""


def needed() -> Mapping[str, set[str]]:
    """What the statements do with each table and view, by their texts. Whoever changes rows must find them first."""
    verbs = {"insert into": "insert", "update": "update", "delete from": "delete"}
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file in resources.files("airflow_extract_provider.extract.store").iterdir():
        if file.name.endswith(".sql") and file.name not in ("fold.sql", "rename.sql"):
            text = re.sub(r"--[^\n]*", "", file.read_text(encoding="utf-8"))
            for verb, name in re.findall(r"(insert into|update|delete from)\s+\{extract\}\.(\w+)", text):
                found[name].add(verbs[verb])
            for table, statement in re.findall(r"insert into\s+\{extract\}\.(\w+)([^;]*)", text):
                found[table] |= {"update"} if "do update" in statement else set()
            for name in re.findall(r"(?:from|join|using|update|,)\s+\{extract\}\.(\w+)\b(?!\s*\()", text):
                found[name].add("select")
    return found


def test_no_right_is_missing_and_none_too_many() -> None:
    """Each right is needed by a statement, and each statement has its right, or belongs to a command."""
    used = {(table, verb) for table, verbs in needed().items() for verb in verbs}
    granted = {(table, right) for table, rights in RIGHTS.items() for right in rights}
    assert used - granted <= set(COMMANDS)
    assert granted - used == PEOPLES


def test_the_docs_show_what_is_printed() -> None:
    """Their text is the command's, for the source that they have as an example."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"```sql\n{grants('worker', [CRM])}```" in text


def test_sequences_are_told_of() -> None:
    """Where rows are made in a table of somebody else's, and nowhere else: what fills a serial column needs a right."""
    deals = CRM.object("deals")
    makes = deals.model_copy(update={"fold": (deals.fold[0].model_copy(update={"insert": True}),)})
    lines = grants("worker", [CRM.model_copy(update={"objects": {**CRM.objects, "deals": makes}})]).splitlines()
    assert lines[-2] == 'grant select, insert, update on "sales"."org" to "worker";'
    assert lines[-1].startswith("-- If a column of it is serial, the role also needs usage on that sequence")
    assert "serial" not in grants("worker", [CRM])


def test_names_are_quoted() -> None:
    """Whatever a role or a schema is called."""
    text = grants('odd"role', [SOURCE], "Books of 100%")
    assert 'grant usage on schema "Books of 100%", "shop" to "odd""role";' in text.splitlines()


@pytest.mark.parametrize(
    "statement",
    [
        "create table extract.mine ()",
        "create table public.mine ()",
        "create schema mine",
        "drop table shop.plain",
        "truncate shop.plain",
        "delete from shop.plain",
        "delete from extract.ledger",
        "update extract.migration set number = 0",
        "copy shop.plain to program 'true'",
    ],
)
def test_what_the_role_may_not(as_least: Connect, statement: str) -> None:
    """Nothing beyond its work."""
    with as_least() as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement.encode())


def test_the_role_sees_the_version(as_least: Connect) -> None:
    """Else it could not tell that the tables are of an older one."""
    with as_least() as least:
        assert least.execute("select count(*) from extract.migration").fetchone() != (0,)


def test_what_the_comment_asks_for_is_enough(as_least: Connect, connect: Connect) -> None:
    """A serial column is filled with usage on its sequence, an identity without."""
    assert isinstance(as_least, Door)
    with as_owner(connect) as owner, as_least() as least:
        role = sql.Identifier(least.info.user)
        owner.execute("create table public.numbered (n serial, m bigint generated always as identity, id text)")
        owner.execute("create table public.counted (m bigint generated always as identity, id text)")
        for table in ("numbered", "counted"):
            owner.execute(sql.SQL("grant insert on public.{} to {}").format(sql.Identifier(table), role))
        owner.commit()
        least.execute("insert into public.counted (id) values ('a')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="sequence"), least.transaction():
            least.execute("insert into public.numbered (id) values ('a')")
        owner.execute(sql.SQL("grant usage on sequence public.numbered_n_seq to {}").format(role))
        owner.commit()
        least.execute("insert into public.numbered (id) values ('a')")


@pytest.fixture
def as_least(store_way: str, connect: Connect, applier: object) -> Connect:
    """The least role's connections to a migrated database."""
    assert store_way == "least"
    return connect


@pytest.fixture
def store_way() -> str:
    """All of these tests go its way."""
    return "least"
