"""Whose records a table holds: noted when it is made or first written, and asked before it is written or dropped.

Two objects that write one table would each keep books of its own, and take the other one's records for its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from airflow_extract_provider.extract.errors import LeftBehindError
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statements

__all__ = ["Owner", "Owners", "claim", "claiming", "disown", "owned", "owners", "table_of"]

_FILE = "owner.sql"


@dataclass(frozen=True, slots=True)
class Owner:
    """An object and the table that it writes. ``walked``: the ledger knows it, so that there may be records."""

    source: str
    object: str
    table: tuple[str, str]
    walked: bool

    @property
    def name(self) -> str:
        """The object, for people."""
        return f"{self.source}/{self.object}"


@dataclass(frozen=True, slots=True)
class Owners:
    """What is noted of an object and a table: the object's ``own`` row, and that of an ``other`` that writes the table
    and was walked."""

    own: Owner | None
    other: Owner | None


def owners(conn: Connection, schema: str, source: str, object: str, table: tuple[str, str]) -> Owners:
    """What is noted of an object and a table."""
    rows = conn.execute(_composed("owners", schema, source, object, table)).fetchall()
    found = [Owner(row[0], row[1], (row[2], row[3]), row[4]) for row in rows]
    own = next((each for each in found if (each.source, each.object) == (source, object)), None)
    other = next((each for each in found if each is not own and each.walked), None)
    return Owners(own, other)


def table_of(conn: Connection, schema: str, source: str, object: str) -> tuple[str, str] | None:
    """The table that an object writes; None: none is noted."""
    own = owners(conn, schema, source, object, ("", "")).own
    return None if own is None else own.table


def claim(conn: Connection, schema: str, source: str, object: str, table: tuple[str, str]) -> None:
    """Note in the current transaction that an object writes a table, and none that it wrote before.

    Raises LeftBehindError: another one does, that was walked.
    """
    conn.execute(_composed("make_room", schema, source, object, table))
    if conn.execute(_composed("claim", schema, source, object, table)).fetchone() is None:
        raise owned(owners(conn, schema, source, object, table).other, source, object, table)


def claiming(schema: str, source: str, object: str, table: tuple[str, str]) -> list[str]:
    """The same as statements for a person to run."""
    return [_composed(name, schema, source, object, table).as_string() for name in ("make_room", "claim")]


def disown(conn: Connection, schema: str, source: str, object: str) -> None:
    """Note that an object writes no table any more."""
    conn.execute(_composed("disown", schema, source, object, ("", "")))


def owned(other: Owner | None, source: str, object: str, table: tuple[str, str]) -> LeftBehindError:
    """A table that holds the records of an ``other`` object."""
    was = "another object" if other is None else other.name
    return LeftBehindError(
        f"the table {'.'.join(table)} holds the records of {was}: two objects cannot write one table.",
        kept="everything; nothing was made or changed.",
        todo=f"{_renaming(other, source, object)}Else give {object} another `table` or `schema`.",
        source=source,
        object=object,
    )


def _composed(name: str, schema: str, source: str, object: str, table: tuple[str, str]) -> sql.Composed:
    # No parameters: a percent sign in the schema's name would be taken for one.
    asked = {"source": source, "object": object, "of": table[0], "name": table[1]}
    values = {each: sql.Literal(value) for each, value in asked.items()}
    return sql.SQL(statements(_FILE)[name]).format(extract=sql.Identifier(schema), **values)


def _renaming(other: Owner | None, source: str, object: str) -> str:
    if other is None:
        return ""
    if other.source == source:
        return f"If it was renamed: `airflow extract rename {source} {other.object} {object}`. "
    if other.object == object:
        return f"If the source was renamed: `airflow extract rename-source {other.source} {source}`. "
    return (
        f"If both were renamed: describe it as {other.object} once more, `airflow extract rename-source {other.source} "
        f"{source}`, then rename the object. "
    )
