"""A consumer in a process of its own that kills itself: ``python -m tests.dying_consumer JSON``.

The argument names dsn, the file that tells of each call, whether the handler is called ``inside`` the transaction, and
when the process dies: in the ``dies``th ``handler`` call, or at the ``dies``th ``commit``, all but that done. 0: never.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.relay import EachEvent, InTransaction, consume
from airflow_extract_provider.extract.store import consumer
from airflow_extract_provider.extract.store.connection import Connection, connecting


def live(asked: dict[str, Any]) -> None:
    """Consume until the end, or until death."""
    left = [asked["dies"]]

    def die_in_time() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def handle(event: Event, conn: Connection | None = None) -> None:
        if event.key == "k2" and random.random() < 0.3:
            raise ValueError("now and then")
        if conn is not None:
            conn.execute("insert into got (key, revision) values (%s, %s)", [event.key, event.revision])
        with Path(asked["file"]).open("a", encoding="utf-8") as out:
            out.write(json.dumps([event.key, event.revision]) + "\n")
        if asked["where"] == "handler":
            die_in_time()

    settle = consumer.settle
    patched: Any = consumer

    def settle_and_die(*args: Any) -> None:
        settle(*args)
        die_in_time()

    if asked["where"] == "commit":
        patched.settle = settle_and_die
    kind = InTransaction(handle) if asked["inside"] else EachEvent(handle)
    consume("one", kind, postgres=connecting(asked["dsn"]), limit=7, tries=99, backoff=timedelta(0), take_over=True)


if __name__ == "__main__":
    live(json.loads(sys.argv[1]))
