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
from airflow_extract_provider.extract.store.known import (
    added_columns,
    holds_rows,
    is_there,
    known_objects,
    knows,
    waiting_endpoints,
)
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.extract.store.owner import owned, owners, table_of
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
            elif (left := of_source - set(source.objects)) and not _is_said_new(conn, schema, source, name):
                raise _renamed(conn, schema, source.source, name, left)
        if whole and not of_source and source.source not in new:
            names = _names(sources)
            _check_source(conn, schema, source, {each for each in known if each[0] not in names})


def check_table_is_its_own(conn: Connection, schema: str, source: Source, object: str) -> None:
    """See, before a walk, that an object's table is written by no other and that its records are in none that the file
    names no more; and, before its first walk, that it is no new name for one that the file does not describe.

    Raises LeftBehindError.
    """
    table = source.table(object)
    found = owners(conn, schema, source.source, object, table)
    if found.other is not None:
        raise owned(found.other, source.source, object, table)
    if found.own is not None and found.own.walked:
        if found.own.table != table:
            raise _moved(source, object, found.own.table)
        return
    if found.own is None and knows(conn, schema, source.source, object):
        # Of a store that was upgraded since: this walk notes it.
        return
    left = {name for _, name in known_objects(conn, schema, source.source)} - set(source.objects)
    said_new = found.own is not None and found.own.table == table
    if left and not (said_new and not holds_rows(conn, schema, table)):
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
    yield from _left_in_inbox(conn, schema, sources)
    for each in sources:
        yield from _unkept_columns(conn, schema, each)


def former(source: Source, name: str, *, source_was: str, was: str, table: tuple[str, str] | None = None) -> Source:
    """The source as it was before the object ``name`` was renamed; ``table``: the one it had, if not by its names."""
    held: dict[str, str] = {} if table is None else {"schema_": table[0], "table": table[1]}
    object = source.object(name).model_copy(update={"name": was, **held})
    return source.model_copy(update={"source": source_was, "objects": {was: object}})


def _names(sources: Iterable[Source]) -> set[str]:
    return {source.source for source in sources}


def _is_said_new(conn: Connection, schema: str, source: Source, name: str) -> bool:
    """Whether an object's table was made by `migrate` before: somebody has said already that it is new."""
    return table_of(conn, schema, source.source, name) == source.table(name)


def _check_table(conn: Connection, schema: str, source: Source, name: str) -> None:
    table, read = source.table(name), Ledger(schema, source.source, name, "backfill").copied(conn)
    if read is None or not read.records or is_there(conn, schema, table):
        if (held := table_of(conn, schema, source.source, name)) not in (None, table):
            assert held is not None
            raise _moved(source, name, held)
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
    """A source that the store does not know, beside one that no file describes any more: it might be its new name,
    whatever else of it was changed in the same edit."""
    if not orphans or any(_is_said_new(conn, schema, source, name) for name in source.objects):
        return
    was, object = min(orphans, key=lambda each: (each[1] not in source.objects, each))
    alike = object in source.objects
    todo = f"If it was renamed: `airflow extract rename-source {was} {source.source}`"
    if not alike:
        todo += f", with {object} under that name in the file; then the object, by `airflow extract rename`"
    raise LeftBehindError(
        f"the store does not know the source {source.source}, but {was}, which no file describes and which has "
        f"{'the same' if alike else 'the'} object {object} ({_records(conn, schema, was, object)}).",
        kept=_KEPT,
        todo=f"{todo}. If it is another one: `airflow extract migrate --new {source.source}`. To give {was} up: "
        f"`airflow extract forget {was}`.",
        source=source.source,
        object=object if alike else None,
    )


def _moved(source: Source, name: str, held: tuple[str, str]) -> LeftBehindError:
    """An object whose records are in another table than the file says."""
    return LeftBehindError(
        f"the records are in the table {'.'.join(held)}, and the file says {'.'.join(source.table(name))}.",
        kept=_KEPT,
        todo=f"Put `table` and `schema` back; or move the copy: `airflow extract rename {source.source} {name} {name} "
        f"--table {'.'.join(held)}`; or begin anew: `airflow extract migrate --new {source.source}/{name}`, then the "
        "backfill with `reset`.",
        source=source.source,
        object=name,
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


def _left_in_inbox(conn: Connection, schema: str, sources: Collection[Source]) -> Iterator[str]:
    described = {(each.source, endpoint) for each in sources for endpoint in each.webhooks}
    names = _names(sources)
    for source, endpoint in waiting_endpoints(conn, schema):
        if source not in names:
            yield (
                f"{source}/{endpoint}: webhooks wait in the inbox, and no file describes the source {source}: `airflow "
                f"extract rename-source {source} NEW`, or `airflow extract forget {source}`."
            )
        elif (source, endpoint) not in described:
            yield (
                f"{source}/{endpoint}: webhooks wait in the inbox, and the file does not describe the endpoint: they "
                "are applied once it does."
            )


def _unkept_columns(conn: Connection, schema: str, source: Source) -> Iterator[str]:
    for name, object in source.objects.items():
        if added := added_columns(conn, schema, source.table(name), {*BOOK_COLUMNS, *object.columns}):
            yield (
                f"{'.'.join(source.table(name))}: nothing keeps the column {', '.join(added)} up to date, which "
                "`columns` does not name; drop it if it is none of your own."
            )
