"""What it costs to lose nothing: requests for 10,000 records of an API with page numbers, of which 10 are deleted and
10 are changed, and so moved to the end, while it is read; beside plain paging, which loses some of them.

Prints both and fails (exit code 1) if a record was lost by the walk, if plain paging lost none (then nothing was
shown), or above 1.5 times the requests of plain paging. Run it with `python benchmarks/moving_pages.py [SEED]`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from datetime import timedelta

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.walks.backfill import backfill, beginning
from airflow_extract_provider.testing.hostile import HostileApi, Listing

RECORDS, CHANGES, SIZE, BOUND = 10_000, 10, 100, 1.5
SOURCE = {
    "source": "bench",
    "connection": "none",
    "objects": {
        "things": {
            "path": "/things",
            "records": "data",
            "key": "id",
            "version": "updated_at",
            "order": ["updated_at"],
            "pages": {"by": "page", "send": "page", "size": {"send": "per_page", "max": SIZE}},
        }
    },
}


def main() -> int:
    """Read the same API in both ways, with the same changes at the same places, and compare."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    source = parse_source(SOURCE, "bench")
    plain, plain_lost = measured(seed, read_plainly)
    walk, walk_lost = measured(seed, lambda url: read_by_walk(source, url))
    ratio = walk / plain
    told = f"{CHANGES} deleted and {CHANGES} moved while they are read, seed {seed}"
    print(f"{RECORDS:,} records in pages of {SIZE}; {told}")
    print(f"  plain paging   {plain:5} requests   {plain_lost:3} records lost")
    print(f"  the walk       {walk:5} requests   {walk_lost:3} records lost")
    ok = walk_lost == 0 and plain_lost > 0 and ratio <= BOUND
    print(f"  ratio          {ratio:5.2f}            bound {BOUND}   {'ok' if ok else 'FAILED'}")
    return 0 if ok else 1


def measured(seed: int, read: Callable[[str], set[str]]) -> tuple[int, int]:
    """The requests of one reading, and how many records that were there from first to last it has missed."""
    with HostileApi(seed=seed, listings={"/things": Listing("page", order=("updated_at",), page_max=SIZE)}) as api:
        api.insert(RECORDS)
        api.clock.advance(timedelta(minutes=1))
        order(api, random.Random(seed))
        found = read(api.url)
        return api.count, len({str(key) for key in api.ids} - found)


def order(api: HostileApi, chance: random.Random) -> None:
    """Changes at random moments: deletes among what was read, moves of any record to the end of the list."""
    for number in chance.sample(range(5, RECORDS // SIZE - 5), CHANGES):
        api.before(number, lambda: api.delete(chance.choice(api.ids[:SIZE])))
    for number in chance.sample(range(5, RECORDS // SIZE - 5), CHANGES):
        api.before(number, lambda: api.update(chance.choice(api.ids)))


def read_plainly(url: str) -> set[str]:
    """Page after page, until one is empty."""
    found: set[str] = set()
    with requests.Session() as session:
        for page in range(1, 10 * RECORDS // SIZE):
            rows = session.get(f"{url}/things", params={"page": page, "per_page": SIZE}).json()["data"]
            if not rows:
                break
            found |= {str(row["id"]) for row in rows}
    return found


def read_by_walk(source: Source, url: str) -> set[str]:
    """As the backfill reads, without storing."""
    found: set[str] = set()
    thing: ApiObject = source.object("things")
    with requests.Session() as session:
        client = ApiClient(source, session, url)
        walk = backfill(thing, beginning(thing))
        step = next(walk)
        while step.then is not None:
            step = walk.send(client.fetch(thing, step.then))  # type: ignore[arg-type]
            found |= {record.key for record in step.records}
    return found


if __name__ == "__main__":
    sys.exit(main())
