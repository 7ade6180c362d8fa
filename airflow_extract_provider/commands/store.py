"""The commands about the store: `airflow extract migrate`, `coverage`, `fold`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from airflow_extract_provider.commands.command import NotUnderstood, command, connect, duration, printable, utc
from airflow_extract_provider.commands.pools import pools
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store import coverage as store_coverage
from airflow_extract_provider.extract.store import fold as store_fold
from airflow_extract_provider.extract.store import grants as store_grants
from airflow_extract_provider.extract.store import migrate as store_migrate
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.extract.store.left_behind import left_behind

__all__ = ["coverage", "fold", "grants", "migrate"]


@command
def migrate(args: Namespace) -> Iterator[str]:
    """`airflow extract migrate`."""
    sources = [] if args.sources is None else list(load_sources(Path(args.sources)).values())
    new, whole = args.new or [], args.sources is not None
    if args.sql:
        yield store_migrate.script(sources, args.schema, new=new)
        return
    done = store_migrate.migrate(lambda: connect(args.conn_id), sources, args.schema, new=new, whole=whole)
    yield from done or ["Nothing to do: the schema and the tables are of this version."]
    yield from pools(sources)
    if whole:
        with named_errors(), connect(args.conn_id) as conn:
            yield from map(printable, left_behind(conn, args.schema, sources))


@command
def coverage(args: Namespace) -> Iterator[str]:
    """`airflow extract coverage`."""
    with named_errors(), connect(args.conn_id) as conn:
        found = store_coverage.coverage(conn, args.schema, args.source, args.object)
    for each in found:
        start = "the beginning" if each.start is None else utc(each.start)
        kind = "GAP    " if each.gap else "covered"
        yield f"{each.source}/{each.object}   {kind}   {start} .. {utc(each.end)}"
    if not found:
        yield "Nothing is complete: no walk has come to its end since it last started over."


@command
def fold(args: Namespace) -> Iterator[str]:
    """`airflow extract fold`."""
    older_than = duration("--older-than", args.older_than)
    with named_errors(), connect(args.conn_id) as conn:
        conn.autocommit = True
        gone = store_fold.fold(conn, args.schema, older_than)
    yield f"{counted(gone, 'ledger row')} folded away; what is covered is the same."


@command
def grants(args: Namespace) -> Iterator[str]:
    """`airflow extract grants`."""
    if args.receiver and args.from_kafka:
        raise NotUnderstood("Say --receiver or --from-kafka: a role of each has its own rights.")
    if args.receiver or args.from_kafka:
        printed = store_grants.receiver_grants if args.receiver else store_grants.from_kafka_grants
        yield printed(args.role, args.schema).rstrip()
        return
    if args.sources is None:
        raise NotUnderstood("Name the folder with the sources' files by --sources, or say --receiver or --from-kafka.")
    sources = load_sources(Path(args.sources)).values()
    yield store_grants.grants(args.role, sources, args.schema).rstrip()
