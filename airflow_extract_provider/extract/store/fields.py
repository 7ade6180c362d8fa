"""Folding: fields of records, written into rows of the user's own tables, in the transaction that stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import msgspec
import psycopg
from psycopg import sql

from airflow_extract_provider.extract.errors import FoldError
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.shape import picked
from airflow_extract_provider.extract.store.statements import statements
from airflow_extract_provider.extract.storing import Fold

__all__ = ["Folding", "check", "fold"]

_FILE = "fields.sql"


@dataclass(frozen=True, slots=True)
class Folding:
    """A stored change to be folded: the record's bytes; of a deleted one those that were stored last."""

    key: str
    raw: bytes
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """What is to be written into one row of the user's table, as JSON texts. ``key`` is the record's."""

    key: str
    where: str
    values: str
    deleted: bool


def fold(conn: Connection, folds: Sequence[Fold], changes: Sequence[Folding]) -> None:
    """Write changes into the rows that they belong to, in this order: of two that meet in one row the later one stays.
    A record whose `where` is null or absent belongs to no row.

    Raises FoldError: a row is missing, or Postgres refuses a value. SerializationFailure: somebody else made a missing
    row meanwhile, do it again.
    """
    for each in folds:
        if folded := _rows(each, changes):
            _fold(conn, each, folded)


def check(conn: Connection, folds: Iterable[Fold]) -> None:
    """See that the tables and their columns are there.

    Raises FoldError: they are not.
    """
    for each in folds:
        name = sql.Identifier(*each.name).as_string(conn)
        found = {row[0] for row in conn.execute(statements(_FILE)["columns"], {"table": name})}
        if not found:
            raise FoldError(
                f"`fold`: there is no table {each.table}.", todo="Make it, or name it with its schema: sales.org."
            )
        if missing := sorted(set(each.columns()) - found):
            raise FoldError(
                f"`fold`: the table {each.table} has no column {', '.join(missing)}.",
                todo="Add it, or correct `fold`.",
            )


def _fold(conn: Connection, each: Fold, folded: Sequence[_Row]) -> None:
    for deleted in (False, True):
        part = [row for row in folded if row.deleted == deleted]
        if part and not (deleted and each.deleted == "keep"):
            try:
                _write(conn, each, part, deleted)
            except (psycopg.DataError, psycopg.IntegrityError) as exc:
                raise _refused(each, part, exc) from None


def _write(conn: Connection, each: Fold, folded: Sequence[_Row], deleted: bool) -> None:
    """Lock the rows in their order, see which are missing, and write."""
    wheres, values = [row.where for row in folded], [row.values for row in folded]
    found = {row[0] for row in conn.execute(_statement("lock", each, deleted), {"wheres": wheres})}
    missing = [] if deleted else [row for place, row in enumerate(folded, start=1) if place not in found]
    if missing and not each.insert:
        raise FoldError(
            f"`fold`: the table {each.table} has no row for {_counted(missing)}, matched by {', '.join(each.where)}.",
            todo="Add the rows, correct `fold.where`, or set `insert: true` to have them made.",
            key=missing[0].key,
        )
    if found:
        name = "remove" if deleted and each.deleted == "remove" else "write"
        conn.execute(_statement(name, each, deleted), {"wheres": wheres, "values": values})
    if missing:
        _insert(conn, each, missing)


def _insert(conn: Connection, each: Fold, missing: Sequence[_Row]) -> None:
    asked = {"wheres": [row.where for row in missing], "values": [row.values for row in missing]}
    if conn.execute(_statement("insert", each, False), asked).rowcount == len(missing):
        return
    found = {row[0] for row in conn.execute(_statement("lock", each, False), {"wheres": asked["wheres"]})}
    if len(found) == len(missing):
        raise psycopg.errors.SerializationFailure("somebody else made a row that was missing a moment ago")
    lost = [row for place, row in enumerate(missing, start=1) if place not in found]
    raise FoldError(
        f"`fold`: the table {each.table} takes no new row for {_counted(lost)}: another row has the same value in a "
        "column that must be unique.",
        todo="Match by that column, or set it too.",
        key=lost[0].key,
    )


def _rows(each: Fold, changes: Sequence[Folding]) -> list[_Row]:
    """One row for each row of the user's table, in an order that two transactions share: locks cannot cross."""
    last: dict[str, _Row] = {}
    for change in changes:
        where = picked(change.raw, each.where.values())
        if None not in where.values():
            told = _json({column: where[path] for column, path in each.where.items()})
            last[told] = _Row(change.key, told, _values(each, change), change.deleted)
    return [last[told] for told in sorted(last)]


def _values(each: Fold, change: Folding) -> str:
    if change.deleted:
        return msgspec.json.encode(dict(each.deleted) if isinstance(each.deleted, Mapping) else {}).decode()
    found = picked(change.raw, each.set.values())
    return _json({column: found[path] for column, path in each.set.items()})


def _json(values: Mapping[str, bytes | None]) -> str:
    return msgspec.json.encode({name: msgspec.Raw(value or b"null") for name, value in values.items()}).decode()


def _counted(rows: Sequence[_Row]) -> str:
    more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
    return f"the record {rows[0].key}{more}"


def _refused(each: Fold, rows: Sequence[_Row], exc: psycopg.Error) -> FoldError:
    """Without the server's words: they quote values."""
    column = f" (column {exc.diag.column_name})" if exc.diag.column_name else ""
    rule = f" by {exc.diag.constraint_name}" if exc.diag.constraint_name else ""
    one = rows[0].key if len(rows) == 1 else None
    return FoldError(
        f"`fold`: the table {each.table} refuses a value{rule}{column}: {type(exc).__name__}, SQLSTATE {exc.sqlstate}; "
        f"it was one of {len(rows):,} records, the first of which is {rows[0].key}.",
        todo="See that the columns' types and rules fit to the record's fields.",
        key=one,
    )


@cache
def _parts(each_name: tuple[str, ...], where: tuple[str, ...], values: tuple[str, ...]) -> dict[str, sql.Composable]:
    comma, both = sql.SQL(", "), sql.SQL(" and ")
    names = [sql.Identifier(name) for name in where]
    sets = [sql.Identifier(name) for name in values]
    return {
        "table": sql.Identifier(*each_name),
        "matches": both.join(sql.SQL("target.{0} = wanted.{0}").format(name) for name in names),
        "ordered": comma.join(sql.SQL("wanted.{}").format(name) for name in names),
        "wheres": comma.join(names),
        "wanted": comma.join(sql.SQL("asked.{}").format(name) for name in names),
        "sets": comma.join(sql.SQL("{0} = wanted.{1}").format(name, _new(name)) for name in sets),
        "news": comma.join(sql.SQL("told.{0} as {1}").format(name, _new(name)) for name in sets)
        if sets
        else sql.SQL("null"),
        "names": comma.join([*names, *sets]),
        "values": comma.join(
            [sql.SQL("asked.{}").format(name) for name in names] + [sql.SQL("told.{}").format(name) for name in sets]
        ),
    }


def _new(name: sql.Identifier) -> sql.Identifier:
    # With a space: no column of the user's that is matched can have this name.
    return sql.Identifier(f"new {name.as_string()[1:-1]}")


def _statement(name: str, each: Fold, deleted: bool) -> sql.Composed:
    values: Mapping[str, object] = each.set
    if deleted:
        values = each.deleted if isinstance(each.deleted, Mapping) else {}
    return sql.SQL(statements(_FILE)[name]).format(**_parts(each.name, tuple(each.where), tuple(values)))
