"""Apply: the only way a record enters Postgres.

Pages are compared with what is stored. When nothing differs, the same statement holds the fence and adds the ledger
rows: one round trip, no lock on a record, no write but these.

Otherwise one transaction: hold the fence, claim the new ones by insert, lock what differs in key order, judge again,
write, find events, note what must be read again, publish, add the ledger rows. What was published goes with what was
stored: if either fails, both are undone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from airflow_extract_provider.extract.page import SetAside
from airflow_extract_provider.extract.sinks.sink import Sink
from airflow_extract_provider.extract.store import brought, outbox, refetch, sweep
from airflow_extract_provider.extract.store.arrays import Texts
from airflow_extract_provider.extract.store.audit import Audit
from airflow_extract_provider.extract.store.batch import Batch, in_rounds
from airflow_extract_provider.extract.store.brought import Brings, News
from airflow_extract_provider.extract.store.connection import Connection, check_rules
from airflow_extract_provider.extract.store.fence import Fence, hold, holding, idle_limit
from airflow_extract_provider.extract.store.fields import fold
from airflow_extract_provider.extract.store.judge import Coming
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from airflow_extract_provider.extract.store.prefilter import Prefilter
from airflow_extract_provider.extract.store.quarantine import set_aside
from airflow_extract_provider.extract.store.rows import Differing, Work, Written, compared, composed, respelled, settle
from airflow_extract_provider.extract.store.storable import REFUSALS
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.store.unreadable import unreadable

__all__ = ["Applied", "Batch", "apply"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What a transaction did: the last ledger row's sequence number, changes by kind (and ``events``), Postgres's clock
    at its end."""

    sequence: int
    counts: Counter[str]
    clock: datetime


@dataclass(frozen=True, slots=True)
class _Given:
    """What is to be applied. ``rounds`` hold no key twice; ``refused`` as in Work."""

    conn: Connection
    target: Target
    fence: Fence
    ledger: Ledger
    batches: Sequence[Batch]
    rounds: Sequence[Mapping[str, Coming]]
    refused: Mapping[bytes, str] | None
    sink: Sink | None
    prefilter: Prefilter | None

    @property
    def twice(self) -> set[str]:
        """The keys with more than one copy."""
        return {key for later in self.rounds[1:] for key in later}

    @property
    def plain(self) -> bool:
        """There is nothing to do but to look at records, one copy of each."""
        more = any(batch.settled or batch.bad for batch in self.batches)
        open = self.target.sweep
        simple = open is None or (not open.judged and self.looked_at >= open.looked_at)
        return len(self.rounds) < 2 and not more and simple

    def seeing(self, plain: bool, beside: Iterable[str]) -> dict[str, Any]:
        """What the statement that compares tells the open sweep, if it is all that is to be done: the keys that it is
        given, and those ``beside`` them."""
        open = self.target.sweep if plain else None
        return {
            "sweep": None if open is None else open.number,
            "own": self.target.sweeps,
            "seen": Texts(beside) if open is not None else Texts(),
        }

    @property
    def looked_at(self) -> datetime:
        """Before the API looked the first of these pages up."""
        return min(batch.sent_at for batch in self.batches)


def apply(
    conn: Connection,
    target: Target,
    fence: Fence,
    ledger: Ledger,
    batches: Sequence[Batch],
    *,
    sink: Sink | None = None,
    quarantine: bool = False,
    prefilter: Prefilter | None = None,
) -> Applied:
    """Bring pages that have arrived, in the order in which they were sent, into Postgres in one transaction.

    Events go to ``sink``, which has acknowledged them before the commit; None: into the outbox. With ``quarantine`` the
    records that Postgres cannot hold are set aside, and the others arrive. What ``prefilter`` knows to be stored as it
    comes is not compared.

    Raises FencedError: the walk was taken over. Raises DoubledKeyError, BadRecordError: a page holds something that
    cannot be stored without guessing. Raises FoldError, DetectorError, EventRepeatedError, and what the sink raises.
    Nothing of the batches is stored then.
    """
    rounds = in_rounds(batches, target.shape.raw_hash, turns=bool(target.folds))
    given = _Given(conn, target, fence, ledger, batches, rounds, {} if quarantine else None, sink, prefilter)
    if not quarantine:
        return _apply(given)
    try:
        return _apply(given)
    except REFUSALS:
        refused = {record.raw: why for record, why in unreadable(conn, batches)}
        if not refused:
            raise
    return _apply(replace(given, refused=refused))


