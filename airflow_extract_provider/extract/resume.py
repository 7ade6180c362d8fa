"""Where a run begins: what the ledger says, what the cursor says, and which of them is followed (law: one truth).

The ledger knows where the walk stands. The cursor is followed only where a person has changed it, and never to a place
that the walk has not reached since it last started over.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from airflow_extract_provider.extract.cursor import Cursor, CursorStore, Position, cursor_key
from airflow_extract_provider.extract.errors import (
    CursorAheadError,
    CursorInvalidError,
    CursorUnreadableError,
    PositionMismatchError,
)
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.birth import reborn
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.fence import Fence, hold, holding
from airflow_extract_provider.extract.store.ledger import Copied, Entry, Ledger
from airflow_extract_provider.extract.store.owner import claim, table_of
from airflow_extract_provider.extract.store.storable import unstorable

__all__ = ["Books", "Decision", "begin", "decided", "show"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Books:
    """What is needed to read and write one walk's bookkeeping. ``cursors`` is None where no cursor is shown.

    ``proposed``: a text that is looked at is none of the cursor yet; somebody asks what would become of it.
    """

    conn: Connection
    schema: str
    fence: Fence
    ledger: Ledger
    table: tuple[str, str]
    cursors: CursorStore | None
    runner: str
    proposed: bool = False

    @property
    def key(self) -> str:
        """The cursor's name."""
        return cursor_key(self.ledger.source, self.ledger.object, self.ledger.walk)

    @property
    def place(self) -> dict[str, str]:
        """Source, object and walk, for errors."""
        return {"source": self.ledger.source, "object": self.ledger.object, "walk": self.ledger.walk}


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a run goes on: at ``at``, a row of the ledger; or with the row ``entry``, which is to be written, because
    of ``what``, in words."""

    at: Cursor | None = None
    entry: Entry | None = None
    what: str = ""


def begin(books: Books, beginning: Position, *, reset: bool) -> Cursor:
    """Where this run begins, committed to the ledger and shown in the cursor before the first request.

    Raises CursorInvalidError, CursorAheadError: the cursor was edited into something that cannot be followed.
    Raises PositionMismatchError: what was copied so far was copied as another source file says, or is gone.
    Raises CursorUnreadableError, CursorShadowedError: as the cursor store. FencedError: the walk was taken over.
    Raises LeftBehindError: another object writes the table.
    """
    _own_table(books)
    found = _found(books, beginning, reset)
    show(books, found)
    return found


def _own_table(books: Books) -> None:
    """Note that this object writes the table, if that is not noted yet."""
    whose = books.schema, books.ledger.source, books.ledger.object
    if table_of(books.conn, *whose) != books.table:
        with holding(books.conn, books.schema, books.fence):
            claim(books.conn, *whose, books.table)


def show(books: Books, cursor: Cursor) -> None:
    """Write the cursor, and only then note in the ledger that it shows this row.

    Raises FencedError: a run that has lost its walk must not put an old cursor over the new holder's.
    """
    if books.cursors is not None:
        hold(books.conn, books.schema, books.fence)
        books.cursors.write(books.key, cursor.as_text())
        with holding(books.conn, books.schema, books.fence):
            books.ledger.show(books.conn, cursor.sequence)


def _found(books: Books, beginning: Position, reset: bool) -> Cursor:
    check_copied(books, beginning, reset)
    # A retry of the task that asked for the reset goes on from where its earlier try has come.
    if reset and not books.ledger.was_reset_by(books.conn, books.runner):
        return _append(books, Entry("reset", beginning, books.runner), "starts over, as asked")
    text = None if books.cursors is None else books.cursors.read(books.key)
    decision = _decided(books, beginning, text)
    if decision.entry is not None:
        return _append(books, decision.entry, decision.what)
    assert decision.at is not None
    return decision.at


def decided(books: Books, beginning: Position, text: str | None) -> Decision:
    """What a run does that finds this text in the cursor, None: that it is not there. Nothing is written.

    Raises CursorInvalidError, CursorAheadError, PositionMismatchError: as :func:`begin`.
    """
    check_copied(books, beginning, reset=False)
    return _decided(books, beginning, text)


def _decided(books: Books, beginning: Position, text: str | None) -> Decision:
    # Its absence is proven: it was deleted, or, if it was never there, a run died before writing it.
    if text is None and books.cursors is not None and books.ledger.shown(books.conn) is not None:
        what = f"starts over: the Variable {books.key} was deleted"
        return Decision(entry=Entry("reset", beginning, books.runner), what=what)
    shown = None if text is None else _parsed(books, text)
    head, kind = books.ledger.head(books.conn), books.ledger.head_kind(books.conn)
    if head is None and shown is not None and shown.position.place != beginning.place:
        raise _ahead(books, "the ledger of this store knows nothing of this walk")
    # A walk without a page begins as the source file says now: the mistake that stopped it may have been corrected.
    if head is None or (not head.position.pages and kind not in ("edit", "sweep") and head.position != beginning):
        return Decision(entry=Entry("start", beginning, books.runner), what="starts")
    at = head if shown is None else _place_shown(books, head, shown, followed=kind == "edit")
    if books.ledger.walk != "backfill" and _copied_as(at.position) != _copied_as(beginning):
        # The backfill has started over since, under the source file as it is now: what this walk has read before that
        # says nothing of it.
        what = "starts over: so did the backfill, copying anew"
        return Decision(entry=Entry("reset", beginning, books.runner), what=what)
    _check_made(books, at.position.made, beginning)
    return Decision(at=head) if at is head else _followed(books, at)


def _place_shown(books: Books, head: Cursor, shown: Cursor, *, followed: bool) -> Cursor:
    """The ledger's head if the cursor was not edited, else the row to go back to. ``followed``: the head is an edit."""
    row = books.ledger.row(books.conn, shown.sequence)
    # Where the text is written the head is marked as shown: an older row is then an edit, as it is meant.
    newest = head.sequence if books.proposed else books.ledger.shown(books.conn)
    if row is not None and row.position == replace(shown.position, made=row.position.made):
        if newest is None or shown.sequence >= newest:
            # Not edited. It may lag behind the ledger: the Variable is written after the commit, and seldom.
            return head
        if row.since_reset:
            return Cursor(shown.sequence, row.position)
        if not row.shown and books.proposed:
            raise _ahead(books, "that row of the ledger is older than the walk's last start over")
        if not row.shown:
            # Nobody has ever seen it: a run that had lost the walk wrote it late, over what the next one had shown.
            return head
    if books.ledger.walk == "incremental":
        if shown.position.closed != head.position.closed:
            return _back_to_instant(books, head, shown.position.closed)
        if followed and (newest is None or newest < head.sequence):
            # Followed already, by a run that could not show it.
            return head
    covered = books.ledger.covered(books.conn, shown.position)
    if covered is None:
        raise _ahead(books, "the ledger holds no such place since the walk last started over")
    return covered


