"""The walk that reads everything again: a sweep. It finds what the API does not tell of, deletes among it."""

from __future__ import annotations

from msgspec.structs import replace

from airflow_extract_provider.extract.cursor import AtInstant, InWindow, Position
from airflow_extract_provider.extract.errors import BackfillFirstError
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.backfill import beginning
from airflow_extract_provider.extract.walks.by_key import by_key
from airflow_extract_provider.extract.walks.lap import lap, settled
from airflow_extract_provider.extract.walks.step import Absent, Answer, Step, Walk

__all__ = ["between_sweeps", "leaves_out_undated", "passes_by", "rebackfill"]

_AT_ONCE = 500
"""How many records one transaction deletes."""


def between_sweeps(object: ApiObject, backfilled: Position | None, made: str | None = None) -> Position:
    """The position between two sweeps; the first one comes after the backfill, whose end says when it is due.

    Raises BackfillFirstError: the backfill has not come to its end.
    """
    if backfilled is None or not backfilled.complete:
        raise BackfillFirstError(
            "the backfill has not come to its end; a sweep reads again what that has copied.",
            kept="everything; nothing was read.",
            todo="Run the backfill first; it goes on where it stands.",
        )
    return replace(beginning(object, made), complete=True)


def passes_by(object: ApiObject) -> bool:
    """Whether a record that is changed while it waits to be read may move to where the list was read already: the
    newest version comes first, or windows of time are read, which end where the sweep began. It is there then, though
    a whole sweep has not seen it."""
    order = object.order
    newest_first = order is not None and order.falling and order.field == object.version
    return getattr(object.pages, "cap", None) is not None or (newest_first and object.pages.by != "single")


def leaves_out_undated(position: Position) -> bool:
    """Whether the list that was read up to a position was asked for by instant, at least in part: a record without one
    is on no such page."""
    return isinstance(position.place, AtInstant | InWindow) or position.taken_up is not None


def rebackfill(object: ApiObject, position: Position) -> Walk:
    """Read an object from a position to its end; then, and only then, ask the store what was not seen.

    What was not seen is read by its key, which proves that it is gone or brings it; where the API cannot be asked so,
    the complete sweep is the proof, if it is one. Raises what :func:`~.lap.lap` and :func:`~.by_key.by_key` raise.
    """
    if position.complete:
        yield Step((), position, None)
        return
    step = Step((), position, Absent(_AT_ONCE))
    if not position.swept:
        read = yield from lap(object, position)
        position = replace(read.position, swept=True, closed=settled(read.position, object.late))
        step = Step(read.records, position, Absent(_AT_ONCE), bad=read.bad)
    answer = yield step
    assert isinstance(answer, Answer)
    if object.by_key is not None:
        # One key that cannot be read must not keep a sweep from its end, and the next one from its beginning.
        yield from by_key(object, position, strict=False)
        return
    while answer.due:
        gone = tuple(item.key for item in answer.due)
        answer = yield Step((), position, Absent(_AT_ONCE), gone=gone, settled=answer.due, absent=answer.before)
        assert isinstance(answer, Answer)
    yield Step((), replace(position, complete=True), None)
