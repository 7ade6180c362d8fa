"""How much of a quota is used, as a value: when the next request's turn is, so that no window ever holds too many.

Pure: the clock is given, nothing is waited for. So it lives in a process's memory or in a row of Postgres, where many
processes change it by turns.

A rate for up to ten seconds is kept by its spacing: turns are evenly apart. A longer one may be used up in a burst: the
turns are counted in about sixty parts of its window, each as if all of them were as late as its last. So a window is
never fuller than it seems, and may be taken for fuller by one part.

An API that refuses a request, since it was asked too often, is asked more slowly afterwards: when its pause is over one
turn goes first, the others follow at an interval, which is doubled when it refuses again and halved when it does not.
Else all who wait would ask at once, most of them to be refused once more, until none of them believes it any longer.

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
_MOST_PACES = 10
_APART = 1_000_000
_UNSEEN = 1_100_000
"""For how long a turn may be used before its task looks whether it still stands; see `Quota.stands`."""
_FIRST_INTERVAL, _LEAST_INTERVAL, _LONGEST_INTERVAL = 300_000, 10_000, 30_000_000
_GOOD_TURNS, _GOOD_TIME = 4, 2_000_000
"""How many turns at an interval, and for how long, the API must answer until it is halved: a try that comes too early
is refused, and costs a pause."""
_FARTHEST = 10**17
"""No number of a state is larger: as an instant it is in the year 5138. A `datetime` ends in 9999."""
_MOST_NUMBERS = 1000


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

    def kept(self, clock: int) -> bool:
        """Whether it is still needed: one whose turns are counted is for as long as they count."""
        return self.fresh(clock) or (not self.spaced and clock - self.seen <= self.per)

    def same(self, other: Pace) -> bool:
        """Whether it is the same rate."""
        return (self.count, self.per) == (other.count, other.per)


@dataclass(frozen=True, slots=True)
class Usage:
    """The turns taken so far, as far as later ones depend on them.

    ``number`` counts them, ``last`` is the place of the last one, ``taken`` the clock when it was taken, ``blocked``
    until when the API wants no request, ``told`` what its answers said, ``paces`` the rates that were kept within the
    last minute or count still, ``counted`` how many turns there were up to which instant (milliseconds) since the one
    before. ``interval`` is how far apart turns are since the API refused one (0: it has not, or long ago), and was last
    changed at the turn ``changed``. Turns before ``stand_from`` were given up, if they had not gone out.
    """

    number: int = 0
    last: int = 0
    taken: int = 0
    blocked: int = 0
    told: Remaining | None = None
    paces: tuple[Pace, ...] = ()
    counted: tuple[tuple[int, int], ...] = ()
    interval: int = 0
    changed: int = 0
    stand_from: int = 0

    def turn(self, now: float, rates: Sequence[Rate]) -> tuple[Usage, float]:
        """Take the next turn: the usage after it, and its place, the earliest that all ``rates`` allow, in seconds.

        It is not before ``now``, nor before any turn that was taken and still stands. All turns are spaced as the
        slowest rate wants that was kept within the last minute: two runs may have read different source files. A rate
        that is new counts the turns of the longest window before it; a spaced one that is new lets its own window pass
        first.
        """
        clock = ceil(now * 1e6)
        here = self._set_back(clock)._resumed(clock)
        asked = [Pace(rate.count, rate.per // _MICROSECOND, clock) for rate in rates]
        others = here._others(asked, clock)
        at = max(clock, here.last + here.interval, here.blocked)
        if here.number:
            spaced = [here.last + pace.spacing for pace in others if pace.spaced and pace.fresh(clock)]
            at = max([at, *spaced, *map(here._free, asked)])
        told = here.told
        if told is not None and told.reset is not None:
            at = max(at, told.reset) if here._remaining(told) <= 0 else at
            told = None if told.reset <= at else told
        new = replace(here, number=here.number + 1, last=at, taken=clock, told=told, paces=(*asked, *others))
        # At once is at once: rounding must not make it a wait, for which there may be no time.
        return replace(new, counted=new._recounted()), now if at <= clock else at / 1e6

    def tell(self, number: int, told: Told, now: float) -> Usage:
        """Note what the answer to turn ``number`` said at ``now``.

        A pause adds to one that is noted already: the longest holds. What is left is taken from the newest turn's
        answer. Turns that were not counted have the number of the last one that was.
        """
        clock, new = ceil(now * 1e6), self
        if told.refused:
            new = self._refused(number, told.pause or 0.0, clock)
        elif self.interval and number >= self.changed + max(_GOOD_TURNS, _GOOD_TIME // self.interval):
            half = self.interval // 2
            new = replace(self, interval=half if half >= _LEAST_INTERVAL else 0, changed=self.number)
        if told.remaining is not None and (self.told is None or number >= self.told.number):
            reset = None if told.reset is None else clock + ceil(told.reset * 1e6)
            new = replace(new, told=Remaining(min(number, self.number), told.remaining, told.limit, reset))
        return new

    def stands(self, number: int, now: float) -> bool:
        """Whether the turn ``number``, which has not gone out, still may at ``now``: not if the API has refused another
        one since, or nothing is left for it until the reset."""
        told = self.told
        if number < self.stand_from:
            return False
        if told is None or told.reset is None or told.reset <= int(now * 1e6):
            return True
        # One that was taken before the turn that was told goes out after it, and needs one of those that are left.
        return max(number - told.number, 1) <= told.remaining

    def held(self, now: float) -> bool:
        """Whether the API lets nobody ask at ``now``: it wants a pause, or nothing is left until the reset."""
        clock, told = int(now * 1e6), self.told
        spent = told is not None and told.reset is not None and told.reset > clock and self._remaining(told) <= 0
        return spent or self.blocked > clock

    def binds(self, now: float) -> bool:
        """Whether a turn at ``now`` depends on more than the rates it is taken by: then it must be counted."""
        clock, told = int(now * 1e6), self.told
        ahead = max(self.last, self.blocked, (told and told.reset) or 0) > clock
        return ahead or self._slowed(clock) > 0 or any(pace.fresh(clock) for pace in self.paces)

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

    def _refused(self, number: int, pause: float, clock: int) -> Usage:
        """After the API has refused the turn ``number``: all turns so far are given up, but those that have gone out.

        Of those the rest may be refused, too: only the first of them doubles the interval.
        """
        new = replace(self, blocked=max(self.blocked, clock + ceil(pause * 1e6)))
        if number < self.stand_from:
            return new
        first = min(ceil(pause * 1e6), _FIRST_INTERVAL) if pause else _FIRST_INTERVAL
        interval = min(max(2 * self._slowed(clock), first, _LEAST_INTERVAL), _LONGEST_INTERVAL)
        # It counts as a turn: those that are not counted from now on have another number than those before.
        number = self.number + 1
        return replace(new, number=number, interval=interval, changed=number, stand_from=number)

    def _slowed(self, clock: int) -> int:
        """The interval, unless it is a minute since anybody asked: what the API refused then tells nothing now."""
        return self.interval if clock - max(self.last, self.blocked) <= _REMEMBERED else 0

    def _resumed(self, clock: int) -> Usage:
        """Before a turn: the places of those that were given up are free, if none of them can have been used."""
        is_first = self.number == self.stand_from
        last = min(self.last, clock + _UNSEEN) if is_first else self.last
        return replace(self, last=last, interval=self._slowed(clock))

    def _others(self, asked: Sequence[Pace], clock: int) -> list[Pace]:
        """The rates of other runs that are still needed, beside those of this one; of those that only count one for
        each time. What still spaces turns goes first: there is room for so many."""
        counting = {pace.per for pace in asked if not pace.spaced}
        others = [
            pace
            for pace in self.paces
            if pace.kept(clock) and pace.per not in counting and not any(map(pace.same, asked))
        ]
        others.sort(key=lambda pace: not pace.fresh(clock))
        return others[: max(_MOST_PACES - len(asked), 0)]

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
        return replace(
            self,
            last=self.last - by,
            taken=clock,
            blocked=self.blocked - by,
            told=told,
            paces=tuple(replace(pace, seen=pace.seen - by) for pace in self.paces),
            counted=tuple((latest - by // 1000, count) for latest, count in self.counted),
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
            "slow": [self.interval, self.changed, self.stand_from],
        }

    @classmethod
    def from_json(cls, value: Any) -> Usage:
        """The usage that `as_json` made. Members that are not known are passed over, and what an earlier version did
        not write is as at first: two versions may share one quota. Anything else is an unused quota: it costs requests,
        no records."""
        try:
            numbers = [_number(each) for each in value["counted"].split()[:_MOST_NUMBERS]]
            instants = [_number(each * 1000) // 1000 for each in accumulate(numbers[::2])]
            return cls(
                _number(value["number"]),
                _number(value["last"]),
                _number(value["taken"]),
                _number(value["blocked"]),
                None if value["told"] is None else _remaining(*value["told"][:4]),
                tuple(_pace(*pace[:3]) for pace in value["paces"][:_MOST_PACES]),
                tuple(zip(instants, numbers[1::2], strict=True)),
                *map(_number, value.get("slow", [0, 0, 0])[:3]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            return cls()


def _number(value: Any) -> int:
    number = int(value)
    if abs(number) > _FARTHEST:
        raise ValueError("no count, and no instant")
    return number


def _remaining(number: Any, remaining: Any, limit: Any, reset: Any) -> Remaining:
    return Remaining(
        _number(number),
        _number(remaining),
        None if limit is None else _number(limit),
        None if reset is None else _number(reset),
    )


def _pace(count: Any, per: Any, seen: Any) -> Pace:
    if int(count) < 1 or int(per) < 1:
        raise ValueError("no rate")
    return Pace(_number(count), _number(per), _number(seen))
