"""An independent judge: reads the API with plain HTTP, the copy with plain SQL, and compares every record.

It shares no code with the package, on purpose: a mistake there cannot hide itself here. Two records are equal
when they are the same JSON value: key order and white space do not count, every digit of a number does.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import requests
from psycopg import sql

from demo.kinto_contacts import Json, Truth, exactly

# What each object needs to be listed in full: Stripe leaves canceled subscriptions out unless told.
LISTS: dict[str, dict[str, str]] = {
    "customers": {},
    "products": {},
    "plans": {},
    "subscriptions": {"status": "all"},
    "invoices": {},
}
DELETED_CONTACTS = "contacts, deleted"

Listing = Mapping[str, Json]
"""All records of an object by id; the numbers in them are decimals."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison of one object found; the keys are sorted and complete."""

    object: str
    in_api: int
    in_postgres: int
    api_hash: str
    postgres_hash: str
    missing: tuple[str, ...]
    surplus: tuple[str, ...]
    different: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether the copy has exactly the API's records."""
        return self.in_api == self.in_postgres and self.api_hash == self.postgres_hash

    def complaint(self) -> str:
        """Say what differs, with a few keys of each kind; empty when equal."""
        kinds = {"missing": self.missing, "surplus": self.surplus, "different": self.different}
        named = [f"{len(keys):,} {kind} ({', '.join(keys[:3])}, ...)" for kind, keys in kinds.items() if keys]
        return f"{self.object}: {'; '.join(named)}" if named else ""


def listings(url: str) -> dict[str, Listing]:
    """Read all of Stripe's objects in full from the API at ``url``: right only while nobody writes."""
    with requests.Session() as session:
        return {name: by_key(listed(session, url, name)) for name in LISTS}


def verify(api: Mapping[str, Listing], dsn: str, schema: str = "stripe") -> list[Verdict]:
    """Compare what the API holds of each object with its table ``schema.object`` in the database at ``dsn``.

    Deleted records (those with ``deleted_at``) do not count as being in the copy.
    """
    with psycopg.connect(dsn) as connection:
        return [
            judge(name, fingerprints(as_text(there)), fingerprints(rows(connection, schema, name)))
            for name, there in api.items()
        ]


def verify_contacts(there: Truth, dsn: str, schema: str = "crm") -> list[Verdict]:
    """Compare what Kinto holds with ``schema.contacts``: the contacts that live, and the tombstones.

    A tombstone is equal when the copy's row has ``deleted_at`` and the instant of the deletion as its version.
    """
    tombstones = ((key, str(instant)) for key, instant in there.deleted.items())
    question = sql.SQL(
        "select key, (extract(epoch from version) * 1000)::bigint from {} where deleted_at is not null"
    ).format(sql.Identifier(schema, "contacts"))
    with psycopg.connect(dsn) as connection:
        deleted = ((str(key), str(instant)) for key, instant in connection.execute(question))
        return [
            judge("contacts", fingerprints(as_text(there.live)), fingerprints(rows(connection, schema, "contacts"))),
            judge(DELETED_CONTACTS, fingerprints(tombstones), fingerprints(deleted)),
        ]


def as_text(listing: Listing) -> Iterator[tuple[str, str]]:
    """Write each record in canonical form, with its key."""
    return ((key, canonical(record)) for key, record in listing.items())


def judge(name: str, api: dict[str, str], copy: dict[str, str]) -> Verdict:
    """Compare two sets of fingerprints by key."""
    return Verdict(
        object=name,
        in_api=len(api),
        in_postgres=len(copy),
        api_hash=hash_of_all(api),
        postgres_hash=hash_of_all(copy),
        missing=tuple(sorted(api.keys() - copy.keys())),
        surplus=tuple(sorted(copy.keys() - api.keys())),
        different=tuple(sorted(key for key in api.keys() & copy.keys() if api[key] != copy[key])),
    )


def listed(session: requests.Session, url: str, name: str) -> Iterator[dict[str, Any]]:
    """Read an object page by page; the numbers are decimals."""
    query = {"limit": "100", **LISTS[name]}
    while True:
        answer = session.get(f"{url}/v1/{name}", params=query, auth=("sk_test_verify", ""), timeout=60)
        answer.raise_for_status()
        page = exactly(answer.text)
        yield from page["data"]
        if not page["has_more"]:
            return
        query["starting_after"] = page["data"][-1]["id"]


def rows(connection: "psycopg.Connection[tuple[object, ...]]", schema: str, name: str) -> Iterator[tuple[str, str]]:
    """Read the live rows of a record table, as (key, canonical record)."""
    question = sql.SQL("select key, data::text from {} where deleted_at is null").format(sql.Identifier(schema, name))
    for key, text in connection.execute(question):
        yield str(key), canonical(exactly(str(text)))


def by_key(records: Iterable[Json]) -> Listing:
    """Return the records by their ids; one that comes twice is an error, not an update."""
    found: dict[str, Json] = {}
    for record in records:
        if found.setdefault(str(record["id"]), record) is not record:
            raise ValueError(f"the id {record['id']} came twice")
    return found


def fingerprints(records: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the hash of each record by its key; a key that comes twice is an error, not an update."""
    found: dict[str, str] = {}
    for key, text in records:
        if key in found:
            raise ValueError(f"the key {key} came twice")
        found[key] = hashlib.sha256(text.encode()).hexdigest()
    return found


def hash_of_all(by_key: dict[str, str]) -> str:
    """Return one hash over all records in the order of their keys."""
    return hashlib.sha256("\n".join(f"{key} {by_key[key]}" for key in sorted(by_key)).encode()).hexdigest()


def canonical(value: object) -> str:
    """Write a JSON value so that equal values give equal text."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{canonical(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    if isinstance(value, Decimal):
        return canonical_number(value)
    return json.dumps(value)


def canonical_number(number: Decimal) -> str:
    """Write a number as digits and exponent: 1e-7 and 0.0000001 are the same, and no digit is lost.

    ``Decimal.normalize`` is not used because it rounds to 28 digits.
    """
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    bare = text.rstrip("0")
    if not bare:
        return "0"
    return f"{'-' * sign}{bare}e{int(exponent) + len(text) - len(bare)}"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url", help="of the API")
    options.add_argument("dsn", help="of the database with the copy")
    options.add_argument("--schema", default="stripe")
    given = options.parse_args()
    verdicts = verify(listings(given.url), given.dsn, given.schema)
    for verdict in verdicts:
        print(f"{verdict.object:15} {verdict.in_api:7,} {verdict.in_postgres:7,} {verdict.equal}")
        print(verdict.complaint(), end="\n" if not verdict.equal else "")
    sys.exit(0 if all(verdict.equal for verdict in verdicts) else 1)
