"""Pages by number: an offset or a page's number. They move whenever a record before them comes or goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_turn
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
    nothing_new,
    onward,
    request_refused,
    spaced,
)
from airflow_extract_provider.extract.cursor import AtIndex, AtPage, Place
from airflow_extract_provider.extract.errors import AnchorLostError, RequestRefusedError
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import OffsetPages, PageNumberPages
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["Counted", "Overlapping"]

_Rows: TypeAlias = tuple[tuple[str, str], ...]
"""Keys, each with the value of the order at which the record stands."""
_RESTARTS = 3
_IDLE = 12
_DRIFTED = 3
_GONE = 3


@dataclass(frozen=True, slots=True)
class Overlapping:
    """Pages by an offset, or by number with a page size to choose: each overlaps the one before by a record.

    The overlap is the proof that nothing has moved in between. When it is gone, records before it have gone or come:
    the walk steps back until it finds a record it knows, and goes on from there. A page with a number begins only at
    multiples of its size, so the size is chosen anew for each page: the one that reaches furthest and still holds the
    record before. Where every size has a border there (sizes of 2 and 3, behind six records) the page behind is taken
    without proof, and another pass must agree.

    Servers send as few records as they like, so that a short page is no end. Without their word the end is shown by
    three pages: one that ends with the last record, one behind it that is empty, and the first one again, unmoved.
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
        found = self._found(place, page)
        if not found.rows and place.known:
            return self._empty(place, found, more(page, self.pages.more))
        if found.seen >= 0 or found.begin == 0 or (place.beyond and self._apart(place)):
            return self._taken(place, page, found)
        if place.beyond:
            return Turn((), (), self._more_behind(place, found))
        rows = max(page.rows, 2)
        if rows < found.asked and isinstance(self.pages, PageNumberPages):
            # A smaller page than asked for begins elsewhere: the server caps the size. Ask again with this one.
            return Turn((), (), replace(place, rows=rows))
        return Turn((), (), self._back(place))

    def refused(self, place: Place, refusal: Refused) -> Place:
        place = _at_index(place)
        if self._window(place)[0] == 0:
            raise request_refused(refusal)
        if place.beyond:
            # Some APIs refuse a page beyond the end.
            return self._nothing_behind(place)
        if place.restarts >= _RESTARTS:
            # No list that has become shorter, but an API that gives no more of it: it would be gone around in a circle.
            raise request_refused(refusal)
        return replace(self._back(place), restarts=place.restarts + 1)

    def _found(self, place: AtIndex, page: Page) -> _Found:
        rows = _rows_of(page)
        known = {row: number for number, row in enumerate(place.known)}
        on_page = [at for at, row in enumerate(rows) if row in known]
        # The very last record, or else the last one on the page that is known.
        last = [at for at in on_page if known[rows[at]] == len(known) - 1]
        seen = (last or on_page or [-1])[-1]
        begin, asked = self._window(place)
        return _Found(rows, seen, known[rows[seen]] if seen >= 0 else -1, begin, asked)

    def _empty(self, place: AtIndex, found: _Found, told: bool | None) -> Turn:
        """A page without records, where there were some. Behind the last one that may be the end; else the list has
        become shorter, or the answer is a mistake."""
        if place.beyond:
            return Turn((), (), replace(self._nothing_behind(place), ending=2 if place.ending and not told else 0))
        if found.begin > 0:
            return Turn((), (), self._back(place))
        # Nothing at all any more: it must come twice.
        gone = place.ending == _GONE
        return Turn((), (), place if gone else replace(place, ending=_GONE, idle=self._idle(place)), complete=gone)

    def _more_behind(self, place: AtIndex, found: _Found) -> AtIndex:
        """Records behind the place, none of them known: there is more, or those that are tied have moved there."""
        if all(mark == place.tie and key in place.tied for key, mark in found.rows):
            moved = replace(place, seen=found.begin + len(found.rows))
        else:
            # With those that are read again since they are tied they do not fit a page.
            moved = _torn(place) if place.tied else place
        return replace(moved, beyond=False, ending=0, idle=self._idle(place))

    def _nothing_behind(self, place: AtIndex) -> AtIndex:
        return replace(place, beyond=False, ending=2 if place.ending else 0, idle=self._idle(place))

    def _taken(self, place: AtIndex, page: Page, found: _Found) -> Turn:
        """A page that connects, or that is the first: what lies behind the known record is read."""
        rows = found.rows
        # Without a known record it is the beginning, or lies right behind a border that no page crosses.
        anew, apart = found.seen < 0 and found.begin == 0, found.seen < 0 and found.begin > 0
        lost = found.last < len(place.known) - 1
        tied = () if anew else place.tied
        new = {key for key, mark in rows[found.seen + 1 :] if mark != place.tie or key not in tied}
        told = more(page, self.pages.more)
        if tied and told and not new:
            return Turn((), (), _torn(place))
        kept = () if anew else place.known if apart else place.known[: found.last + 1]
        moved = AtIndex(
            seen=self._behind(place, page, found),
            restarts=place.restarts + (anew and bool(place.known)),
            rows=self._learned(place, page, found.asked, told),
            most=max(place.most, page.rows),
            torn=place.torn or apart,
        )
        moved = self._with_known(moved, kept, rows, found.seen)
        fresh = tuple(record for record in page.records if record.key in new)
        overlap = next((one for one in page.records if found.seen >= 0 and one.key == rows[found.seen][0]), None)
        # What is tied is read again, and others may have come before it: they only come after what is known.
        turn = Turn(page.records, fresh, moved, again=True, overlap=overlap)
        if told is False or (told is None and not rows):
            return replace_turn(turn, complete=True)
        if not rows:
            raise nothing_new()
        if new:
            # An API that ignores what it is asked would lead around in a circle.
            moved = replace(moved, idle=self._idle(place)) if lost and not (anew or apart) else moved
            if told is None and page.rows < min(found.asked, place.most or found.asked):
                # It may be the last: that is cheaper to see from what is behind it than from an overlap.
                moved = replace(moved, beyond=True, ending=1)
            return replace_turn(turn, place=moved)
        if place.beyond and not lost and isinstance(self.pages, PageNumberPages):
            # Some APIs send the last page instead of one beyond the end.
            return Turn((), (), self._nothing_behind(place))
        ended, moved = self._ended(place, page, moved, told, lost=lost)
        return replace_turn(turn, place=moved, complete=ended)

    def _ended(
        self, place: AtIndex, page: Page, moved: AtIndex, told: bool | None, *, lost: bool
    ) -> tuple[bool, AtIndex]:
        """Whether a page without anything new shows the end, and how to go on if it does not."""
        # Moved along by what came before it, time and again, but always the last of a page that is not full.
        drifting = told is None and not lost and moved.seen != place.seen and page.rows < place.most
        if place.ending == 2 and not lost and moved.seen == place.seen:
            return True, moved
        if drifting and place.drifted + 1 >= _DRIFTED:
            return True, moved
        moved = replace(moved, idle=self._idle(place), drifted=place.drifted + drifting)
        # Told that there is more, the next page overlaps again, further on; where none can, it lies beyond.
        beyond = told is None or self._apart(moved)
        return False, replace(moved, beyond=beyond, ending=int(beyond))

    def _idle(self, place: AtIndex) -> int:
        """One more page without anything new. Raises RepeatedPageError: neither an end nor a way on can be shown."""
        if place.idle < _IDLE:
            return place.idle + 1
        raise nothing_new()

    def _with_known(self, place: AtIndex, before: _Rows, rows: _Rows, seen: int) -> AtIndex:
        """The place with what to overlap with behind these rows, and which of them to read again since they are tied.

        Nothing settles the order of records that share a value: the API may give them in another one each time. So
        they count only once a page holds all of them; where they do not fit a page, they are torn.
        """
        first = len(rows)
        while self._ties and first > 0 and rows[first - 1][1] == rows[-1][1]:
            first -= 1
        whole = replace(place, known=spaced((*before, *rows)))
        if first == len(rows):
            return whole
        tied = replace(
            place,
            known=spaced((*before, *rows[:first])),
            tied=tuple(key for key, _ in rows[first:]),
            tie=rows[-1][1],
        )
        fits = first > max(seen, 0) and not self._apart(tied)
        return tied if fits else replace(whole, torn=True)

    @property
    def _ties(self) -> bool:
        """Whether records may share a value of the order without anything that settles their own order."""
        order = self.object.order
        return order is not None and not order.then and order.field not in self.object.key

    @property
    def _only_left(self) -> bool:
        """Whether records only ever move to the left: none comes before others that were read already."""
        order = self.object.order
        return order is not None and not order.falling and order.field == self.object.version

    def _first(self, place: AtIndex) -> int:
        """The index that the next page must hold: that of the last record read, or, since it was not found there, one
        further left (odd) or right (even); or the one behind it, to see the end."""
        if place.beyond:
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
        return (-(-place.seen // most), most) if place.beyond else _page(self._first(place), most)

    def _apart(self, place: AtIndex) -> bool:
        """Whether no numbered page holds both the record to overlap with and the one behind the place."""
        if isinstance(self.pages, OffsetPages) or not place.known:
            return False
        number, rows = _page(max(place.seen - 1 - len(place.tied), 0), self._rows(place))
        return number * rows + rows <= place.seen

    def _behind(self, place: AtIndex, page: Page, found: _Found) -> int:
        """How many records lie before what comes next. A numbered page of another size than asked for does not tell
        where it began, since the server may have capped it: then what lies behind the last record is added."""
        exact = page.rows == found.asked or found.begin == 0 or isinstance(self.pages, OffsetPages)
        if exact or place.back or found.last < len(place.known) - 1:
            return found.begin + page.rows
        return place.seen - len(place.tied) + len(found.rows) - 1 - found.seen

    def _learned(self, place: AtIndex, page: Page, asked: int, told: bool | None) -> int:
        """The page size to count on: a first page smaller than asked for shows the server's cap, or the end."""
        if isinstance(self.pages, OffsetPages) or page.rows >= asked or told is False or page.rows < 2:
            return place.rows
        return page.rows if not place.known else place.rows

    def _back(self, place: AtIndex) -> AtIndex:
        """Look elsewhere, further each time; raises when that has led to the beginning too often."""
        if place.restarts >= _RESTARTS:
            raise AnchorLostError(
                f"{_RESTARTS} times all records that the walk could go on from had disappeared.",
                todo="Check that the API keeps its order; if it has none, leave `order` out.",
                key=place.known[-1][0] if place.known else None,
            )
        further = 2 if self._only_left and place.back else 1
        return replace(place, back=place.back + further, ending=0, drifted=0, beyond=False)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a page holds. ``seen`` is the place on it of the last record that is known (-1: none), ``last`` which of the
    known ones that is. The page was asked for from the index ``begin`` on, with so many rows (``asked``)."""

    rows: _Rows
    seen: int
    last: int
    begin: int
    asked: int


def _at_index(place: Place) -> AtIndex:
    assert isinstance(place, AtIndex)
    return place


def _torn(place: AtIndex) -> AtIndex:
    """The place where the tied records do not fit a page: the server's pages end with them, and there is more behind.
    They are overlapped with one by one."""
    known = spaced((*place.known, *((key, place.tie) for key in place.tied)))
    return replace(place, known=known, tied=(), tie="", torn=True, idle=0, ending=0, beyond=False)


def _page(index: int, most: int) -> tuple[int, int]:
    """The page (from 0) and the size, at most ``most``, that hold the record at ``index`` and reach furthest."""
    sizes = range(max(1, most // 2), most + 1)
    size = max(sizes, key=lambda size: (index // size * size + size, size))
    return index // size, size


def _rows_of(page: Page) -> _Rows:
    """The keys on a page in its order, each with the value at which it stands."""
    marks = {record.key: mark_of(record) for record in page.records}
    return tuple((key, marks.get(key, "")) for key in keys_of(page))


@dataclass(frozen=True, slots=True)
class Counted:
    """Pages by number where no size can be sent: nothing overlaps, so passes go on until two of them agree.
    ``counted``: the API says how many records there are in all, and an end before that is seen."""

    pages: PageNumberPages
    counted: bool = False

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
            return Turn(page.records, page.records, place, complete=True, again=True)
        watch = place.pages
        if page.rows:
            known = "\0".join(keys_of(page)).encode()
            watch = onward(watch, known, "a page that it had given before, under another number")
        number = (self.pages.first if place.number is None else place.number) + 1
        # Pages move while they are read: what is in order within each need not be in order from one to the next.
        moved = AtPage(number, watch, page.rows, max(place.most, page.rows))
        return Turn(page.records, page.records, moved, again=True)

    def refused(self, place: Place, refusal: Refused) -> None:
        """Some APIs refuse a page beyond the end. So do some that give no more than so many records of a longer list:
        behind a full page nothing but a 404 tells the one from the other."""
        assert isinstance(place, AtPage)
        if place.number in (None, self.pages.first):
            raise request_refused(refusal)
        if refusal.status != 404 and place.rows >= place.most and not self.counted:
            raise RequestRefusedError(
                f"the API refuses the page behind a full one (status {refusal.status}): it is the end of the list, "
                f"or of what is given of it{refusal.quoted}",
                todo="Declare `pages.size`, `pages.more` or `total`, by which the end can be seen.",
            )
