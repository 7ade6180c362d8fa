"""One copy of each record, brought into the record table: compared, claimed or locked, judged, written, told of.

Everything happens in a transaction of apply's, statement by statement. A pipeline would save round trips, but between
its parts Postgres does not count a process that has stopped as idle, and would leave it its locks for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from typing import Any, TypeAlias

import msgspec
import psycopg
from msgspec.structs import replace
from psycopg import sql

from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.events.change import Change, ChangeKind
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.store.arrays import Blobs, Texts, instants
from airflow_extract_provider.extract.store.audit import Audit
from airflow_extract_provider.extract.store.brought import News
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.detect import detect
from airflow_extract_provider.extract.store.fields import Folding
from airflow_extract_provider.extract.store.judge import Coming, Stored, Verdict, judge
from airflow_extract_provider.extract.store.shape import Shape
from airflow_extract_provider.extract.store.statements import sparse, statements
from airflow_extract_provider.extract.store.storable import unstorable
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.store.unreadable import bad

__all__ = ["Differing", "Work", "Written", "compared", "composed", "respelled", "settle"]

_FILE = "apply.sql"
_WRITTEN: Mapping[Verdict, ChangeKind] = {"write": "updated", "regress": "regressed", "undelete": "undeleted"}

Differing: TypeAlias = Mapping[str, bool]
"""The keys of a round that are not stored as they come, and whether there is a row."""
Written: TypeAlias = Mapping[str, bytes | None]
"""The hashes of what was written, by key; None where it was deleted."""


class _Locked(msgspec.Struct, frozen=True):
    """A stored row under its lock. ``data`` is fetched only where something needs it."""

    version: datetime | None
    raw_hash: bytes
    deleted_at: datetime | None
    applied_at: datetime
    revision: int
    canonical: bytes | None
    data: str | None

    @property
    def never_alive(self) -> bool:
        """It came as a tombstone: nobody was ever told of the record."""
        return self.deleted_at is not None and self.revision == 1


@dataclass(slots=True)
class Work:
    """What a transaction has found so far.

    ``twice`` are keys with more than one copy, ``newest`` are their newest versions; ``looked`` tells when the pages of
    what was written were asked for. ``refused`` are records, by their bytes, that Postgres has refused in an earlier
    attempt, and why; None: to meet one is an error, nothing is set ``aside``. ``clock`` is Postgres's at the beginning,
    once the fence is held. ``audit`` is told what a sweep changes. ``written``: the hashes of what was, by key; None
    where it was deleted. ``news`` are the changes, where somebody asks what brought them.
    """

    conn: Connection
    target: Target
    clock: datetime
    twice: set[str]
    newest: Mapping[str, datetime]
    refused: Mapping[bytes, str] | None
    audit: Audit | None = None
    looked: dict[str, datetime] = field(default_factory=dict)
    aside: list[tuple[Coming, str]] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    undecided: set[str] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    foldings: list[Folding] = field(default_factory=list)
    written: dict[str, bytes | None] = field(default_factory=dict)
    news: list[News] = field(default_factory=list)

    def rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.conn.execute(_composed(name, self.target), values, binary=True).fetchall()

    def judged(self, record: Coming, row: _Locked) -> Verdict:
        """What to do with a record, given the row that it meets."""
        version = row.version and row.version.replace(tzinfo=timezone.utc)
        # What this transaction itself has written was looked at when its page was asked for.
        looked = self.looked.get(record.key, row.applied_at)
        verdict = judge(record, Stored(version, row.raw_hash, row.deleted_at, looked))
        if record.told and verdict == "refetch" and record.version == version and self._agrees(record, row):
            return "unchanged"
        newest = self.newest.get(record.key)
        if verdict == "refetch" and None not in (record.version, version, newest) and row.deleted_at is None:
            # An older copy, which a later look of this transaction has overtaken: the API has not gone back.
            return "stale" if record.version < version <= newest else verdict  # type: ignore[operator]
        return verdict

    def _agrees(self, record: Coming, row: _Locked) -> bool:
        """Whether what a webhook brings is what is stored, in another spelling: nothing need be read again then."""
        if record.deleted or row.deleted_at is not None or row.data is None:
            return False
        return self.target.shape.agrees(record.raw, row.raw_hash, row.canonical, row.data)

    def refuses(self, record: Coming) -> bool:
        """Whether a record cannot be stored as it is, and was set aside.

        Raises BadRecordError: nothing is set aside here.
        """
        why = (self.refused or {}).get(record.raw) or unstorable(record.raw)
        if why is None and not record.deleted:
            # A tombstone writes no columns: it may have none of the record's fields, or others.
            why = self.target.shape.refusal(record.raw)
        if why is None:
            return False
        if self.refused is None:
            raise bad(record, why)
        self.aside.append((record, why))
        return True


class _Written(msgspec.Struct, frozen=True):
    """A row that was written. ``kind``: what has changed; None: only how it is stored. ``before``: as it was."""

    record: Coming
    kind: ChangeKind | None
    revision: int
    before: _Locked | None = None


def compared(found: Mapping[str, Coming], also: Iterable[str]) -> dict[str, Any]:
    """The parameters of the statement that compares a round with what is stored. ``also``: keys that it tells of in any
    case."""
    records = found.values()
    return {
        "keys": Texts(found),
        "versions": instants([record.version for record in records]),
        "hashes": Blobs([record.raw_hash for record in records]),
        "deleted": sparse([record.deleted for record in records]),
        "also": Texts(also),
    }


def respelled(
    target: Target, record: Coming, canonical: bytes | None, refused: Mapping[bytes, str] | None = None
) -> bool:
    """Whether a record that came in other bytes is the stored one, whose canonical hash this is: in another spelling,
    or with other values only where they do not count. Then there is nothing to lock, and nothing to write.

    What could not be stored as it came is none: it is an error, or set aside.
    """
    shape = target.shape
    if canonical is None or canonical[16:] != shape.identity or record.raw in (refused or {}):
        return False
    # Asked first: what cannot be stored may have no hash either.
    return not unstorable(record.raw) and not shape.refusal(record.raw) and shape.canonical(record.raw) == canonical


def settle(work: Work, found: Mapping[str, Coming], differing: Differing) -> None:
    """Bring what differs into the table.

    Raises SerializationFailure: rows have vanished meanwhile, do it again.
    """
    good = [found[key] for key in sorted(differing) if not work.refuses(found[key])]
    absent = [record for record in good if not differing[record.key]]
    claimed = {row[0] for row in work.rows("claim", **_inserted(work.target, absent))} if absent else set()
    _tell(work, _claimed(work, [record for record in absent if record.key in claimed]))
    _change(work, [record for record in good if record.key not in claimed])


def _claimed(work: Work, records: Sequence[Coming]) -> list[_Written]:
    work.changes.update("deleted" if record.deleted else "created" for record in records)
    if work.twice:
        work.looked.update((record.key, record.sent_at) for record in records)
    return [_Written(record, "created", 1) for record in records if not record.deleted]


def _change(work: Work, records: Sequence[Coming]) -> None:
    """Lock rows, in key order, judge the records by what they meet, and write what is newer."""
    if not records:
        return
    target, shape = work.target, work.target.shape
    old = target.needs_old or any(record.told for record in records)
    asked = {"keys": Texts([record.key for record in records]), "old": old}
    asked |= {"part": not shape.whole, "counted": shape.counted_as}
    locked = {row[0]: _Locked(*row[1:]) for row in work.rows("lock", **asked)}
    if lost := [record for record in records if record.key not in locked]:
        raise _lost(work, lost)
    verdicts = {record.key: work.judged(record, locked[record.key]) for record in records}
    writes = [record for record in records if verdicts[record.key] in _WRITTEN]
    deletes = [record for record in records if verdicts[record.key] in ("delete", "retold")]
    revisions: dict[str, int] = dict(work.rows("write", **_written(target, writes, locked)) if writes else ())
    revisions |= dict(work.rows("delete", **_gone(deletes)) if deletes else ())
    if kept_out := [record for record in (*writes, *deletes) if record.key not in revisions]:
        raise _kept_out(kept_out[0])
    kinds = {record.key: _WRITTEN[verdicts[record.key]] for record in writes}
    kinds |= {record.key: "deleted" for record in deletes}
    rows = [_Written(each, kinds[each.key], revisions[each.key], locked[each.key]) for each in [*writes, *deletes]]
    _tell(work, [_counted(work, each) for each in rows if verdicts[each.record.key] != "retold"])
    work.looked.update((record.key, record.sent_at) for record in deletes)
    counted = Counter(verdicts.values())
    work.changes += Counter(stale=counted["stale"], refetch=counted["refetch"])
    work.undecided |= {key for key, verdict in verdicts.items() if verdict == "refetch"}


def _lost(work: Work, lost: Sequence[Coming]) -> Exception:
    """Why there are no rows to be locked. Somebody deleted them by hand since they were read: done again, the records
    are claimed like new ones. Or they cannot be claimed either."""
    claimed = {row[0] for row in work.rows("claim", **_inserted(work.target, lost))}
    if kept_out := [record for record in lost if record.key not in claimed]:
        return _kept_out(kept_out[0])
    return psycopg.errors.SerializationFailure("rows were deleted between being read and being locked")


def _kept_out(record: Coming) -> BadRecordError:
    return BadRecordError(
        "a trigger or a rule of the record table keeps a row from being written, without an error.",
        todo="Let it through: the copy would not be exact. A view can leave out what nobody should see.",
        page=record.page,
        record=record.number,
        key=record.key,
    )


def _counted(work: Work, row: _Written) -> _Written:
    """A written row as what it is: a change, if the revision says so."""
    assert row.before is not None
    assert row.kind is not None
    if row.revision == row.before.revision:
        return replace(row, kind=None)
    work.changes[row.kind] += 1
    work.looked[row.record.key] = row.record.sent_at
    return row


def _tell(work: Work, rows: Sequence[_Written]) -> None:
    """Find the events of what was written, under the rows' locks, and keep what is to be folded."""
    work.written.update((row.record.key, None if row.record.deleted else row.record.raw_hash) for row in rows)
    if work.target.grace is not None:
        told = [(row, row.kind) for row in rows if row.kind is not None]
        work.news += [News(row.record.key, row.revision, row.record.version, kind) for row, kind in told]
    if work.target.folds:
        work.foldings += [_folding(row) for row in rows if _is_news(work.target, row)]
    if work.audit is not None:
        _audit(work.audit, work.target.shape, rows)
    if work.target.detects:
        changes = [_seen(work, row, row.kind) for row in rows if row.kind is not None]
        work.events += detect(work.conn, work.target, changes)


