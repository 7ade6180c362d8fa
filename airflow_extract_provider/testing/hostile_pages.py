"""The paging of a ``HostileApi``: what each kind reads from a request and what it answers."""

from __future__ import annotations

import base64
import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from airflow_extract_provider.testing.hostile_faults import Answer, Kind
from airflow_extract_provider.testing.hostile_listing import Listing, Rank
from airflow_extract_provider.testing.hostile_store import Table, Version

__all__ = ["Asked", "Lister", "refusal"]


@dataclass(frozen=True)
class Asked:
    """A request as it came in: ``number`` counts from 1 over the whole server, ``at`` is the server's time, in UTC.

    ``body`` is the JSON value sent, None if there was none, a str if it was no JSON. ``arrived`` is the real instant
    of its arrival, in seconds of ``time.monotonic``, which all processes of a machine share on Linux.
    """

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    number: int = 0
    at: datetime | None = None
    arrived: float = 0.0


class _RefusedError(Exception):
    """The request gets this status instead of a page."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class _Wish:
    """What a request asks for: its parameters as text, the records that match in order, where it starts, how many."""

    params: Mapping[str, str]
    token: Mapping[str, Any]
    entries: Sequence[tuple[Rank, Version]]
    start: int
    size: int
    number: int


@dataclass(frozen=True)
class _Page:
    rows: list[Version]
    more: bool
    again: bool = False  # the next position is this page's own
    mark: int = 0  # makes the token of an empty page another one


def refusal(status: int, message: str) -> Answer:
    """An error as such APIs write it."""
    return Answer(status, json.dumps({"error": {"message": message}}).encode())


class Lister:
    """Answers the requests for one listing. Not safe for threads: the server's lock is around it."""

    def __init__(self, table: Table, path: str, listing: Listing, url: str) -> None:
        self.listing = listing
        self._table = table
        self._path = path
        self._url = url
        self._generation = 0
        self._expired: set[tuple[str | None, ...]] = set()
        self._last: Answer | None = None
        self._sorted: tuple[object, Sequence[tuple[Rank, Version]]] = (None, ())
        # All in order, after so many writes: a filter takes its records out of these, which need no sorting then.
        self._whole: tuple[int | None, Sequence[tuple[Rank, Version]]] = (None, ())
        self._spelled: dict[int, bytes] = {}

    def expire_tokens(self) -> None:
        """Refuse all tokens given so far."""
        self._generation += 1

    def one(self, key: str) -> Answer:
        """The answer for one record."""
        found = [version for version in self._records().values() if str(version.id) == key]
        if found:
            return Answer(200, self._record(found[0]))
        gone = any(str(version.id) == key for version in self._table.history if version.deleted)
        return refusal(self.listing.deleted_status if gone else 404, f"no record {key}")

    def page(self, asked: Asked, fault: Kind | None) -> Answer:
        """The answer for a page, with the faults that are inside of one."""
        if fault == "repeat_page" and self._last is not None:
            return self._last
        try:
            wish = self._wish(asked, fault)
            page = self._page(wish, fault)
        except _RefusedError as refused:
            return refusal(refused.status, str(refused))
        except ValueError as error:
            return refusal(400, str(error))
        shown = page.rows
        if fault == "misorder" and len(shown) > 1:
            shown = [shown[-1], *shown[1:-1], shown[0]]
        self._last = self._written(wish, page, [self._record(version) for version in shown])
        return self._last

    def _record(self, version: Version) -> bytes:
        """A version's JSON, made once: that is most of the work of a page. The history keeps each version, so that none
        is another one's successor in memory."""
        found = self._spelled.get(id(version))
        if found is None:
            found = self._spelled[id(version)] = _json(self.listing.record(version))
        return found

    # -- reading the request ------------------------------------------------------------------------------------

    def _wish(self, asked: Asked, fault: Kind | None) -> _Wish:
        if asked.method != ("POST" if self.listing.paging == "search" else "GET"):
            raise _RefusedError(405, f"{asked.method} is not allowed here")
        params = _body_params(asked.body) if self.listing.paging == "search" else asked.params
        position = self._position(params)
        if fault == "expire" and any(position):
            self._expired.add(position)
        if position in self._expired:
            raise _RefusedError(410, "this position has expired")
        token = self._token(params)
        filters = token if "s" in token else {"s": params.get("since"), "u": params.get("until")}
        entries = self._matches(filters["s"], filters["u"], asked.number)
        size = len(entries) or 1
        if self.listing.paging != "single":
            size = min(int(params.get(self._size_param, self.listing.page_default)), self.listing.page_max)
        if size < 1:
            raise _RefusedError(400, f"{self._size_param} must be 1 or more")
        wish = _Wish(params, token, entries, 0, size, asked.number)
        return replace(wish, start=self._start(wish))

    @property
    def _pages_counted(self) -> bool:
        paging = self.listing.paging
        return paging in ("page", "link_header") or (paging == "next_link" and not self.listing.holds_place)

    @property
    def _rows_counted(self) -> bool:
        paging = self.listing.paging
        return paging in ("offset", "search") or (self.listing.has_token and not self.listing.holds_place)

    @property
    def _size_param(self) -> str:
        usual = "per_page" if self._pages_counted else "limit"
        return self.listing.size_param or ("page_size" if self.listing.paging == "last_key" else usual)

    def _position(self, params: Mapping[str, str]) -> tuple[str | None, ...]:
        names = {
            "offset": ("offset",),
            "last_key": ("starting_after",),
            "key_filter": ("id_gt",),
            "keyset": ("after_updated", "after_id"),
            "search": ("after",),
        }
        usual = ("page",) if self._pages_counted else ("cursor",)
        return tuple(params.get(name) for name in names.get(self.listing.paging, usual))

    def _token(self, params: Mapping[str, str]) -> Mapping[str, Any]:
        """What the token sent holds; nothing if none was sent."""
        if not self.listing.has_token or not params.get("cursor"):
            return {}
        try:
            token = json.loads(base64.urlsafe_b64decode(params["cursor"]))
            generation, _, path = token["g"], token["p"], token["l"]
            issued = datetime.fromisoformat(token["t"]) if "t" in token else None
        except (ValueError, KeyError, TypeError):
            raise _RefusedError(400, "this is no cursor") from None
        if path != self._path:
            raise _RefusedError(400, "this cursor is another listing's")
        life, now = self.listing.token_life, self._table.clock.now
        too_old = life is not None and issued is not None and now - issued > life
        if generation < self._generation or too_old:
            raise _RefusedError(410, "this cursor has expired")
        return dict(token)

    def _records(self) -> Mapping[Any, Version]:
        if not self.listing.lag:
            return self._table.visible
        return self._table.as_of(self._table.clock.now - self.listing.lag)

    def _matches(self, since: str | None, until: str | None, number: int) -> Sequence[tuple[Rank, Version]]:
        """The records the filter lets through, each with its rank, in order."""
        listing = self.listing
        settled = listing.ties == "stable" and not listing.lag
        query = (len(self._table.history), since, until)
        if settled and self._sorted[0] == query:
            return self._sorted[1]
        least, bound = (
            None if text is None or listing.filter is None else listing.read(text) for text in (since, until)
        )
        if listing.paging == "since":
            bound = None
        if settled and self._whole[0] == len(self._table.history):
            found = [entry for entry in self._whole[1] if listing.passes(entry[1], least, bound)]
        else:
            found = [
                (listing.rank(listing.place(version, self._table.seed, number)), version)
                for version in self._records().values()
                if listing.passes(version, least, bound)
            ]
            found.sort(key=lambda entry: entry[0])
        self._sorted = (query if settled else None, found)
        if settled and least is None and bound is None:
            self._whole = (len(self._table.history), found)
        return found

    def _start(self, wish: _Wish) -> int:
        """Where in the matches the page begins."""
        start = self._counted_start(wish) if self._pages_counted or self._rows_counted else self._place_start(wish)
        if start < 0:
            raise _RefusedError(400, "there is nothing before the beginning")
        if self._pages_counted or self._rows_counted:
            cap = self.listing.cap
            if cap is not None and start >= cap:
                raise _RefusedError(400, f"only the first {cap} results can be had")
            if start >= len(wish.entries) and start > 0:
                start = self._past_end(wish, start)
        return start

    def _past_end(self, wish: _Wish, start: int) -> int:
        if self.listing.past_end == "refuse":
            raise _RefusedError(404, "there is no such page")
        if self.listing.past_end == "last" and self._pages_counted:
            return max(len(wish.entries) - 1, 0) // wish.size * wish.size
        return start

    def _counted_start(self, wish: _Wish) -> int:
        if self._pages_counted:
            return (int(wish.params.get("page", "1")) - 1) * wish.size
        if self.listing.has_token:
            return int(wish.token.get("p") or 0)
        return int(wish.params.get("offset" if self.listing.paging == "offset" else "after", "0"))

    def _place_start(self, wish: _Wish) -> int:
        position = self._position(wish.params)
        if not any(position) or self.listing.paging in ("since", "single"):
            return 0
        if self.listing.paging == "last_key":
            return self._behind_key(wish, str(position[0]))
        if self.listing.has_token:
            place = wish.token["p"]
        elif self.listing.paging == "keyset":
            place = self.listing.after(position[0] or "", self._key(wish, position[1] or ""))
        else:
            place = [self._key(wish, position[0] or "")]
        if place is None:
            return 0
        return bisect.bisect_right(wish.entries, self.listing.rank(place), key=lambda entry: entry[0])

    def _behind_key(self, wish: _Wish, key: str) -> int:
        for at, (_, version) in enumerate(wish.entries, start=1):
            if str(version.id) == key:
                return at
        if self.listing.unknown_key == "refuse":
            raise _RefusedError(400, f"no record {key}")
        return 0

    def _key(self, wish: _Wish, text: str) -> int | str:
        """An id as the table writes it."""
        return int(text) if wish.entries and isinstance(wish.entries[0][1].id, int) else text

    # -- writing the answer -------------------------------------------------------------------------------------

    def _page(self, wish: _Wish, fault: Kind | None) -> _Page:
        end = wish.start + wish.size
        if self.listing.cap is not None and (self._pages_counted or self._rows_counted):
            end = min(end, self.listing.cap)
        rows = [version for _, version in wish.entries[wish.start : end]]
        more = wish.start + len(rows) < len(wish.entries)
        if not self.listing.looks_ahead:
            more = len(rows) == wish.size
        if fault == "short_page" and len(rows) > 1:
            return _Page(rows[: len(rows) // 2], more=True)
        if fault == "empty_page" and rows:
            return _Page([], more=True, mark=wish.number)
        return _Page(rows, more, again=fault == "repeat_token" and more)

    def _written(self, wish: _Wish, page: _Page, records: list[bytes]) -> Answer:
        listing = self.listing
        headers: dict[str, str] = {}
        if listing.paging == "header_token" and page.more:
            headers["Next-Page"] = self._next_token(wish, page)
        if listing.paging == "link_header":
            headers["Link"] = self._links(wish, page)
        if listing.bare:
            if listing.total:
                headers["X-Total-Count"] = str(len(wish.entries))
            return Answer(200, _listed(records), headers)
        if listing.paging == "search":
            return Answer(200, _with_records(self._search_body(wish, page), records), headers)
        body: dict[str, Any] = {"data": []}
        if listing.total:
            body["total"] = len(wish.entries)
        if listing.more:
            body["has_more"] = page.more
        if listing.paging == "token":
            body["next"] = self._next_token(wish, page) if page.more else None
        if listing.paging == "next_link":
            body["next"] = self._next_link(wish, page) if page.more else None
        return Answer(200, _with_records(body, records), headers)

    def _search_body(self, wish: _Wish, page: _Page) -> dict[str, Any]:
        body: dict[str, Any] = {"results": [], "total": len(wish.entries)}
        if page.more:
            after = wish.start if page.again else wish.start + len(page.rows)
            body["paging"] = {"next": {"after": str(after)}}
        return body

    def _next_token(self, wish: _Wish, page: _Page) -> str:
        if page.again and wish.token:
            return wish.params["cursor"]
        place: Any = wish.token.get("p")
        if not page.again and not self.listing.holds_place:
            place = wish.start + len(page.rows)
        elif not page.again and page.rows:
            place = self.listing.place(page.rows[-1], self._table.seed, wish.number)
        token: dict[str, Any] = {"p": place, "l": self._path, "g": self._generation}
        if self.listing.token_life is not None:
            token["t"] = self._table.clock.now.isoformat()
        if self.listing.token_keeps_filter:
            token["s"] = wish.token.get("s", wish.params.get("since"))
            token["u"] = wish.token.get("u", wish.params.get("until"))
        if page.mark:
            token["n"] = page.mark
        return base64.urlsafe_b64encode(_json(token)).decode()

    def _next_link(self, wish: _Wish, page: _Page) -> str:
        if self._pages_counted:
            return self._page_link(wish, self._page_number(wish) + (0 if page.again else 1))
        return self._link(wish, {"cursor": self._next_token(wish, page)})

    def _links(self, wish: _Wish, page: _Page) -> str:
        """The header of RFC 8288. There is always more than one link in it, "next" is not the first."""
        number = self._page_number(wish)
        links = {"first": 1, "last": max(1, -(-len(wish.entries) // wish.size))}
        if number > 1:
            links["prev"] = number - 1
        if page.more:
            links["next"] = number if page.again else number + 1
        return ", ".join(f'<{self._page_link(wish, at)}>; rel="{name}"' for name, at in sorted(links.items()))

    def _page_number(self, wish: _Wish) -> int:
        return int(wish.params.get("page", "1"))

    def _page_link(self, wish: _Wish, number: int) -> str:
        return self._link(wish, {"page": str(number), self._size_param: str(wish.size)})

    def _link(self, wish: _Wish, position: Mapping[str, str]) -> str:
        return f"{self._url}{self._path}?{urlencode({**wish.params, **position})}"


def _body_params(body: Any) -> dict[str, str]:
    """A search's parameters as text; what is null counts as not sent."""
    if body is not None and not isinstance(body, dict):
        raise _RefusedError(400, "the body must be a JSON object")
    return {name: str(value) for name, value in (body or {}).items() if value is not None}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _listed(records: Sequence[bytes]) -> bytes:
    return b"[" + b", ".join(records) + b"]"


def _with_records(body: Mapping[str, Any], records: Sequence[bytes]) -> bytes:
    """An answer with its records in place of the empty list that is its first member."""
    before, _, behind = _json(body).partition(b"[]")
    return before + _listed(records) + behind
