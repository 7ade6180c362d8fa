"""Arguments that commands of several kinds take."""

from __future__ import annotations

from typing import Any

from airflow.cli.cli_config import Arg

__all__ = ["SCHEMA", "STORE", "argument"]


def argument(name: str, **kwargs: Any) -> Arg:
    """An argument, as argparse takes it."""
    return Arg((name,), **kwargs)  # type: ignore[no-untyped-call]  # Airflow's class has no types


SCHEMA = argument("--schema", default="extract", help="the schema of the bookkeeping (default: %(default)s)")
STORE = (
    argument("--conn-id", help="the Postgres connection (default: as `store_conn_id` of the section `extract` says)"),
    SCHEMA,
)
