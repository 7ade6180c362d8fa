"""Makes and upgrades the bookkeeping schema and the record tables. Workers never do: they only check."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib import resources

from psycopg import sql

from airflow_extract_provider.extract.errors import ConnectionMissingError, SchemaMissingError
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.sourcefile import check_tables_differ
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.left_behind import check_nothing_left, check_table_is_its_own
from airflow_extract_provider.extract.store.owner import claim, claiming, table_of
from airflow_extract_provider.extract.store.statements import statement, statements
from airflow_extract_provider.extract.storing import BOOK_COLUMNS

__all__ = ["check", "check_books", "check_ours", "check_table", "migrate", "script"]

_FILE = "migrate.sql"
_ADDED = {"canonical_hash": "bytea"}
"""Columns of ours that record tables of earlier versions do not have."""
_MIGRATE = "Run `airflow extract migrate --sources FOLDER`."


def migrate(
    connect: Connect,
    sources: Iterable[Source],
    schema: str = "extract",
    *,
    new: Collection[str] = (),
    whole: bool = False,
) -> list[str]:
    """Bring the schema and the record tables up to this version, in one transaction; returns what was done, in words.

    Run again, it does nothing. Two at once wait for each other. ``new`` names what is new beside what the store knows,
    as OBJECT, SOURCE/OBJECT or SOURCE; ``whole``: the store is for no other sources than these.

    Raises LeftBehindError: an object, its table or its source was renamed.
    Raises StoreRightsError: the role may not create them. Raises SchemaMissingError: a table of that name exists, but
    is none of ours. Raises ConnectionMissingError: the database cannot hold every text. Raises SourceError: two objects
    share a table. Raises StoreUnavailableError.
    """
    sources = list(sources)
    check_tables_differ(sources)
    with named_errors(), connect() as conn:
        conn.execute(statement(_FILE, "lock", schema))
        _check_encoding(conn)
        done = _books(conn, schema)
        check_nothing_left(conn, schema, sources, new, whole=whole)
        for source in sources:
            for name, found in source.objects.items():
                done += _record_table(conn, schema, source.table(name), _typed(found))
        _claim(conn, schema, sources)
        return done


def script(sources: Iterable[Source], schema: str = "extract", *, new: Collection[str] = ()) -> str:
    """The same as SQL for a person to run where the tool has no right to create; run again, it does nothing. It looks
    for nothing that would be left behind: the first walk of each object does, but of those that are said to be ``new``.
    """
    parts = ["begin;", _text("schema", schema), _text("book", schema)]
    for number, name, text in _migrations():
        parts.append(_once(schema, number, f"{_composed(text, schema).as_string()}\n{_note(schema, number, name)};"))
    for source in sources:
        for name, found in source.objects.items():
            table = source.table(name)
            parts += [_text("record_schema", schema, (table[0],)), _text("record_table", schema, table)]
            parts += [_added(table, column, type).as_string() for column, type in {**_ADDED, **_typed(found)}.items()]
            if {source.source, name, f"{source.source}/{name}"} & set(new):
                parts += claiming(schema, source.source, name, table)
    parts.append("commit;")
    return "\n\n".join(part if part.endswith(";") else part + ";" for part in parts) + "\n"


def check(conn: Connection, schema: str, source: Source, object: str) -> None:
    """See that the books and an object's record table are there and of this version.

    Raises SchemaMissingError: they are not, with the command that makes them.
    Raises LeftBehindError: the table is another object's, or the object's records are in another table.
    """
    check_books(conn, schema)
    check_table(conn, schema, source, object)


def check_books(conn: Connection, schema: str) -> None:
    """See that the books are there and of this version. Raises SchemaMissingError."""
    row = conn.execute(statement(_FILE, "version", schema)).fetchone()
    newest = max(number for number, _, _ in _migrations())
    if row is None or (row[0] or 0) < newest:
        raise SchemaMissingError(f"the schema {schema} is older than this version of the package.", todo=_MIGRATE)


def check_table(conn: Connection, schema: str, source: Source, object: str) -> None:
    """See that an object's record table is there, its own, and as the source file describes it.

    Raises SchemaMissingError, LeftBehindError, as :func:`check` does.
    """
    table = source.table(object)
    columns = _columns(conn, schema, table)
    if not columns:
        raise SchemaMissingError(f"the record table {'.'.join(table)} is missing.", todo=_MIGRATE)
    _check_ours(columns, table)
    check_table_is_its_own(conn, schema, source, object)
    wanted = {**_ADDED, **_typed(source.object(object))}
    if missing := [name for name in wanted if name not in columns]:
        raise SchemaMissingError(f"the table {'.'.join(table)} has no column {', '.join(missing)}.", todo=_MIGRATE)
    _check_types(columns, wanted, table)


def check_ours(conn: Connection, schema: str, table: tuple[str, str]) -> None:
    """See that a table is there and is a record table.

    Raises SchemaMissingError: it is not.
    """
    columns = _columns(conn, schema, table)
    if not columns:
        raise SchemaMissingError(f"there is no table {'.'.join(table)}.", todo="Name the table that holds the copy.")
    _check_ours(columns, table)


def _check_encoding(conn: Connection) -> None:
    """JSON is Unicode (RFC 8259): in another encoding the first record, or webhook, with a character that this does not
    have would stop everything behind it."""
    if (found := conn.info.parameter_status("server_encoding")) not in ("UTF8", None):  # None: a pooler keeps it back
        raise ConnectionMissingError(
            f"the encoding of the database is {found}: it cannot hold every text.",
            todo="Let the store's connection lead to another one: "
            "`create database NAME template template0 encoding 'UTF8' locale 'C'`.",
        )


def _check_ours(columns: Mapping[str, str], table: tuple[str, str]) -> None:
    if missing := sorted(set(BOOK_COLUMNS) - set(_ADDED) - set(columns)):
        raise SchemaMissingError(
            f"the table {'.'.join(table)} exists, but has no {', '.join(missing)}.",
            todo="It is none of ours: give the object another `table` or `schema`.",
        )


def _check_types(columns: Mapping[str, str], wanted: Mapping[str, str], table: tuple[str, str]) -> None:
    for name, type in wanted.items():
        if (found := columns.get(name)) not in (None, _TYPES.get(type, type)):
            raise SchemaMissingError(
                f"the column {name} of {'.'.join(table)} is of type {found}, and `columns` says {type}.",
                todo="Change the one or the other: `alter table ... alter column ... type ...`, or another name.",
            )


_TYPES = {"timestamptz": "timestamp with time zone"}
"""How Postgres calls the types that it has two names for."""


def _typed(object: ApiObject) -> dict[str, str]:
    """An object's typed columns, with their types."""
    return {name: spec.type for name, spec in object.columns.items()}


