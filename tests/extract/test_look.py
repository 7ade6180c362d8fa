"""A look: one request, and what its answer shows, with the walk's own errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_extract_provider.extract import errors
from airflow_extract_provider.extract.costs import lasting, requests_for, seconds_at, share_of
from airflow_extract_provider.extract.look import look
from airflow_extract_provider.extract.rates import Limits, Rate
from airflow_extract_provider.testing.hostile import Listing
from airflow_extract_provider.testing.postgres import free_port
from tests.extract.looking import FIRST, TOKENS, client, doubts, filled, looked, shop, walked
from tests.hazards.kinds import KINDS
from tests.loopback import Fault, LoopbackApi

SECRET = "marked-secret-4711"
NOW = datetime(2026, 2, 1, 0, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_looked_at_by_its_walks_first_request(name: str, measured: Callable[[str], None]) -> None:
    """One request, no doubt; and what the whole walk is said to cost is about what it costs."""
    kind = KINDS[name]
    spec = kind.described()
    # Windows are halved from 1970 on: to find records of one minute would take many halvings.
    step = timedelta(days=200 if name == "search" else 1)
    with filled(kind.served(), first=FIRST - 95 * step, step=step) as api:
        seen = looked(api, spec)
        assert (seen.sent, api.count) == (1, 1)
        assert doubts(seen) == {}
        assert seen.records == (95 if name == "single" else 10)
        real = walked(api, spec)
        first, again = api.requests[:2]
        assert (first.method, first.path, first.params, first.body) == (
            again.method,
            again.path,
            again.params,
            again.body,
        )
    told = requests_for(shop(spec).object("things"), 95, seen.records)
    measured(f"requests of a backfill of 95 records, {name}: {told} foretold, {real} sent")
    assert 0.6 * real <= told <= 1.6 * real


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"records": "items"}, errors.RecordsPathError, "`items` is not in the answer"),
        ({"key": "uuid", "order": ["updated_at"], "by_key": None}, errors.BadRecordError, "uuid"),
        ({"path": "/nothing"}, errors.RequestRefusedError, "status 404"),
        ({"total": "count"}, errors.WrongAnswerError, "`count` is missing"),
        ({"timestamps": {"format": "unix"}}, errors.BadRecordError, "updated_at"),
        (
            {"pages": {**TOKENS["pages"], "take": "next_page"}},
            errors.WrongAnswerError,
            "`next_page` is absent",
        ),
    ],
)
def test_what_the_walk_stops_with_a_look_stops_with(
    change: Mapping[str, Any], kind: type[errors.ExtractError], words: str
) -> None:
    """A wrong name in the source file is the walk's own error, with the place, before anything was stored."""
    spec = {name: value for name, value in {**TOKENS, **change}.items() if value is not None}
    with filled() as api, pytest.raises(kind) as caught:
        looked(api, spec)
    assert words in caught.value.what
    assert (caught.value.source, caught.value.object, caught.value.walk) == ("shop", "things", "backfill")
    assert caught.value.kept == "everything; a look stores nothing."


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("401", errors.LoginError),
        ("403", errors.LoginError),
        ("503", errors.ApiUnavailableError),
        ("html", errors.WrongAnswerError),
        ("misorder", errors.UnorderedStreamError),
        ("redirect", errors.RequestRefusedError),
    ],
)
def test_what_the_api_does_is_named(fault: Any, kind: type[errors.ExtractError]) -> None:
    """Each by the error that a run would stop with."""
    with filled() as api:
        api.fault(1, fault)
        with pytest.raises(kind):
            looked(api, TOKENS)


def test_an_api_that_is_not_there() -> None:
    """Nobody listens on that port."""
    source = shop(TOKENS)
    with client(source, f"http://127.0.0.1:{free_port()}") as asking, pytest.raises(errors.ApiUnavailableError):
        look(source, "things", asking)


def test_what_is_as_it_says() -> None:
    """In words, without a value of a record."""
    with filled() as api:
        api.bulk_import(5, at=NOW - timedelta(days=1))
        seen = looked(api, TOKENS)
    assert [each.what for each in seen.findings] == [
        "10 records",
        "key and version found",
        "ascending by updated_at, then id",
        "5 share one instant at most",
    ]
    assert (seen.more, seen.complete, seen.total, seen.requests, seen.pages) == (True, False, None, None, None)
    assert seen.request == "GET /things?limit=10"


def test_a_short_list_is_complete() -> None:
    """One page, one request, and nothing to doubt."""
    with filled(count=3) as api:
        seen = looked(api, TOKENS, {"limit": "1/s"})
    assert (seen.complete, seen.pages, seen.requests, seen.seconds) == (True, 1, 1, 0.0)
    assert doubts(seen) == {}


