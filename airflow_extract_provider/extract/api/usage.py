"""How much of a quota is used, as a value: when the next request's turn is, so that no window ever holds too many.

Pure: the clock is given, nothing is waited for. So it lives in a process's memory or in a row of Postgres, where many
processes change it by turns.

A rate for up to ten seconds is kept by its spacing: turns are evenly apart. A longer one may be used up in a burst: the
turns are counted in about sixty parts of its window, each as if all of them were as late as its last. So a window is
never fuller than it seems, and may be taken for fuller by one part.

All instants are whole microseconds of the one clock that is given; a float of seconds cannot tell them exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate, pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.rates import Rate

if TYPE_CHECKING:
    from airflow_extract_provider.extract.api.limits import Told

__all__ = ["Pace", "Remaining", "Usage"]

_MICROSECOND = timedelta(microseconds=1)
_SPACED = 10_000_000
"""The longest time for which requests are spaced: in a longer one, a run with a few pages need not wait at all."""
_PARTS, _ALL_PARTS = 60, 84
"""Parts of one rate's window, and of all rates': the state stays below two kilobytes."""
_LEAST_GRACE = 50_000
_REMEMBERED = 60_000_000
_MOST_PACES = 8
_APART = 1_000_000


@dataclass(frozen=True, slots=True)
class Remaining:
    """What an answer has told: ``remaining`` of ``limit`` requests are left after turn ``number``, until ``reset``."""

    number: int
    remaining: int
    limit: int | None
    reset: int | None


@dataclass(frozen=True, slots=True)
class Pace:
    """A rate that somebody keeps, as numbers; ``seen`` is when a turn was last taken by it."""

    count: int
    per: int
    seen: int

    @property
    def spaced(self) -> bool:
        """Whether its turns are evenly apart."""
        return self.per <= _SPACED

    @property
    def spacing(self) -> int:
        """How far apart evenly spaced turns are; rounded up, so that a window never holds one more."""
        return -(-self.per // self.count)

    @property
    def grace(self) -> int:
        """How late a turn's request may be."""
        return max(self.spacing, _LEAST_GRACE) if self.spaced else self.per // _PARTS

    def fresh(self, clock: int) -> bool:
        """Whether a turn was taken by it within the last minute."""
        return clock - self.seen <= _REMEMBERED

    def same(self, other: Pace) -> bool:
        """Whether it is the same rate."""
        return (self.count, self.per) == (other.count, other.per)


