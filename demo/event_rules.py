"""The event rules of ``sources/``, said again without the package: what a change of a record is to become.

They share no code with the package, on purpose: a mistake there cannot hide itself here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from demo.kinto_contacts import Json, exactly
from demo.stripe_changes import PRICEY
from demo.verify import canonical


@dataclass(frozen=True)
class Step:
    """What became of one record between two looks at it.

    ``before``: as it was last there; None: it never was. ``after``: None where it is deleted. ``again``: before this
    step it was deleted. ``at`` is the instant where the API tells one for each change.
    """

    key: str
    before: Json | None
    after: Json | None
    again: bool = False
    at: int | None = None


@dataclass(frozen=True)
class Rule:
    """One rule.

    ``look`` picks what is compared of the record, ``bare`` events tell nothing of the record before.
    """

    object: str
    type: str
    happens: Callable[[Step], bool]
    look: Callable[[Json], Any]
    bare: bool = False

    def told(self, step: Step) -> "Told":
        """Return the event that a step becomes."""
        return self.event(step.key, step.at, None if self.bare else step.before, step.after)

    def event(self, key: str, at: int | None, before: Json | None, after: Json | None) -> "Told":
        """Return the event of these two records."""
        was, now = (None if each is None else canonical(self.look(each)) for each in (before, after))
        return Told(self.object, self.type, key, at, was, now)


@dataclass(frozen=True)
class Told:
    """One event: two are the same when they tell the same of the same record, and of the same instant if any.

    ``was`` and ``now`` are JSON; None: there is no record.
    """

    object: str
    type: str
    key: str
    at: int | None
    was: str | None
    now: str | None

    def __str__(self) -> str:
        """Say it to a person."""
        was, now = shown_value(self.was, "nothing"), shown_value(self.now, "gone")
        return f"{self.type:<30}{self.key:<22}{was} → {now}"


def created(step: Step) -> bool:
    """Whether it was never there before, and now is."""
    return step.before is None and step.after is not None


def deleted(step: Step) -> bool:
    """Whether it was there, and now is not."""
    return step.after is None


def undeleted(step: Step) -> bool:
    """Whether it was deleted, and is there again."""
    return step.again and step.after is not None


def whole(record: Json) -> object:
    """Look at all of a record."""
    return record


def field(name: str) -> Callable[[Json], object]:
    """Look at one field."""
    return lambda record: record.get(name)


def price(subscription: Json) -> Decimal:
    """Add up the prices of a subscription's plans."""
    items: Any = subscription["items"]
    return sum((Decimal(item["plan"]["amount"]) for item in items["data"]), Decimal())


def changed(look: Callable[[Json], object]) -> Callable[[Step], bool]:
    """Whether what is looked at was something else."""

    def happens(step: Step) -> bool:
        if step.before is None or step.after is None:
            return False
        return canonical(look(step.before)) != canonical(look(step.after))

    return happens


def retired(step: Step) -> bool:
    """Whether a product was sold, and is no more."""
    return step.before is not None and step.before["active"] is True and not (step.after and step.after["active"])


def passed(step: Step) -> bool:
    """Whether a subscription costs more than the threshold, and did not."""
    if step.after is None or price(step.after) <= PRICEY:
        return False
    return step.before is None or price(step.before) <= PRICEY


RULES = (
    Rule("customers", "stripe.customers.created", created, field("name"), bare=True),
    Rule("customers", "customer.described", changed(field("description")), field("description")),
    Rule("customers", "stripe.customers.deleted", deleted, field("name")),
    Rule("products", "stripe.products.created", created, field("name"), bare=True),
    Rule("products", "product.retired", retired, field("active")),
    Rule("plans", "stripe.plans.created", created, field("nickname"), bare=True),
    Rule("subscriptions", "stripe.subscriptions.created", created, field("customer"), bare=True),
    Rule("subscriptions", "subscription.status_changed", changed(field("status")), field("status")),
    Rule("subscriptions", "subscription.passed_1000", passed, price),
    Rule("invoices", "stripe.invoices.created", created, field("subscription"), bare=True),
    Rule("contacts", "crm.contacts.created", created, whole, bare=True),
    Rule("contacts", "crm.contacts.changed", changed(whole), whole),
    Rule("contacts", "contact.moved", changed(field("city")), field("city")),
    Rule("contacts", "crm.contacts.deleted", deleted, whole),
    Rule("contacts", "crm.contacts.undeleted", undeleted, whole, bare=True),
)


def shown_value(text: str | None, absent: str) -> str:
    """Write what an event tells for a person: a whole contact by its name, and a word where there is no record."""
    if text is None:
        return absent
    value = exactly(text)
    if isinstance(value, dict):
        value = value.get("name")
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value if isinstance(value, str) else json.dumps(value)
