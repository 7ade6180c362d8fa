"""Which walks follow from what a source file says of its objects, and why, for people; and what one of them would cost.

It is derived from what the walks themselves go by; nothing is asked, unless a look at the API is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Literal, assert_never

from airflow_extract_provider.extract.api.paginators import Single, paginator
from airflow_extract_provider.extract.api.paginators.by_instant import FromInstant, Windowed
from airflow_extract_provider.extract.api.paginators.by_number import Counted, Overlapping
from airflow_extract_provider.extract.api.paginators.by_record import AfterRecord, LastKey
from airflow_extract_provider.extract.api.paginators.by_token import Token
from airflow_extract_provider.extract.costs import lasting, share_of
from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.lint import lint
from airflow_extract_provider.extract.look import Look, LookedWalk, look
from airflow_extract_provider.extract.page import FieldPath
from airflow_extract_provider.extract.paging import LinkHeaderPages, NextLinkPages, SincePages, TokenPages
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.rates import Limits
from airflow_extract_provider.extract.reader import Client
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.walks.rebackfill import passes_by

__all__ = ["dry_run_lines", "plan"]

_TODO = 72
"""The column in which people find what to do."""


def plan(source: Source, looks: Mapping[str, Look] | None = None) -> list[str]:
    """What follows for each object of a source: the walks, why, and what is not seen. ``looks``: what the API has said
    of some of them, for the requests that a first copy takes."""
    known = looks or {}
    width = max(len(name) for name in source.objects) + 2
    lines: list[str] = []
    for name, object in source.objects.items():
        rows = [*_walks(object), *_requests(source, known.get(name))]
        for number, (walk, told) in enumerate(rows):
            lines.append(f"{'' if number else name:<{width}}  {walk:<13}{told}".rstrip())
    return lines


def dry_run_lines(
    source: Source,
    object: str,
    client: Client,
    walk: LookedWalk | Literal["by_key"] = "backfill",
    since: datetime | None = None,
    until: datetime | None = None,
    position: Position | None = None,
) -> list[str]:
    """What a run of a walk would begin with, and what it would take: its first request is sent, and nothing is stored.

    ``position`` is where the walk stands, if it has begun; the rest as of :func:`~.look.look`, which also tells what is
    raised.
    """
    name = f"{source.source}/{object} {walk}   dry run: nothing was stored, and no cursor has moved"
    if walk == "by_key":
        return [name, _row("asks first", "nobody: it reads what is noted in the store, each record by its key")]
    if walk == "rebackfill" and position is not None and position.complete:
        position = None  # the next sweep, when it is due or asked for
    if position is not None and position.swept:
        return [name, _row("asks first", "nobody: all is read, and the store is asked what was not seen")]
    if position is not None and position.complete and walk != "incremental":
        return [name, _row("asks first", "nobody: it is complete; `reset` reads everything again")]
    seen = look(source, object, client, walk=walk, since=since, until=until, position=position)
    rows = [
        ("asks first", seen.request),
        ("came", _came(seen)),
        *(("doubtful", f"{each.what} -> {each.todo}") for each in seen.doubts),
        ("expected", _expected(source.limit, seen)),
        ("quota", "not known" if seen.left is None else f"{seen.left * 100:.0f} % left"),
    ]
    return [name, *(_row(*row) for row in rows)]


def _row(head: str, told: str) -> str:
    return f"  {head:<12}{told}"


def _came(seen: Look) -> str:
    end = "there is no more" if seen.complete else {True: "more follow", False: "no more", None: ""}[seen.more]
    total = "" if seen.total is None else f" of {seen.total:,}"
    return ", ".join(part for part in (f"{counted(seen.records, 'record')}{total}", end) if part)


def _expected(limit: Limits, seen: Look) -> str:
    if seen.requests is None or seen.pages is None:
        return "not known: no total is told" + ("" if seen.total is None else " of what the filter leaves")
    return f"about {counted(seen.pages, 'page')}, {counted(seen.requests, 'request')}{_time(limit, seen)}"


def _time(limit: Limits, seen: Look) -> str:
    """At the source's limit: the time, or the part of it where that says more."""
    assert seen.requests is not None
    told = ""
    if seen.seconds is not None:
        told = f", {lasting(seen.seconds)} or more at {', '.join(map(str, limit))}"
    share = share_of(limit, seen.requests)
    return told if share is None else f"{told}, {_percent(share[1])} of {share[0]}"


def _percent(part: float) -> str:
    return f"{part * 100:.{0 if part >= 0.01 else 2}f} %"


def _requests(source: Source, seen: Look | None) -> Iterator[tuple[str, str]]:
    if seen is None:
        return
    if seen.requests is None:
        yield "requests", f"{counted(seen.records, 'record')} on the first page; how many there are is not told"
        return
    of = f"{seen.total:,} records (total from the API)" if seen.total is not None else counted(seen.records, "record")
    yield "requests", f"about {seen.requests:,} for {of}{_time(source.limit, seen)}"
    for advice in lint(source, {seen.object: seen.requests}):
        if (advice.object, advice.name) == (seen.object, "sweep-too-often"):
            yield "", _with_todo(advice.what, advice.todo)


