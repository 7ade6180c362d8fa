"""The walk over a window of time: what changed between two instants is read again, whatever other walks have done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators import paginator
from airflow_extract_provider.extract.cursor import AtInstant, InWindow, Place, Position
from airflow_extract_provider.extract.errors import SourceError, WindowInvalidError
from airflow_extract_provider.extract.instants import floored, shown_from
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.lap import lap, settled
from airflow_extract_provider.extract.walks.step import Step, Walk

__all__ = ["Window", "opened", "window"]

_SKEW = timedelta(minutes=5)
"""By how much two machines' clocks may differ."""
_CALENDAR = (1000, 9000)
"""Years between which an instant can be written in each zone, with some to spare on both sides."""


@dataclass(frozen=True, slots=True)
class Window:
    """What changed from ``start`` on and before ``until``; both aware.

    Raises WindowInvalidError: an instant has no zone, the window holds none, or lies outside of all calendars.
    """

    start: datetime
    until: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.until.tzinfo is None:
            raise WindowInvalidError(
                "an instant of the window has no zone, so that it might mean any of 24 hours.",
                todo="Write it with its zone, such as 2026-03-01T00:00:00Z.",
            )
        if not all(_CALENDAR[0] <= at.year < _CALENDAR[1] for at in (self.start, self.until)):
            raise WindowInvalidError(
                "an instant of the window lies outside of the years that can be asked for.",
                todo=f"Choose one from the year {_CALENDAR[0]} on and before {_CALENDAR[1]}.",
            )
        if self.start >= self.until:
            raise WindowInvalidError(
                f"the window begins at {_text(self.start)} and ends before anything else, at {_text(self.until)}.",
                todo="Choose an end after the beginning: it is the first instant that is not read.",
            )

    def __str__(self) -> str:
        return f"{_text(self.start)}..{_text(self.until)}"

    def check_past(self, now: datetime) -> None:
        """Raises WindowInvalidError: it reaches into the future, where nothing is complete. A little is no matter: what
        is called covered goes by the API's clock."""
        if self.until > now + _SKEW:
            raise WindowInvalidError(
                f"the window ends at {_text(self.until)}, which is yet to come.",
                todo="Choose an end that has passed; what comes next is brought by the incremental walk.",
            )


def opened(object: ApiObject, window: Window, made: str | None = None, largest: int = 0) -> Position:
    """The position before a window's first request. ``largest``: rows of the largest page that other walks have seen.

    Raises SourceError: the API cannot be asked for a time.
    """
    if not object.windowed:
        raise SourceError(
            "nothing in the config says how to ask this API for what has changed between two instants.",
            todo="Declare `since`, or `order: [-<version>]`; else run the backfill with *Start over*, or a sweep.",
        )
    place, until = paginator(object).start(window.start, largest), _asked_until(object, window.until)
    if isinstance(place, InWindow):
        # A search that is cut into windows anyway ends with this one; what of it may still change is told apart.
        place = replace(place, later=(until,))
    return Position(
        place, key=object.key_name, made=made, since=window.start, until=until, largest=max(largest, _largest(place))
    )


def _asked_until(object: ApiObject, until: datetime) -> datetime:
    """The end as the filter can say it, never earlier. Where its unit is coarser than a second, one unit further: its
    days and hours may be those of another zone."""
    unit = timedelta(microseconds=1) if object.since is None else object.since.precision
    end = floored(until, unit)
    end = end if end == until else end + unit
    return end if unit <= timedelta(seconds=1) else end + unit


def _largest(place: Place) -> int:
    return place.largest if isinstance(place, AtInstant) else 0


def window(object: ApiObject, position: Position) -> Walk:
    """Read a window from a position to its end. Where the API filters by no upper bound, the end is the first record
    behind the window if the records rise by that instant, else the end of the list: more is read then, nothing is lost.

    What changes so late that the API may not have shown it yet is not called covered: ``closed`` is the window's end,
    or an instant before the first request, less what may come late, if that is earlier. Raises what
    :func:`~.lap.lap` raises.
    """
    if position.complete:
        yield Step((), position, None)
        return
    start, until = position.since, position.until
    assert start is not None and until is not None  # noqa: PT018 - as `opened` made it
    by_position, cut = object.pages.by == "position", isinstance(position.place, InWindow)
    below = shown_from(start, object.timestamps) if object.since is None and not by_position else None
    # One unit further: the API may compare, and order, by no more than that.
    unit = timedelta(0) if object.since is None else object.since.precision
    above = until + unit if (object.since_ordered and not cut) or by_position else None
    read = yield from lap(object, position, below, above)
    ended = replace(read.position, complete=True, closed=_closed(object, read.position, until))
    yield Step(read.records, ended, None, bad=read.bad)


def _closed(object: ApiObject, read: Position, until: datetime) -> datetime | None:
    """Up to when a window's changes are stored; None: that says nothing, since not the changes were asked for, but what
    another field tells, such as when a record was made."""
    if object.since_field not in (None, object.version):
        return None
    closed = settled(replace(read, closed=None), object.late)
    return until if closed is None else min(until, closed)


def _text(instant: datetime) -> str:
    if instant.tzinfo is None:
        return instant.isoformat()
    return instant.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"
