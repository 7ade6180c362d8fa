"""Walks on model APIs without I/O: no skip, pages move while read, order is checked (laws 1, 4, 7)."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.errors import (
    AnchorLostError,
    ExtractError,
    RepeatedPageError,
    RequestRefusedError,
    StopAndLook,
    TokenExpiredError,
    UnorderedStreamError,
)
from airflow_extract_provider.extract.page import OrderValue, Page, Record, Refused, Reply, Request
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.backfill import backfill, beginning
from airflow_extract_provider.extract.walks.rebackfill import rebackfill
from airflow_extract_provider.extract.walks.step import Absent, Answer, Ask, Due, DueKey, Walk

SOAK = bool(os.environ.get("EXTRACT_SOAK"))
BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)

search = settings(max_examples=20_000 if SOAK else 300, derandomize=not SOAK, database=None)


def an_object(by: str, *, more: bool = True, falling: bool = False, ordered: bool = True, **over: Any) -> ApiObject:
    """An object paged by `last_key`, `token`, `page` or `offset`, its order declared."""
    keyed: dict[str, Any] = {"by": "last_key", "send": "after", **({"more": "has_more"} if more else {})}
    pages = keyed if by == "last_key" else {"by": "token", "take": "next", "send": "token", "last": "null"}
    if by == "page":
        pages = {"by": "page", "send": "page"}
    if by == "offset":
        pages = {"by": "offset", "send": "offset", "size": {"send": "limit", "max": 10}}
    order = {"order": ["-seq" if falling else "seq"]} if ordered else {}
    return ApiObject.model_validate(
        {"name": "things", "path": "/things", "key": "id", "records": "data", "pages": pages, **order, **over}
    )


def a_record(number: int) -> Record:
    """A record whose place in the order is its number."""
    return Record(str(number), b'{"id": %d}' % number, order=Decimal(number))


def a_page(numbers: Sequence[int], **envelope: Any) -> Page:
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in envelope.items()}
    return Page(tuple(a_record(number) for number in numbers), BEGAN, raw)


Change = tuple[Literal["delete", "insert"], int, int]
changes_between = st.lists(
    st.lists(
        st.one_of(
            st.tuples(st.just("delete"), st.integers(0, 200), st.integers(1, 12)),
            st.tuples(st.just("insert"), st.just(0), st.integers(1, 5)),
        ),
        max_size=3,
    ),
    max_size=25,
)


@dataclass
class ModelApi:
    """A list that changes between requests: anything may be deleted, new records come where the order puts them.

    ``changes`` lists what happens before each request. ``unknown`` says what becomes of an anchor that was deleted.
    ``cap`` holds the largest page of each request in turn, over and over: servers cap as they like.
    """

    count: int
    cap: Sequence[int]
    falling: bool = False
    unknown: Literal["restart", "refuse", "nothing"] = "restart"
    changes: Sequence[Sequence[Change]] = ()
    numbers: list[int] = field(init=False)
    requests: int = 0

    def __post_init__(self) -> None:
        self.numbers = sorted(range(1, self.count + 1), reverse=self.falling)
        self.lasting = set(self.numbers)
        self.newest = self.count

    def ask(self, request: Request) -> Reply:
        """The answer, after what happens before it."""
        if self.requests < len(self.changes):
            for kind, at, many in self.changes[self.requests]:
                self._change(kind, at, many)
        self.requests += 1
        return self._by_token(request.params) if "token" in request.params else self._by_key(request.params)

    def _change(self, kind: str, at: int, many: int) -> None:
        if kind == "delete" and self.numbers:
            at %= len(self.numbers)
            self.lasting -= set(self.numbers[at : at + many])
            del self.numbers[at : at + many]
        elif kind == "insert":
            for _ in range(many):
                self.newest += 1
                self.numbers.insert(0 if self.falling else len(self.numbers), self.newest)

    def _by_key(self, params: Mapping[str, str]) -> Reply:
        start = 0
        if (after := params.get("after")) is not None:
            if int(after) in self.numbers:
                start = self.numbers.index(int(after)) + 1
            elif self.unknown != "restart":
                return Refused(400) if self.unknown == "refuse" else a_page([], has_more=False, next=None)
        return self._from(start)

    def _by_token(self, params: Mapping[str, str]) -> Reply:
        last = int(params["token"])
        behind = [at for at, number in enumerate(self.numbers) if (number < last if self.falling else number > last)]
        return self._from(behind[0] if behind else len(self.numbers))

    def _from(self, start: int) -> Page:
        end = start + self.cap[self.requests % len(self.cap)]
        found, more = self.numbers[start:end], end < len(self.numbers)
        return a_page(found, has_more=more, next=str(found[-1]) if more else None)


@dataclass(frozen=True)
class Walked:
    """What a walk yielded: its positions, its records, what is gone, the replies it was sent, and how it ended."""

    positions: list[Position]
    requests: list[Request | Ask]
    replies: list[Reply | Answer]
    yielded: list[tuple[str, ...]]
    gone: list[tuple[str, ...]]
    error: ExtractError | None

    @property
    def complete(self) -> bool:
        return self.positions[-1].complete


def empty(_: Ask) -> Answer:
    """A store that has nothing to say."""
    return Answer(())


def walked(
    thing: ApiObject,
    ask: Callable[[Request], Reply],
    position: Position | None = None,
    most: int = 5000,
    *,
    of: Callable[[ApiObject, Position], Walk] = backfill,
    store: Callable[[Ask], Answer] = empty,
) -> Walked:
    """Drive a walk to its end; more than ``most`` requests are a walk that never ends."""
    walk = of(thing, position or beginning(thing))
    step = next(walk)
    found = Walked([step.position], [], [], [], [], None)
    error: ExtractError | None = None
    try:
        while step.then is not None:
            assert len(found.requests) < most, "the walk does not end"
            found.requests.append(step.then)
            found.replies.append(ask(step.then) if isinstance(step.then, Request) else store(step.then))
            step = walk.send(found.replies[-1])
            found.yielded.append(tuple(record.key for record in step.records))
            found.gone.append(step.gone)
            found.positions.append(step.position)
    except ExtractError as exc:
        error = exc
    return replace(found, error=error)


def keys_of(found: Walked) -> set[int]:
    return {int(key) for keys in found.yielded for key in keys}


def replayed(replies: Sequence[Reply | Answer]) -> Callable[[Any], Any]:
    """Says what was said before, whatever it is asked."""
    told = iter(replies)
    return lambda _: next(told)


def keys_gone(found: Walked) -> list[str]:
    return [key for keys in found.gone for key in keys]


def absent_ones(keys: Sequence[str]) -> Answer:
    """The store's answer to what a sweep has not seen."""
    return Answer(tuple(DueKey(key, 1) for key in keys), BEGAN)


