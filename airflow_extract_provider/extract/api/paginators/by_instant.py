"""Pages by time: taken up again at an instant, or cut into windows between two instants."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators.by_token import told_next
from airflow_extract_provider.extract.api.paginators.turn import (
    Ask,
    Turn,
    ask,
    more,
    onward_page,
    request_refused,
    total,
    with_keys,
)
from airflow_extract_provider.extract.cursor import AtInstant, InWindow, Place
from airflow_extract_provider.extract.errors import (
    MovingListError,
    RepeatedPageError,
    TiedPageError,
)
from airflow_extract_provider.extract.instants import floored, shown_from
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import (
    LinkHeaderPages,
    NextLinkPages,
    PageNumberPages,
    Since,
    SincePages,
    TokenPages,
)
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["FromInstant", "Windowed"]

_ROUNDS = 20
_TRIES = 20
_FAR = datetime(9000, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class FromInstant:
    """Each page is asked for from the last instant that was reached, whose records come again; so it is no matter how
    far pages have moved. What is before that instant is closed.

    Where one instant (in the unit that the filter compares in) fills a page, its further pages are read among its
    records. They may move too: an instant is closed only when two rounds have found the same records in it.
    """

    object: ApiObject
    pages: SincePages | TokenPages | NextLinkPages | LinkHeaderPages | PageNumberPages

    @property
    def sure(self) -> bool:
        return True

    def start(self, since: datetime | None = None, largest: int = 0) -> AtInstant:
        unit = _since(self.object).precision
        return AtInstant(None if since is None else floored(since, unit), largest=largest)

    def ask(self, place: Place) -> Ask:
        place = _at_instant(place)
        if isinstance(self.pages, PageNumberPages):
            number = self.pages.first if place.inside is None else int(place.inside)
            asked = ask("page", number, self.pages.send, self.pages.size)
        elif isinstance(self.pages, TokenPages):
            asked = ask("token", place.inside, self.pages.send, self.pages.size)
        else:
            asked = ask("token", None, None, self.pages.size)
            if place.inside is not None:
                return Ask(asked.values, link=place.inside)
        return Ask(asked.values, asked.send, since=place.anchor)

    def turn(self, place: Place, page: Page) -> Turn:
        place = _at_instant(place)
        anchor, unit = place.anchor, _since(self.object).precision
        reached = [floored(record.since, unit) for record in page.records if record.since is not None]
        last = max(reached, default=None)
        if last is not None and anchor is not None and last <= anchor and place.inside is None:
            self._check_asked(anchor, min(reached))
        following = self._following(place, page, reached)
        if last is not None and (anchor is None or last > anchor):
            spread = max(place.largest, page.rows) if min(reached) < last else place.largest
            met = self._met(page, last)
            beyond = AtInstant(last, before=with_keys(0, met), largest=spread, met=met)
            if place.inside is not None:
                # If it does not connect to the pages before it, these may have moved, and something may lie between: it
                # must have begun with the same record in the round before.
                apart = anchor is not None and min(reached) > anchor
                beyond = self._agreed(place, page, beyond, border=page.records[0].key if apart else "")
            done = following is None and place.inside is None
            return self._told(place, page, beyond, complete=done)
        if following is not None:
            return self._told(place, page, self._inside(place, page, following))
        if place.inside is None and not page.rows and (place.before or more(page, getattr(self.pages, "more", None))):
            # Records of this instant have been seen, and are gone, or there are said to be more: or the answer is a
            # mistake. It must come twice.
            return self._told(place, page, self._again(place, 0))
        if place.inside is None:
            return self._told(place, page, place, complete=True)
        end = self._agreed(place, page, place)
        return self._told(place, page, end, complete=end is place)

    def _check_asked(self, anchor: datetime, oldest: datetime) -> None:
        """Raises RepeatedPageError: a page without anything new holds what was not asked for."""
        # Records may show less of an instant than the filter compares.
        if oldest < shown_from(self._asked(anchor), self.object.timestamps):
            raise RepeatedPageError(
                "asked for the records from an instant on, the API sent a page of older ones only.",
                todo="Most often the API ignores the filter: check since.send and since.format.",
            )

    def _met(self, page: Page, last: datetime) -> tuple[str, ...]:
        """The keys that a page holds of the instant that it reaches: some of them at least."""
        unit = _since(self.object).precision
        return tuple(one.key for one in page.records if one.since and floored(one.since, unit) == last)

    def _asked(self, anchor: datetime) -> datetime:
        """The earliest that the API may answer with: a filter with `>` is asked from one unit earlier."""
        since = _since(self.object)
        return anchor if since.inclusive else anchor - since.precision

    def refused(self, place: Place, refusal: Refused) -> Place | None:
        place = _at_instant(place)
        if place.inside is None:
            raise request_refused(refusal)
        if isinstance(self.pages, PageNumberPages):
            return None  # some APIs refuse a page beyond the end
        # A page among the records of one instant is gone: begin this instant again.
        return self._again(place, place.before)

    def _told(self, place: AtInstant, page: Page, moved: AtInstant, *, complete: bool = False) -> Turn:
        """The records are all given; new are those beyond the anchor, and of its own, in the first round over them,
        those that were not on the page that reached it."""
        anchor, unit = place.anchor, _since(self.object).precision
        fresh = page.records
        if anchor is not None:
            met, first = {*place.met}, not place.rounds
            fresh = tuple(
                one
                for one in page.records
                if one.since is None or floored(one.since, unit) > anchor or (first and one.key not in met)
            )
        return Turn(page.records, fresh, moved, complete=complete, again=True)

    def _following(self, place: AtInstant, page: Page, reached: list[datetime]) -> str | None:
        """How to go on among the same records; None: the API says, or it is shown, that this was the last page.

        Raises TiedPageError: there may be more records of this instant, and nothing to ask for them by.
        """
        pages = self.pages
        if isinstance(pages, SincePages):
            return self._only_since(place, page, reached)
        if not isinstance(pages, PageNumberPages):
            return told_next(pages, page)
        told = more(page, pages.more)
        if told is False or (told is None and not page.rows):
            return None
        return str((pages.first if place.inside is None else int(place.inside)) + 1)

    def _only_since(self, place: AtInstant, page: Page, reached: list[datetime]) -> str | None:
        beyond = bool(reached) and (place.anchor is None or max(reached) > place.anchor)
        told = more(page, self.pages.more) if isinstance(self.pages, SincePages) else None
        if told is False or not page.rows:
            return None
        if beyond:
            return "beyond"
        count = total(page, self.object.total)
        # A larger page was seen: this one is the last. What the config says of the size counts only as long as none
        # was, servers cap it; or if less is asked for now.
        size = self.pages.size.max if self.pages.size else 2
        full = min(place.largest or size, size) if self.pages.size else place.largest or size
        if told is None and (page.rows < full or (count is not None and count <= page.rows)):
            return None
        raise _tied(place.anchor, count, page.rows, self.object)

    def _inside(self, place: AtInstant, page: Page, following: str) -> AtInstant:
        """Behind a page among the records of the instant. One that leads to itself, or has come before in this round,
        may have moved along: the instant is begun again."""
        try:
            if following == place.inside:
                raise RepeatedPageError(
                    "the answer leads to its own page again; going on would circle for ever.",
                    todo="Most often the API ignores what asks for the page: check its spelling; else report it.",
                )
            watch = place.pages
            if page.records:
                watch = onward_page(watch, page, "a page that it had given before, under another number or token")
        except RepeatedPageError:
            if place.rounds >= _ROUNDS:
                raise
            return self._again(place, None)
        return replace(place, inside=following, running=self._running(place, page), pages=watch)

    def _running(self, place: AtInstant, page: Page) -> int:
        """The digest of the keys of this round, one page on; not of those beyond the anchor's instant."""
        anchor, unit = place.anchor, _since(self.object).precision
        own = [
            one.key
            for one in page.records
            if one.since is None or (anchor is not None and floored(one.since, unit) <= anchor)
        ]
        return with_keys(place.running, own)

    def _agreed(self, place: AtInstant, page: Page, moved: AtInstant, border: str = "") -> AtInstant:
        """``moved`` if this round found what the last one did, with the same record behind it; else the instant begins
        again."""
        found = self._running(place, page)
        # The page that reached the instant was no round over it.
        if place.rounds and found == place.before and place.border == border:
            return moved
        return self._again(place, found, border)

    def _again(self, place: AtInstant, before: int | None, border: str = "") -> AtInstant:
        if place.rounds >= _ROUNDS:
            raise MovingListError(
                f"in {_ROUNDS} rounds over the records of {_text(place.anchor)} no two found the same.",
                todo="Run again when less is written at the API; or declare a page size, by which pages can overlap.",
            )
        return AtInstant(
            place.anchor, before=before, rounds=place.rounds + 1, largest=place.largest, met=place.met, border=border
        )


