"""Pages by what the page before told: a token or a URL, in its body, in a header or in the Link header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urljoin

import msgspec

from airflow_extract_provider.extract.api.paginators.turn import (
    Ask,
    Turn,
    ask,
    envelope_value,
    onward,
    onward_page,
    request_refused,
)
from airflow_extract_provider.extract.cursor import AfterToken, Place
from airflow_extract_provider.extract.errors import RepeatedPageError, TokenExpiredError, WrongAnswerError
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import LinkHeaderPages, NextLinkPages, TokenPages

__all__ = ["Token", "told_next"]

_EMPTY = 1000  # an API that filters after cutting pages may send many
_TARGET = re.compile(r"[,\s]*<([^<>]*)>")
_NEXT_LINK = re.compile(r"\s*(?:,|$)")
_PARAM = re.compile(r"\s*;\s*(?:([\w!#$%&'*+.^`|~-]+)\s*(?:=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\",;]*)))?)?")


@dataclass(frozen=True, slots=True)
class Token:
    """Pages by a token or URL that the page before carried. It is opaque: it is sent back as it came."""

    pages: TokenPages | NextLinkPages | LinkHeaderPages

    @property
    def sure(self) -> bool:
        return self.pages.stable

    def start(self, since: datetime | None = None, largest: int = 0) -> AfterToken:
        return AfterToken()

    def ask(self, place: Place) -> Ask:
        token = _after_token(place).token
        if isinstance(self.pages, TokenPages):
            return ask("token", token, self.pages.send, self.pages.size)
        asked = ask("token", None, None, self.pages.size)
        return asked if token is None else Ask(asked.values, link=token)

    def turn(self, place: Place, page: Page) -> Turn:
        place = _after_token(place)
        token = told_next(self.pages, page)
        # Where its pages move, what is in order within each need not be in order from one to the next.
        again = not self.pages.stable
        if token is None:
            return Turn(page.records, page.records, place, complete=True, again=again)
        if token == place.token:
            raise RepeatedPageError(
                "the API gave the page token that it was just sent; going on would circle for ever.",
                todo="Most often the API ignores the token: check the spelling of pages.send; else report it.",
            )
        tokens = onward(place.tokens, token.encode(), "a page token that it had given before")
        pages = place.pages
        empty = 0 if page.rows else place.empty + 1
        if empty > _EMPTY:
            raise RepeatedPageError(
                f"the API gave {_EMPTY:,} pages in a row without a record, and a new token with each.",
                todo="Most often such a token is meant for a later visit: see how this API marks its last page.",
            )
        if page.records:  # pages without records are all alike: an API may filter after cutting pages
            pages = onward_page(pages, page, "a page that it had given before, under another token")
        return Turn(page.records, page.records, AfterToken(token, tokens, pages, empty), again=again)

    def refused(self, place: Place, refusal: Refused) -> Place:
        if _after_token(place).token is None:
            raise request_refused(refusal)
        raise TokenExpiredError(
            f"nothing says where the walk stood but the page token, and the API refuses it (status {refusal.status})"
            f"{refusal.quoted}",
            todo="Start over with `reset`; pages are then read again, nothing is stored twice.",
        )


def told_next(pages: TokenPages | NextLinkPages | LinkHeaderPages, page: Page) -> str | None:
    """The next page's token or URL; None when the answer says, as declared, that this page was the last.

    Raises WrongAnswerError: it is neither a token nor the declared end.
    """
    if isinstance(pages, LinkHeaderPages):
        found = _rel_next(page.headers.get("link", ""))
        return None if found is None else urljoin(page.path, found)
    told = _told(pages, page)
    return urljoin(page.path, told) if told is not None and isinstance(pages, NextLinkPages) else told


def _told(pages: TokenPages | NextLinkPages, page: Page) -> str | None:
    if pages.header is not None:
        return page.headers.get(pages.header.lower()) or None
    assert pages.take is not None
    raw = envelope_value(page, pages.take)
    found = "absent" if raw is None else {b"null": "null", b'""': "empty"}.get(raw)
    name = ".".join(pages.take)
    if found is not None:
        if found in pages.last:
            return None
        raise WrongAnswerError(
            f"the page token `{name}` is {found}, which is not declared as the end.",
            todo=f"If the API ends its pages so, declare pages.last: {found}; else correct pages.take.",
        )
    assert raw is not None
    return _token_text(raw, name)


def _token_text(raw: bytes, name: str) -> str:
    value = msgspec.json.decode(raw) if raw.startswith(b'"') else raw.decode()
    if not raw.startswith(b'"') and not raw.lstrip(b"-").isdigit():
        raise WrongAnswerError(f"the page token `{name}` is neither a text nor a number.", todo="Correct pages.take.")
    if "\x00" in str(value):
        raise WrongAnswerError(f"the page token `{name}` holds a NUL character.", todo="Report it to the API's vendor.")
    return str(value)


def _rel_next(header: str) -> str | None:
    """The URL with ``rel="next"`` in a Link header (RFC 8288, section 3); None: there is none.

    A link with an `anchor` tells of another page. Raises WrongAnswerError: as :func:`_links`.
    """
    for target, params in _links(header):
        if "next" in params.get("rel", "").lower().split() and "anchor" not in params:
            return target
    return None


def _links(header: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The URLs of a Link header with their parameters; of several with one name the first counts.

    Raises WrongAnswerError: the header cannot be read, so that nothing says whether this page was the last.
    """
    at = 0
    while link := _TARGET.match(header, at):
        at, params = link.end(), dict[str, str]()
        while param := _PARAM.match(header, at):
            at = param.end()
            value = param[2] if param[3] is None else param[3].strip("'")
            params.setdefault((param[1] or "").lower(), value or "")
        yield link[1], params
        if _NEXT_LINK.match(header, at) is None:
            break
    if header[at:].strip(", \t"):
        raise WrongAnswerError(
            "the Link header cannot be read (RFC 8288), so that nothing says whether there is another page.",
            todo="Report it to the API's vendor, or declare another kind of pages.",
        )


def _after_token(place: Place) -> AfterToken:
    assert isinstance(place, AfterToken)
    return place
