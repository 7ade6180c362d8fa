"""What a walk and a paginator say to each other: what to ask at a place, and what a page made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import msgspec
import xxhash

from airflow_extract_provider.extract.api.cut import members
from airflow_extract_provider.extract.cursor import Lap, Place
from airflow_extract_provider.extract.errors import (
    BadRecordError,
    RepeatedPageError,
    RequestRefusedError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.page import FieldPath, Page, Record, Refused
from airflow_extract_provider.extract.paging import PageSize

__all__ = [
    "Ask",
    "Paginator",
    "Turn",
    "ask",
    "behind",
    "envelope_value",
    "keys_of",
    "mark_of",
    "more",
    "nothing_new",
    "onward",
    "onward_page",
    "request_refused",
    "spaced",
    "total",
    "with_keys",
]


_SPACING = (65, 33, 17, 9, 5, 3, 2, 1, 0)


@dataclass(frozen=True, slots=True)
class Ask:
    """What asks for the page at a place: ``values`` for the templates, ``send`` as query parameters of their own.

    ``link`` is a URL that the API gave. ``since`` and ``until`` (aware) bound the page where the paginator itself says
    from when on it reads; None: as the walk says.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    send: Mapping[str, str] = field(default_factory=dict)
    link: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a paginator makes of a page: its proven records, which of them are new, the place after it.

    ``complete``: it was the last page. ``again``: it may begin before the place, or elsewhere, so that only the order
    within it counts. ``overlap`` is the known record that proves it, which the new ones come after.
    """

    records: tuple[Record, ...]
    fresh: tuple[Record, ...]
    place: Place
    complete: bool = False
    again: bool = False
    overlap: Record | None = None


class Paginator(Protocol):
    """What a walk needs to know about paging. Pure: no I/O, no memory of its own."""

    @property
    def sure(self) -> bool:
        """Whether one pass proves that nothing was missed; else passes go on until two of them agree."""
        ...

    def start(self, since: datetime | None = None, largest: int = 0) -> Place:
        """The place before the first record, or before those of ``since``. ``largest``: rows of the largest page."""
        ...

    def ask(self, place: Place) -> Ask:
        """What asks for the page at a place."""
        ...

    def turn(self, place: Place, page: Page) -> Turn:
        """The page that was asked for at a place. Raises a StopAndLook error rather than pass a gap."""
        ...

    def refused(self, place: Place, refusal: Refused) -> Place | None:
        """Where to ask instead, now that the API has refused the request for this place; None: that is its way to say
        that there is no such page, as good as an empty one. Else raises."""
        ...


def ask(name: str, value: Any, send: str | None, size: PageSize | None, most: int | None = None) -> Ask:
    """An Ask for one value (None: nothing to send) and the page size, at most ``most`` records."""
    rows = None if size is None else min(size.max, most or size.max)
    sent = {} if send is None or value is None else {send: str(value)}
    if size is not None and size.send is not None:
        sent[size.send] = str(rows)
    return Ask({name: value, "size": rows}, sent)


def mark_of(record: Record) -> str:
    """Where a record stands in the list, as far as the config tells: at another value it has moved."""
    value = record.version if record.order is None else record.order
    return "" if value is None else str(value)


def with_keys(digest: int, keys: Iterable[str]) -> int:
    """A sum of hashes: the same for the same keys in any order."""
    digest += sum([xxhash.xxh3_64_intdigest(key.encode()) for key in keys])
    return digest & 0x7FFF_FFFF_FFFF_FFFF


def spaced(rows: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Which of these keys, each with its mark, to hold on to: the last one, and others ever wider apart, so that some
    survive when many records in a row are deleted. A key that comes again stands where it was seen last."""
    found = tuple(dict(tuple(rows)[::-1]).items())[::-1]
    return tuple(found[-distance - 1] for distance in _SPACING if distance < len(found))


