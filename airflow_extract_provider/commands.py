"""What the commands `airflow extract ...` do. Each ends the process with code 1 and a few lines when it fails."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial, wraps
from pathlib import Path
from typing import TypeAlias

from airflow_extract_provider.extract.api.cut import one_record
from airflow_extract_provider.extract.errors import ExtractError, SourceError
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store import coverage as store_coverage
from airflow_extract_provider.extract.store import fold as store_fold
from airflow_extract_provider.extract.store import migrate as store_migrate
from airflow_extract_provider.extract.store.connection import Connection, named_errors
from airflow_extract_provider.extract.store.quarantine import Quarantined, listed
from airflow_extract_provider.extract.store.replay import replay

__all__ = ["coverage", "fold", "migrate", "quarantine_list", "quarantine_replay"]

_Lines: TypeAlias = Callable[[Namespace], Iterator[str]]
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


class _NotUnderstood(Exception):
    """An argument says nothing that can be done."""


def _command(work: _Lines) -> Callable[[Namespace], None]:
    """A command that prints what ``work`` tells."""

    @wraps(work)
    def run(args: Namespace) -> None:
        try:
            for line in work(args):
                print(line)
        except ExtractError as exc:
            print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
            raise SystemExit(1) from None
        except _NotUnderstood as exc:
            print(exc, file=sys.stderr)
            raise SystemExit(1) from None

    return run


@_command
def migrate(args: Namespace) -> Iterator[str]:
    """`airflow extract migrate`."""
    sources = [] if args.sources is None else list(load_sources(Path(args.sources)).values())
    if args.sql:
        yield store_migrate.script(sources, args.schema)
        return
    done = store_migrate.migrate(lambda: _connect(args.conn_id), sources, args.schema)
    yield from done or ["Nothing to do: the schema and the tables are of this version."]


@_command
def coverage(args: Namespace) -> Iterator[str]:
    """`airflow extract coverage`."""
    with named_errors(), _connect(args.conn_id) as conn:
        found = store_coverage.coverage(conn, args.schema, args.source, args.object)
    for each in found:
        start = "the beginning" if each.start is None else _instant(each.start)
        kind = "GAP    " if each.gap else "covered"
        yield f"{each.source}/{each.object}   {kind}   {start} .. {_instant(each.end)}"
    if not found:
        yield "Nothing is complete: no walk has come to its end since it last started over."


@_command
def fold(args: Namespace) -> Iterator[str]:
    """`airflow extract fold`."""
    older_than = _duration("--older-than", args.older_than)
    with named_errors(), _connect(args.conn_id) as conn:
        conn.autocommit = True
        gone = store_fold.fold(conn, args.schema, older_than)
    yield f"{counted(gone, 'ledger row')} folded away; what is covered is the same."


@_command
def quarantine_list(args: Namespace) -> Iterator[str]:
    """`airflow extract quarantine list`."""
    if not re.fullmatch(r"[1-9]\d{0,8}", args.limit):
        raise _NotUnderstood(f"--limit: {args.limit!r} is no number of rows.")
    limit = int(args.limit)
    with named_errors(), _connect(args.conn_id) as conn:
        found = listed(conn, args.schema, args.source, args.object, limit + 1)
    for row in found[:limit]:
        yield _told(row)
        if args.raw:
            yield f"  {_printable(row.raw.decode('utf-8', 'backslashreplace'))}"
    if len(found) > limit:
        yield f"... and more: see --limit (now {limit})."
    if not found:
        yield "Nothing is in the quarantine."


@_command
def quarantine_replay(args: Namespace) -> Iterator[str]:
    """`airflow extract quarantine replay`."""
    source = _source(args.sources, args.source)
    read = partial(one_record, source.object(args.object))
    counts = replay(lambda: _connect(args.conn_id), source, args.object, args.schema, read)
    left, stay = counts.pop("replayed", 0), counts.pop("quarantined", 0)
    changes = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if count)
    yield f"{source.source}/{args.object}   {counted(left, 'record')} replayed{f': {changes}' if changes else ''}"
    if stay:
        yield f"  {counted(stay, 'record')} left in the quarantine; `airflow extract quarantine list` tells why."


def _told(row: Quarantined) -> str:
    key = "no key" if row.key is None else f"key {_printable(row.key)}"
    seen = f"seen {counted(row.seen, 'time')}, last {_instant(row.seen_at)}"
    place = f"page {row.page}, record {row.number}"
    return f"{row.id}   {row.source}/{row.object}   {place}   {key}   {_printable(row.why)}   {seen}"


def _printable(text: str) -> str:
    """On one line, without characters that a terminal obeys."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _instant(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc).replace(tzinfo=None).isoformat()}Z"


def _duration(name: str, text: str) -> timedelta:
    found = re.fullmatch(r"([1-9]\d{0,4})([dhm])", text)
    if found is None:
        raise _NotUnderstood(f"{name}: {text!r} is no duration; write days, hours or minutes, such as 30d, 12h or 90m.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _source(folder: str, name: str) -> Source:
    sources = load_sources(Path(folder))
    if name not in sources:
        raise SourceError(f"there is no source {name!r}.", todo=f"Choose one of: {', '.join(sources)}.")
    return sources[name]


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
