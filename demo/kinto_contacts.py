"""Contacts in Kinto: those who write them, several at once, and what is truly there, by SQL and by plain HTTP.

It shares no code with the package, on purpose: a mistake there cannot hide itself here. A batch is one
transaction: with several writers it is often committed after others whose ``last_modified`` is greater.
"""

import argparse
import contextlib
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Event
from typing import Any

import psycopg
import requests

USER = "demo"
PASSWORD = "kinto"  # nothing to keep secret: any pair opens the server, the same pair the same bucket
BUCKET = "/buckets/crm"
CONTACTS = f"{BUCKET}/collections/contacts"
RECORDS = f"{CONTACTS}/records"
BATCH = 10
MOST = 25  # operations that Kinto takes in one batch
SHARED = tuple(f"shared-{number}" for number in range(8))
GONE, CONFLICT, BUSY = 404, 409, 503
NAMES = ("Ada Ångström", "Björn Çelik", "Hélène O'Brien", "李 Nguyễn", "Zoé 🦔", 'Quote "Q" \\ Back')
CITIES = ("Zürich", "Łódź", "São Paulo", "東京", None)

Json = dict[str, object]


@dataclass
class Written:
    """What one writer did: batches sent, those of them refused wholly or in part, and operations that count.

    ``live`` and ``deleted`` are its contacts as it left them. The shared ones are written by all and deleted by
    nobody; ``live`` has those this writer touched. ``states`` is what Kinto answered to each operation that counts.
    """

    batches: int = 0
    refused: int = 0
    operations: int = 0
    live: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    states: list["State"] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class State:
    """A contact as it was from one instant (its ``last_modified``) on; None: it was deleted then."""

    key: str
    at: int
    record: Json | None


@dataclass(frozen=True)
class Truth:
    """All that a collection holds: live records by id, and the ``last_modified`` of each tombstone by id.

    The numbers in records are decimals: every digit counts.
    """

    live: dict[str, Json]
    deleted: dict[str, int]


def connection_kept_open() -> requests.Session:
    """Give a connection of the user who owns the contacts."""
    session = requests.Session()
    session.auth = (USER, PASSWORD)
    return session


def create_contacts(url: str) -> None:
    """Make the bucket and the collection at the server's address (without a path), if they are not there.

    The first list of a collection notes its birth, and is answered with 500 if a record arrives at that moment:
    so it is asked for here.
    """
    with connection_kept_open() as session:
        for path in (BUCKET, CONTACTS):
            session.put(f"{url}/v1{path}", json={}, timeout=30).raise_for_status()
        session.get(f"{url}/v1{RECORDS}", params={"_limit": "1"}, timeout=30).raise_for_status()


def fill(url: str, count: int, seed: int = 1) -> list[str]:
    """Make so many contacts, none of them deleted again, and return their ids."""
    chance = random.Random(f"{seed}/fill")
    keys = [f"contact-{number:05}" for number in range(count)]
    with connection_kept_open() as session:
        for first in range(0, count, MOST):
            plan = [Operation("PUT", key, contact(chance)) for key in keys[first : first + MOST]]
            asked = {"requests": [operation.as_json() for operation in plan]}
            answer = session.post(f"{url}/v1/batch", json=asked, timeout=60)
            answer.raise_for_status()
            settle(Written(), plan, exactly(answer.text)["responses"])
    return keys


@contextlib.contextmanager
def writing(
    url: str, seed: int, writers: int = 4, *, own: Sequence[str] = (), pause: float = 0
) -> Iterator[list[Written]]:
    """Let writers work at once for as long as the block lasts; the list is complete after it.

    They share out the contacts ``own`` among them, and wait ``pause`` seconds after each batch. A writer's failure is
    raised at the end of the block.
    """
    stop = Event()
    with ThreadPoolExecutor(writers) as pool:
        working = [
            pool.submit(write_batches, url, writer, seed, stop=stop, own=own[writer::writers], pause=pause)
            for writer in range(writers)
        ]
        results: list[Written] = []
        try:
            yield results
        finally:
            stop.set()
        results.extend(each.result() for each in working)


def write_batches(
    url: str,
    writer: int,
    seed: int,
    *,
    stop: Event | None = None,
    batches: int | None = None,
    own: Iterable[str] = (),
    pause: float = 0,
) -> Written:
    """Send batches of up to ten operations until ``stop`` is set or so many were sent.

    ``own`` are contacts that are there already and that nobody else writes.

    The same seed and writer choose the same operations as long as the same ones are refused.
    """
    chance = random.Random(f"{seed}/{writer}")
    done = Written(live=set(own))
    stop = stop or Event()
    with connection_kept_open() as session:
        while (batches is None or done.batches < batches) and not stop.wait(pause):
            plan = plan_batch(chance, f"w{writer}-{done.batches:05}", done)
            asked = {"requests": [operation.as_json() for operation in plan]}
            answer = session.post(f"{url}/v1/batch", json=asked, timeout=60)
            done.batches += 1
            if answer.status_code == BUSY:
                done.refused += 1  # as a whole: it and another one waited for each other
                continue
            answer.raise_for_status()
            settle(done, plan, exactly(answer.text)["responses"])
    return done


