"""The ledger: one row per committed page, with the position after it. The only truth about where a walk stands."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec
from psycopg import sql
from psycopg.types.json import Jsonb

from airflow_extract_provider.extract.cursor import Cursor, Place, Position
from airflow_extract_provider.extract.errors import PositionMismatchError
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Copied", "Entry", "Ledger", "Row"]

_FILE = "ledger.sql"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a ledger row says beside whose it is.

    ``kind``: ``start`` the first row of a walk, ``reset`` started over, ``sweep`` the beginning of a sweep, ``edit``
    followed an edited cursor, ``page``.
    ``cause`` is the task instance that wrote it. ``sent_at`` is Postgres's clock, read before the page was asked for.
    """

    kind: Literal["start", "reset", "sweep", "edit", "page"]
    position: Position
    cause: str = ""
    sent_at: datetime | None = None
    records: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """The position after a row, whether it lies behind the last reset, and whether the cursor is known to have shown
    it."""

    position: Position
    since_reset: bool
    shown: bool


@dataclass(frozen=True, slots=True)
class Copied:
    """As what records were copied, as a position tells it (None: not known), and how many."""

    key: str | None
    made: str | None
    records: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger rows of one walk, or, by ``part``, of one of its windows. Methods take the connection, and never
    commit on their own.

    Those that return a position raise PositionMismatchError when it is none to this version of the package.
    """

    schema: str
    source: str
    object: str
    walk: str
    part: str = ""

    def of(self, walk: str) -> Ledger:
        """The ledger rows of another walk of the same object."""
        return replace(self, walk=walk, part="")

    def head(self, conn: Connection) -> Cursor | None:
        """Where the walk stands, with the sequence number of that row; None: it never began."""
        row = conn.execute(self._statement("head"), self._whose()).fetchone()
        return None if row is None else Cursor(row[0], _position(row[2]))

    def copied(self, conn: Connection) -> Copied | None:
        """What the newest row says was copied; None: the walk never began. Of a position of another version of this
        package it is what can be read."""
        row = conn.execute(self._statement("head"), self._whose()).fetchone()
        if row is None:
            return None
        told = row[2] if isinstance(row[2], dict) else {}
        key, made, records = told.get("key"), told.get("made"), told.get("records")
        return Copied(
            key if isinstance(key, str) else None,
            made if isinstance(made, str) else None,
            records if isinstance(records, int) else 0,
        )

    def head_sequence(self, conn: Connection) -> int | None:
        """The number of the row where the walk stands, whatever its position says; None: it never began."""
        row = conn.execute(self._statement("head"), self._whose()).fetchone()
        return None if row is None else row[0]

    def head_kind(self, conn: Connection) -> str | None:
        """The kind of the row where the walk stands; None: it never began."""
        row = conn.execute(self._statement("head"), self._whose()).fetchone()
        return None if row is None else row[1]

    def is_empty(self, conn: Connection, table: tuple[str, str]) -> bool:
        """Whether the record table holds nothing at all."""
        row = conn.execute(statement(_FILE, "empty", self.schema, table)).fetchone()
        return row == (True,)

    def append(self, conn: Connection, entry: Entry) -> tuple[int, datetime]:
        """Add a row to the current transaction; returns its sequence number, and Postgres's clock."""
        return self.extend(conn, [entry])

    def extend(
        self,
        conn: Connection,
        entries: Sequence[Entry],
        beside: tuple[sql.Composed, Mapping[str, Any]] | None = None,
    ) -> tuple[int, datetime]:
        """Add rows, in this order, to the current transaction; returns the last one's sequence number, and Postgres's
        clock. ``beside``: a statement that writes for the same object, which saves a round trip."""
        text, asked = self._statement("extend"), self.parameters(entries)
        if beside is not None:
            text, asked = sql.SQL("with beside as ({}) {}").format(beside[0], text), {**asked, **beside[1]}
        whose = {"source": self.source, "object": self.object}
        sequence, clock = conn.execute(text, {**asked, **whose}).fetchall()[-1]
        return sequence, clock

    def parameters(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Rows as parameters."""
        return {
            "ledger": self.walk,
            "ledger_part": self.part,
            "entries": json.dumps([_told(entry) for entry in entries]),
        }

    def row(self, conn: Connection, sequence: int) -> Row | None:
        """One row of this walk; None: there is none of that number."""
        row = conn.execute(self._statement("row"), {**self._whose(), "sequence": sequence}).fetchone()
        return None if row is None else Row(_position(row[0]), since_reset=row[1], shown=row[2])

    def shown(self, conn: Connection) -> int | None:
        """The newest row that is known to have been in the cursor; None: none ever was."""
        row = conn.execute(self._statement("shown"), self._whose()).fetchone()
        return None if row is None else row[0]

    def show(self, conn: Connection, sequence: int) -> None:
        """Note that the cursor shows a row."""
        conn.execute(self._statement("show"), {"sequence": sequence})

    def covered(self, conn: Connection, position: Position) -> Cursor | None:
        """The newest row since the last reset at a position's place; None: the walk has not been there."""
        asked = {**self._whose(), "spot": Jsonb(_spot(position.place)), "complete": Jsonb(position.complete)}
        row = conn.execute(self._statement("covered"), asked).fetchone()
        return None if row is None else Cursor(row[0], _position(row[1]))

    def totals(self, conn: Connection, cause: str) -> Counter[str]:
        """Pages, records, requests and changes by kind of one task instance, over all its tries and slices."""
        return Counter(dict(conn.execute(self._statement("totals"), {**self._whose(), "cause": cause}).fetchall()))

    def is_outdated(self, conn: Connection, cause: str) -> bool:
        """Whether this part stands where a copy stood that was begun anew since, or at an end to which another task
        instance has come."""
        return conn.execute(self._statement("outdated"), {**self._whose(), "cause": cause}).fetchone() is not None

    def was_reset_by(self, conn: Connection, cause: str) -> bool:
        """Whether this task instance has already started the walk over, in an earlier try."""
        return conn.execute(self._statement("reset_by"), {**self._whose(), "cause": cause}).fetchone() is not None

    def _statement(self, name: str) -> Any:
        return statement(_FILE, name, self.schema)

    def _whose(self) -> dict[str, Any]:
        return {"source": self.source, "object": self.object, "walk": self.walk, "ledger_part": self.part}


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "cause": entry.cause,
        "position": entry.position.as_json(),
        "sent_at": None if entry.sent_at is None else entry.sent_at.isoformat(),
        "records": entry.records,
        "counts": dict(entry.counts),
    }


# What of a place says where it is. Counts and anchors are left out: a person may not have kept them.
_SPOT = frozenset({"by", "after", "version", "next", "seen", "number", "anchor", "inside", "start", "until"})


def _spot(place: Place) -> dict[str, Any]:
    told = msgspec.to_builtins(place, builtin_types=(datetime,))
    # Instants are compared as instants: the ledger has them in UTC.
    in_utc = {
        name: value.astimezone(timezone.utc) if isinstance(value, datetime) else value for name, value in told.items()
    }
    found: dict[str, Any] = msgspec.to_builtins({name: value for name, value in in_utc.items() if name in _SPOT})
    return found


def _position(value: Any) -> Position:
    try:
        return Position.from_json(value)
    except ValueError:
        raise PositionMismatchError(
            "the ledger holds a position that this version of the package does not understand.",
            kept="everything; nothing was read.",
            todo="Run the version that wrote it, or start over with `reset`.",
        ) from None
