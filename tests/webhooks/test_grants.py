"""A role with the rights that are printed for a receiver can store and count, and reads nothing of what came."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from airflow.cli import cli_parser
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.webhooks.receiving import Process, Sender, deliveries

pytestmark = pytest.mark.slow

DOC = Path(__file__).parents[2] / "docs" / "webhooks.md"


def printed(*words: str) -> None:
    """Run the command."""
    args = cli_parser.get_parser().parse_args(["extract", "grants", *words])
    args.func(args)


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """A role with no rights, on the database of the test."""
    name = f"receiver_of_{conninfo_to_dict(dsn)['dbname']}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        yield name
        conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


def test_it_can_receive_and_read_nothing(
    dsn: str, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the whole receiver, two tries of each."""
    printed(role, "--receiver")
    owner = psycopg.connect(dsn, autocommit=True)
    owner.execute(capsys.readouterr().out.encode())
    theirs = make_conninfo(dsn, user=role)
    with Process(tmp_path, theirs, "--workers", "1") as receiver:
        for _ in range(2):
            asyncio.run((sender := Sender(receiver.port)).delivered(list(deliveries(50)), 8))
            assert {each.status for each in sender.attempts} == {200}
        receiver.stop()
    with owner:
        assert owner.execute("select count(*) from extract.inbox").fetchone() == (50,)
        counts = owner.execute("select kind, count from extract.inbox_count order by kind").fetchall()
        assert counts == [("duplicate", 50), ("received", 50)]
    with psycopg.connect(theirs, autocommit=True) as conn:
        for statement in (
            "select body from extract.inbox",
            "select headers from extract.inbox",
            "update extract.inbox set done_at = now()",
            "delete from extract.inbox",
            "delete from extract.inbox_count",
            "select from extract.oauth_token",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())


def test_the_docs_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    """As they are printed."""
    printed("receiver", "--receiver")
    assert re.findall(r"```sql\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL) == [
        capsys.readouterr().out
    ]


def test_one_of_both_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Rights of what?"""
    with pytest.raises(SystemExit) as ended:
        printed("someone")
    assert ended.value.code == 1
    assert "--sources" in capsys.readouterr().err
