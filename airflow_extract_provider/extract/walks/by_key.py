"""The walk over keys that were noted: each record is read by its key, and so is the proof that it is gone."""

from __future__ import annotations

import dataclasses

from msgspec.structs import replace

from airflow_extract_provider.extract.api.templates import by_key_request
from airflow_extract_provider.extract.cursor import Position, Whole
from airflow_extract_provider.extract.errors import RequestRefusedError, SourceError, WrongAnswerError
from airflow_extract_provider.extract.page import Refused, Reply
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.step import Answer, Due, DueKey, Step, Walk

__all__ = ["by_key", "noted"]

_AT_ONCE = 100
_GONE = (404, 410)


def noted(object: ApiObject, made: str | None = None) -> Position:
    """The position before the first request. Raises SourceError: the config does not say how to read by key."""
    if object.by_key is None:
        raise SourceError(
            "nothing in the config says how to read one record by its key.",
            todo="Declare `by_key`, such as {path: /v1/contacts/{{ key }}}.",
        )
    return Position(Whole(), key=", ".join(".".join(path) for path in object.key), made=made)


def by_key(object: ApiObject, position: Position) -> Walk:
    """Read the keys that are due until none is left: those noted before this walk began, and those noted meanwhile.

    A record that is there settles its note, and so does the API's word that it is gone (404, 410). What cannot be
    decided stays noted for the next time. Raises WrongAnswerError: the API sent another record.
    """
    waiting: list[DueKey] = []
    before: frozenset[DueKey] = frozenset()
    step = Step((), position, Due(_AT_ONCE))
    while True:
        reply = yield step
        told = Step((), position, None)
        if isinstance(reply, Answer):
            waiting = [item for item in reply.due if item not in before]
            before = frozenset(reply.due)
            if not waiting:
                break
        else:
            position, told = _told(waiting.pop(0), reply, replace(position, complete=False))
        then = by_key_request(object, waiting[0].key, position.pages + 1) if waiting else Due(_AT_ONCE)
        step = dataclasses.replace(told, then=then)
    yield Step((), replace(position, complete=True), None)


def _told(item: DueKey, reply: Reply, position: Position) -> tuple[Position, Step]:
    """What the answer to a read by key says: the record, or that it is gone."""
    moved = replace(position, pages=position.pages + 1)
    if isinstance(reply, Refused):
        if reply.status not in _GONE:
            raise RequestRefusedError(
                f"the API refuses to read this record by its key (status {reply.status}).",
                todo="Check `by_key`: its path, and where the record is in the answer.",
                page=moved.pages,
                key=item.key,
            )
        return moved, Step((), moved, None, gone=(item.key,), settled=(item,))
    strange = next((record.key for record in reply.records if record.key != item.key), None)
    if strange is not None:
        raise WrongAnswerError(
            f"asked for one record by its key, the API sent another one ({strange}).",
            todo="Check `by_key.path`.",
            page=moved.pages,
            key=item.key,
        )
    moved = replace(moved, records=moved.records + len(reply.records), began_at=moved.began_at or reply.began_at)
    return moved, Step(reply.records, moved, None, bad=reply.bad, settled=(item,))
