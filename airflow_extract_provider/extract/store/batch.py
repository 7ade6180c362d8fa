"""A page on its way into Postgres, and the rounds in which several are applied."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from msgspec.structs import replace as replace_struct

from airflow_extract_provider.extract.errors import DoubledKeyError
from airflow_extract_provider.extract.page import Record, SetAside
from airflow_extract_provider.extract.store.judge import Coming
from airflow_extract_provider.extract.store.ledger import Entry
from airflow_extract_provider.extract.store.refetch import Due

__all__ = ["Batch", "coming", "in_rounds", "numbered"]

Hash: TypeAlias = Callable[[bytes], bytes]
"""Of a record's own bytes; it knows how the object's records are stored."""

_NO_BYTES = b"null"
"""What stands for a record of which the API says nothing but that there is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one page or read by key brought; ``entry`` is its ledger row, whose counts are added to those of apply.

    ``gone`` are keys that the API said do not exist when asked for them (404, 410), ``bad`` records for the quarantine;
    ``entry.records`` counts neither. ``settled`` are the notes that this batch fulfils. ``by_key``: the records were
    asked for by key. ``absent``: what is gone was not seen by a complete sweep, which began at ``sent_at``.
    """

    records: tuple[Record, ...]
    sent_at: datetime
    entry: Entry
    gone: tuple[str, ...] = ()
    bad: tuple[SetAside, ...] = ()
    settled: tuple[Due, ...] = ()
    by_key: bool = False
    absent: bool = False

    @property
    def seen(self) -> list[str]:
        """The keys that stood on the page, those of bad records too."""
        found = [record.key for record in self.records]
        return found + [each.key for each in self.bad if each.key is not None] if self.bad else found


def coming(batch: Batch, record: Record, number: int, hash: Hash) -> Coming:
    """A record of a batch, the ``number``-th on its page, as it meets the stored row."""
    return Coming(
        record.key,
        record.raw,
        hash(record.raw),
        record.version,
        batch.sent_at,
        batch.entry.position.pages,
        number,
        record.deleted,
        batch.by_key,
    )


def numbered(batch: Batch) -> Iterator[tuple[int, Record]]:
    """The records with their numbers on the page, counted from 1; bad ones have numbers of their own."""
    taken = {each.number for each in batch.bad}
    return zip((number for number in itertools.count(1) if number not in taken), batch.records, strict=False)


def in_rounds(batches: Collection[Batch], hash: Hash, *, turns: bool = False) -> list[dict[str, Coming]]:
    """The records in rounds without a key twice: a key's copies are applied one after the other, older ones first.

    What was sent first comes first; on one page the versions tell. The same bytes again are no second copy. ``turns``:
    the records know in which order they came.

    Raises DoubledKeyError: two different records with one key on one page, and no version to tell them apart.
    """
    found = [each for batch in batches for each in (*_page_in_order(batch, hash), *_gone(batch, hash))]
    if turns:
        found = [replace_struct(each, turn=turn) for turn, each in enumerate(found)]
    by_key = {each.key: each for each in found}
    if len(by_key) == len(found):
        # The usual case, quicker: each key comes once.
        return [by_key] if found else []
    rounds: list[dict[str, Coming]] = []
    for each in found:
        _place(rounds, each)
    return rounds


def _gone(batch: Batch, hash: Hash) -> list[Coming]:
    absent = (Record(key, _NO_BYTES, deleted=True) for key in batch.gone)
    by_key = not batch.absent
    return [replace_struct(coming(batch, record, 0, hash), by_key=by_key, absent=batch.absent) for record in absent]


def _place(rounds: list[dict[str, Coming]], record: Coming) -> None:
    """Behind the last round that holds the key; nowhere if that round holds the same bytes."""
    at = next((at for at in range(len(rounds), 0, -1) if record.key in rounds[at - 1]), 0)
    if at and rounds[at - 1][record.key].raw_hash == record.raw_hash:
        return
    if at == len(rounds):
        rounds.append({})
    rounds[at][record.key] = record


def _page_in_order(batch: Batch, hash: Hash) -> list[Coming]:
    found = [coming(batch, record, number, hash) for number, record in numbered(batch)]
    if len({each.key for each in found}) == len(found):
        return found
    by_key: dict[str, Coming] = {}
    for each in found:
        other = by_key.setdefault(each.key, each)
        if other.raw_hash != each.raw_hash and None in (other.version, each.version):
            raise DoubledKeyError(
                "two different records on one page have this key, and no version tells which is newer.",
                todo="If the key is not unique, declare more fields as `key`; else declare `version`.",
                page=each.page,
                record=each.number,
                key=each.key,
            )
    # A stable sort: records without versions keep the API's order.
    return sorted(found, key=lambda each: (each.version is not None, each.version or batch.sent_at, each.deleted))
