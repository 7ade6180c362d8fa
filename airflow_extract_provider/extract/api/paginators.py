"""How the next page is asked for. A paginator is config; where it stands is a `Place`, a value it gets and returns.

To add one: a frozen class here with the four methods of :class:`Paginator`, its config in `source.py`, its place in
`cursor.py`, a line in :func:`paginator`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, assert_never

import msgspec
import xxhash
from msgspec.structs import replace

from airflow_extract_provider.extract.cursor import AfterKey, AfterToken, Lap, Place, Position
from airflow_extract_provider.extract.errors import (
    AnchorLostError,
    PositionMismatchError,
    RepeatedPageError,
    RequestRefusedError,
    TokenExpiredError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.page import FieldPath, Page, Record, Refused
from airflow_extract_provider.extract.source import ApiObject, LastKeyPages, PageSize, TokenPages

__all__ = ["LastKey", "Paginator", "Token", "Turn", "paginator"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a paginator makes of a page: its proven records, which of them are new, the place after it.

    ``complete``: it was the last page. ``again``: it may begin before the place, which was lost.
    """

    records: tuple[Record, ...]
    fresh: tuple[Record, ...]
    place: Place
    complete: bool = False
    again: bool = False


class Paginator(Protocol):
    """What a walk needs to know about paging. Pure: no I/O, no memory of its own."""

    def start(self) -> Place:
        """The place before the first record."""
        ...

    def params(self, place: Place) -> Mapping[str, str]:
        """The query parameters that ask for the page at a place."""
        ...

    def turn(self, place: Place, page: Page) -> Turn:
        """The page that was asked for at a place. Raises a StopAndLook error rather than pass a gap."""
        ...

    def refused(self, place: Place, refusal: Refused) -> Place:
        """Where to ask instead, now that the API has refused the request for this place; else raises."""
        ...


def paginator(object: ApiObject) -> Paginator:
    """The paginator that an object's config declares."""
    match object.pages:
        case LastKeyPages() as pages:
            return LastKey(pages)
        case TokenPages() as pages:
            return Token(pages)
        case other:
            assert_never(other)


def checked_place(position: Position, start: Place) -> Place:
    """The position's place, if it is of the kind the config asks for now.

    Raises PositionMismatchError: the config was changed in the middle of a walk.
    """
    if type(position.place) is not type(start):
        raise PositionMismatchError(
            "the ledger's position was made under another `pages.by`; it cannot be carried over.",
            todo="Put `pages` back, or start over with `reset`.",
            position=position.as_json(),
        )
    return position.place


def _size(size: PageSize | None) -> dict[str, str]:
    return {size.send: str(size.max)} if size else {}


_SPACING = (65, 33, 17, 9, 5, 3, 2, 1)
_RESTARTS = 3
_EMPTY = 1000  # an API that filters after cutting pages may send many
_IDLE = 4  # twice, since what came after the last record may be gone again


