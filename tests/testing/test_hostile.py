"""HostileApi: each kind of paging gives all on a quiet table, and each hostile habit really does its harm."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from airflow_extract_provider.testing.hostile import TRANSIENT, Fault, HostileApi, Listing
from airflow_extract_provider.testing.hostile_limits import SlidingWindow

Json: TypeAlias = dict[str, Any]
Walk: TypeAlias = Callable[[HostileApi], Iterator[Json]]
SECOND = timedelta(seconds=1)
TEN = datetime(2026, 3, 1, 10, tzinfo=timezone.utc)
BY_TIME = ("updated_at", "id")


def ask(api: HostileApi, path: str = "/things", **params: object) -> requests.Response:
    """One GET."""
    return requests.get(api.url + path, params={k: str(v) for k, v in params.items()}, timeout=10)


def rows(api: HostileApi, path: str = "/things", **params: object) -> list[Json]:
    """The records of one page."""
    answer = ask(api, path, **params)
    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()["data"]
    return found


def ids(records: list[Json]) -> list[Any]:
    """Their ids."""
    return [record["id"] for record in records]


def find(api: HostileApi, **body: object) -> requests.Response:
    """One search."""
    return requests.post(api.url + "/things", json=body, timeout=10)


# -- naive readers, one for each kind -------------------------------------------------------------------------------


def by_page(api: HostileApi) -> Iterator[Json]:
    number = 1
    while page := rows(api, page=number, per_page=10):
        yield from page
        number += 1


def by_offset(api: HostileApi) -> Iterator[Json]:
    offset = 0
    while page := rows(api, offset=offset, limit=10):
        yield from page
        offset += len(page)


def by_token(api: HostileApi) -> Iterator[Json]:
    cursor: Json = {}
    while True:
        body = ask(api, limit=10, **cursor).json()
        yield from body["data"]
        if body["next"] is None:
            return
        cursor = {"cursor": body["next"]}


def by_header(api: HostileApi) -> Iterator[Json]:
    cursor: Json = {}
    while True:
        answer = ask(api, limit=10, **cursor)
        yield from answer.json()["data"]
        if "Next-Page" not in answer.headers:
            return
        cursor = {"cursor": answer.headers["Next-Page"]}


def by_link(api: HostileApi) -> Iterator[Json]:
    url = api.url + "/things?limit=10&per_page=10"
    while url:
        body = requests.get(url, timeout=10).json()
        yield from body["data"]
        url = body["next"]


def by_link_header(api: HostileApi) -> Iterator[Json]:
    answer = ask(api, per_page=10)
    yield from answer.json()["data"]
    while "next" in answer.links:
        answer = requests.get(answer.links["next"]["url"], timeout=10)
        yield from answer.json()["data"]


def by_last_key(api: HostileApi) -> Iterator[Json]:
    page = rows(api, page_size=10)
    while page:
        yield from page
        page = rows(api, page_size=10, starting_after=page[-1]["id"])


def by_key_filter(api: HostileApi) -> Iterator[Json]:
    page = rows(api, limit=10)
    while page:
        yield from page
        page = rows(api, limit=10, id_gt=page[-1]["id"])


def by_keyset(api: HostileApi) -> Iterator[Json]:
    page = rows(api, limit=10)
    while page:
        yield from page
        page = rows(api, limit=10, after_updated=page[-1]["updated_at"], after_id=page[-1]["id"])


def by_search(api: HostileApi) -> Iterator[Json]:
    after: str | None = "0"
    while after:
        body = find(api, limit=10, after=after).json()
        yield from body["results"]
        after = body.get("paging", {}).get("next", {}).get("after")


def by_since(api: HostileApi) -> Iterator[Json]:
    page = rows(api, limit=10)
    while page:
        yield from page
        page = rows(api, limit=10, since=page[-1]["updated_at"])


def at_once(api: HostileApi) -> Iterator[Json]:
    yield from rows(api)


KINDS: dict[str, tuple[Listing, Walk]] = {
    "page": (Listing("page"), by_page),
    "page, ties": (Listing("page", ("kind",)), by_page),
    "offset": (Listing("offset", ("-created_at", "id")), by_offset),
    "token": (Listing("token", BY_TIME), by_token),
    "token, arbitrary": (Listing("token"), by_token),
    "token, descending": (Listing("token", ("-kind", "-updated_at", "id")), by_token),
    "token, position": (Listing("token", BY_TIME, token_kind="offset"), by_token),
    "token, blind": (Listing("token", BY_TIME, looks_ahead=False), by_token),
    "header_token": (Listing("header_token", ("-created_at",)), by_header),
    "next_link": (Listing("next_link", ("id",)), by_link),
    "next_link, pages": (Listing("next_link", ("id",), token_kind="offset"), by_link),
    "link_header": (Listing("link_header", ("id",)), by_link_header),
    "last_key": (Listing("last_key", ("-created_at",)), by_last_key),
    "key_filter": (Listing("key_filter"), by_key_filter),
    "keyset": (Listing("keyset", precision=SECOND), by_keyset),
    "keyset, unix": (Listing("keyset", unit="unix"), by_keyset),
    "keyset, naive": (Listing("keyset", unit="naive", zone="Asia/Kolkata"), by_keyset),
    "search": (Listing("search"), by_search),
    "since": (Listing("since", ("updated_at",), filter="strict"), by_since),
    "single": (Listing("single"), at_once),
}


@pytest.mark.parametrize("keys", ["int", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quiet_table_is_read_whole(kind: str, keys: Any) -> None:
    """A naive reader gets every record, as the truth has it, and none twice."""
    listing, walk = KINDS[kind]
    with HostileApi(3, {"/things": listing}, keys=keys) as api:
        for number in range(40):
            api.insert(kind=number % 3)
        api.update(*api.ids[5:9])
        read = list(walk(api))
        assert {str(record["id"]): record for record in read} == api.live()
        assert len(read) == 40


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "since"])
def test_an_empty_table_is_read_whole(kind: str) -> None:
    """Nothing is nothing, of whatever kind."""
    listing, walk = KINDS[kind]
    with HostileApi(listings={"/things": listing}) as api:
        assert list(walk(api)) == []


# -- a table that moves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listing", "walk"),
    [
        (Listing("page", ("id",)), by_page),
        (Listing("offset", ("id",)), by_offset),
        (Listing("token", ("id",), token_kind="offset"), by_token),
        (Listing("next_link", ("id",), token_kind="offset"), by_link),
        (Listing("link_header", ("id",)), by_link_header),
        (Listing("search", ("id",)), by_search),
    ],
    ids=lambda value: getattr(value, "paging", ""),
)
def test_a_deletion_moves_counted_places(listing: Listing, walk: Walk) -> None:
    """Who counts pages or rows loses the first record behind the page, when one before it goes."""
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(30)
        api.before(2, lambda: api.delete(3))
        assert set(api.live()) - {str(record["id"]) for record in walk(api)} == {"11"}


@pytest.mark.parametrize(
    ("listing", "walk"),
    [
        (Listing("token", ("id",)), by_token),
        (Listing("next_link", ("id",)), by_link),
        (Listing("key_filter"), by_key_filter),
        (Listing("keyset"), by_keyset),
        (Listing("last_key", ("id",)), by_last_key),
    ],
    ids=lambda value: getattr(value, "paging", ""),
)
def test_a_deletion_does_not_move_places_in_the_order(listing: Listing, walk: Walk) -> None:
    """Who holds a place in the order loses nothing."""
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(30)
        api.before(2, lambda: api.delete(3))
        assert set(api.live()) <= {str(record["id"]) for record in walk(api)}


def test_a_late_commit_is_lost_to_polling() -> None:
    """A record that is seen late has an old timestamp: `since` the newest passes it by, for ever."""
    with HostileApi(listings={"/things": Listing("since", BY_TIME, filter="inclusive")}) as api:
        api.insert(3)
        late = api.begin()
        late.update(2)
        assert late.insert() == [4]
        api.clock.advance(5)
        api.update(3)
        assert api.live()["2"]["value"] == 2
        newest = rows(api)[-1]["updated_at"]
        late.commit()
        assert api.history()[-1].committed - (api.history()[-1].updated_at or TEN) > timedelta(seconds=5)
        assert set(api.live()) == {"1", "2", "3", "4"}
        assert ids(rows(api, since=newest)) == [3]


def test_a_late_commit_is_lost_to_ascending_ids() -> None:
    """A number is given when a row is inserted, not when it is seen."""
    with HostileApi(listings={"/things": Listing("key_filter")}) as api:
        late = api.begin()
        late.insert()
        api.insert(10)
        api.before(2, late.commit)
        assert 1 not in ids(list(by_key_filter(api)))
        assert "1" in api.live()


def test_a_transaction_holds_what_it_wrote() -> None:
    """Nobody else writes its records, rolled back it leaves nothing but a gap, ended it writes no more."""
    api = HostileApi()
    api.insert(2)
    with api.begin() as first:
        first.update(1, name="mine")
        with pytest.raises(ValueError, match="record 1 is held"):
            api.update(1)
    assert api.live()["1"]["name"] == "mine"
    second = api.begin()
    second.insert()
    second.rollback()
    with pytest.raises(ValueError, match="has ended"):
        second.delete(1)
    assert api.insert() == [4]
    api.close()


def test_an_update_without_a_timestamp() -> None:
    """It changes the value and nothing a filter sees; a deletion ends the history."""
    with HostileApi(listings={"/things": Listing("since", filter="strict")}) as api:
        api.insert()
        before = api.live()["1"]
        api.update(1, touch=False)
        after = api.live()["1"]
        assert after != before
        assert after["updated_at"] == before["updated_at"]
        assert rows(api, since=before["updated_at"]) == []
        api.delete(1)
        assert [(version.number, version.deleted) for version in api.history()] == [(1, False), (2, False), (3, True)]
        assert [api.shown(version) for version in api.history()][:2] == [before, after]


def test_an_arbitrary_order_may_move() -> None:
    """Without an order records stand anywhere but firmly; with `moves` an update gives another place."""
    listings = {"/things": Listing("page"), "/moving": Listing("page", moves=True)}
    with HostileApi(listings=listings) as api:
        api.insert(20)
        still, moving = ids(rows(api)), ids(rows(api, "/moving"))
        assert still not in (sorted(still), sorted(still, reverse=True))
        api.update(*range(1, 11))
        assert ids(rows(api)) == still
        assert ids(rows(api, "/moving")) != moving
        assert [i for i in ids(rows(api, "/moving")) if i > 10] == [i for i in moving if i > 10]


def test_ties_larger_than_a_page_stop_polling() -> None:
    """Of 25 records of one instant, `since` and a limit of 10 never give more than 10."""
    with HostileApi(listings={"/things": Listing("since", BY_TIME, filter="inclusive")}) as api:
        api.bulk_import(25, TEN)
        first = rows(api, limit=10)
        assert {record["updated_at"] for record in first} == {"2026-03-01T10:00:00.000000Z"}
        assert rows(api, limit=10, since=first[-1]["updated_at"]) == first


def test_shuffled_ties_lose_and_repeat() -> None:
    """Pages of records that are equal in the order overlap, though nothing changed."""
    with HostileApi(listings={"/things": Listing("page", ("updated_at",), ties="shuffled")}) as api:
        api.bulk_import(30, TEN)
        read = ids(list(by_page(api)))
        assert len(read) == 30
        assert len(set(read)) < 30


# -- filters, units, precision --------------------------------------------------------------------------------------


def test_a_strict_filter_hides_the_second_update_of_a_second() -> None:
    """At whole seconds, what changes after the read in the same second is hidden; inclusive shows it."""
    listings = {
        "/strict": Listing("since", BY_TIME, filter="strict", precision=SECOND),
        "/inclusive": Listing("since", BY_TIME, filter="inclusive", precision=SECOND),
        "/fine": Listing("since", BY_TIME, filter="strict", precision=SECOND, filter_precision=timedelta.resolution),
    }
    with HostileApi(listings=listings) as api:
        api.insert(2)
        newest = rows(api, "/strict")[-1]["updated_at"]
        assert newest == "2026-03-01T10:00:00Z"
        api.update(1)
        assert rows(api, "/strict", since=newest) == []
        assert ids(rows(api, "/inclusive", since=newest)) == [2, 1]
        # What is compared finer than it is shown comes again and again.
        assert ids(rows(api, "/fine", since=newest)) == [2, 1]


@pytest.mark.parametrize(
    ("listing", "shown"),
    [
        (Listing("single"), "2026-03-01T09:59:59.987654Z"),
        (Listing("single", precision=timedelta(milliseconds=1)), "2026-03-01T09:59:59.987Z"),
        (Listing("single", precision=SECOND), "2026-03-01T09:59:59Z"),
        (Listing("single", precision=timedelta(minutes=1)), "2026-03-01T09:59:00Z"),
        (Listing("single", zone="Asia/Kolkata", precision=SECOND), "2026-03-01T15:29:59+05:30"),
        (Listing("single", unit="unix"), 1772359199),
        (Listing("single", unit="unix_ms"), 1772359199987),
        (Listing("single", unit="naive", precision=SECOND), "2026-03-01 09:59:59"),
        (Listing("single", unit="naive", zone="America/New_York", precision=SECOND), "2026-03-01 04:59:59"),
    ],
)
def test_instants_are_cut_and_written_as_told(listing: Listing, shown: object) -> None:
    """Unit, zone and precision."""
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(at=TEN - timedelta(microseconds=12346))
        assert rows(api)[0]["updated_at"] == shown


@pytest.mark.parametrize("unit", ["rfc3339", "unix", "unix_ms", "naive"])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_filter_takes_from_since_to_before_until(unit: Any, zone: str) -> None:
    """In each unit: inclusive takes `since` itself, strict does not, and `until` is never taken."""
    listings = {
        "/inclusive": Listing("single", filter="inclusive", unit=unit, zone=zone, precision=SECOND),
        "/strict": Listing("single", filter="strict", unit=unit, zone=zone, precision=SECOND),
        "/deaf": Listing("single"),
    }
    with HostileApi(listings=listings) as api:
        for number in range(4):
            api.insert(at=TEN + number * SECOND)
        api.insert(undated=True)
        at = [api.live()[str(number)]["updated_at"] for number in (1, 2, 3, 4)]
        assert sorted(ids(rows(api, "/inclusive", since=at[1], until=at[3]))) == [2, 3]
        assert sorted(ids(rows(api, "/strict", since=at[1], until=at[3]))) == [3]
        assert sorted(ids(rows(api, "/inclusive", until=at[1]))) == [1]
        assert len(rows(api, "/strict")) == 5
        assert len(rows(api, "/deaf", since=at[1])) == 5
        assert ask(api, "/strict", since="yesterday").status_code == 400


@pytest.mark.parametrize("listing", [Listing("page", ("-updated_at",), "inclusive"), Listing("page", filter="strict")])
def test_a_filter_gives_the_same_whatever_was_asked_before(listing: Listing) -> None:
    """What a server remembers of one answer does no harm to the next: not its filter, not what was written since."""
    with HostileApi(listings={"/things": listing}) as asked, HostileApi(listings={"/things": listing}) as fresh:
        for api in (asked, fresh):
            for number in range(20):
                api.insert(at=TEN + number % 7 * SECOND)
        since = "2026-03-01T10:00:03Z"
        assert len(rows(asked)) == 20
        assert rows(asked, since=since) == rows(fresh, since=since) != []
        for api in (asked, fresh):
            api.update(3, at=TEN + 9 * SECOND)
            api.delete(5)
        assert rows(asked, since=since) == rows(fresh, since=since)
        assert rows(asked) == rows(fresh)
        assert rows(asked, since=since) == rows(fresh, since=since)


def test_the_hour_that_autumn_repeats_lies_on_itself() -> None:
    """On naive wall clocks a later record can come before an earlier one, and be hidden from `since`."""
    first = datetime(2026, 11, 1, 5, 50, tzinfo=timezone.utc)  # 01:50 in New York, summer time
    listing = Listing("single", ("updated_at",), "strict", "naive", "America/New_York", precision=SECOND)
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(at=first)
        api.insert(at=first + timedelta(minutes=30))  # 01:20 again
        assert [record["updated_at"] for record in rows(api)] == ["2026-11-01 01:20:00", "2026-11-01 01:50:00"]
        assert rows(api, since="2026-11-01 01:50:00") == []


def test_nulls_stand_first_or_last() -> None:
    """Whatever the direction; an update gives them a timestamp."""
    listings = {
        "/first": Listing("page", BY_TIME, nulls="first"),
        "/last": Listing("page", ("-updated_at", "id")),
    }
    with HostileApi(listings=listings) as api:
        api.insert(2)
        api.insert(undated=True)
        assert ids(rows(api, "/first")) == [3, 1, 2]
        assert ids(rows(api, "/last")) == [2, 1, 3]
        api.update(3)
        assert ids(rows(api, "/first")) == [1, 2, 3]


# -- tokens, caps, shapes -------------------------------------------------------------------------------------------


def test_tokens_expire() -> None:
    """By age, by the server's will, or one alone: 410; a new walk goes through."""
    listing = Listing("token", ("id",), token_life=timedelta(minutes=5))
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(50)
        old = ask(api, limit=10).json()["next"]
        api.clock.advance(301)
        assert ask(api, cursor=old).status_code == 410
        new = ask(api, limit=10).json()["next"]
        assert ask(api, cursor=new).status_code == 200
        api.fault(api.count + 1, "expire")
        assert [ask(api, cursor=new).status_code for _ in range(2)] == [410, 410]
        third = ask(api, limit=20).json()["next"]
        assert ask(api, cursor=third).status_code == 200
        api.expire_tokens()
        assert ask(api, cursor=third).status_code == 410
        assert ask(api, cursor="nonsense").status_code == 400
        assert len(list(by_token(api))) == 50


