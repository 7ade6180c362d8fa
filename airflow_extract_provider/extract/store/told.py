"""Bringing what webhooks tell into Postgres: the same locks, judgements, events and notes as those of a page.

It runs in a transaction of the caller's, which has claimed the webhooks. No fence is held: only newer versions are
written, and row locks judge them beside whatever walk is running.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from msgspec.structs import replace as replace_struct

from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.store import brought, outbox, refetch
from airflow_extract_provider.extract.store.arrays import Blobs, Texts, instants
from airflow_extract_provider.extract.store.brought import Heard, News
from airflow_extract_provider.extract.store.connection import Connection, check_rules
from airflow_extract_provider.extract.store.fields import fold
from airflow_extract_provider.extract.store.judge import Coming
from airflow_extract_provider.extract.store.rows import Work, settle
from airflow_extract_provider.extract.store.statements import sparse, statement
from airflow_extract_provider.extract.store.storable import REFUSALS
from airflow_extract_provider.extract.store.target import Target

__all__ = ["ToldOf", "bring_in", "note"]

_FILE = "told.sql"


@dataclass(frozen=True, slots=True)
class ToldOf:
    """What was brought in: changes by kind and ``events``; the changes themselves; which keys could not be decided. And
    what else the webhooks told: keys to be read ``again``, and of which records any was ``heard``."""

    counts: Counter[str]
    news: Sequence[News]
    undecided: frozenset[str]
    again: Sequence[str] = ()
    heard: Sequence[Heard] = ()

    def beside(self, again: Sequence[str], heard: Sequence[Heard]) -> ToldOf:
        """The same, with what else the webhooks told."""
        return replace(self, again=again, heard=heard)


def bring_in(
    conn: Connection,
    target: Target,
    records: Sequence[Coming],
    *,
    clock: datetime,
    sink: Sink | None = None,
    at_once: bool = False,
) -> ToldOf:
    """Bring in what webhooks hold of an object's records. ``at_once``: rules that would be checked when the transaction
    ends are checked now, as they are in any case before anything is published.

    Raises BadRecordError: a record cannot be stored as it is. Raises FoldError, DetectorError, EventRepeatedError, and
    what the sink raises. The caller undoes everything then.
    """
    work = Work(conn, target, clock, set(), {}, None)
    try:
        rounds = _rounds(records)
        # Keys with more copies to come are locked in the first round, with the others and in their order.
        twice = {key for later in rounds[1:] for key in later}
        for nth, found in enumerate(rounds):
            settle(work, found, _differing(work, found, twice if nth == 0 else set()))
        fold(conn, target.folds, work.foldings)
        if at_once or sink is not None:
            check_rules(conn)
    except REFUSALS as exc:
        why = (exc.diag.message_primary or type(exc).__name__).partition(":")[0]
        raise BadRecordError(
            f"Postgres refuses a record of a webhook: {why}.", todo="Ask the API's vendor, or correct `columns`."
        ) from None
    if sink is None:
        outbox.append(conn, target.schema, work.events)
    elif work.events:
        sink.publish(work.events)
    counts = work.changes + Counter(events=len(work.events))
    del counts["refetch"]
    return ToldOf(+counts, work.news, frozenset(work.undecided))


def note(conn: Connection, target: Target, told: Sequence[ToldOf]) -> int:
    """Note which keys must be read again, and what webhooks have brought and told of; returns how many keys."""
    keys = {key for each in told for key in (*each.again, *each.undecided)}
    refetch.note(conn, *target.whose, keys, "webhook", told=True)
    brought.note(conn, target.whose, {"webhook": [news for each in told for news in each.news]}, target.grace)
    if target.grace is not None:
        brought.tell(conn, target.whose, [heard for each in told for heard in each.heard])
    return len(keys)


def _rounds(records: Sequence[Coming]) -> list[dict[str, Coming]]:
    """The records in rounds without a key twice, older versions first: each of them is a change of its own."""
    by_key: defaultdict[str, list[Coming]] = defaultdict(list)
    for each in records:
        by_key[each.key].append(each)
    rounds: list[dict[str, Coming]] = []
    for key, copies in by_key.items():
        turn = 0
        for at, each in enumerate(_once(sorted(copies, key=_age))):
            # Not before the older version, whenever that one came.
            turn = max(turn, each.turn)
            if at == len(rounds):
                rounds.append({})
            rounds[at][key] = replace_struct(each, turn=turn)
    return rounds


def _once(copies: Sequence[Coming]) -> list[Coming]:
    """Without those that are the same as the one before."""
    found: list[Coming] = []
    for each in copies:
        if not found or (found[-1].raw_hash, *_age(found[-1])) != (each.raw_hash, *_age(each)):
            found.append(each)
    return found


def _age(record: Coming) -> tuple[bool, datetime, bool]:
    """To sort by; a deletion comes behind the version that it deletes."""
    return record.version is not None, record.version or record.sent_at, record.deleted


def _differing(work: Work, found: dict[str, Coming], also: set[str]) -> dict[str, bool]:
    records = found.values()
    asked = {
        "keys": Texts(found),
        "versions": instants([record.version for record in records]),
        "hashes": Blobs([record.raw_hash for record in records]),
        "deleted": sparse([record.deleted for record in records]),
        "also": Texts(also),
    }
    target = work.target
    rows = work.conn.execute(statement(_FILE, "differing", target.schema, target.table), asked, binary=True)
    return dict(rows.fetchall())