def _back_to_instant(books: Books, head: Cursor, closed: datetime | None) -> Cursor:
    """The incremental cursor's instant was edited: whatever has changed since then is read again."""
    if closed is None:
        raise _ahead(books, "it holds no instant in `closed`")
    if head.position.closed is None or closed > head.position.closed:
        raise _ahead(books, f"{closed.isoformat()} is later than what it has made complete")
    return Cursor(head.sequence, replace(head.position, closed=closed, complete=True))


def _copied_as(position: Position) -> tuple[str | None, str | None]:
    return position.key, position.made


def start_anew(books: Books, beginning: Position) -> None:
    """Let a window begin again, as this runner's own."""
    _append(books, Entry("reset", beginning, books.runner), "starts over: what was read of it before says nothing now")


def check_copied(books: Books, beginning: Position, reset: bool) -> None:
    """The backfill says as what an object's table was filled; every other walk builds upon that, and must be of it."""
    filled = books.ledger.of("backfill").copied(books.conn)
    own = books.ledger.copied(books.conn)
    empty = books.ledger.is_empty(books.conn, books.table)
    _check_key(books, filled, beginning, empty)
    if books.ledger.walk == "backfill" and reset:
        return
    if empty and any(each is not None and each.records for each in (filled, own)):
        raise _mismatch(
            books,
            f"the table {'.'.join(books.table)} is empty, but the ledger says that records were stored in it.",
            "Restore the table, or start the backfill over with `reset`.",
        )
    if books.ledger.walk != "backfill" and filled is not None:
        _check_made(books, filled.made, beginning)