def _audit(audit: Audit, shape: Shape, rows: Sequence[_Written]) -> None:
    for row in rows:
        if row.kind == "deleted":
            audit.deleted(by_key=row.record.by_key)
        elif row.before is None:
            audit.created(row.record.version)
        elif row.kind is not None:
            known = row.before.version and row.before.version.replace(tzinfo=timezone.utc)
            partly = shape.kept_otherwise(row.before.canonical)
            audit.changed(row.kind, row.record.version, known, row.before.data, row.record.raw, partly=partly)


def _is_news(target: Target, row: _Written) -> bool:
    """Whether there is something to fold: a change, or what was stored when other fields were asked for. That the same
    record came in another spelling must not write over what people have edited."""
    if row.kind is not None or row.before is None:
        return row.kind is not None
    shape, before = target.shape, row.before
    return not (shape.marked(before.raw_hash) and shape.tells(row.record.raw, before.raw_hash, before.canonical))


def _folding(row: _Written) -> Folding:
    if row.kind != "deleted":
        return Folding(row.record.key, row.record.raw, row.record.turn)
    stored = row.before.data if row.before is not None else None
    return Folding(row.record.key, (stored or "{}").encode(), row.record.turn, deleted=True)


def _seen(work: Work, row: _Written, kind: ChangeKind) -> Change:
    """A change as the rules look at it."""
    record, before = row.record, row.before
    if before is not None and before.never_alive:
        before, kind = None, "created"
    return Change(
        key=record.key,
        kind=kind,
        revision=row.revision,
        before=None if before is None or before.data is None else before.data.encode(),
        after=None if kind == "deleted" else record.raw,
        time=record.version or work.clock,
        partly_known=before is not None and work.target.shape.kept_otherwise(before.canonical),
    )


