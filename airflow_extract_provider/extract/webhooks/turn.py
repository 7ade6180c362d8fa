"""One batch of webhooks on its way into the records, within one transaction: what of it is applied, what is parked.

A message that fails is found by halves, each in a savepoint of its own, and does not keep the others from being
applied.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import psycopg
import xxhash
from msgspec import json

from airflow_extract_provider.extract.errors import (
    BadRecordError,
    DetectorError,
    EventRefusedError,
    EventRepeatedError,
    ExtractError,
    FoldError,
)
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import outbox
from airflow_extract_provider.extract.store.claims import Claims, Due, Parked, Whose
from airflow_extract_provider.extract.store.storable import may_blame_a_row
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.webhooks.bringing import Bringing, Targets
from airflow_extract_provider.extract.webhooks.fitting import misfit
from airflow_extract_provider.extract.webhooks.messages import Delivery, Message, Unreadable, delivery_of, split

__all__ = ["Turn"]

_LONGEST_WAIT = 3600.0
_PERSON_WAIT = timedelta(minutes=1)
"""How long what waits for a person waits at least, before it is looked at again."""
_MOST_COPIES = 20
"""Of one record, in one transaction."""
_OF_A_MESSAGE = (
    BadRecordError,
    DetectorError,
    EventRefusedError,
    EventRepeatedError,
    FoldError,
)
"""What one message may be to blame for: the others are applied without it."""


@dataclass(slots=True)
class Turn:
    """One batch: what was claimed, and what becomes of it.

    ``counts``: messages by what became of them, changes by kind, events. ``noted``: objects with records to be read by
    key. ``changed``: what was done by object. ``unknown``: types that nothing is said about. ``taken``: how many
    deliveries it has claimed. ``reason``: the kind of error of the last message that failed.
    ``broken``: objects whose copy is not what the source file describes, and why.
    ``at_once``: what Postgres would check when the transaction ends, it checks as soon as it is written.
    """

    source: Source
    endpoint: str
    claims: Claims
    targets: Targets
    tries: int
    backoff: timedelta
    at_once: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    noted: set[str] = field(default_factory=set)
    changed: dict[str, Counter[str]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    taken: int = 0
    busy: bool = False
    reason: str = ""
    broken: dict[str, ExtractError] = field(default_factory=dict)
    _places: list[int] = field(default_factory=list)
    _waiting: list[Message] = field(default_factory=list)
    _tried: dict[tuple[int, int], Due] = field(default_factory=dict)
    _parked: dict[tuple[int, int], Parked] = field(default_factory=dict)
    _blocked: set[Whose] = field(default_factory=set)
    _before: set[tuple[int, int]] = field(default_factory=set)

    def retry(self, due: Sequence[Due]) -> None:
        """Take parked messages up again, as the config reads them now."""
        self._tried = {each.at: each for each in due}
        rows = self.claims.fetch(sorted({each.place for each in due}))
        deliveries = {row[0]: delivery_of(row) for row in rows}
        found: dict[int, dict[int, Message | Unreadable]] = {}
        for each in due:
            delivery = deliveries.get(each.place)
            if delivery is None:
                self._sort([Unreadable(*each.at, "its webhook is not in the inbox any more")])
                continue
            if each.place not in found:
                found[each.place] = {one.nth: one for one in split(self.source, self.endpoint, delivery)}
            of = found[each.place]
            self._sort(of.values() if each.nth == 0 else [of.get(each.nth) or _vanished(each)])

    def take(self, deliveries: Sequence[Delivery]) -> None:
        """Take new deliveries, as many as may go into one transaction: their messages, without those that had come
        before."""
        found = self._fitting(deliveries)
        self.taken = len(self._places)
        self.busy = bool(deliveries or self._tried)
        # Of a type that the file does not know yet it may come again, once it does.
        ids = [each.id for each in found if isinstance(each, Message) and each.id is not None and each.known]
        new = self.claims.see(ids)
        self.counts["messages"] += len(found)
        for each in found:
            if isinstance(each, Message) and each.id is not None and each.known:
                if each.id not in new:
                    self.counts["repeated"] += 1
                    continue
                new.discard(each.id)
            self._sort([each])

    def _fitting(self, deliveries: Sequence[Delivery]) -> list[Message | Unreadable]:
        """The messages of the first deliveries; of the others later. Each copy of a record is a change of its own, and
        in one transaction each costs more than the one before: Postgres walks through all that the row was in it."""
        found: list[Message | Unreadable] = []
        copies: Counter[Whose] = Counter()
        for delivery in deliveries:
            messages = split(self.source, self.endpoint, delivery)
            stored = [each.whose for each in messages if isinstance(each, Message) and each.record is not None]
            copies.update(stored)
            if found and any(copies[whose] > _MOST_COPIES for whose in stored):
                break
            found += messages
            self._places.append(delivery.place)
        return found

    def settle(self) -> None:
        """Apply what was taken, and take it out of the inbox."""
        if not self.busy:
            return
        self._part_blocked()
        self._part_before()
        by_object: defaultdict[str, list[Message]] = defaultdict(list)
        for each in self._waiting:
            if each.does != "nothing":
                by_object[each.object].append(each)
        for object in sorted(by_object):
            before = Counter(self.counts)
            self._apply_to(self.targets.of(self.claims, object), by_object[object])
            self.changed[object] = self.counts - before
        # What has failed is passed on once it does not.
        self._apply([each for each in self._waiting if each.forward and each.at not in self._parked], self._forward)
        self.claims.done(self._places)
        self.claims.park(list(self._parked.values()))
        through = [each for at, each in self._tried.items() if at not in self._parked]
        self.claims.unpark(through)
        dead = [self._tried[at] for at, each in self._parked.items() if each.dead and at in self._tried]
        self.claims.wake_keys((each.object, each.key) for each in (*through, *dead) if each.key)
        self._count()

    def _apply_to(self, target: Target, messages: Sequence[Message]) -> None:
        """Bring messages into an object, and note what must be read again: once, behind all rows."""
        sink = self.targets.sink_of(self.source.object(target.object))
        work = Bringing(self.claims.conn, target, sink, self.at_once)
        self._apply(work.in_parts(messages), work.bring_in)
        if noted := work.note():
            self.noted.add(target.object)
            self.counts["refetch"] += noted

    def _sort(self, found: Iterable[Message | Unreadable]) -> None:
        """Of what was read: what is to be applied, what cannot be, and what tells nothing."""
        for each in found:
            if isinstance(each, Unreadable):
                # Tried again it would say the same: it waits for a person at once.
                due = self._tried.get((each.place, each.nth), Due(0, 0, 0))
                self._park(Parked(each.place, each.nth, due.object, due.key, due.tries + 1, each.why, dead=True))
                continue
            if not each.known:
                self.unknown.add(each.type)
            self._waiting.append(each)

    def _part_blocked(self) -> None:
        """Let messages wait behind older ones of their keys, where no version tells which is newer."""
        fresh = [each for each in self._waiting if each.ordered and each.at not in self._tried]
        keys = {each.whose for each in fresh}
        self._blocked = self.claims.blocked(keys) if keys else set()
        # What is tried now is itself the oldest of its key.
        for each in fresh:
            if each.whose in self._blocked:
                self._park(Parked(*each.at, *each.whose))
        self._waiting = [each for each in self._waiting if each.at not in self._parked]
        self._blocked = set()

    def _part_before(self) -> None:
        """Pass over what tells of an object that was never begun: its backfill will read it. What tells of a copy that
        is not what the source file describes waits until a person has acted."""
        objects = {each.object for each in self._waiting if each.does != "nothing"}
        standing = self.claims.standing(objects) if objects else {}
        for object, (begun, table) in standing.items():
            why = self.targets.unfit.get(object)
            if why is None and begun:
                why = misfit(self.claims, self.source, object, table)
            if why is not None:
                self.broken[object] = why
        for each in self._waiting:
            if each.does != "nothing" and each.object in self.broken:
                wait = max(self.backoff, _PERSON_WAIT)
                self._park(Parked(*each.at, *each.whose, reason=_reason(self.broken[each.object]), wait=wait))
        self._waiting = [each for each in self._waiting if each.at not in self._parked]
        passed = {each.at for each in self._waiting if each.does != "nothing" and not standing[each.object][0]}
        self.counts["before"] += len(passed)
        self._waiting = [each.bare if each.at in passed else each for each in self._waiting]
        self._before = passed

    def _apply(self, messages: Sequence[Message], work: Callable[[Sequence[Message]], Mapping[str, int]]) -> None:
        """Apply messages together; if that fails, in halves, until it is known which of them cannot be."""
        parts = [list(messages)] if messages else []
        while parts:
            part = [each for each in parts.pop() if not (each.ordered and self._behind_failed(each))]
            if not part:
                continue
            try:
                with self.claims.conn.transaction():
                    counts = work(part)
            except (ExtractError, psycopg.Error) as exc:
                if not _is_of_a_message(exc):
                    raise (exc.at(object=part[0].object or None) if isinstance(exc, ExtractError) else exc) from None
                if len(part) > 1:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                else:
                    self._fail(part[0], exc)
            else:
                self.counts.update(counts)

    def _behind_failed(self, message: Message) -> bool:
        """Whether an older one of its key has failed just now; then it waits behind that one."""
        if message.whose not in self._blocked:
            return False
        self._park(Parked(*message.at, *message.whose))
        return True

    def _fail(self, message: Message, exc: Exception) -> None:
        due = self._tried.get(message.at) or self._tried.get((message.place, 0))
        tries = (due.tries if due is not None else 0) + 1
        dead = tries >= self.tries
        wait = None if dead else _wait(self.backoff, tries)
        self.reason = type(exc).__name__
        self._park(Parked(*message.at, *message.whose, tries, _reason(exc), wait, dead))
        if not dead:
            self._blocked.add(message.whose)

    def _park(self, parked: Parked) -> None:
        due = self._tried.get((parked.place, parked.nth))
        if due is not None and not parked.tries:
            # Behind another one again: what it was tried counts.
            parked = replace(parked, tries=due.tries)
        self._parked[parked.place, parked.nth] = parked

    def _forward(self, messages: Sequence[Message]) -> Mapping[str, int]:
        """Pass messages on as events, each once."""
        events = {event.id: event for event in (self._event(each) for each in messages)}
        known = self.claims.forwarded(events)
        new = [event for id, event in events.items() if id not in known]
        outbox.append(self.claims.conn, self.claims.schema, new)
        return {"forwarded": len(new)}

    def _event(self, message: Message) -> Event:
        name = message.id or f"{message.place}.{message.nth}"
        told = ["forwarded", self.source.source, self.endpoint, message.type, name]
        return Event(
            id=xxhash.xxh3_128_hexdigest(json.encode(told)),
            source=self.source.source,
            object=message.object or self.endpoint,
            type=f"{self.source.source}.{message.type}",
            key=message.key or name,
            time=message.received_at,
            revision=0,
            data=message.raw,
        )

    def _count(self) -> None:
        fine = [each for each in self._waiting if each.at not in self._parked]
        told = Counter(
            applied=sum(each.does != "nothing" for each in fine),
            nothing=sum(
                each.does == "nothing" and each.known and not each.forward and each.at not in self._before
                for each in fine
            ),
            unknown=sum(not each.known for each in fine),
            parked=sum(not each.dead for each in self._parked.values()),
            dead=sum(each.dead for each in self._parked.values()),
        )
        self.counts += told
        kinds = ("messages", "applied", "repeated", "unknown", "stale", "forwarded", "parked", "dead")
        self.claims.count({("out_of_order" if kind == "stale" else kind): self.counts[kind] for kind in kinds})


def _is_of_a_message(exc: ExtractError | psycopg.Error) -> bool:
    return isinstance(exc, _OF_A_MESSAGE) or (isinstance(exc, psycopg.Error) and may_blame_a_row(exc))


def _vanished(due: Due) -> Unreadable:
    return Unreadable(due.place, due.nth, "the body holds no such message any more: `messages` says something else now")


def _wait(backoff: timedelta, tries: int) -> timedelta:
    return timedelta(seconds=min(backoff.total_seconds() * 2.0 ** min(tries - 1, 60), _LONGEST_WAIT))


def _reason(exc: Exception) -> str:
    """Why, in one line that Postgres can hold; its own words may quote values."""
    if isinstance(exc, ExtractError):
        text = exc.what
    elif isinstance(exc, psycopg.Error):
        text = f"Postgres refuses it{' by ' + exc.diag.constraint_name if exc.diag.constraint_name else ''}"
    else:
        text = ""
    return f"{type(exc).__name__}: {text}"[:300].replace("\0", " ").encode(errors="replace").decode()
