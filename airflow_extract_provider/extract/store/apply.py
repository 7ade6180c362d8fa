"""Apply: the only way a record enters Postgres.

One transaction: hold the fence, claim the new ones by insert, lock what differs in key order, compare again, write,
note what must be read again, add the ledger rows. Records that have not changed cost no lock, no write and no WAL.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import psycopg

from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.page import SetAside
from airflow_extract_provider.extract.store import refetch
from airflow_extract_provider.extract.store.batch import Batch, coming, in_rounds, numbered
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.fence import Fence, holding
from airflow_extract_provider.extract.store.judge import Coming, Stored, Verdict, judge
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.quarantine import set_aside
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.store.storable import REFUSALS, unstorable

__all__ = ["Applied", "Batch", "Target", "apply", "first_unreadable", "refused"]

_FILE = "apply.sql"
_WRITTEN: Mapping[Verdict, str] = {"write": "updated", "regress": "regressed", "undelete": "undeleted"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object's records go, and whose they are."""

    schema: str
    source: str
    object: str
    table: tuple[str, str]

    @property
    def whose(self) -> tuple[str, str, str]:
        """Bookkeeping schema, source and object."""
        return self.schema, self.source, self.object


@dataclass(frozen=True, slots=True)
class Applied:
    """What a transaction did: the last ledger row's sequence number, changes by kind, Postgres's clock at its end."""

    sequence: int
    counts: Counter[str]
    clock: datetime


@dataclass(slots=True)
class _Work:
    """What a transaction has found so far.

    ``twice`` are keys with more than one copy, ``newest`` are their newest versions; ``looked`` tells when the pages of
    what was written were asked for. ``refused`` are records, by their bytes, that Postgres has refused in an earlier
    attempt, and why; None: to meet one is an error, nothing is set ``aside``.
    """

    conn: Connection
    target: Target
    twice: set[str]
    newest: Mapping[str, datetime]
    refused: Mapping[bytes, str] | None
    looked: dict[str, datetime] = field(default_factory=dict)
    aside: list[tuple[Coming, str]] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    undecided: set[str] = field(default_factory=set)

    def rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self.conn.execute(_statement(name, self.target), values, binary=True).fetchall()

    def judged(
        self,
        record: Coming,
        version: datetime | None,
        raw_hash: bytes,
        deleted_at: datetime | None,
        applied_at: datetime,
    ) -> Verdict:
        """What to do with a record, given the row that it meets."""
        version = version and version.replace(tzinfo=timezone.utc)
        # What this transaction itself has written was looked at when its page was asked for.
        verdict = judge(record, Stored(version, raw_hash, deleted_at, self.looked.get(record.key, applied_at)))
        newest = self.newest.get(record.key)
        if verdict == "refetch" and None not in (record.version, version, newest) and deleted_at is None:
            # An older copy, which a later look of this transaction has overtaken: the API has not gone back.
            return "stale" if record.version < version <= newest else verdict  # type: ignore[operator]
        return verdict

    def refuses(self, record: Coming) -> bool:
        """Whether a record cannot be stored as it is, and was set aside.

        Raises BadRecordError: nothing is set aside here.
        """
        why = (self.refused or {}).get(record.raw) or unstorable(record.raw)
        if why is None:
            return False
        if self.refused is None:
            raise _bad(record, why)
        self.aside.append((record, why))
        return True


def apply(
    conn: Connection,
    target: Target,
    fence: Fence,
    ledger: Ledger,
    batches: Sequence[Batch],
    *,
    quarantine: bool = False,
) -> Applied:
    """Bring pages that have arrived, in the order in which they were sent, into Postgres in one transaction.

    With ``quarantine`` the records that Postgres cannot hold are set aside, and the others arrive.

    Raises FencedError: the walk was taken over. Raises DoubledKeyError, BadRecordError: a page holds something that
    cannot be stored without guessing; nothing of the batches is stored then.
    """
    if not quarantine:
        return _apply(conn, target, fence, ledger, batches, None)
    try:
        return _apply(conn, target, fence, ledger, batches, {})
    except REFUSALS:
        refused = {record.raw: why for record, why in _unreadable(conn, batches)}
        if not refused:
            raise
    return _apply(conn, target, fence, ledger, batches, refused)


