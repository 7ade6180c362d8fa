"""A REST API on loopback that does what real ones do, to prove an extractor against.

One table of records ``{"id", ..., "value", "created_at", "updated_at"}`` in memory, any number of listings (paths) over
it, each with the habits of one kind of API; a clock that moves only when it is told to, so that ties, late commits and
expiring tokens come when the test wants them; and the truth beside it: ``live()`` and ``history()``.

    with HostileApi(seed=1, listings={"/things": Listing("token", ("updated_at", "id"), filter="inclusive")}) as api:
        api.insert(250)
        api.before(3, lambda: api.delete(7))     # just before request 3 is answered
        api.fault(5, Fault("503", retry_after=1))
        copy = my_extractor(api.url + "/things")
        assert copy == api.live()

The same seed, calls and requests give the same answers. Parameters and answers by ``Listing.paging`` (`since` and
`until` as well wherever there is a filter; only ``search`` is a POST, with all in its JSON body):

===============  ========================================  =======================================================
page             ``page`` (from 1), ``per_page``           ``{"data": [...]}``
offset           ``offset`` (from 0), ``limit``            ``{"data": [...]}``
token            ``cursor``, ``limit``                     ``{"data": [...], "next": token or null}``
header_token     ``cursor``, ``limit``                     ``{"data": [...]}``, header ``Next-Page``; at the end none
next_link        the URL in ``next``; ``limit`` at first,  ``{"data": [...], "next": URL or null}``
                 with ``token_kind="offset"`` ``per_page``
link_header      ``page``, ``per_page``                    ``{"data": [...]}``, header ``Link: <URL>; rel="next"``
last_key         ``starting_after`` (id), ``page_size``    ``{"data": [...]}``
key_filter       ``id_gt``, ``limit``                      ``{"data": [...]}`` by id, ascending
keyset           ``after_updated``, ``after_id``,          ``{"data": [...]}`` by `updated_at`, then id
                 ``limit``
search           ``after`` (rows to skip), ``limit``       ``{"results": [...], "total": n, "paging": {"next":
                                                           {"after": "100"}}}``; at the end no ``paging``
since            ``since``, ``limit``                      ``{"data": [...]}``: no way to the second page
single           none                                      ``{"data": [...]}``: all
===============  ========================================  =======================================================

``<path>/<id>`` gives one record. What is wrong gets 400, 404, 405 or 410 with ``{"error": {"message": ...}}``.
"""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from types import TracebackType
from typing import Any, Self

from airflow_extract_provider.testing.hostile_faults import TRANSIENT, Answer, Fault, FaultPlan, Kind, spoil, zipped
from airflow_extract_provider.testing.hostile_limits import Limit, RateHeaders, SlidingWindow
from airflow_extract_provider.testing.hostile_listing import Listing, Paging
from airflow_extract_provider.testing.hostile_pages import Asked, Lister, refusal
from airflow_extract_provider.testing.hostile_store import Clock, Key, NewKeys, Table, Transaction, Version
from airflow_extract_provider.testing.hostile_wire import WireServer

__all__ = [
    "TRANSIENT",
    "Asked",
    "Clock",
    "Fault",
    "HostileApi",
    "Key",
    "Kind",
    "Limit",
    "Listing",
    "NewKeys",
    "Paging",
    "RateHeaders",
    "Transaction",
    "Version",
]

START = datetime(2026, 3, 1, 10, tzinfo=timezone.utc)
Action = Callable[[], object]


