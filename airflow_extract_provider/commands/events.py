"""The commands `airflow extract events ...`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence

from airflow_extract_provider.commands.command import (
    NotUnderstood,
    command,
    connect,
    duration,
    printable,
    rows_limit,
    utc,
)
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.store import consumer as store_consumer
from airflow_extract_provider.extract.store import outbox as store_outbox
from airflow_extract_provider.extract.store.connection import Connection, named_errors

__all__ = ["consumers", "dead_drop", "dead_list", "dead_replay", "drop_consumer", "prune"]


@command
def consumers(args: Namespace) -> Iterator[str]:
    """`airflow extract events consumers`."""
    with named_errors(), connect(args.conn_id) as conn:
        found = store_consumer.consumers(conn, args.schema)
    for each in found:
        oldest = f"   oldest {utc(each.oldest)}" if each.oldest else ""
        counts = f"{each.behind:,} behind   {each.parked:,} parked   {each.dead:,} dead"
        yield f"{printable(each.name)}   place {each.place}   {counts}{oldest}"
    if not found:
        yield "No consumer has begun."


@command
def drop_consumer(args: Namespace) -> Iterator[str]:
    """`airflow extract events drop-consumer`."""
    with named_errors(), connect(args.conn_id) as conn:
        if not store_consumer.drop_consumer(conn, args.schema, args.consumer):
            raise _no_consumer(args.consumer)
    yield f"{printable(args.consumer)}   forgotten"


@command
def prune(args: Namespace) -> Iterator[str]:
    """`airflow extract events prune`."""
    older_than = duration("--older-than", args.older_than)
    with named_errors(), connect(args.conn_id) as conn:
        conn.autocommit = True
        # Where nobody reads by place, nothing has one yet.
        store_outbox.stamp(conn, args.schema)
        gone = store_outbox.prune(conn, args.schema, older_than, sys.maxsize, though_unread=True)
    yield f"{counted(gone, 'event')} deleted; what a consumer has still to read, or has parked, is kept."


@command
def dead_list(args: Namespace) -> Iterator[str]:
    """`airflow extract events dead list`."""
    limit = rows_limit(args.limit)
    with named_errors(), connect(args.conn_id) as conn:
        if args.consumer is not None:
            _check_consumer(conn, args.schema, args.consumer)
        found = store_consumer.dead(conn, args.schema, args.consumer, limit + 1)
    yield from map(_told_dead, found[:limit])
    if len(found) > limit:
        yield f"... and more: see --limit (now {limit})."
    if not found:
        yield "There are no dead letters."


@command
def dead_replay(args: Namespace) -> Iterator[str]:
    """`airflow extract events dead replay`."""
    places = _places(args)
    with named_errors(), connect(args.conn_id) as conn:
        _check_consumer(conn, args.schema, args.consumer)
        count = store_consumer.replay_dead(conn, args.schema, args.consumer, places)
    yield f"{printable(args.consumer)}   {counted(count, 'dead letter')} put back for its next run"


@command
def dead_drop(args: Namespace) -> Iterator[str]:
    """`airflow extract events dead drop`."""
    places = _places(args)
    with named_errors(), connect(args.conn_id) as conn:
        _check_consumer(conn, args.schema, args.consumer)
        count = store_consumer.drop_dead(conn, args.schema, args.consumer, places)
    yield f"{printable(args.consumer)}   {counted(count, 'dead letter')} deleted"


def _told_dead(row: store_consumer.Dead) -> str:
    what = f"{row.source}/{row.object}   {row.type}   key {printable(row.key)}"
    tried = f"tried {counted(row.tries, 'time')}, parked {utc(row.parked_at)}"
    return f"{printable(row.consumer)}   place {row.place}   {what}   {tried}   {printable(row.reason)}"


def _places(args: Namespace) -> Sequence[int] | None:
    """Which dead letters; None: all. Never all by leaving something out."""
    if bool(args.places) == args.all:
        raise NotUnderstood("Which dead letters? Give their places, or --all.")
    return None if args.all else args.places


def _check_consumer(conn: Connection, schema: str, name: str) -> None:
    if not store_consumer.consumers(conn, schema, name):
        raise _no_consumer(name)


def _no_consumer(name: str) -> NotUnderstood:
    return NotUnderstood(f"There is no consumer {name!r}: see `airflow extract events consumers`.")
