"""The quota: what answers tell of it in the words of many vendors, and that no window ever holds more than a rate."""

from __future__ import annotations

import heapq
import json
import math
import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.api.limits import MemoryQuota, Told, told
from airflow_extract_provider.extract.api.usage import Usage
from airflow_extract_provider.extract.rates import Rate

NOW = datetime(2026, 3, 1, 10, 0, 0, tzinfo=timezone.utc)
EPOCH = int(NOW.timestamp())
LATER = NOW + timedelta(seconds=30)
CLOCK = 1.8e9
SOAK = bool(os.environ.get("EXTRACT_SOAK"))


def http(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


X = "X-RateLimit-"
HUB = "X-HubSpot-RateLimit-"
VENDORS: list[tuple[dict[str, str], Told]] = [
    ({}, Told()),
    # RFC 9110, section 10.2.3, and what is sent beside it
    ({"Retry-After": "120"}, Told(pause=120)),
    ({"retry-after": " 2.5 "}, Told(pause=2.5)),
    ({"Retry-After": "0"}, Told(pause=0)),
    ({"Retry-After": http(LATER)}, Told(pause=30)),
    ({"Retry-After": "Sunday, 01-Mar-26 10:00:30 GMT"}, Told(pause=30)),
    ({"Retry-After": "Sun Mar  1 10:00:30 2026"}, Told(pause=30)),
    ({"Retry-After": http(NOW - timedelta(hours=1))}, Told(pause=0)),
    ({"Retry-After": "-5"}, Told(pause=0)),
    ({"Retry-After": str(EPOCH + 30)}, Told(pause=30)),
    ({"X-RateLimit-Retry-After": "7"}, Told(pause=7)),
    ({"X-RateLimit-Retry-After": str(EPOCH + 7)}, Told(pause=7)),
    ({"Retry-After": "soon", "X-RateLimit-Retry-After": "7"}, Told(pause=7)),
    ({"Retry-After": "3", "X-RateLimit-Retry-After": "7"}, Told(pause=3)),
    # GitHub: the reset in seconds since 1970
    ({f"{X}Limit": "5000", f"{X}Remaining": "4999", f"{X}Reset": str(EPOCH + 60)}, Told(None, 4999, 5000, 60)),
    ({f"{X}Limit": "60", f"{X}Remaining": "0", f"{X}Reset": "30"}, Told(None, 0, 60, 30)),
    ({f"{X}Limit": "60", f"{X}Remaining": "0", f"{X}Reset": f"{EPOCH + 30}000"}, Told(None, 0, 60, 30)),
    ({f"{X}Remaining": "0", f"{X}Reset": "2026-03-01T10:00:30Z"}, Told(None, 0, None, 30)),
    ({f"{X}Remaining": "0", f"{X}Reset": "2026-03-01T11:00:30.5+01:00"}, Told(None, 0, None, 30.5)),
    ({f"{X}Remaining": "0", f"{X}Reset": http(LATER)}, Told(None, 0, None, 30)),
    ({f"{X}Limit": "9", f"{X}Remaining": "0", f"{X}Reset": "-1"}, Told(None, 0, 9, 0)),
    # No counts, but signs: the reset alone blocks nothing
    ({f"{X}Limit": "-1", f"{X}Remaining": "-1", f"{X}Reset": "3600"}, Told(reset=3600)),
    ({f"{X}Limit": "0", f"{X}Remaining": "0", f"{X}Reset": "3600"}, Told(reset=3600)),
    ({f"{X}Remaining": "-3"}, Told()),
    ({"RateLimit": "a;r=-1;t=50, b;r=7;t=5"}, Told(None, 7, None, 5)),
    ({f"{HUB}Max": "0", f"{HUB}Remaining": "0"}, Told()),
    ({"Sforce-Limit-Info": "api-usage=0/0"}, Told()),
    # Discord: seconds beside the instant
    (
        {f"{X}Limit": "5", f"{X}Remaining": "0", f"{X}Reset": "1470173023.123", f"{X}Reset-After": "64.57"},
        Told(None, 0, 5, 64.57),
    ),
    ({f"{X}Limit": "100", "X-Rate-Limit-Reset-After": "300"}, Told(reset=300)),
    ({f"{X}Remaining": "3.0"}, Told(None, 3)),
    ({f"{X}Reset": "30"}, Told(None, None, None, 30)),
    ({"X-Rate-Limit-Limit": "50", "X-Rate-Limit-Remaining": "49", "X-Rate-Limit-Reset": "9"}, Told(None, 49, 50, 9)),
    # A gateway and the API behind it: one header each, joined
    ({f"{X}Limit": "9, 99", f"{X}Remaining": "5, 2", f"{X}Reset": "7, 8"}, Told(None, 2, 99, 8)),
    # Zendesk
    (
        {"X-Rate-Limit": "700", "X-Rate-Limit-Remaining": "9", "RateLimit-Remaining": "9", "RateLimit-Reset": "41"},
        Told(None, 9, None, 41),
    ),
    ({"X-Rate-Limit": "700", "X-Rate-Limit-Remaining": "699"}, Told(None, 699, 700)),
    # HubSpot
    (
        {f"{HUB}Max": "100", f"{HUB}Remaining": "99", f"{HUB}Interval-Milliseconds": "10000"},
        Told(None, 99, 100, 10),
    ),
    (
        {
            f"{HUB}Daily": "250000",
            f"{HUB}Daily-Remaining": "249980",
            f"{HUB}Max": "100",
            f"{HUB}Remaining": "9",
            f"{HUB}Interval-Milliseconds": "10000",
            f"{HUB}Secondly": "10",
            f"{HUB}Secondly-Remaining": "9",
        },
        Told(None, 9, 100, 10),
    ),
    # Shopify, Salesforce
    ({"X-Shopify-Shop-Api-Call-Limit": "32/40"}, Told(None, 8, 40)),
    ({"Sforce-Limit-Info": "api-usage=10018/100000"}, Told(None, 89_982, 100_000)),
    ({"Sforce-Limit-Info": "api-usage=25/15, per-app-api-usage=17/250(appName=x)"}, Told(None, 0, 15)),
    # draft-ietf-httpapi-ratelimit-headers: up to 05, 06, 07, 08 and later
    (
        {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "50", "RateLimit-Reset": "30"},
        Told(None, 50, 100, 30),
    ),
    ({"RateLimit": "limit=100, remaining=50, reset=30", "RateLimit-Policy": "100;w=60"}, Told(None, 50, 100, 30)),
    ({"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"default";q=100;w=60'}, Told(None, 50, 100, 30)),
    ({"RateLimit": "default; r=0 ; t=7"}, Told(None, 0, None, 7)),
    (
        {
            "RateLimit": '"a;b,\\"c";r=20;t=23, hour;r=3;t=2402;pk=:YQ==:',
            "RateLimit-Policy": '"a;b,\\"c";q=50;w=60,hour;q=1000;w=3600',
        },
        Told(None, 3, 1000, 2402),
    ),
    ({"RateLimit": "one;r=0;t=1, other;r=0;t=60"}, Told(None, 0, None, 60)),
    (
        {"RateLimit": '"bytes";r=0;t=60, "calls";r=5;t=9', "RateLimit-Policy": '"bytes";q=9;qu="content-bytes"'},
        Told(None, 5, None, 9),
    ),
    # More than is read: not up to the middle of a number
    ({"RateLimit": "a;r=50;t=9".ljust(1024 - len(", b;r=1")) + ", b;r=10;t=8"}, Told(None, 50, None, 9)),
    ({"Retry-After": "1" + "0" * 2000}, Told()),
    # Nothing that could be meant
    ({"Retry-After": str(32 * 86_400)}, Told()),
    ({"Retry-After": "1e9"}, Told()),
    ({"Retry-After": "9" * 400}, Told()),
    ({"Retry-After": "٣"}, Told()),
    ({"Retry-After": "99999999999999999"}, Told()),
    ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"}, Told()),
    ({f"{X}Remaining": "many", f"{X}Reset": "nan", f"{X}Limit": "inf"}, Told()),
    ({f"{X}Remaining": "0", f"{X}Reset": str(EPOCH + 40 * 86_400)}, Told(None, 0)),
    ({"RateLimit": ";;;r=1,,=", "RateLimit-Policy": '"'}, Told()),
]


@pytest.mark.parametrize(("headers", "expected"), VENDORS, ids=lambda each: str(each)[:60])
def test_what_vendors_tell(headers: dict[str, str], expected: Told) -> None:
    """Each way of saying it, as its vendor or draft documents it, in whatever case it comes."""
    assert told(headers, NOW) == expected
    assert told({name.lower(): value for name, value in headers.items()}, NOW) == expected


@pytest.mark.parametrize("skew", [-86_400, -5, 5, 86_400])
def test_the_clocks_differ(skew: int) -> None:
    """An instant is measured from the answer's own Date; by our clock it would be past, or far away."""
    shown = NOW + timedelta(seconds=skew)
    headers = {"Date": http(shown), "Retry-After": http(shown + timedelta(seconds=30)), f"{X}Remaining": "0"}
    assert told({**headers, f"{X}Reset": str(EPOCH + skew + 60)}, NOW) == Told(30, 0, None, 60)


@pytest.mark.parametrize("date", ["Thu, 01 Jan 1970 00:00:00 GMT", "yesterday", ""])
def test_a_date_that_cannot_be_right(date: str) -> None:
    """Then our own clock is better."""
    assert told({"Date": date, "Retry-After": http(LATER)}, NOW) == Told(30)


@pytest.mark.parametrize("value", ['"\\' * 16_000, ';a="\\' * 8000, '";' * 16_000, '"' + "\\" * 32_000])
def test_long_headers_take_no_time(value: str) -> None:
    """Whatever their quotation marks: the task would stand still, and its heartbeat with it."""
    began = time.process_time()
    told({"RateLimit": value, "RateLimit-Policy": value, "Date": value}, NOW)
    assert time.process_time() - began < 0.5


NAMES = sorted({name for headers, _ in VENDORS for name in headers} | {"Date"})
PIECES = st.sampled_from(['"', ";", ",", "=", "r", "t", "q", "-", ".", "9" * 30, "1", "/", "limit", "GMT", "\x00", "é"])
VALUES = st.text() | st.lists(PIECES, max_size=12).map("".join) | st.integers().map(str) | st.datetimes().map(str)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
@example({"X-HubSpot-RateLimit-Remaining": "0", "X-HubSpot-RateLimit-Interval-Milliseconds": "2678400001"})
def test_whatever_is_sent(headers: dict[str, str]) -> None:
    """Nothing an API can send raises, or makes anyone wait for longer than 31 days."""
    found = told(headers, NOW)
    for seconds in (found.pause, found.reset):
        assert seconds is None or 0 <= seconds <= 31 * 86_400
    for count in (found.remaining, found.limit):
        assert count is None or count >= 0


# -- turns ------------------------------------------------------------------------------------------------------------

POOL = ["20/s", "3/s", "7/10s", "100/10s", "5/m", "50/m", "30/15s", "40/90s", "60/h", "1/2s"]


def rates(*texts: str) -> tuple[Rate, ...]:
    return tuple(map(Rate.parsed, texts))


def micros(seconds: float) -> int:
    return round(seconds * 1e6)


def most_in_a_window(instants: Sequence[int], rate: Rate) -> int:
    """By brute force, over all half-open windows that end at one of them (sorted)."""
    per = micros(rate.per.total_seconds())
    return max(index + 1 - bisect_right(instants, at - per) for index, at in enumerate(instants))


STEPS = st.lists(
    st.tuples(
        st.sets(st.sampled_from(POOL), max_size=4),
        st.integers(1, 25),
        st.sampled_from([0.0, 0.0, 0.001, 0.03, 0.9, 7.0, 61.0, 400.0]),
        st.sampled_from([0.0, 0.0, 0.0, 0.0005, 0.4, 2.0, 30.0, 5000.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=5000 if SOAK else 80, derandomize=not SOAK, database=None)
@given(STEPS)
@example([({"20/s", "60/h"}, 25, 0.0, 0.0, True)] * 3)
@example([({"100/10s"}, 25, 0.0, 0.0, True), ({"3/s"}, 25, 0.0, 0.0, True), ({"100/10s"}, 25, 0.0, 30.0, False)])
@example([(set(), 1, 0.0, 0.0, False), (set(), 1, 0.0, 0.0005, False), (set(), 1, 0.0, 2.0, False)])
def test_no_window_ever_holds_more(steps: list[tuple[set[str], int, float, float, bool]]) -> None:
    """Whatever rates come and go, however long nobody asks, and though the clock goes backwards: when a turn is given,
    none of its rates' windows before it holds more, by an oracle that keeps every instant.

    Real time goes on where the clock steps back. What is older than the longest window counted is not known any more;
    a window is counted from one turn that is taken by it until its own time after the last.
    """
    usage, true, offset, known_from = Usage(), CLOCK, 0.0, 0
    places: list[int] = []
    seen: dict[int, float] = {}
    for texts, count, idle, back, is_patient in steps:
        asked, true, offset = rates(*texts), true + idle, offset - back
        for _ in range(count):
            now = true + offset
            usage, at = usage.turn(now, asked)
            seen |= {micros(rate.per.total_seconds()): true for rate in asked if rate.per > timedelta(seconds=10)}
            longs = [per for per, last in seen.items() if micros(true) - micros(last) <= per]
            assert at >= now
            place = micros(at) - micros(offset)
            assert not places or place >= places[-1] - 2
            places.append(max(place, places[-1]) if places else place)
            for rate in asked:
                per = micros(rate.per.total_seconds())
                since = max(place - per, known_from if per > 10_000_000 else 0)
                # The sums of floats are a microsecond or two from what is counted.
                assert len(places) - bisect_right(places, since + 3) <= rate.count, rate
            known_from = max(known_from, place - max(longs, default=0))
            true = max(true, at - offset) if is_patient else true
        assert Usage.from_json(json.loads(json.dumps(usage.as_json()))) == usage


@pytest.mark.parametrize(
    "texts",
    [["20/s"], ["3/s"], ["1000/s"], ["100/10s"], ["600/m"], ["7/m"], ["20/s", "400/h"], ["50/m", "200/h"]],
    ids=", ".join,
)
@pytest.mark.parametrize("arrivals", ["at once", "evenly"])
def test_what_is_allowed_is_used(texts: list[str], arrivals: str) -> None:
    """Whoever always asks for the next turn gets at least 94 % of what the tightest rate allows, after a start in a
    burst as after an even one; and with requests as late as they may be, windows are as full as the docstring says."""
    asked, usage, now, chance = rates(*texts), Usage(), CLOCK, random.Random(7)
    tightest = max(asked, key=lambda rate: rate.per / rate.count)
    seconds = tightest.per.total_seconds()
    places, sent = [], []
    while now < CLOCK + 3 * seconds:
        usage, at = usage.turn(now, asked)
        assert usage.grace is not None
        pause = 0.0 if arrivals == "at once" or at > CLOCK + seconds else 1.1 * seconds / tightest.count
        now = max(now + pause, at)
        places.append(micros(at))
        sent.append(micros(at + chance.choice([0, 0, 1, chance.random()]) * usage.grace))
    for rate in asked:
        assert most_in_a_window(places, rate) <= rate.count
        late = max(1, math.ceil(rate.count * 0.05 / rate.per.total_seconds())) if rate.per.total_seconds() <= 10 else 0
        assert most_in_a_window(sorted(sent), rate) <= rate.count + late
    used = sum(micros(CLOCK + seconds) < at <= micros(CLOCK + 3 * seconds) for at in places)
    assert used >= 0.94 * 2 * tightest.count - 1


def test_a_burst_needs_no_waiting() -> None:
    """What is allowed in an hour can be had at once; what is allowed in ten seconds is spaced."""
    quota = MemoryQuota(rates("5/h"))
    assert [quota.turn(0).wait for _ in range(5)] == [0] * 5
    assert quota.turn(0).wait > 3500
    spaced = MemoryQuota(rates("5/10s"))
    assert [round(spaced.turn(60).wait) for _ in range(5)] == [0, 2, 4, 6, 8]


def test_nobody_waits_for_a_clock_that_went_back() -> None:
    """By an hour: the next turn is where it would have been, a told pause and reset are as far away as before."""
    usage, _ = Usage().turn(CLOCK, rates("1/s"))
    usage = usage.tell(1, Told(pause=5, remaining=3, limit=9, reset=8), CLOCK)
    for now in (CLOCK, CLOCK - 3600):
        after, at = usage.turn(now, rates("1/s"))
        assert at == pytest.approx(now + 5)
        assert after.told is not None
        assert after.told.reset == pytest.approx((now + 8) * 1e6)


def test_what_is_left_is_counted_down() -> None:
    """Of 3 that the answer to turn 2 leaves, turns 3, 4 and 5 are taken at once; turn 6 comes with the reset, and then
    nothing is known any more. A reset alone blocks nothing; an older turn's answer tells nothing new."""
    usage = Usage()
    for _ in range(2):
        usage, _ = usage.turn(CLOCK, ())
    usage = usage.tell(2, Told(remaining=3, limit=10, reset=60), CLOCK)
    assert usage.tell(1, Told(remaining=0, limit=10, reset=600), CLOCK) == usage
    assert usage.left(CLOCK, ()) == 0.3
    for waited, left in ((0, 0.2), (0, 0.1), (0, 0.0), (60, None), (60, None)):
        usage, at = usage.turn(CLOCK, ())
        assert (at, usage.left(CLOCK, ())) == (CLOCK + waited, left)
    assert Usage().tell(0, Told(reset=60), CLOCK).turn(CLOCK, ())[1] == CLOCK
    sliding = Usage().tell(0, Told(remaining=0, limit=40), CLOCK)
    assert sliding.turn(CLOCK, ())[1] == CLOCK
    assert sliding.left(CLOCK, ()) == 0


def test_a_pause_is_for_all() -> None:
    """The longest pause that was told holds for every turn; those that come then are spaced."""
    usage, _ = Usage().turn(CLOCK, rates("2/s"))
    usage = usage.tell(1, Told(pause=30), CLOCK).tell(1, Told(pause=10), CLOCK)
    assert usage.held(CLOCK + 29)
    assert not usage.held(CLOCK + 30)
    places = []
    for _ in range(3):
        usage, at = usage.turn(CLOCK + 1, rates("2/s"))
        places.append(at - CLOCK)
    assert places == [30, 30.5, 31]


def test_a_turn_that_was_taken_before() -> None:
    """Of turns that wait, none stands once another one was refused; the next is not behind all their places. Without a
    refusal there stand as many as are left until the reset."""
    usage, places = Usage(), []
    for _ in range(30):
        usage, at = usage.turn(CLOCK, rates("1/2s"))
        places.append(at - CLOCK)
    assert places[-1] == 58
    spent = usage.tell(1, Told(remaining=2, limit=30, reset=20), CLOCK)
    assert [spent.stands(number, CLOCK + 19) for number in (1, 2, 3, 4, 30)] == [True, True, True, False, False]
    assert spent.stands(30, CLOCK + 20)
    assert not usage.tell(30, Told(remaining=0, reset=20), CLOCK).stands(1, CLOCK + 19)
    usage = usage.tell(1, Told(pause=20), CLOCK)
    assert not any(usage.stands(number, CLOCK + 30) for number in range(1, 31))
    usage, at = usage.turn(CLOCK, rates("1/2s"))
    assert at == CLOCK + 20
    assert usage.stands(usage.number, at)


def test_a_place_that_was_used_is_not_given_away() -> None:
    """Within a second of the last look a turn goes out unseen: what comes after a refusal keeps its distance to it."""
    usage = Usage()
    for _ in range(40):
        usage, at = usage.turn(CLOCK, rates("20/s"))
    usage, at = usage.tell(1, Told(limited=True), CLOCK).turn(CLOCK, rates("20/s"))
    assert at - CLOCK >= 1.05


@pytest.mark.parametrize("gap", [0.5, 0.05, 5.0])
def test_many_who_were_refused(gap: float) -> None:
    """An API lets one in each half second (twentieth, five seconds), and answers all others 429, `Retry-After: 1`. 24
    tasks ask it, three times each: none is refused more than five times in a row, together they are not half as often
    as they get through, after the start, and it takes no more than twice as long as it must. Later all is as before."""
    usage, free_at, refused, in_a_row = Usage(), CLOCK, 0, [0] * 24
    todo: list[tuple[float, int, str, int]] = [(CLOCK, task, "ask", 0) for task in range(24)]
    left = [3] * 24
    while todo:
        now, task, what, number = heapq.heappop(todo)
        if what == "ask" or (what == "send" and not usage.stands(number, now)):
            usage, at = usage.turn(now, ()) if usage.binds(now) else (usage, now)
            heapq.heappush(todo, (at, task, "send", usage.number))
        elif what == "send":
            is_let_in, free_at = now >= free_at, now + gap if now >= free_at else free_at
            heapq.heappush(todo, (now + 0.05, task, "good" if is_let_in else "refused", number))
        else:
            usage = usage.tell(number, Told() if what == "good" else Told(pause=1), now)
            in_a_row[task] = 0 if what == "good" else in_a_row[task] + 1
            refused += what == "refused"
            left[task] -= what == "good"
            assert in_a_row[task] <= 5
            if left[task]:
                heapq.heappush(todo, (now, task, "ask", 0))
    assert refused <= 23 + 24
    assert now - CLOCK <= 2 * 72 * gap + 30
    assert not usage.binds(now + 90)
    assert usage.stands(usage.number, now + 90)


def test_a_long_rate_is_counted_for_its_own_time() -> None:
    """Five a day are used up; that another file's turns run for longer than a minute makes nobody forget it."""
    usage, now = Usage(), CLOCK
    for _ in range(5):
        usage, _ = usage.turn(now, rates("5/d"))
    for _ in range(80):
        now += 10
        usage, _ = usage.turn(now, rates("20/s"))
    assert usage.turn(now, rates("5/d"))[1] >= CLOCK + 86_400


def test_two_files_of_one_source() -> None:
    """Runs with different rates take turns: the slower spacing holds for both, without a new start each time."""
    usage, now = Usage(), CLOCK
    for number in range(40):
        usage, now = usage.turn(now, rates("100/10s" if number % 2 else "50/10s"))
    assert now - CLOCK < 10 + 40 * 0.2


@pytest.mark.parametrize("texts", [["20/s"], ["1000000000/h"], ["1000000000/s", "999999999/31d"], POOL])
def test_the_state_stays_small(texts: list[str]) -> None:
    """Below two kilobytes, whatever the rates, with every part of every window in use, and after many others that count
    still; and whatever the API has told."""
    usage, now = Usage(), CLOCK
    chance = random.Random(1)
    for other in ("999999999/30d", "999999999/29d", "999999999/28d", "999999999/27d"):
        usage, _ = usage.turn(now, rates(other))
    for number in range(1200):
        told = Told(remaining=999_999_999, limit=999_999_999, reset=7.123456, limited=not number % 100)
        usage = usage.tell(usage.number, told, now)
        usage, at = usage.turn(now, rates(*texts))
        now = max(at, now + chance.choice([0.01, 10, 3000, 100_000]))
        assert len(json.dumps(usage.as_json())) < 2000


@pytest.mark.parametrize(
    "state",
    [None, {}, [], "x", 7, {**Usage().as_json(), "counted": "1 2 3"}, {**Usage().as_json(), "paces": [[0, 0, 0]]}],
)
def test_a_state_that_cannot_be_read(state: Any) -> None:
    """Counts as nothing used: a person may have edited it."""
    assert Usage.from_json(state) == Usage()


USED = Usage().turn(CLOCK, rates("5/h"))[0].tell(1, Told(pause=3, remaining=3, limit=5, reset=60), CLOCK)
EDITS: list[dict[str, Any]] = [
    *({name: number} for name in ("number", "last", "taken", "blocked") for number in (10**400, -(10**30), 1e300)),
    *({"told": told} for told in ([1, 10**400, 1, 1], [1, 0, 1, 10**30])),
    *({"paces": [pace]} for pace in ([10**400, 1, 1], [1, 10**30, 1], [1, 1, 10**400])),
    *({"counted": counted} for counted in ("9" * 400 + " 1", "9" * 17 + " 5", ("9" * 14 + " 1 ") * 900)),
    {"slow": [10**400, 0, 0]},
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda each: str(each)[:40])
def test_numbers_that_nobody_can_mean(edit: dict[str, Any]) -> None:
    """A state edited by hand stops no task by an error of arithmetic, nor do its waits, as instants."""
    usage = Usage.from_json({**USED.as_json(), **edit})
    for _ in range(2):
        usage.left(CLOCK, rates("5/h"))
        usage, at = usage.tell(1, Told(1, 1, 1, 1), CLOCK).turn(CLOCK, rates("5/h"))
        assert NOW + timedelta(seconds=at - CLOCK) >= NOW


def test_versions_share_a_quota() -> None:
    """What a later version adds is passed over; what an earlier one does not write yet is as at first."""
    state = USED.as_json()
    assert Usage.from_json(state) == USED
    later = {**state, "more": {}, "told": [*state["told"], 7], "paces": [[*each, 7] for each in state["paces"]]}
    assert Usage.from_json({**later, "slow": [*state["slow"], 7]}) == USED
    earlier = Usage.from_json({name: value for name, value in state.items() if name != "slow"})
    assert (earlier.number, earlier.counted, earlier.blocked) == (USED.number, USED.counted, USED.blocked)
    assert earlier.interval == 0


def test_threads_share_a_quota() -> None:
    """Eight threads take a hundred turns each: no number comes twice, and no two places are closer than the spacing."""
    quota, begun = MemoryQuota(rates("1000/s")), time.monotonic()
    taken: list[int] = []

    def take() -> None:
        taken.extend([quota.turn(60).number for _ in range(100)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 801))
    wait = quota.turn(60).wait
    assert wait > 0.8 - (time.monotonic() - begun) - 0.01