def _apply(
    conn: Connection,
    target: Target,
    fence: Fence,
    ledger: Ledger,
    batches: Sequence[Batch],
    refused: Mapping[bytes, str] | None,
) -> Applied:
    rounds = in_rounds(batches)
    twice = {key for later in rounds[1:] for key in later}
    work = _Work(conn, target, twice, _newest(rounds, twice), refused)
    with holding(conn, target.schema, fence):
        for each in rounds:
            # Keys with more copies to come are locked in the first round, with the others and in their order.
            _apply_round(work, each)
        _note(work, batches)
        totals = _totals(work, batches)
        _set_aside(work, batches)
        appended = [ledger.append(conn, _with_counts(batch.entry, totals, last)) for batch, last in _marked(batches)]
    sequence, clock = appended[-1]
    return Applied(sequence, totals, clock)


def _newest(rounds: Sequence[Mapping[str, Coming]], keys: Iterable[str]) -> Mapping[str, datetime]:
    """The newest version of each of these keys."""
    copies = {key: [each[key].version for each in rounds if key in each] for key in keys}
    return {key: max(known) for key, told in copies.items() if (known := [one for one in told if one is not None])}


def _totals(work: _Work, batches: Sequence[Batch]) -> Counter[str]:
    """Changes by kind, with those of the ledger rows."""
    totals = work.changes + Counter(quarantined=len(work.aside))
    # Of what is new to the walk: a record read again with its page's neighbour is not counted a second time.
    read = sum(min(batch.entry.records, len(batch.records)) + len(batch.gone) for batch in batches)
    totals["unchanged"] = max(read - totals.total(), 0)
    totals["quarantined"] += sum(len(batch.bad) for batch in batches)
    return totals + sum((Counter(batch.entry.counts) for batch in batches), Counter())


def _marked(batches: Sequence[Batch]) -> Iterable[tuple[Batch, bool]]:
    return ((batch, number == len(batches)) for number, batch in enumerate(batches, start=1))


def _with_counts(entry: Entry, totals: Counter[str], last: bool) -> Entry:
    """The counts belong to the transaction; they stand in its last row."""
    return replace(entry, counts=+totals if last else {})


def _apply_round(work: _Work, found: dict[str, Coming]) -> None:
    """One copy of each key."""
    stored = {row[0]: row[1:] for row in work.rows("read", keys=list(found))}
    absent = [found[key] for key in sorted(found.keys() - stored.keys())]
    differing = {key for key, row in stored.items() if _differs(found[key], *row)}
    bad = {record.key for record in [*absent, *(found[key] for key in differing)] if work.refuses(record)}
    absent = [record for record in absent if record.key not in bad]
    claimed = {row[0] for row in work.rows("claim", **_columns(absent))} if absent else set()
    lost = {record.key for record in absent} - claimed
    work.changes.update("deleted" if found[key].deleted else "created" for key in claimed)
    work.looked.update((key, found[key].sent_at) for key in claimed)
    _settle(work, found, sorted((differing | lost | (work.twice & stored.keys())) - bad))


def _differs(record: Coming, version: datetime | None, raw_hash: bytes, deleted_at: datetime | None) -> bool:
    """Whether the row must be locked and looked at. That there is none is no news of what is deleted already."""
    if deleted_at is not None and record.deleted:
        return record.version is not None and record.raw_hash != raw_hash
    stored = version and version.replace(tzinfo=timezone.utc)
    return record.raw_hash != raw_hash or record.version != stored or record.deleted or deleted_at is not None


