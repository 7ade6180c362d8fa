"""How often the API may be asked: what its answers say of it, and whose turn it is."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Protocol

from airflow_extract_provider.extract.api.usage import Usage
from airflow_extract_provider.extract.rates import Rate

__all__ = ["MemoryQuota", "Quota", "Told", "Turn", "told"]

_FARTHEST = timedelta(days=31).total_seconds()
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e11
"""From here on a number is no duration but an instant: 2001 in seconds, 1973 in milliseconds."""
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{1,18})?", re.ASCII)
_ISO = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:?\d\d)?", re.ASCII)
_MOST_READ = 1024
# A text that is not closed ends with the header: if each quotation mark were tried again, it would take seconds.
_LISTED = re.compile(r'(?:"(?:[^"\\]|\\.)*"?|[^,"])+')
_PARAMETERS = re.compile(r';\s*([a-z*][\w.*-]*)\s*=\s*("(?:[^"\\]|\\.)*"?|[^;]*)', re.ASCII)
_NAME = re.compile(r'\s*("(?:[^"\\]|\\.)*"?|[^;\s]+)')
_USED = re.compile(r"(?:api-usage\s*=\s*)?(\d{1,18})\s*/\s*(\d{1,18})", re.ASCII)
_PREFIXES = ("ratelimit", "x-ratelimit", "x-rate-limit")
_PAUSES = ("retry-after", "x-ratelimit-retry-after", "x-rate-limit-retry-after")


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says of the quota, each None where it says nothing.

    ``pause`` is what it asks to wait before the next request, ``reset`` when the quota is full again, both in seconds
    after the answer; ``remaining`` of ``limit`` requests are left until then. ``limited`` says that the answer was a
    refusal, since the API was asked too often (429): headers do not tell that, the client does.
    """

    pause: float | None = None
    remaining: int | None = None
    limit: int | None = None
    reset: float | None = None
    limited: bool = False

    @property
    def refused(self) -> bool:
        """Whether the API wants to be asked less: it has refused the request, or asks for a pause."""
        return self.limited or bool(self.pause)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request's place among all of its quota.

    It may go out after ``wait`` seconds, and not more than ``grace`` seconds later than that (None: any time later): it
    would stand in the place of another one. ``number`` counts the quota's requests; those that nothing limits may not
    be counted, and have the number of the last one that was.
    """

    wait: float
    number: int
    grace: float | None = None


class Quota(Protocol):
    """Says when the next request may go out. The client waits; one thread at a time uses a quota."""

    def turn(self, most: float) -> Turn:
        """The next request's turn. It is taken, unless its ``wait`` is longer than ``most`` seconds."""
        ...

    def stands(self, turn: Turn) -> bool:
        """Whether a turn that was waited for may still be used: not when the API has told others to wait meanwhile.

        One that does not is given up, and another one taken.
        """
        ...

    def tell(self, turn: Turn, told: Told) -> None:
        """Note what the answer to a turn's request says."""
        ...

    @property
    def left(self) -> float | None:
        """Which part of the quota is left, from 0 to 1, as far as it is known; None: it is not."""
        ...

    def close(self) -> None:
        """Close the connection to where it is kept."""
        ...


class MemoryQuota:
    """A quota of one process, which any number of its threads may share."""

    def __init__(self, rates: Sequence[Rate] = ()) -> None:
        self._rates = tuple(rates)
        self._usage = Usage()
        self._lock = threading.Lock()

    def turn(self, most: float) -> Turn:
        """The next request's turn. It is taken, unless its ``wait`` is longer than ``most`` seconds."""
        with self._lock:
            now = time.monotonic()
            usage, at = self._usage.turn(now, self._rates)
            if at - now <= most:
                self._usage = usage
        return Turn(at - now, usage.number, usage.grace)

    def stands(self, turn: Turn) -> bool:
        """Whether a turn that was waited for may still be used: not when the API has told others to wait meanwhile."""
        with self._lock:
            return self._usage.stands(turn.number, time.monotonic())

    def tell(self, turn: Turn, told: Told) -> None:
        """Note what the answer to a turn's request says."""
        with self._lock:
            self._usage = self._usage.tell(turn.number, told, time.monotonic())

    @property
    def left(self) -> float | None:
        """Which part of the quota is left, from 0 to 1, as far as it is known; None: it is not."""
        return self._usage.left(time.monotonic(), self._rates)

    def close(self) -> None:
        """It has no connection."""


