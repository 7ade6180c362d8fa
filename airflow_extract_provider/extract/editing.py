"""Cursors by command: what the ledger says of a walk, and an edit that a run would follow.

The same checks as those of a run, only before anything is written: what they refuse never gets into the Variable.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from msgspec.structs import replace

from airflow_extract_provider.extract.beginnings import where_begins
from airflow_extract_provider.extract.cursor import Cursor, CursorStore, cursor_key
from airflow_extract_provider.extract.errors import (
    CursorInvalidError,
    CursorShadowedError,
    CursorUnreadableError,
    ExtractError,
    PositionMismatchError,
    SourceError,
)
from airflow_extract_provider.extract.held import held, walk_held
from airflow_extract_provider.extract.resume import Books, Decision, decided
from airflow_extract_provider.extract.settings import Runner, Settings
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.fence import holding
from airflow_extract_provider.extract.store.known import known_objects, known_walks
from airflow_extract_provider.extract.store.ledger import Ledger

__all__ = ["EDITABLE", "Standing", "WritableCursors", "set_cursor", "standing", "standings", "start_over"]

EDITABLE = ("backfill", "incremental", "rebackfill")
"""The walks that have a cursor."""

State = Literal["agrees", "behind", "edited", "missing", "not shown", "invalid", "unknown", "not readable"]


class WritableCursors(CursorStore, Protocol):
    """A store of cursors from which they can be deleted, too."""

    def delete(self, key: str) -> None:
        """Delete the cursor; it is proven afterwards that there is none. Raises CursorUnreadableError."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger says of a walk (``head``; None: by a position of another version of this package), and whether
    the cursor's ``text`` agrees.

    ``agrees``: it shows where the walk stands. ``behind``: it shows where the walk stood; the next run goes on from the
    ledger. ``edited``: a person has changed it; the next run follows it, or refuses it. ``missing``: it was deleted;
    the next run starts over. ``not shown``: it never was written. ``invalid``: it is no cursor; the next run stops.
    ``not readable``: ``why`` tells the reason.
    """

    source: str
    object: str
    walk: str
    head: Cursor | None
    text: str | None
    state: State
    why: ExtractError | None = None

    @property
    def key(self) -> str:
        """The cursor's name."""
        return cursor_key(self.source, self.object, self.walk)


def standings(
    conn: Connection, schema: str, cursors: CursorStore, source: str | None = None, object: str | None = None
) -> Iterator[Standing]:
    """How all walks stand that the ledger knows and that have a cursor: of a source, an object, or all. One whose
    cursor cannot be read is told so, and the others are looked at."""
    for name, each in known_objects(conn, schema, source):
        if object in (None, each):
            for walk in known_walks(conn, schema, name, each):
                if walk in EDITABLE:
                    ledger = Ledger(schema, name, each, walk)
                    try:
                        yield standing(conn, ledger, cursors)
                    except (CursorUnreadableError, CursorShadowedError) as exc:
                        yield Standing(name, each, walk, _head(conn, ledger), None, "not readable", exc)


def standing(conn: Connection, ledger: Ledger, cursors: CursorStore) -> Standing:
    """How one walk stands.

    Raises CursorUnreadableError, CursorShadowedError: as the cursor store.
    """
    text, head = cursors.read(cursor_key(ledger.source, ledger.object, ledger.walk)), _head(conn, ledger)
    return Standing(ledger.source, ledger.object, ledger.walk, head, text, _state(conn, ledger, head, text))


def _head(conn: Connection, ledger: Ledger) -> Cursor | None:
    try:
        return ledger.head(conn)
    except PositionMismatchError:
        return None


def _state(conn: Connection, ledger: Ledger, head: Cursor | None, text: str | None) -> State:
    newest = ledger.shown(conn)
    if text is None:
        return "not shown" if newest is None else "missing"
    try:
        shown = Cursor.from_text(text)
    except ValueError:
        return "invalid"
    if head is None:
        return "unknown"
    row = ledger.row(conn, shown.sequence)
    if row is None or replace(shown.position, made=row.position.made) != row.position:
        return "edited"
    if shown.sequence == head.sequence:
        return "agrees"
    older = newest is not None and shown.sequence < newest
    return "edited" if older and (row.since_reset or row.shown) else "behind"


