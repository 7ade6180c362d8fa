"""What waits between reading and applying is bounded by its bytes, whatever it is made of."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow_extract_provider.extract.cursor import Position, Whole
from airflow_extract_provider.extract.page import Record, SetAside
from airflow_extract_provider.extract.reader import Arrived, _Waiting
from airflow_extract_provider.extract.walks.step import Step

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)


def arrived(records: int = 0, bad: int = 0, size: int = 1000) -> Arrived:
    """A page."""
    good = tuple(Record(f"k{number}", b"x" * size) for number in range(records))
    aside = tuple(SetAside(number, b"x" * size, "why") for number in range(bad))
    return Arrived(Step(good, Position(Whole()), None, bad=aside), NOW)


def filled(page: Arrived, ahead: int = 100_000) -> int:
    """How many such pages there is room for."""
    waiting, count = _Waiting(ahead), 0
    while not waiting.full():
        waiting.put(page)
        count += 1
        assert count < 10_000, "it is never full"
    for _ in range(count):
        assert waiting.get_nowait() is page
    assert waiting.empty()
    return count


def test_by_bytes() -> None:
    """Records that were set aside count like others, and tiny ones by what they take."""
    assert filled(arrived(records=10)) == filled(arrived(bad=10)) == 9
    assert filled(arrived(records=100, size=1)) == 5


def test_a_page_larger_than_all_room() -> None:
    """One page may always wait: else nothing would ever come."""
    assert filled(arrived(records=1000)) == 1


def test_pages_without_records() -> None:
    """An API that filters after cutting pages sends many: they take room, too."""
    assert 0 < filled(arrived(), ahead=500) <= 500
