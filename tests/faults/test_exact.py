"""Whatever kind of fault an API has, a backfill becomes exact, and costs no request that the fault does not explain.

100,000 records on a hundred pages, under mixtures of all kinds; and each kind by itself on ten pages, on a hundred with
EXTRACT_SOAK=1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.testing.hostile import TRANSIENT, Fault, Kind
from tests.faults.stage import Large

SOAK = bool(os.environ.get("EXTRACT_SOAK"))

REAL_TIME: tuple[Kind, ...] = ("stall", "slow")
SIZE = 2 << 20
BOUNDS = Bounds(connect=20.0, read=20.0, total=30.0, size=SIZE)
SHORT = Bounds(connect=20.0, read=3.0, total=3.0, size=SIZE)
"""For the kinds that take real time; still wide enough for a right answer on a busy machine."""


@dataclass(frozen=True)
class Costs:
    """What a kind of fault costs: another request for each. ``at`` are the requests that have it, by their numbers.

    ``half``: another request for two, since what was held back fills up half a page. ``anew``: the walk goes on by the
    filter, at the last instant that it has read; that record comes once more, so that all pages behind it begin a
    record earlier, and there is one page more at the end, however often it happens. ``stops`` are the errors that end
    a run; the next one goes on.
    """

    at: tuple[int | str, ...] = (1, 2, 5, 6, "last")
    half: bool = False
    anew: bool = False
    stops: tuple[str, ...] = ()

    def extra(self, faults: int) -> int:
        """The requests beyond the minimum."""
        return (-(-faults // 2) if self.half else faults) + self.anew


REFUSED_TOKEN = Costs(at=(1, 3, 6, "last"), anew=True, stops=("RequestRefusedError",))
LYING = Costs(at=(3, 6, "last but one"), anew=True)
COSTS: Mapping[Kind, Costs] = {
    **dict.fromkeys(TRANSIENT, Costs()),
    **dict.fromkeys(REAL_TIME, Costs(at=(5,))),
    "401": Costs(stops=("LoginError",) * 5),
    "403": Costs(stops=("LoginError",) * 5),
    "404": REFUSED_TOKEN,
    "410": REFUSED_TOKEN,
    "422": REFUSED_TOKEN,
    "redirect": Costs(stops=("RequestRefusedError",) * 5),
    "huge": Costs(stops=("AnswerTooLargeError",) * 5),
    "expire": Costs(at=(3, 6, "last"), anew=True),
    "repeat_token": LYING,
    "repeat_page": LYING,
    "misorder": Costs(stops=("UnorderedStreamError",) * 5),
    "empty_page": Costs(),
    "short_page": Costs(at=(1, 2, 5), half=True),
}


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> Large:
    """The object for one kind at a time."""
    found: Large = request.getfixturevalue("hundred_thousand" if SOAK else "ten_thousand")
    return found


def test_every_kind_has_its_costs() -> None:
    """No kind of fault is left out."""
    assert set(COSTS) == set(get_args(Kind))


@pytest.mark.parametrize("kind", COSTS)
def test_a_kind_of_fault(kind: Kind, alone: Large, pauses: list[float]) -> None:
    """The copy is exact, and each request beyond the minimum is accounted for; so is each run that stops."""
    costs = COSTS[kind]
    # The last page's request comes after those that the faults before it have cost.
    last = {"last": alone.pages + len(costs.at) - 1, "last but one": alone.pages + len(costs.at) - 2}
    numbers = [last[number] if isinstance(number, str) else number for number in costs.at]
    faults = {number: Fault(kind, seconds=60, size=4 * SIZE) for number in numbers}
    outcome = alone.backfill(faults, SHORT if kind in REAL_TIME else BOUNDS)
    print(f"{outcome.requests} requests for {alone.pages} pages, {len(numbers)} faults, {outcome.stopped}")
    assert outcome.faulted == {kind: len(numbers)}
    assert outcome.names == list(costs.stops)
    assert outcome.requests - alone.pages == costs.extra(len(numbers))
    assert outcome.sent == outcome.requests


def test_a_limit_in_the_guise_of_a_refusal(alone: Large, pauses: list[float]) -> None:
    """A 403 that says when to come back is no matter of the login: it is asked again."""
    outcome = alone.backfill({number: Fault("403", retry_after=1) for number in (1, 2, 7)}, BOUNDS)
    assert outcome.stops == []
    assert outcome.requests == alone.pages + 3


@pytest.mark.parametrize("kinds", ["what is over when one asks again", "all kinds"])
def test_a_mixture(kinds: str, hundred_thousand: Large, pauses: list[float], measured: Callable[[str], None]) -> None:
    """Every fifth request, by the seed: 100,000 records are exact. Where all faults are over when one asks again, no
    run stops, and each fault costs its own request and no other; of the rest none costs more than one."""
    over = kinds != "all kinds"
    drawn: list[Any] = [kind for kind in (TRANSIENT if over else COSTS) if kind not in REAL_TIME]
    api = hundred_thousand.api
    api.faults(0.2, [Fault(kind, size=4 * SIZE) for kind in drawn])
    try:
        # The first request only fails: to repeat the page before it would be to repeat another walk's last page, and
        # nothing would tell that from a list of one page.
        outcome = hundred_thousand.backfill({1: "503"}, BOUNDS)
    finally:
        api.faults(0)
    faults, extra = outcome.faulted.total(), outcome.requests - hundred_thousand.pages
    measured(f"Faults: {kinds}: {faults} in {outcome.requests} requests, {extra} beyond the minimum, {outcome.stopped}")
    print(dict(outcome.faulted))
    assert faults >= 0.1 * outcome.requests
    assert len(outcome.faulted) >= 8
    assert outcome.sent == outcome.requests
    if over:
        assert outcome.stops == []
        assert extra == faults
    else:
        assert set(outcome.names) <= {name for costs in COSTS.values() for name in costs.stops}
        # A token that has expired may be asked for once more by the next run, if this one stops before another page.
        met_again = min(outcome.faulted["expire"], len(outcome.stops))
        assert 0.5 * faults <= extra <= faults + 1 + met_again
