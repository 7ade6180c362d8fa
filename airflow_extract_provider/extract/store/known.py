"""Which objects the store knows, whatever the source files say: those that its ledger tells of."""

from __future__ import annotations

from collections.abc import Collection

from psycopg import sql

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement, statements

__all__ = ["added_columns", "holds_rows", "is_there", "known_objects", "known_walks", "knows", "waiting_endpoints"]

_FILE = "known.sql"


def known_objects(conn: Connection, schema: str, source: str | None = None) -> list[tuple[str, str]]:
    """Source and object of all that was ever walked; of one ``source``, or of all."""
    found = conn.execute(statement(_FILE, "objects", schema)).fetchall()
    return [(name, object) for name, object in found if source in (None, name)]


def known_walks(conn: Connection, schema: str, source: str, object: str) -> list[str]:
    """The walks of an object that have begun."""
    return [row[0] for row in conn.execute(statement(_FILE, "walks", schema), {"source": source, "object": object})]


def knows(conn: Connection, schema: str, source: str, object: str) -> bool:
    """Whether the object was ever walked."""
    # No parameters: a percent sign in the schema's name would be taken for one, where tables are only looked at.
    names = {"extract": sql.Identifier(schema), "source": sql.Literal(source), "object": sql.Literal(object)}
    return conn.execute(sql.SQL(statements(_FILE)["knows"]).format(**names)).fetchone() == (True,)


def waiting_endpoints(conn: Connection, schema: str) -> list[tuple[str, str]]:
    """Source and endpoint of all webhooks that wait to be applied."""
    return [(source, name) for source, name in conn.execute(statement(_FILE, "doors", schema))]


def is_there(conn: Connection, schema: str, table: tuple[str, str]) -> bool:
    """Whether there is a table of that name."""
    asked = {"name": sql.Identifier(*table).as_string(conn)}
    return conn.execute(statement(_FILE, "is_there", schema), asked).fetchone() == (True,)


def holds_rows(conn: Connection, schema: str, table: tuple[str, str]) -> bool:
    """Whether a table, which is there, has rows."""
    return conn.execute(statement(_FILE, "holds_rows", schema, table)).fetchone() == (True,)


def added_columns(conn: Connection, schema: str, table: tuple[str, str], ours: Collection[str]) -> list[str]:
    """The columns of a table beside ``ours``, those left out that Postgres computes."""
    asked = {"name": sql.Identifier(*table).as_string(conn), "ours": list(ours)}
    return [row[0] for row in conn.execute(statement(_FILE, "own_columns", schema), asked)]
