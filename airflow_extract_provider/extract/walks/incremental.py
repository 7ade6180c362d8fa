"""The walk that brings what has changed: lap after lap, each from a little before where the last one was complete."""

from __future__ import annotations

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators import paginator
from airflow_extract_provider.extract.cursor import Pass, Position
from airflow_extract_provider.extract.errors import BackfillFirstError, SourceError
from airflow_extract_provider.extract.instants import shown_from
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.backfill import beginning
from airflow_extract_provider.extract.walks.lap import lap, settled
from airflow_extract_provider.extract.walks.step import Step, Walk

__all__ = ["handed_off", "incremental"]


def handed_off(object: ApiObject, backfilled: Position | None, made: str | None = None) -> Position:
    """Where the incremental walk begins: at what the backfill has made complete, which lies before its first request.

    Raises BackfillFirstError: the backfill has not come to its end. Raises SourceError: the API cannot be asked so.
    """
    if not object.incremental:
        raise SourceError(
            "nothing in the config says how to ask this API for what has changed.",
            todo="Declare `since`, or `order: [-<version>]`; else trigger the backfill again with *Start over*.",
        )
    if backfilled is None or not backfilled.complete:
        raise BackfillFirstError(
            "the backfill has not come to its end; what has changed is asked for from then on.",
            kept="everything; nothing was read.",
            todo="Run the backfill first; it goes on where it stands.",
        )
    # A backfill of an earlier version of this package did not note it.
    closed = backfilled.closed or settled(backfilled, object.late)
    return replace(beginning(object, made), complete=True, closed=closed, largest=backfilled.largest)


def incremental(object: ApiObject, position: Position) -> Walk:
    """Read what has changed since the position's ``closed``, less the object's lookback, to the end; or go on with the
    lap that a position is in.

    At its end ``closed`` moves on to the instant before the lap's first request, on the API's clock, less what may come
    late: never further, whatever the records say. Raises what :func:`~.lap.lap` raises.
    """
    if position.complete:
        position = _new_lap(object, position)
    newest_first = object.since is None and object.pages.by != "position"
    below = shown_from(position.since, object.timestamps) if newest_first and position.since else None
    read = yield from lap(object, position, below)
    ended = replace(read.position, complete=True, closed=settled(read.position, object.late))
    yield Step(read.records, ended, None, bad=read.bad)


def _new_lap(object: ApiObject, position: Position) -> Position:
    since = None if position.closed is None else position.closed - object.lookback
    return replace(
        position,
        place=paginator(object).start(since, position.largest),
        complete=False,
        began_at=None,
        order=None,
        since=since,
        lap=Pass(),
        taken_up=None,
        restarts=0,
    )