absents = st.lists(st.lists(st.integers(1000, 1099).map(str), max_size=3), max_size=3)
caps = st.lists(st.integers(2, 40), min_size=1, max_size=4)
models = st.builds(
    ModelApi,
    count=st.integers(0, 120),
    cap=caps,
    falling=st.booleans(),
    unknown=st.sampled_from(["restart", "refuse", "nothing"]),
    changes=changes_between,
)


@search
@given(model=models, more=st.booleans())
@example(model=ModelApi(7, [7], changes=[[], [], [("insert", 0, 1), ("delete", 0, 6)], [("delete", 1, 1)]]), more=False)
def test_keyed_walk_skips_nothing(model: ModelApi, more: bool) -> None:
    """Every record that was there from the first request to the last is yielded, or the walk says that it lost its
    anchors; whatever is deleted and inserted meanwhile, it ends, and never takes that for a broken order."""
    thing = an_object("last_key", more=more, falling=model.falling)
    found = walked(thing, model.ask)
    if found.error is None:
        assert found.complete
        assert model.lasting <= keys_of(found)
    else:
        assert type(found.error) is AnchorLostError
        assert not found.complete


@search
@given(model=models)
def test_token_walk_skips_nothing(model: ModelApi) -> None:
    """The same by tokens that stand for a value: nothing that lasts is left out."""
    thing = an_object("token", falling=model.falling)
    found = walked(thing, model.ask)
    assert found.error is None
    assert found.complete
    assert model.lasting <= keys_of(found)


