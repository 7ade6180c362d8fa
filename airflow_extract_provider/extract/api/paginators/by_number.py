"""Pages by number: an offset or a page's number. They move whenever a record before them comes or goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators.turn import (
    Ask,
    Turn,
    ask,
    keys_of,
    mark_of,
    more,
    onward,
    request_refused,
)
from airflow_extract_provider.extract.cursor import AtIndex, AtPage, Place
from airflow_extract_provider.extract.errors import AnchorLostError, RepeatedPageError
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import OffsetPages, PageNumberPages
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["Counted", "Overlapping"]

_Rows: TypeAlias = tuple[tuple[str, str], ...]
"""Keys, each with the value of the order at which the record stands."""
_SPACING = (64, 32, 16, 8, 4, 2, 1, 0)
_RESTARTS = 3
_IDLE = 4


@dataclass(frozen=True, slots=True)
class Overlapping:
    """Pages by an offset, or by number with a page size to choose: each overlaps the one before by a record.

    The overlap is the proof that nothing has moved in between. When it is gone, records before it have gone or come:
    the walk steps back until it finds a record it knows. A page with a number begins only at multiples of its size, so
    the size is chosen anew for each page: the one that reaches furthest and still holds the record before. Where every
    size divides the place no page does (sizes of 2 and 3, behind six records): then what lies on both sides is looked
    at in turn, and counts if neither side has moved.
    """

    object: ApiObject
    pages: OffsetPages | PageNumberPages

    @property
    def sure(self) -> bool:
        # In an order by a field that never changes, or by the version, a record only moves to where this walk or the
        # incremental one comes again. Without one it may move into what was read: only another pass finds it.
        return self.object.order is not None

    def start(self, since: datetime | None = None, largest: int = 0) -> AtIndex:
        return AtIndex()

    def ask(self, place: Place) -> Ask:
        place = _at_index(place)
        size = self.pages.size
        if isinstance(self.pages, OffsetPages):
            return ask("offset", self._first(place), self.pages.send, size)
        assert size is not None
        number, rows = self._numbered(place)
        values: Mapping[str, Any] = {"page": number + self.pages.first, "size": rows}
        send = {} if self.pages.send is None else {self.pages.send: str(values["page"])}
        return Ask(values, send if size.send is None else {**send, size.send: str(rows)})

    def turn(self, place: Place, page: Page) -> Turn:
        place = _at_index(place)
        rows = _rows_of(page)
        if self._apart(place):
            return self._across(place, page, rows)
        known = {row: number for number, row in enumerate(place.known)}
        seen = max((at for at, row in enumerate(rows) if row in known), default=-1)
        begin, asked = self._window(place)
        if seen < 0 and begin > 0 and page.rows:
            if page.rows < asked and isinstance(self.pages, PageNumberPages):
                # A smaller page than asked for begins elsewhere: the server caps the size. Ask again with this one.
                return Turn((), (), replace(place, rows=max(page.rows, 2)))
            return Turn((), (), _torn(place) if place.tied and place.idle % 2 == 1 else self._back(place))
        if not page.rows and place.known and place.idle % 2 == 0:
            # What was read is not there any more, as far as the API tells: it has become shorter.
            return Turn((), (), self._back(place)) if begin > 0 else Turn((), (), place, complete=True)
        restart = bool(place.known) and seen < 0 and place.idle % 2 == 0
        new = {key for key, mark in rows[seen + 1 :] if restart or mark != place.tie or key not in place.tied}
        told = more(page, self.pages.more)
        if place.tied and told and not new and seen >= 0:
            return Turn((), (), _torn(place))
        # Nothing is missed behind a known record; without the last one, some may come again that were read already.
        lost = seen >= 0 and known[rows[seen]] < len(place.known) - 1
        moved = AtIndex(
            seen=self._seen(place, page, begin, asked, len(rows) - 1 - seen - len(place.tied)),
            restarts=place.restarts + restart,
            rows=self._learned(place, page, asked, told),
            torn=place.torn,
        )
        moved = self._behind(moved, () if restart else place.known, rows, seen)
        complete, idle = self._ended(place, page, bool(new) or restart, told)
        fresh = tuple(record for record in page.records if record.key in new)
        return Turn(page.records, fresh, replace(moved, idle=idle), complete=complete, again=restart or lost)

    def _behind(self, place: AtIndex, before: _Rows, rows: _Rows, seen: int) -> AtIndex:
        """The place with what to overlap with behind these rows, and which of them to read again since they are tied.

        Nothing settles the order of records that share a value: the API may give them in another one each time. So
        they count only once a page holds all of them; where they do not fit a page, they are torn.
        """
        first = len(rows)
        while self._ties and first > 0 and rows[first - 1][1] == rows[-1][1]:
            first -= 1
        whole = replace(place, known=_known((*before, *rows)))
        if first == len(rows):
            return whole
        tied = replace(
            place,
            known=_known((*before, *rows[:first])),
            tied=tuple(key for key, _ in rows[first:]),
            tie=rows[-1][1],
        )
        fits = first > max(seen, 0) and not self._short(tied)
        return tied if fits else replace(whole, torn=True)

    @property
    def _ties(self) -> bool:
        """Whether records may share a value of the order without anything that settles their own order."""
        order = self.object.order
        return order is not None and not order.then and order.field not in self.object.key

    def refused(self, place: Place, refusal: Refused) -> Place:
        place = _at_index(place)
        if self._first(place) == 0:
            raise request_refused(refusal)
        if self._apart(place) and place.look != 1:
            return replace(place, look=1) if place.look == 0 else self._back(place)
        # Some APIs refuse a page beyond the end: behind the last record that is the end, before it the list is shorter.
        return replace(place, idle=place.idle + 1) if place.idle % 2 == 1 else self._back(place)

    @property
    def _only_left(self) -> bool:
        """Whether records only ever move to the left: none comes before others that were read already."""
        order = self.object.order
        return order is not None and not order.falling

    def _first(self, place: AtIndex) -> int:
        """The index of the record that the next page must hold: the last one read, or, since it was not found there,
        one further left (odd) or right (even). After a page that held nothing new it is the one behind, to see the end.
        """
        if place.idle % 2 == 1 and isinstance(self.pages, OffsetPages):
            return place.seen
        far = 4 ** (max(place.back - 1, 0) // 2)
        step = 0 if not place.back else -far if place.back % 2 else far * max(self._rows(place) // 2, 1)
        return max(place.seen - 1 - len(place.tied) + step, 0)

    def _rows(self, place: AtIndex) -> int:
        size = self.pages.size
        most = size.max if size is not None else 0
        return min(most, place.rows) if place.rows else most

    def _window(self, place: AtIndex) -> tuple[int, int]:
        """The index of the asked page's first record, and how many it holds if the server does as it is told."""
        if isinstance(self.pages, OffsetPages):
            return self._first(place), self._rows(place)
        number, rows = self._numbered(place)
        return number * rows, rows

    def _numbered(self, place: AtIndex) -> tuple[int, int]:
        """The number (from 0) and size of the page to ask for."""
        most = self._rows(place)
        return (place.seen // most - (place.look == 1), most) if self._apart(place) else _page(self._first(place), most)

    def _short(self, place: AtIndex) -> bool:
        """Whether no numbered page holds both the record to overlap with and the one behind the place."""
        if isinstance(self.pages, OffsetPages):
            return False
        number, rows = _page(max(place.seen - 1 - len(place.tied), 0), self._rows(place))
        return number * rows + rows <= place.seen

    def _apart(self, place: AtIndex) -> bool:
        """Whether the place lies where every page size has a border."""
        return bool(place.known) and not place.back and self._short(place)

    def _across(self, place: AtIndex, page: Page, rows: _Rows) -> Turn:
        """The page behind the place, the one before it, the one behind it again: where the last record that was read
        still ends the one, and the same record still begins the other, nothing lies between."""
        first = rows[0][0] if rows else ""
        if place.look == 0:
            return Turn((), (), replace(place, look=1, beyond=first))
        if place.look == 1:
            stays = page.rows == self._rows(place) and rows[-1] == place.known[-1]
            return Turn((), (), replace(place, look=2) if stays else self._back(place))
        if first != place.beyond:
            return Turn((), (), self._back(place))
        told = more(page, self.pages.more)
        complete, idle = self._ended(replace(place, idle=1), page, bool(rows), told)
        moved = AtIndex(place.seen + page.rows, restarts=place.restarts, rows=place.rows, torn=place.torn, idle=idle)
        return Turn(page.records, page.records, self._behind(moved, place.known, rows, -1), complete=complete)

    def _seen(self, place: AtIndex, page: Page, begin: int, asked: int, new: int) -> int:
        """How many records lie before the place now. A page of the asked size tells where it began; a shorter one does
        not, since the server may have capped it: then what is new is added."""
        exact = page.rows == asked or begin == 0 or isinstance(self.pages, OffsetPages)
        return begin + page.rows if exact else place.seen + new

    def _learned(self, place: AtIndex, page: Page, asked: int, told: bool | None) -> int:
        """The page size to count on: a first page smaller than asked for shows the server's cap, or the end."""
        if isinstance(self.pages, OffsetPages) or page.rows >= asked or told is False or page.rows < 2:
            return place.rows
        return page.rows if not place.known else place.rows

    def _ended(self, place: AtIndex, page: Page, new: bool, told: bool | None) -> tuple[bool, int]:
        """Whether a proven page was the last, and the pages in a row without anything new."""
        if told is False:
            return True, 0
        if new:
            return False, 0
        if told is None and (not place.known or self._empty_behind(place, page)):
            return True, 0
        if told is None and place.idle < _IDLE:
            # Servers send as few as they like: only an empty page behind the last record is the end.
            return False, place.idle + 1
        raise RepeatedPageError(
            "the page holds nothing new, but the API does not say that it was the last.",
            todo="If the API sends one record a page, let it send more (pages.size): pages must overlap by a record.",
        )

    def _empty_behind(self, place: AtIndex, page: Page) -> bool:
        """Whether this was the look behind the last record, and nothing was there. A numbered page always holds some
        record before it, so the same page a second time without anything new is as good."""
        return place.idle % 2 == 1 and (not page.rows or isinstance(self.pages, PageNumberPages))

    def _back(self, place: AtIndex) -> AtIndex:
        """Look elsewhere, further each time; raises when that has led to the beginning too often."""
        if place.restarts >= _RESTARTS:
            raise AnchorLostError(
                f"{_RESTARTS} times all records that the walk could go on from had disappeared.",
                todo="Check that the API keeps its order; if it has none, leave `order` out.",
                key=place.known[-1][0] if place.known else None,
            )
        further = 2 if self._only_left and place.back else 1
        return replace(place, back=place.back + further, idle=0, look=0, beyond="")


def _at_index(place: Place) -> AtIndex:
    assert isinstance(place, AtIndex)
    return place


def _torn(place: AtIndex) -> AtIndex:
    """The place where the tied records do not fit a page: the server's pages end with them, and there is more behind.
    They are overlapped with one by one."""
    known = _known((*place.known, *((key, place.tie) for key in place.tied)))
    return replace(place, known=known, tied=(), tie="", torn=True, idle=0)


def _page(index: int, most: int) -> tuple[int, int]:
    """The page (from 0) and the size, at most ``most``, that hold the record at ``index`` and reach furthest."""
    sizes = range(max(1, most // 2), most + 1)
    size = max(sizes, key=lambda size: (index // size * size + size, size))
    return index // size, size


def _rows_of(page: Page) -> _Rows:
    """The keys on a page in its order, each with the value at which it stands."""
    marks = {record.key: mark_of(record) for record in page.records}
    return tuple((key, marks.get(key, "")) for key in keys_of(page))


def _known(rows: _Rows) -> _Rows:
    """Records to overlap with. They lie ever wider apart: some survive when many in a row are deleted."""
    # One that came again stands where it was seen last.
    rows = tuple(dict(rows[::-1]).items())[::-1]
    return tuple(rows[-distance - 1] for distance in _SPACING if distance < len(rows))


@dataclass(frozen=True, slots=True)
class Counted:
    """Pages by number where no size can be sent: nothing overlaps, so passes go on until two of them agree."""

    pages: PageNumberPages

    @property
    def sure(self) -> bool:
        return False

    def start(self, since: datetime | None = None, largest: int = 0) -> AtPage:
        return AtPage()

    def ask(self, place: Place) -> Ask:
        assert isinstance(place, AtPage)
        number = self.pages.first if place.number is None else place.number
        return ask("page", number, self.pages.send, self.pages.size)

    def turn(self, place: Place, page: Page) -> Turn:
        assert isinstance(place, AtPage)
        told = more(page, self.pages.more)
        if told is False or (told is None and not page.rows):
            return Turn(page.records, page.records, place, complete=True)
        watch = place.pages
        if page.rows:
            watch = onward(watch, "\0".join(keys_of(page)), "a page that it had given before, under another number")
        number = (self.pages.first if place.number is None else place.number) + 1
        return Turn(page.records, page.records, AtPage(number, watch))

    def refused(self, place: Place, refusal: Refused) -> Place:
        raise request_refused(refusal)