@dataclass(frozen=True, slots=True)
class Usage:
    """The turns taken so far, as far as later ones depend on them.

    ``number`` counts them, ``last`` is the place of the last one, ``taken`` the clock when it was taken, ``blocked``
    until when the API wants no request, ``told`` what its answers said, ``paces`` the rates that were kept within the
    last minute, ``counted`` how many turns there were up to which instant (milliseconds) since the one before.
    """

    number: int = 0
    last: int = 0
    taken: int = 0
    blocked: int = 0
    told: Remaining | None = None
    paces: tuple[Pace, ...] = ()
    counted: tuple[tuple[int, int], ...] = ()

    def turn(self, now: float, rates: Sequence[Rate]) -> tuple[Usage, float]:
        """Take the next turn: the usage after it, and its place, the earliest that all ``rates`` allow, in seconds.

        It is not before ``now``, nor before any turn that was taken. All turns are spaced as the slowest rate wants
        that was kept within the last minute: two runs may have read different source files. A rate that is new counts
        the turns of the longest window before it; a spaced one that is new lets its own window pass first.
        """
        clock = ceil(now * 1e6)
        here = self._set_back(clock)
        asked = [Pace(rate.count, rate.per // _MICROSECOND, clock) for rate in rates]
        others = [pace for pace in here.paces if pace.fresh(clock) and not any(map(pace.same, asked))]
        at = max(clock, here.last, here.blocked)
        if here.number:
            spaced = [here.last + pace.spacing for pace in others if pace.spaced]
            at = max([at, *spaced, *map(here._free, asked)])
        told = here.told
        if told is not None and told.reset is not None:
            at = max(at, told.reset) if here._remaining(told) <= 0 else at
            told = None if told.reset <= at else told
        paces = (*asked, *others[: max(_MOST_PACES - len(asked), 0)])
        new = Usage(here.number + 1, at, clock, here.blocked, told, paces, here.counted)
        # At once is at once: rounding must not make it a wait, for which there may be no time.
        return replace(new, counted=new._recounted()), now if at <= clock else at / 1e6

    def tell(self, number: int, told: Told, now: float) -> Usage:
        """Note what the answer to turn ``number`` said at ``now``.

        A pause adds to one that is noted already: the longest holds. What is left is taken from the newest turn's
        answer. Turns that were not counted have the number of the last one that was.
        """
        clock, new = ceil(now * 1e6), self
        if told.pause:
            new = replace(new, blocked=max(new.blocked, clock + ceil(told.pause * 1e6)))
        if told.remaining is not None and (self.told is None or number >= self.told.number):
            reset = None if told.reset is None else clock + ceil(told.reset * 1e6)
            new = replace(new, told=Remaining(min(number, self.number), told.remaining, told.limit, reset))
        return new

    def held(self, now: float) -> bool:
        """Whether the API lets nobody ask at ``now``: it wants a pause, or nothing is left until the reset."""
        clock, told = int(now * 1e6), self.told
        spent = told is not None and told.reset is not None and told.reset > clock and self._remaining(told) <= 0
        return spent or self.blocked > clock

    def binds(self, now: float) -> bool:
        """Whether a turn at ``now`` depends on more than the rates it is taken by: then it must be counted."""
        clock, told = int(now * 1e6), self.told
        ahead = max(self.last, self.blocked, (told and told.reset) or 0) > clock
        return ahead or any(pace.fresh(clock) for pace in self.paces)

    def left(self, now: float, rates: Iterable[Rate]) -> float | None:
        """Which part is left, from 0 to 1, of what is nearest to its end: what the API told, or a rate for longer than
        ten seconds. None: there is neither."""
        clock, told, parts = int(now * 1e6), self.told, []
        if told is not None and told.limit and (told.reset is None or told.reset > clock):
            parts.append(self._remaining(told) / told.limit)
        for rate in rates:
            per = rate.per // _MICROSECOND
            if per > _SPACED:
                used = sum(count for latest, count in self.counted if latest * 1000 > clock - per)
                parts.append(1 - used / rate.count)
        return min(max(min(parts), 0.0), 1.0) if parts else None

    @property
    def grace(self) -> float | None:
        """How much later than its place, in seconds, the last turn's request may go out. None: any time later.

        Spaced turns may be as late as their spacing, at least 50 ms: on a busy machine most of the turns of a fast rate
        would else be lost. With that lateness a window of requests, as they go out, holds at most one more than the
        rate, or 5 % more of a second's. The windows of longer rates hold no more at all: there the grace is counted.
        """
        return self._grace / 1e6 if self.paces else None

    @property
    def _grace(self) -> int:
        return min((pace.grace for pace in self.paces), default=0)

    def _remaining(self, told: Remaining) -> int:
        return told.remaining - (self.number - told.number)

    def _free(self, pace: Pace) -> int:
        """The first instant at which a rate's window has room for a turn."""
        if pace.spaced:
            # Of a new one's window nothing is known but the last turn: the window must be empty.
            return self.last + (pace.spacing if any(map(pace.same, self.paces)) else pace.per)
        held = 0
        for latest, count in reversed(self.counted):
            held += count
            if held >= pace.count:
                return latest * 1000 + pace.per
        return 0

    def _recounted(self) -> tuple[tuple[int, int], ...]:
        """What is counted, with the last turn: parts that lie close together for their age become one.

        A part never counts a turn as earlier than its request may go out; what is merged counts as its latest.
        """
        longs = [pace.per // 1000 for pace in self.paces if not pace.spaced]
        if not longs:
            return ()
        latest = max([-(-(self.last + self._grace) // 1000), *(each for each, _ in self.counted[-1:])])
        parts = min(_PARTS, _ALL_PARTS // len(longs))
        gone = self.last // 1000 - max(longs)
        kept: list[tuple[int, int]] = []
        before = (0, 0)
        for each, count in (*self.counted, (latest, 1)):
            if each <= gone:
                continue
            width = max(min((per for per in longs if per >= latest - each), default=max(longs)) // parts, 1)
            part = (width, each // width)
            kept.append((each, count + (kept.pop()[1] if part == before else 0)))
            before = part
        return tuple(kept)

    def _set_back(self, clock: int) -> Usage:
        """As seen from a clock that went backwards: everything by as much, as if no time had passed.

        Else all would wait until the clock is again where it was. That windows seem nearer than they are costs a wait.
        A second or less is waited for: so far may those be apart who read one clock from afar.
        """
        by = self.taken - clock
        if by <= _APART:
            return self
        told = self.told
        if told is not None and told.reset is not None:
            told = replace(told, reset=told.reset - by)
        return Usage(
            self.number,
            self.last - by,
            clock,
            self.blocked - by,
            told,
            tuple(replace(pace, seen=pace.seen - by) for pace in self.paces),
            tuple((latest - by // 1000, count) for latest, count in self.counted),
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON values. What is counted is one text of gaps and counts: as numbers in `jsonb` it would take twice as
        much, more than a row holds in place."""
        told = self.told
        times = [latest for latest, _ in self.counted]
        gaps = [*times[:1], *(later - earlier for earlier, later in pairwise(times))]
        return {
            "number": self.number,
            "last": self.last,
            "taken": self.taken,
            "blocked": self.blocked,
            "told": None if told is None else [told.number, told.remaining, told.limit, told.reset],
            "paces": [[pace.count, pace.per, pace.seen] for pace in self.paces],
            "counted": " ".join(f"{gap} {count}" for gap, (_, count) in zip(gaps, self.counted, strict=True)),
        }

    @classmethod
    def from_json(cls, value: Any) -> Usage:
        """The usage that `as_json` made. Anything else is an unused quota: it costs requests, no records."""
        try:
            numbers = [int(each) for each in value["counted"].split()]
            return cls(
                int(value["number"]),
                int(value["last"]),
                int(value["taken"]),
                int(value["blocked"]),
                None if value["told"] is None else _remaining(*value["told"]),
                tuple(_pace(*pace) for pace in value["paces"]),
                tuple(zip(accumulate(numbers[::2]), numbers[1::2], strict=True)),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            return cls()


def _remaining(number: Any, remaining: Any, limit: Any, reset: Any) -> Remaining:
    return Remaining(
        int(number), int(remaining), None if limit is None else int(limit), None if reset is None else int(reset)
    )


def _pace(count: Any, per: Any, seen: Any) -> Pace:
    if int(count) < 1 or int(per) < 1:
        raise ValueError("no rate")
    return Pace(int(count), int(per), int(seen))
