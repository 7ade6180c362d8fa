"""A first look at an object: the one request with which a walk would begin, and what its answer shows. Nothing is
stored, and no cursor moves.

The walk itself makes the request and reads the page, so that what is wrong is the error that the walk would stop with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, TypeAlias

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators.turn import request_refused, total
from airflow_extract_provider.extract.costs import requests_for, seconds_at
from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.errors import ExtractError, WindowInvalidError
from airflow_extract_provider.extract.findings import Finding, findings, more_follow
from airflow_extract_provider.extract.page import Page, Refused, Request
from airflow_extract_provider.extract.reader import Client
from airflow_extract_provider.extract.second_look import looked_deeper
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.walks.backfill import backfill, beginning
from airflow_extract_provider.extract.walks.incremental import handed_off, incremental
from airflow_extract_provider.extract.walks.rebackfill import rebackfill
from airflow_extract_provider.extract.walks.step import Walk
from airflow_extract_provider.extract.walks.window import Window, opened, window

__all__ = ["Look", "LookedWalk", "look", "shown"]

LookedWalk: TypeAlias = Literal["backfill", "incremental", "rebackfill", "window"]
"""The walks that ask the API first, not the store."""

_WALKS: Mapping[LookedWalk, Callable[[ApiObject, Position], Walk]] = {
    "backfill": backfill,
    "incremental": incremental,
    "rebackfill": rebackfill,
    "window": window,
}
_LOGIN = re.compile(r"(?i)token|secret|passw|auth|signature|credential|api[-_]?key|session")
"""Names whose values are not shown, whoever has put them into a source file."""
_LONGEST = 300
"""Characters of a body that are shown."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one request has shown.

    ``request`` is what was asked, as people may see it. ``records`` came on the page; ``total`` is what the API says
    there are, ``more`` whether it says that there is more, None: it says neither. ``complete``: to the walk this page
    is the last. ``pages`` and ``requests`` (about) are those of the whole walk, ``seconds`` the time they take at the
    source's limit, None where nothing tells. ``left`` is which part of the quota is left, from 0 to 1. ``sent`` counts
    the requests of this look, retries included. ``findings`` tell what is as the source file says, and what is not.
    """

    source: str
    object: str
    walk: str
    request: str
    records: int
    total: int | None
    more: bool | None
    complete: bool
    pages: int | None
    requests: int | None
    seconds: float | None
    left: float | None
    sent: int
    findings: tuple[Finding, ...]

    @property
    def doubts(self) -> tuple[Finding, ...]:
        """What somebody should look at."""
        return tuple(each for each in self.findings if each.doubtful)


def look(
    source: Source,
    object: str,
    client: Client,
    *,
    walk: LookedWalk = "backfill",
    since: datetime | None = None,
    until: datetime | None = None,
    position: Position | None = None,
    deep: bool = False,
) -> Look:
    """Send the first request of a walk, and tell what its answer shows.

    ``since`` (aware) is from when on `incremental` would read; None: from where a backfill that ended now would hand
    over. ``since`` and ``until`` bound the walk `window`. ``position`` is where the walk stands, if it has begun, and
    goes before both; it has not come to its end. ``deep`` asks once more by `since` and by key, if the object has them.

    Raises what the walk would stop with, and what :meth:`~.api.client.ApiClient.fetch` raises: an ExtractError with the
    place. Of a private object it holds no key.
    """
    spec = source.object(object)
    try:
        begun = position or _begun(source, spec, walk, since, until)
        return _looked(source, spec, client, walk, begun, deep)
    except ExtractError as exc:
        told = exc.without_key() if spec.private else exc
        kept = "everything; a look stores nothing."
        raise told.at(kept=kept, source=source.source, object=object, walk=walk) from None


def _looked(
    source: Source, object: ApiObject, client: Client, walk: LookedWalk, position: Position, deep: bool
) -> Look:
    sent = client.requests
    steps = _WALKS[walk](object, position)
    request = next(steps).then
    assert isinstance(request, Request)  # nothing is asked of the store before the first page
    reply = client.fetch(object, request)
    step = steps.send(reply)
    if isinstance(reply, Refused):
        raise request_refused(reply)
    complete = not isinstance(step.then, Request)
    found = findings(object, reply, ended=complete, part=_is_part(step.position))
    if deep:
        found = (*found, *looked_deeper(object, client, reply))
    count = _expected(object, reply, step.position)
    more = more_follow(object, reply)
    rows = _rows(object, reply, more)
    requests = 1 if complete else None if count is None else requests_for(object, count, rows)
    return Look(
        source=source.source,
        object=object.name,
        walk=walk,
        request=shown(object, request),
        records=reply.rows,
        total=total(reply, object.total),
        more=more,
        complete=complete,
        pages=1 if complete else None if count is None else max(1, math.ceil(count / rows)),
        requests=requests,
        seconds=None if requests is None or not source.limit else seconds_at(source.limit, requests),
        left=client.left,
        sent=client.requests - sent,
        findings=found,
    )


def _begun(
    source: Source, object: ApiObject, walk: LookedWalk, since: datetime | None, until: datetime | None
) -> Position:
    """The position before the first request of a walk."""
    made = source.made(object.name)
    if walk == "window":
        if since is None or until is None:
            raise WindowInvalidError(
                "a window needs a beginning and an end.", todo="Give both, such as 2026-03-01T00:00:00Z."
            )
        return opened(object, Window(since, until), made)
    if walk == "incremental":
        closed = datetime.now(timezone.utc) - object.late if since is None else since + object.lookback
        return handed_off(object, replace(beginning(object, made), complete=True, closed=closed), made)
    return beginning(object, made)


def _is_part(position: Position) -> bool:
    """Whether what is read is a part of the list only, and its total may be of the whole."""
    return position.since is not None or position.pages > 1


def _expected(object: ApiObject, page: Page, position: Position) -> int | None:
    """How many records the walk will read, by the API's own word; None: it does not tell, or counts others too."""
    told = total(page, object.total)
    if told is None or (position.since is not None and getattr(object.pages, "cap", None) is None):
        return None
    return max(told - position.lap.rows + page.rows, page.rows)


def _rows(object: ApiObject, page: Page, more: bool | None) -> int:
    """How many records a page holds: what came, unless that may be the end of the list."""
    size = object.pages.size
    return max(page.rows, 1 if more or size is None else size.max)


def shown(object: ApiObject, request: Request) -> str:
    """A request as people may see it: ``GET /v1/contacts?limit=100``. What a login could be is left out, and of a
    private object what stands for a record."""
    if request.link is not None:
        return f"{request.method} {object.path} (by a link that the API gave)"
    path = object.path if object.private else request.path
    # A page token means nothing to a person, and may open somebody's data.
    hidden = {getattr(object.pages, "send", None)} if object.private or object.pages.by == "token" else set()
    params = [
        f"{name}={'***' if name in hidden or _LOGIN.search(name) else value}" for name, value in request.params.items()
    ]
    body = "" if request.body is None else f"   {_body(object, request.body)}"
    return f"{request.method} {path}{'?' if params else ''}{'&'.join(params)}{body}"


def _body(object: ApiObject, body: str) -> str:
    if object.private or _LOGIN.search(body):
        return f"(a body of {len(body):,} characters)"
    line = " ".join(body.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
