"""Objects as Airflow's assets: what a DAG is scheduled on that shall run when an object's copy has changed.

::

    with DAG("mail", schedule=[Asset("extract://crm/contacts")]): ...

An asset event means "look": the copy and the outbox tell what has changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from airflow.sdk import Asset, AssetAlias, AssetWatcher

from airflow_extract_provider import config

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.progress import Summary

__all__ = ["alias_of", "asset_of", "changes", "checked_uri", "inbox_of", "register", "told"]

_CHANGES = ("created", "updated", "undeleted", "deleted", "regressed")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_INBOX = ["webhooks", "inbox"]
"""Two names, where an object has one."""


def asset_of(source: str, object: str) -> Asset:
    """The asset of an object; ``Asset("extract://source/object")`` is the same."""
    return Asset(f"extract://{source}/{object}")


def alias_of(source: str) -> AssetAlias:
    """What the tasks of a source declare as their outlet, since only at its end a task knows whether it has changed
    anything. A DAG that is scheduled on it runs when any of the source's objects has changed."""
    return AssetAlias(f"extract://{source}")


def inbox_of(
    source: str, store_conn_id: str | None = None, *, pause: float = 5.0, endpoints: Sequence[str] | None = None
) -> Asset:
    """The asset of a source's webhooks that wait: a DAG that is scheduled on it runs as they come, at most every
    ``pause`` seconds, as the triggerer hears of them. It is watched as it is made here: a DAG that names its URI alone
    would take the watcher away. ``store_conn_id``: None: as Airflow's ``[extract] store_conn_id`` says.
    ``endpoints``: only what came to these addresses, those that the source's file describes; None: to any."""
    from airflow_extract_provider.triggers.inbox import InboxTrigger

    store = store_conn_id or config.store_conn_id()
    trigger = InboxTrigger(source=source, endpoints=endpoints, store_conn_id=store, pause=pause)
    watcher = AssetWatcher(name=f"{source} webhooks", trigger=trigger)
    return Asset("/".join([f"extract://{source}", *_INBOX]), watchers=[watcher])


def changes(summary: Summary) -> dict[str, Any] | None:
    """What an asset event tells of a run, its tries and slices together; None: it has changed nothing."""
    return told(summary.counts, summary.complete_to)


def told(counts: Mapping[str, int], complete_to: datetime | None = None) -> dict[str, Any] | None:
    """The same of changes by kind, and ``events``. ``complete_to``: None: to no instant that one knows of."""
    found = {kind: counts.get(kind, 0) for kind in _CHANGES}
    if not any(found.values()):
        return None
    at = complete_to.isoformat() if complete_to else None
    return {**found, "events": counts.get("events", 0), "complete_to": at}


def register(context: Context, source: str, object: str, told: Mapping[str, Any]) -> None:
    """Let the task, if it succeeds, report an asset event of the object, with what it tells."""
    context["outlet_events"][alias_of(source)].add(asset_of(source, object), extra=dict(told))


def checked_uri(uri: SplitResult) -> SplitResult:
    """The URI as it is, for Airflow: a DAG scheduled on a misspelt one would never run.

    Raises ValueError: it names no object of a source.
    """
    source, *names = [uri.netloc, *uri.path.split("/")[1:]]
    known = len(names) == 1 or names == _INBOX
    if not known or not all(_NAME.fullmatch(name) for name in (source, *names)) or uri.query:
        raise ValueError("an asset of extract is written extract://source/object")
    return uri