def told(headers: Mapping[str, str], now: datetime) -> Told:
    """What an answer's headers say of the quota; ``now`` (aware) is when it came. It never raises.

    - `Retry-After` (RFC 9110, section 10.2.3), and `X-RateLimit-Retry-After` where that is missing: the pause.
    - `RateLimit-Limit`, `-Remaining`, `-Reset` (draft-ietf-httpapi-ratelimit-headers up to 06; GitLab), `RateLimit` as
      one field of three (07), `RateLimit` and `RateLimit-Policy` with named policies (08 and later).
    - The same three with `X-RateLimit-` or `X-Rate-Limit-` (GitHub, Okta and many more), the limit also as
      `X-Rate-Limit` (Zendesk); the reset rather as `X-RateLimit-Reset-After`, which needs no clock (Discord,
      docs.discord.com/developers/topics/rate-limits).
    - `X-HubSpot-RateLimit-Max`, `-Remaining`, `-Interval-Milliseconds`, and `-Secondly`, `-Secondly-Remaining`. They
      do not tell the reset, which is no later than a whole interval. Of `-Daily-Remaining` the day's end is unknown.
    - `X-Shopify-Shop-Api-Call-Limit: 32/40` and Salesforce's `Sforce-Limit-Info: api-usage=14/5000`: what is used, of
      how many. They have no reset: their windows slide.

    Where several are told, the one with the least remaining binds; of equal ones the one that resets last. What is left
    below nothing, or of a limit of nothing, is no count but a sign ("unlimited", "not known"): then only the reset is
    told, which by itself blocks nothing. Of a header a kilobyte is read, up to the end of an item. A pause or
    reset is a number of seconds (with decimals, as some send it), an instant in seconds or milliseconds since 1970, or
    a date of HTTP or RFC 3339; how large a number is tells which. Instants are measured from the answer's own `Date`,
    so that it does not matter which of the two clocks is wrong. What is past is 0. What is unreadable, or farther than
    31 days (no quota's window is longer), is not told at all: an API's slip must not stop a source for years.
    """
    found = {name.lower(): _beginning(value) for name, value in headers.items()}
    clocks = [now] if (date := _instant(found.get("date", ""))) is None else [date, now]
    pauses = (_seconds(found[name], clocks) for name in _PAUSES if name in found)
    pause = next((each for each in pauses if each is not None), None)
    # No other header tells of a quota.
    some = any("limit" in name for name in found)
    quotas = [each for each in _quotas(found, clocks) if each != Told()] if some else []
    bound = [each for each in quotas if each.remaining is not None]
    if bound:
        told = min(bound, key=lambda each: (each.remaining, -(each.reset or 0.0), each.limit is None))
    else:
        told = max(quotas, key=lambda each: each.reset or 0.0, default=Told())
    return replace(told, pause=pause)


def _beginning(value: str) -> str:
    """As much of a header as is read. An item that is cut off is left out: of `r=10` it could leave `r=1`."""
    text = value.strip()
    return text if len(text) <= _MOST_READ else text[:_MOST_READ].rpartition(",")[0]