@dataclass(frozen=True, slots=True)
class LastKey:
    """Pages after a key, overlapped by a record: the overlap is the proof that nothing between was missed.

    Such a parameter (Stripe's `starting_after`) is no filter by value. When the record it names has been deleted, some
    APIs refuse, and some start again at record one with status 200. So the page is asked for after the last record but
    one, and counts only if a record known to come later is on it; otherwise the walk steps back to older anchors and
    at last to the beginning, which is always proven.
    """

    pages: LastKeyPages

    def start(self) -> AfterKey:
        return AfterKey()

    def params(self, place: Place) -> Mapping[str, str]:
        place = _after_key(place)
        index = _index(place)
        return {**_size(self.pages.size), **({self.pages.send: _known(place)[index]} if index >= 0 else {})}

    def turn(self, place: Place, page: Page) -> Turn:
        place = _after_key(place)
        known, index = _known(place), _index(place)
        keys = tuple(record.key for record in page.records)
        self._check_anchor(known[index] if index >= 0 else None, keys)
        if place.idle % 2 == 1:
            # Asked after the very last one: nothing is the end, and anything has no overlap to prove it.
            return Turn((), (), place, complete=True) if not keys else Turn((), (), replace(place, idle=place.idle + 1))
        later = {*known[index + 1 :]}
        seen = max((at for at, key in enumerate(keys) if key in later), default=-1)
        # Only one record is known: whether the API goes on behind it or starts again at record one, nothing is between.
        alone = len(known) == 1 and bool(keys)
        if index >= 0 and seen < 0 and not alone:
            return Turn((), (), self._back(place))
        restart = index < 0 and bool(place.behind)
        # Asked after its neighbour, the last record should come first: the neighbour is gone, the list began anew.
        early = index >= 0 and place.back == 0 and seen > 0
        fresh = page.records if restart else page.records[seen + 1 :]
        complete, idle = self._ended(place, page, fresh=bool(fresh), early=early)
        before = () if restart or early else known[: index + 1]
        moved = _anchored((*before, *keys), place.restarts + (restart or early), idle)
        # Without the last record on the page, it may hold records that come before it and were read already.
        again = restart or (place.after is not None and place.after not in keys)
        return Turn(page.records, fresh, moved, complete=complete, again=again)

    def _check_anchor(self, anchor: str | None, keys: tuple[str, ...]) -> None:
        if anchor is not None and anchor in keys:
            raise RepeatedPageError(
                f"asked by `{self.pages.send}` for the records after a key, the API sent that very record.",
                todo=f"Most often the API ignores the parameter: check pages.send ({self.pages.send}).",
                key=anchor,
            )

    def _ended(self, place: AfterKey, page: Page, *, fresh: bool, early: bool) -> tuple[bool, int]:
        """Whether a proven page was the last, and the pages in a row without anything new.

        Raises RepeatedPageError: neither an end nor a way on can be shown.
        """
        more = self._more(page)
        if more is False:
            return True, 0
        if fresh:
            return False, 0
        if _index(place) < 0:
            # The beginning of the list, and nothing new in it.
            if more is None:
                return True, 0
        elif place.back > 0 or early:
            self._check_restarts(place)
            return False, 0
        elif more is None and place.idle < _IDLE:
            # Servers send as few as they like: only an empty page after the last record is the end.
            return False, place.idle + 1
        raise RepeatedPageError(
            "the page holds nothing new, but the API does not say that it was the last.",
            todo="If the API sends one record a page, let it send more (pages.size): pages must overlap by a record.",
        )

    def refused(self, place: Place, refusal: Refused) -> Place:
        place = _after_key(place)
        if _index(place) < 0:
            raise _request_refused(refusal)
        return replace(place, idle=place.idle + 1) if place.idle % 2 == 1 else self._back(place)

    def _back(self, place: AfterKey) -> AfterKey:
        """One anchor further back; raises when that has led to the beginning too often."""
        self._check_restarts(place)
        return replace(place, back=place.back + 1)

    def _check_restarts(self, place: AfterKey) -> None:
        if place.restarts >= _RESTARTS:
            raise AnchorLostError(
                f"{_RESTARTS} times all records that the walk could go on from had disappeared.",
                todo=f"Check that the API keeps its order and that `{self.pages.send}` takes the key of a record.",
                key=place.after,
            )

    def _more(self, page: Page) -> bool | None:
        """What the API says about further pages; None when it is not asked to."""
        if self.pages.more is None:
            return None
        raw = _envelope_value(page, self.pages.more)
        if raw not in (b"true", b"false"):
            name = ".".join(self.pages.more)
            raise WrongAnswerError(
                f"`{name}` is {'missing' if raw is None else 'neither true nor false'} in the answer.",
                todo="Correct pages.more, or leave it out: the walk then asks until nothing new comes.",
            )
        return raw == b"true"


def _after_key(place: Place) -> AfterKey:
    assert isinstance(place, AfterKey)
    return place


def _known(place: AfterKey) -> tuple[str, ...]:
    """The keys known to have come so far, in the API's order; the last one is where the walk stands."""
    return (*place.behind, *([place.after] if place.after is not None else []))


def _index(place: AfterKey) -> int:
    """Which of the known keys to ask after: the last but one, or as many further back as failed; -1: the beginning.

    After a page that held nothing new it is the last one, to see the end."""
    known = _known(place)
    if place.idle % 2 == 1:
        return len(known) - 1
    return max(max(len(known) - 2, 0) - place.back, -1) if known else -1


def _anchored(keys: tuple[str, ...], restarts: int, idle: int) -> AfterKey:
    """The place after these keys. Anchors lie ever wider apart: some survive when many records in a row are deleted."""
    keys = tuple(dict.fromkeys(keys))
    behind = tuple(keys[-distance - 1] for distance in _SPACING if distance < len(keys))
    return AfterKey(keys[-1] if keys else None, behind, restarts=restarts, idle=idle)


