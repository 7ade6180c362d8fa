"""Two processes that backfill two objects of one source keep its limit together, as its server sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from tests.loopback import Asked, LoopbackApi

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


def test_two_backfills_keep_one_limit(
    api: LoopbackApi, dsn: str, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 requests a second for both: no window of a second at the server holds more than 22, and at least 90 % of what
    is allowed is used while both run, each of them going on."""
    migrate(connect, [Source.model_validate(SOURCE)])
    # More than the two together can read, so that neither comes to its end.
    api.rows = [b'{"id": "k%d"}' % number for number in range(int(SECONDS + 2) * LIMIT * PAGE)]
    arrived: list[tuple[float, str]] = []

    def note(number: int, asked: Asked) -> None:
        arrived.append((time.monotonic(), asked.path))

    api.before = note
    asked = {"source": SOURCE, "dsn": dsn, "url": api.url, "seconds": SECONDS}
    children = [_start({**asked, "object": name}) for name in ("people", "orders")]
    try:
        said = [child.communicate(timeout=SECONDS + 60)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0, 0]
    assert all(json.loads(each)["requests"] > 0 for each in said)
    both = {path: [at for at, each in arrived if each == path] for path in ("/people", "/orders")}
    begin, end = max(times[0] for times in both.values()), min(times[-1] for times in both.values())
    instants = [at for at, _ in arrived]
    windows = [bisect_left(instants, at + 1) - index for index, at in enumerate(instants)]
    used = sum(begin <= at < end for at in instants) / (LIMIT * (end - begin))
    shares = [sum(begin <= at < end for at in times) for times in both.values()]
    with capsys.disabled():
        print(
            f"\n{LIMIT}/s, two processes together for {end - begin:.1f} s: {len(instants)} requests, "
            f"{max(windows)} in the fullest second, {used:.1%} of the quota used, shares {shares}"
        )
    assert end - begin > SECONDS / 2
    assert max(windows) <= LIMIT * 1.1
    assert used >= 0.9
    assert min(shares) > 0.2 * sum(shares)


def _start(asked: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.store.backfill_child", json.dumps(asked)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