def _quotas(found: Mapping[str, str], clocks: Sequence[datetime]) -> Iterator[Told]:
    for prefix in _PREFIXES:
        limits = found.get(f"{prefix}-limit") or found.get(prefix, "")
        until = found.get(f"{prefix}-reset-after") or found.get(f"{prefix}-reset", "")
        yield from _triples(limits, found.get(f"{prefix}-remaining", ""), until, clocks)
    yield from _structured(found.get("ratelimit", ""), found.get("ratelimit-policy", ""), clocks)
    hubspot = "x-hubspot-ratelimit-"
    interval = _number(found.get(f"{hubspot}interval-milliseconds", ""))
    for limit, remaining, reset in (
        ("max", "remaining", None if interval is None or interval > _FARTHEST * 1000 else max(interval / 1000, 0.0)),
        ("secondly", "secondly-remaining", 1.0),
        ("daily", "daily-remaining", None),
    ):
        left = _whole(found.get(hubspot + remaining, ""))
        if left is not None:
            yield _counted(left, _whole(found.get(hubspot + limit, "")), reset)
    for name in ("x-shopify-shop-api-call-limit", "sforce-limit-info"):
        if used := _USED.match(found.get(name, "")):
            yield _counted(max(int(used[2]) - int(used[1]), 0), int(used[2]), None)


def _counted(remaining: int | None, limit: int | None, reset: float | None) -> Told:
    """A quota, without the numbers where they are none."""
    if (remaining is not None and remaining < 0) or (limit is not None and limit <= 0):
        return Told(reset=reset)
    return Told(None, remaining, limit, reset)


def _triples(limit: str, remaining: str, reset: str, clocks: Sequence[datetime]) -> Iterator[Told]:
    """The quotas of three headers: several where each was sent as often, by a gateway and by the API behind it."""
    limits, lefts, resets = limit.split(","), remaining.split(","), reset.split(",")
    if len(resets) != len(lefts):
        # A date has a comma itself.
        resets = [reset] * len(lefts)
    for index, left in enumerate(lefts):
        # Up to draft 05 the policies stood behind the limit: `100, 100;w=60`.
        own = limits[index] if len(limits) == len(lefts) else limits[0]
        yield _counted(_whole(left), _whole(own.partition(";")[0]), _seconds(resets[index], clocks))


def _structured(text: str, policies: str, clocks: Sequence[datetime]) -> Iterator[Told]:
    """The quotas of `RateLimit`, with the limits that `RateLimit-Policy` gives; those of other units than requests are
    passed over."""
    pairs = dict(part.strip().lower().partition("=")[::2] for part in text.split(",") if ";" not in part)
    if "remaining" in pairs or "limit" in pairs:
        one, two, three = (pairs.get(name, "") for name in ("limit", "remaining", "reset"))
        yield _counted(_whole(two), _whole(one), _seconds(three, clocks))
        return
    known = dict(_items(policies))
    for name, given in _items(text):
        policy = known.get(name, {})
        if policy.get("qu", "requests").strip('"').startswith("request") and _whole(given.get("r", "")) is not None:
            reset = _seconds(given.get("t", ""), clocks)
            yield _counted(_whole(given["r"]), _whole(policy.get("q", "")), reset)


def _items(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The items of a structured list with their parameters (RFC 9651, section 3.1)."""
    for item in _LISTED.findall(text):
        name = _NAME.match(item)
        if name is not None:
            yield name[1].strip('"'), {key: value.strip() for key, value in _PARAMETERS.findall(item[name.end() :])}


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _whole(text: str) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _seconds(text: str, clocks: Sequence[datetime]) -> float | None:
    """How far ahead something is. The first clock by which it is near is believed: a `Date` may be wrong by years."""
    number = _number(text)
    if number is not None and number < _EPOCH_SECONDS:
        return max(number, 0.0) if number <= _FARTHEST else None
    at = _instant(text) if number is None else _since_epoch(number)
    if at is None:
        return None
    for clock in clocks:
        ahead = (at - clock).total_seconds()
        if ahead <= _FARTHEST:
            return max(ahead, 0.0)
    return None


def _since_epoch(number: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(number / 1000 if number >= _EPOCH_MILLISECONDS else number, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def _instant(text: str) -> datetime | None:
    """A date of HTTP, which is always UTC (RFC 9110, section 5.6.7), or of RFC 3339."""
    text = text.strip()
    try:
        found = datetime.fromisoformat(text.upper()) if _ISO.fullmatch(text) else parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    try:
        return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