def _inserted(target: Target, records: Sequence[Coming]) -> dict[str, Any]:
    """Without canonical hashes, where `data` tells: most records never change, nor come in another spelling."""
    canonical = [] if target.shape.whole else [target.shape.canonical(record.raw) for record in records]
    deleted = sparse([record.deleted for record in records])
    return {**_columns(target, records), "canonical": canonical, "deleted": deleted}


def _written(target: Target, records: Sequence[Coming], locked: Mapping[str, _Locked]) -> dict[str, Any]:
    shape, rows = target.shape, [locked[record.key] for record in records]
    canonical = [shape.canonical(record.raw) for record in records]
    differs = [
        shape.differs(record.raw, now, row.raw_hash, row.canonical, row.data)
        for record, now, row in zip(records, canonical, rows, strict=True)
    ]
    # False is told, null is not: that is for Postgres to find out.
    told = differs if any(each is not None for each in differs) else []
    return {**_columns(target, records), "canonical": canonical, "differs": told}


def _gone(records: Sequence[Coming]) -> dict[str, Any]:
    return {
        "keys": Texts([record.key for record in records]),
        "versions": instants([record.version for record in records]),
        "hashes": Blobs([record.raw_hash for record in records]),
    }


def _columns(target: Target, records: Sequence[Coming]) -> dict[str, Any]:
    """Records as columns, each as its object stores it."""
    shape = target.shape
    return {
        **_gone(records),
        "data": Texts([shape.data(record.raw) for record in records]),
        "typed": sparse([None if record.deleted else shape.typed(record.raw) for record in records]),
    }