def test_foreign_tokens_are_refused() -> None:
    """Another listing's, and one that somebody made up."""
    with HostileApi(listings={"/a": Listing("token"), "/b": Listing("token", ("id",))}) as api:
        api.insert(30)
        token = ask(api, "/a").json()["next"]
        forged = base64.urlsafe_b64encode(b'{"g": 0}').decode()
        assert [ask(api, "/b", cursor=cursor).status_code for cursor in (token, forged)] == [400, 400]
        assert ask(api, "/b", cursor="").json() == ask(api, "/b").json()


def test_a_token_holds_the_filter_or_forgets_it() -> None:
    """Some APIs want `since` again with each token; without it they give everything."""
    listings = {
        "/keeps": Listing("token", BY_TIME, "inclusive"),
        "/forgets": Listing("token", ("-updated_at",), "inclusive", token_keeps_filter=False),
    }
    with HostileApi(listings=listings) as api:
        for number in range(6):
            api.insert(at=TEN + number * SECOND)
        since = "2026-03-01T10:00:03Z"
        for path, rest in (("/keeps", [6]), ("/forgets", [4, 3, 2, 1])):
            token = ask(api, path, since=since, limit=2).json()["next"]
            assert ids(rows(api, path, cursor=token)) == rest


def test_a_search_ends_at_its_cap() -> None:
    """It tells of more, and refuses to give it."""
    with HostileApi(listings={"/things": Listing("search", filter="inclusive", cap=40, page_max=15)}) as api:
        api.insert(60)
        found = [find(api, limit=100, after=after).json() for after in (None, "15", "30")]
        assert [len(body["results"]) for body in found] == [15, 15, 10]
        assert found[-1]["paging"] == {"next": {"after": "40"}}
        assert found[-1]["total"] == 60
        assert find(api, after="40").status_code == 400
        assert find(api, since="2999-01-01T00:00:00Z").json() == {"results": [], "total": 0}
        assert requests.get(api.url + "/things", timeout=10).status_code == 405
        assert requests.post(api.url + "/things", data="no json", timeout=10).status_code == 400
        assert api.requests[0].body == {"limit": 100, "after": None}


