"""The commands `airflow extract inbox ...`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from airflow_extract_provider.commands.command import (
    NotUnderstood,
    command,
    connect,
    duration,
    printable,
    rows_limit,
    sources_folder,
    utc,
)
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store import dead as store_dead
from airflow_extract_provider.extract.store import inbox as store_inbox
from airflow_extract_provider.extract.store.connection import Connection, named_errors
from airflow_extract_provider.extract.store.standing import Standing, standing

__all__ = ["dead_drop", "dead_list", "dead_replay", "prune", "show"]

_HIDDEN = "***"


@command
def show(args: Namespace) -> Iterator[str]:
    """`airflow extract inbox show`."""
    with named_errors(), connect(args.conn_id) as conn:
        found = standing(conn, args.schema, args.source)
    yield from map(_told, found)
    if not found:
        yield "No webhook has come."


@command
def prune(args: Namespace) -> Iterator[str]:
    """`airflow extract inbox prune`."""
    older = duration("--older-than", args.older_than)
    brought = duration("--brought-older-than", args.brought_older_than)
    with named_errors(), connect(args.conn_id) as conn:
        conn.autocommit = True
        gone = store_inbox.prune(conn, args.schema, older, sys.maxsize, brought_for=brought)
    kinds = {"webhook": gone.deliveries, "id": gone.ids, "count": gone.counts, "note": gone.brought}
    told = [counted(count, what) for what, count in kinds.items()]
    yield f"Deleted: {', '.join(told[:3])} of a day, {told[3]} of what brought a change."
    yield "  What waits is kept, and webhooks with a message that is parked or dead."


@command
def dead_list(args: Namespace) -> Iterator[str]:
    """`airflow extract inbox dead list`."""
    limit = rows_limit(args.limit)
    open_ = _not_private(args.sources) if args.sources else frozenset()
    with named_errors(), connect(args.conn_id) as conn:
        found = store_dead.dead(conn, args.schema, args.source, limit + 1)
    for each in found[:limit]:
        yield _told_dead(each, hidden=(each.source, each.object) not in open_)
    if len(found) > limit:
        yield f"... and more: see --limit (now {limit})."
    if not found:
        yield "There are no dead messages."


@command
def dead_replay(args: Namespace) -> Iterator[str]:
    """`airflow extract inbox dead replay`."""
    if args.source == store_dead.BURIED:
        raise NotUnderstood("What has no source can only be dropped: nobody could apply it.")
    addresses = _addresses(args)
    left: Mapping[str, int] = {}
    if addresses is not None:
        with named_errors(), connect(args.conn_id) as conn:
            left = store_dead.elsewhere(conn, args.schema, args.source, addresses, _places(args))
    back = partial(store_dead.replay, endpoints=addresses)
    yield from _changed(args, back, "put back for the next run", none=not left)
    for endpoint, count in left.items():
        yield (
            f"{_name(args.source, endpoint)}   {counted(count, 'dead message')} left: no run takes what came to an "
            "address that the source file does not describe. Describe it there again, or drop them."
        )


@command
def dead_drop(args: Namespace) -> Iterator[str]:
    """`airflow extract inbox dead drop`."""
    yield from _changed(args, store_dead.drop, "deleted")


def _changed(
    args: Namespace,
    change: Callable[[Connection, str, str, Sequence[int] | None], Mapping[str, int]],
    done: str,
    *,
    none: bool = True,
) -> Iterator[str]:
    """``none``: that there are no such messages is an error."""
    places = _places(args)
    with named_errors(), connect(args.conn_id) as conn:
        conn.autocommit = True
        found = change(conn, args.schema, args.source, places)
        store_inbox.announce(conn, args.schema)
    if none and not found:
        raise NotUnderstood(
            f"No such dead message of {args.source!r}: see `airflow extract inbox dead list --source SOURCE`."
        )
    for object, count in found.items():
        yield f"{_name(args.source, object)}   {counted(count, 'dead message')} {done}"


def _places(args: Namespace) -> Sequence[int] | None:
    """Which dead messages; None: all. Never all by leaving something out."""
    if bool(args.place) == args.all:
        raise NotUnderstood("Which dead messages? Give their places by --place, or --all.")
    return None if args.all else args.place


def _addresses(args: Namespace) -> Collection[str] | None:
    """The addresses that the source's file describes; None: there is none where it should be, and nobody has said where
    else."""
    try:
        found = load_sources(Path(sources_folder(args))).get(args.source)
    except ExtractError:
        if args.sources is not None:
            raise
        return None
    if found is None:
        return None if args.sources is None else ()
    return found.webhooks.keys()


def _not_private(folder: str) -> Collection[tuple[str, str]]:
    """The objects whose keys may be shown."""
    sources = load_sources(Path(folder)).values()
    return {(each.source, name) for each in sources for name, object in each.objects.items() if not object.private}


def _told(each: Standing) -> str:
    applied = f"{each.applied:,} applied ({each.today:,} today)"
    oldest = f"   oldest {_age(each.oldest)}" if each.oldest is not None else ""
    last = f"   last came {utc(each.received_at)}" if each.received_at is not None else ""
    since = f"since yesterday {counted(each.duplicates, 'duplicate')}, {each.forged:,} forged"
    waits = f"{each.waiting:,} waiting   {each.parked:,} parked   {each.dead:,} dead"
    return f"{printable(each.source)}/{printable(each.endpoint)}   {waits}   {applied}{oldest}{last}   {since}"


def _told_dead(row: store_dead.DeadMessage, *, hidden: bool) -> str:
    key, reason = row.key, row.reason
    if hidden and key:
        key, reason = _HIDDEN, reason.replace(key, _HIDDEN)
    place = f"place {row.place}, message {row.nth}" if row.nth else f"place {row.place}, the whole body"
    what = f"{_name(row.source, row.object)}{f'   key {printable(key)}' if key else ''}"
    tried = f"tried {counted(row.tries, 'time')}, came {utc(row.received_at)} to {printable(row.endpoint)}"
    return f"{place}   {what}   {tried}   {printable(reason)}"


def _name(source: str, object: str) -> str:
    return printable(f"{source}/{object}") if object else f"{printable(source)}, of no object"


def _age(age: timedelta) -> str:
    """How old something is, in its largest unit."""
    seconds = max(0, int(age.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:,} {unit}"
    return f"{seconds} s"
