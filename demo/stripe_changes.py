"""Somebody at work in localstripe while it is copied: makes, changes and cancels, and deletes nothing.

What events are made of changes once in a record's life here: a description, a price above PRICEY, the end of a
product or a subscription. So it does not matter when, or how often, the record was read in between. All else changes
as often as it comes.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from demo.seed import Amounts, Stripe, customer, plan, product, subscription

WAYS = {
    "make a customer": 20,
    "change a customer": 20,
    "describe a customer": 10,
    "make a product": 5,
    "change a product": 6,
    "retire a product": 4,
    "make a plan": 3,
    "change a plan": 5,
    "make a subscription": 10,
    "change a subscription": 6,
    "upgrade a subscription": 6,
    "cancel a subscription": 5,
}
PRICEY = 100_000  # as in the event rule in sources/stripe.yaml
NEVER_BY_CARD = Amounts(subscriptions=0)


@contextlib.contextmanager
def changing(url: str, seed: int, pause: float) -> Iterator[Counter[str]]:
    """Let somebody work for as long as the block lasts; after it, the counter says what was done how often.

    A failure is raised at the end of the block.
    """
    stop, done = Event(), Counter[str]()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(_work, Somebody(url, seed), pause, stop)
        try:
            yield done
        finally:
            stop.set()
        done.update(working.result())


class Somebody:
    """Knows what is there, and does one thing after another."""

    def __init__(self, url: str, seed: int) -> None:
        """Look at what is there."""
        self._stripe = Stripe(url)
        self._chance = random.Random(f"{seed}/changes")
        there = {name: self._stripe.everything(name) for name in ("customers", "products", "plans", "subscriptions")}
        self._keys = {name: [str(each["id"]) for each in records] for name, records in there.items()}
        running = [each for each in there["subscriptions"] if each["status"] in ("active", "trialing")]
        self._keys["subscriptions"] = [str(each["id"]) for each in running]
        # A charge slows localstripe down: a plan of the same interval costs none.
        self._pricier = pricier(there["plans"])
        cheap = [each for each in running if each["plan"]["amount"] <= PRICEY]
        self._upgrades = [each for each in cheap if self._pricier.get(each["plan"]["interval"])]
        self._undescribed = list(self._keys["customers"])
        self._sold = [str(each["id"]) for each in there["products"] if each["active"]]
        self._running = list(self._keys["subscriptions"])
        for left in (self._upgrades, self._undescribed, self._sold, self._running):
            self._chance.shuffle(left)
        self._unbilled: list[str] = []  # customers made here: they have credit for one subscription

    def act(self) -> str:
        """Do one thing, and return what it was."""
        ways = {way: weight for way, weight in WAYS.items() if self._left.get(way, True)}
        way = self._chance.choices(list(ways), list(ways.values()))[0]
        verb, _, kind = way.split()
        getattr(self, f"_{verb}")(f"{kind}s")
        return way

    @property
    def _left(self) -> dict[str, Sized]:
        """What can be done only as long as there is one left to do it to."""
        return {
            "describe a customer": self._undescribed,
            "retire a product": self._sold,
            "make a subscription": self._unbilled,
            "upgrade a subscription": self._upgrades,
            "cancel a subscription": self._running,
        }

    def _make(self, objects: str) -> None:
        place = time.time_ns()  # a number that no other has
        if objects == "subscriptions":
            content = subscription(0, [self._unbilled.pop()], self._keys["plans"], self._chance)
            self._stripe.create(objects, content)
            return
        made = {
            "customers": lambda: customer(place, NEVER_BY_CARD, self._chance),
            "products": lambda: product(place, self._chance),
            "plans": lambda: plan(place, self._keys["products"], self._chance),
        }
        key = self._stripe.create(objects, made[objects]())
        self._keys[objects].append(key)
        if objects == "customers":
            self._unbilled.append(key)

    def _change(self, objects: str) -> None:
        content: dict[str, object] = {"metadata": {"changed": str(self._chance.randrange(10**9))}}
        self._stripe.change(objects, self._chance.choice(self._keys[objects]), content)

    def _describe(self, objects: str) -> None:
        text = f"described, Nº {self._chance.randrange(10**6)}"
        self._stripe.change(objects, self._undescribed.pop(), {"description": text})

    def _retire(self, objects: str) -> None:
        self._stripe.change(objects, self._sold.pop(), {"active": False})

    def _upgrade(self, objects: str) -> None:
        chosen = self._upgrades.pop()
        plan = self._chance.choice(self._pricier[chosen["plan"]["interval"]])
        self._stripe.change(objects, chosen["id"], {"items": [{"plan": plan, "quantity": chosen["quantity"]}]})

    def _cancel(self, objects: str) -> None:
        self._stripe.delete(objects, self._running.pop())


def pricier(plans: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The plans above PRICEY, by interval."""
    found: dict[str, list[str]] = {}
    for each in plans:
        if each["amount"] > PRICEY:
            found.setdefault(each["interval"], []).append(str(each["id"]))
    return found


def _work(somebody: Somebody, pause: float, stop: Event) -> Counter[str]:
    done = Counter[str]()
    while not stop.wait(pause):
        done[somebody.act()] += 1
    return done
