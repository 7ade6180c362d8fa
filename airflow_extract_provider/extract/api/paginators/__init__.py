"""How the next page is asked for. A paginator is config; where it stands is a `Place`, a value it gets and returns.

To add one: its config in `extract/paging.py`, its place in `extract/cursor.py`, a frozen class with the methods of
:class:`Paginator` beside its neighbours here, a line in :func:`paginator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from airflow_extract_provider.extract.api.paginators.by_instant import FromInstant, Windowed
from airflow_extract_provider.extract.api.paginators.by_number import Counted, Overlapping
from airflow_extract_provider.extract.api.paginators.by_record import AfterRecord, LastKey
from airflow_extract_provider.extract.api.paginators.by_token import Token
from airflow_extract_provider.extract.api.paginators.turn import Ask, Paginator, Turn, ask, request_refused
from airflow_extract_provider.extract.cursor import Place, Position, Whole
from airflow_extract_provider.extract.errors import PositionMismatchError, WrongAnswerError
from airflow_extract_provider.extract.page import Page, Refused
from airflow_extract_provider.extract.paging import (
    KeyPages,
    LastKeyPages,
    LinkHeaderPages,
    NextLinkPages,
    OffsetPages,
    PageNumberPages,
    PositionPages,
    SincePages,
    SinglePage,
    TokenPages,
)
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["Ask", "Paginator", "Single", "Turn", "checked_place", "paginator"]


def paginator(object: ApiObject) -> Paginator:
    """The paginator that follows from what an object's config promises."""
    match object.pages:
        case LastKeyPages() as pages:
            return LastKey(pages)
        case KeyPages() | PositionPages() as pages:
            return AfterRecord(object, pages)
        case OffsetPages() as pages:
            return Overlapping(object, pages)
        case PageNumberPages() as pages if pages.size is not None and (pages.size.send or "size" in object.used()):
            return Overlapping(object, pages)
        case TokenPages() as pages if pages.cap is not None:
            return Windowed(object, pages)
        case TokenPages() | NextLinkPages() | LinkHeaderPages() as pages if pages.stable or not object.since_ordered:
            return Token(pages)
        case PageNumberPages() as pages if not object.since_ordered:
            return Counted(pages, counted=object.total is not None)
        case TokenPages() | NextLinkPages() | LinkHeaderPages() | PageNumberPages() | SincePages() as pages:
            return FromInstant(object, pages)
        case SinglePage() as pages:
            return Single(pages)
        case other:
            assert_never(other)


def checked_place(position: Position, start: Place) -> Place:
    """The position's place, if it is of the kind the config asks for now.

    Raises PositionMismatchError: the config was changed in the middle of a walk.
    """
    if type(position.place) is not type(start):
        raise PositionMismatchError(
            "the ledger's position was made under another `pages.by`; it cannot be carried over.",
            todo="Put `pages` back, or start over with `reset`.",
            position=position.as_json(),
        )
    return position.place


@dataclass(frozen=True, slots=True)
class Single:
    """Everything in one answer."""

    pages: SinglePage

    @property
    def sure(self) -> bool:
        return True

    def start(self, since: datetime | None = None, largest: int = 0) -> Whole:
        return Whole()

    def ask(self, place: Place) -> Ask:
        return ask("token", None, None, self.pages.size)

    def turn(self, place: Place, page: Page) -> Turn:
        size = self.pages.size
        if size is not None and page.rows >= size.max:
            raise WrongAnswerError(
                f"the one page is full ({page.rows:,} records where {size.max:,} were asked for): there may be more.",
                todo="Raise pages.size.max; or declare how the API is paged.",
            )
        return Turn(page.records, page.records, place, complete=True)

    def refused(self, place: Place, refusal: Refused) -> Place:
        raise request_refused(refusal)
