"""What a look is tried on: a hostile API, the source that describes it, a client; and the walk, without a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.look import Look, look
from airflow_extract_provider.extract.page import Request
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.walks.backfill import backfill, beginning
from airflow_extract_provider.testing.hostile import HostileApi, Listing

__all__ = ["FIRST", "TOKENS", "client", "doubts", "filled", "looked", "shop", "walked"]

FIRST = datetime(2026, 2, 1, tzinfo=timezone.utc)
TOKENS: Mapping[str, Any] = {
    "path": "/things",
    "records": "data",
    "key": "id",
    "version": "updated_at",
    "order": ["updated_at", "id"],
    "since": {"send": "since", "inclusive": True, "precision": "1us"},
    "pages": {"by": "token", "take": "next", "send": "cursor", "size": {"send": "limit", "max": 10}},
    "by_key": {"path": "/things/{{ key }}"},
}
"""An object over the listing that :func:`filled` serves, when it is told nothing else."""


def shop(spec: Mapping[str, Any], **more: Any) -> Source:
    """A source with the one object `things`."""
    return parse_source({"source": "shop", "connection": "shop_api", "objects": {"things": spec}, **more}, "shop.yaml")


@contextmanager
def filled(
    listing: Listing | None = None, count: int = 95, *, first: datetime = FIRST, step: timedelta = timedelta(seconds=1)
) -> Iterator[HostileApi]:
    """A hostile API with so many records, ``step`` after each other from ``first`` on."""
    served = listing or Listing("token", ("updated_at", "id"), filter="inclusive", size_param="limit")
    with HostileApi(seed=1, listings={"/things": served}) as api:
        for number in range(count):
            api.insert(1, at=first + number * step)
        yield api


@contextmanager
def client(source: Source, url: str) -> Iterator[ApiClient]:
    """A client without patience."""
    with requests.Session() as session:
        yield ApiClient(source, session, url, bounds=Bounds(2.0, 2.0), tries=1)


def looked(api: HostileApi, spec: Mapping[str, Any], limits: Mapping[str, Any] | None = None, **arguments: Any) -> Look:
    """A look at `things`. ``limits`` are further keys of the source."""
    source = shop(spec, **(limits or {}))
    with client(source, api.url) as asking:
        return look(source, "things", asking, **arguments)


def doubts(seen: Look) -> dict[str, str]:
    """The doubts by name, each with what to do."""
    return {each.name: f"{each.what} -> {each.todo}" for each in seen.doubts}


def walked(api: HostileApi, spec: Mapping[str, Any]) -> int:
    """Walk a backfill to its end; how many requests that took."""
    source = shop(spec)
    object = source.object("things")
    steps = backfill(object, beginning(object))
    step = next(steps)
    with client(source, api.url) as asking:
        while isinstance(step.then, Request):
            step = steps.send(asking.fetch(object, step.then))
        return asking.requests