def test_a_search_is_only_more_or_less_in_order() -> None:
    """A record may stand before one that is up to four seconds older, not more."""
    with HostileApi(listings={"/things": Listing("search")}) as api:
        for number in range(60):
            api.insert(at=TEN + number * SECOND)
        found = [record["id"] for record in find(api, limit=60).json()["results"]]
        assert found != sorted(found)
        assert all(later > earlier - 4 for at, earlier in enumerate(found) for later in found[at:])


def test_an_unknown_last_key_starts_over_or_is_refused() -> None:
    """As localstripe does, and as Stripe does."""
    listings = {
        "/over": Listing("last_key", ("id",)),
        "/refused": Listing("last_key", ("id",), unknown_key="refuse"),
    }
    with HostileApi(listings=listings) as api:
        api.insert(5)
        api.delete(2)
        assert ids(rows(api, "/over", starting_after=2)) == [1, 3, 4, 5]
        assert ask(api, "/refused", starting_after=2).status_code == 400
        assert ids(rows(api, "/refused", starting_after=3)) == [4, 5]


def test_page_sizes_are_cut_silently() -> None:
    """At the server's cap; without a size its own; nonsense is refused."""
    listing = Listing("offset", page_max=25, page_default=7, size_param="count", total=True, more=True)
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(30)
        assert len(rows(api, count=1000)) == 25
        assert len(rows(api)) == 7
        body = ask(api, count=25, offset=25).json()
        assert (len(body["data"]), body["total"], body["has_more"]) == (5, 30, False)
        for bad in ({"count": 0}, {"count": "ten"}, {"offset": -1}):
            assert ask(api, **bad).status_code == 400


