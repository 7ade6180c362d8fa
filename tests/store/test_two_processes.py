"""Two processes that backfill two objects of one source keep its limit together, as its server sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from tests.loopback import Asked, LoopbackApi
from tests.store.standstill import measured_again
from tests.ways import migrate

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 20
SECONDS = 60.0 if os.environ.get("EXTRACT_SOAK") else 5.0
PAGE = 10
SOURCE = {
    "source": "shop",
    "connection": "shop",
    "limit": f"{LIMIT}/s",
    "defaults": {
        "records": "data",
        "key": "id",
        "pages": {"by": "token", "take": "next_cursor", "send": "cursor", "size": {"send": "limit", "max": PAGE}},
    },
    "objects": {"people": {"path": "/people"}, "orders": {"path": "/orders"}},
}


@dataclass(frozen=True)
class Measured:
    """What the server saw while both ran: ``fullest`` is the most requests in a window of a second, at any time."""

    seconds: float
    requests: int
    fullest: int
    used: float
    shares: tuple[int, ...]

    @classmethod
    def of(cls, arrived: Sequence[tuple[float, str]]) -> Measured:
        """From when each request arrived, and for which path."""
        instants = [at for at, _ in arrived]
        paths = [[at for at, each in arrived if each == path] for path in ("/people", "/orders")]
        begin, end = max(times[0] for times in paths), min(times[-1] for times in paths)
        shares = tuple(sum(begin <= at < end for at in times) for times in paths)
        fullest = max(bisect_left(instants, at + 1) - index for index, at in enumerate(instants))
        return cls(end - begin, len(instants), fullest, sum(shares) / (LIMIT * (end - begin)), shares)

    @property
    def holds(self) -> bool:
        """Whether it is what is promised."""
        return self.fullest <= LIMIT * 1.1 and self.used >= 0.9

    def __str__(self) -> str:
        return (
            f"{LIMIT}/s, two processes together for {self.seconds:.1f} s: {self.requests} requests, {self.fullest} in "
            f"the fullest second, {self.used:.1%} of the quota used, shares {self.shares}"
        )


def test_two_backfills_keep_one_limit(
    api: LoopbackApi, dsn: str, connect: Connect, measured: Callable[[str], None]
) -> None:
    """20 requests a second for both: no window of a second at the server holds more than 22, and at least 90 % of what
    is allowed is used while both run, each of them going on."""
    migrate(connect, [Source.model_validate(SOURCE)])
    # More than the two together can read, so that neither comes to its end.
    api.rows = [b'{"id": "k%d"}' % number for number in range(int(SECONDS + 2) * LIMIT * PAGE * 2)]
    arrived: list[tuple[float, str]] = []

    def note(number: int, asked: Asked) -> None:
        arrived.append((time.monotonic(), asked.path))

    api.before = note

    def measure() -> Measured:
        arrived.clear()
        _backfill({"source": SOURCE, "dsn": dsn, "url": api.url, "seconds": SECONDS})
        return Measured.of(arrived)

    found = measured_again(measure, lambda found: found.holds)
    measured(str(found))
    assert found.seconds > SECONDS / 2
    assert found.fullest <= LIMIT * 1.1
    assert found.used >= 0.9
    assert min(found.shares) > 0.2 * sum(found.shares)


def _backfill(asked: dict[str, Any]) -> None:
    """A slice of both objects, each in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tests.store.backfill_child"]
    children = [
        subprocess.Popen([*command, json.dumps({**asked, "object": name})], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in ("people", "orders")
    ]
    try:
        said = [child.communicate(timeout=SECONDS + 60)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0, 0]
    assert all(json.loads(each)["requests"] > 0 for each in said)
