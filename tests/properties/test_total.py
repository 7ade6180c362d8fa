"""A copy that ends short of the total that the API gives is an error; a total that moves meanwhile is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import msgspec
import pytest

from airflow_extract_provider.extract.errors import MovingListError, ShortOfTotalError, WrongAnswerError
from airflow_extract_provider.extract.page import Page, Record, Reply, Request
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.backfill import backfill, beginning

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)
TOKENS = {"by": "token", "take": "next", "send": "token"}
NUMBERS = {"by": "page", "send": "page"}


def thing(pages: dict[str, str]) -> ApiObject:
    """An object whose answers tell a total."""
    spec = {"name": "things", "path": "/things", "key": "id", "records": "data", "pages": pages, "total": "total"}
    return ApiObject.model_validate(spec)


def page(keys: Sequence[int], total: object, token: str | None = None) -> Page:
    """A page of records with these keys."""
    records = tuple(Record(str(key), b'{"id": %d}' % key) for key in keys)
    envelope = {"total": total, "next": token}
    return Page(records, BEGAN, {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in envelope.items()})


def read(pages: dict[str, str], ask: Callable[[Request], Reply]) -> tuple[set[str], int]:
    """Walk to the end; the keys that came, and the number of requests."""
    object = thing(pages)
    walk = backfill(object, beginning(object))
    step, found, asked = next(walk), set[str](), 0
    while step.then is not None:
        assert isinstance(step.then, Request)
        asked += 1
        step = walk.send(ask(step.then))
        found |= {record.key for record in step.records}
    return found, asked


def of_two_pages(total: Callable[[int], object]) -> Callable[[Request], Reply]:
    """An API of 30 records in two pages; ``total`` says what the n-th answer tells."""
    asked = iter(range(1, 1000))

    def ask(request: Request) -> Reply:
        told = total(next(asked))
        return page(range(20, 30), told) if "token" in request.params else page(range(20), told, "second")

    return ask


def test_as_many_as_the_total() -> None:
    """One reading is enough."""
    assert read(TOKENS, of_two_pages(lambda number: 30)) == ({str(key) for key in range(30)}, 2)


def test_short_of_the_total() -> None:
    """The list is read three times; then the run stops with both numbers, and the last page is not passed."""
    with pytest.raises(ShortOfTotalError, match=r"50 records, but 30 .* 3 times") as caught:
        read(TOKENS, of_two_pages(lambda number: 50))
    assert caught.value.page == 6
    assert caught.value.position["complete"] is False


def test_a_total_that_falls_while_pages_are_read() -> None:
    """Records were deleted meanwhile: the smallest total of the reading counts."""
    assert read(TOKENS, of_two_pages(lambda number: 33 if number == 1 else 30))[1] == 2


def test_a_total_that_rose_before_the_last_page() -> None:
    """Records came that this reading may not have seen: nothing is missed of those that were there before."""
    assert read(TOKENS, of_two_pages(lambda number: 30 if number == 1 else 34))[1] == 2


def test_short_once() -> None:
    """The second reading is whole."""
    assert read(TOKENS, of_two_pages(lambda number: 31 if number < 3 else 30))[1] == 4


@pytest.mark.parametrize("told", [None, "30", -1, 2.5, True])
def test_a_total_that_is_none(told: object) -> None:
    """It is not guessed."""
    with pytest.raises(WrongAnswerError, match="total"):
        read(TOKENS, of_two_pages(lambda number: told))


def test_a_list_that_never_rests() -> None:
    """Pages that nothing overlaps, in no order, other records each time: no two readings agree."""
    asked = iter(range(10**6))

    def ask(request: Request) -> Reply:
        first = next(asked)
        return page(range(first, first + 5), 1) if request.params["page"] in ("1", "2") else page((), 1)

    with pytest.raises(MovingListError, match="20 times"):
        read(NUMBERS, ask)


def test_a_window_that_ends_short() -> None:
    """A search that gives fewer records than it counts is read again until both agree; then the last window, in which
    something may still change."""
    spec = {
        "name": "things",
        "request": "POST /search",
        "body": '{"after": {{ token | json }}, "from": "{{ since | iso }}", "to": "{{ until | iso }}"}',
        "records": "data",
        "key": "id",
        "version": "at",
        "since": {"inclusive": True},
        "pages": {"by": "token", "take": "next", "cap": 100},
        "total": "total",
    }
    object = ApiObject.model_validate(spec)
    walk = backfill(object, beginning(object))
    step, found = next(walk), list[int]()
    for count, told in ((3, 5), (3, 5), (4, 5), (5, 5), (1, 2), (2, 2)):
        assert isinstance(step.then, Request)
        step = walk.send(page(range(count), told))
        found.append(len(step.records))
    assert found == [3, 3, 4, 5, 1, 2]
    assert step.then is None
    assert step.position.complete
