"""One listing of a ``HostileApi``: how it writes instants, what its filter lets through, in which order it gives."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from airflow_extract_provider.testing.hostile_store import Version, seeded

__all__ = ["Listing", "Paging", "Rank"]

Paging: TypeAlias = Literal[
    "page",
    "offset",
    "token",
    "header_token",
    "next_link",
    "link_header",
    "last_key",
    "key_filter",
    "keyset",
    "search",
    "since",
    "single",
]
Rank: TypeAlias = tuple[Any, ...]
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
# What a record may be out of its place in a search that was not told an order, to each side.
_SLACK = timedelta(seconds=2) // _MICROSECOND


@dataclass(frozen=True)
class Listing:
    """How one path behaves. Parameters and answers of each ``paging`` are in the docstring of ``hostile``.

    ``order``: field names, "-" before one turns it round. Without an id in it, records that are equal come in an
    order that has to do with nothing; ``ties`` "shuffled" makes that another one in each answer, as databases do.
    () is such an order for all records: stable, unless ``moves`` gives a record another place after each write.
    A search without an order sorts by `updated_at` and is up to two seconds wrong.

    ``filter``: whether `since` takes the records of that very instant ("inclusive") or only later ones ("strict");
    None ignores `since` and `until`, as APIs ignore what they do not know. `until` itself is never taken. Records
    without `updated_at` pass no filter. ``nulls`` is where they stand in the answer, whatever the direction.

    ``unit`` and ``zone``: how instants are written in records and expected in the filter. "rfc3339" has an offset,
    "naive" is "2026-03-01 10:00:00" on the wall clocks of ``zone``: it is compared and sorted as such, so the hour
    that autumn repeats lies on itself. ``precision`` is what a record shows (cut off, not rounded; at least a second
    for "unix", a millisecond for "unix_ms"), ``filter_precision`` what the filter compares at, both sides cut; None
    is as shown. The order has the store's microseconds, only "keyset" sorts by what it shows.

    ``page_max``: a larger page is cut silently. ``page_default``: the page if none is asked. ``size_param``: the
    parameter's name, None the usual one. ``cap``: no row from this place on can be had by page, offset or search;
    asking gives 400. ``past_end``: what a page or offset behind the last record gets: nothing in it, a 404, or (of
    pages) the last page again. ``total`` and ``more`` add `total` and `has_more`. ``bare``: the answer is a list,
    `total` goes to the header X-Total-Count. ``looks_ahead`` False: a full last page promises more, then comes an
    empty one.

    ``token_kind``: what a token or link holds, the last record's place in the order or a mere count ("offset"; in a
    link a page number). ``token_life``: tokens older than this get 410. ``token_keeps_filter`` False: `since` and
    `until` count only if they are sent with the token again. ``unknown_key``: `starting_after` of a record that is
    gone starts at record one or gets 400. ``deleted_status``: for one deleted record, 404 or 410. ``lag``: shows the
    table as it was so long ago, as a search index or a replica does.
    """

    paging: Paging
    order: tuple[str, ...] = ()
    filter: Literal["inclusive", "strict"] | None = None
    unit: Literal["rfc3339", "unix", "unix_ms", "naive"] = "rfc3339"
    zone: str = "UTC"
    precision: timedelta = _MICROSECOND
    filter_precision: timedelta | None = None
    nulls: Literal["first", "last"] = "last"
    ties: Literal["stable", "shuffled"] = "stable"
    moves: bool = False
    page_max: int = 100
    page_default: int = 20
    size_param: str | None = None
    cap: int | None = None
    past_end: Literal["empty", "refuse", "last"] = "empty"
    total: bool = False
    more: bool = False
    bare: bool = False
    looks_ahead: bool = True
    token_kind: Literal["keyset", "offset"] = "keyset"  # noqa: S105 - not a password
    token_life: timedelta | None = None
    token_keeps_filter: bool = True
    unknown_key: Literal["restart", "refuse"] = "restart"
    deleted_status: Literal[404, 410] = 404
    lag: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Refuse what no API could be."""
        if self.bare and (self.more or self.paging in ("token", "next_link", "search")):
            raise ValueError(f"a bare list has no room for what {self.paging!r} tells beside the records")
        if self.paging == "since" and self.filter is None:
            raise ValueError("paging 'since' needs a filter: 'inclusive' or 'strict'")
        if self.ties == "shuffled" and (self.holds_place or self.paging in ("key_filter", "keyset")):
            raise ValueError(f"{self.paging!r} continues behind a record's place: its ties cannot be shuffled")
        if self.paging in ("key_filter", "keyset") and self.order:
            raise ValueError(f"{self.paging!r} has its own order: leave `order` out")
        if min(self.page_max, self.page_default) < 1:
            raise ValueError("a page holds at least one record")

    @property
    def has_token(self) -> bool:
        """Whether the position is an opaque token."""
        return self.paging in ("token", "header_token") or (self.paging == "next_link" and self.holds_place)

    @property
    def holds_place(self) -> bool:
        """Whether tokens or links hold a place in the order, not a count."""
        return self.paging in ("token", "header_token", "next_link") and self.token_kind == "keyset"  # noqa: S105 - a kind

    def record(self, version: Version) -> dict[str, Any]:
        """A record as this listing shows it."""
        updated = None if version.updated_at is None else self.written(version.updated_at)
        return {
            "id": version.id,
            **version.fields,
            "created_at": self.written(version.created_at),
            "updated_at": updated,
        }

    def written(self, instant: datetime) -> str | int:
        """An instant in this listing's unit, zone and precision."""
        stamp = _cut(self._stamp(instant), self._shown)
        if self.unit == "unix":
            return stamp // 1_000_000
        if self.unit == "unix_ms":
            return stamp // 1000
        spec = "seconds" if not self._shown % _SECOND else "milliseconds"
        spec = "microseconds" if self._shown % _MILLISECOND else spec
        moment = _EPOCH + stamp * _MICROSECOND
        if self.unit == "naive":
            return moment.replace(tzinfo=None).isoformat(" ", spec)
        if self.zone != "UTC":
            moment = moment.astimezone(ZoneInfo(self.zone))
        return moment.isoformat("T", spec).replace("+00:00", "Z")

    def read(self, text: str) -> int:
        """Return what an instant of a request stands for, in microseconds; ValueError if it is none of this unit."""
        if self.unit in ("unix", "unix_ms"):
            try:
                return int(Decimal(text) * (1_000_000 if self.unit == "unix" else 1000))
            except (InvalidOperation, OverflowError):
                raise ValueError(f"{text!r} is no number") from None
        moment = datetime.fromisoformat(text)
        if (moment.tzinfo is None) != (self.unit == "naive"):
            raise ValueError(f"{text!r} must have {'no ' if self.unit == 'naive' else 'an '}offset")
        return (moment.replace(tzinfo=moment.tzinfo or timezone.utc) - _EPOCH) // _MICROSECOND

    def passes(self, version: Version, since: int | None, until: int | None) -> bool:
        """Tell whether the filter lets a record through."""
        if self.filter is None or (since is None and until is None):
            return True
        if version.updated_at is None:
            return False
        fine = self._shown if self.filter_precision is None else self.filter_precision
        updated = _cut(self._stamp(version.updated_at), fine)
        if until is not None and updated >= _cut(until, fine):
            return False
        if since is None:
            return True
        least = _cut(since, fine)
        return updated > least or (updated == least and self.filter == "inclusive")

    def place(self, version: Version, seed: int, answer: int) -> list[Any]:
        """A record's place in the order, in values JSON can hold. ``answer`` numbers it, for shuffled ties."""
        values = [self._sort_value(version, name.removeprefix("-"), seed) for name in self._order]
        if "id" in (name.removeprefix("-") for name in self._order):
            return values
        chance = answer if self.ties == "shuffled" else 0
        return [*values, seeded(seed, "place", version.id, version.number if self.moves else 0, chance)]

    def rank(self, place: Sequence[Any]) -> Rank:
        """Make a place comparable with others: directions and nulls are worked in."""
        directions = [name.startswith("-") for name in self._order]
        null = 0 if self.nulls == "first" else 2
        return tuple(
            (null, 0) if value is None else (1, _Down(value) if down else value)
            for value, down in zip(place, [*directions, False], strict=False)
        )

    def after(self, updated: str, key: Any) -> list[Any]:
        """The place in "keyset" paging of a record that shows this instant and id."""
        return [_cut(self.read(updated), self._shown), key]

    @property
    def _order(self) -> tuple[str, ...]:
        if self.paging == "key_filter":
            return ("id",)
        if self.paging == "keyset":
            return ("updated_at", "id")
        return ("~updated_at",) if self.paging == "search" and not self.order else self.order

    @functools.cached_property
    def _shown(self) -> timedelta:
        least = {"unix": _SECOND, "unix_ms": _MILLISECOND}.get(self.unit, _MICROSECOND)
        return max(self.precision, least)

    def _sort_value(self, version: Version, name: str, seed: int) -> Any:
        if name == "id":
            return version.id
        if name == "~updated_at":
            slack = seeded(seed, "slack", version.id) % (2 * _SLACK) - _SLACK
            return None if version.updated_at is None else self._stamp(version.updated_at) + slack
        value = getattr(version, name) if name in ("created_at", "updated_at") else version.fields.get(name)
        if not isinstance(value, datetime):
            return value
        return _cut(self._stamp(value), self._shown if self.paging == "keyset" else _MICROSECOND)

    def _stamp(self, instant: datetime) -> int:
        """An instant in microseconds since 1970: by the zone's wall clocks if naive, else in UTC."""
        if self.unit == "naive":
            instant = instant.astimezone(ZoneInfo(self.zone)).replace(tzinfo=timezone.utc)
        return (instant - _EPOCH) // _MICROSECOND


def _cut(stamp: int, precision: timedelta) -> int:
    step = max(1, precision // _MICROSECOND)
    return stamp // step * step


@functools.total_ordering
class _Down:
    """A value that sorts the other way round."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Down) and self.value == other.value

    def __lt__(self, other: _Down) -> bool:
        return bool(other.value < self.value)

    def __hash__(self) -> int:
        return hash(self.value)
