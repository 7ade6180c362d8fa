"""The values that travel between client and walk: request, record, page, refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeAlias

import msgspec

__all__ = ["FieldPath", "Halted", "OrderValue", "Page", "Record", "Refused", "Reply", "Request", "SetAside"]

FieldPath: TypeAlias = tuple[str, ...]
"""The names to follow from a JSON object inwards: ``a.b`` is ``("a", "b")``; ``()`` is the value itself."""

OrderValue: TypeAlias = datetime | Decimal | str
"""What a stream is ordered by: an instant (aware), a number, or, only where it is the key, a text."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the API. ``params`` never hold a secret: they may be shown to people by name.

    ``link`` is a URL that the API itself gave for the next page, asked instead of ``path`` and ``params``; it may be
    relative to ``path``. ``key``: this reads the one record of that key. ``page`` counts the walk's pages from 1; it is
    there for messages only.
    """

    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    page: int = 1
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    link: str | None = None
    key: str | None = None


class Record(msgspec.Struct, frozen=True):
    """One JSON entity: its primary key as text, its own bytes as the API sent them (UTF-8).

    The key of several fields is the JSON array of their texts. ``version`` is an aware instant, or None when the
    object has none. ``order`` is the field named first in the object's ``order``, when there is one. ``deleted``: it is
    the API's tombstone of a record, which may hold little more than the key. ``since`` is the instant that the object's
    `since` compares, when it has such a filter.
    """

    key: str
    raw: bytes
    version: datetime | None = None
    order: OrderValue | None = None
    deleted: bool = False
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record that cannot be stored as it is, for the quarantine: its own bytes, and why in words without its values.

    ``number`` counts from 1 on its page. ``key`` is None when that is what cannot be read.
    """

    number: int
    raw: bytes
    why: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What one request returned.

    ``envelope`` is the answer's outer object with undecoded values (empty when the answer is a bare list).
    ``began_at`` is an instant, on the API's clock where it tells it, that is certainly before it looked the records up.
    ``headers`` are the answer's, their names in lower case. ``path`` is that of the URL that was asked, to which a link
    in the answer may be relative. ``bad`` are the records that were set aside. ``absent``: the API has refused it, as
    there is no such page behind the last one. ``age`` is how long the answer had been in a cache, where one tells.
    """

    records: tuple[Record, ...]
    began_at: datetime
    envelope: Mapping[str, msgspec.Raw] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    bad: tuple[SetAside, ...] = ()
    path: str = ""
    absent: bool = False
    age: timedelta = timedelta(0)

    @property
    def rows(self) -> int:
        """How many elements the list held, bad ones included."""
        return len(self.records) + len(self.bad)


@dataclass(frozen=True, slots=True)
class Refused:
    """The API's 400, 404, 410 or 422 to a request: the walk decides whether it can ask in another way.

    ``said`` is the beginning of what the API said with it, as people may see it; empty: nothing, or it is not shown.
    ``own``: it can be the API's own word, and is no text or web page of a proxy before it. ``age`` as of a page.
    """

    status: int
    said: str = ""
    own: bool = True
    age: timedelta = timedelta(0)

    @property
    def quoted(self) -> str:
        """The end of a message: what the API said, if anything, and its full stop."""
        return f": {self.said}" if self.said else "."


class Halted(Exception):
    """The client was told to stop, and sends nothing more."""


Reply: TypeAlias = Page | Refused
