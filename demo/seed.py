"""Fills localstripe through its own API: customers, products, plans, subscriptions and with them invoices.

The same seed asks for the same objects; only what the server adds (``created``) differs from run to run.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import requests

KEY = "sk_test_demo"
CREDIT = -2_000_000
CARD = {"object": "card", "number": "4242424242424242", "exp_month": 12, "exp_year": 2040, "cvc": "123"}
FIRST_NAMES = ("Ada", "Björn", "Chloë", "Đorđe", "Émile", "Fatma", "Grzegorz", "Hélène", "李", "Zoé")
LAST_NAMES = ("Ångström", "Brown", "Çelik", "Dupont", "O'Brien", "Müller", "Nguyễn", "Smith", "김", "🦔")
INTERVALS = ("day", "week", "month", "year")


@dataclass(frozen=True)
class Amounts:
    """How many objects of each kind to make; ``canceled`` of the subscriptions are canceled again."""

    customers: int = 2000
    products: int = 300
    plans: int = 60
    subscriptions: int = 900
    canceled: int = 90


SMALL = Amounts(customers=250, products=30, plans=10, subscriptions=120, canceled=12)


class Stripe:
    """A connection to the fake Stripe that is kept open: thousands of requests go through it."""

    def __init__(self, url: str) -> None:
        """Take the server's address, without a path."""
        self._url = url
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {KEY}"

    def create(self, objects: str, content: dict[str, object]) -> str:
        """Make one object and return its id."""
        return self._id(self._session.post(f"{self._url}/v1/{objects}", json=content, timeout=30))

    def change(self, objects: str, key: str, content: dict[str, object]) -> str:
        """Change some fields of one object and return its id."""
        return self._id(self._session.post(f"{self._url}/v1/{objects}/{key}", json=content, timeout=30))

    def delete(self, objects: str, key: str) -> str:
        """Delete one object (cancel, if it is a subscription) and return its id."""
        return self._id(self._session.delete(f"{self._url}/v1/{objects}/{key}", timeout=30))

    def everything(self, objects: str) -> list[dict[str, Any]]:
        """Return all objects of a kind: localstripe takes any limit."""
        answer = self._session.get(f"{self._url}/v1/{objects}", params={"limit": "100000"}, timeout=60)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def _id(self, answer: requests.Response) -> str:
        answer.raise_for_status()
        return str(answer.json()["id"])


def seed(url: str, amounts: Amounts = Amounts(), number: int = 1) -> dict[str, int]:
    """Fill the server at ``url`` and return how many requests of each kind were made."""
    stripe = Stripe(url)
    chance = random.Random(number)

    def make(objects: str, count: int, content: Callable[[int], dict[str, object]]) -> list[str]:
        return [stripe.create(objects, content(place)) for place in range(count)]

    products = make("products", amounts.products, lambda place: product(place, chance))
    plans = make("plans", amounts.plans, lambda place: plan(place, products, chance))
    customers = make("customers", amounts.customers, lambda place: customer(place, amounts, chance))
    subscriptions = make(
        "subscriptions", amounts.subscriptions, lambda place: subscription(place, customers, plans, chance)
    )
    for key in chance.sample(subscriptions, amounts.canceled):
        stripe.delete("subscriptions", key)
    return asdict(amounts)


def product(place: int, chance: random.Random) -> dict[str, object]:
    """Describe a product."""
    return {
        "name": f"Product {place}",
        "active": chance.random() > 0.1,
        "description": None if place % 3 else f"Nº {place}: “quoted”, back\\slash, tab\there",
        "metadata": {"shelf": f"{chance.randrange(100):02}"},
    }


def plan(place: int, products: list[str], chance: random.Random) -> dict[str, object]:
    """Describe a plan of one of the products."""
    return {
        "id": f"plan-{place:03}",
        "product": chance.choice(products),
        "amount": chance.randrange(100, 200_000),
        "currency": chance.choice(("eur", "usd", "jpy")),
        "interval": chance.choice(INTERVALS),
        "nickname": None if place % 4 == 0 else f"Plan {place}",
    }


def customer(place: int, amounts: Amounts, chance: random.Random) -> dict[str, object]:
    """Describe a customer; every 50th carries values that careless copies change.

    Most have enough credit for what they subscribe to, few pay by card: each charge slows localstripe down,
    since it looks for refunds among all it holds.
    """
    name = f"{chance.choice(FIRST_NAMES)} {chance.choice(LAST_NAMES)}"
    metadata: dict[str, object] = {"tier": chance.choice(("free", "pro", "enterprise"))}
    if place % 50 == 0:
        # Metadata is stored as it was sent: an integer no float holds, null beside absent, empty beside null.
        metadata |= {"big": 12345678901234567890123, "nothing": None, "empty": "", "small": 1e-7}
    pays_by_card = place < amounts.subscriptions and place % 6 == 0
    content: dict[str, object] = {
        "name": name,
        "email": f"customer{place}@example.com",
        "description": None if place % 5 else f"{name} since {2015 + place % 10}",
        "balance": chance.randrange(5000) if pays_by_card else CREDIT,
        "metadata": metadata,
    }
    return content | ({"source": CARD} if pays_by_card else {})


def subscription(place: int, customers: list[str], plans: list[str], chance: random.Random) -> dict[str, object]:
    """Describe a subscription; one in ten begins with a trial and so has no invoice yet."""
    content: dict[str, object] = {
        "customer": customers[place % len(customers)],
        "items": [{"plan": chance.choice(plans), "quantity": chance.randrange(1, 10)}],
        # Invoices are listed by date, newest first: without this all of them would share a second or two.
        "backdate_start_date": 1_700_000_000 + chance.randrange(60_000_000),
        "metadata": {"place": str(place)},
    }
    return content | ({"trial_period_days": 14} if place % 10 == 9 else {})


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url")
    options.add_argument("--small", action="store_true")
    given = options.parse_args()
    begin = time.monotonic()
    made = seed(given.url, SMALL if given.small else Amounts())
    print(json.dumps({**made, "seconds": round(time.monotonic() - begin, 1)}))
