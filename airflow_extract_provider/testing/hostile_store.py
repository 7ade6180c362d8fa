"""The one table behind a ``HostileApi``: its clock, its records, every version they had, and transactions.

A write takes its timestamp when it is made and is seen when it is committed. Between the two lies the trap: a record
that becomes visible after a reader has passed its timestamp, or its number.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

__all__ = ["Clock", "Key", "NewKeys", "Table", "Transaction", "Version", "seeded"]

Key: TypeAlias = int | str
NewKeys: TypeAlias = Literal["int", "text"] | Callable[[int], Key]
_MICROSECOND = timedelta(microseconds=1)


def seeded(*parts: object) -> int:
    """Return a number of 63 bits that looks random and is always the same for the same parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


class Clock:
    """The server's clock. It stands still until a request, a write or a test moves it."""

    def __init__(self, start: datetime) -> None:
        self._now = _aware(start)

    @property
    def now(self) -> datetime:
        """The server's time, in UTC."""
        return self._now

    def advance(self, by: float | timedelta) -> datetime:
        """Move on by so many seconds and return the time then. Less than 0: somebody sets the clock back."""
        self._now += by if isinstance(by, timedelta) else timedelta(seconds=by)
        return self._now

    def tick(self) -> datetime:
        """Move on by a microsecond and return the time then: no two writes have the same."""
        return self.advance(_MICROSECOND)


@dataclass(frozen=True)
class Version:
    """A record as it was between two writes.

    ``fields`` holds ``value`` and what the test gave; ``value`` is another number after each write, unless the test
    set it. ``number`` counts the record's versions from 1. ``committed`` is when it became visible. The last version
    of a record that was deleted has ``deleted`` set. Instants are in UTC, with microseconds.
    """

    id: Key
    number: int
    fields: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime | None
    committed: datetime
    deleted: bool = False


class Table:
    """The records that are visible, and in ``history`` every version that ever was, in the order of their commits."""

    def __init__(self, seed: int, clock: Clock, keys: NewKeys) -> None:
        self.seed = seed
        self.clock = clock
        self.visible: dict[Key, Version] = {}
        self.history: list[Version] = []
        self.lock = threading.RLock()
        self._keys = keys
        self._inserted = 0
        self._written = 0
        self._held: dict[Key, Transaction] = {}

    def begin(self) -> Transaction:
        """Start a transaction."""
        return Transaction(self)

    def as_of(self, instant: datetime) -> dict[Key, Version]:
        """The records that were visible then."""
        if not self.history or self.history[-1].committed <= instant:
            return self.visible
        then: dict[Key, Version] = {}
        for version in self.history:
            if version.committed <= instant:
                _show(then, version)
        return then

    def new_key(self) -> Key:
        """The next record's id. As with a real sequence, one that is rolled back is not given again."""
        self._inserted += 1
        if callable(self._keys):
            return self._keys(self._inserted)
        return self._inserted if self._keys == "int" else f"{seeded(self.seed, 'key', self._inserted):016x}"

    def new_value(self) -> int:
        """The next write's number."""
        self._written += 1
        return self._written

    def hold(self, key: Key, writer: Transaction) -> None:
        """Let only this transaction write the record until it ends."""
        if self._held.setdefault(key, writer) is not writer:
            raise ValueError(f"record {key!r} is held by an open transaction: commit it or roll it back first")

    def release(self, writer: Transaction) -> None:
        """Let others write what this transaction held."""
        self._held = {key: holder for key, holder in self._held.items() if holder is not writer}

    def commit(self, versions: list[Version]) -> None:
        """Make these versions visible, in this order."""
        for version in versions:
            committed = replace(version, committed=self.clock.now)
            self.history.append(committed)
            _show(self.visible, committed)


class Transaction:
    """Writes that take their timestamps now and are seen from ``commit`` on. A ``with`` block commits at its end.

    A record it wrote cannot be written by others until it ends, as with a row lock; trying raises ValueError.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._versions: list[Version] = []
        self._own: dict[Key, Version] = {}
        self._open = True

    def insert(self, n: int = 1, *, at: datetime | None = None, undated: bool = False, **fields: Any) -> list[Key]:
        """Add ``n`` records and return their ids. ``at``: created and updated then, instead of now.

        ``undated``: their ``updated_at`` is null until somebody updates them.
        """
        with self._table.lock:
            keys = []
            for _ in range(n):
                created = self._table.clock.tick() if at is None else _aware(at)
                key = self._table.new_key()
                if key in self._table.visible or key in self._own:
                    raise ValueError(f"there is a record {key!r} already")
                updated = None if undated else created
                self._write(Version(key, 1, self._fields({}, fields), created, updated, created))
                keys.append(key)
            return keys

    def bulk_import(self, n: int, at: datetime | None = None, **fields: Any) -> list[Key]:
        """Add ``n`` records that all have the same timestamp, ``at`` or now, and return their ids."""
        with self._table.lock:
            return self.insert(n, at=self._table.clock.tick() if at is None else at, **fields)

    def update(self, *ids: Key, at: datetime | None = None, touch: bool = True, **fields: Any) -> None:
        """Change records: each gets a new ``value`` or the given fields, and ``updated_at`` now or ``at``.

        ``touch`` False leaves ``updated_at`` as it is: a change that no filter on time finds.
        """
        with self._table.lock:
            for key in ids:
                old = self._record(key)
                now = self._table.clock.tick() if at is None else _aware(at)
                updated = now if touch else old.updated_at
                changed = replace(old, number=old.number + 1, fields=self._fields(old.fields, fields))
                self._write(replace(changed, updated_at=updated, committed=now))

    def delete(self, *ids: Key) -> None:
        """Remove records."""
        with self._table.lock:
            for key in ids:
                old = self._record(key)
                now = self._table.clock.tick()
                self._write(replace(old, number=old.number + 1, committed=now, deleted=True))

    def commit(self) -> None:
        """Let all see what was written, at once."""
        with self._table.lock:
            self._end()
            self._table.commit(self._versions)

    def rollback(self) -> None:
        """Forget what was written."""
        with self._table.lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self.commit() if kind is None else self.rollback()

    def _end(self) -> None:
        if not self._open:
            raise ValueError("this transaction has ended")
        self._open = False
        self._table.release(self)

    def _record(self, key: Key) -> Version:
        found = self._own.get(key) or self._table.visible.get(key)
        if found is None or found.deleted:
            raise KeyError(f"there is no record {key!r}")
        return found

    def _write(self, version: Version) -> None:
        if not self._open:
            raise ValueError("this transaction has ended")
        self._table.hold(version.id, self)
        self._versions.append(version)
        self._own[version.id] = version

    def _fields(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        own = sorted({"id", "created_at", "updated_at"} & set(new))
        if own:
            raise ValueError(f"the server sets {', '.join(own)}: use `at`, `undated` or `keys`")
        return {**old, "value": self._table.new_value(), **new}


def _show(records: dict[Key, Version], version: Version) -> None:
    if version.deleted:
        records.pop(version.id, None)
    else:
        records[version.id] = version


def _aware(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"{instant} has no time zone: give it one, for instance tzinfo=timezone.utc")
    return instant.astimezone(timezone.utc)
