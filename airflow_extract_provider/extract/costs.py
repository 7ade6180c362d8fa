"""What a walk costs before it has begun: about how many requests, and the time they take at the source's limit."""

from __future__ import annotations

import math
from datetime import timedelta

from airflow_extract_provider.extract.api.paginators import Paginator, paginator
from airflow_extract_provider.extract.api.paginators.by_instant import FromInstant, Windowed
from airflow_extract_provider.extract.api.paginators.by_number import Overlapping
from airflow_extract_provider.extract.api.paginators.by_record import AfterRecord, LastKey
from airflow_extract_provider.extract.rates import Limits, Rate
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["lasting", "requests_for", "seconds_at", "share_of"]

_SPACED = timedelta(seconds=10)
"""Up to this window requests are spaced evenly; what a longer one allows may be used up at once."""
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def requests_for(object: ApiObject, records: int, rows: int) -> int:
    """About how many requests a list of so many records takes, ``rows`` a page, while nothing moves.

    The table "What it costs" in docs/strategies.md as numbers.
    """
    pages = paginator(object)
    # A page of one record cannot overlap another one; the walk says so itself, when it meets it.
    step = max(rows - 1, 1) if isinstance(pages, LastKey | Overlapping | FromInstant) else max(rows, 1)
    one_pass = max(1, math.ceil(records / step)) + _to_see_the_end(object, pages)
    if isinstance(pages, Windowed):
        one_pass += 2 * math.ceil(records / (pages.pages.cap or records or 1))
    return one_pass if pages.sure or records <= rows else 2 * one_pass


def _to_see_the_end(object: ApiObject, pages: Paginator) -> int:
    """Requests behind the last record, where the API does not tell that there is no more."""
    if getattr(object.pages, "more", None) is not None:
        return 0
    if isinstance(pages, LastKey | Overlapping):
        return 3
    return 1 if isinstance(pages, AfterRecord | FromInstant) else 0


def seconds_at(limit: Limits, requests: int) -> float:
    """How long, in seconds, so many requests take at least, if nobody else asks; 0.0 without a limit."""
    return max((_seconds(rate, requests) for rate in limit), default=0.0)


def _seconds(rate: Rate, requests: int) -> float:
    """The first request waits for nobody."""
    behind = max(requests - 1, 0)
    if rate.per <= _SPACED:
        return behind * rate.per.total_seconds() / rate.count
    return behind // rate.count * rate.per.total_seconds()


def share_of(limit: Limits, requests: int) -> tuple[Rate, float] | None:
    """The rate over the longest time, and which part of it so many requests are; None: no rate is over a minute."""
    longest = max((rate for rate in limit if rate.per > timedelta(minutes=1)), key=lambda rate: rate.per, default=None)
    return None if longest is None else (longest, requests / longest.count)


def lasting(seconds: float) -> str:
    """A duration as people say it: ``40 s``, ``3 min``, ``2.5 h``, ``3 d``."""
    for name, length in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.1f}".removesuffix(".0") + f" {name}"
    return f"{seconds:.1f}".removesuffix(".0") + " s"