def test_a_bare_list() -> None:
    """Nothing around the records, the total in a header."""
    with HostileApi(listings={"/things": Listing("page", ("id",), bare=True, total=True)}) as api:
        api.insert(30)
        answer = ask(api, page=2, per_page=20)
        assert ids(answer.json()) == list(range(21, 31))
        assert answer.headers["X-Total-Count"] == "30"


def test_links_keep_the_filter() -> None:
    """A link is all a client needs to go on."""
    listings = {
        "/next": Listing("next_link", BY_TIME, "inclusive"),
        "/header": Listing("link_header", BY_TIME, "inclusive"),
    }
    with HostileApi(listings=listings) as api:
        for number in range(6):
            api.insert(at=TEN + number * SECOND)
        since = "2026-03-01T10:00:02Z"
        link = ask(api, "/next", since=since, limit=3).json()["next"]
        assert ids(requests.get(link, timeout=10).json()["data"]) == [6]
        links = ask(api, "/header", since=since, per_page=3).headers["Link"]
        assert re.findall(r'rel="(\w+)"', links) == ["first", "last", "next"]


def test_one_record() -> None:
    """By its id; gone is 404 or 410, unknown always 404."""
    listings = {"/things": Listing("page"), "/ghosts": Listing("page", deleted_status=410)}
    with HostileApi(listings=listings) as api:
        api.insert(2, name="two")
        assert ask(api, "/things/1").json() == api.live()["1"]
        api.delete(1)
        assert [ask(api, path).status_code for path in ("/things/1", "/ghosts/1", "/ghosts/9")] == [404, 410, 404]
        assert ask(api, "/nothing").status_code == 404
        assert requests.delete(api.url + "/things/2", timeout=10).status_code == 405
        assert requests.put(api.url + "/things", timeout=10).status_code == 405


