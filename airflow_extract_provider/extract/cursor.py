"""Where a walk stands, as a frozen value; and the cursor, which is that value shown to people.

The ledger holds the position (law: one truth). The cursor is a copy of it with the sequence number of its ledger row,
so that a person can read it, and edit it back.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec

__all__ = ["AfterKey", "AfterToken", "Cursor", "CursorStore", "Lap", "Place", "Position", "cursor_key"]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Instant: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class AfterKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="by", tag="last_key"):
    """Behind the record with the key ``after``; None: before the first record.

    ``behind`` holds keys that came before ``after``, oldest first: what to ask from when ``after`` has been deleted
    meanwhile. ``back`` counts how many of them have failed already, ``restarts`` how often all of them had. ``idle``
    counts the pages in a row that held nothing new, where only an empty page can tell the end.
    """

    after: str | None = None
    behind: tuple[str, ...] = ()
    back: Count = 0
    restarts: Count = 0
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


Place: TypeAlias = AfterKey | AfterToken


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a walk stands after a page.

    ``pages`` and ``records`` count what was read since the walk began, pages and records read again included.
    ``began_at`` is an instant certainly before the first page was looked up by the API: once the walk is complete, the
    copy is complete up to it (law: hand-off). ``order`` is the order field's value, as text, of the last record,
    against which the next page is checked, and ``ordered_by`` that field: a value of another one says nothing.

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
