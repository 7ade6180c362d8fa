"""The plan: which walks follow from a source file, and why; and what a dry run tells."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from airflow_extract_provider.extract.errors import LoginError
from airflow_extract_provider.extract.page import Request
from airflow_extract_provider.extract.planning import dry_run_lines, plan
from airflow_extract_provider.extract.walks.backfill import backfill, beginning
from airflow_extract_provider.testing.hostile import HostileApi, Listing
from tests.extract.looking import FIRST, TOKENS, client, filled, looked, shop
from tests.hazards.kinds import KINDS

GITHUB: Mapping[str, Any] = {
    "path": "/things",
    "records": "data",
    "key": "id",
    "version": "updated_at",
    "order": ["updated_at"],
    "since": {"send": "since", "inclusive": True, "precision": "1s"},
    "pages": {"by": "link_header", "size": {"send": "per_page", "max": 100}},
}


def rows(spec: Mapping[str, Any]) -> dict[str, str]:
    """The plan of one object by the name of its rows; None in the spec leaves a key out."""
    found = {name: value for name, value in spec.items() if value is not None}
    return {line[8:].split()[0]: line[8:].split(None, 1)[1] for line in plan(shop(found))}


def test_links_that_move_are_re_anchored() -> None:
    """All that follows from a filter, an order by the same field and links; and what is not seen."""
    backfill, incremental, deletes = plan(shop(GITHUB))
    assert backfill == (
        "things    backfill     from the beginning by updated_at, "
        "re-anchored (links move while they are read); order checked"
    )
    assert incremental == (
        "          incremental  since the last closed instant less 1 min, by `since`; "
        "ties are closed inside one instant; shown late by 1 min at most"
    )
    assert deletes.split("  -> ") == [
        f"{'          deletes      not seen: no tombstones, no sweep declared':<94}",
        "add `sweep: {every: 7d}`",
    ]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_pages_has_its_reason(name: str) -> None:
    """No two kinds of walk are told alike, and none is left out."""
    told = rows(KINDS[name].described())
    assert {"backfill", "incremental", "deletes"} == set(told)
    words = {
        "page": "overlapping the last one by a record",
        "offset": "overlapping the last one by a record",
        "token": "page tokens",
        "last_key": "after the last key",
        "key": "by greater id",
        "position": "by greater version and key",
        "single": "in one answer",
        "since": "without a second page",
        "next_link": "links",
        "link_header": "links",
    }
    special = {
        "search": "windows of time of 30 results",
        "page alone": "two readings agree",
        "page without size": "page numbers move",
        "page unordered": "no order is promised",
        "link newest": "links that move, until two readings agree",
        "token in disguise": "re-anchored",
        "token updated": "which are believed",
    }
    by = KINDS[name].spec["pages"]["by"]
    assert special.get(name, words[by]) in told["backfill"]


@pytest.mark.parametrize(
    ("change", "row", "words"),
    [
        ({"version": None, "since": None, "order": None}, "incremental", "no `version` tells when a record changed"),
        ({"since": None}, "incremental", "nothing asks for what has changed; changes are not seen"),
        (
            {"since": {"inclusive": True, "send": "s", "field": "seen_at"}, "order": None},
            "incremental",
            "`since` compares seen_at, not the version",
        ),
        ({"since": None, "order": ["-updated_at"]}, "incremental", "newest first, down to the last closed instant"),
        (
            {"version": None, "since": None, "order": None, "sweep": {"every": "6h"}},
            "incremental",
            "sweep finds changes",
        ),
        ({"deleted": "gone"}, "deletes", "by tombstones (`gone`)"),
        ({"sweep": {"every": "7d"}}, "deletes", "by the sweep, confirmed by key; 10 % at most"),
        ({"sweep": {"every": "7d"}, "by_key": None}, "deletes", "by the complete list"),
        (
            {"sweep": {"every": "7d"}, "by_key": None, "since": None, "order": ["-updated_at"]},
            "deletes",
            "which proves none",
        ),
        ({"sweep": {"every": "7d"}}, "rebackfill", "a sweep every 7d"),
        ({"total": "total"}, "backfill", "order and total checked"),
    ],
)
def test_what_follows_and_why_not(change: Mapping[str, Any], row: str, words: str) -> None:
    """Each walk is derived from what is declared; and where it is not there, it says what would be needed."""
    assert words in rows({**TOKENS, **change})[row]


def test_requests_are_told_by_a_look() -> None:
    """Their number, the time at the limit, the part of the longest one; and a sweep that cannot keep its cadence."""
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", total=True)) as api:
        spec = {**TOKENS, "total": "total", "sweep": {"every": "30m"}}
        limits = {"limit": ["2/s", "5/h"]}
        seen = looked(api, spec, limits)
        lines = plan(shop(spec, **limits), {"things": seen})
    assert lines[-2].endswith("  about 10 for 95 records (total from the API), 1 h or more at 2/s, 5/h, 200 % of 5/h")
    assert "its 10 requests take 1 h at `limit`" in lines[-1]


def test_without_a_total_nothing_is_foretold() -> None:
    """It says so."""
    with filled() as api:
        lines = plan(shop(TOKENS), {"things": looked(api, TOKENS)})
    assert lines[-1].endswith("requests     10 records on the first page; how many there are is not told")


# The dry run ----------------------------------------------------------------------------------------------------------


def dry(
    api: HostileApi, spec: Mapping[str, Any], limits: Mapping[str, Any] | None = None, **arguments: Any
) -> list[str]:
    """A dry run of `things`."""
    source = shop(spec, **(limits or {}))
    with client(source, api.url) as asking:
        return dry_run_lines(source, "things", asking, **arguments)


def test_a_dry_run_tells_the_first_request_and_what_follows() -> None:
    """What it would ask, what came, what it takes, what is left of the quota: by one request."""
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", total=True)) as api:
        lines = dry(api, {**TOKENS, "total": "total"}, {"limit": ["2/s", "1000/d"]})
        assert api.count == 1
    assert lines == [
        "shop/things backfill   dry run: nothing was stored, and no cursor has moved",
        "  asks first  GET /things?limit=10",
        "  came        10 records of 95, more follow",
        "  expected    about 10 pages, 10 requests, 4.5 s or more at 2/s, 1000/d, 1 % of 1000/d",
        "  quota       100 % left",
    ]


def test_a_dry_run_of_a_window_and_of_what_has_changed() -> None:
    """What a filter leaves is not what the total counts."""
    since = {**TOKENS["since"], "until": "until"}
    with filled(Listing("token", ("updated_at", "id"), filter="inclusive", size_param="limit", total=True)) as api:
        spec = {**TOKENS, "since": since, "total": "total"}
        short = dry(api, spec, walk="window", since=FIRST, until=FIRST + timedelta(seconds=5))
        long = dry(api, spec, walk="incremental", since=FIRST)
    assert short[0].startswith("shop/things window   dry run")
    assert short[2:4] == ["  came        5 records of 5, there is no more", "  expected    about 1 page, 1 request"]
    assert long[3] == "  expected    not known: no total is told of what the filter leaves"


def test_a_dry_run_goes_on_where_the_walk_stands() -> None:
    """The page behind it is asked for, its token is not shown, and what is left is foretold."""
    spec = {**TOKENS, "total": "total"}
    object = shop(spec).object("things")
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", total=True)) as api:
        steps = backfill(object, beginning(object))
        step = next(steps)
        with client(shop(spec), api.url) as asking:
            for _ in range(8):
                assert isinstance(step.then, Request)
                step = steps.send(asking.fetch(object, step.then))
        lines = dry(api, spec, position=step.position)
        assert api.requests[-1].params["cursor"] not in "".join(lines)
        ended = replace(step.position, complete=True)
        closed = dry(api, spec, position=ended)
        swept = dry(api, spec, walk="rebackfill", position=replace(step.position, swept=True))
        anew = dry(api, spec, walk="rebackfill", position=ended)
        due = dry(api, spec, walk="by_key")
        assert api.count == 10
    assert lines[1:4] == [
        "  asks first  GET /things?cursor=***&limit=10",
        "  came        10 records of 95, more follow",
        "  expected    about 2 pages, 2 requests",
    ]
    assert anew[1] == "  asks first  GET /things?limit=10"
    assert [told[1][14:].split(":")[0] for told in (closed, swept, due)] == ["nobody"] * 3


def test_a_dry_run_of_the_last_page_doubts_nothing() -> None:
    """The total counts what was read before, too."""
    spec = {**TOKENS, "total": "total"}
    object = shop(spec).object("things")
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", total=True), count=15) as api:
        steps = backfill(object, beginning(object))
        request = next(steps).then
        assert isinstance(request, Request)
        with client(shop(spec), api.url) as asking:
            step = steps.send(asking.fetch(object, request))
        lines = dry(api, spec, position=step.position)
    assert lines[2:4] == [
        "  came        5 records of 15, there is no more",
        "  expected    about 1 page, 1 request",
    ]


def test_a_dry_run_tells_of_doubts() -> None:
    """Somebody reads it before the run."""
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", page_max=7)) as api:
        lines = dry(api, TOKENS)
    assert [line for line in lines if line.startswith("  doubtful    the API sends 7 records")]


def test_a_dry_run_that_cannot_begin_is_the_runs_own_error() -> None:
    """By its name."""
    with filled() as api:
        api.fault(1, "401")
        with pytest.raises(LoginError):
            dry(api, TOKENS)