def test_a_listing_that_lags() -> None:
    """It shows the table as it was."""
    listings = {"/things": Listing("page"), "/index": Listing("page", lag=timedelta(seconds=10))}
    with HostileApi(listings=listings) as api:
        api.insert()
        api.clock.advance(8)
        api.delete(1)
        assert rows(api, "/index") == []
        api.clock.advance(3)
        assert ids(rows(api, "/index")) == [1]
        api.clock.advance(10)
        assert rows(api, "/index") == []


# -- the clock and the script ---------------------------------------------------------------------------------------


def test_the_date_header_is_the_clock_cut_to_seconds() -> None:
    """It may be ahead, or not there."""
    with HostileApi(tick=timedelta(seconds=0.75)) as api:
        assert ask(api).headers["Date"] == "Sun, 01 Mar 2026 10:00:00 GMT"
        assert ask(api).headers["Date"] == "Sun, 01 Mar 2026 10:00:01 GMT"
        api.skew = timedelta(hours=-1)
        assert ask(api).headers["Date"] == "Sun, 01 Mar 2026 09:00:02 GMT"
        api.date = False
        assert "Date" not in ask(api).headers
        assert api.clock.now == TEN + timedelta(seconds=3)


def test_actions_come_just_before_their_request() -> None:
    """Counted over the server or for one path."""
    with HostileApi(listings={"/a": Listing("page"), "/b": Listing("page")}) as api:
        api.before(2, api.insert)
        api.before(2, api.insert, path="/b")
        api.every(3, lambda: api.insert(10))
        assert [len(rows(api, path)) for path in ("/a", "/b", "/b", "/a")] == [0, 1, 12, 12]
        assert [(asked.number, asked.path) for asked in api.requests] == [(1, "/a"), (2, "/b"), (3, "/b"), (4, "/a")]
        assert api.requests[3].at == TEN + timedelta(milliseconds=4, microseconds=12)
        with pytest.raises(ValueError, match="request 4 is over"):
            api.before(4, api.insert)


def test_an_action_that_fails_is_seen_at_the_end() -> None:
    """The client gets 500, the test its own error."""
    api = HostileApi()
    api.before(1, lambda: api.delete(99))
    with pytest.raises(KeyError, match="no record 99"), api:
        assert ask(api).status_code == 500


