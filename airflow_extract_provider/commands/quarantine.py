"""The commands `airflow extract quarantine ...`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from airflow_extract_provider.commands.command import (
    command,
    connect,
    printable,
    rows_limit,
    source_of,
    stored,
    utc,
)
from airflow_extract_provider.extract.api.cut import one_record
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.store import replay as store_replay
from airflow_extract_provider.extract.store.connection import named_errors
from airflow_extract_provider.extract.store.quarantine import Quarantined, listed
from airflow_extract_provider.extract.storing import KafkaPublish

__all__ = ["quarantined", "replay"]


@command
def quarantined(args: Namespace) -> Iterator[str]:
    """`airflow extract quarantine list`."""
    limit = rows_limit(args.limit)
    with named_errors(), connect(args.conn_id) as conn:
        found = listed(conn, args.schema, args.source, args.object, limit + 1)
    for row in found[:limit]:
        yield _told(row)
        if args.raw:
            yield f"  {printable(row.raw.decode('utf-8', 'backslashreplace'))}"
    if len(found) > limit:
        yield f"... and more: see --limit (now {limit})."
    if not found:
        yield "Nothing is in the quarantine."


@command
def replay(args: Namespace) -> Iterator[str]:
    """`airflow extract quarantine replay`."""
    from airflow_extract_provider.hooks.kafka import sink_of

    source = source_of(args.sources, args.source)
    object = source.object(args.object)
    publish = object.publish
    connection = stored(publish.kafka) if isinstance(publish, KafkaPublish) else None
    with sink_of(object, connection=connection) as sink:
        read = partial(one_record, object)
        counts = store_replay.replay(lambda: connect(args.conn_id), source, args.object, args.schema, read, sink=sink)
    left, stay = counts.pop("replayed", 0), counts.pop("quarantined", 0)
    changes = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if count)
    yield f"{source.source}/{args.object}   {counted(left, 'record')} replayed{f': {changes}' if changes else ''}"
    if stay:
        yield f"  {counted(stay, 'record')} left in the quarantine; `airflow extract quarantine list` tells why."


def _told(row: Quarantined) -> str:
    key = "no key" if row.key is None else f"key {printable(row.key)}"
    seen = f"seen {counted(row.seen, 'time')}, last {utc(row.seen_at)}"
    place = f"page {row.page}, record {row.number}"
    return f"{row.id}   {row.source}/{row.object}   {place}   {key}   {printable(row.why)}   {seen}"