class HostileApi:
    """The server. Use it in a ``with`` block; the table can be filled before.

    ``start`` is the clock's first time, ``tick`` what each request moves it on by, before it is answered; each write
    without a timestamp moves it by a microsecond. ``keys``: ids are 1, 2, 3 ("int"), sixteen hex digits in no order
    ("text"), or what your function makes of 1, 2, 3. ``date`` and ``skew`` may be changed at any time: whether
    answers have a Date header (whole seconds, cut off), and how much it is ahead of the clock.

    By real time, as little else here: an answer goes out ``latency`` after it was made, others may overtake it; of the
    requests in any ``limit[1]`` seconds all above ``limit[0]`` get 429 with Retry-After, and no fault; all answers
    tell of that limit by ``rate_headers``. ``gzip``: 200s are packed for clients that take it. ``latency`` and
    ``gzip`` may be changed at any time. ``tls`` holds the server's certificate: HTTPS.

    ``requests`` keeps what was asked, ``faulted`` counts the faults by kind, even where they changed nothing,
    ``limited`` the requests above the limit. An action or answer that raises gives status 500 or a broken connection,
    and is raised again at the end of the ``with`` block.
    """

    def __init__(
        self,
        seed: int = 1,
        listings: Mapping[str, Listing] | None = None,
        *,
        start: datetime = START,
        tick: timedelta = timedelta(milliseconds=1),
        keys: NewKeys = "int",
        date: bool = True,
        skew: timedelta = timedelta(0),
        latency: timedelta = timedelta(0),
        limit: Limit | None = None,
        rate_headers: RateHeaders | None = None,
        gzip: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if rate_headers is not None and limit is None:
            raise ValueError("rate_headers: there is no limit to tell of")
        self.clock = Clock(start)
        self.date, self.skew, self.latency, self.gzip = date, skew, latency, gzip
        self.requests: list[Asked] = []
        self.faulted: Counter[Kind] = Counter()
        self.limited = 0
        self._window = None if limit is None else SlidingWindow(limit, rate_headers)
        self._tick = tick
        self._table = Table(seed, self.clock, keys)
        self._lock = self._table.lock
        self._plan = FaultPlan(seed)
        self._actions: list[tuple[str | None, Callable[[int], bool], Action]] = []
        self._asked_for: dict[str, int] = {}
        self._wire = WireServer(self._answer, tls)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._wire.server_port}"
        paths = listings or {"/things": Listing("page")}
        self._listers = {path: Lister(self._table, path, listing, self.url) for path, listing in paths.items()}

    def __enter__(self) -> Self:
        self._wire.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if exc is None and self._wire.errors:
            raise self._wire.errors[0]

    def close(self) -> None:
        """Stop serving and close every connection; also for one that never served."""
        self._wire.stop()

    # -- writing ------------------------------------------------------------------------------------------------

    def insert(self, n: int = 1, *, at: datetime | None = None, undated: bool = False, **fields: Any) -> list[Key]:
        """Add ``n`` records and return their ids. ``at``: created and updated then, instead of now.

        ``undated``: their ``updated_at`` is null until somebody updates them.
        """
        with self._lock, self.begin() as write:
            return write.insert(n, at=at, undated=undated, **fields)

    def bulk_import(self, n: int, at: datetime | None = None, **fields: Any) -> list[Key]:
        """Add ``n`` records that all have the same timestamp, ``at`` or now, and return their ids."""
        with self._lock, self.begin() as write:
            return write.bulk_import(n, at, **fields)

    def update(self, *ids: Key, at: datetime | None = None, touch: bool = True, **fields: Any) -> None:
        """Change records: each gets a new ``value`` or the given fields, and ``updated_at`` now or ``at``.

        ``touch`` False leaves ``updated_at`` as it is: a change that no filter on time finds.
        """
        with self._lock, self.begin() as write:
            write.update(*ids, at=at, touch=touch, **fields)

    def delete(self, *ids: Key) -> None:
        """Remove records."""
        with self._lock, self.begin() as write:
            write.delete(*ids)

    def begin(self) -> Transaction:
        """Start a transaction: its writes have the time they were made at, and are seen after its ``commit``."""
        return self._table.begin()

    # -- the truth ----------------------------------------------------------------------------------------------

    @property
    def ids(self) -> list[Key]:
        """The ids of all records there are, in the order of their insertion."""
        with self._lock:
            return list(self._table.visible)

    def live(self, path: str | None = None) -> dict[str, dict[str, Any]]:
        """All records there are, as a listing shows them (None: the first one), by their id as text."""
        with self._lock:
            return {str(key): self.shown(version, path) for key, version in self._table.visible.items()}

    def history(self) -> list[Version]:
        """Every version of every record, in the order in which they became visible."""
        with self._lock:
            return list(self._table.history)

    def shown(self, version: Version, path: str | None = None) -> dict[str, Any]:
        """A version as a listing shows it (None: the first one)."""
        return self._lister(path).listing.record(version)

    # -- hostility ----------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many requests have come in."""
        return len(self.requests)

    @property
    def connections(self) -> int:
        """How many connections are open: none of a process that has died, once all that it had asked is counted."""
        return self._wire.connections

    @property
    def arrivals(self) -> list[float]:
        """When each request came in, first to last, in seconds of ``time.monotonic``."""
        return sorted(asked.arrived for asked in list(self.requests))

    def before(self, n: int, action: Action, path: str | None = None) -> None:
        """Do this just before request ``n`` is answered.

        Requests count from 1 over the whole server, or with ``path`` among those of exactly this path. Nothing else
        is answered meanwhile.
        """
        with self._lock:
            self._refuse_past(n, path)
            self._actions.append((path, lambda number: number == n, action))

    def every(self, k: int, action: Action, path: str | None = None) -> None:
        """Do this before each ``k``-th request is answered, counted as in ``before``."""
        if k < 1:
            raise ValueError("every: k must be 1 or more")
        with self._lock:
            self._actions.append((path, lambda number: number % k == 0, action))

    def fault(self, n: int, fault: Fault | Kind, *, times: int = 1, path: str | None = None) -> None:
        """Answer request ``n``, and the next until there were ``times``, with this fault. Counted as in ``before``."""
        with self._lock:
            self._refuse_past(n, path)
            for number in range(n, n + times):
                self._plan.order(number, _as_fault(fault), path)

    def faults(self, rate: float, kinds: Sequence[Fault | Kind] = TRANSIENT, in_a_row: int = 2) -> None:
        """Give one of these faults to this share of requests, by the seed, and to no more than so many in a row.

        The share counts over all that come in, repetitions too. 0 ends it. Ordered faults go before.
        """
        with self._lock:
            self._plan.at_random(rate, [_as_fault(kind) for kind in kinds], in_a_row)

    def expire_tokens(self, path: str | None = None) -> None:
        """Answer 410 to every token this listing has given so far (None: the first listing)."""
        with self._lock:
            self._lister(path).expire_tokens()

    # -- serving ------------------------------------------------------------------------------------------------

    def _answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.clock.advance(self._tick)
            asked = replace(asked, number=self.count + 1, at=self.clock.now)
            self.requests.append(asked)
            path_number = self._asked_for[asked.path] = self._asked_for.get(asked.path, 0) + 1
            try:
                self._act(asked, path_number)
                answer = self._refused() or self._spoiled(asked, path_number)
            except Exception as error:
                self._wire.errors.append(error)
                answer = refusal(500, f"the test's own fault: {error!r}")
            answer = replace(answer, headers={**self._told(), **answer.headers})
        if self.gzip and _takes_gzip(asked):
            answer = _packed(answer)
        # Not under the lock, as all that takes time: requests to a slow API overlap.
        self._wire.pause(self.latency.total_seconds())
        return answer

    def _refused(self) -> Answer | None:
        now = time.monotonic()
        if self._window is None or self._window.admit(now):
            return None
        self.limited += 1
        return self._window.refusal(now)

    def _spoiled(self, asked: Asked, path_number: int) -> Answer:
        fault = self._plan.pick(asked.number, asked.path, path_number)
        if fault is None:
            return self._right(asked, None)
        answer = spoil(self._right(asked, fault.kind), fault)
        self.faulted[fault.kind] += 1
        return answer

    def _told(self) -> Mapping[str, str]:
        """The headers that every answer has."""
        shown = self.clock.now + self.skew
        limits = {} if self._window is None else self._window.headers(time.monotonic(), shown)
        if not self.date:
            return limits
        return {"Date": format_datetime(shown.replace(microsecond=0), usegmt=True), **limits}

    def _act(self, asked: Asked, path_number: int) -> None:
        for path, is_due, action in tuple(self._actions):
            if path in (None, asked.path) and is_due(asked.number if path is None else path_number):
                action()

    def _right(self, asked: Asked, fault: Kind | None) -> Answer:
        if asked.path in self._listers:
            return self._listers[asked.path].page(asked, fault)
        above, _, key = asked.path.rpartition("/")
        if above not in self._listers:
            return refusal(404, f"there is nothing at {asked.path}")
        if asked.method != "GET":
            return refusal(405, f"{asked.method} is not allowed here")
        return self._listers[above].one(key)

    def _lister(self, path: str | None) -> Lister:
        return next(iter(self._listers.values())) if path is None else self._listers[path]

    def _refuse_past(self, n: int, path: str | None) -> None:
        seen = self.count if path is None else self._asked_for.get(path, 0)
        if n <= seen:
            raise ValueError(f"request {n} is over: there have been {seen}")


def _as_fault(fault: Fault | Kind) -> Fault:
    return fault if isinstance(fault, Fault) else Fault(fault)


def _takes_gzip(asked: Asked) -> bool:
    """Whether the client lists gzip; what it gives the weight 0 it does not take (RFC 9110, section 12.5.3)."""
    sent = next((value for name, value in asked.headers.items() if name.lower() == "accept-encoding"), "")
    codings = [coding.replace(" ", "").lower() for coding in sent.split(",")]
    return any(coding.partition(";")[0] == "gzip" and not coding.endswith((";q=0", ";q=0.0")) for coding in codings)


def _packed(answer: Answer) -> Answer:
    if answer.status != 200 or not answer.body or answer.sent == "endlessly" or "Content-Encoding" in answer.headers:
        return answer
    return replace(answer, body=zipped(answer.body), headers={**answer.headers, "Content-Encoding": "gzip"})
