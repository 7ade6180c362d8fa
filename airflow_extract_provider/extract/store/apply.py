"""Apply: the only way a record enters Postgres.

One transaction: hold the fence, claim the new ones by insert, lock what differs in key order, compare again, write,
note what must be read again, add the ledger rows. Records that have not changed cost no lock, no write and no WAL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import psycopg
import xxhash

from airflow_extract_provider.extract.errors import BadRecordError, DoubledKeyError
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.fence import Fence, holding
from airflow_extract_provider.extract.store.judge import Coming, Stored, judge
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.store.storable import unstorable

__all__ = ["Applied", "Batch", "Target", "apply", "first_unreadable"]

_FILE = "apply.sql"


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object's records go, and whose they are."""

    schema: str
    source: str
    object: str
    table: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of one page, as it came; ``entry`` is its ledger row, whose counts are added to those of apply."""

    records: tuple[Record, ...]
    sent_at: datetime
    entry: Entry


@dataclass(frozen=True, slots=True)
class Applied:
    """What a transaction did: the last ledger row's sequence number, changes by kind, Postgres's clock at its start."""

    sequence: int
    counts: Counter[str]
    clock: datetime


def apply(conn: Connection, target: Target, fence: Fence, ledger: Ledger, batches: Sequence[Batch]) -> Applied:
    """Bring pages that have arrived, in the order in which they were sent, into Postgres in one transaction.

    Raises FencedError: the walk was taken over. Raises DoubledKeyError, BadRecordError: a page holds something that
    cannot be stored without guessing; nothing of the batches is stored then.
    """
    rounds = _rounds(batches)
    twice = {key for later in rounds[1:] for key in later}
    with holding(conn, target.schema, fence) as clock:
        totals: Counter[str] = Counter()
        undecided: set[str] = set()
        for coming in rounds:
            # Keys with more copies to come are locked in the first round, with the others and in their order.
            changes, notes = _apply_round(conn, target, coming, twice)
            totals += changes
            undecided |= notes
        _note(conn, target, sorted(undecided))
        # Of what is new to the walk: a record read again with its page's neighbour is not counted a second time.
        totals["unchanged"] = max(sum(batch.entry.records for batch in batches) - totals.total(), 0)
        totals += _sum(batch.entry.counts for batch in batches)
        sequences = [ledger.append(conn, _with_counts(batch.entry, totals, last)) for batch, last in _marked(batches)]
    return Applied(sequences[-1], totals, clock)


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    return sum((Counter(count) for count in counts), Counter())


def _marked(batches: Sequence[Batch]) -> Iterable[tuple[Batch, bool]]:
    return ((batch, number == len(batches)) for number, batch in enumerate(batches, start=1))


def _with_counts(entry: Entry, totals: Counter[str], last: bool) -> Entry:
    """The counts belong to the transaction; they stand in its last row."""
    return Entry(entry.kind, entry.position, entry.cause, entry.sent_at, entry.records, +totals if last else {})


def _rounds(batches: Sequence[Batch]) -> list[dict[str, Coming]]:
    """The records in rounds without a key twice: a key's copies are applied one after the other, older ones first.

    What was sent first comes first; on one page the versions tell. The same bytes again are no second copy.

    Raises DoubledKeyError: two different records with one key on one page, and no version to tell them apart.
    """
    rounds: list[dict[str, Coming]] = []
    for batch in batches:
        for coming in _page_in_order(batch):
            _place(rounds, coming)
    return rounds


def _place(rounds: list[dict[str, Coming]], coming: Coming) -> None:
    """Behind the last round that holds the key; nowhere if that round holds the same bytes."""
    at = next((at for at in range(len(rounds), 0, -1) if coming.key in rounds[at - 1]), 0)
    if at and rounds[at - 1][coming.key].raw_hash == coming.raw_hash:
        return
    if at == len(rounds):
        rounds.append({})
    rounds[at][coming.key] = coming


def _page_in_order(batch: Batch) -> list[Coming]:
    found = [_coming(batch, record, number) for number, record in enumerate(batch.records, start=1)]
    if len({coming.key for coming in found}) == len(found):
        return found
    by_key: dict[str, Coming] = {}
    for coming in found:
        other = by_key.setdefault(coming.key, coming)
        if other.raw_hash != coming.raw_hash and None in (other.version, coming.version):
            raise DoubledKeyError(
                "two different records on one page have this key, and no version tells which is newer.",
                todo="If the key is not unique, declare more fields as `key`; else declare `version`.",
                page=coming.page,
                record=coming.number,
                key=coming.key,
            )
    # A stable sort: records without versions keep the API's order.
    return sorted(found, key=lambda coming: (coming.version is not None, coming.version or batch.sent_at))


def _coming(batch: Batch, record: Record, number: int) -> Coming:
    raw_hash = xxhash.xxh3_128_digest(record.raw)
    page = batch.entry.position.pages
    return Coming(record.key, record.raw, raw_hash, record.version, batch.sent_at, page, number)


def _apply_round(
    conn: Connection, target: Target, coming: dict[str, Coming], twice: set[str]
) -> tuple[Counter[str], set[str]]:
    """One copy of each key. Returns the changes by kind, unchanged records left out, and the keys not decided."""
    stored = {row[0]: row[1:] for row in _rows(conn, "read", target, keys=list(coming))}
    absent = [coming[key] for key in sorted(coming.keys() - stored.keys())]
    differing = {key for key, (raw_hash, deleted) in stored.items() if raw_hash != coming[key].raw_hash or deleted}
    _check_storable([*absent, *(coming[key] for key in differing)])
    claimed = {row[0] for row in _rows(conn, "claim", target, **_columns(absent))} if absent else set()
    lost = {record.key for record in absent} - claimed
    changes, undecided = _settle(conn, target, coming, sorted(differing | lost | (twice & stored.keys())))
    changes["created"] += len(claimed)
    return changes, undecided


def _settle(
    conn: Connection, target: Target, coming: dict[str, Coming], keys: list[str]
) -> tuple[Counter[str], set[str]]:
    """Lock rows, in key order, judge them under the lock, write what is newer."""
    if not keys:
        return Counter(), set()
    verdicts = {
        key: judge(coming[key], Stored(version and version.replace(tzinfo=timezone.utc), *rest))
        for key, version, *rest in _rows(conn, "lock", target, keys=keys)
    }
    if len(verdicts) < len(keys):
        # Somebody deleted rows by hand since they were read: done again, the records are claimed like new ones.
        raise psycopg.errors.SerializationFailure("rows were deleted between being read and being locked")
    writes = [coming[key] for key in keys if verdicts[key] in ("write", "undelete")]
    written = [row[0] for row in _rows(conn, "write", target, **_columns(writes))] if writes else []
    undecided = {key for key in keys if verdicts[key] == "refetch"}
    changes = Counter({"write": "updated", "undelete": "undeleted"}[verdicts[key]] for key in written)
    changes["stale"] = sum(1 for verdict in verdicts.values() if verdict == "stale")
    changes["refetch"] = len(undecided)
    return changes, undecided


def _note(conn: Connection, target: Target, keys: list[str]) -> None:
    """Note keys to be read again, in key order, in the transaction that found the need (law: a need found is noted)."""
    if keys:
        asked = {"source": target.source, "object": target.object, "keys": keys, "reasons": ["undecided"] * len(keys)}
        conn.execute(_statement("refetch", target), asked)


def _check_storable(records: list[Coming]) -> None:
    for record in records:
        if why := unstorable(record.raw):
            raise _bad(record, why)


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
    }


def _rows(conn: Connection, name: str, target: Target, **values: Any) -> list[tuple[Any, ...]]:
    return conn.execute(_statement(name, target), values, binary=True).fetchall()


def first_unreadable(conn: Connection, batches: Sequence[Batch]) -> BadRecordError | None:
    """The first record that Postgres refuses as `jsonb`, and why; None: it takes them all. Asked after a DataError."""
    for batch in batches:
        for number, record in enumerate(batch.records, start=1):
            try:
                with conn.transaction():
                    conn.execute("select %b::text::jsonb", [record.raw.decode()])
            except psycopg.DataError as exc:
                # Behind a colon Postgres quotes the value.
                why = (exc.diag.message_primary or type(exc).__name__).partition(":")[0]
                return _bad(_coming(batch, record, number), why)
    return None


def _statement(name: str, target: Target) -> Any:
    return statement(_FILE, name, target.schema, target.table)