def keys_of(page: Page) -> tuple[str, ...]:
    """The keys on a page in its order, those of records that were set aside among them.

    Raises BadRecordError: it holds records, but no key can be read, so that nothing says where the next page begins.
    """
    if not page.bad:
        return tuple(record.key for record in page.records)
    bad = {item.number: item.key for item in page.bad}
    good = iter(page.records)
    keys = tuple(bad[number] if number in bad else next(good).key for number in range(1, page.rows + 1))
    known = tuple(key for key in keys if key is not None)
    if not known:
        raise BadRecordError(
            f"no record of the page can be read ({page.bad[0].why}), and the next page is asked for by them.",
            todo="Correct the object's config, or ask the API's vendor.",
            record=1,
        )
    return known


def behind(page: Page, keys: tuple[str, ...], seen: int) -> tuple[Record, ...]:
    """The records of a page behind the ``seen``-th of its keys (-1: all)."""
    if not page.bad:
        return page.records[seen + 1 :]
    passed = {*keys[: seen + 1]}
    return tuple(record for record in page.records if record.key not in passed)


def envelope_value(page: Page, path: FieldPath) -> bytes | None:
    """The undecoded value at a path of the answer, None when it is absent."""
    value: msgspec.Raw | None = page.envelope.get(path[0])
    for name in path[1:]:
        if value is None or not bytes(value).startswith(b"{"):
            return None
        value = members(value).get(name)
    return None if value is None else bytes(value).strip()


def more(page: Page, path: FieldPath | None) -> bool | None:
    """What the API says about further pages; None when it is not asked to. Raises WrongAnswerError."""
    if path is None:
        return None
    if page.absent:
        return False
    raw = envelope_value(page, path)
    if raw not in (b"true", b"false"):
        name = ".".join(path)
        raise WrongAnswerError(
            f"`{name}` is {'missing' if raw is None else 'neither true nor false'} in the answer.",
            todo="Correct pages.more, or leave it out: the walk then asks until nothing new comes.",
        )
    return raw == b"true"


def total(page: Page, path: FieldPath | None) -> int | None:
    """How many records the API says there are; None when it is not asked to. Raises WrongAnswerError."""
    if path is None or page.absent:
        return None
    raw = envelope_value(page, path)
    if raw is None or not raw.isdigit():
        name = ".".join(path)
        raise WrongAnswerError(
            f"the total `{name}` is {'missing' if raw is None else 'no whole number'} in the answer.",
            todo="Correct `total`, or leave it out.",
        )
    return int(raw)


def onward(lap: Lap, value: bytes, what: str) -> Lap:
    """The lap one value on. Raises RepeatedPageError: that is the marked one again; ``what`` names it."""
    digest = xxhash.xxh3_64_hexdigest(value)
    if digest == lap.mark:
        raise RepeatedPageError(
            f"the API gave {what}; going on would circle for ever.",
            todo="Most often the API ignores what asks for the page: check its spelling; else report it to its vendor.",
        )
    if lap.mark is None or lap.steps + 1 >= lap.power:
        return Lap(digest, power=lap.power * 2)
    return msgspec.structs.replace(lap, steps=lap.steps + 1)


def nothing_new() -> RepeatedPageError:
    """The error for pages that bring nothing new, and do not end either."""
    return RepeatedPageError(
        "the page holds nothing new, but the API does not say that it was the last.",
        todo="If the API sends one record a page, let it send more (pages.size): pages must overlap by a record.",
    )


def onward_page(lap: Lap, page: Page, what: str) -> Lap:
    """As :func:`onward`, of a page's records with their versions: changed meanwhile, the same ones may come again."""
    seen = [(record.key, record.version) for record in page.records]
    return onward(lap, msgspec.json.encode(seen), what)


def request_refused(refusal: Refused) -> RequestRefusedError:
    """The error for a request that could not be asked in another way."""
    return RequestRefusedError(
        f"the API refuses the request (status {refusal.status}){refusal.quoted}",
        todo="Check the connection's base URL, and `path` and `params` of the object.",
    )