def _composed(name: str, target: Target) -> sql.Composed:
    columns = tuple((column, spec.type) for column, spec in target.shape.columns.items())
    return composed(name, target.schema, target.table, columns)


@cache
def composed(name: str, schema: str, table: tuple[str, str], columns: tuple[tuple[str, str], ...] = ()) -> sql.Composed:
    """A statement for a record table with these typed columns, whose values come as one JSON object a record."""
    names = [sql.Identifier(column) for column, _ in columns]
    # By numbers, with a space: no column can be called so, and none of ours is shadowed.
    aliases = [sql.Identifier(f"typed {number}") for number in range(len(columns))]
    types = [sql.SQL("{} {}").format(name, sql.SQL(type)) for name, (_, type) in zip(names, columns, strict=True)]

    def listed(parts: Iterable[sql.Composable]) -> sql.Composable:
        return sql.SQL("").join([sql.SQL(", ") + part for part in parts])

    def join(of: str) -> sql.Composable:
        text = f" cross join lateral jsonb_to_record({of}.typed::jsonb) as typed ({{}})"
        return sql.SQL(text).format(sql.SQL(", ").join(types)) if columns else sql.SQL("")

    return sql.SQL(statements(_FILE)[name]).format(
        table=sql.Identifier(*table),
        extract=sql.Identifier(schema),
        names=listed(names),
        values=listed(sql.SQL("typed.{}").format(name) for name in names),
        aliased=listed(sql.SQL("typed.{} as {}").format(*both) for both in zip(names, aliases, strict=True)),
        sets=listed(sql.SQL("{} = coming.{}").format(*both) for both in zip(names, aliases, strict=True)),
        join=join("claimed"),
        join_given=join("given"),
    )