@pytest.mark.parametrize("of", [backfill, rebackfill])
@search
@given(model=models, by=st.sampled_from(["last_key", "token"]), more=st.booleans(), absent=absents)
def test_rebuilt_from_any_position_the_rest_is_the_same(
    of: Callable[[ApiObject, Position], Walk], model: ModelApi, by: str, more: bool, absent: Sequence[Sequence[str]]
) -> None:
    """A walk rebuilt from any position it yielded, after a round trip through JSON, asks and yields the same rest."""
    thing = an_object(by, more=more, falling=model.falling)
    told = iter(absent)
    found = walked(thing, model.ask, of=of, store=lambda _: absent_ones(next(told, ())))
    for number, position in enumerate(found.positions):
        rebuilt = Position.from_json(json.loads(json.dumps(position.as_json())))
        assert rebuilt == position
        again = replayed(found.replies[number:])
        rest = walked(thing, again, rebuilt, of=of, store=again)
        assert rest.requests == found.requests[number:]
        assert rest.yielded == found.yielded[number:]
        assert rest.gone == found.gone[number:]
        assert rest.positions == found.positions[number:]
        assert type(rest.error) is type(found.error)


@search
@given(model=models, more=st.booleans(), absent=absents)
def test_a_sweep_deletes_what_the_store_tells(model: ModelApi, more: bool, absent: Sequence[Sequence[str]]) -> None:
    """It asks once it has read all that a backfill reads, and not before; what it is told is gone, in that order, until
    nothing is left; and only then it is complete. A list that it cannot read to the end deletes nothing."""
    thing = an_object("last_key", more=more, falling=model.falling)
    read, told = walked(thing, copy.deepcopy(model).ask), iter(absent)
    found = walked(thing, model.ask, of=rebackfill, store=lambda _: absent_ones(next(told, ())))
    asked = [at for at, each in enumerate(found.requests) if isinstance(each, Absent)]
    assert found.requests[: len(read.requests)] == read.requests
    if read.error is not None:
        assert (type(found.error), asked, keys_gone(found)) == (type(read.error), [], [])
        return
    chunks = list(itertools.takewhile(bool, absent))
    assert asked == list(range(len(read.requests), len(read.requests) + len(chunks) + 1))
    assert keys_gone(found) == [key for chunk in chunks for key in chunk]
    assert [position.complete for position in found.positions] == [False] * (len(found.positions) - 1) + [True]
    assert keys_of(found) == keys_of(read)


@search
@given(noted=st.dictionaries(st.integers(1, 40).map(str), st.booleans(), max_size=12), cut=st.integers(0, 60))
def test_a_sweep_that_reads_by_key_asks_the_store_again(noted: Mapping[str, bool], cut: int) -> None:
    """Rebuilt from any position behind its list, it reads exactly the keys that are noted then: those that are not
    settled yet."""
    thing = an_object("last_key", by_key={"path": "/things/{{ key }}"})
    left = dict(noted)

    def store(asked: Ask) -> Answer:
        return Answer(tuple(DueKey(key, 1) for key in left) if isinstance(asked, Due) else ())

    def ask(request: Request) -> Reply:
        if request.key is None:
            return a_page([1, 2], has_more=False)
        return a_page([int(request.key)]) if left.pop(request.key) else Refused(404, own=True)

    found = walked(thing, ask, of=rebackfill, store=store)
    assert (found.error, found.complete, left) == (None, True, {})
    assert sorted(keys_gone(found)) == sorted(key for key, there in noted.items() if not there)
    behind = [position for position in found.positions if position.swept and not position.complete]
    if not behind:
        return
    left = {key: there for key, there in noted.items() if int(key) % 2}
    wanted = dict(left)
    rest = walked(thing, ask, behind[cut % len(behind)], of=rebackfill, store=store)
    assert [type(each) for each in rest.requests[:2]] == [Absent, Due]
    assert {each.key for each in rest.requests if isinstance(each, Request)} == wanted.keys()
    assert (rest.complete, left) == (True, {})


