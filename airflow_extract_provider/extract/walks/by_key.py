"""The walk over keys that were noted: each record is read by its key, and so is the proof that it is gone."""

from __future__ import annotations

import dataclasses
from collections import Counter

from msgspec.structs import replace

from airflow_extract_provider.extract.api.templates import by_key_request
from airflow_extract_provider.extract.cursor import Position, Whole
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    ExtractError,
    LoginError,
    RequestRefusedError,
    SourceError,
    StopAndLook,
    WrongAnswerError,
)
from airflow_extract_provider.extract.page import Refused, Reply, Request
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.step import Answer, Due, DueKey, Step, Walk

__all__ = ["by_key", "noted"]

_AT_ONCE = 100
_TIMES = 3
_OWN = (StopAndLook, RequestRefusedError, SourceError)
"""Errors that the record of one key may be to blame for."""
_PERHAPS = (ApiUnavailableError, LoginError)
"""Errors that it may be to blame for, if the next key can be read."""
_PERHAPS_IN_A_ROW = 2
_GONE = (404, 410)


def noted(object: ApiObject, made: str | None = None) -> Position:
    """The position before the first request. Raises SourceError: the config does not say how to read by key."""
    if object.by_key is None:
        raise SourceError(
            "nothing in the config says how to read one record by its key.",
            todo="Declare `by_key`, such as {path: /v1/contacts/{{ key }}}.",
        )
    return Position(Whole(), key=object.key_name, made=made)


def by_key(object: ApiObject, position: Position, *, strict: bool = True) -> Walk:
    """Read the keys that are due until none is left: those noted before this walk began, and those noted meanwhile.

    A record that is there settles its note, and so does the API's word that it is gone (404, 410). What cannot be
    decided stays noted for the next time. A key that cannot be read keeps no other one waiting: it stays noted too, and
    its error is raised when all others have been read (not ``strict``: it is left to those who come later), or when a
    hundred in a row could not be; three, if the API seems to be away, or lets nobody in.
    """
    drain = _Drain(object)
    step = Step((), position, drain.due)
    while True:
        told = Step((), position, None)
        try:
            reply = yield step
            if isinstance(reply, Answer):
                if not drain.take(reply):
                    break
            else:
                position, told = _told(drain.reading, reply, replace(position, complete=False))
                drain.fine()
        except ExtractError as exc:
            drain.fail(exc)
            position = replace(position, pages=position.pages + 1, complete=False)
            told = Step((), position, None)
        step = dataclasses.replace(told, then=drain.then(position.pages + 1))
    drain.check(strict)
    yield Step((), replace(position, complete=True), None)


class _Drain:
    """The keys that wait to be read. Those that cannot be read, or decided, stay noted, and are passed over."""

    def __init__(self, object: ApiObject) -> None:
        self._object = object
        self._waiting: list[DueKey] = []
        self._asked: Counter[str] = Counter()
        self._left: set[str] = set()
        self._failed: dict[str, ExtractError] = {}
        self._in_a_row = 0
        self._last: ExtractError | None = None

    @property
    def due(self) -> Due:
        """What to ask of the store: those that are left out stand before the others."""
        return Due(_AT_ONCE + len(self._left))

    @property
    def reading(self) -> DueKey:
        """The key that was asked for last."""
        return self._waiting[0]

    def take(self, answer: Answer) -> bool:
        """Go on with what is due; return whether there is anything."""
        # Asked for and noted still: noted anew meanwhile, or not to be decided. It is not asked for without end.
        again = {item.key: self._asked[item.key] for item in answer.due if item.key in self._asked}
        self._left |= {key for key, times in again.items() if times >= _TIMES}
        self._asked = Counter(again)
        self._waiting = [item for item in answer.due if item.key not in self._left]
        return bool(self._waiting)

    def then(self, page: int) -> Request | Due:
        """What to ask next."""
        while self._waiting:
            try:
                found = by_key_request(self._object, self.reading.key, page)
            except SourceError as exc:
                self.fail(exc)
                continue
            self._asked[self.reading.key] += 1
            return found
        return self.due

    def fine(self) -> None:
        """The key was read."""
        self._waiting.pop(0)
        self._in_a_row = 0

    def fail(self, exc: ExtractError) -> None:
        """The key cannot be read. Raises the error where that is no matter of this key alone."""
        self._in_a_row += 1
        self._last = exc
        bound = _AT_ONCE if isinstance(exc, _OWN) else _PERHAPS_IN_A_ROW if isinstance(exc, _PERHAPS) else 0
        if not self._waiting or self._in_a_row > bound:
            raise exc
        key = self._waiting.pop(0).key
        self._failed[key] = exc
        self._left.add(key)

    def check(self, strict: bool) -> None:
        """Raise the first key's error, if there is one: all others have been read. Not ``strict``: only one that may be
        no key's own, since none could be read after it."""
        if self._in_a_row and isinstance(self._last, _PERHAPS):
            raise self._last
        if self._failed and strict:
            first, *more = self._failed
            exc = self._failed[first]
            named = "" if self._object.private else f", such as {', '.join(more[:3])}"
            others = f" ({len(more):,} more cannot be read{named}.)" if more else ""
            raise type(exc)(exc.what + others, todo=exc.todo, page=exc.page, key=first)


def _told(item: DueKey, reply: Reply, position: Position) -> tuple[Position, Step]:
    """What the answer to a read by key says: the record, or that it is gone."""
    moved = replace(position, pages=position.pages + 1)
    if isinstance(reply, Refused):
        if reply.status not in _GONE:
            raise RequestRefusedError(
                f"the API refuses to read this record by its key (status {reply.status}){reply.quoted}",
                todo="Check `by_key`: its path, and where the record is in the answer.",
                page=moved.pages,
                key=item.key,
            )
        if not reply.own:
            raise RequestRefusedError(
                f"status {reply.status} for this record is no answer of the API{reply.quoted}",
                todo="Most often a proxy says so while the API is away: run again later. Nothing was deleted.",
                page=moved.pages,
                key=item.key,
            )
        return moved, Step((), moved, None, gone=(item.key,), settled=(item,))
    strange = next((record.key for record in reply.records if record.key != item.key), None)
    if strange is not None:
        raise WrongAnswerError(
            "asked for one record by its key, the API sent another one.",
            todo="Check `by_key.path`.",
            page=moved.pages,
            key=item.key,
        )
    moved = replace(moved, records=moved.records + len(reply.records), began_at=moved.began_at or reply.began_at)
    return moved, Step(reply.records, moved, None, bad=reply.bad, settled=(item,))