def _check_key(books: Books, filled: Copied | None, beginning: Position, empty: bool) -> None:
    """Under another key each record would be stored a second time, and the first copies would never be touched again:
    not even starting over would help."""
    before = None if filled is None else filled.key
    if before in (None, beginning.key) or (empty and books.ledger.walk == "backfill"):
        return
    raise _mismatch(
        books,
        f"`key` was {before} when the table {'.'.join(books.table)} was filled, and is {beginning.key} now.",
        "Put `key` back; or empty the table, or declare another `table` and migrate with `--new OBJECT`; then start "
        "the backfill over with `reset`.",
    )


def _check_made(books: Books, made: str | None, beginning: Position) -> None:
    """What the ledger says was copied must be a part of what is asked for now."""
    if made not in (None, beginning.made):
        raise _mismatch(
            books,
            "the object's request, records or table are not those with which the walk began.",
            "Put them back, or start the backfill over with `reset`.",
        )


def _mismatch(books: Books, what: str, todo: str) -> PositionMismatchError:
    return PositionMismatchError(what, kept="everything; nothing was read.", todo=todo, **books.place)


def _followed(books: Books, back_to: Cursor) -> Decision:
    entry = Entry("edit", back_to.position, books.runner)
    pages, records, closed = back_to.position.pages, back_to.position.records, back_to.position.closed
    where = f"page {pages} ({records:,} records)" if books.ledger.walk == "backfill" else f"{closed}"
    return Decision(entry=entry, what=f"follows the edited Variable {books.key}, back to {where}")


def _append(books: Books, entry: Entry, what: str) -> Cursor:
    before = books.ledger.copied(books.conn)
    with holding(books.conn, books.schema, books.fence):
        if books.ledger.walk == "backfill" and before is not None and before.key != entry.position.key:
            # What was noted are keys of another kind: read by key, they would be taken for deleted.
            refetch.forget(books.conn, books.schema, books.ledger.source, books.ledger.object)
        # Noted before; but until the ledger knows the walk, somebody else might have taken the table: here it locks.
        claim(books.conn, books.schema, books.ledger.source, books.ledger.object, books.table)
        sequence, _ = books.ledger.append(books.conn, entry)
        if books.ledger.walk == "backfill" and entry.kind in ("start", "reset"):
            empty = books.ledger.is_empty(books.conn, books.table)
            reborn(books.conn, books.schema, books.ledger.source, books.ledger.object, sequence, empty=empty)
    _log.info("%s/%s %s   %s", books.ledger.source, books.ledger.object, books.ledger.walk, what)
    return Cursor(sequence, entry.position)


def _parsed(books: Books, text: str) -> Cursor:
    try:
        # It is looked up in Postgres: what that cannot hold, or a name that stands twice, was never shown by us.
        if why := unstorable(text.encode()):
            raise ValueError(why)
        return Cursor.from_text(text)
    except ValueError:
        raise CursorInvalidError(
            f"{'the text for' if books.proposed else ''} the Variable {books.key} holds no cursor.".lstrip(),
            kept=f"everything; nothing was {'written' if books.proposed else 'read'}.",
            todo=_instead(books, "Put an earlier value back"),
            **books.place,
        ) from None


def _ahead(books: Books, why: str) -> CursorAheadError:
    return CursorAheadError(
        f"the Variable {books.key} {'would be' if books.proposed else 'was'} edited to a place that the walk has not "
        f"reached ({why}); following it would skip records.",
        kept=f"everything; nothing was {'written' if books.proposed else 'read'}.",
        todo=_instead(books, "Put a value back that it had since then"),
        **books.place,
    )


def _instead(books: Books, todo: str) -> str:
    """What to do about a cursor that cannot be followed."""
    if books.proposed:
        return "Give one that it had since the walk last started over (the ledger has them), or an earlier instant."
    return f"{todo}, or delete the Variable: the walk then starts over."


def tell_unshown(books: Books, exc: CursorUnreadableError) -> None:
    """Say that the cursor could not be written now; the ledger has the position, and it is tried again."""
    _log.warning("%s: %s It is tried again; the ledger holds the position.", books.key, exc.what)