@dataclass(frozen=True, slots=True)
class Token:
    """Pages by a token in the body of the page before. The token is opaque: it is sent back as it came."""

    pages: TokenPages

    def start(self) -> AfterToken:
        return AfterToken()

    def params(self, place: Place) -> Mapping[str, str]:
        token = _after_token(place).token
        return {**_size(self.pages.size), **({self.pages.send: token} if token is not None else {})}

    def turn(self, place: Place, page: Page) -> Turn:
        place = _after_token(place)
        token = self._next(page)
        if token is None:
            return Turn(page.records, page.records, place, complete=True)
        if token == place.token:
            raise _in_a_circle("the page token that it was just sent")
        tokens = _onward(place.tokens, token, "a page token that it had given before")
        pages = place.pages
        empty = 0 if page.records else place.empty + 1
        if empty > _EMPTY:
            raise RepeatedPageError(
                f"the API gave {_EMPTY:,} pages in a row without a record, and a new token with each.",
                todo="Most often such a token is meant for a later visit: see how this API marks its last page.",
            )
        if page.records:  # pages without records are all alike: an API may filter after cutting pages
            keys = "\0".join(record.key for record in page.records)
            pages = _onward(pages, keys, "a page that it had given before, under another token")
        return Turn(page.records, page.records, AfterToken(token, tokens, pages, empty))

    def refused(self, place: Place, refusal: Refused) -> Place:
        if _after_token(place).token is None:
            raise _request_refused(refusal)
        raise TokenExpiredError(
            f"the API refuses the page token (status {refusal.status}), and nothing else says where the walk stood.",
            todo="Start over with `reset`; pages are then read again, nothing is stored twice.",
        )

    def _next(self, page: Page) -> str | None:
        """The next page's token; None when the answer says, as declared, that this page was the last."""
        raw = _envelope_value(page, self.pages.take)
        found = "absent" if raw is None else {b"null": "null", b'""': "empty"}.get(raw)
        name = ".".join(self.pages.take)
        if found is not None:
            if found in self.pages.last:
                return None
            raise WrongAnswerError(
                f"the page token `{name}` is {found}, which is not declared as the end.",
                todo=f"If the API ends its pages so, declare pages.last: {found}; else correct pages.take.",
            )
        assert raw is not None
        value = msgspec.json.decode(raw) if raw.startswith(b'"') else raw.decode()
        if not raw.startswith(b'"') and not raw.lstrip(b"-").isdigit():
            raise WrongAnswerError(
                f"the page token `{name}` is neither a text nor a number.", todo="Correct pages.take."
            )
        if "\x00" in str(value):
            raise WrongAnswerError(
                f"the page token `{name}` holds a NUL character.", todo="Report it to the API's vendor."
            )
        return str(value)


def _after_token(place: Place) -> AfterToken:
    assert isinstance(place, AfterToken)
    return place


def _onward(lap: Lap, value: str, what: str) -> Lap:
    """The lap one value on; raises when that is the marked one again."""
    digest = xxhash.xxh3_64_hexdigest(value.encode())
    if digest == lap.mark:
        raise _in_a_circle(what)
    if lap.mark is None or lap.steps + 1 >= lap.power:
        return Lap(digest, power=lap.power * 2)
    return replace(lap, steps=lap.steps + 1)


def _in_a_circle(what: str) -> RepeatedPageError:
    return RepeatedPageError(
        f"the API gave {what}; going on would circle for ever.",
        todo="Most often the API ignores the token: check the spelling of pages.send; else report it to its vendor.",
    )


def _envelope_value(page: Page, path: FieldPath) -> bytes | None:
    """The undecoded value at a path of the answer, None when it is absent."""
    value: msgspec.Raw | None = page.envelope.get(path[0])
    for name in path[1:]:
        if value is None or not bytes(value).startswith(b"{"):
            return None
        value = msgspec.json.decode(value, type=dict[str, msgspec.Raw]).get(name)
    return None if value is None else bytes(value).strip()


def _request_refused(refusal: Refused) -> RequestRefusedError:
    return RequestRefusedError(
        f"the API refuses the request (status {refusal.status}).",
        todo="Check the connection's base URL, and `path` and `params` of the object.",
    )
