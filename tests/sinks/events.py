"""Events to publish."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

from airflow_extract_provider.extract.events.event import Event, event_id

__all__ = ["event", "histories"]

_BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def event(
    key: str = "1",
    revision: int = 1,
    data: bytes | None = b'{"id": 1}',
    *,
    object: str = "orders",
    baseline: bool = False,
) -> Event:
    """One change of one record of `shop`."""
    return Event(
        id=event_id("shop", object, 1, key, "changed", revision, 0),
        source="shop",
        object=object,
        type=f"{object}.changed",
        key=key,
        time=_BEGIN + timedelta(microseconds=revision),
        revision=revision,
        data=data,
        baseline=baseline,
    )


def histories(keys: Iterable[str], revisions: Iterable[int]) -> list[Event]:
    """Each of these revisions of each key: revision by revision, so that the keys alternate."""
    chosen = list(keys)
    return [event(key, revision, b'{"revision": %d}' % revision) for revision in revisions for key in chosen]
