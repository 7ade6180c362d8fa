"""Where a walk stands, as a frozen value; and the cursor, which is that value shown to people.

The ledger holds the position (law: one truth). The cursor is a copy of it with the sequence number of its ledger row,
so that a person can read it, and edit it back.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec

__all__ = [
    "AfterKey",
    "AfterToken",
    "AfterValue",
    "AtIndex",
    "AtInstant",
    "AtPage",
    "Cursor",
    "CursorStore",
    "InWindow",
    "Lap",
    "Pass",
    "Place",
    "Position",
    "Whole",
    "cursor_key",
]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Instant: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class AfterKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="last_key"):
    """Behind the record with the key ``after``; None: before the first record.

    ``behind`` holds keys that came before ``after``, oldest first: what to ask from when ``after`` has been deleted
    meanwhile. ``marks`` tells of each of them, ``after`` the last, at which value of the order it stood: at another one
    it has moved, and proves nothing. ``back`` counts how many of them have failed already, ``restarts`` how often all
    of them had. ``beyond``, ``ending`` and ``idle`` are as of :class:`AtIndex`.
    """

    after: str | None = None
    behind: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    back: Count = 0
    restarts: Count = 0
    beyond: bool = False
    ending: Count = 0
    idle: Count = 0


class Lap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Finds values that run in a circle of any length without remembering them all (R. P. Brent, "An improved Monte
    Carlo factorization algorithm", BIT 20, 1980): a mark is compared with each later value, and moves on after 1, 2, 4,
    8 ... of them."""

    mark: str | None = None
    steps: Count = 0
    power: Count = 1


# Airflow masks what stands under a name with "token" in it: the cursor could not be put back.
_UNMASKED = {"token": "next", "tokens": "passed"}


class AfterToken(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="token", rename=_UNMASKED
):
    """Where the page token ``token`` leads; None: before the first page.

    ``tokens`` watches for tokens that come again, ``pages`` for pages: an API that ignores the token may give a fresh
    one with the same page each time. ``empty`` counts the pages in a row without a record.
    """

    token: str | None = None
    tokens: Lap = Lap()
    pages: Lap = Lap()
    empty: Count = 0


class AfterValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="value"):
    """Behind the record with the key ``after`` and, where the API is asked by both, the version ``version`` as the API
    wrote it; None: before the first record. ``pages`` watches for pages that come again."""

    after: str | None = None
    version: str | None = None
    pages: Lap = Lap()


class AtIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="index"):
    """Behind so many records of a list whose pages move. ``known`` holds keys that were read last, oldest first, each
    with the value of the order at which it stood: the next page must hold one of them, at that value.

    ``tied`` are the keys of the last records where they share one value, ``tie``, and nothing settles their order: they
    are read again with the next page. ``torn``: something was taken without proof, so that another pass must agree.

    ``back`` counts the places where they were looked for in vain, ``restarts`` how often that led to the beginning.
    ``rows`` is the most that a page may hold, as learned; 0: not yet. ``most`` is the most that one held.

    ``beyond``: the next page is asked for behind the last record, to see whether there is more. ``ending``: 1, a page
    has ended with the last record; 2, and nothing was behind it; 3, the whole list was empty. ``idle`` counts pages in
    a row that held nothing new, ``drifted`` those of them on which the last record had moved.
    """

    seen: Count = 0
    known: tuple[tuple[str, str], ...] = ()
    tied: tuple[str, ...] = ()
    tie: str = ""
    torn: bool = False
    back: Count = 0
    restarts: Count = 0
    rows: Count = 0
    most: Count = 0
    beyond: bool = False
    ending: Count = 0
    idle: Count = 0
    drifted: Count = 0


class AtPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="page"):
    """Before the page ``number``; None: before the first. ``pages`` watches for pages that come again. ``rows`` is how
    many records the page before held, ``most`` how many the fullest one did."""

    number: Count | None = None
    pages: Lap = Lap()
    rows: Count = 0
    most: Count = 0


class AtInstant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="since"):
    """Every record before the instant ``anchor`` has been read; None: at the beginning.

    ``inside`` is the page to read next among the records of that one instant; None: the first of them. ``running`` is a
    digest of their keys so far in this round, in any order, ``before`` that of the round before: two must agree.
    ``largest`` is how many rows a page is known to hold at least. ``met`` are the keys of that instant on the page that
    reached it: they come again. ``pages`` watches for pages that come again within a round. ``border`` is the key with
    which the page behind them began in the round before, where it held none of them.
    """

    anchor: Instant | None = None
    inside: str | None = None
    running: Count = 0
    before: Count | None = None
    rounds: Count = 0
    largest: Count = 0
    met: tuple[str, ...] = ()
    pages: Lap = Lap()
    border: str = ""


class InWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="window", rename=_UNMASKED):
    """Within the window of time from ``start`` (None: the beginning) to ``until`` (exclusive; None: not known yet).

    ``later`` are the ends of the windows still to come. Of this window's try: the page ``token``, the ``rows`` read,
    the ``total`` that its first page told, and how many tries (``tries``) did not fit together.
    """

    start: Instant | None = None
    until: Instant | None = None
    later: tuple[Instant, ...] = ()
    token: str | None = None
    rows: Count = 0
    total: Count | None = None
    tries: Count = 0


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="single"):
    """Nothing to remember: one answer holds everything, or the store knows what comes next."""


Place: TypeAlias = AfterKey | AfterToken | AfterValue | AtIndex | AtPage | AtInstant | InWindow | Whole


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reading of the whole list. ``number`` counts from 0 within a lap, ``pages`` and ``rows`` within the pass.

    ``keys`` is a digest of the keys read, whatever their order; ``before`` that of the pass before. ``total`` is the
    least that the API told.
    """

    number: Count = 0
    pages: Count = 0
    rows: Count = 0
    keys: Count = 0
    before: Count | None = None
    total: Count | None = None


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a walk stands after a page.

    ``pages`` and ``records`` count what was read since the walk began, pages and records read again included.
    ``began_at`` is an instant certainly before the lap's first page was looked up by the API. ``order`` is the order
    field's value, as text, of the last record, against which the next page is checked, and ``ordered_by`` that field: a
    value of another one says nothing.

    ``closed`` is the instant up to which the copy is complete (law: hand-off); None before the first end. ``since`` is
    from when on this lap reads; None: from the beginning. ``lap`` is the pass it is in. ``taken_up`` is from when on it
    reads since a page token has expired, ``restarts`` how often that did not bring it on. ``largest`` is the most rows
    of a page, and ``nulls`` counts records without the version, which no filter finds.

    ``swept``: a sweep has read the list to its end, and is about what it has not seen. ``until`` is where a window ends
    that is read by itself (exclusive); None: nothing bounds what is read.

    ``key`` names the key fields, and ``made`` is a digest of all else that decides which records are copied and where
    to, as the source file said when the walk began. None: not known.
    """

    place: Place
    pages: Count = 0
    records: Count = 0
    complete: bool = False
    began_at: Instant | None = None
    order: str | None = None
    ordered_by: str | None = None
    key: str | None = None
    made: str | None = None
    closed: Instant | None = None
    since: Instant | None = None
    lap: Pass = Pass()
    taken_up: Instant | None = None
    restarts: Count = 0
    largest: Count = 0
    nulls: Count = 0
    swept: bool = False
    until: Instant | None = None

    def as_json(self) -> dict[str, Any]:
        """The position as JSON values."""
        # Lists, no tuples: Airflow's XCom would keep a tuple as a text.
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found

    @classmethod
    def from_json(cls, value: Any) -> Position:
        """The position that :meth:`as_json` wrote.

        Raises ValueError: it is not one. The types are checked, since a person may have edited it.
        """
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as exc:
            raise ValueError(str(exc)) from None


class Cursor(msgspec.Struct, frozen=True):
    """A position as people see it, with the sequence number of the ledger row it shows."""

    sequence: int
    position: Position

    def as_text(self) -> str:
        """JSON, spread over lines: it is read in a text field."""
        return json.dumps({"sequence": self.sequence, **self.position.as_json()}, indent=2, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Cursor:
        """The cursor in a text.

        Raises ValueError: the text is not one.
        """
        value = json.loads(text)
        if not isinstance(value, dict) or type(value.get("sequence")) is not int:
            raise ValueError("`sequence` is missing")
        return cls(value.pop("sequence"), Position.from_json(value))


class CursorStore(Protocol):
    """Where cursors are shown to people. Implementations must never take an error for an absence."""

    def read(self, key: str) -> str | None:
        """The text stored under the key; None only when it is proven that there is none.

        Raises CursorUnreadableError: it may exist, but cannot be read now.
        Raises CursorShadowedError: what would be read is not what is written.
        """
        ...

    def write(self, key: str, text: str) -> None:
        """Store the text, so that the next :meth:`read` returns it.

        Raises CursorUnreadableError: it could not be stored.
        Raises CursorShadowedError: reading it back gives something else.
        """
        ...


def cursor_key(source: str, object: str, walk: str) -> str:
    """The cursor's name. It avoids words such as `token` and `key`, at which Airflow masks values in its logs."""
    return f"extract_{source}_{object}_{walk}_cursor"