def _settle(work: _Work, found: dict[str, Coming], keys: list[str]) -> None:
    """Lock rows, in key order, judge them under the lock, write what is newer."""
    if not keys:
        return
    verdicts = {
        key: work.judged(found[key], version, raw_hash, deleted_at, applied_at)
        for key, version, raw_hash, deleted_at, applied_at in work.rows("lock", keys=keys)
    }
    if len(verdicts) < len(keys):
        # Somebody deleted rows by hand since they were read: done again, the records are claimed like new ones.
        raise psycopg.errors.SerializationFailure("rows were deleted between being read and being locked")
    if writes := [found[key] for key in keys if verdicts[key] in _WRITTEN]:
        written = work.rows("write", **_columns(writes))
        work.changes.update(_WRITTEN[verdicts[key]] for key, changed in written if changed)
        work.looked.update((key, found[key].sent_at) for key, changed in written if changed)
    if tombstones := [found[key] for key in keys if verdicts[key] in ("delete", "retold")]:
        work.conn.execute(_statement("delete", work.target), _columns(tombstones))
        work.looked.update((record.key, record.sent_at) for record in tombstones)
    told = Counter(verdicts.values())
    work.changes += Counter(deleted=told["delete"], stale=told["stale"], refetch=told["refetch"])
    work.undecided |= {key for key in keys if verdicts[key] == "refetch"}


def _note(work: _Work, batches: Sequence[Batch]) -> None:
    """Note keys to be read again in the transaction that found the need; strike out the needs that it has met.

    Noted first: a read by key that decided nothing raises the number of its note, which then stays.
    """
    settled = [each for batch in batches for each in batch.settled]
    if settled and work.undecided:
        refetch.lock(work.conn, *work.target.whose, sorted({each.key for each in settled} | work.undecided))
    refetch.note(work.conn, *work.target.whose, work.undecided, "undecided")
    refetch.settle(work.conn, *work.target.whose, settled)


def _set_aside(work: _Work, batches: Sequence[Batch]) -> None:
    """Put bad records into the quarantine, page by page."""
    found: defaultdict[tuple[int | None, datetime], list[SetAside]] = defaultdict(list)
    for batch in batches:
        found[batch.entry.position.pages, batch.sent_at] += batch.bad
    for record, why in work.aside:
        found[record.page, record.sent_at].append(SetAside(record.number or 0, record.raw, why, record.key))
    for (page, sent_at), bad in found.items():
        cause = batches[-1].entry.cause
        set_aside(work.conn, *work.target.whose, page=page, sent_at=sent_at, cause=cause, bad=bad)


def _bad(record: Coming, why: str) -> BadRecordError:
    return BadRecordError(
        f"the record cannot be stored as it is: {why}.",
        todo="Ask the API's vendor to correct the record; nothing of this page was stored.",
        page=record.page,
        record=record.number,
        key=record.key,
    )


def _columns(records: list[Coming]) -> dict[str, Any]:
    return {
        "keys": [record.key for record in records],
        "data": [record.raw.decode() for record in records],
        "versions": [record.version for record in records],
        "hashes": [record.raw_hash for record in records],
        "deleted": [record.deleted for record in records],
    }


def first_unreadable(conn: Connection, batches: Sequence[Batch]) -> BadRecordError | None:
    """The first record that Postgres refuses as `jsonb`, and why; None: it takes them all. Asked after a DataError."""
    return next((_bad(record, why) for record, why in _unreadable(conn, batches)), None)


def refused(conn: Connection, raws: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """Which records, by their places, Postgres refuses as `jsonb`, and why, without their values.

    All are tried at once, then halves of those that are refused: no query per record.
    """
    waiting = [range(len(raws))] if raws else []
    while waiting:
        part = waiting.pop()
        try:
            with conn.transaction():
                conn.execute(statement(_FILE, "try", ""), {"data": [raws[at].decode() for at in part]})
        except REFUSALS as exc:
            if len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            # Behind a colon Postgres quotes the value.
            yield part[0], (exc.diag.message_primary or type(exc).__name__).partition(":")[0]


def _unreadable(conn: Connection, batches: Sequence[Batch]) -> Iterator[tuple[Coming, str]]:
    """The records that Postgres refuses, and why."""
    found = [coming(batch, record, number) for batch in batches for number, record in numbered(batch)]
    for at, why in refused(conn, [record.raw for record in found]):
        yield found[at], why


def _statement(name: str, target: Target) -> Any:
    return statement(_FILE, name, target.schema, target.table)
