"""The commands for names that have changed: `airflow extract rename`, `rename-source`, `forget`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from airflow_extract_provider.commands.command import NotUnderstood, command, connect, source_of, sources_folder
from airflow_extract_provider.extract.progress import counted
from airflow_extract_provider.extract.store import rename as store_rename

__all__ = ["forget", "rename", "rename_source"]


@command
def rename(args: Namespace) -> Iterator[str]:
    """`airflow extract rename`."""
    source = source_of(sources_folder(args), args.source)
    table = _table(args.table, source.source)
    moved = store_rename.rename(lambda: connect(args.conn_id), source, args.old, args.new, args.schema, table=table)
    yield from _told([moved])


@command
def rename_source(args: Namespace) -> Iterator[str]:
    """`airflow extract rename-source`."""
    source = source_of(sources_folder(args), args.new)
    yield from _told(store_rename.rename_source(lambda: connect(args.conn_id), source, args.old, args.schema))


@command
def forget(args: Namespace) -> Iterator[str]:
    """`airflow extract forget`."""
    name = args.source if args.object is None else f"{args.source}/{args.object}"
    drop, table = args.drop_table, _table(args.table, args.source)
    if table is not None and (args.object is None or not drop):
        raise NotUnderstood("--table is for --drop-table, and for one object.")
    if args.yes != name:
        tables = "and its table is dropped" if drop else "its table stays"
        raise NotUnderstood(
            f"This deletes all that the store knows of {name} but its events: where its walks stand, what was noted "
            f"and set aside; {tables}. Described again, it is read from the beginning. If that is meant, repeat it "
            f"with --yes {name}"
        )
    gone = store_rename.forget(
        lambda: connect(args.conn_id), args.source, args.object, args.schema, drop=drop, table=table
    )
    for each in gone:
        tables = f"table {'.'.join(each.dropped)} dropped" if each.dropped else "its table stays"
        yield f"{each.source}/{each.object}   forgotten: {counted(each.rows, 'ledger row')}; {tables}"
        yield f"  Delete its Variables extract_{each.source}_{each.object}_..._cursor: its walks would refuse them."


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


def _table(text: str | None, schema: str) -> tuple[str, str] | None:
    if text is None:
        return None
    first, _, second = text.rpartition(".")
    if not second or "." in first:
        raise NotUnderstood(f"{text!r} is no table; write SCHEMA.TABLE.")
    return (first or schema, second)
