"""The commands `airflow extract ...`. Airflow loads this with each of its own: the work is imported when it is run."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand, lazy_load_command

if TYPE_CHECKING:
    from airflow_extract_provider.extract.source import Source
    from airflow_extract_provider.extract.store.connection import Connection

__all__ = ["get_extract_cli_commands", "migrate"]


def _argument(flag: str, **kwargs: Any) -> Arg:
    return Arg((flag,), **kwargs)  # type: ignore[no-untyped-call]  # Airflow's class has no types


_MIGRATE = ActionCommand(
    name="migrate",
    help="Make or upgrade the tables in Postgres",
    description="Makes or upgrades the bookkeeping schema and the record tables of the sources, in one transaction. "
    "Run again, it does nothing.",
    func=lazy_load_command("airflow_extract_provider.cli.migrate"),
    args=(
        _argument("--sources", help="the folder with the sources' YAML files; without it only the bookkeeping is made"),
        _argument("--conn-id", default="extract_store", help="the Postgres connection (default: %(default)s)"),
        _argument("--schema", default="extract", help="the schema of the bookkeeping (default: %(default)s)"),
        _argument("--sql", action="store_true", help="print the SQL for an empty database instead of running it"),
    ),
)


def get_extract_cli_commands() -> list[CLICommand]:
    """What this package adds to the `airflow` command."""
    return [GroupCommand(name="extract", help="Copy REST APIs into Postgres", subcommands=(_MIGRATE,))]


def migrate(args: Namespace) -> None:
    """Run `airflow extract migrate`; ends the process with code 1 and a few lines when it fails."""
    from airflow_extract_provider.extract.errors import ExtractError

    try:
        for line in _migrated(args):
            print(line)
    except ExtractError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        raise SystemExit(1) from None


def _migrated(args: Namespace) -> list[str]:
    from airflow_extract_provider.extract.store.migrate import migrate, script

    sources = _sources(args.sources)
    if args.sql:
        return [script(sources, args.schema)]
    done = migrate(lambda: _connect(args.conn_id), sources, args.schema)
    return done or ["Nothing to do: the schema and the tables are of this version."]


def _sources(folder: str | None) -> list[Source]:
    from airflow_extract_provider.extract.source import load_sources

    return [] if folder is None else list(load_sources(Path(folder)).values())


def _connect(conn_id: str) -> Connection:
    """A connection to the store. A command runs beside Airflow's database: unlike in a task, that is where to look."""
    from airflow.models.connection import Connection as StoredConnection
    from airflow.sdk.exceptions import AirflowNotFoundException

    from airflow_extract_provider.hooks.store import StoreHook

    try:
        found = StoredConnection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        found = None  # StoreHook says what to do about it
    return StoreHook(conn_id, connection=found).connect()