def _walks(object: ApiObject) -> Iterator[tuple[str, str]]:
    yield "backfill", _backfill(object)
    yield "incremental", _incremental(object)
    if object.by_key is not None:
        yield "by_key", "what a list cannot decide is read again by its key"
    if object.sweep is not None:
        yield (
            "rebackfill",
            f"a sweep every {object.sweep.cadence}, in the backfill's way: what the API does not tell of",
        )
    yield "deletes", _deletes(object)


def _backfill(object: ApiObject) -> str:
    order = object.order
    by = f" by {_name(order.field)}" if order is not None else ""
    told = f"from the beginning{', newest first' if order is not None and order.falling else ''}{by}, {_paged(object)}"
    checked = [what for what, is_so in (("order", order), ("total", object.total)) if is_so]
    return f"{told}; {' and '.join(checked)} checked" if checked else told


def _paged(object: ApiObject) -> str:
    """How pages follow each other, and what proves that nothing lies between."""
    match paginator(object):
        case LastKey():
            return "each page after the last key: they overlap by a record"
        case AfterRecord():
            what = "version and key" if object.pages.by == "position" else f"{object.key_name}"
            return f"each page by greater {what}: nothing can shift it"
        case Overlapping() as pages:
            overlap = "by number, each page overlapping the last one by a record"
            return overlap if pages.sure else f"{overlap}, until two readings agree (no order is promised)"
        case Windowed() as pages:
            return f"in windows of time of {pages.pages.cap:,} results at most: halved until each fits its count"
        case Token() as pages:
            what = _next(pages.pages)
            return f"by {what}, which are believed" if pages.sure else f"by {what} that move, until two readings agree"
        case Counted():
            return "by page numbers without a size, until two readings agree (nothing to hold on to)"
        case FromInstant() as pages:
            return f"re-anchored ({_next(pages.pages)} move while they are read)"
        case Single():
            return "in one answer"
        case other:
            assert_never(other)  # type: ignore[arg-type]  # the protocol is open, its members are those of `paginator`


def _next(pages: object) -> str:
    if isinstance(pages, TokenPages):
        return "page tokens"
    if isinstance(pages, NextLinkPages | LinkHeaderPages):
        return "links"
    return "lists without a second page" if isinstance(pages, SincePages) else "page numbers"


def _incremental(object: ApiObject) -> str:
    if not object.incremental:
        return _not_incremental(object)
    less = f"since the last closed instant less {_span(object.lookback)}"
    if object.since is not None:
        how = f"{less}, by `{object.since.send or 'since'}`"
    elif object.pages.by == "position":
        how = f"{less}, by position"
    else:
        how = f"newest first, down to the last closed instant less {_span(object.lookback)}"
    return f"{how}{_ties(object)}; shown late by {_span(object.late)} at most"


def _ties(object: ApiObject) -> str:
    if isinstance(object.pages, SincePages):
        return "; more records of one instant than a page holds stop it"
    if isinstance(paginator(object), FromInstant):
        return "; ties are closed inside one instant"
    return ""


def _not_incremental(object: ApiObject) -> str:
    """Why nothing asks for changes."""
    todo = "declare `since`, or `order: [-<version>]`; else `sweep: {every: 1d}`"
    if object.version is None:
        why, todo = "no `version` tells when a record changed", "add `sweep: {every: 1d}`"
    elif object.since is not None:
        why = f"`since` compares {_name(object.since_field or ())}, not the version"
    else:
        why = "nothing asks for what has changed"
    if object.sweep is not None:
        return f"not possible: {why}; the sweep finds changes"
    return _with_todo(f"not possible: {why}; changes are not seen", todo)


def _deletes(object: ApiObject) -> str:
    by_tombstone = [] if object.deleted is None else [f"by tombstones (`{_name(object.deleted)}`)"]
    if object.sweep is None:
        if by_tombstone:
            return by_tombstone[0]
        return _with_todo("not seen: no tombstones, no sweep declared", "add `sweep: {every: 7d}`")
    return " and ".join([*by_tombstone, f"by the sweep, {_proof(object)}"])


def _proof(object: ApiObject) -> str:
    if object.by_key is not None:
        return f"confirmed by key; {object.sweep and object.sweep.max_deletes} at most without being asked"
    if passes_by(object):
        return _with_todo("which proves none: records may move while they are read", "declare `by_key`")
    return f"by the complete list; {object.sweep and object.sweep.max_deletes} at most without being asked"


def _with_todo(what: str, todo: str) -> str:
    return f"{what:<{_TODO}} -> {todo}" if len(what) < _TODO else f"{what} -> {todo}"


def _name(path: FieldPath) -> str:
    return ".".join(path)


def _span(span: timedelta) -> str:
    return lasting(span.total_seconds())