@search
@given(
    count=st.integers(0, 300), page=st.integers(2, 50), by=st.sampled_from(["last_key", "token"]), more=st.booleans()
)
def test_requests_are_few(count: int, page: int, by: str, more: bool) -> None:
    """Where nothing changes the overlap costs a record a page, and the proof of the end at most three requests."""
    model = ModelApi(count, [page])
    found = walked(an_object(by, more=more), model.ask)
    assert found.complete
    assert keys_of(found) == model.lasting
    assert len(found.requests) <= math.ceil(count / (page - 1)) + 3


@search
@given(
    count=st.integers(2, 60),
    page=st.integers(2, 20),
    deletions=st.lists(st.integers(0, 59), max_size=3, unique=True),
    falling=st.booleans(),
    unknown=st.sampled_from(["restart", "refuse", "nothing"]),
    more=st.booleans(),
    when=st.integers(1, 10),
)
@example(count=4, page=2, deletions=[1], falling=False, unknown="restart", more=False, when=2)
@example(count=8, page=4, deletions=[0, 4, 1], falling=False, unknown="restart", more=True, when=2)
def test_a_few_deletions_stop_no_walk(
    count: int,
    page: int,
    deletions: list[int],
    falling: bool,
    unknown: Literal["restart", "refuse", "nothing"],
    more: bool,
    when: int,
) -> None:
    """Up to three records deleted at once, the anchors among them, cost some requests and never an error."""
    at_once: list[Change] = [("delete", at, 1) for at in deletions]
    model = ModelApi(count, [page], falling, unknown, [*[[]] * when, at_once])
    found = walked(an_object("last_key", more=more, falling=falling), model.ask)
    assert found.error is None
    assert model.lasting <= keys_of(found)


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("unknown", ["restart", "refuse", "nothing"])
@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("lost", [[0, 1, 2, 3, 8, 11, 12, 14, 15, 16, 19, 20, 23, 24], range(30)])
def test_stepping_back_is_no_broken_order(lost: Sequence[int], falling: bool, unknown: Any, more: bool) -> None:
    """A page asked for from an older anchor may end before the place that the walk had reached: its records are read
    again, and do not break the order."""
    model = ModelApi(100, [6], falling, unknown)

    def ask(request: Request) -> Reply:
        if model.requests == 15:
            at = 6 + 14 * 5 - 1
            gone = {model.numbers[at - distance] for distance in lost}
            model.numbers = [number for number in model.numbers if number not in gone]
            model.lasting -= gone
        return model.ask(request)

    found = walked(an_object("last_key", more=more, falling=falling), ask)
    assert found.error is None
    assert model.lasting <= keys_of(found)


# Broken paging ------------------------------------------------------------------------------------------------------


def ignored(model: ModelApi) -> Callable[[Request], Reply]:
    """The parameter is ignored."""
    return lambda _: model.ask(Request("/things"))


def stuck(model: ModelApi) -> Callable[[Request], Reply]:
    """From some page on the same page comes for ever."""
    pages: list[Reply] = []

    def ask(request: Request) -> Reply:
        if len(pages) < 3:
            pages.append(model.ask(request))
        return pages[-1]

    return ask


def ignored_with_new_tokens(model: ModelApi) -> Callable[[Request], Reply]:
    """The parameter is ignored, and each answer holds a token never seen before."""
    return lambda _: a_page(model.numbers[:5], has_more=True, next=f"t{_next(model)}")


