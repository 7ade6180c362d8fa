"""An independent judge of webhooks: what localstripe says it has sent, and what became of each in the store.

It shares no code with the package, on purpose: a mistake there cannot hide itself here. It reads localstripe's own list
of events with plain HTTP, and the inbox, the notes of what brought each change, and the copies with plain SQL.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

import psycopg
from psycopg import sql

from demo.seed import Stripe

# What localstripe sends of what is copied: of which object's record, and where the record has its key. Nothing is sent
# when a product, a plan or a subscription is changed, nor of the customer whose subscriptions its record shows.
TYPES: Mapping[str, tuple[str, str]] = {
    "customer.created": ("customers", "id"),
    "customer.updated": ("customers", "id"),
    "customer.deleted": ("customers", "id"),
    "customer.source.created": ("customers", "customer"),
    "customer.subscription.created": ("subscriptions", "id"),
    "customer.subscription.deleted": ("subscriptions", "id"),
    "product.created": ("products", "id"),
    "plan.created": ("plans", "id"),
    "invoice.created": ("invoices", "id"),
    "invoice.payment_succeeded": ("invoices", "id"),
    "invoice.payment_failed": ("invoices", "id"),
}
OBJECTS = tuple(dict.fromkeys(object for object, _ in TYPES.values()))
BY = ("webhook", "poll", "sweep", "refetch")
COLUMNS = (*BY, "late", "missed")
PROVOKED = {"duplicate": 1, "forged": 1}

Revisions = Mapping[str, Mapping[str, int]]
"""By object and key, how many changes of a record are stored."""


@dataclass(frozen=True)
class Sent:
    """An event of localstripe's, which it sends as a webhook: of which record it tells."""

    id: str
    object: str
    key: str


@dataclass(frozen=True)
class Delivery:
    """A webhook in the inbox; ``done_at``: when it was taken out, None while it waits."""

    sent: Sent
    received_at: datetime
    done_at: datetime | None


@dataclass(frozen=True)
class Change:
    """A stored change: what brought it, and whether a webhook has told of it, at first or later."""

    object: str
    key: str
    by: str
    at: datetime
    told: bool


@dataclass(frozen=True)
class Stored:
    """All that the store tells of webhooks at a moment.

    ``counts`` are the endpoint's, by kind; ``parked`` messages wait, ``dead`` ones wait for a person; ``noted`` records
    are still to be read, since a webhook has told of them. ``audit``: by object, what the view ``webhook_audit`` says.
    """

    deliveries: Sequence[Delivery]
    changes: Sequence[Change]
    counts: Mapping[str, int]
    parked: int
    dead: int
    noted: int
    audit: Mapping[str, Mapping[str, int]]
    revisions: Revisions

    @property
    def waiting(self) -> int:
        """What is not applied yet."""
        return sum(each.done_at is None for each in self.deliveries) + self.parked + self.noted


@dataclass(frozen=True)
class ObjectVerdict:
    """What brought the changes of one object; ``wrong`` says in words what does not add up."""

    object: str
    counts: Mapping[str, int]
    wrong: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether all accounts agree."""
        return not self.wrong


@dataclass(frozen=True)
class EndpointVerdict:
    """What came to the endpoint; seconds from its arrival until a webhook was ``taken`` out of the inbox, and until
    what it told of was ``changed`` in the copy."""

    counts: Mapping[str, int]
    taken: Sequence[float]
    changed: Sequence[float]
    wrong: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether each webhook that was sent was stored and applied once, and nothing else was."""
        return not self.wrong


def events(url: str) -> list[dict[str, Any]]:
    """Return all events that localstripe ever had, those of which it sends no webhook among them."""
    return Stripe(url).everything("events")


def sent_since(known: Collection[str], events: Iterable[Mapping[str, Any]]) -> list[Sent]:
    """Return those that are sent as webhooks and are not known by their ids."""
    return [sent(each) for each in events if each["id"] not in known and each["type"] in TYPES]


def sent(event: Mapping[str, Any]) -> Sent:
    """Read an event; of a type that nobody asked for, nothing but its id."""
    object, field = TYPES.get(event["type"], ("", "id"))
    return Sent(str(event["id"]), object, str(event["data"]["object"].get(field, "")))


def stored(dsn: str, schema: str = "stripe") -> Stored:
    """Read all of it, as it is at one moment."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        rows = connection.execute(DELIVERIES, [schema]).fetchall()
        ((parked, dead, noted),) = connection.execute(LEFT, [schema] * 3).fetchall()
        return Stored(
            [Delivery(sent(json.loads(body)), *times) for body, *times in rows],
            [Change(*row) for row in connection.execute(CHANGES, [schema]).fetchall()],
            {str(kind): int(count) for kind, count in connection.execute(COUNTS, [schema])},
            *(parked, dead, noted),
            audited(connection, schema),
            revisions(connection, schema),
        )


DELIVERIES = """
    select convert_from(body, 'UTF8'), received_at, done_at from extract.inbox where source = %s order by place
"""
CHANGES = "select object, key, by, at, told_at is not null from extract.brought where source = %s order by at"
COUNTS = "select kind, sum(count)::bigint from extract.inbox_count where source = %s group by kind"
LEFT = """
    select (select count(*) from extract.inbox_parked where source = %s and not dead),
           (select count(*) from extract.inbox_parked where source = %s and dead),
           (select count(*) from extract.refetch where source = %s and told_at is not null)