def test_a_page_that_is_capped() -> None:
    """The server sends fewer than were asked for, though there are more."""
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", page_max=7)) as api:
        seen = looked(api, TOKENS)
    assert doubts(seen)["size"].startswith("the API sends 7 records where 10 were asked for, though more follow -> set")


def test_a_page_size_that_is_ignored() -> None:
    """The server sends more."""
    with filled() as api:
        pages = {**TOKENS["pages"], "size": {"send": "page_length", "max": 10}}
        seen = looked(api, {**TOKENS, "pages": pages})
    assert "20 records where 10 were asked for" in doubts(seen)["size"]


def test_a_version_that_no_record_has() -> None:
    """A misspelt name: no record lacks it in a way that would stop the walk."""
    spec = {**TOKENS, "version": "updated", "order": None, "since": None}
    with filled() as api:
        seen = looked(api, {name: value for name, value in spec.items() if value is not None})
    assert doubts(seen) == {"version": "none has the version `updated` -> correct `version`, or leave it out"}


def test_some_records_without_a_version() -> None:
    """Pages that are taken up at instants may leave them out."""
    listing = Listing("link_header", ("updated_at",), filter="inclusive", nulls="first")
    spec = {**TOKENS, "order": ["updated_at"], "pages": {"by": "link_header", "size": {"send": "per_page", "max": 10}}}
    with filled(listing) as api:
        api.insert(3, undated=True)
        seen = looked(api, spec)
    assert doubts(seen)["version"].startswith("3 of 10 have no version `updated_at` -> ")
    assert "may leave them out" in doubts(seen)["version"]


def test_an_order_by_a_field_that_no_record_has() -> None:
    """The walk's check passes over records without it, so it would check nothing."""
    with filled() as api:
        seen = looked(api, {**TOKENS, "order": ["created"], "since": None} | {"since": TOKENS["since"]})
    assert doubts(seen)["order"].startswith("none has `created`")


def test_one_instant_fills_the_page_and_there_is_no_second() -> None:
    """The walk would stop behind it."""
    kind = KINDS["since only"]
    with filled(kind.served(), count=0) as api:
        api.bulk_import(30, at=NOW)
        seen = looked(api, kind.described())
    assert "expect TiedPageError" in doubts(seen)["ties"]


def test_an_empty_list_shows_nothing() -> None:
    """Neither key nor version was seen: somebody should know."""
    with filled(count=0) as api:
        seen = looked(api, TOKENS)
    assert set(doubts(seen)) == {"empty"}
    assert seen.complete


@pytest.mark.parametrize(
    ("paging", "pages", "words"),
    [
        (
            "header_token",
            {"by": "token", "header": "Next-Token", "send": "cursor"},
            "is pages.header (Next-Token) right?",
        ),
        ("token", {"by": "token", "take": "nxt", "last": "absent", "send": "cursor"}, "is pages.take (nxt) right?"),
        ("token", {"by": "link_header"}, "does the API send a `Link` header?"),
    ],
)
@pytest.mark.parametrize("size", [{"send": "limit", "max": 10}, None])
def test_a_full_page_that_tells_of_no_next_one(
    paging: Any, pages: Mapping[str, Any], words: str, size: Mapping[str, Any] | None
) -> None:
    """A misspelt place of the token reads as the end: one page would be copied, and no error told."""
    spec = {**TOKENS, "pages": {**pages, **({"size": size} if size else {})}, "since": None}
    with filled(Listing(paging, ("updated_at", "id"), size_param="limit")) as api:
        seen = looked(api, {name: value for name, value in spec.items() if value is not None})
    assert seen.complete
    assert words in doubts(seen)["end"]


def test_a_total_that_tells_of_more() -> None:
    """No page behind this one, but more records."""
    pages = {**TOKENS["pages"], "take": "nxt", "last": "absent"}
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", total=True)) as api:
        seen = looked(api, {**TOKENS, "pages": pages, "total": "total"})
    assert "95 records, but of no page behind these 10" in doubts(seen)["end"]


def test_pages_and_time_by_the_total() -> None:
    """95 records are ten pages of ten, and 10 requests at 2/s take 4.5 s."""
    with filled(Listing("token", ("updated_at", "id"), size_param="limit", total=True)) as api:
        seen = looked(api, {**TOKENS, "total": "total"}, {"limit": ["2/s", "1000/d"]})
    assert (seen.total, seen.pages, seen.requests, seen.seconds) == (95, 10, 10, 4.5)
    assert seen.left == pytest.approx(0.999)


