"""Another name for an object or a source, and giving one up: the books follow, in one transaction.

What is renamed goes on where it stands, with its records, revisions and events. Events that were told keep the name
that they were told under.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg import sql

from airflow_extract_provider.extract.errors import EventsUnreadError, SchemaMissingError, SourceError, WalkBusyError
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Scope, acquire
from airflow_extract_provider.extract.store.known import is_there, known_objects
from airflow_extract_provider.extract.store.ledger import Ledger
from airflow_extract_provider.extract.store.left_behind import former
from airflow_extract_provider.extract.store.migrate import check_ours
from airflow_extract_provider.extract.store.owner import claim, disown, owned, owners, table_of
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Forgotten", "Moved", "forget", "rename", "rename_source"]

_FILE = "rename.sql"
_SILENT_AFTER = timedelta(minutes=5)
_FOLLOWS = (
    "ledger",
    "quarantine",
    "refetch",
    "rule_state",
    "sweep",
    "inbox_parked",
    "brought",
    "hash_map",
    "birth",
    "fence",
)
"""What follows an object, in this order, by the statement that moves it."""
_OF_SOURCE = ("inbox_left", "brought_left", "inbox_seen", "inbox_count", "inbox_report", "quota")
"""What follows a source, behind its objects."""


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
    """An object that the store knows no more, how many rows its ledger had, and the ``table`` that it wrote (None: that
    was not noted)."""

    source: str
    object: str
    rows: int
    table: tuple[str, str] | None


def rename(
    connect: Connect,
    source: Source,
    old: str,
    new: str,
    schema: str = "extract",
    *,
    table: tuple[str, str] | None = None,
    though_unread: bool = False,
) -> Moved:
    """Let what was ``old`` be ``new``, which the source file describes already. The record table is renamed where its
    name follows the object's. ``table`` is the one that holds the copy, if not the one that is noted; then ``old`` may
    be ``new``, where only the table is called otherwise. ``though_unread``: consumers may miss events.

    Raises WalkBusyError: one of the two is being walked. Raises EventsUnreadError: a consumer has not handled all that
    was told under the old name. Raises SourceError: the store does not know the old name, or knows the new one.
    Raises SchemaMissingError: there is no such table, or one of the new name already.
    Raises LeftBehindError: one of the tables holds the records of a third object.
    """
    source.object(new)
    with _changing(connect) as conn:
        if old == new and table is None:
            raise SourceError(
                "the two names are the same.", todo="Give the new one, or `--table`.", source=source.source
            )
        return _move(conn, schema, source, new, Scope(source.source, old, "*"), table, though_unread)


def rename_source(
    connect: Connect, source: Source, old: str, schema: str = "extract", *, though_unread: bool = False
) -> list[Moved]:
    """Let the source that was ``old`` be the one that the file describes now, with all its objects, and the webhooks
    that wait for them. Webhooks that came under the old name afterwards follow when it is called again: no object has
    moved then.

    Raises SourceError: the store does not know the old name; or knows objects of it that the file does not describe.
    Otherwise as :func:`rename`.
    """
    with _changing(connect) as conn:
        known = [object for _, object in known_objects(conn, schema, old)]
        if not (known or _in_inbox(conn, schema, old)) or old == source.source:
            raise SourceError(f"the store knows no source {old!r} to be renamed.", todo=_known(conn, schema))
        if strange := sorted(set(known) - set(source.objects)):
            raise SourceError(
                f"the store knows {', '.join(strange)} of {old}, and the file of {source.source} does not describe it.",
                kept="everything; nothing was renamed.",
                todo=f"Describe it; or give it up: `airflow extract forget {old} {strange[0]}`.",
                source=source.source,
            )
        names = {"source": old, "to_source": source.source}
        _keep_still(conn, schema, old, None)
        conn.execute(statement(_FILE, "inbox", schema), names)
        moved = [_move(conn, schema, source, object, Scope(old, object, "*"), None, though_unread) for object in known]
        for each in _OF_SOURCE:
            conn.execute(statement(_FILE, each, schema), names)
        return moved


def forget(
    connect: Connect,
    source: str,
    object: str | None = None,
    schema: str = "extract",
    *,
    drop: Collection[tuple[str, str]] = (),
    described: Collection[Source] = (),
) -> list[Forgotten]:
    """Give up what the store knows of an object, or of all objects of a source with its webhooks, waiting ones too;
    events stay. The record tables in ``drop`` are dropped too, if no other object writes them: none that the store
    knows, and none of those ``described`` in source files.

    Raises SourceError: the store does not know it, or a table is another object's. Raises WalkBusyError: it is being
    walked. Raises SchemaMissingError: what is to be dropped is not there, or is no record table.
    """
    with _changing(connect) as conn:
        known = [name for _, name in known_objects(conn, schema, source) if object in (None, name)]
        if not known and (object is not None or not _in_inbox(conn, schema, source)):
            raise SourceError(
                f"the store does not know {source}{f'/{object}' if object else ''}.", todo=_known(conn, schema)
            )
        given_up = {(source, name) for name in known}
        if object is None:
            _keep_still(conn, schema, source, None)
            conn.execute(statement(_FILE, "forget_inbox", schema), {"source": source})
        gone = [_forget(conn, schema, source, name) for name in known]
        if object is None:
            conn.execute(statement(_FILE, "forget_inbox_left", schema), {"source": source})
        for table in sorted(set(drop)):
            _drop(conn, schema, table, given_up, described)
        return gone


@contextmanager
def _changing(connect: Connect) -> Iterator[Connection]:
    """One transaction for all of it: in the middle of it nothing would be called what it is."""
    with named_errors(), connect() as conn, conn.transaction():
        yield conn


def _move(
    conn: Connection,
    schema: str,
    source: Source,
    name: str,
    was: Scope,
    table: tuple[str, str] | None,
    though_unread: bool,
) -> Moved:
    table = table or table_of(conn, schema, was.source, was.object)
    before = former(source, name, source_was=was.source, was=was.object, table=table)
    held, now = before.table(was.object), source.table(name)
    to = Scope(source.source, name, "*")
    whose: dict[str, Any]
    whose = {"source": was.source, "object": was.object, "to_source": to.source, "to_object": to.object}
    whose |= {"made": before.made(was.object), "to_made": source.made(name), "same_name": was == to}
    _keep_still(conn, schema, was.source, was.object)
    for scope in sorted({was, to}, key=lambda each: (each.source, each.object)):
        _hold(conn, schema, scope)
    copied = Ledger(schema, was.source, was.object, "backfill").copied(conn)
    _check_names(conn, schema, was, to)
    if was != to and not though_unread:
        _check_read(conn, schema, was)
    _check_owned(conn, schema, was, to, {held, now})
    _rename_table(conn, schema, held, now)
    for each in _FOLLOWS if was != to else ("ledger",):
        conn.execute(statement(_FILE, each, schema), whose)
    disown(conn, schema, was.source, was.object)
    claim(conn, schema, to.source, to.object, now)
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


def _check_read(conn: Connection, schema: str, was: Scope) -> None:
    """See that all that was told under the old name is handled: who asks for the new one passes over it, and a later
    event of a record would not wait behind one that is parked."""
    asked = {"source": was.source, "object": was.object}
    rows = conn.execute(statement(_FILE, "unread", schema), asked).fetchall()
    waiting = [f"{name} ({unread:,} unread, {parked:,} parked)" for name, unread, parked in rows if unread or parked]
    if waiting:
        raise EventsUnreadError(
            f"consumers have not handled all events that were told as {was.source}/{was.object}: "
            f"{', '.join(waiting[:3])}{', ...' if len(waiting) > 3 else ''}.",
            kept="everything; nothing was renamed.",
            todo="Let them come to the end as they are, then rename, and only then let them ask for the new name. Or "
            "`--though-unread`: what they have not handled may be lost to them, or come in another order.",
            source=was.source,
            object=was.object,
        )


def _check_owned(conn: Connection, schema: str, was: Scope, to: Scope, tables: Collection[tuple[str, str]]) -> None:
    """See that neither the table that holds the copy nor the one that will is a third object's."""
    for table in tables:
        other = owners(conn, schema, was.source, was.object, table).other
        if other is not None:
            raise owned(other, to.source, to.object, table)