"""
AUDIT = """
    select object, sum(webhook), sum(poll), sum(sweep), sum(refetch), sum(late), sum(missed) + sum(expected)
    from extract.webhook_audit where source = %s group by object
"""


def audited(connection: "psycopg.Connection[Any]", schema: str) -> dict[str, dict[str, int]]:
    """Return what the view says of each object. Nothing is sent any more: what is expected still will never come."""
    rows = connection.execute(AUDIT, [schema]).fetchall()
    return {name: dict(zip(COLUMNS, map(int, counts), strict=True)) for name, *counts in rows}


def revisions(connection: "psycopg.Connection[Any]", schema: str) -> dict[str, dict[str, int]]:
    """Return how many changes of each record the copies count."""
    question = sql.SQL("select key, revision from {}")
    return {
        name: dict(connection.execute(question.format(sql.Identifier(schema, name))).fetchall()) for name in OBJECTS
    }


def judge_objects(sent: Iterable[Sent], before: Revisions, stored: Stored) -> list[ObjectVerdict]:
    """Add up by object what brought each change, and compare: with the view, with how many changes the copies count
    since ``before``, and with the webhooks: of each record that one was sent of, a change must be known to have had
    one."""
    by_object: defaultdict[str, list[Change]] = defaultdict(list)
    for each in stored.changes:
        by_object[each.object].append(each)
    told_of: defaultdict[str, set[str]] = defaultdict(set)
    for each_sent in sent:
        told_of[each_sent.object].add(each_sent.key)
    found = []
    for name in OBJECTS:
        changes, counts = by_object[name], added(by_object[name])
        made = sum(count - before[name].get(key, 0) for key, count in stored.revisions[name].items())
        untold = told_of[name] - {each.key for each in changes if each.told}
        view = stored.audit.get(name, dict.fromkeys(COLUMNS, 0))
        wrong = [
            f"{kind} {view[kind]:,} in the view, not {counts[kind]:,}" for kind in COLUMNS if view[kind] != counts[kind]
        ]
        wrong += [f"{len(changes):,} changes have an account, of {made:,}"] if made != len(changes) else []
        wrong += (
            [f"no change had the webhook of {len(untold):,} records ({', '.join(sorted(untold)[:3])})"]
            if untold
            else []
        )
        found.append(ObjectVerdict(name, counts, tuple(wrong)))
    return found


def added(changes: Iterable[Change]) -> Counter[str]:
    """Return how many changes each thing brought; of what no webhook brought, whether one came late, or never."""
    counts = Counter(dict.fromkeys(COLUMNS, 0))
    for each in changes:
        counts[each.by] += 1
        if each.by != "webhook":
            counts["late" if each.told else "missed"] += 1
    return counts


def judge_endpoint(sent: Sequence[Sent], stored: Stored, runs: Sequence[Mapping[str, Any]]) -> EndpointVerdict:
    """Compare what was sent with what was stored, webhook by webhook, and with what was counted. ``runs``: those of the
    DAG that applies them."""
    came = Counter(each.sent.id for each in stored.deliveries)
    lost = {each.id for each in sent} - came.keys()
    strange = came - Counter(each.id for each in sent)
    counted = {"received": len(sent), **PROVOKED, "applied": len(sent)}
    counts = {
        "sent": len(sent),
        **{kind: stored.counts.get(kind, 0) for kind in counted},
        "stored": len(stored.deliveries),
        "waiting": stored.waiting,
        "dead": stored.dead,
    }
    wrong = [f"{kind}: {counts[kind]:,}, not {count:,}" for kind, count in counted.items() if counts[kind] != count]
    wrong += [f"{len(lost):,} were sent and not stored ({', '.join(sorted(lost)[:3])})"] if lost else []
    wrong += [f"{strange.total():,} more were stored than sent ({', '.join(sorted(strange)[:3])})"] if strange else []
    wrong += [f"{stored.waiting:,} wait still"] if stored.waiting else []
    wrong += [f"{stored.dead:,} dead letters"] if stored.dead else []
    wrong += (
        [] if any(each.by == "webhook" for each in stored.changes) else ["no change was brought by a webhook first"]
    )
    failed = [run["dag_run_id"] for run in runs if run["state"] == "failed"]
    wrong += [f"{len(failed):,} runs that apply webhooks have failed ({', '.join(failed[:3])})"] if failed else []
    taken = [seconds(each.received_at, each.done_at) for each in stored.deliveries if each.done_at is not None]
    return EndpointVerdict(counts, taken, changed_after(stored), tuple(wrong))


def changed_after(stored: Stored) -> list[float]:
    """Return, of each change that a webhook brought, the seconds since that one had come: the newest of its record that
    had been taken out by then."""
    by_record: defaultdict[tuple[str, str], list[Delivery]] = defaultdict(list)
    for each in stored.deliveries:
        by_record[each.sent.object, each.sent.key].append(each)
    found = []
    for change in stored.changes:
        its = [
            each.received_at
            for each in by_record[change.object, change.key]
            if each.done_at is not None and each.done_at <= change.at
        ]
        if change.by == "webhook" and its:
            found.append(seconds(max(its), change.at))
    return found


def seconds(begin: datetime, end: datetime) -> float:
    """Return how many passed."""
    return (end - begin).total_seconds()


def spread(values: Sequence[float]) -> str:
    """Say it to a person: the median, and what 99 of 100 stay within."""
    if not values:
        return "never"
    ordered = sorted(values)
    return f"{median(ordered):.1f} s (median), {ordered[math.ceil(0.99 * len(ordered)) - 1]:.1f} s (99 of 100)"
