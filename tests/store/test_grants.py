"""The least rights: the docs show them, the command prints them, and the statements need no others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import psycopg
import pytest

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.grants import RIGHTS, grants
from tests.store.applier import SOURCE

COMMANDS = {
    ("consumer", "delete"): "airflow extract events drop-consumer",
    ("ledger", "delete"): "airflow extract fold",
    ("migration", "insert"): "airflow extract migrate",
    ("quarantine", "delete"): "airflow extract quarantine replay",
}
"""What no run does."""

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
    """What the statements do with each table, by their texts."""
    verbs = {"insert into": "insert", "update": "update", "delete from": "delete"}
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file in resources.files("airflow_extract_provider.extract.store").iterdir():
        if file.name.endswith(".sql") and file.name not in ("fold.sql", "rename.sql"):
            text = re.sub(r"--[^\n]*", "", file.read_text(encoding="utf-8"))
            for verb, name in re.findall(r"(insert into|update|delete from)\s+\{extract\}\.(\w+)", text):
                found[name].add(verbs[verb])
            for table, statement in re.findall(r"insert into\s+\{extract\}\.(\w+)([^;]*)", text):
                found[table] |= {"update"} if "do update" in statement else set()
    return found


def test_no_right_is_missing_and_none_too_many() -> None:
    """Each right to write is needed by a statement, and each statement has its right, or belongs to a command."""
    written = {(table, verb) for table, verbs in needed().items() for verb in verbs}
    granted = {(table, right) for table, rights in RIGHTS.items() for right in rights if right != "select"}
    assert written - granted <= set(COMMANDS)
    assert granted <= written


def test_the_docs_show_what_is_printed() -> None:
    """Their text is the command's, for the source that they have as an example."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"```sql\n{grants('worker', [CRM])}```" in text


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


@pytest.fixture
def as_least(store_way: str, connect: Connect, applier: object) -> Connect:
    """The least role's connections to a migrated database."""
    assert store_way == "least"
    return connect


@pytest.fixture
def store_way() -> str:
    """All of these tests go its way."""
    return "least"
