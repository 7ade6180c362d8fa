"""Copies contacts in a process of its own, again and again, there to be killed: ``python -m tests.kinto.child JSON``.

The argument names url, dsn, page, walk, and `late` in seconds. Prints `ready`, then a line at the end of each run; a
backfill ends with it.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta

from tests.kinto_stage import Copy, crm


def main(url: str, dsn: str, page: int, walk: str, late: float) -> None:
    """Run for ever, or one backfill."""
    copy = Copy(url, dsn, crm(page, timedelta(seconds=late)))
    print("ready", flush=True)
    if walk == "backfill":
        print(copy.run("backfill").pages, flush=True)
        return
    while True:
        print(copy.sync().pages, flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
