"""The command `airflow extract inbox audit`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence

from airflow_extract_provider.commands.command import NotUnderstood, command, connect, printable, rows_limit
from airflow_extract_provider.extract.store import webhook_audit
from airflow_extract_provider.extract.store.connection import named_errors

__all__ = ["audit"]

_CHANGES = ("day", "object", "webhook", "poll", "sweep", "refetch", "late", "missed", "expected")
_RECEIVED = (
    "day",
    "endpoint",
    "received",
    "duplicate",
    "repeated",
    "out of order",
    "forged",
    "refused",
    "unknown",
    "dead",
)


@command
def audit(args: Namespace) -> Iterator[str]:
    """`airflow extract inbox audit`."""
    try:
        days = rows_limit(args.days)
    except NotUnderstood:
        raise NotUnderstood(f"--days: {args.days!r} is no number of days.") from None
    with named_errors(), connect(args.conn_id) as conn:
        changes = webhook_audit.changes(conn, args.schema, args.source, days)
        received = webhook_audit.received(conn, args.schema, args.source, days)
        objects = dict.fromkeys((each.source, each.object) for each in changes)
        silent = {whose: webhook_audit.silence(conn, (args.schema, *whose)) for whose in objects}
        unapplied = {whose: webhook_audit.unapplied(conn, (args.schema, *whose)) for whose in objects}
    if changes:
        yield "What brought each change first; of the others, whose webhook came late, never, or may still come:"
        yield from _table(_CHANGES, [_changed(each) for each in changes])
    if received:
        yield "What came:"
        yield from _table(_RECEIVED, [_came(each) for each in received])
    for source, waiting in {whose[0]: each for whose, each in unapplied.items() if each is not None}.items():
        yield printable(f"{source}: {waiting} Until then what they tell of counts as missed.")
    for (source, object), found in silent.items():
        if found is not None and found.waiting is None:
            yield printable(f"{source}/{object}: {found}")
    if not changes and not received:
        yield "No webhook has come, and no change of an object that webhooks tell of was stored."


def _changed(each: webhook_audit.Changes) -> Sequence[str]:
    numbers = (each.webhook, each.poll, each.sweep, each.refetch, each.late, each.missed, each.expected)
    return [f"{each.day}", printable(f"{each.source}/{each.object}"), *(f"{number:,}" for number in numbers)]


def _came(each: webhook_audit.Received) -> Sequence[str]:
    numbers = (each.counts.get(kind.replace(" ", "_"), 0) for kind in _RECEIVED[2:])
    return [f"{each.day}", printable(f"{each.source}/{each.endpoint}"), *(f"{number:,}" for number in numbers)]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as what is in them; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in (names, *rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield f"  {'  '.join([*left, *right])}"