def _is_taken(conn: Connection, schema: str, scope: Scope) -> bool:
    asked = {"source": scope.source, "object": scope.object}
    return conn.execute(statement(_FILE, "taken", schema), asked).fetchone() == (True,)


def _in_inbox(conn: Connection, schema: str, source: str) -> bool:
    return conn.execute(statement(_FILE, "waits", schema), {"source": source}).fetchone() == (True,)


def _known(conn: Connection, schema: str) -> str:
    found = ", ".join(f"{source}/{object}" for source, object in known_objects(conn, schema))
    return f"Known are: {found}." if found else "It knows nothing yet."


def _keep_still(conn: Connection, schema: str, source: str, object: str | None) -> None:
    """Let no parked message of an object, or of a source, be tried again before this transaction has ended."""
    conn.execute(statement(_FILE, "patient", schema))
    conn.execute(statement(_FILE, "still", schema), {"source": source, "object": object})


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


def _forget(conn: Connection, schema: str, source: str, object: str) -> Forgotten:
    _keep_still(conn, schema, source, object)
    _hold(conn, schema, Scope(source, object, "*"))
    whose = {"source": source, "object": object}
    table = table_of(conn, schema, source, object)
    row = conn.execute(statement(_FILE, "forget", schema), whose).fetchone()
    conn.execute(statement(_FILE, "free", schema), whose)
    return Forgotten(source, object, row[0] if row else 0, table)


def _drop(
    conn: Connection,
    schema: str,
    table: tuple[str, str],
    given_up: Collection[tuple[str, str]],
    described: Collection[Source],
) -> None:
    """Drop a record table that nobody writes any more."""
    check_ours(conn, schema, table)
    other = owners(conn, schema, "", "", table).other
    users = {(other.source, other.object)} if other is not None else set()
    users |= {(each.source, name) for each in described for name in each.objects if each.table(name) == table}
    # Of a store that was upgraded since, and of what no file describes, only the names tell.
    users |= {each for each in known_objects(conn, schema) if each == table and table_of(conn, schema, *each) is None}
    if users := users - set(given_up):
        raise SourceError(
            f"the table {'.'.join(table)} holds the records of {'/'.join(min(users))}.",
            kept="everything; nothing was forgotten or dropped.",
            todo="Name the table of what is forgotten, or none: tables that nobody needs can be dropped by hand.",
        )
    conn.execute(sql.SQL("drop table {}").format(sql.Identifier(*table)))
