"""A consumer of webhooks in a process of its own, which kills itself between the insert and the commit of the offsets:
``python -m tests.webhooks.kafka_child JSON``.

The argument holds the consumer's settings, the topic, the dsn, and before which of its commits the process dies; 0:
before none, it ends on SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.webhooks import kafka_inbox


def live(asked: dict[str, Any]) -> None:
    """Consume until the end, or until death."""
    stop, left = threading.Event(), [asked["dies"]]
    patched: Any = kafka_inbox
    commit = patched._Run._commit
    patched._MOST = asked["most"]

    def commit_or_die(run: Any) -> None:
        if run.stored:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        commit(run)

    patched._Run._commit = commit_or_die
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    kafka_inbox.consume(asked["config"], asked["topic"], connecting(asked["dsn"]), "extract", stop)


if __name__ == "__main__":
    live(json.loads(sys.argv[1]))
