"""Columns as arrays arrive as they are, in whatever encoding a connection speaks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from airflow_extract_provider.extract.store.arrays import Blobs, Instants, Numbers, Texts, instants

FAR = timezone(timedelta(hours=-11, minutes=-30))
COLUMNS: list[tuple[str, Sequence[Any]]] = [
    ("text", Texts()),
    ("text", Texts(["", "a", "größe", "{}", 'NULL, "', "\\"])),
    ("bytea", Blobs([b"", b"\0\xff", b"same"])),
    ("int8", Numbers()),
    ("int8", Numbers([0, 1, -1, 2**63 - 1, -(2**63)])),
    ("timestamptz", Instants()),
    (
        "timestamptz",
        Instants([datetime(1, 1, 2, tzinfo=timezone.utc), datetime(9999, 12, 30, 23, 59, 59, 999999, FAR)]),
    ),
    ("timestamptz", instants([datetime(2026, 1, 1, 0, 0, 0, 1, FAR)])),
    ("timestamptz", instants([None, datetime(1999, 12, 31, 23, 59, 59, 999999, timezone.utc)])),
]


@pytest.mark.parametrize(("type", "column"), COLUMNS)
def test_as_it_is(dsn: str, type: str, column: Sequence[Any]) -> None:
    """The same as a list of the same values."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute(f"select %s::{type}[]".encode(), [column], binary=True).fetchone()
    assert row == ([*column],)


def test_nothing_is_a_column_without_values() -> None:
    """Which costs nothing to send."""
    assert [*instants([None, None])] == []


def test_another_encoding(dsn: str) -> None:
    """What it does not know is an error, no other letter."""
    with psycopg.connect(dsn, client_encoding="latin1") as conn:
        assert conn.execute("select %s::text[], %s::text", [Texts(["größe"]), "größe"]).fetchone() == (
            ["größe"],
            "größe",
        )
        with pytest.raises(UnicodeEncodeError):
            conn.execute("select %s::text[]", [Texts(["€"])])
