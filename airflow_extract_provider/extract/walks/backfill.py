"""The walk from the beginning of an object to its end, resumable after every page."""

from __future__ import annotations

from msgspec.structs import replace

from airflow_extract_provider.extract.api.paginators import paginator
from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.lap import lap, settled
from airflow_extract_provider.extract.walks.step import Step, Walk

__all__ = ["backfill", "beginning"]


def beginning(object: ApiObject, made: str | None = None) -> Position:
    """The position before the first request; ``made`` as :meth:`Source.made` tells it."""
    return Position(paginator(object).start(), key=object.key_name, made=made)


def backfill(object: ApiObject, position: Position) -> Walk:
    """Read an object from a position to its end, in the API's own order.

    Its end is up to when the copy is complete, and where the incremental walk takes over: an instant before the first
    request, on the API's clock, less what may come late. Raises what :func:`~.lap.lap` raises.
    """
    if position.complete:
        yield Step((), position, None)
        return
    read = yield from lap(object, position)
    ended = replace(read.position, complete=True, closed=settled(read.position, object.late))
    yield Step(read.records, ended, None, bad=read.bad)
