"""A process of its own that takes turns of a quota: ``python -m tests.store.quota_child JSON``.

The argument names dsn and rates. For each turn it waits, and prints when it would have sent a request, as a client does
it (monotonic seconds, which all processes of a machine share). Its input's end is its own, one request later.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

from airflow_extract_provider.extract.rates import Rate
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.quota import PostgresQuota


def main(asked: dict[str, Any]) -> None:
    """Ask as often as the quota allows."""
    rates = tuple(map(Rate.parsed, asked["rates"]))
    with PostgresQuota(connecting(asked["dsn"]), "extract", "shop", "shop", rates) as quota:
        print("ready", flush=True)
        is_last = False
        while not is_last:
            is_last = bool(select.select([sys.stdin], [], [], 0)[0])
            turn = quota.turn(60)
            due = time.monotonic() + turn.wait
            time.sleep(turn.wait)
            if turn.grace is None or time.monotonic() <= due + turn.grace:
                print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