def _apply(given: _Given) -> Applied:
    found = given.rounds[0] if given.rounds else {}
    unknown = _unknown(given, found)
    first = _compare(given, unknown, given.twice, plain=given.plain)
    applied, written = (first, {}) if isinstance(first, Applied) else _transaction(given, found, first)
    if given.prefilter is not None:
        differing = {} if isinstance(first, Applied) else first
        same = {key: each.raw_hash for key, each in unknown.items() if key not in differing and not each.deleted}
        given.prefilter.learn(same, written)
    return applied


def _unknown(given: _Given, found: Mapping[str, Coming]) -> Mapping[str, Coming]:
    """What of a round is not known to be stored as it comes. A tombstone is always looked up, and so is what comes more
    than once."""
    if given.prefilter is None:
        return found
    twice = given.twice
    known = given.prefilter.known(
        {key: each.raw_hash for key, each in found.items() if not each.deleted and key not in twice}
    )
    return {key: each for key, each in found.items() if key not in known}


def _compare(
    given: _Given, found: Mapping[str, Coming], also: Iterable[str], *, plain: bool = False
) -> Differing | Applied:
    """What of a round is not stored as it comes, and all of ``also``. If it is ``plain``, and nothing differs: done."""
    totals = _totals(Counter(), given.batches) if plain else Counter[str]()
    entries = _entries(given.batches, totals) if plain else []
    asked = {
        **compared(found, also),
        **given.fence.parameters(),
        "plain": plain,
        **given.seeing(plain, given.rounds[0].keys() - found.keys() if plain and given.rounds else ()),
        "idle": idle_limit(given.fence),
    }
    asked |= given.ledger.parameters(entries)
    rows = given.conn.execute(
        composed("compare", given.target.schema, given.target.table), asked, binary=True
    ).fetchall()
    differing = [row for row in rows if row[0] is not None]
    if differing or not plain:
        kept = set(also)
        return {
            key: known
            for key, known, canonical, _, _ in differing
            if key in kept or not respelled(given.target, found[key], canonical, given.refused)
        }
    if not rows:
        # No row of the fence was ours: says so.
        hold(given.conn, given.target.schema, given.fence)
    ((_, _, _, sequence, clock),) = rows
    return Applied(sequence, totals, clock)


def _transaction(given: _Given, found: Mapping[str, Coming], first: Differing) -> tuple[Applied, Written]:
    """Bring what differs into Postgres, of the first round's records what ``first`` names; and what was written."""
    conn, target, twice = given.conn, given.target, given.twice
    with holding(conn, target.schema, given.fence) as clock:
        work = Work(conn, target, clock, twice, _newest(given.rounds, twice), given.refused, _audit(target))
        # Keys with more copies to come are locked in the first round, with the others and in their order.
        settle(work, found, first)
        for later in given.rounds[1:]:
            differing = _compare(given, later, later)
            assert not isinstance(differing, Applied)
            settle(work, later, differing)
        # Once, at the end: folded in each round, two transactions could lock the user's rows in different orders.
        fold(conn, target.folds, work.foldings)
        met = _note(work, given.batches)
        brought.note(conn, target.whose, _brings(work, met), target.grace)
        _set_aside(work, given.batches)
        _tell_sweep(work, given, met)
        totals = _totals(work.changes, given.batches, aside=len(work.aside), events=len(work.events))
        if given.prefilter is not None:
            given.prefilter.claim(conn, work.written)
        sequence, ended = _publish(work, given, _entries(given.batches, totals))
    return Applied(sequence, totals, ended), work.written


def _publish(work: Work, given: _Given, entries: Sequence[Entry]) -> tuple[int, datetime]:
    """Events first: a page counts as read only when they are safe. Returns the last ledger row's number, and the
    clock."""
    if work.events and given.sink is None:
        with outbox.no_repeats(work.events):
            return given.ledger.extend(work.conn, entries, outbox.appending(work.target.schema, work.events))
    if work.events and given.sink is not None:
        check_rules(work.conn)
        given.sink.publish(work.events)
    return given.ledger.extend(work.conn, entries)


def _newest(rounds: Sequence[Mapping[str, Coming]], keys: Iterable[str]) -> Mapping[str, datetime]:
    """The newest version of each of these keys."""
    copies = {key: [each[key].version for each in rounds if key in each] for key in keys}
    return {key: max(known) for key, told in copies.items() if (known := [one for one in told if one is not None])}


