"""What it costs to hash a record: its bytes as they were sent, and the canonical form that all spellings share.

Every hash function that a source file may name, and what is usually written by hand: `json.dumps(sort_keys=True)` with
MD5, which besides loses digits. Records are 1 KB with nested parts, numbers among them. All in turns, in one run; a
ratio is the median of the turns'.

Prints the ratios and fails (exit code 1) when the function that is used by default is not the fastest. Run it with
`python benchmarks/hashes.py`.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from airflow_extract_provider.extract.hashes.record_hash import DIGESTS, canonical_hash
from airflow_extract_provider.extract.storing import RecordHash

RECORDS, TURNS = 4_000, 15
DEFAULT = RecordHash().by
EXCLUDE = [("stats", "viewed_at"), ("signed_url",)]
Way: TypeAlias = Callable[[bytes], bytes]


def main() -> int:
    """Measure all of them, and compare."""
    records = [a_record(number) for number in range(RECORDS)]
    print(
        f"{RECORDS:,} records of {len(records[0])} bytes; microseconds of CPU time a record, medians of {TURNS} turns"
    )
    fastest = told("raw", measured({str(name): way for name, way in DIGESTS.items()}, records), len(DIGESTS))
    canonical: dict[str, Way] = {name: partial(canonical_hash, by=name) for name in DIGESTS}
    canonical[f"{DEFAULT}, two fields left out"] = partial(canonical_hash, exclude=EXCLUDE)
    canonical["dumps and MD5"] = by_hand
    return 0 if told("canonical", measured(canonical, records), len(DIGESTS)) and fastest else 1


def told(what: str, found: Mapping[str, list[float]], functions: int) -> bool:
    """Print a line for each way; whether the default is the fastest of the first so many."""
    ratios = {
        name: statistics.median(each / usual for each, usual in zip(seconds, found[DEFAULT], strict=True))
        for name, seconds in found.items()
    }
    for name, seconds in found.items():
        micros = statistics.median(seconds) / RECORDS * 1e6
        print(f"  {what:10} {name:27} {micros:7.3f}   {ratios[name]:6.2f} x {DEFAULT}")
    ok = min(list(ratios)[:functions], key=ratios.__getitem__) == DEFAULT
    print(f"  {what:10} {DEFAULT} is the default, and the fastest   {'ok' if ok else 'FAILED'}")
    return ok


def measured(ways: Mapping[str, Way], records: list[bytes]) -> dict[str, list[float]]:
    """The seconds of CPU time that each way takes for all records, by turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            began = time.process_time()
            for record in records:
                way(record)
            found[name].append(time.process_time() - began)
    return found


def by_hand(raw: bytes) -> bytes:
    """The classic."""
    return hashlib.md5(json.dumps(json.loads(raw), sort_keys=True).encode(), usedforsecurity=False).digest()


def a_record(number: int) -> bytes:
    """About 1 KB, nested, as APIs have them."""
    told = {
        "id": f"k{number:07}",
        "updated_at": "2026-01-01T00:00:00+00:00",
        "signed_url": f"https://files.example.com/{number}?signature={'ab' * 20}",
        "stats": {"viewed_at": "2026-01-02T00:00:00+00:00", "views": number, "share": number / 7},
        "owner": {"name": f"Owner {number % 97}", "mail": f"owner{number % 97}@example.com", "tags": ["a", "b"]},
        "lines": [{"sku": f"s{n}", "count": n, "price": n + 0.99, "note": "x" * 40} for n in range(6)],
        "address": {"street": f"{number} Long Street", "city": "Somewhere", "zip": "12345", "note": "y" * 100},
    }
    return json.dumps(told, separators=(",", ":")).encode()


if __name__ == "__main__":
    sys.exit(main())
