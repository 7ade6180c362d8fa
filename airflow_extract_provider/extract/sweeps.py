"""When a sweep begins, what it is told of the store, and how it ends: a ledger row and its books in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from airflow_extract_provider.extract.cursor import Cursor, Position
from airflow_extract_provider.extract.resume import Books, show
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.store import sweep
from airflow_extract_provider.extract.store.fence import hold, holding
from airflow_extract_provider.extract.store.ledger import Entry
from airflow_extract_provider.extract.store.report import Report
from airflow_extract_provider.extract.sweeping import ALLOWED, Deletes
from airflow_extract_provider.extract.walks.backfill import beginning
from airflow_extract_provider.extract.walks.rebackfill import leaves_out_undated, passes_by
from airflow_extract_provider.extract.walks.step import Absent, Answer, DueKey

__all__ = ["Sweeps"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sweeps:
    """The sweeps of an object. ``max_deletes``: how many records this run may let one delete; None: as its config
    says."""

    books: Books
    object: ApiObject
    max_deletes: int | None

    def begin(self, at: Cursor, made: str, complete_to: datetime | None) -> Cursor:
        """Where this run begins: in the open sweep, at the beginning of one that is due, or behind the last one.

        ``made`` as :meth:`Source.made` tells it. ``complete_to``: up to when the incremental walk calls the copy
        complete; None: it cannot be asked.
        """
        fresh = beginning(self.object, made)
        why = self._due(at, fresh)
        if why is None:
            return at
        books, ledger = self.books, self.books.ledger
        with holding(books.conn, books.schema, books.fence):
            number, _ = ledger.append(books.conn, Entry("sweep", fresh, books.runner))
            sweep.begin(books.conn, *self._whose, number, books.runner, complete_to)
        self._say(f"begins: {why}")
        found = Cursor(number, fresh)
        show(books, found)
        return found

    def answer(self, asked: Absent) -> Answer:
        """Judge what the open sweep has not seen, once; and tell what of it is to be deleted next.

        Raises TooManyDeletesError: more than may be. Nothing is noted then.
        """
        books, open = self.books, self._open()
        if not open.judged:
            why = self._unproven(open)
            with holding(books.conn, books.schema, books.fence):
                withheld = sweep.judge(
                    books.conn,
                    *self._whose,
                    books.table,
                    open,
                    self._before(open),
                    self._allowed,
                    insist=self.max_deletes is not None,
                    provable=why is None,
                    dated=self._by_instant,
                )
            if withheld:
                why = why or "they have no instant, and the list was asked for by it"
                self._say(f"{withheld:,} are not in the list, and not deleted: {why}; declare `by_key` to be sure")
        if self.object.by_key is not None:
            return Answer(())
        due = sweep.unseen(books.conn, *self._whose, asked.limit)
        return Answer(tuple(DueKey(each.key, each.number) for each in due), self._before(open))

    def end(self, position: Position) -> Cursor:
        """Note that the open sweep has come to its end, and what it says of the copy."""
        books, open = self.books, self._open()
        with holding(books.conn, books.schema, books.fence):
            sequence, _ = books.ledger.append(books.conn, Entry("page", position, books.runner))
            left = sweep.end(books.conn, books.schema, open)
        if left:
            self._say(f"{left:,} are not in the list, and cannot be read by key: they stay noted (walk `by_key`)")
        return Cursor(sequence, position)

    def report(self, number: int | None) -> Report | None:
        """The report of a sweep; None: of the last one, if this runner began it."""
        books = self.books
        if number is None:
            last = sweep.last(books.conn, *self._whose)
            number = last.number if last is not None and last.cause == books.runner else None
        return None if number is None else sweep.report(books.conn, books.schema, number)

    @property
    def _whose(self) -> tuple[str, str, str]:
        return self.books.schema, self.books.ledger.source, self.books.ledger.object

    @property
    def _allowed(self) -> Callable[[int], int]:
        asked = None if self.max_deletes is None else Deletes(count=self.max_deletes)
        config = self.object.sweep
        return (asked or (ALLOWED if config is None else config.max_deletes)).allowed

    def _before(self, open: sweep.Sweep) -> datetime:
        """What was stored before that instant must be in the list. A list may show late what was stored by another way:
        only where a read by key has the last word that does not matter."""
        return open.looked_at - (timedelta(0) if self.object.by_key is not None else self.object.late)

    @property
    def _by_instant(self) -> bool:
        """Whether records without an instant cannot be in the list that was read, nor be read by key."""
        head = self.books.ledger.head(self.books.conn)
        return self.object.by_key is None and head is not None and leaves_out_undated(head.position)

    def _unproven(self, open: sweep.Sweep) -> str | None:
        """Why what the sweep has not seen may be there all the same, in words; None: it is gone, or the API is asked
        for it by key."""
        if self.object.by_key is not None:
            return None
        if passes_by(self.object):
            return "changed meanwhile, they may have moved to where the list was read already"
        if self._by_instant and self.object.since_field != self.object.version:
            return "the list was asked for by an instant that they may not have"
        counts = sweep.report(self.books.conn, self.books.schema, open.number).counts
        return "a record's key could not be read, so that it may be any of them" if counts.get("without_key") else None

    def _open(self) -> sweep.Sweep:
        books, found = self.books, sweep.opened(self.books.conn, *self._whose)
        if found is None:
            # Whoever has closed it has taken the walk over.
            hold(books.conn, books.schema, books.fence)
        assert found is not None
        return found

    def _due(self, at: Cursor, fresh: Position) -> str | None:
        """Why a sweep begins now, in words; None: it does not."""
        conn, ledger = self.books.conn, self.books.ledger
        kind, open = ledger.head_kind(conn), sweep.opened(conn, *self._whose)
        if kind == "reset":
            return "it was started over"
        every = None if self.object.sweep is None else self.object.sweep.every
        if not at.position.complete:
            return self._anew(at.position, fresh, open, every)
        last = sweep.last(conn, *self._whose)
        if last is None or (every is None and last.cause != self.books.runner):
            return "no cadence is declared"
        if every is not None and last.began_at + every <= self._now():
            return f"the last complete reading began at {_second(last.began_at)}"
        if every is not None:
            self._say(f"nothing to do: the next one is due at {_second(last.began_at + every)}; `reset` begins one now")
        return None

    def _anew(
        self, position: Position, fresh: Position, open: sweep.Sweep | None, every: timedelta | None
    ) -> str | None:
        """Why an unfinished sweep is begun again; None: it goes on."""
        if open is None:
            return "its books are gone"
        if not position.pages and position != fresh:
            return "the source file has changed"
        # A proof grows old; and one key that cannot be read must not put off all other changes.
        held = position.swept and (open.judged or self.max_deletes is None)
        if held and every is not None and (open.judged_at or open.began_at) + every <= self._now():
            return "the last one has not deleted what it had not seen, and the next one is due"
        return None

    def _now(self) -> datetime:
        return sweep.now(self.books.conn, self.books.schema)

    def _say(self, what: str) -> None:
        _log.info("%s/%s sweep   %s", self.books.ledger.source, self.books.ledger.object, what)


def _second(instant: datetime) -> str:
    return f"{instant.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
