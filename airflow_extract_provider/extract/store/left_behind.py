"""What a changed source file would leave behind: records under a name, a table or a source that it says no more.

A new name looks just like a new object. Its table would be made, filled from the beginning, and the old copy would
stand beside it for ever, more out of date each day. So nothing new is made while something is left behind, unless it is
said to be new.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from airflow_extract_provider.extract.errors import LeftBehindError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.known import added_columns, holds_rows, is_there, known_objects, knows
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.extract.storing import BOOK_COLUMNS

__all__ = ["check_nothing_left", "check_table_is_its_own", "former", "left_behind"]

_KEPT = "everything; nothing was made or changed."


def check_nothing_left(
    conn: Connection, schema: str, sources: Collection[Source], new: Collection[str] = (), *, whole: bool = False
) -> None:
    """See, before tables are made for these sources, that no records are left behind. ``new`` names what is really new:
    a source, or an object as OBJECT or SOURCE/OBJECT. ``whole``: the store is for no other sources.

    Raises LeftBehindError.
    """
    known = set(known_objects(conn, schema))
    for source in sources:
        of_source = {object for name, object in known if name == source.source}
        for name in source.objects:
            if {source.source, name, f"{source.source}/{name}"} & set(new):
                continue
            if name in of_source:
                _check_table(conn, schema, source, name)
            elif (left := of_source - set(source.objects)) and not _is_new(conn, schema, source.table(name)):
                raise _renamed(conn, schema, source.source, name, left)
        if whole and not of_source and source.source not in new:
            _check_source(
                conn, schema, source, known - {(name, each) for name, each in known if name in _names(sources)}
            )


def check_table_is_its_own(conn: Connection, schema: str, source: Source, object: str) -> None:
    """See, before an object's first walk, that its table does not hold the copy of one that was renamed.

    Raises LeftBehindError.
    """
    if knows(conn, schema, source.source, object):
        return
    left = {name for _, name in known_objects(conn, schema, source.source)} - set(source.objects)
    if left and holds_rows(conn, schema, source.table(object)):
        raise _renamed(conn, schema, source.source, object, left)


def left_behind(conn: Connection, schema: str, sources: Collection[Source]) -> Iterator[str]:
    """What the store holds and no source file describes, as lines for people; none of it is an error."""
    described = {(source.source, name) for source in sources for name in source.objects}
    names = _names(sources)
    for source, object in known_objects(conn, schema):
        if source not in names:
            yield (
                f"{source}/{object}: the store knows it ({_records(conn, schema, source, object)}), and no file "
                f"describes the source {source}: `airflow extract rename-source {source} NEW`, or `airflow extract "
                f"forget {source}`."
            )
        elif (source, object) not in described:
            yield (
                f"{source}/{object}: the store knows it ({_records(conn, schema, source, object)}), and the file does "
                f"not describe it: `airflow extract rename {source} {object} NEW`, or `airflow extract forget {source} "
                f"{object}`."
            )
    for each in sources:
        yield from _unkept_columns(conn, schema, each)


def former(source: Source, name: str, *, source_was: str, was: str, table: tuple[str, str] | None = None) -> Source:
    """The source as it was before the object ``name`` was renamed; ``table``: the one it had, if not by its names."""
    held: dict[str, str] = {} if table is None else {"schema_": table[0], "table": table[1]}
    object = source.object(name).model_copy(update={"name": was, **held})
    return source.model_copy(update={"source": source_was, "objects": {was: object}})


def _names(sources: Iterable[Source]) -> set[str]:
    return {source.source for source in sources}


def _is_new(conn: Connection, schema: str, table: tuple[str, str]) -> bool:
    """Whether a table was made and never filled: somebody has said already that it is new."""
    return is_there(conn, schema, table) and not holds_rows(conn, schema, table)


def _check_table(conn: Connection, schema: str, source: Source, name: str) -> None:
    table, read = source.table(name), Ledger(schema, source.source, name, "backfill").copied(conn)
    if read is None or not read.records or is_there(conn, schema, table):
        return
    raise LeftBehindError(
        f"the table {'.'.join(table)} is not there, but the ledger says that {read.records:,} records were stored: "
        "`table` or `schema` was changed, or it was dropped.",
        kept=_KEPT,
        todo=f"Put it back; or move the copy: `airflow extract rename {source.source} {name} {name} --table "
        "SCHEMA.TABLE` with the table that holds it; or begin anew: `airflow extract migrate --new "
        f"{source.source}/{name}`, then the backfill with `reset`.",
        source=source.source,
        object=name,
    )


def _check_source(conn: Connection, schema: str, source: Source, orphans: Collection[tuple[str, str]]) -> None:
    """A source that the store does not know, with an object that one has which no file describes any more."""
    for was, object in sorted(orphans):
        if object not in source.objects or _is_new(conn, schema, source.table(object)):
            continue
        before = former(source, object, source_was=was, was=object)
        told = Ledger(schema, was, object, "backfill").copied(conn)
        if told is not None and told.made in (before.made(object), source.made(object)):
            raise LeftBehindError(
                f"the store does not know the source {source.source}, but {was}, which no file describes and which has "
                f"the same object {object} ({_records(conn, schema, was, object)}).",
                kept=_KEPT,
                todo=f"If it was renamed: `airflow extract rename-source {was} {source.source}`. If it is another one: "
                f"`airflow extract migrate --new {source.source}`.",
                source=source.source,
                object=object,
            )


def _renamed(conn: Connection, schema: str, source: str, name: str, left: Collection[str]) -> LeftBehindError:
    told = ", ".join(f"{each} ({_records(conn, schema, source, each)})" for each in sorted(left)[:3])
    first = min(left)
    return LeftBehindError(
        f"the store does not know the object {name}, but it knows what the file does not describe: {told}.",
        kept=_KEPT,
        todo=f"If it was renamed: `airflow extract rename {source} {first} {name}`. To give {first} up: `airflow "
        f"extract forget {source} {first}`. If {name} is new beside it: `airflow extract migrate --new "
        f"{source}/{name}`.",
        source=source,
        object=name,
    )


def _records(conn: Connection, schema: str, source: str, object: str) -> str:
    read = Ledger(schema, source, object, "backfill").copied(conn)
    return f"{read.records:,} records read" if read is not None else "no backfill"


def _unkept_columns(conn: Connection, schema: str, source: Source) -> Iterator[str]:
    for name, object in source.objects.items():
        if added := added_columns(conn, schema, source.table(name), {*BOOK_COLUMNS, *object.columns}):
            yield (
                f"{'.'.join(source.table(name))}: nothing keeps the column {', '.join(added)} up to date, which "
                "`columns` does not name; drop it if it is none of your own."
            )