def always_more(model: ModelApi) -> Callable[[Request], Reply]:
    """The API always says that there is more."""

    def ask(request: Request) -> Reply:
        reply = model.ask(request)
        assert isinstance(reply, Page)
        token = msgspec.Raw(json.dumps(reply.records[-1].key if reply.records else "999").encode())
        return Page(reply.records, BEGAN, {"has_more": msgspec.Raw(b"true"), "next": token})

    return ask


def _next(model: ModelApi) -> int:
    model.requests += 1
    return model.requests


@pytest.mark.parametrize("count", [1, 2, 5, 17, 40])
@pytest.mark.parametrize("broken", [ignored, stuck, ignored_with_new_tokens, always_more])
@pytest.mark.parametrize("by", ["last_key", "token"])
def test_broken_paging_is_an_error(
    by: str, broken: Callable[[ModelApi], Callable[[Request], Reply]], count: int
) -> None:
    """However paging is broken while the API says there is more: a named error, soon, and never "complete"."""
    model = ModelApi(count + 20 if broken in (ignored, stuck) else count, [5])
    found = walked(an_object(by), broken(model), most=200)
    assert isinstance(found.error, StopAndLook)
    assert not found.complete


@pytest.mark.parametrize("unknown", ["restart", "refuse", "nothing"])
@pytest.mark.parametrize("count", [4, 17, 40])
def test_ignored_parameter_without_a_word_about_more(count: int, unknown: Any) -> None:
    """Where the answer says nothing about more, an ignored parameter is found all the same."""
    found = walked(an_object("last_key", more=False), ignored(ModelApi(count, [5], unknown=unknown)), most=100)
    assert type(found.error) is RepeatedPageError


@search
@given(
    tail=st.integers(0, 40),
    cycle=st.integers(1, 60),
    what=st.sampled_from(["tokens", "pages"]),
    empty=st.booleans(),
)
def test_cycles_of_any_length_are_found(tail: int, cycle: int, what: str, empty: bool) -> None:
    """Tokens, or pages under ever new tokens, that run in a circle of any length after any beginning: an error, after
    at most a few rounds; pages without records under new tokens are no circle."""

    def ask(_: Request) -> Reply:
        at = next(numbers)
        place = at if at < tail else tail + (at - tail) % cycle
        rows = [] if empty and what == "tokens" else [place + 1]
        return a_page(rows, next=f"t{place if what == 'tokens' else at}")

    numbers = iter(range(1_000_000))
    found = walked(an_object("token", ordered=False), ask, most=5 * (tail + cycle) + 10)
    assert type(found.error) is RepeatedPageError


def test_empty_pages_are_no_repetition() -> None:
    """Many pages in a row without a record, each with a new token, are passed: some APIs filter after cutting pages."""
    replies = [*(a_page([], next=f"t{number}") for number in range(50)), a_page([7], next=None)]
    found = walked(an_object("token"), lambda _: replies.pop(0))
    assert found.error is None
    assert keys_of(found) == {7}


def test_refused_token_is_expired() -> None:
    """A token that the API refuses says nothing about where the walk stood: an error, never a start from the top."""
    replies: list[Reply] = [a_page([1, 2], next="t1"), Refused(400)]
    found = walked(an_object("token"), lambda _: replies.pop(0))
    assert type(found.error) is TokenExpiredError


@pytest.mark.parametrize("most", [23, 40, 50, 57])
def test_a_list_that_is_given_in_part_is_no_circle(most: int) -> None:
    """An API that refuses to look beyond so many records, in the middle of the list: an error, after a while."""
    asked: list[int] = []

    def ask(request: Request) -> Reply:
        first, size = int(request.params["offset"]), int(request.params["limit"])
        asked.append(first)
        return Refused(400) if first + size > most else a_page(range(first + 1, first + size + 1))

    found = walked(an_object("offset"), ask, most=1000)
    assert type(found.error) is RequestRefusedError
    assert len(asked) < 500


