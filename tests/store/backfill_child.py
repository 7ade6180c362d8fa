"""A backfill in a process of its own, that shares a quota: ``python -m tests.store.backfill_child JSON``.

The argument names source, object, dsn, url and for how many seconds it runs. It prints its summary.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any

import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.pipeline import Runner, Settings, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.quota import PostgresQuota


def main(asked: dict[str, Any]) -> None:
    """Run the pipeline; print its summary."""
    source, session, postgres = Source.model_validate(asked["source"]), requests.Session(), connecting(asked["dsn"])
    session.trust_env = False
    with PostgresQuota(postgres, "extract", source.source, source.connection, source.limit) as quota:
        summary = run(
            source,
            asked["object"],
            postgres=postgres,
            client=ApiClient(source, session, asked["url"], quota=quota),
            runner=Runner(asked["object"], f"the backfill of {asked['object']}"),
            run_for=timedelta(seconds=asked["seconds"]),
            settings=Settings(batch=10, ahead=2),
        )
    print(json.dumps(summary.as_dict()), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