def test_records_that_go_to_the_quarantine_are_counted() -> None:
    """They would not stop the walk."""
    with LoopbackApi([b'{"id": 1}', b'{"no": 2}']) as api:
        source = shop(
            {
                "path": "/tokens",
                "records": "data",
                "key": "id",
                "on_bad_record": "quarantine",
                "pages": {"by": "token", "take": "next_cursor", "send": "cursor"},
            }
        )
        with client(source, api.url) as asking:
            seen = look(source, "things", asking)
    assert doubts(seen)["bad"].startswith("1 of 2 cannot be stored")


# Other walks, other bounds --------------------------------------------------------------------------------------------


def test_the_incremental_walk_asks_from_an_instant_on() -> None:
    """As given; without one, from where a backfill that ended now would hand over."""
    with filled() as api:
        seen = looked(api, TOKENS, walk="incremental", since=NOW)
        assert seen.request == "GET /things?limit=10&since=2026-02-01T00:01:00.000000Z"
        assert (seen.records, seen.walk) == (10, "incremental")
        looked(api, TOKENS, walk="incremental")
    asked = datetime.fromisoformat(api.requests[1].params["since"])
    assert timedelta(0) < datetime.now(timezone.utc) - asked - timedelta(minutes=2) < timedelta(minutes=1)


def test_a_window_asks_between_two_instants() -> None:
    """Both bounds are sent, where the API takes both."""
    since = {**TOKENS["since"], "until": "until"}
    with filled() as api:
        seen = looked(api, {**TOKENS, "since": since}, walk="window", since=NOW, until=NOW + timedelta(seconds=3))
    assert (seen.records, seen.complete) == (3, True)
    assert seen.request.endswith("since=2026-02-01T00:01:00.000000Z&until=2026-02-01T00:01:03.000000Z")


def test_a_window_without_an_end_is_refused() -> None:
    """Before anything is asked."""
    with filled() as api:
        with pytest.raises(errors.WindowInvalidError):
            looked(api, TOKENS, walk="window", since=NOW)
        assert api.count == 0


def test_a_walk_that_the_api_cannot_be_asked_for() -> None:
    """The error is the walk's."""
    spec = {name: value for name, value in TOKENS.items() if name not in ("since", "version", "order")}
    with filled() as api, pytest.raises(errors.SourceError, match="what has changed"):
        looked(api, spec, walk="incremental")


def test_a_sweep_begins_like_a_backfill() -> None:
    """One request, and the store is not asked."""
    with filled() as api:
        assert looked(api, TOKENS, walk="rebackfill").request == looked(api, TOKENS).request
        assert api.count == 2


# Looked at twice ------------------------------------------------------------------------------------------------------


def test_a_deep_look_asks_twice_more() -> None:
    """By `since`, and by key."""
    with filled() as api:
        seen = looked(api, TOKENS, deep=True)
        assert [asked.path for asked in api.requests] == ["/things", "/things", "/things/1"]
    assert seen.sent == 3
    assert [each.what for each in seen.findings][-2:] == ["`since` filters", "by key the same record"]
    assert doubts(seen) == {}


@pytest.mark.parametrize("order", [("updated_at", "id"), ("-updated_at",)])
def test_a_filter_that_is_ignored(order: tuple[str, ...]) -> None:
    """The API does not know the parameter, and sends what it always sends."""
    spec = {**TOKENS, "order": list(order)}
    with filled(Listing("token", order, size_param="limit")) as api:
        seen = looked(api, spec, deep=True)
    assert "the API ignores `since`: 9 of 10 records are older" in doubts(seen)["since"]


def test_a_filter_that_leaves_out_its_own_instant() -> None:
    """Declared inclusive, it is none: records of one instant would be lost between two runs."""
    with filled(Listing("token", ("updated_at", "id"), filter="strict", size_param="limit"), count=10) as api:
        seen = looked(api, TOKENS, deep=True)
    assert "leaves that record out -> check since.inclusive" in doubts(seen)["since"]


@pytest.mark.parametrize(("listing", "inclusive"), [("inclusive", True), ("strict", False)])
def test_a_filter_as_declared(listing: Any, inclusive: bool) -> None:
    """Also one with `>`, which is asked from one unit earlier."""
    spec = {**TOKENS, "since": {**TOKENS["since"], "inclusive": inclusive}}
    with filled(Listing("token", ("updated_at", "id"), filter=listing, size_param="limit")) as api:
        assert doubts(looked(api, spec, deep=True)) == {}


def test_a_strict_filter_may_bring_some_of_the_unit_before() -> None:
    """It is asked from one unit earlier, and what is within that is as old as was asked for."""
    spec = {**TOKENS, "since": {**TOKENS["since"], "inclusive": False, "precision": "1s"}}
    listing = Listing("token", ("updated_at", "id"), filter="strict", size_param="limit")
    with filled(listing, step=timedelta(milliseconds=250)) as api:
        seen = looked(api, spec, deep=True)
    assert seen.findings[-2].what == "`since` filters"


