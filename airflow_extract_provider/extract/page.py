"""The values that travel between client and walk: request, record, page, refusal, step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias

import msgspec

__all__ = ["FieldPath", "OrderValue", "Page", "Record", "Refused", "Reply", "Request"]

FieldPath: TypeAlias = tuple[str, ...]
"""The names to follow from a JSON object inwards: ``a.b`` is ``("a", "b")``; ``()`` is the value itself."""

OrderValue: TypeAlias = datetime | Decimal
"""What a stream is ordered by: an instant (aware) or a number."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the API. ``params`` never hold a secret: they may be shown to people by name.

    ``page`` counts the walk's pages from 1; it is there for messages only.
    """

    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    page: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON entity: its primary key as text, its own bytes as the API sent them (UTF-8).

    The key of several fields is the JSON array of their texts. ``version`` is an aware instant, or None when the
    object has none. ``order`` is the field named first in the object's ``order``, when there is one.
    """

    key: str
    raw: bytes
    version: datetime | None = None
    order: OrderValue | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What one request returned.

    ``envelope`` is the answer's outer object with undecoded values (empty when the answer is a bare list).
    ``began_at`` is an instant, on the API's clock where it tells it, that is certainly before it looked the records up.
    """

    records: tuple[Record, ...]
    began_at: datetime
    envelope: Mapping[str, msgspec.Raw] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """The API's 400, 404, 410 or 422 to a request: the walk decides whether it can ask in another way."""

    status: int


Reply: TypeAlias = Page | Refused
