"""Objects as Airflow's assets: what a DAG is scheduled on that shall run when an object's copy has changed.

::

    with DAG("mail", schedule=[Asset("extract://crm/contacts")]): ...

An asset event means "look": the copy and the outbox tell what has changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

from airflow.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_extract_provider.extract.progress import Summary

__all__ = ["alias_of", "asset_of", "changes", "checked_uri", "register"]

_CHANGES = ("created", "updated", "undeleted", "deleted", "regressed")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def asset_of(source: str, object: str) -> Asset:
    """The asset of an object; ``Asset("extract://source/object")`` is the same."""
    return Asset(f"extract://{source}/{object}")


def alias_of(source: str) -> AssetAlias:
    """What the tasks of a source declare as their outlet, since only at its end a task knows whether it has changed
    anything. A DAG that is scheduled on it runs when any of the source's objects has changed."""
    return AssetAlias(f"extract://{source}")


def changes(summary: Summary) -> dict[str, Any] | None:
    """What an asset event tells of a run, its tries and slices together; None: it has changed nothing."""
    counts = {kind: summary.counts.get(kind, 0) for kind in _CHANGES}
    if not any(counts.values()):
        return None
    complete_to = summary.complete_to.isoformat() if summary.complete_to else None
    return {**counts, "events": summary.counts.get("events", 0), "complete_to": complete_to}


def register(context: Context, source: str, object: str, told: Mapping[str, Any]) -> None:
    """Let the task, if it succeeds, report an asset event of the object, with what it tells."""
    context["outlet_events"][alias_of(source)].add(asset_of(source, object), extra=dict(told))


def checked_uri(uri: SplitResult) -> SplitResult:
    """The URI as it is, for Airflow: a DAG scheduled on a misspelt one would never run.

    Raises ValueError: it names no object of a source.
    """
    names = [uri.netloc, *uri.path.split("/")[1:]]
    if len(names) != 2 or not all(_NAME.fullmatch(name) for name in names) or uri.query:
        raise ValueError("an asset of extract is written extract://source/object")
    return uri
