"""What the commands `airflow extract ...` do. Each ends the process with code 1 and a few lines when it fails."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from airflow_extract_provider.extract.api.cut import one_record
from airflow_extract_provider.extract.errors import ExtractError, SourceError
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store import consumer as store_consumer
from airflow_extract_provider.extract.store import coverage as store_coverage
from airflow_extract_provider.extract.store import fold as store_fold
from airflow_extract_provider.extract.store import migrate as store_migrate
from airflow_extract_provider.extract.store import outbox as store_outbox
from airflow_extract_provider.extract.store.connection import Connection, named_errors
from airflow_extract_provider.extract.store.quarantine import Quarantined, listed
from airflow_extract_provider.extract.store.replay import replay
from airflow_extract_provider.extract.storing import KafkaPublish

if TYPE_CHECKING:
    from airflow.sdk import Connection as StoredConnection

__all__ = [
    "coverage",
    "events_consumers",
    "events_dead_drop",
    "events_dead_list",
    "events_dead_replay",
    "events_drop_consumer",
    "events_prune",
    "fold",
    "migrate",
    "quarantine_list",
    "quarantine_replay",
]

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
    limit = _limit(args.limit)
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
    from airflow_extract_provider.hooks.kafka import sink_of

    source = _source(args.sources, args.source)
    object = source.object(args.object)
    publish = object.publish
    connection = _stored(publish.kafka) if isinstance(publish, KafkaPublish) else None
    with sink_of(object, connection=connection) as sink:
        read = partial(one_record, object)
        counts = replay(lambda: _connect(args.conn_id), source, args.object, args.schema, read, sink=sink)
    left, stay = counts.pop("replayed", 0), counts.pop("quarantined", 0)
    changes = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if count)
    yield f"{source.source}/{args.object}   {counted(left, 'record')} replayed{f': {changes}' if changes else ''}"
    if stay:
        yield f"  {counted(stay, 'record')} left in the quarantine; `airflow extract quarantine list` tells why."


@_command
def events_consumers(args: Namespace) -> Iterator[str]:
    """`airflow extract events consumers`."""
    with named_errors(), _connect(args.conn_id) as conn:
        found = store_consumer.consumers(conn, args.schema)
    for each in found:
        oldest = f"   oldest {_instant(each.oldest)}" if each.oldest else ""
        counts = f"{each.behind:,} behind   {each.parked:,} parked   {each.dead:,} dead"
        yield f"{_printable(each.name)}   place {each.place}   {counts}{oldest}"
    if not found:
        yield "No consumer has begun."


@_command
def events_drop_consumer(args: Namespace) -> Iterator[str]:
    """`airflow extract events drop-consumer`."""
    with named_errors(), _connect(args.conn_id) as conn:
        if not store_consumer.drop_consumer(conn, args.schema, args.consumer):
            raise _no_consumer(args.consumer)
    yield f"{_printable(args.consumer)}   forgotten"


@_command
def events_prune(args: Namespace) -> Iterator[str]:
    """`airflow extract events prune`."""
    older_than = _duration("--older-than", args.older_than)
    with named_errors(), _connect(args.conn_id) as conn:
        conn.autocommit = True
        # Where nobody reads by place, nothing has one yet.
        store_outbox.stamp(conn, args.schema)
        gone = store_outbox.prune(conn, args.schema, older_than, sys.maxsize, though_unread=True)
    yield f"{counted(gone, 'event')} deleted; what a consumer has still to read, or has parked, is kept."


@_command
def events_dead_list(args: Namespace) -> Iterator[str]:
    """`airflow extract events dead list`."""
    limit = _limit(args.limit)
    with named_errors(), _connect(args.conn_id) as conn:
        if args.consumer is not None:
            _check_consumer(conn, args.schema, args.consumer)
        found = store_consumer.dead(conn, args.schema, args.consumer, limit + 1)
    yield from map(_told_dead, found[:limit])
    if len(found) > limit:
        yield f"... and more: see --limit (now {limit})."
    if not found:
        yield "There are no dead letters."


@_command
def events_dead_replay(args: Namespace) -> Iterator[str]:
    """`airflow extract events dead replay`."""
    places = _places(args)
    with named_errors(), _connect(args.conn_id) as conn:
        _check_consumer(conn, args.schema, args.consumer)
        count = store_consumer.replay_dead(conn, args.schema, args.consumer, places)
    yield f"{_printable(args.consumer)}   {counted(count, 'dead letter')} put back for its next run"


@_command
def events_dead_drop(args: Namespace) -> Iterator[str]:
    """`airflow extract events dead drop`."""
    places = _places(args)
    with named_errors(), _connect(args.conn_id) as conn:
        _check_consumer(conn, args.schema, args.consumer)
        count = store_consumer.drop_dead(conn, args.schema, args.consumer, places)
    yield f"{_printable(args.consumer)}   {counted(count, 'dead letter')} deleted"


def _told_dead(row: store_consumer.Dead) -> str:
    what = f"{row.source}/{row.object}   {row.type}   key {_printable(row.key)}"
    tried = f"tried {counted(row.tries, 'time')}, parked {_instant(row.parked_at)}"
    return f"{_printable(row.consumer)}   place {row.place}   {what}   {tried}   {_printable(row.reason)}"


def _places(args: Namespace) -> Sequence[int] | None:
    """Which dead letters; None: all. Never all by leaving something out."""
    if bool(args.places) == args.all:
        raise _NotUnderstood("Which dead letters? Give their places, or --all.")
    return None if args.all else args.places


def _check_consumer(conn: Connection, schema: str, name: str) -> None:
    if not store_consumer.consumers(conn, schema, name):
        raise _no_consumer(name)


def _no_consumer(name: str) -> _NotUnderstood:
    return _NotUnderstood(f"There is no consumer {name!r}: see `airflow extract events consumers`.")


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


def _limit(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise _NotUnderstood(f"--limit: {text!r} is no number of rows.")
    return int(text)


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
    """A connection to the store."""
    from airflow_extract_provider.hooks.store import StoreHook

    return StoreHook(conn_id, connection=_stored(conn_id)).connect()


def _stored(conn_id: str) -> StoredConnection | None:
    """An Airflow connection. A command runs beside Airflow's database: unlike in a task, that is where to look. None:
    there is none; what needs it says what to do about that."""
    from airflow.models.connection import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException:
        return None