@pytest.mark.parametrize("status", [400, 404, 410, 422])
@pytest.mark.parametrize("last", [10, 7])
def test_a_page_that_is_refused_behind_a_full_one(status: int, last: int) -> None:
    """It is the end of the list, or of what the API gives of it: without a size, `more` or `total` only a 404 tells."""
    sizes = [10, 10, last]
    numbered = [a_page(range(sum(sizes[:at]) + 1, sum(sizes[: at + 1]) + 1)) for at in range(3)]

    def ask(request: Request) -> Reply:
        number = int(request.params["page"])
        return numbered[number - 1] if number <= 3 else Refused(status)

    found = walked(an_object("page"), ask, most=100)
    if last == 10 and status != 404:
        assert type(found.error) is RequestRefusedError
        assert "pages.size" in found.error.todo
    else:
        assert found.error is None
        assert keys_of(found) == set(range(1, sum(sizes) + 1))


@pytest.mark.parametrize(("count", "size"), [(4, 3), (6, 5)])
def test_a_last_page_of_one_record_that_is_not_known(count: int, size: int) -> None:
    """A record goes after the first page, and behind the last place is one that has moved there: it was not capped."""
    numbers, lasting = list(range(1, count + 1)), set(range(2, count + 1))

    def ask(request: Request) -> Reply:
        if request.page == 2:
            numbers.remove(1)
        number, limit = int(request.params["page"]), int(request.params["limit"])
        return a_page(numbers[(number - 1) * limit : number * limit])

    pages = {"by": "page", "send": "page", "size": {"send": "limit", "max": size}}
    found = walked(an_object("page", ordered=False, pages=pages), ask, most=200)
    assert found.error is None
    assert lasting <= keys_of(found)


def test_one_record_a_page_is_refused() -> None:
    """An API that sends one record a page leaves no room for the overlap: an error, not a guess."""
    found = walked(an_object("last_key"), ModelApi(5, [1]).ask, most=50)
    assert type(found.error) is RepeatedPageError
    found = walked(an_object("last_key", more=False), ModelApi(5, [1]).ask, most=50)
    assert type(found.error) is RepeatedPageError


# Order --------------------------------------------------------------------------------------------------------------

orders = st.one_of(
    st.lists(st.none() | st.decimals(-50, 50, places=1), max_size=40),
    st.lists(
        st.none()
        | st.integers(0, 100).flatmap(
            lambda hours: st.sampled_from([-11, -1, 0, 5, 14]).map(
                lambda zone: (BEGAN + timedelta(minutes=30 * hours)).astimezone(timezone(timedelta(hours=zone)))
            )
        ),
        max_size=40,
    ),
)


def pages_of(values: Sequence[OrderValue | None], page: int) -> Iterator[Reply]:
    records = [Record(str(at), b"{}", order=value) for at, value in enumerate(values)]
    starts = range(0, max(len(records), 1), page)
    for start in starts:
        token = b"null" if start == starts[-1] else b'"t%d"' % start
        yield Page(tuple(records[start : start + page]), BEGAN, {"next": msgspec.Raw(token)})


@search
@given(values=orders, page=st.integers(1, 10), falling=st.booleans(), sort=st.booleans())
def test_order_is_checked(values: list[Any], page: int, falling: bool, sort: bool) -> None:
    """A stream is refused exactly if two neighbours that have the field break the order, on one page or over two;
    ties pass, records without the field pass, instants are compared as instants whatever their zone."""
    if sort:
        known = iter(sorted((value for value in values if value is not None), reverse=falling))
        values = [None if value is None else next(known) for value in values]
    told = [value for value in values if value is not None]
    broken = any(b > a if falling else b < a for a, b in pairwise(told))
    assert not (sort and broken)
    replies = pages_of(values, page)
    found = walked(an_object("token", falling=falling), lambda _: next(replies))
    assert (type(found.error) is UnorderedStreamError) == broken
    assert found.complete != broken