def _totals(changes: Counter[str], batches: Sequence[Batch], *, aside: int = 0, events: int = 0) -> Counter[str]:
    """Changes by kind, with those of the ledger rows."""
    totals = changes + Counter(quarantined=aside)
    # Of what is new to the walk: a record read again with its page's neighbour is not counted a second time.
    read = sum(min(batch.entry.records, len(batch.records)) + len(batch.gone) for batch in batches)
    totals["unchanged"] = max(read - totals.total(), 0)
    totals["quarantined"] += sum(len(batch.bad) for batch in batches)
    totals["events"] = events
    return totals + sum((Counter(batch.entry.counts) for batch in batches), Counter())


def _entries(batches: Sequence[Batch], totals: Counter[str]) -> list[Entry]:
    """A ledger row for each page. The counts belong to the transaction; they stand in its last row."""
    last = len(batches) - 1
    return [replace(each.entry, counts=+totals if at == last else {}) for at, each in enumerate(batches)]


def _note(work: Work, batches: Sequence[Batch]) -> Sequence[refetch.Met]:
    """Note keys to be read again in the transaction that found the need; strike out the needs that it has met, and
    return them.

    Noted first: a read by key that decided nothing raises the number of its note, which then stays.
    """
    settled = [each for batch in batches for each in batch.settled]
    if settled and work.undecided:
        refetch.lock(work.conn, *work.target.whose, sorted({each.key for each in settled} | work.undecided))
    refetch.note(work.conn, *work.target.whose, work.undecided, "undecided")
    return refetch.settle(work.conn, *work.target.whose, settled)


def _brings(work: Work, met: Sequence[refetch.Met]) -> Mapping[Brings, Sequence[News]]:
    """What was changed, by what brought it. ``met``: the notes that were settled; what a webhook has asked for, it has
    brought."""
    asked = {each.key for each in met if each.told}
    by_webhook = [each for each in work.news if each.key in asked]
    others = [each for each in work.news if each.key not in asked] if asked else work.news
    return {"webhook": by_webhook, work.target.brings: others}


def _audit(target: Target) -> Audit | None:
    if target.sweep is None or not target.sweeps:
        return None
    # Names of fields may be personal data too.
    keep = () if target.private else target.shape.keep
    return Audit(target.sweep.complete_to, target.versioned, keep, target.shape.exclude)


def _tell_sweep(work: Work, given: _Given, met: Sequence[refetch.Met]) -> None:
    """Tell the open sweep, if there is one, what was seen and found. ``met``: the notes that were settled, and why they
    had been made: another walk may have read by key what the sweep had not seen."""
    open, audit = work.target.sweep, work.audit
    if open is None:
        return
    # Another walk's page that was looked up before the sweep began says nothing of what is there since.
    told = [batch for batch in given.batches if work.target.sweeps or batch.sent_at >= open.looked_at]
    seen = [key for batch in told for key in batch.seen]
    if seen:
        looked_at = min(batch.sent_at for batch in told)
        sweep.see(work.conn, *work.target.whose, open, seen, looked_at, own=work.target.sweeps)
    here = {record.key for batch in given.batches for record in batch.records if not record.deleted}
    absent = [each.key for each in met if each.reason == "absent"]
    counts = Counter(still_there=sum(key in here for key in absent))
    if audit is not None:
        counts += audit.counts
        counts["without_key"] = sum(each.key is None for batch in given.batches for each in batch.bad)
    else:
        counts["deleted"] = counts["confirmed"] = sum(work.written.get(key, b"") is None for key in absent)
    if +counts:
        sweep.found(work.conn, work.target.schema, open, +counts, Counter() if audit is None else audit.fields)


def _set_aside(work: Work, batches: Sequence[Batch]) -> None:
    """Put bad records into the quarantine, page by page."""
    found: defaultdict[tuple[int | None, datetime], list[SetAside]] = defaultdict(list)
    for batch in batches:
        found[batch.entry.position.pages, batch.sent_at] += batch.bad
    for record, why in work.aside:
        found[record.page, record.sent_at].append(SetAside(record.number or 0, record.raw, why, record.key))
    for (page, sent_at), bad in found.items():
        cause = batches[-1].entry.cause
        set_aside(work.conn, *work.target.whose, page=page, sent_at=sent_at, cause=cause, bad=bad)