def set_cursor(
    source: Source,
    object: str,
    walk: str,
    asked: str | datetime,
    *,
    postgres: Connect,
    cursors: CursorStore,
    runner: Runner | None = None,
    take_over: bool = False,
    settings: Settings | None = None,
) -> Decision:
    """Write a cursor that the next run will follow: a text, or for `incremental` an instant that `closed` goes back to.
    Returns what that run will do. No run holds the walk meanwhile: it would write its own cursor over this one.

    Raises CursorInvalidError: it is no cursor, or an instant without a zone. CursorAheadError: a place that the walk
    has not reached. PositionMismatchError: the walk was made by another config. WalkBusyError: a run holds it.
    BackfillFirstError, SourceError, SchemaMissingError; CursorUnreadableError, CursorShadowedError: as the store.
    """
    settings, runner = settings or Settings(), runner or _editor()
    with _editing(source, object, walk, postgres, cursors, runner, take_over, settings) as books:
        text = asked if isinstance(asked, str) else _closed_at(books, asked)
        _check_text(books, text)
        beginning = where_begins(source.object(object), books.ledger, books.conn, source.made(object), reset=False)
        decision = decided(books, beginning, text)
        if decision.entry is not None and decision.entry.kind == "reset":
            raise PositionMismatchError(
                "the next run starts over whatever its cursor says: so did the backfill, copying anew.",
                kept="everything; nothing was written.",
                todo="Run it; its cursor can be edited then.",
                **books.place,
            )
        # What hides the cursor, or keeps it from being read, is found before it is written.
        cursors.read(books.key)
        with holding(books.conn, books.schema, books.fence):
            # Else a run would take an older row for a cursor that lags behind, where the newer ones were never shown.
            if decision.entry is not None and (head := books.ledger.head_sequence(books.conn)) is not None:
                books.ledger.show(books.conn, head)
            cursors.write(books.key, text)
    return decision


def start_over(
    postgres: Connect,
    source: str,
    object: str,
    walk: str,
    *,
    cursors: WritableCursors,
    schema: str = "extract",
    take_over: bool = False,
) -> bool:
    """Let the next run of a walk start over: it finds its cursor deleted. The records stay, and are read again.
    False: there was none to be deleted, though the ledger says that one was written; nothing was done.

    Raises SourceError: the walk never began. WalkBusyError: a run holds it. CursorUnreadableError, CursorShadowedError.
    """
    _check_walk(walk)
    ledger = Ledger(schema, source, object, walk)
    with held(source, object, postgres, _editor(), take_over, Settings(schema=schema)) as (conn, fence):
        head = ledger.head_sequence(conn)
        if head is None:
            raise SourceError(
                f"the ledger knows no walk {walk} of {source}/{object}: there is nothing to start over.",
                todo="`airflow extract cursors list` shows what there is.",
            )
        key, shown = cursor_key(source, object, walk), ledger.shown(conn)
        if cursors.read(key) is None and shown is not None:
            return False
        with holding(conn, schema, fence):
            cursors.delete(key)
            # A cursor that was never written is not missed: the next run would go on.
            if shown is None:
                ledger.show(conn, head)
    return True


@contextmanager
def _editing(
    source: Source,
    object: str,
    walk: str,
    postgres: Connect,
    cursors: CursorStore,
    runner: Runner,
    take_over: bool,
    settings: Settings,
) -> Iterator[Books]:
    _check_walk(walk)
    with walk_held(source, object, postgres, runner, take_over, settings) as (conn, fence):
        ledger = Ledger(settings.schema, source.source, object, walk)
        yield Books(conn, settings.schema, fence, ledger, source.table(object), cursors, runner.identity, proposed=True)


def _check_walk(walk: str) -> None:
    if walk not in EDITABLE:
        raise SourceError(f"the walk {walk!r} has no cursor.", todo=f"Choose one of: {', '.join(EDITABLE)}.")


def _editor() -> Runner:
    return Runner(label=f"an edit of its cursor, process {os.getpid()} on {socket.gethostname()}")


def _closed_at(books: Books, instant: datetime) -> str:
    """The cursor as it stands, with another instant in `closed`."""
    if books.ledger.walk != "incremental" or instant.tzinfo is None:
        what = "only the cursor of `incremental` has an instant to go back to"
        raise CursorInvalidError(
            f"{what if instant.tzinfo else 'an instant without a zone might mean any of 24 hours'}.",
            kept="everything; nothing was written.",
            todo="Give a text of the cursor, or an instant with its zone, such as 2026-03-01T00:00:00Z.",
            **books.place,
        )
    head = books.ledger.head(books.conn)
    if head is None:
        raise SourceError("the walk has not begun: it has no instant yet.", todo="Run it first.", **books.place)
    return Cursor(head.sequence, replace(head.position, closed=instant)).as_text()


def _check_text(books: Books, text: str) -> None:
    """A run says only that it is no cursor; here the reason is wanted."""
    try:
        Cursor.from_text(text)
    except ValueError as exc:
        raise CursorInvalidError(
            f"the text is no cursor: {exc}.",
            kept="everything; nothing was written.",
            todo="Take what `airflow extract cursors show` shows, or a row of the ledger, and change only its place.",
            **books.place,
        ) from None