def test_a_record_that_goes_between_two_requests() -> None:
    """Another one is asked for by its key, before the path is called wrong."""
    with filled() as api:
        api.before(3, lambda: api.delete(1))
        seen = looked(api, TOKENS, deep=True)
    assert [asked.path for asked in api.requests[2:]] == ["/things/1", "/things/10"]
    assert seen.findings[-1].what == "by key the same record"


def test_a_wrong_path_by_key_is_an_error() -> None:
    """A sweep would take its 404 for the proof that a record is gone."""
    with filled() as api, pytest.raises(errors.RequestRefusedError, match="status 404") as caught:
        looked(api, {**TOKENS, "by_key": {"path": "/thing/{{ key }}"}}, deep=True)
    assert "take living records for deleted" in caught.value.todo


def test_another_record_by_key_is_an_error() -> None:
    """It is not the one that was asked for."""
    with filled() as api, pytest.raises(errors.WrongAnswerError):
        looked(api, {**TOKENS, "by_key": {"path": "/things/{{ key }}1"}}, deep=True)


@pytest.mark.parametrize("private", [False, True])
def test_a_record_that_differs_by_key(private: bool) -> None:
    """Lists often show less: each reading by key would be a change. Names of private fields are not told."""
    with LoopbackApi([b'{"id": 1, "name": "x"}']) as api:
        api.fault = lambda number, asked: Fault(body=b'{"id": 1, "name": "x", "city": "y"}') if number == 2 else None
        source = shop(
            {
                "path": "/tokens",
                "records": "data",
                "key": "id",
                "private": private,
                "by_key": {"path": "/tokens/{{ key }}"},
                "pages": {"by": "token", "take": "next_cursor", "send": "cursor"},
            }
        )
        with client(source, api.url) as asking:
            seen = look(source, "things", asking, deep=True)
    assert ("in city" in doubts(seen)["by_key"]) is not private
    assert "differs" in doubts(seen)["by_key"]


# What is shown --------------------------------------------------------------------------------------------------------


def test_no_login_and_no_private_key_is_shown() -> None:
    """Not in the request, though somebody has written it into the file under a name that tells; nor in an error."""
    params = {"signature": SECRET, "team": "blue"}
    with filled() as api:
        seen = looked(api, {**TOKENS, "params": params})
        assert seen.request == "GET /things?signature=***&team=blue&limit=10"
        assert SECRET not in repr(seen)
        api.fault(2, "misorder")
        with pytest.raises(errors.UnorderedStreamError) as caught:
            looked(api, {**TOKENS, "private": True})
    assert caught.value.key is None
    assert caught.value.position is None


def test_a_body_is_shown_on_one_line_unless_private() -> None:
    """It may be long, and may name people."""
    kind = KINDS["search"]
    with filled(kind.served()) as api:
        assert looked(api, kind.described()).request.startswith('POST /things   {"since": "1970-01-01T00:00:00Z"')
        assert "(a body of" in looked(api, {**kind.described(), "private": True}).request


# What it costs --------------------------------------------------------------------------------------------------------


def _rates(*texts: str) -> Limits:
    return tuple(map(Rate.parsed, texts))


@pytest.mark.parametrize(
    ("limit", "requests", "seconds"),
    [
        (["20/s"], 41, 2.0),
        (["100/10s"], 11, 1.0),
        (["1000/h"], 1000, 0.0),
        (["1000/h"], 1001, 3600.0),
        (["10/s", "100/d"], 301, 3 * 86400.0),
        (["1/s"], 0, 0.0),
    ],
)
def test_the_time_at_a_limit(limit: list[str], requests: int, seconds: float) -> None:
    """Short windows are spaced evenly, long ones used up at once; the strictest counts."""
    assert seconds_at(_rates(*limit), requests) == pytest.approx(seconds)


def test_to_see_the_end_takes_requests_too() -> None:
    """Three of pages that overlap, unless the API tells that there is no more."""
    pages = {"by": "offset", "send": "offset", "size": {"send": "limit", "max": 10}}
    spec = {**TOKENS, "pages": pages}
    told = {**TOKENS, "pages": {**pages, "more": "has_more"}}
    assert [requests_for(shop(each).object("things"), 91, 10) for each in (spec, told)] == [14, 11]


def test_the_share_of_the_longest_rate() -> None:
    """Of a rate over a second none is told."""
    limit = _rates("20/s", "5000/h")
    assert share_of(limit, 150) == (Rate(5000, timedelta(hours=1)), 0.03)
    assert share_of(limit[:1], 150) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (4.5, "4.5 s"), (60.0, "1 min"), (9000.0, "2.5 h"), (259200.0, "3 d")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    """The largest unit that fits."""
    assert lasting(seconds) == text
