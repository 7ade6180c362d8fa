"""SQL from the .sql files: named statements, read once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from psycopg import sql

__all__ = ["sparse", "statement", "statements"]

_MARK = "-- name: "


@cache
def statements(file: str) -> dict[str, str]:
    """The statements of a file by name; each begins with a line ``-- name: ...``."""
    text = (resources.files("airflow_extract_provider.extract.store") / file).read_text(encoding="utf-8")
    found = {}
    for part in text.split(_MARK)[1:]:
        name, _, body = part.partition("\n")
        found[name.strip()] = body.strip().removesuffix(";")
    return found


@cache
def statement(file: str, name: str, extract: str, table: tuple[str, ...] | None = None) -> sql.Composed:
    """A statement for the bookkeeping schema ``extract`` and, where it has a ``{table}``, for a record table."""
    text = statements(file)[name]
    names = {"extract": sql.Identifier(extract), "table": sql.Identifier(*table) if table else sql.SQL("")}
    return sql.SQL(text).format(**names)


def sparse(values: Sequence[Any]) -> Sequence[Any]:
    """A column for `unnest`: nothing where all values are None or False. It fills up shorter arrays with nulls, and
    each element that is sent costs."""
    return values if any(value is not None and value is not False for value in values) else []