@pytest.mark.parametrize("kind", ["408", "425", "429", "500", "502", "503", "504"])
def test_a_status_is_ordered(kind: Any) -> None:
    """So many times, with the header or without."""
    with HostileApi() as api:
        api.fault(1, kind, times=2)
        api.fault(3, Fault(kind, retry_after=7))
        api.fault(4, Fault(kind, retry_after=None))
        answers = [ask(api) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [int(kind)] * 4 + [200]
        assert [answer.headers.get("Retry-After") for answer in answers] == ["0", "0", "7", None, None]


@pytest.mark.parametrize("kind", ["401", "403", "404", "410", "422"])
def test_a_refusal_is_ordered(kind: Any) -> None:
    """Without a pause, which would make it a limit, unless the test wants that. Asked again, the answer is right."""
    with HostileApi(listings={"/things": Listing("token")}) as api:
        api.insert(30)
        token = ask(api, limit=10).json()["next"]
        api.fault(2, kind)
        api.fault(3, Fault(kind, retry_after=7))
        answers = [ask(api, cursor=token) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [int(kind), int(kind), 200]
        assert [answer.headers.get("Retry-After") for answer in answers] == [None, "7", None]
        assert [("WWW-Authenticate" in answer.headers) for answer in answers] == [kind == "401"] * 2 + [False]


def test_a_redirect_is_ordered() -> None:
    """302 to where the test says."""
    with HostileApi() as api:
        api.fault(1, Fault("redirect", location="https://elsewhere.example/things?page=1"))
        answer = requests.get(api.url + "/things", timeout=10, allow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (302, "https://elsewhere.example/things?page=1")


def test_answers_that_are_none() -> None:
    """HTML, CSV, an error or nothing with status 200, broken JSON, a connection that ends early or is reset."""
    kinds: tuple[Any, ...] = ("html", "csv", "error_200", "empty", "truncated")
    with HostileApi() as api, requests.Session() as session:
        api.insert(5)
        for number, kind in enumerate(kinds, start=1):
            api.fault(number, kind)
        html, table, error, empty, truncated = (session.get(api.url + "/things", timeout=10) for _ in kinds)
        assert {answer.status_code for answer in (html, table, error, empty, truncated)} == {200}
        assert html.headers["Content-Type"].startswith("text/html")
        assert table.headers["Content-Type"].startswith("text/csv")
        assert "error" in error.json()
        assert empty.content == b""
        assert truncated.text.startswith('{"data": [{')
        for broken in (html, table, empty, truncated):
            with pytest.raises(requests.JSONDecodeError):
                broken.json()
        api.fault(6, "cut")
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
            session.get(api.url + "/things", timeout=10)
        api.fault(7, "reset")
        with pytest.raises(requests.ConnectionError, match="ConnectionResetError"):
            session.get(api.url + "/things", timeout=10)
        assert len(session.get(api.url + "/things", timeout=10).json()["data"]) == 5


def test_gzip_that_is_none() -> None:
    """A plain body with gzip's header cannot be unpacked; half of a packed one can, to half of the JSON."""
    with HostileApi(gzip=True) as api:
        api.insert(50)
        right = ask(api, per_page=50)
        api.fault(2, "not_gzip")
        with pytest.raises(requests.exceptions.ContentDecodingError):
            ask(api, per_page=50)
        api.fault(3, "half_gzip")
        half = ask(api, per_page=50)
        assert half.headers["Content-Encoding"] == "gzip"
        assert 0 < len(half.text) < len(right.text)
        assert right.text.startswith(half.text)
        assert ask(api, per_page=50).json() == right.json()


def test_an_answer_without_end() -> None:
    """So many bytes and not one more, their number not announced; who has enough may go."""
    with HostileApi() as api, requests.Session() as session:
        api.fault(1, Fault("huge", size=200_001))
        answer = session.get(api.url + "/things", timeout=10)
        assert "Content-Length" not in answer.headers
        assert len(answer.content) == 200_001
        assert answer.text.startswith('{"data": [{')
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
        api.fault(2, Fault("huge", size=1 << 40))
        with session.get(api.url + "/things", timeout=10, stream=True) as endless:
            assert len(next(endless.iter_content(1000))) == 1000
        assert session.get(api.url + "/things", timeout=10).json() == {"data": []}


def test_silence() -> None:
    """Nothing comes, and others are answered meanwhile; then the connection closes without an answer."""
    with HostileApi() as api:
        api.insert(5)
        api.fault(1, Fault("stall", seconds=60))
        with pytest.raises(requests.ReadTimeout):
            requests.get(api.url + "/things", timeout=0.2)
        assert len(rows(api)) == 5
        api.fault(3, Fault("stall", seconds=0.3))
        began = time.monotonic()
        with pytest.raises(requests.ConnectionError, match="closed connection without response"):
            ask(api)
        assert time.monotonic() - began >= 0.3


def test_a_slow_answer() -> None:
    """It is right, and takes its time though no read waits long: a timeout between two bytes does not see it."""
    with HostileApi() as api:
        api.insert(50)
        api.fault(1, Fault("slow", seconds=1.0))
        began = time.monotonic()
        slow = requests.get(api.url + "/things?per_page=50", timeout=0.8)
        assert time.monotonic() - began >= 1.0
        assert slow.json() == ask(api, per_page=50).json()


def test_pages_that_lie() -> None:
    """The same token again, the same page again, two records swapped, pages short or empty in the middle."""
    with HostileApi(listings={"/things": Listing("token", ("id",))}) as api:
        api.insert(40)
        token = ask(api, limit=10).json()["next"]
        second = ask(api, limit=10, cursor=token).json()
        faults: dict[Any, Json] = {}
        for kind in ("repeat_token", "misorder", "short_page", "empty_page"):
            api.fault(api.count + 1, kind)
            faults[kind] = ask(api, limit=10, cursor=token).json()
        assert faults["repeat_token"] == {"data": second["data"], "next": token}
        assert ids(faults["misorder"]["data"]) == [20, *range(12, 20), 11]
        assert faults["misorder"]["next"] == second["next"]
        assert ids(faults["short_page"]["data"]) == [11, 12, 13, 14, 15]
        assert ids(rows(api, cursor=faults["short_page"]["next"]))[0] == 16
        assert faults["empty_page"]["data"] == []
        assert faults["empty_page"]["next"] != token
        assert ids(rows(api, limit=10, cursor=faults["empty_page"]["next"])) == ids(second["data"])
        api.fault(api.count + 1, "repeat_page")
        assert ids(rows(api, limit=10, cursor=second["next"])) == ids(second["data"])


@pytest.mark.parametrize("kind", ["token", "token, position", "next_link", "search", "header_token"])
@pytest.mark.parametrize("fault", ["short_page", "empty_page"])
def test_short_and_empty_pages_lose_nothing_by_token(kind: str, fault: Any) -> None:
    """Who goes on while there is a token gets everything."""
    listing, walk = KINDS[kind]
    with HostileApi(listings={"/things": listing}) as api:
        api.insert(30)
        api.fault(2, fault, times=2)
        assert len(list(walk(api))) == 30


def test_the_first_page_repeats_too() -> None:
    """A repeated token of the first page leads to it again."""
    for listing in (Listing("token", ("id",)), Listing("token", ("id",), token_kind="offset")):
        with HostileApi(listings={"/things": listing}) as api:
            api.insert(40)
            api.fault(1, "repeat_token")
            assert ids(rows(api, limit=10, cursor=ask(api, limit=10).json()["next"])) == list(range(1, 11))


def test_an_empty_page_ends_a_naive_walk() -> None:
    """Counting pages until one is empty loses the rest."""
    with HostileApi(listings={"/things": Listing("page", ("id",))}) as api:
        api.insert(30)
        api.fault(2, "empty_page")
        assert len(list(by_page(api))) == 10


def _story(seed: int) -> tuple[list[object], set[int]]:
    """What a client sees of one server, and the statuses in it."""
    seen: list[object] = []
    statuses = set()
    with HostileApi(seed, {"/things": Listing("token", filter="inclusive"), "/s": Listing("search")}) as api:
        api.faults(0.4, [kind for kind in TRANSIENT if kind not in ("cut", "reset", "not_gzip")])
        api.every(3, lambda: api.insert(2))
        api.every(4, lambda: api.update(api.ids[0]))
        api.insert(15)
        for _ in range(40):
            answer = ask(api, limit=5)
            seen.append((answer.status_code, sorted(answer.headers.items()), answer.text))
            statuses.add(answer.status_code)
        seen.append([api.shown(version) for version in api.history()])
    return seen, statuses


def test_the_same_seed_is_the_same_story() -> None:
    """Answers, headers, faults and history; another seed is another story."""
    first, statuses = _story(1)
    assert first == _story(1)[0]
    assert first != _story(2)[0]
    assert statuses >= {200, 429, 503}


def test_random_faults_stop_in_time() -> None:
    """Even at a rate of 1 there are no more in a row than was said; 0 ends them."""
    with HostileApi() as api:
        api.faults(1, ["500"], in_a_row=3)
        assert [ask(api).status_code for _ in range(8)] == [500, 500, 500, 200, 500, 500, 500, 200]
        api.faults(0)
        assert {ask(api).status_code for _ in range(5)} == {200}


def test_faults_are_counted() -> None:
    """By kind, ordered or drawn; right answers and those to nonsense are none."""
    with HostileApi() as api:
        api.fault(1, "503", times=2)
        api.fault(3, "empty")
        statuses = [ask(api).status_code for _ in range(4)]
        assert statuses == [503, 503, 200, 200]
        assert ask(api, page="x").status_code == 400
        assert api.faulted == {"503": 2, "empty": 1}
        api.faults(1, ["500", "502"], in_a_row=1)
        seen = Counter(ask(api).status_code for _ in range(40))
        assert seen[200] == 20
        assert api.faulted == {"503": 2, "empty": 1, "500": seen[500], "502": seen[502]}


# -- real time: latency, limits, gzip -------------------------------------------------------------------------------


def test_latency_overlaps() -> None:
    """Eight answers of a third of a second, asked for at once, do not take eight thirds. None comes early."""
    with HostileApi(latency=timedelta(seconds=0.3)) as api:
        began = time.monotonic()
        ask(api)
        assert time.monotonic() - began >= 0.3
        threads = [threading.Thread(target=ask, args=[api]) for _ in range(8)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0.3 <= time.monotonic() - began < 2


def test_arrivals_are_real_instants() -> None:
    """One for each request, first to last, on the clock that the test has too."""
    with HostileApi() as api:
        between = [time.monotonic()]
        for _ in range(3):
            ask(api)
            between.append(time.monotonic())
        assert len(api.arrivals) == 3
        assert sorted([*between, *api.arrivals])[1::2] == api.arrivals
        assert [asked.arrived for asked in api.requests] == api.arrivals


def test_a_limit_is_kept() -> None:
    """Above it all get 429 and a pause, whatever they ask for; a fault waits for a request that is within it."""
    with HostileApi(listings={"/a": Listing("page"), "/b": Listing("page")}, limit=(3, 60)) as api:
        api.fault(2, "500")
        api.fault(4, "502", times=2)
        assert [ask(api, path).status_code for path in ("/a", "/b", "/a/1", "/a", "/b")] == [200, 500, 404, 429, 429]
        refused = ask(api, "/nothing")
        assert (refused.status_code, api.count, api.limited) == (429, 6, 3)
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert api.faulted == {"500": 1}
        assert "too many requests" in refused.json()["error"]["message"]


def test_a_place_is_free_again() -> None:
    """Once the pause that was asked for is over."""
    with HostileApi(limit=(1, 0.3)) as api:
        assert ask(api).status_code == 200
        refused = ask(api)
        if refused.status_code == 429:  # not on a machine that stood still for 0.3 s
            assert refused.headers["Retry-After"] == "1"
        time.sleep(0.4)
        assert ask(api).status_code == 200


@given(
    st.integers(1, 4),
    st.sampled_from([1.0, 2.5]),
    st.lists(st.integers(0, 8).map(lambda eighths: eighths / 8), max_size=40),
)
def test_no_window_holds_more(count: int, seconds: float, gaps: list[float]) -> None:
    """Of any length that a limit has, wherever it begins; and nobody is refused who has room."""
    window, now, admitted = SlidingWindow((count, seconds), None), 100.0, list[float]()
    for gap in gaps:
        now += gap
        lately = [at for at in admitted if at > now - seconds]
        assert window.admit(now) == (len(lately) < count)
        admitted += [now] if len(lately) < count else []
        if len(lately) >= count:
            pause = float(window.refusal(now).headers["Retry-After"])
            assert seconds <= now + max(pause, 1) - lately[-count] <= seconds + 1
    assert all(sum(begin <= at < begin + seconds for at in admitted) <= count for begin in admitted)


def test_answers_tell_of_the_limit() -> None:
    """In three ways; right answers, faults and refusals alike."""
    told: dict[Any, list[dict[str, str]]] = {}
    for style in ("x", "ietf", "github"):
        with HostileApi(limit=(2, 60), rate_headers=style, skew=timedelta(hours=1)) as api:
            api.fault(2, "503")
            answers = [ask(api) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 503, 429]
            told[style] = [{k: v for k, v in a.headers.items() if "rate" in k.lower()} for a in answers]
            dates = [answer.headers["Date"] for answer in answers]
    assert [(a["X-RateLimit-Limit"], a["X-RateLimit-Remaining"]) for a in told["x"]] == [
        ("2", "1"), ("2", "0"), ("2", "0")
    ]  # fmt: skip
    assert all(1 <= int(a["X-RateLimit-Reset"]) <= 60 for a in told["x"])
    assert {a["RateLimit-Policy"] for a in told["ietf"]} == {'"default";q=2;w=60'}
    assert [re.sub(r"t=([1-9]|[1-5]\d|60)$", "t=?", a["RateLimit"]) for a in told["ietf"]] == [
        '"default";r=1;t=?', '"default";r=0;t=?', '"default";r=0;t=?'
    ]  # fmt: skip
    assert [(a["x-ratelimit-remaining"], a["x-ratelimit-used"]) for a in told["github"]] == [
        ("1", "1"), ("0", "2"), ("0", "2")
    ]  # fmt: skip
    by_date = [parsedate_to_datetime(date).timestamp() for date in dates]
    assert all(0 < int(a["x-ratelimit-reset"]) - at <= 61 for a, at in zip(told["github"], by_date, strict=True))


def test_gzip_for_those_who_take_it() -> None:
    """The same body in fewer bytes, always the same ones; refusals and other clients' answers stay as they are."""
    with HostileApi(gzip=True, date=False) as api:
        api.insert(50)
        for accepted, packed in (
            ("gzip, deflate", True),
            ("br;q=1.0, GZIP;q=0.5", True),
            ("identity", False),
            ("gzip;q=0, deflate", False),
            ("", False),
        ):
            answer = requests.get(
                api.url + "/things?per_page=50", headers={"Accept-Encoding": accepted}, timeout=10, stream=True
            )
            raw = answer.raw.read(decode_content=False)
            assert (answer.headers.get("Content-Encoding") == "gzip") == packed
            assert int(answer.headers["Content-Length"]) == len(raw)
            body = gzip.decompress(raw) if packed else raw
            assert len(json.loads(body)["data"]) == 50
            assert (len(raw) < len(body) / 3) == packed
        assert "Content-Encoding" not in ask(api, page="x").headers
        api.gzip = False
        assert "Content-Encoding" not in ask(api).headers


def test_many_clients_at_once() -> None:
    """Every request has its own number and tick, and nothing is written twice."""
    with HostileApi(listings={"/things": Listing("page", page_max=1000)}) as api:
        api.every(1, api.insert)
        threads = [threading.Thread(target=lambda: [ask(api) for _ in range(10)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [asked.number for asked in api.requests] == list(range(1, 81))
        assert len(rows(api, per_page=1000)) == 81


def test_nothing_is_left_behind() -> None:
    """The end closes connections that clients still hold, and ends all threads."""
    before = threading.active_count()
    with requests.Session() as session:
        with HostileApi() as api:
            assert session.get(api.url + "/things", timeout=10).status_code == 200
            assert threading.active_count() > before
        assert threading.active_count() <= before
        with pytest.raises(requests.ConnectionError):
            session.get(api.url + "/things", timeout=10)


@pytest.mark.parametrize("kind", ["stall", "slow", "huge", None])
def test_the_end_waits_for_nobody(kind: Any) -> None:
    """Neither for silence, nor for what takes its time, nor for a client that does not read."""
    with requests.Session() as session:
        with HostileApi() as api:
            api.insert(50)
            if kind is None:
                api.latency = timedelta(seconds=60)
            else:
                api.fault(1, Fault(kind, seconds=60, size=1 << 40))
            asking = threading.Thread(target=_heard, args=[session, api.url + "/things", kind])
            asking.start()
            while api.count == 0:
                time.sleep(0.01)
            began = time.monotonic()
        asking.join()
        assert time.monotonic() - began < 20


def _heard(session: requests.Session, url: str, kind: str | None) -> None:
    with contextlib.suppress(requests.RequestException):
        answer = session.get(url, timeout=60, stream=True)
        if kind != "huge":
            answer.content  # noqa: B018 - read until the end


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: Listing("since"),
        lambda: Listing("token", bare=True),
        lambda: Listing("token", ties="shuffled"),
        lambda: Listing("keyset", ("id",)),
        lambda: Listing("page", page_max=0),
        lambda: HostileApi(rate_headers="x"),
        lambda: HostileApi(limit=(0, 1)),
        lambda: HostileApi(limit=(1, 0)),
    ],
)
def test_no_api_is_like_that(impossible: Callable[[], object]) -> None:
    """What contradicts itself is refused at once."""
    with pytest.raises(ValueError, match=r"."):
        impossible()


def test_the_table_refuses_nonsense() -> None:
    """Naive instants, unknown and double ids, fields that are the server's."""
    api = HostileApi(keys=lambda number: f"k{number % 2}")
    api.insert(2)
    with pytest.raises(ValueError, match="no time zone"):
        api.insert(at=datetime(2026, 3, 1))  # noqa: DTZ001 - what is refused here
    with pytest.raises(KeyError, match="no record 'x'"):
        api.update("x")
    with pytest.raises(ValueError, match="a record 'k1' already"):
        api.insert()
    with pytest.raises(ValueError, match="the server sets updated_at"):
        api.update("k1", updated_at="now")
    api.close()
