"""What the first page of a list shows of what its source file says: what is as it says, and what is doubtful.

What cannot be read at all is an error of the walk, by its name; here is what it would pass over without a word.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from airflow_extract_provider.extract.api.paginators import paginator
from airflow_extract_provider.extract.api.paginators.by_instant import FromInstant, Windowed
from airflow_extract_provider.extract.api.paginators.by_record import AfterRecord
from airflow_extract_provider.extract.api.paginators.by_token import told_next
from airflow_extract_provider.extract.api.paginators.turn import more, total
from airflow_extract_provider.extract.instants import floored
from airflow_extract_provider.extract.page import FieldPath, Page, Record
from airflow_extract_provider.extract.paging import LinkHeaderPages, NextLinkPages, SincePages, TokenPages
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["Finding", "findings", "more_follow"]

_USUAL = frozenset({10, 20, 25, 30, 50, 100, 200, 250, 500, 1000})
"""Page sizes that APIs choose when they are not asked for one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, in words without a value of a record. ``todo`` says what to do about it: then it is
    doubtful; empty: it is as the source file says."""

    name: str
    what: str
    todo: str = ""

    @property
    def doubtful(self) -> bool:
        """Whether somebody should look."""
        return bool(self.todo)


def more_follow(object: ApiObject, page: Page) -> bool | None:
    """Whether the answer says that there is more behind the page; None: it does not say. Raises WrongAnswerError."""
    pages = object.pages
    if isinstance(pages, TokenPages | NextLinkPages | LinkHeaderPages):
        return told_next(pages, page) is not None
    told = more(page, getattr(pages, "more", None))
    count = total(page, object.total)
    return told if told is not None or count is None else count > page.rows


def findings(object: ApiObject, page: Page, *, ended: bool, part: bool = False) -> tuple[Finding, ...]:
    """What a first page shows. ``ended``: to the walk it is the last one. ``part``: it is not the
    first page of the whole list, so that the total may count more."""
    if not page.rows:
        return (
            Finding("records", "0 records"),
            Finding(
                "empty",
                "the list is empty, so that key, version and order were not seen",
                "see that the login may read it, and that `params` leaves something in",
            ),
        )
    told = (
        _records(object, page),
        *_set_aside(page),
        *_fields(object, page.records),
        *_order(object, page.records),
        *_ties(object, page),
        *_size(object, page, ended=ended),
        *_end(object, page, ended=ended, part=part),
    )
    return tuple(each for each in told if each is not None)


def _records(object: ApiObject, page: Page) -> Finding:
    """How many came; and how many were asked for, where fewer may be the end of the list, or a bound of the server."""
    size, more = object.pages.size, more_follow(object, page)
    fewer = size is not None and page.rows < size.max and more is None
    of = f" where {size.max:,} were asked for" if fewer and size is not None else ""
    return Finding("records", f"{counted(page.rows, 'record')}{of}")


def _set_aside(page: Page) -> tuple[Finding, ...]:
    if not page.bad:
        return ()
    todo = "correct the object's config (`key`, `version`, `timestamps`), or leave it: they go to the quarantine"
    what = f"{len(page.bad):,} of {page.rows:,} cannot be stored, the first since {page.bad[0].why}"
    return (Finding("bad", what, todo),)


def _fields(object: ApiObject, records: tuple[Record, ...]) -> tuple[Finding | None, ...]:
    """Key and version. Tombstones may hold little more than the key."""
    alive = tuple(record for record in records if not record.deleted)
    without = sum(1 for record in alive if record.version is None)
    if not records:
        return ()
    if object.version is None or (alive and not without):
        return (Finding("fields", "key and version found" if object.version else "key found"),)
    name = ".".join(object.version)
    found = Finding("fields", "key found")
    if without == len(alive):
        return (found, Finding("version", f"none has the version `{name}`", "correct `version`, or leave it out"))
    what = f"{without:,} of {len(alive):,} have no version `{name}`"
    if not isinstance(paginator(object), FromInstant | Windowed | AfterRecord):
        return (found, Finding("version", what, "see docs/strategies.md#what-is-not-seen: only a sweep sees them"))
    return (found, Finding("version", what, "see docs/strategies.md#what-is-not-seen: these pages may leave them out"))


def _order(object: ApiObject, records: tuple[Record, ...]) -> tuple[Finding | None, ...]:
    """The walk has checked the order itself; but a record without the field is passed over by that."""
    order = object.order
    if order is None or not records:
        return ()
    name = ".".join(order.field)
    seen = [record.order for record in records if record.order is not None]
    if not seen:
        return (Finding("order", f"none has `{name}`, by which `order` says they come", "correct `order`"),)
    then = "".join(f", then {'.'.join(path)}" for path in order.then)
    return (Finding("order", f"{'descending' if order.falling else 'ascending'} by {name}{then}"),)


def _ties(object: ApiObject, page: Page) -> tuple[Finding | None, ...]:
    instants = [at for at in (_instant(object, record) for record in page.records) if at is not None]
    most = max(Counter(instants).values(), default=0)
    if not most:
        return ()
    full = most == page.rows and page.rows > 1
    if full and isinstance(object.pages, SincePages):
        what = f"all {most:,} records of the page share one instant, and there is no second page"
        return (Finding("ties", what, "raise pages.size if the API allows it: else expect TiedPageError"),)
    alone = "each has an instant of its own" if most == 1 else f"{most:,} share one instant at most"
    return (Finding("ties", alone),)


def _instant(object: ApiObject, record: Record) -> datetime | None:
    at = record.since or record.version
    if at is None and isinstance(record.order, datetime):
        at = record.order
    return at if at is None or object.since is None else floored(at, object.since.precision)


def _size(object: ApiObject, page: Page, *, ended: bool) -> tuple[Finding | None, ...]:
    size = object.pages.size
    if size is None or ended:
        return ()
    if page.rows > size.max:
        what = f"the API sends {page.rows:,} records where {size.max:,} were asked for"
        return (Finding("size", what, "correct pages.size.send: the API ignores it"),)
    if page.rows < size.max and more_follow(object, page):
        what = f"the API sends {page.rows:,} records where {size.max:,} were asked for, though more follow"
        return (Finding("size", what, f"set pages.size.max to {page.rows}, or correct pages.size.send"),)
    return ()


def _end(object: ApiObject, page: Page, *, ended: bool, part: bool) -> tuple[Finding | None, ...]:
    """A page after which nothing is asked, though there may be more: a misspelt name would end the walk in silence."""
    count = None if part or getattr(object.pages, "cap", None) is not None else total(page, object.total)
    alone = isinstance(object.pages, TokenPages | NextLinkPages | LinkHeaderPages) and not more_follow(object, page)
    if count is not None and count > page.rows and (ended or alone):
        what = f"the answer tells of {count:,} records, but of no page behind these {page.rows:,}"
        return (Finding("end", what, f"{_told_by(object)}: expect ShortOfTotalError"),)
    size = object.pages.size
    full = page.rows >= size.max if size is not None else page.rows in _USUAL
    if alone and full and count is None:
        what = f"the page is full ({page.rows:,} records), and the answer tells of no next one"
        return (Finding("end", what, _told_by(object)),)
    told = getattr(object.pages, "more", None) is not None
    if told and ended and size is not None and page.rows >= size.max and count is None:
        return (Finding("end", "the page is full, and the answer says that it is the last", "is pages.more right?"),)
    return ()


def _told_by(object: ApiObject) -> str:
    """Where the next page would be told, as a question to the source file."""
    pages = object.pages
    if isinstance(pages, LinkHeaderPages):
        return "does the API send a `Link` header?"
    if getattr(pages, "header", None):
        return f"is pages.header ({pages.header}) right?"  # type: ignore[union-attr]
    take: FieldPath | None = getattr(pages, "take", None)
    return f"is pages.take ({'.'.join(take)}) right?" if take else "are `pages` and `total` right?"
