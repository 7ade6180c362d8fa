"""Pages by the record before: after its key, by a filter on the key, or by version and key together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import msgspec
from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators.turn import (
    Ask,
    Turn,
    ask,
    behind,
    keys_of,
    mark_of,
    more,
    nothing_new,
    onward,
    request_refused,
    spaced,
)
from airflow_extract_provider.extract.cursor import AfterKey, AfterValue, Lap, Place
from airflow_extract_provider.extract.errors import AnchorLostError, BadRecordError, RepeatedPageError
from airflow_extract_provider.extract.instants import written
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import KeyPages, LastKeyPages, PositionPages
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["AfterRecord", "LastKey"]


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_RESTARTS = 3
_IDLE = 12
_GONE = 3


@dataclass(frozen=True, slots=True)
class LastKey:
    """Pages after a key, overlapped by a record: the overlap is the proof that nothing between was missed.

    Such a parameter (Stripe's `starting_after`) is no filter by value. When the record it names has been deleted, some
    APIs refuse, and some start again at record one with status 200. So the page is asked for after the last record but
    one, and counts only if a record known to come later is on it; otherwise the walk steps back to older anchors and
    at last to the beginning, which is always proven.
    """

    pages: LastKeyPages

    @property
    def sure(self) -> bool:
        return True

    def start(self, since: datetime | None = None, largest: int = 0) -> AfterKey:
        return AfterKey()

    def ask(self, place: Place) -> Ask:
        place = _after_key(place)
        index = _index(place)
        return _after(_known(place)[index] if index >= 0 else None, None, self.pages)

    def turn(self, place: Place, page: Page) -> Turn:
        place = _after_key(place)
        known, index = _known(place), _index(place)
        keys = keys_of(page)
        self._check_anchor(known[index] if index >= 0 else None, keys)
        if known and index < 0 and not keys and place.ending != _GONE:
            # Nothing at all any more: it must come twice.
            return Turn((), (), replace(place, ending=_GONE, idle=_idle(place)))
        if place.beyond:
            # Asked after the very last one: anything that comes has no overlap to prove it, it only shows that there is
            # more. Nothing is the end if that one is still there.
            return Turn((), (), replace(place, beyond=False, ending=0 if keys else 2, idle=_idle(place)))
        marks = {record.key: mark_of(record) for record in page.records}
        later = {key for key, mark in _marked(place)[index + 1 :] if marks.get(key, mark) == mark}
        seen = max((at for at, key in enumerate(keys) if key in later), default=-1)
        # Only one record is known: whether the API goes on behind it or starts again at record one, nothing is between.
        alone = len(known) == 1 and bool(keys)
        if index >= 0 and seen < 0 and not alone:
            return Turn((), (), self._back(place))
        restart = index < 0 and bool(place.behind)
        # Asked after its neighbour, the last record should come first: the neighbour is gone, the list began anew.
        early = index >= 0 and place.back == 0 and seen > 0
        fresh = page.records if restart else behind(page, keys, seen)
        before = () if restart or early else _marked(place)[: index + 1]
        told = ((key, marks.get(key, "")) for key in keys)
        moved = _anchored((*before, *told), place.restarts + (restart or early))
        complete, moved = self._ended(place, page, moved, fresh=bool(fresh), early=early)
        # Without the last record on the page, it may hold records that come before it and were read already.
        again = restart or (place.after is not None and place.after not in keys)
        return Turn(page.records, fresh, moved, complete=complete, again=again)

    def _check_anchor(self, anchor: str | None, keys: tuple[str, ...]) -> None:
        if anchor is not None and anchor in keys:
            raise RepeatedPageError(
                f"asked by `{_sent(self.pages)}` for the records after a key, the API sent that very record.",
                todo=f"Most often the API ignores the parameter: check pages.send ({_sent(self.pages)}).",
                key=anchor,
            )

    def _ended(
        self, place: AfterKey, page: Page, moved: AfterKey, *, fresh: bool, early: bool
    ) -> tuple[bool, AfterKey]:
        """Whether a proven page was the last, and how to go on if it was not.

        Servers send as few as they like: without their word only three pages tell the end, one that ends with the last
        record, an empty one behind it, and the first one again.
        """
        told = more(page, self.pages.more)
        if told is False or (not fresh and told is None and _index(place) < 0):
            return True, moved
        if fresh:
            if told is None and page.rows < (self.pages.size.max if self.pages.size else 0):
                # It may be the last: that is cheaper to see from what is behind it than from an overlap.
                moved = replace(moved, beyond=True, ending=1)
            return False, moved
        if _index(place) >= 0 and (place.back > 0 or early):
            self._check_restarts(place)
            return False, moved
        if told is None and place.ending == 2:
            return True, moved
        if told and not page.rows:
            raise nothing_new()
        return False, replace(moved, beyond=told is None, ending=int(told is None), idle=_idle(place))

    def refused(self, place: Place, refusal: Refused) -> Place:
        place = _after_key(place)
        if _index(place) < 0:
            raise request_refused(refusal)
        # Behind the last record that is no end: it is gone.
        return replace(place, beyond=False, ending=0, idle=_idle(place)) if place.beyond else self._back(place)

    def _back(self, place: AfterKey) -> AfterKey:
        """One anchor further back; raises when that has led to the beginning too often."""
        self._check_restarts(place)
        return replace(place, back=place.back + 1, ending=0)

    def _check_restarts(self, place: AfterKey) -> None:
        if place.restarts >= _RESTARTS:
            raise AnchorLostError(
                f"{_RESTARTS} times all records that the walk could go on from had disappeared.",
                todo=f"Check that the API keeps its order and that `{_sent(self.pages)}` takes the key of a record.",
                key=place.after,
            )


def _idle(place: AfterKey) -> int:
    """One more page without anything new. Raises RepeatedPageError: neither an end nor a way on can be shown."""
    if place.idle < _IDLE:
        return place.idle + 1
    raise nothing_new()


def _after_key(place: Place) -> AfterKey:
    assert isinstance(place, AfterKey)
    return place


def _known(place: AfterKey) -> tuple[str, ...]:
    """The keys known to have come so far, in the API's order; the last one is where the walk stands."""
    return (*place.behind, *([place.after] if place.after is not None else []))


def _marked(place: AfterKey) -> tuple[tuple[str, str], ...]:
    """The known keys, each with the value at which it stood; a position of an earlier version does not tell."""
    known = _known(place)
    return tuple(zip(known, place.marks if len(place.marks) == len(known) else ("",) * len(known), strict=True))


def _index(place: AfterKey) -> int:
    """Which of the known keys to ask after: the last but one, or as many further back as failed; -1: the beginning.
    Beyond what was read it is the last one."""
    known = _known(place)
    if place.beyond:
        return len(known) - 1
    if place.ending and len(known) == 1:
        return -1
    return max(max(len(known) - 2, 0) - place.back, -1) if known else -1


def _anchored(rows: tuple[tuple[str, str], ...], restarts: int) -> AfterKey:
    """The place after these keys."""
    kept = spaced(rows)
    keys, marks = tuple(key for key, _ in kept), tuple(mark for _, mark in kept)
    return AfterKey(keys[-1] if keys else None, keys[:-1], marks, restarts=restarts)


@dataclass(frozen=True, slots=True)
class AfterRecord:
    """Pages by value: a filter on the key (`id >`), or on version and key together (`version > v or version = v and
    key > k`), so that ties of any size are no matter, nor is whether the last record still exists."""

    object: ApiObject
    pages: KeyPages | PositionPages

    @property
    def sure(self) -> bool:
        return True

    def start(self, since: datetime | None = None, largest: int = 0) -> AfterValue:
        if not isinstance(self.pages, PositionPages):
            return AfterValue()
        config = self.object.since
        # One unit before: without a key to compare with, `version > v` alone leaves the records of that instant out.
        unit = config.precision if config else timedelta(seconds=1)
        first = (config.start if config else _EPOCH) if since is None else since - unit
        stamps = self.object.timestamps
        return AfterValue(version=written(first, stamps.format, stamps.zone, timedelta(microseconds=1)))

    def ask(self, place: Place) -> Ask:
        assert isinstance(place, AfterValue)
        return _after(place.after, place.version, self.pages)

    def turn(self, place: Place, page: Page) -> Turn:
        assert isinstance(place, AfterValue)
        told = more(page, self.pages.more)
        if not page.rows:
            if told:
                raise RepeatedPageError(
                    "the page holds nothing, but the API says that there is more.",
                    todo="Check that `pages.more` tells of this list, and how the API marks its last page.",
                )
            # Some APIs answer with nothing by mistake: behind other pages the end counts when it comes twice. That
            # nothing has come since the last such answer shows in what watches for pages, which begins anew with it.
            if told is None and place.pages != Lap():
                return Turn((), (), replace(place, pages=Lap()))
            return Turn((), (), place, complete=True)
        if place.after is not None and keys_of(page)[0] == place.after and self._is_at(place, page):
            raise RepeatedPageError(
                "asked for the records after one, the API sent that very record.",
                todo="Most often the API ignores what asks for the page: check its spelling, and that it asks for `>`.",
                key=place.after,
            )
        key, version = self._stands(page, -1)
        pages = onward(place.pages, f"{version}\0{key}".encode(), "a page that ends as one before")
        moved = AfterValue(key, version, pages)
        return Turn(page.records, page.records, moved, complete=told is False)

    def refused(self, place: Place, refusal: Refused) -> Place:
        raise request_refused(refusal)

    def _is_at(self, place: AfterValue, page: Page) -> bool:
        """Whether the first record is the very one: with another version it has moved."""
        return not isinstance(self.pages, PositionPages) or self._stands(page, 0) == (place.after, place.version)

    def _stands(self, page: Page, at: int) -> tuple[str, str | None]:
        """The key and the version of the record that the next page is asked after, or of another one.

        The version stays as the API wrote it: written anew it could lose digits, and the record would come again.
        """
        if not isinstance(self.pages, PositionPages):
            return keys_of(page)[at], None
        if not page.records:
            raise BadRecordError(
                "no record of the page can be read, and the next page is asked for by version and key.",
                todo="Correct the object's config, or ask the API's vendor.",
                record=1,
            )
        record = page.records[at]
        value = msgspec.json.decode(record.raw)
        for name in self.object.version or ():
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, str | int):
            raise BadRecordError(
                "the version is missing or no text, so nothing says where the next page begins.",
                todo="Leave such records out by the request's filter; the API cannot be walked by position with them.",
                key=record.key,
            )
        return record.key, str(value)


def _after(key: str | None, version: str | None, pages: LastKeyPages | KeyPages | PositionPages) -> Ask:
    """An Ask for what comes after a key. In templates it is `after.key`, and `after.version` as the API wrote it."""
    asked = ask("after", key, getattr(pages, "send", None), pages.size)
    return Ask({**asked.values, "after": SimpleNamespace(key=key, version=version)}, asked.send)


def _sent(pages: LastKeyPages) -> str:
    return pages.send or "after.key"
