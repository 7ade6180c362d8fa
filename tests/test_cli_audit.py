"""`airflow extract inbox audit`, through Airflow's own parser, on a real Postgres."""

from __future__ import annotations

import psycopg
import pytest

from tests.test_cli import _connection, extract


@pytest.fixture
def store(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with the books, known to Airflow as `extract_store`."""
    monkeypatch.setenv("AIRFLOW_CONN_EXTRACT_STORE", _connection(dsn))
    return dsn


def fill(dsn: str) -> None:
    """Changes of two days and two objects, one of which no webhook tells of any more."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            """insert into extract.brought (source, object, key, revision, kind, by, at, due_at, told_at)
               select 'shop', object, by || told || n, 1, 'updated', by, now() - age, now() - age,
                      case when told then now() - age end
               from (values ('things', 'webhook', interval '0', true, 3), ('things', 'poll', interval '0', true, 2),
                            ('things', 'sweep', interval '1 day', false, 1), ('people', 'poll', interval '0', false, 6))
                    as given (object, by, age, told, count), generate_series(1, count) as n"""
        )
        conn.execute(
            """insert into extract.inbox_count (source, endpoint, day, kind, count) values
               ('shop', 'main', (now() at time zone 'UTC')::date, 'received', 1200),
               ('shop', 'main', (now() at time zone 'UTC')::date, 'out_of_order', 4),
               ('shop', 'main', (now() at time zone 'UTC')::date - 30, 'received', 5)"""
        )


def test_what_webhooks_were_worth(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Per day and object, then per endpoint, then who has fallen silent."""
    extract("inbox", "audit")
    assert capsys.readouterr().out.startswith("No webhook has come, and no change")
    fill(store)
    extract("inbox", "audit", "shop")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["day", "object", "webhook", "poll", "sweep", "refetch", "late", "missed", "expected"]
    assert [line[1:] for line in lines[2:5]] == [
        ["shop/people", "0", "6", "0", "0", "0", "6", "0"],
        ["shop/things", "3", "2", "0", "0", "2", "0", "0"],
        ["shop/things", "0", "0", "1", "0", "0", "1", "0"],
    ]
    assert lines[7][1:] == ["shop/main", "1,200", "0", "0", "4", "0", "0", "0", "0"]
    assert " ".join(lines[8]).startswith("shop/people: webhooks have fallen silent: none has ever come, and 6 changes")
    assert len(lines) == 9


def test_days_must_be_a_number(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Named; nothing is shown."""
    with pytest.raises(SystemExit):
        extract("inbox", "audit", "--days", "week")
    assert "--days: 'week' is no number of days." in capsys.readouterr().err
