"""An independent judge of events: what the scripts changed on one side, what the outbox tells on the other.

It shares no code with the package, on purpose: a mistake there cannot hide itself here. Compared are not numbers but
events: each one's type, its record, what it says was there before and is there now, and how often it is told.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import psycopg

from demo.event_rules import RULES, Step, Told
from demo.kinto_contacts import State, Truth, exactly, state
from demo.verify import Listing

EPOCH = datetime.fromtimestamp(0, timezone.utc)


@dataclass(frozen=True)
class EventVerdict:
    """How the events of one type compare; ``missing`` and ``surplus`` name each one too few and too many."""

    object: str
    type: str
    expected: int
    in_outbox: int
    missing: tuple[Told, ...]
    surplus: tuple[Told, ...]

    @property
    def equal(self) -> bool:
        """Whether the outbox holds exactly these events, each once."""
        return not self.missing and not self.surplus

    def complaint(self) -> str:
        """Say what differs, with a few keys; empty when equal."""
        kinds = {"missing": self.missing, "surplus": self.surplus}
        named = [
            f"{len(those):,} {kind} ({', '.join(each.key for each in those[:3])}, ...)"
            for kind, those in kinds.items()
            if those
        ]
        return f"{self.type} of {self.object}: {'; '.join(named)}" if named else ""


def steps(before: Listing, after: Listing) -> Iterator[Step]:
    """Compare two listings: each record once. Right where what is looked at changes once between them at most."""
    for key in sorted(before.keys() | after.keys()):
        if key in before and key not in after:
            yield Step(key, before[key], None)
        elif before.get(key) != after[key]:
            yield Step(key, before.get(key), after[key])


def polled_steps(
    before: Truth, log: Iterable[State], after: Truth, seen: Collection[tuple[str, int]]
) -> Iterator[Step]:
    """Go through the contacts' states, as their writers noted them, that were seen: from the first to the last.

    A poll sees the newest state only. Which ones it saw, by id and instant, can only the outbox tell; that they were
    true, which events they become, and that these join up with each other and with both ends, is decided here. The
    first and the last state are always seen.
    """
    first = {key: state(record) for key, record in before.live.items()}
    last = {key: state(record) for key, record in after.live.items()}
    last |= {key: State(key, at, None) for key, at in after.deleted.items()}
    between: dict[str, dict[int, State]] = {}
    for each in log:
        if (each.key, each.at) in seen:
            between.setdefault(each.key, {})[each.at] = each
    for key, end in last.items():
        path = between.get(key, {}) | {end.at: end}
        yield from walked(first.get(key), sorted(path.values(), key=lambda each: each.at))


def walked(first: State | None, states: Iterable[State]) -> Iterator[Step]:
    """Go from state to state. Of a contact that was never seen alive nobody is told that it is gone."""
    known = first.record if first else None
    here = known is not None
    at = first.at if first else 0
    for each in states:
        if each.at <= at or (each.record is None and not here):
            continue
        yield Step(each.key, known, each.record, again=known is not None and not here, at=each.at)
        known, here, at = each.record or known, each.record is not None, each.at


def expected(found: Mapping[str, Iterable[Step]]) -> list[Told]:
    """Return the events that the steps of each object become."""
    return [
        rule.told(step)
        for name, through in found.items()
        for step in through
        for rule in RULES
        if rule.object == name and rule.happens(step)
    ]


def outbox(dsn: str, after: int = 0) -> list[Told]:
    """Read all events behind a place with plain SQL, in the order in which they were stored."""
    question = (
        "select source, type, subject, time, data::text from extract.events where sequence > %s order by sequence"
    )
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(question, [after]).fetchall()
    return [told(source.rsplit("/", 1)[-1], *rest) for source, *rest in rows]


def newest(dsn: str) -> int:
    """Return the place of the last event."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select coalesce(max(sequence), 0) from extract.events").fetchone()
        return int(row[0]) if row else 0


def untold_contacts(dsn: str) -> list[str]:
    """Return the contacts of which a stored change has no event, by plain SQL.

    The copy counts each one's changes, and an event says which of them it tells. The first may be silent: it was found
    in the first round, or came as a tombstone. So what was seen needs not be believed to the outbox alone.
    """
    question = """
        select key from crm.contacts left join (
            select key, min(revision) as first, max(revision) as last, count(distinct revision) as told
            from extract.outbox where object = 'contacts' group by key
        ) as events using (key)
        where coalesce(last, 1) <> revision or last - first + 1 <> told or first > 2
        order by key
    """
    with psycopg.connect(dsn) as connection:
        return [str(key) for (key,) in connection.execute(question)]


def told(name: str, type: str, key: str, time: datetime, data: str) -> Told:
    """Read one event; of a type that no rule has, nothing but that it is there."""
    rule = next((each for each in RULES if (each.object, each.type) == (name, type)), None)
    if rule is None:
        return Told(name, type, key, None, None, None)
    content = exactly(data)
    at = (time - EPOCH) // timedelta(milliseconds=1) if name == "contacts" else None
    return rule.event(key, at, content.get("before"), content.get("record"))


def compare(wanted: Iterable[Told], found: Iterable[Told]) -> list[EventVerdict]:
    """Compare event by event; a line for each rule, and for each type that no rule has."""
    there, stored = Counter(wanted), Counter(found)
    missing, surplus = there - stored, stored - there
    lines = dict.fromkeys((rule.object, rule.type) for rule in RULES)
    lines |= dict.fromkeys((each.object, each.type) for each in stored)
    return [
        EventVerdict(*line, len(of(there, line)), len(of(stored, line)), of(missing, line), of(surplus, line))
        for line in lines
    ]


def of(events: Counter[Told], line: tuple[str, str]) -> tuple[Told, ...]:
    """Return those of one object and type, each as often as it is there."""
    those = (each for each in events.elements() if (each.object, each.type) == line)
    return tuple(sorted(those, key=lambda each: (each.key, each.at or 0)))
