"""Somebody who changes records behind the APIs' backs: in localstripe's memory, in the table of Kinto's database.

As an import does, a repair by hand, a purge: no event tells of it, no instant is new, no tombstone is left. It works
while nobody else writes. It shares no code with the package, on purpose: a mistake there cannot hide itself here.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import psycopg
import requests

from demo.kinto_contacts import CONTACTS, Truth, contact
from demo.localstripe_server import BACK_DOOR
from demo.verify import Listing

HOUR = 3_600_000
ALIVE = ("active", "trialing")
SPOTS = (["city"], ["address", "zip"], ["city"])
SET = """
    update objects set data = jsonb_set(data, %s, %s::jsonb)
    where id = %s and parent_id = %s and resource_name = 'record' and not deleted
"""
SET_LATER = """
    update objects set data = data || %s::jsonb, last_modified = last_modified + interval '1 millisecond'
    where id = %s and parent_id = %s and resource_name = 'record' and not deleted
"""
INSERT = """
    insert into objects (id, parent_id, resource_name, last_modified, data, deleted)
    values (%s, %s, 'record', from_epoch(%s), %s::jsonb, false)
"""
REMOVE = "delete from objects where id = %s and parent_id = %s and resource_name = 'record'"

Content: TypeAlias = Callable[[int], dict[str, object]]
"""Makes of a number, from 1 on, what is set in the record that is changed as this one."""


@dataclass(frozen=True)
class Done:
    """What was done to the records of one object, by their keys.

    ``silent``: changed, while its instant stayed or it has none. ``backdated``: changed, with an instant that is long
    past. ``imported``: new, with such an instant. ``removed``: gone without a word.
    """

    silent: frozenset[str] = frozenset()
    backdated: frozenset[str] = frozenset()
    imported: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Say it to a person."""
        counts = {each.name: len(getattr(self, each.name)) for each in fields(self)}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"


def change_stripe(url: str, there: Mapping[str, Listing], seed: int) -> dict[str, Done]:
    """Change and remove records of each kind in the localstripe at ``url``, which holds ``there``.

    A plan shows in every subscription to it: plans are only removed, which nothing else shows. A subscription that
    lives shows in its customer, which counts as changed too.
    """
    chance, door = random.Random(f"{seed}/behind"), Door(url)
    subscriptions = there["subscriptions"]
    billed = {str(each["customer"]) for name in ("subscriptions", "invoices") for each in there[name].values()}
    planned = {str(each["product"]) for each in there["plans"].values()}
    alive = {key for key, each in subscriptions.items() if each["status"] in ALIVE}
    removed = {
        "customers": door.remove("customer", some(chance, there["customers"].keys() - billed, 60)),
        "products": door.remove("product", some(chance, there["products"].keys() - planned, 60)),
        "plans": door.remove("plan", some(chance, there["plans"], 60)),
        "invoices": door.remove("invoice", some(chance, there["invoices"], 200)),
    }
    shown = door.change("subscription", some(chance, alive, 60), lambda nth: {"metadata": {"moved": str(nth)}})
    owners = frozenset(str(subscriptions[key]["customer"]) for key in shown)
    customers = some(chance, there["customers"].keys() - removed["customers"] - owners, 40)
    products = some(chance, there["products"].keys() - removed["products"], 20)
    invoices = some(chance, there["invoices"].keys() - removed["invoices"], 60)
    silent = {
        "customers": owners | door.change("customer", customers, lambda nth: {"description": f"repaired, Nº {nth}"}),
        "products": door.change("product", products, lambda nth: {"active": False, "caption": f"cleared, Nº {nth}"}),
        "subscriptions": shown,
        "invoices": door.change("invoice", invoices, lambda nth: {"receipt_number": f"2026-{nth:04}"}),
    }
    return {name: Done(silent.get(name, frozenset()), removed=removed.get(name, frozenset())) for name in there}


class Door:
    """The back door of a localstripe."""

    def __init__(self, url: str) -> None:
        """Take the server's address, without a path."""
        self._url = f"{url}{BACK_DOOR}"

    def change(self, kind: str, keys: Collection[str], content: Content) -> frozenset[str]:
        """Set fields of records; return the keys."""
        for nth, key in enumerate(keys, 1):
            requests.patch(f"{self._url}/{kind}/{key}", json=content(nth), timeout=30).raise_for_status()
        return frozenset(keys)

    def remove(self, kind: str, keys: Collection[str]) -> frozenset[str]:
        """Take records out; return the keys."""
        for key in keys:
            requests.delete(f"{self._url}/{kind}/{key}", timeout=30).raise_for_status()
        return frozenset(keys)


def change_contacts(dsn: str, there: Truth, seed: int) -> Done:
    """Change, add and remove contacts in Kinto's own table, which holds ``there``.

    Kinto gives the newest record another instant when it is written in any way, so that one is left alone.
    """
    chance = random.Random(f"{seed}/behind")
    instants = {int(str(record["last_modified"])): key for key, record in there.live.items()}
    taken = {*instants, *there.deleted.values()}
    free = {key for at, key in instants.items() if at != max(taken)}
    removed = some(chance, free, 60)
    movable = {key for at, key in instants.items() if at + 1 not in taken} & (free - {*removed})
    backdated = some(chance, movable, 100)
    silent = some(chance, free - {*removed, *backdated}, 30)
    imported = [f"imported-{nth:03}" for nth in range(1, 2 + len(free) // 200)]
    with psycopg.connect(dsn) as connection:
        for nth, key in enumerate(silent):
            connection.execute(SET, [SPOTS[nth % len(SPOTS)], json.dumps(f"moved, Nº {nth}"), key, CONTACTS])
        for nth, key in enumerate(backdated):
            connection.execute(SET_LATER, [json.dumps({"name": f"renamed, Nº {nth}"}), key, CONTACTS])
        for nth, key in enumerate(imported):
            at = min(taken) - HOUR + nth
            connection.execute(INSERT, [key, CONTACTS, at, json.dumps(contact(chance), ensure_ascii=False)])
        for key in removed:
            connection.execute(REMOVE, [key, CONTACTS])
    return Done(frozenset(silent), frozenset(backdated), frozenset(imported), frozenset(removed))


def some(chance: random.Random, keys: Collection[str], part: int) -> list[str]:
    """Choose one of each ``part`` of these keys, and two more."""
    return chance.sample(sorted(keys), min(len(keys), 2 + len(keys) // part))