def settle(done: Written, plan: "list[Operation]", answers: list[dict[str, Any]]) -> None:
    """Note what a batch changed, by the answer to each of its operations.

    Kinto gives no two records the same ``last_modified``. An operation that would gets 409, and takes all that
    came before it in the batch along, whatever their statuses say; what comes after it is committed.
    """
    refused = [place for place, answer in enumerate(answers) if answer["status"] == CONFLICT]
    begin = refused[-1] + 1 if refused else 0
    done.refused += bool(refused)
    for operation, answer in list(zip(plan, answers, strict=True))[begin:]:
        status = int(answer["status"])
        if status == GONE and refused:
            continue  # it was to change a record whose making was rolled back
        if status >= 400:
            raise ValueError(f"{operation} was answered with {status}")
        done.operations += 1
        operation.apply(done)
        done.states.append(state(answer["body"]["data"]))


def state(record: Json) -> State:
    """Tell what a record, or the tombstone of one, says of its contact."""
    at = int(str(record["last_modified"]))
    return State(str(record["id"]), at, None if record.get("deleted") else record)


@dataclass(frozen=True)
class Operation:
    """One change of one contact."""

    method: str
    key: str
    data: Json | None = None

    def as_json(self) -> Json:
        """Write it as Kinto takes it in a batch."""
        body: Json = {} if self.data is None else {"body": {"data": self.data}}
        return {"method": self.method, "path": f"{RECORDS}/{self.key}", **body}

    def apply(self, state: Written) -> None:
        """Note which records are there after it."""
        here, gone = (state.deleted, state.live) if self.method == "DELETE" else (state.live, state.deleted)
        here.add(self.key)
        gone.discard(self.key)


def plan_batch(chance: random.Random, name: str, before: Written) -> list[Operation]:
    """Choose up to ten operations for a writer who has done ``before``; new ids begin with ``name``."""
    state = Written(live=before.live.difference(SHARED), deleted=set(before.deleted))
    plan = []
    for place in range(chance.randint(1, BATCH)):
        plan.append(choose(chance, f"{name}-{place}", state))
        plan[-1].apply(state)
    # One at most: two batches with two of them could wait for each other. None is cut off for it: later ones may need
    # what it makes.
    if chance.random() < 0.2 and len(plan) < BATCH:
        plan.append(Operation("PUT", chance.choice(SHARED), contact(chance)))
    return plan


def choose(chance: random.Random, new: str, state: Written) -> Operation:
    """Choose one operation: make the contact ``new``, or change, delete or bring back one of the writer's own."""
    way = chance.random()
    if way < 0.5 or len(state.live) < 5:
        return Operation("PUT", new, contact(chance))
    if way < 0.55 and state.deleted:
        return Operation("PUT", chance.choice(sorted(state.deleted)), contact(chance))
    key = chance.choice(sorted(state.live))
    if way < 0.7:
        return Operation("DELETE", key)
    if way < 0.85:
        return Operation("PUT", key, contact(chance))
    return Operation("PATCH", key, {"city": chance.choice(CITIES), "visits": chance.randrange(10**6)})


def contact(chance: random.Random) -> Json:
    """Describe a contact; some values are such that careless copies change them."""
    return {
        "name": chance.choice(NAMES),
        "email": None if chance.random() < 0.1 else f"contact{chance.randrange(10**6)}@example.com",
        "city": chance.choice(CITIES),
        "tags": chance.sample(("vip", "new", "", "lost"), chance.randrange(4)),
        "visits": chance.choice((0, chance.randrange(1000), 2**53 + 1)),
        "score": chance.randrange(10_000) / 100,
        "address": {"zip": f"{chance.randrange(10**5):05}", "lines": []},
        "active": chance.random() < 0.8,
    }


def truth(dsn: str) -> Truth:
    """Read all contacts from Kinto's own table with plain SQL: right at any moment, one snapshot."""
    question = """
        select id, (extract(epoch from last_modified) * 1000)::bigint, deleted, data::text from objects
        where resource_name = 'record' and parent_id = %s
    """
    found = Truth({}, {})
    with psycopg.connect(dsn) as connection:
        for key, modified, deleted, data in connection.execute(question, [CONTACTS]):
            if deleted:
                found.deleted[key] = modified
            else:
                found.live[key] = {**exactly(data), "id": key, "last_modified": Decimal(modified)}
    return found


def truth_over_http(url: str) -> Truth:
    """Read all contacts, tombstones too, with plain HTTP: right only while nobody writes."""
    found = Truth({}, {})
    address: str | None = f"{url}/v1{RECORDS}?_since=0"
    with connection_kept_open() as session:
        while address:
            answer = session.get(address, timeout=60)
            answer.raise_for_status()
            for record in exactly(answer.text)["data"]:
                if record["id"] in found.live or record["id"] in found.deleted:
                    raise ValueError(f"the id {record['id']} came twice")
                if record.get("deleted"):
                    found.deleted[record["id"]] = int(record["last_modified"])
                else:
                    found.live[record["id"]] = record
            address = answer.headers.get("Next-Page")
    return found


def exactly(text: str) -> Any:
    """Read JSON with its numbers as decimals."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url")
    options.add_argument("--writer", type=int, default=0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--batches", type=int, default=100)
    options.add_argument("--fill", type=int, help="only make so many contacts, and print their ids")
    given = options.parse_args()
    create_contacts(given.url)
    if given.fill is not None:
        print(json.dumps(fill(given.url, given.fill, given.seed)))
        sys.exit()
    made = write_batches(given.url, given.writer, given.seed, batches=given.batches)
    print(json.dumps({"batches": made.batches, "refused": made.refused, "operations": made.operations}))
