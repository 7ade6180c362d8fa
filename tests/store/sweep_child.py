"""A sweep in a process of its own, that tells how much memory it took: ``python -m tests.store.sweep_child JSON``.

The argument names source, object, dsn and url. It prints its report, and the most KiB that it had.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import connecting


def main(asked: dict[str, Any]) -> None:
    """Read everything again; print what was found."""
    source, session = parse_source(asked["source"], "test"), requests.Session()
    session.trust_env = False
    client = ApiClient(source, session, asked["url"])
    summary = run(source, asked["object"], "rebackfill", postgres=connecting(asked["dsn"]), client=client, reset=True)
    print(json.dumps({"report": summary.sweep, "counts": dict(summary.counts), "peak": peak()}), flush=True)


def peak() -> int:
    """The most memory that this process has had, in KiB. (`getrusage` would count that of the one that started it.)"""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
