"""Another name for an object or a source, and giving one up: the books follow, in one transaction.

What is renamed goes on where it stands, with its records, revisions and events. Events that were told keep the name
that they were told under.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg import sql

from airflow_extract_provider.extract.errors import SchemaMissingError, SourceError, WalkBusyError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.extract.store.known import is_there, known_objects
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.extract.store.left_behind import former
from airflow_extract_provider.extract.store.migrate import check_ours
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Forgotten", "Moved", "forget", "rename", "rename_source"]

_FILE = "rename.sql"
_SILENT_AFTER = timedelta(minutes=5)
_FOLLOWS = ("ledger", "quarantine", "refetch", "rule_state", "sweep", "hash_map", "birth", "fence")
"""What follows an object, in this order, by the statement that moves it."""


@dataclass(frozen=True, slots=True)
class Moved:
    """An object that has another name now, and the tables that held and hold its records. ``same``: it was copied as
    the source file says; else its walks stop until the backfill has started over."""

    source: str
    object: str
    to_source: str
    to_object: str
    table: tuple[str, str]
    to_table: tuple[str, str]
    same: bool


@dataclass(frozen=True, slots=True)
class Forgotten:
    """An object that the store knows no more, how many rows its ledger had, and its table if that was ``dropped``."""

    source: str
    object: str
    rows: int
    dropped: tuple[str, str] | None


def rename(
    connect: Connect,
    source: Source,
    old: str,
    new: str,
    schema: str = "extract",
    *,
    table: tuple[str, str] | None = None,
) -> Moved:
    """Let what was ``old`` be ``new``, which the source file describes already. The record table is renamed where its
    name follows the object's. ``table`` is the one that holds the copy, if not the one that the names tell; then
    ``old`` may be ``new``, where only the table is called otherwise.

    Raises WalkBusyError: one of the two is being walked. Raises SourceError: the store does not know the old name, or
    knows the new one. Raises SchemaMissingError: there is no such table, or one of the new name already.
    """
    source.object(new)
    with _changing(connect) as conn:
        if old == new and table is None:
            raise SourceError(
                "the two names are the same.", todo="Give the new one, or `--table`.", source=source.source
            )
        return _move(conn, schema, source, new, Scope(source.source, old, "*"), table)


def rename_source(connect: Connect, source: Source, old: str, schema: str = "extract") -> list[Moved]:
    """Let the source that was ``old`` be the one that the file describes now, with all its objects.

    Raises SourceError: the store does not know the old name; or knows objects of it that the file does not describe.
    Otherwise as :func:`rename`.
    """
    with _changing(connect) as conn:
        known = [object for _, object in known_objects(conn, schema, old)]
        if not known or old == source.source:
            raise SourceError(f"the store knows no source {old!r} to be renamed.", todo=_known(conn, schema))
        if strange := sorted(set(known) - set(source.objects)):
            raise SourceError(
                f"the store knows {', '.join(strange)} of {old}, and the file of {source.source} does not describe it.",
                kept="everything; nothing was renamed.",
                todo=f"Describe it; or give it up: `airflow extract forget {old} {strange[0]}`.",
                source=source.source,
            )
        moved = [_move(conn, schema, source, object, Scope(old, object, "*")) for object in known]
        conn.execute(statement(_FILE, "quota", schema), {"source": old, "to_source": source.source})
        return moved


def forget(
    connect: Connect,
    source: str,
    object: str | None = None,
    schema: str = "extract",
    *,
    drop: bool = False,
    table: tuple[str, str] | None = None,
) -> list[Forgotten]:
    """Give up what the store knows of an object, or of all objects of a source; events stay. With ``drop`` the record
    table is dropped too: ``table``, or the one that the names tell.

    Raises SourceError: the store does not know it. Raises WalkBusyError: it is being walked.
    Raises SchemaMissingError: what is to be dropped is not there, or is no record table.
    """
    with _changing(connect) as conn:
        known = [name for _, name in known_objects(conn, schema, source) if object in (None, name)]
        if not known:
            raise SourceError(
                f"the store does not know {source}{f'/{object}' if object else ''}.", todo=_known(conn, schema)
            )
        return [_forget(conn, schema, source, name, (table or (source, name)) if drop else None) for name in known]


@contextmanager
def _changing(connect: Connect) -> Iterator[Connection]:
    """One transaction for all of it: in the middle of it nothing would be called what it is."""
    with named_errors(), connect() as conn, conn.transaction():
        yield conn


def _move(
    conn: Connection, schema: str, source: Source, name: str, was: Scope, table: tuple[str, str] | None = None
) -> Moved:
    before = former(source, name, source_was=was.source, was=was.object, table=table)
    held, now = before.table(was.object), source.table(name)
    to = Scope(source.source, name, "*")
    whose: dict[str, Any]
    whose = {"source": was.source, "object": was.object, "to_source": to.source, "to_object": to.object}
    whose |= {"made": before.made(was.object), "to_made": source.made(name), "same_name": was == to}
    for scope in sorted({was, to}, key=lambda each: (each.source, each.object)):
        _hold(conn, schema, scope)
    copied = Ledger(schema, was.source, was.object, "backfill").copied(conn)
    _check_names(conn, schema, was, to)
    _rename_table(conn, schema, held, now)
    for each in _FOLLOWS if was != to else ("ledger",):
        conn.execute(statement(_FILE, each, schema), whose)
    for scope in {was, to}:
        conn.execute(statement(_FILE, "free", schema), {"source": scope.source, "object": scope.object})
    same = copied is None or copied.made in (None, whose["made"])
    return Moved(was.source, was.object, to.source, to.object, held, now, same)


def _check_names(conn: Connection, schema: str, was: Scope, to: Scope) -> None:
    if not _is_taken(conn, schema, was):
        raise SourceError(f"the store does not know {was.source}/{was.object}.", todo=_known(conn, schema))
    if was != to and _is_taken(conn, schema, to):
        raise SourceError(
            f"the store knows {to.source}/{to.object} already, beside {was.source}/{was.object}.",
            kept="everything; nothing was renamed.",
            todo=f"Give up one of the two, such as `airflow extract forget {to.source} {to.object}`.",
            source=to.source,
            object=to.object,
        )


def _is_taken(conn: Connection, schema: str, scope: Scope) -> bool:
    asked = {"source": scope.source, "object": scope.object}
    return conn.execute(statement(_FILE, "taken", schema), asked).fetchone() == (True,)


def _known(conn: Connection, schema: str) -> str:
    found = ", ".join(f"{source}/{object}" for source, object in known_objects(conn, schema))
    return f"Known are: {found}." if found else "It knows nothing yet."


def _hold(conn: Connection, schema: str, scope: Scope) -> None:
    """Nobody may walk it, in whichever part, and nobody can begin before this transaction has ended."""
    runner = f"rename {uuid.uuid4().hex}"
    label = f"a change of names, process {os.getpid()} on {socket.gethostname()}"
    acquire(conn, schema, scope, runner, label, silent_after=_SILENT_AFTER)
    conn.execute(statement(_FILE, "patient", schema))
    asked = {"source": scope.source, "object": scope.object, "runner": runner, "silent_after": _SILENT_AFTER}
    row: Any = conn.execute(statement(_FILE, "held", schema), asked).fetchone()
    if row is not None:
        walk, part, holder, heartbeat, silent = row
        raise WalkBusyError(
            f"the walk {walk} {part} is held by {holder}, last seen {silent.total_seconds():.0f} s ago "
            f"({heartbeat:%Y-%m-%d %H:%M:%S %Z}).",
            kept="everything; nothing was changed.",
            todo="Wait for it, and run the command again.",
            source=scope.source,
            object=scope.object,
        )


def _rename_table(conn: Connection, schema: str, held: tuple[str, str], now: tuple[str, str]) -> None:
    check_ours(conn, schema, held)
    if held == now:
        return
    if is_there(conn, schema, now):
        raise SchemaMissingError(
            f"there is a table {'.'.join(now)} already, beside {'.'.join(held)} with the records.",
            kept="everything; nothing was renamed.",
            todo=f"If it is empty: `drop table {'.'.join(now)}`, then run the command again.",
        )
    if held[0] != now[0]:
        there = conn.execute("select to_regnamespace(%s)", [sql.Identifier(now[0]).as_string(conn)]).fetchone()
        if there == (None,):
            conn.execute(statement("migrate.sql", "record_schema", schema, (now[0],)))
        text = sql.SQL("alter table {} set schema {}")
        conn.execute(text.format(sql.Identifier(*held), sql.Identifier(now[0])))
    if held[1] != now[1]:
        text = sql.SQL("alter table {} rename to {}")
        conn.execute(text.format(sql.Identifier(now[0], held[1]), sql.Identifier(now[1])))


def _forget(conn: Connection, schema: str, source: str, object: str, drop: tuple[str, str] | None) -> Forgotten:
    _hold(conn, schema, Scope(source, object, "*"))
    whose = {"source": source, "object": object}
    row = conn.execute(statement(_FILE, "forget", schema), whose).fetchone()
    conn.execute(statement(_FILE, "free", schema), whose)
    if drop is not None:
        check_ours(conn, schema, drop)
        conn.execute(sql.SQL("drop table {}").format(sql.Identifier(*drop)))
    return Forgotten(source, object, row[0] if row else 0, drop)
