"""A second look, by requests of its own: whether the filter `since` filters, and whether a key brings its record."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec
from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators import paginator
from airflow_extract_provider.extract.api.paginators.turn import request_refused
from airflow_extract_provider.extract.api.templates import by_key_request
from airflow_extract_provider.extract.errors import RequestRefusedError
from airflow_extract_provider.extract.findings import Finding, more_follow
from airflow_extract_provider.extract.hashes.record_hash import canonical_hash
from airflow_extract_provider.extract.instants import floored, shown_from
from airflow_extract_provider.extract.page import Page, Record, Refused, Request
from airflow_extract_provider.extract.paging import Since
from airflow_extract_provider.extract.reader import Client
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.backfill import beginning
from airflow_extract_provider.extract.walks.lap import lap

__all__ = ["looked_deeper"]

_GONE = (404, 410)
_FIELDS = 8
"""How many fields are named that differ."""


def looked_deeper(object: ApiObject, client: Client, page: Page) -> Iterator[Finding]:
    """Ask once by `since`, once or twice by key, for what a first page has shown; where the object has them.

    Raises RequestRefusedError: the API knows no such filter, or none of two keys that its own list holds. Raises what
    :meth:`~.api.client.ApiClient.fetch` raises.
    """
    newest = max((record for record in page.records if record.since is not None), key=_since_of, default=None)
    if object.since is not None and newest is not None:
        yield _by_since(object, object.since, client, page, newest)
    alive = [record for record in page.records if not record.deleted]
    if object.by_key is not None and alive:
        yield _by_key(object, client, alive)


def _since_of(record: Record) -> datetime:
    assert record.since is not None
    return record.since


def _by_since(object: ApiObject, since: Since, client: Client, page: Page, newest: Record) -> Finding:
    """Asked from the newest instant seen on, everything older must be left out, and that record must come."""
    named = f"`{since.send or 'since'}`"
    asked = floored(_since_of(newest), since.precision)
    reply = client.fetch(object, _from(object, asked))
    if isinstance(reply, Refused):
        raise request_refused(reply)
    least = shown_from(asked if since.inclusive else asked - since.precision, object.timestamps)
    older = sum(1 for record in reply.records if record.since is not None and record.since < least)
    if older:
        what = f"the API ignores {named}: {older:,} of {reply.rows:,} records are older than was asked for"
        return Finding("since", what, "check since.send and since.format")
    if not reply.bad and newest.key not in {one.key for one in reply.records} and not more_follow(object, reply):
        what = f"asked by {named} from a record's own instant on, the API leaves that record out"
        return Finding("since", what, "check since.inclusive, since.precision and since.format")
    if all(_since_of(record) >= least for record in page.records if record.since is not None):
        return Finding("since", f"{named} was taken, but all records seen are as new as was asked for")
    return Finding("since", f"{named} filters")


def _from(object: ApiObject, since: datetime) -> Request:
    """What a lap from an instant on would ask first."""
    begun = replace(beginning(object), since=since, place=paginator(object).start(since))
    request = next(lap(object, begun)).then
    assert isinstance(request, Request)
    return request


def _by_key(object: ApiObject, client: Client, alive: list[Record]) -> Finding:
    listed, reply = alive[0], client.fetch(object, by_key_request(object, alive[0].key, 1))
    if isinstance(reply, Refused) and reply.status in _GONE:
        # One may be deleted between the two requests; two at once hardly are.
        listed, reply = alive[-1], client.fetch(object, by_key_request(object, alive[-1].key, 1))
    if isinstance(reply, Refused):
        if reply.status not in _GONE:
            raise request_refused(reply)
        raise RequestRefusedError(
            f"asked by key for records that its own list holds, the API gives status {reply.status}.",
            todo="Correct by_key.path: a sweep would take living records for deleted.",
        )
    if not reply.records:
        what = "the record that is read by key cannot be stored"
        return Finding("by_key", what, "correct by_key.record: where the answer holds the record")
    exclude = object.hash.exclude
    read = reply.records[0]
    moved = read.version != listed.version
    if moved or canonical_hash(read.raw, exclude) == canonical_hash(listed.raw, exclude):
        return Finding("by_key", "by key the same record")
    what = f"by key the record differs from the list's{_differing(object, listed, read)}"
    todo = (
        "leave what differs out by hash.exclude, or make both alike by `params`: each reading would count as a change"
    )
    return Finding("by_key", what, todo)


def _differing(object: ApiObject, one: Record, other: Record) -> str:
    """Which fields differ. Names may be data too: of a private object there are none."""
    if object.private:
        return ""
    ours, theirs = (msgspec.json.decode(record.raw, type=dict[str, msgspec.Raw]) for record in (one, other))
    names = [
        name
        for name in dict.fromkeys((*ours, *theirs))
        if name not in ours
        or name not in theirs
        or canonical_hash(bytes(ours[name])) != canonical_hash(bytes(theirs[name]))
    ]
    return f" in {', '.join(names[:_FIELDS])}{' and more' if len(names) > _FIELDS else ''}"
