"""Rates: what a source file may say of how often its API may be asked, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.rates import Rate
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source

CRM = """
source: crm
connection: crm_api
{limit}
objects:
  contacts: {{path: /v1/contacts, records: data, key: id, pages: {{by: single}}}}
"""
Crm = Callable[[str], Source]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def crm(tmp_path: Path) -> Crm:
    """Loads a source file with such a limit."""

    def loaded(limit: str) -> Source:
        path = tmp_path / "crm.yaml"
        path.write_text(CRM.format(limit=limit), encoding="utf-8")
        return load_source(path)

    return loaded


@pytest.mark.parametrize(
    ("text", "count", "per", "shown"),
    [
        ("20/s", 20, timedelta(seconds=1), "20/s"),
        ("100/10s", 100, timedelta(seconds=10), "100/10s"),
        ("600/m", 600, timedelta(minutes=1), "600/m"),
        ("600/min", 600, timedelta(minutes=1), "600/m"),
        ("600/60s", 600, timedelta(minutes=1), "600/m"),
        ("5000/h", 5000, HOUR, "5000/h"),
        (" 10000 / d ", 10000, DAY, "10000/d"),
        ("9/90m", 9, timedelta(minutes=90), "9/90m"),
        ("1/31d", 1, timedelta(days=31), "1/31d"),
    ],
)
def test_what_a_rate_says(text: str, count: int, per: timedelta, shown: str) -> None:
    """Requests per time, and the shortest way to write it again."""
    assert Rate.parsed(text) == Rate(count, per)
    assert str(Rate.parsed(text)) == shown


@settings(max_examples=200)
@given(st.integers(1, 10**9), st.integers(1, 31 * 86_400))
def test_every_rate_can_be_written_and_read(count: int, seconds: int) -> None:
    """What `str` gives is read as the same rate."""
    rate = Rate(count, timedelta(seconds=seconds))
    assert Rate.parsed(str(rate)) == rate


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "20",
            "/s",
            "20/",
            "20/x",
            "20/ms",
            "20 per s",
            "0/s",
            "-1/s",
            "20/0s",
            "20/-1s",
            "1.5/s",
            "20/1.5s",
            "²/s",
        ),
        *(
            "20/32d",
            "20/9999999d",
            "9999999999/s",
            "20/s, 5/m",
            "٢/s",
            True,
            False,
            20,
            20.0,
            math.nan,
            [],
            {"count": 1},
        ),
    ],
)
def test_nonsense_is_refused(text: Any) -> None:
    """A ValueError of few words, whatever stands there."""
    with pytest.raises(ValueError, match="rate"):
        Rate.parsed(text)


@pytest.mark.parametrize(
    ("count", "per"),
    [(True, DAY), (0, DAY), (-1, DAY), (1.0, DAY), (1, timedelta()), (1, -DAY), (1, timedelta(seconds=1.5))],
)
def test_no_rate_is_made_of_nonsense(count: Any, per: timedelta) -> None:
    """Neither from Python: the counting of turns relies on it."""
    with pytest.raises(ValueError, match="rate"):
        Rate(count, per)


def test_a_source_may_have_one_or_several(crm: Crm) -> None:
    """One text, a list, from YAML or from Python; none by default."""
    assert crm("").limit == ()
    assert crm("limit: 20/s").limit == (Rate.parsed("20/s"),)
    both = (Rate.parsed("20/s"), Rate.parsed("10000/d"))
    assert crm("limit: [20/s, 10000/d]").limit == both
    assert crm("limit: 20/s").model_copy(update={"limit": both}).limit == both
    assert Source.model_json_schema()["properties"]["limit"]["anyOf"]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("limit: 20", "20 is no rate"),
        ("limit: yes please", "is no rate: write requests per time"),
        ("limit:", "there is no rate"),
        ("limit: [20/s, 0/d]", "0 requests"),
        ("limit: [600/m, 5/60s]", "two rates for the same time: 600/m, 5/m"),
        ("limit: [1/s, 1/m, 1/h, 1/d, 1/2d, 1/3d, 1/4d]", "7 rates: 6 at most"),
    ],
)
def test_a_source_that_cannot_be_meant(crm: Crm, limit: str, said: str) -> None:
    """The file's error names what is wrong."""
    with pytest.raises(SourceError, match=said):
        crm(limit)
