"""Faults to order from a ``HostileApi``: which request gets which, and what they make of a right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from airflow_extract_provider.testing.hostile_store import seeded

__all__ = ["TRANSIENT", "Answer", "Fault", "FaultPlan", "Kind", "spoil"]

Kind: TypeAlias = Literal[
    "429",
    "500",
    "502",
    "503",
    "html",
    "truncated",
    "cut",
    "reset",
    "empty",
    "error_200",
    "expire",
    "repeat_token",
    "repeat_page",
    "misorder",
    "empty_page",
    "short_page",
]
TRANSIENT: tuple[Kind, ...] = ("429", "500", "502", "503", "html", "truncated", "cut", "reset", "empty")
"""The faults that are over when one asks again."""


@dataclass(frozen=True)
class Fault:
    """What to answer instead of the right thing.

    - "429", "500", "502", "503": that status; ``retry_after`` is the header's seconds, None leaves it out.
    - "html": a page for people, with status 200. "error_200": {"error": {...}} with status 200. "empty": no body.
    - "truncated": half of the body, its length announced as such: broken JSON. "cut": the whole is announced, half
      is sent, the connection closes. "reset": no answer, the connection is reset.
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


@dataclass(frozen=True)
class Answer:
    """What goes out. ``sent``: the whole, half of what is announced, or nothing but a reset."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: Literal["whole", "half", "nothing"] = "whole"


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
    half = right.body[: len(right.body) // 2]
    match fault.kind:
        case "429" | "500" | "502" | "503":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return Answer(int(fault.kind), b'{"error": {"message": "ordered by the test"}}', headers)
        case "html":
            page = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>"
            return Answer(200, page, {"Content-Type": "text/html; charset=utf-8"})
        case "error_200":
            return Answer(200, b'{"error": {"code": "INTERNAL", "message": "ordered by the test"}}')
        case "empty":
            return Answer(200, b"")
        case "truncated":
            return replace(right, body=half)
        case "cut":
            return replace(right, sent="half")
        case "reset":
            return replace(right, sent="nothing")
    return right
