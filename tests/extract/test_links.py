"""Links to the next page: what a Link header or a body says, read to the letter, and never taken for "the end"."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec
import pytest

from airflow_extract_provider.extract.api.paginators.by_token import told_next
from airflow_extract_provider.extract.errors import WrongAnswerError
from airflow_extract_provider.extract.page import Page
from airflow_extract_provider.extract.paging import LinkHeaderPages, NextLinkPages

HEADER = LinkHeaderPages(by="link_header")
BODY = NextLinkPages(by="next_link", take=("next",))
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def told(header: str) -> str | None:
    """The next page that an answer to /v1/things tells of in its Link header."""
    return told_next(HEADER, Page((), NOW, headers={"link": header}, path="/v1/things"))


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ("", None),
        ('</a>; rel="next"', "/a"),
        ("</a>; rel=next", "/a"),
        ("</a>; rel='next'", "/a"),
        ('</a>;rel="NEXT";title="x"', "/a"),
        ('</a>; title="say \\"hi\\"; really"; rel="next"', "/a"),
        ('</a>;; rel="next"', "/a"),
        ('</a>; rel="prev next"', "/a"),
        ('</a>; rel="first", </b?x=1,2>; rel="next"; title="c, d"', "/b?x=1,2"),
        ('</a>; rel="prev"; rel="next"', None),
        ('</a>; rel="next-archive"', None),
        ('</a>; rel="https://example.com/rels/next"', None),
        ('</a>; title="; rel=next"; rel="prev"', None),
        ('</a>; rel="next"; anchor="#other"', None),
        ("</a>; rel=prev, ", None),
        ("<?page=2>; rel=next", "/v1/things?page=2"),
        ("<more>; rel=next", "/v1/more"),
        ("<https://api.example.com/a>; rel=next", "https://api.example.com/a"),
    ],
)
def test_link_header(header: str, target: str | None) -> None:
    """RFC 8288: quoted texts with commas and quotes in them, several relations, of several `rel` the first."""
    assert told(header) == target


@pytest.mark.parametrize(
    "header", ["garbage", '</a>; rel="next', '</a>; rel="prev" and more', "</a", "</a>; rel=prev; ,x"]
)
def test_a_link_header_that_cannot_be_read(header: str) -> None:
    """Then nothing says whether it was the last page."""
    with pytest.raises(WrongAnswerError, match="Link header"):
        told(header)


def test_a_long_link_header_takes_no_time() -> None:
    """Nothing is tried out twice."""
    assert told("</a>" + ";  " * 100_000) is None


def test_a_link_in_the_body_counts_from_its_own_page() -> None:
    """Page 2 may live elsewhere than page 1."""
    body = {"next": msgspec.Raw(b'"?page=3"')}
    assert told_next(BODY, Page((), NOW, body, path="/v1/snapshots/77/things")) == "/v1/snapshots/77/things?page=3"
