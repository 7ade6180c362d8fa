"""One change of one record, as it was stored, and what it changed."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from airflow_extract_provider.extract.exact import read, same
from airflow_extract_provider.extract.hashes.record_hash import canonical_hash
from airflow_extract_provider.extract.page import FieldPath

__all__ = ["ABSENT", "BOTH_SIDES", "Change", "ChangeKind", "Seen", "differing", "held_at"]

ABSENT: Any = object()
"""What stands where a record has no such field."""
BOTH_SIDES = ("updated", "regressed", "undeleted")
"""Kinds of changes with a record before and after."""
_PLAIN = re.compile(r"[A-Za-z_$@][A-Za-z0-9_$@-]*")

ChangeKind: TypeAlias = Literal["created", "updated", "undeleted", "deleted", "regressed"]
"""What happened to the stored copy; regressed: it went back to an older state, which the API had proved to be true."""


_Equal: TypeAlias = Callable[[Any, Any], bool]


class Change(msgspec.Struct, frozen=True):
    """What the store did to one record.

    ``before`` is the JSON text of the stored copy, possibly only what `keep` keeps of it; None: there was none, or
    nobody needs it. ``after`` is the record as it came; None: it is deleted. ``revision`` counts the copy's changes,
    this one included. ``time`` is aware. ``partly_known``: ``before`` was kept under another `keep`; what is not in it
    may have been in the record.
    """

    key: str
    kind: ChangeKind
    revision: int
    before: bytes | None
    after: bytes | None
    time: datetime
    partly_known: bool = False


def differing(
    before: Any,
    after: Any,
    keep: Collection[FieldPath] | None = None,
    *,
    exclude: Collection[FieldPath] = (),
    booleans: bool = True,
) -> list[str]:
    """The paths of what differs between two records, by name; a list differs as a whole.

    ``keep``: ``before`` holds these fields only, and only they are compared. ``exclude``: what stands there, or below,
    does not count. ``booleans`` False: neither holds any, which makes it twice as fast.
    """
    if keep is not None:
        before, after = _reduced(before, keep), _reduced(after, keep)
    paths = _differences(before, after, same if booleans else operator.eq)
    return [_dotted(path) for path in paths if not exclude or not _below(path, exclude)]


def held_at(record: Any, path: FieldPath) -> Any:
    """What stands at a path, or ABSENT. A path leads through objects only."""
    for name in path:
        record = record.get(name, ABSENT) if isinstance(record, dict) else ABSENT
    return record


def _differences(before: Any, after: Any, equal: _Equal, path: FieldPath = ()) -> Iterator[FieldPath]:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if not equal(before, after):
            yield path
        return
    names = before.keys() | after.keys()
    for name in sorted(name for name in names if not equal(before.get(name, ABSENT), after.get(name, ABSENT))):
        yield from _differences(before.get(name, ABSENT), after.get(name, ABSENT), equal, (*path, name))


def _below(path: FieldPath, others: Collection[FieldPath]) -> bool:
    """Whether a path is one of the others, or leads on from one."""
    return any(path[: len(other)] == other for other in others)


@lru_cache(maxsize=4096)
def _dotted(path: FieldPath) -> str:
    """A path as JMESPath writes it: a name that is no plain word is quoted."""
    return ".".join(name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in path)


def _reduced(value: Any, keep: Collection[FieldPath]) -> Any:
    """What these paths hold of a value, cut as the store cuts what it keeps: what is no object stays whole."""
    if () in keep or not isinstance(value, dict):
        return value
    below: dict[str, list[FieldPath]] = {}
    for name, *rest in keep:
        below.setdefault(name, []).append(tuple(rest))
    return {name: _reduced(value[name], rest) for name, rest in below.items() if name in value}


_UNREAD: Any = object()


class Seen:
    """A change, whose records are read when a rule asks for them first. ``keep``: the fields that the stored copy
    keeps, None: all. ``exclude``: those of which a change is none."""

    __slots__ = ("_after", "_before", "_changed", "_exclude", "_keep", "_state", "change")

    def __init__(self, change: Change, keep: tuple[FieldPath, ...] | None, exclude: tuple[FieldPath, ...] = ()) -> None:
        self.change, self._keep, self._exclude = change, keep, exclude
        # By hand: until Python 3.12 a cached property takes a lock, which costs as much as reading the record.
        self._before = self._after = self._changed = self._state = _UNREAD

    @property
    def before(self) -> Any:
        """The stored copy."""
        if self._before is _UNREAD:
            self._before = None if self.change.before is None else read(self.change.before)
        return self._before

    @property
    def after(self) -> Any:
        """The record."""
        if self._after is _UNREAD:
            self._after = None if self.change.after is None else read(self.change.after)
        return self._after

    @property
    def state(self) -> bytes | None:
        """A hash of what counts of the record after the change."""
        if self._state is _UNREAD:
            self._state = None if self.change.after is None else canonical_hash(self.change.after, self._exclude)
        found: bytes | None = self._state
        return found

    @property
    def changed(self) -> list[str] | None:
        """The fields that differ, of those that are kept and count; None where there are no two records."""
        if self._changed is _UNREAD:
            both = self.change.kind in BOTH_SIDES and self.before is not None
            self._changed = self._differing() if both else None
        found: list[str] | None = self._changed
        return found

    def _differing(self) -> list[str]:
        texts = (self.change.before or b"", self.change.after or b"")
        booleans = any(word in text for text in texts for word in (b"true", b"false"))
        keep = [(name,) for name in self.before] if self.change.partly_known else self._keep
        return differing(self.before, self.after, keep, exclude=self._exclude, booleans=booleans)

    def knew(self, reads: Sequence[FieldPath] | None) -> bool:
        """Whether what a rule reads is in the stored copy, which was kept under another `keep`."""
        return reads is not None and all(held_at(self.before, path) is not ABSENT for path in reads)
