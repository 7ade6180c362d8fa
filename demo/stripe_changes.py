"""Somebody at work in localstripe while it is copied: makes, changes and cancels, and deletes nothing."""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from demo.seed import Amounts, Stripe, customer, plan, product, subscription

WAYS = {
    "make a customer": 20,
    "change a customer": 30,
    "make a product": 5,
    "change a product": 10,
    "make a plan": 3,
    "change a plan": 5,
    "make a subscription": 10,
    "change a subscription": 12,
    "cancel a subscription": 5,
}
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
        self._keys = {name: self._all(name) for name in ("customers", "products", "plans")}
        there = self._stripe.everything("subscriptions")
        self._running = [str(each["id"]) for each in there if each["status"] in ("active", "trialing")]
        self._unbilled: list[str] = []  # customers made here: they have credit for one subscription

    def act(self) -> str:
        """Do one thing, and return what it was."""
        ways = dict(WAYS)
        if not self._unbilled:
            ways.pop("make a subscription")
        if len(self._running) < 10:
            ways.pop("cancel a subscription")
        way = self._chance.choices(list(ways), list(ways.values()))[0]
        verb, _, kind = way.split()
        getattr(self, f"_{verb}")(f"{kind}s")
        return way

    def _make(self, objects: str) -> None:
        place = time.time_ns()  # a number that no other has
        if objects == "subscriptions":
            content = subscription(0, [self._unbilled.pop()], self._keys["plans"], self._chance)
            self._running.append(self._stripe.create(objects, content))
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
        if objects == "customers":
            content["description"] = f"changed, Nº {self._chance.randrange(10**6)}"
        keys = self._running if objects == "subscriptions" else self._keys[objects]
        self._stripe.change(objects, self._chance.choice(keys), content)

    def _cancel(self, objects: str) -> None:
        self._stripe.delete(objects, self._running.pop(self._chance.randrange(len(self._running))))

    def _all(self, objects: str) -> list[str]:
        return [str(each["id"]) for each in self._stripe.everything(objects)]


def _work(somebody: Somebody, pause: float, stop: Event) -> Counter[str]:
    done = Counter[str]()
    while not stop.wait(pause):
        done[somebody.act()] += 1
    return done