def _columns(conn: Connection, schema: str, table: tuple[str, str]) -> dict[str, str]:
    """The columns of a table, with their types; none: there is no such table."""
    name = sql.Identifier(*table).as_string(conn)
    return dict(conn.execute(statement(_FILE, "record_columns", schema), {"table": name}).fetchall())


def _books(conn: Connection, schema: str) -> list[str]:
    if conn.execute("select to_regnamespace(%s)", [sql.Identifier(schema).as_string(conn)]).fetchone() == (None,):
        conn.execute(statement(_FILE, "schema", schema))
    # Only what is missing: even `if not exists` needs the right to create.
    if not _columns(conn, schema, (schema, "migration")):
        conn.execute(statement(_FILE, "book", schema))
    applied = {row[0] for row in conn.execute(statement(_FILE, "applied", schema))}
    done = []
    for number, name, text in _migrations():
        if number not in applied:
            conn.execute(_composed(text, schema))
            conn.execute(statement(_FILE, "note", schema), {"number": number, "name": name})
            done.append(f"schema {schema}: migration {number:04} {name}")
    return done


def _claim(conn: Connection, schema: str, sources: Iterable[Source]) -> None:
    """Note who writes each of the tables: of objects that were walked before this was noted, too."""
    # In the same order whoever does it: two that claim at once wait for each other, and not in a circle.
    for source in sorted(sources, key=lambda each: each.source):
        for name in sorted(source.objects):
            if table_of(conn, schema, source.source, name) != source.table(name):
                claim(conn, schema, source.source, name, source.table(name))


def _record_table(conn: Connection, schema: str, table: tuple[str, str], typed: Mapping[str, str]) -> list[str]:
    columns = _columns(conn, schema, table)
    if columns:
        _check_ours(columns, table)
        _check_types(columns, typed, table)
    else:
        if conn.execute("select to_regnamespace(%s)", [sql.Identifier(table[0]).as_string(conn)]).fetchone() == (None,):
            conn.execute(statement(_FILE, "record_schema", schema, (table[0],)))
        conn.execute(statement(_FILE, "record_table", schema, table))
    new = {name: type for name, type in {**_ADDED, **typed}.items() if name not in columns}
    for name, type in new.items():
        conn.execute(_added(table, name, type))
    if not columns:
        return [f"table {'.'.join(table)}"]
    return [f"table {'.'.join(table)}: column {name}" for name in new]


def _added(table: tuple[str, str], column: str, type: str) -> sql.Composed:
    text = sql.SQL("alter table {} add column if not exists {} {}")
    return text.format(sql.Identifier(*table), sql.Identifier(column), sql.SQL(type))


def _migrations() -> list[tuple[int, str, str]]:
    """Number, name and text of each migration, in order."""
    folder = resources.files("airflow_extract_provider.extract.store") / "migrations"
    found = []
    for item in folder.iterdir():
        if item.name.endswith(".sql"):
            number, _, name = item.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, item.read_text(encoding="utf-8")))
    return sorted(found)


def _composed(text: str, schema: str) -> sql.Composed:
    return sql.SQL(text).format(extract=sql.Identifier(schema))


def _text(name: str, schema: str, table: tuple[str, ...] | None = None) -> str:
    return statement(_FILE, name, schema, table).as_string()


def _once(schema: str, number: int, body: str) -> str:
    """A migration that runs only where it has not been run yet."""
    text = "do $migration$ begin\nif not exists (select from {extract}.migration where number = {number}) then\n"
    condition = sql.SQL(text).format(extract=sql.Identifier(schema), number=sql.Literal(number)).as_string()
    return f"{condition}{body}\nend if;\nend $migration$;"


def _note(schema: str, number: int, name: str) -> str:
    values = {"number": sql.Literal(number), "name": sql.Literal(name)}
    text = statements(_FILE)["note"].replace("%(number)s", "{number}").replace("%(name)s", "{name}")
    return sql.SQL(text).format(extract=sql.Identifier(schema), **values).as_string()
