"""Faults to order from a ``HostileApi``: which request gets which, and what they make of a right answer."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from airflow_extract_provider.testing.hostile_store import seeded

__all__ = ["TRANSIENT", "Answer", "Fault", "FaultPlan", "Kind", "spoil", "zipped"]

Kind: TypeAlias = Literal[
    "401",
    "403",
    "404",
    "408",
    "410",
    "422",
    "425",
    "429",
    "500",
    "502",
    "503",
    "504",
    "html",
    "csv",
    "error_200",
    "empty",
    "truncated",
    "not_gzip",
    "half_gzip",
    "huge",
    "redirect",
    "cut",
    "reset",
    "stall",
    "slow",
    "expire",
    "repeat_token",
    "repeat_page",
    "misorder",
    "empty_page",
    "short_page",
]
TRANSIENT: tuple[Kind, ...] = (
    "408",
    "425",
    "429",
    "500",
    "502",
    "503",
    "504",
    "html",
    "csv",
    "error_200",
    "empty",
    "truncated",
    "not_gzip",
    "half_gzip",
    "cut",
    "reset",
)
"""The faults that are over when one asks again, and take no time."""


@dataclass(frozen=True)
class Fault:
    """What to answer instead of the right thing.

    - "408", "425", "429", "500", "502", "503", "504": that status; ``retry_after`` is the header's seconds, None leaves
      it out.
    - "401", "403", "404", "410", "422": that status, once. ``retry_after`` is sent if it is more than 0: a 403 with it
      is how some APIs limit.
    - "redirect": 302 to ``location``.
    - "html": a page for people, with status 200. "csv": a table for a spreadsheet, with status 200.
      "error_200": {"error": {...}} with status 200. "empty": no body.
    - "truncated": half of the body, its length announced as such: broken JSON. "cut": the whole is announced, half
      is sent, the connection closes. "reset": no answer, the connection is reset.
    - "not_gzip": the right body, said to be gzip. "half_gzip": half of it as gzip, its length announced as such; most
      libraries unpack that without a word.
    - "huge": ``size`` bytes without an end that JSON would have; their number is not announced.
    - "stall": ``seconds`` of silence, then the connection closes. "slow": the right answer, a few bytes at a time, so
      that it takes ``seconds`` though no two bytes are far apart. Both are real seconds; other requests go on.
    - "expire": the position this request asks for (token, page, offset, key) gets 410 from now on; a request for
      the beginning is answered rightly.
    - "repeat_token": the right records, but the token or link leads to this page again.
    - "repeat_page": the listing's last answer again, whole, as from a stale cache.
    - "misorder": first and last record of the page change places.
    - "short_page": half of the page though more follow. "empty_page": none of it. A token, a link that holds one, and
      a search continue behind what was given; a client that counts pages or rows asked has lost what was held back.

    The last five change nothing where they make no sense: for one record, or if nothing follows or came before.
    """

    kind: Kind
    retry_after: int | None = 0
    seconds: float = 1.0
    size: int = 64 << 20
    location: str = "https://elsewhere.example/"


Sent: TypeAlias = Literal["whole", "half", "slowly", "endlessly", "silence", "reset"]


@dataclass(frozen=True)
class Answer:
    """What goes out. ``sent``: the whole; half of what is announced; the whole in ``seconds``; the body and then more
    of it, ``size`` bytes in all; nothing for ``seconds``; nothing but a reset.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: Sent = "whole"
    seconds: float = 0.0
    size: int = 0


class FaultPlan:
    """Knows which request gets which fault."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._ordered: dict[tuple[str | None, int], Fault] = {}
        self._rate = 0.0
        self._kinds: Sequence[Fault] = ()
        self._most = 0
        self._run = 0

    def order(self, number: int, fault: Fault, path: str | None) -> None:
        """Give this fault to a request, by its number over the whole server or among those of ``path``."""
        self._ordered[path, number] = fault

    def at_random(self, rate: float, kinds: Sequence[Fault], most: int) -> None:
        """Give one of ``kinds`` to this share of requests, never to more than ``most`` in a row."""
        self._rate, self._kinds, self._most, self._run = rate, kinds, most, 0

    def pick(self, number: int, path: str, path_number: int) -> Fault | None:
        """The fault of this request, or None."""
        ordered = self._ordered.get((None, number)) or self._ordered.get((path, path_number))
        if ordered is not None:
            return ordered
        drawn = seeded(self._seed, "fault", number)
        if self._run >= self._most or drawn % 1_000_000 >= self._rate * 1_000_000:
            self._run = 0
            return None
        self._run += 1
        return self._kinds[drawn // 1_000_000 % len(self._kinds)]


def spoil(right: Answer, fault: Fault) -> Answer:
    """Make of the right answer what the fault makes of it. Faults inside of a page are none of this function's."""
    if fault.kind in _INSTEAD:
        return _INSTEAD[fault.kind]
    if fault.kind in _SPOILED:
        return _SPOILED[fault.kind](right)
    match fault.kind:
        case "huge":
            return Answer(200, b'{"data": [{"id": 1, "value": "', sent="endlessly", size=fault.size)
        case "redirect":
            return Answer(302, b"", {"Location": fault.location})
        case "stall":
            return replace(right, sent="silence", seconds=fault.seconds)
        case "slow":
            return replace(right, sent="slowly", seconds=fault.seconds)
    return _status(fault) if fault.kind.isdigit() else right


def zipped(body: bytes) -> bytes:
    """A body as gzip, always the same for the same: without the time of packing (RFC 1952, section 2.3.1)."""
    return gzip.compress(body, compresslevel=1, mtime=0)


def _status(fault: Fault) -> Answer:
    headers: dict[str, str] = {}
    # A pause in a plain refusal would make it a limit.
    if fault.retry_after is not None and (fault.retry_after or fault.kind not in _REFUSALS):
        headers["Retry-After"] = str(fault.retry_after)
    if fault.kind == "401":
        headers["WWW-Authenticate"] = "Bearer"  # a 401 must have it (RFC 9110, section 11.6.1)
    return Answer(int(fault.kind), b'{"error": {"message": "ordered by the test"}}', headers)


def _half(body: bytes) -> bytes:
    return body[: len(body) // 2]


def _called_gzip(right: Answer, body: bytes) -> Answer:
    return replace(right, body=body, headers={**right.headers, "Content-Encoding": "gzip"})


_REFUSALS = frozenset({"401", "403", "404", "410", "422"})
_PAGE = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>"
_INSTEAD: Mapping[Kind, Answer] = {
    "html": Answer(200, _PAGE, {"Content-Type": "text/html; charset=utf-8"}),
    "csv": Answer(200, b"id,name\r\n1,one\r\n2,two\r\n", {"Content-Type": "text/csv; charset=utf-8"}),
    "error_200": Answer(200, b'{"error": {"code": "INTERNAL", "message": "ordered by the test"}}'),
    "empty": Answer(200, b""),
}
_SPOILED: Mapping[Kind, Callable[[Answer], Answer]] = {
    "truncated": lambda right: replace(right, body=_half(right.body)),
    "not_gzip": lambda right: _called_gzip(right, right.body),
    "half_gzip": lambda right: _called_gzip(right, _half(zipped(right.body))),
    "cut": lambda right: replace(right, sent="half"),
    "reset": lambda right: replace(right, sent="reset"),
}
