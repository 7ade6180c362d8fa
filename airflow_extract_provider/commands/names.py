"""The commands for names that have changed: `airflow extract rename`, `rename-source`, `forget`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from airflow_extract_provider.commands.command import NotUnderstood, command, connect, source_of, sources_folder
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store import rename as store_rename

__all__ = ["forget", "rename", "rename_source"]


@command
def rename(args: Namespace) -> Iterator[str]:
    """`airflow extract rename`."""
    source = source_of(sources_folder(args), args.source)
    table = None if args.table is None else _table(args.table, source.source)
    moved = store_rename.rename(
        lambda: connect(args.conn_id),
        source,
        args.old,
        args.new,
        args.schema,
        table=table,
        though_unread=args.though_unread,
    )
    yield from _told([moved])


@command
def rename_source(args: Namespace) -> Iterator[str]:
    """`airflow extract rename-source`."""
    source = source_of(sources_folder(args), args.new)
    moved = store_rename.rename_source(
        lambda: connect(args.conn_id), source, args.old, args.schema, though_unread=args.though_unread
    )
    yield from _told(moved)
    if not moved:
        yield f"{args.old} is {args.new} now: its webhooks in the inbox"


@command
def forget(args: Namespace) -> Iterator[str]:
    """`airflow extract forget`."""
    name = args.source if args.object is None else f"{args.source}/{args.object}"
    drop = [_table(text, None) for text in args.drop_table or []]
    if args.yes != name:
        dropped = ", ".join(map(".".join, drop))
        tables = f"the table {dropped} is dropped, with all its records" if drop else "its table stays"
        webhooks = ", its webhooks in the inbox, those that wait too" if args.object is None else ""
        raise NotUnderstood(
            f"This deletes all that the store knows of {name} but its events: where its walks stand, what was noted "
            f"and set aside{webhooks}; {tables}. Described again, it is read from the beginning. If that is meant, "
            f"repeat it with --yes {name}"
        )
    # Whose table it is the source files tell, too.
    described = list(load_sources(Path(sources_folder(args))).values()) if drop else []
    gone = store_rename.forget(
        lambda: connect(args.conn_id), args.source, args.object, args.schema, drop=drop, described=described
    )
    for each in gone:
        stays = "its table" if each.table is None else f"its table {'.'.join(each.table)}"
        kept = "" if each.table in drop else f"; {stays} stays" if each.table or not drop else ""
        yield f"{each.source}/{each.object}   forgotten: {counted(each.rows, 'ledger row')}{kept}"
        yield f"  Delete its Variables extract_{each.source}_{each.object}_..._cursor: its walks would refuse them."
    if not gone:
        yield f"{args.source}   forgotten: its webhooks in the inbox"
    for table in drop:
        yield f"table {'.'.join(table)} dropped"


def _told(moved: list[store_rename.Moved]) -> Iterator[str]:
    for each in moved:
        names = f"{each.source}/{each.object}", f"{each.to_source}/{each.to_object}"
        held, now = ".".join(each.table), ".".join(each.to_table)
        what = names[0] if names[0] == names[1] else f"{names[0]} is {names[1]} now"
        yield f"{what}   table {held if held == now else f'{held} is {now} now'}"
        if not each.same:
            yield "  Its request or records were changed too: its walks stop until the backfill is started over."
        if names[0] != names[1]:
            yield f"  Its Variables extract_{each.source}_{each.object}_..._cursor are of no use any more: delete them."
    if any(each.table[0] != each.to_table[0] for each in moved):
        yield "Roles need `usage` on the new schema."
    if any((each.source, each.object) != (each.to_source, each.to_object) for each in moved):
        yield "Events told so far keep the old name; consumers and DAGs that ask for it must be told the new one."


def _table(text: str, schema: str | None) -> tuple[str, str]:
    first, _, second = text.rpartition(".")
    if not second or "." in first or not (first or schema):
        raise NotUnderstood(f"{text!r} is no table; write SCHEMA.TABLE.")
    return (first or schema or "", second)