def _at_instant(place: Place) -> AtInstant:
    assert isinstance(place, AtInstant)
    return place


def _since(object: ApiObject) -> Since:
    assert object.since is not None
    return object.since


def _text(instant: datetime | None) -> str:
    return "the beginning" if instant is None else instant.isoformat().replace("+00:00", "Z")


def _tied(anchor: datetime | None, count: int | None, rows: int, object: ApiObject) -> TiedPageError:
    field = ".".join(object.since_field or ())
    told = f"{rows:,} records or more" if count is None else f"more than {rows:,} records (of {count:,} from there on)"
    return TiedPageError(
        f"{told} share {field} {_text(anchor)}, a page holds {rows:,}, and the API offers no token, page or id to read "
        "past the first of them.",
        todo="Do one of: declare `total` or pages.more, if the API tells them · raise pages.size if it allows that · "
        "declare another kind of pages (offset, page, token).",
    )


@dataclass(frozen=True, slots=True)
class Windowed:
    """A search that gives so many results and no more: windows of time are halved until each fits, and read one after
    the other. A window counts when as many records were read as it holds, by the API's own count, which did not move
    meanwhile; else it is read again. Its end lies in the past, so that it comes to rest."""

    object: ApiObject
    pages: TokenPages

    @property
    def sure(self) -> bool:
        return True

    def start(self, since: datetime | None = None, largest: int = 0) -> InWindow:
        return InWindow(since)

    def ask(self, place: Place) -> Ask:
        place = _in_window(place)
        asked = ask("token", place.token, self.pages.send, self.pages.size)
        until = _FAR if place.until is None else place.until
        return Ask(asked.values, asked.send, since=self._begin(place), until=until)

    def turn(self, place: Place, page: Page) -> Turn:
        place = _in_window(place)
        count = total(page, self.object.total)
        assert count is not None and self.pages.cap is not None  # noqa: PT018 - as the config was checked
        if place.until is None:
            # The first look only tells the API's clock: a window that reaches into the future never comes to rest.
            return Turn(page.records, (), self._first(place, page.began_at), again=True)
        if place.token is None and count > self.pages.cap:
            return Turn(page.records, (), self._halved(place, count), again=True)
        if place.total is not None and count != place.total:
            return Turn(page.records, (), self._try_again(place), again=True)
        rows, token = place.rows + page.rows, told_next(self.pages, page)
        if token is not None and page.rows:
            return Turn(page.records, page.records, replace(place, token=token, rows=rows, total=count), again=True)
        if rows != count:
            return Turn(page.records, page.records, self._try_again(place), again=True)
        if not place.later:
            return Turn(page.records, page.records, place, complete=True, again=True)
        onward = InWindow(place.until, place.later[0], place.later[1:])
        return Turn(page.records, page.records, onward, again=True)

    def refused(self, place: Place, refusal: Refused) -> Place:
        place = _in_window(place)
        if place.token is None:
            raise request_refused(refusal)
        return self._try_again(place)

    def _first(self, place: InWindow, now: datetime) -> InWindow:
        """The first window, up to where nothing new is shown any more, and behind it the one that may still change.

        In that one, a record that leaves and one that comes late could make up for each other in the API's count; the
        next lap reads it again.
        """
        unit, begin = _since(self.object).precision, self._begin(place)
        # A window of time that is read by itself has an end of its own.
        end = place.later[0] if place.later else max(floored(now, unit), begin) + unit
        rest = floored(now - self.object.late, unit)
        split = begin < rest < end
        return replace(place, until=rest if split else end, later=(end,) if split else ())

    def _begin(self, place: InWindow) -> datetime:
        since = _since(self.object)
        return floored(since.start if place.start is None else place.start, since.precision)

    def _halved(self, place: InWindow, count: int) -> InWindow:
        assert place.until is not None
        begin, unit = self._begin(place), _since(self.object).precision
        middle = floored(begin + (place.until - begin) / 2, unit)
        if middle <= begin:
            if place.until - begin <= unit:
                raise _tied(begin, count, self.pages.cap or 0, self.object)
            middle = begin + unit
        return InWindow(begin, middle, (place.until, *place.later))

    def _try_again(self, place: InWindow) -> InWindow:
        if place.tries >= _TRIES:
            raise MovingListError(
                f"the window from {_text(place.start)} to {_text(place.until)} was read {_TRIES} times, and never held "
                "as many records as the API says.",
                todo="Check `total`, and that the API's `since` and `until` filter as declared; or run again later.",
            )
        return InWindow(place.start, place.until, place.later, tries=place.tries + 1)


def _in_window(place: Place) -> InWindow:
    assert isinstance(place, InWindow)
    return place
