"""Folding: fields of records, written into rows of the user's own tables, in the transaction that stores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    """A stored change to be folded: the record's bytes; of a deleted one those that were stored last. ``turn`` tells in
    which order the records came."""

    key: str
    raw: bytes
    turn: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """What is to be written into one row of the user's table, as JSON texts. ``key`` is the record's."""

    key: str
    where: str
    values: str
    deleted: bool


def fold(conn: Connection, folds: Sequence[Fold], changes: Sequence[Folding]) -> None:
    """Write changes into the rows that they belong to, with the outcome of doing it one after the other. A record whose
    `where` is null or absent belongs to no row.

    Raises FoldError: a row is missing, or Postgres refuses a value. SerializationFailure: somebody else made a missing
    row meanwhile, do it again.
    """
    for each in folds:
        if rows := _rows(each, changes):
            try:
                _Folder(conn, each, _types(conn, each)).write(rows)
            except (psycopg.DataError, psycopg.IntegrityError) as exc:
                raise _refused(each, rows, exc) from None


def check(conn: Connection, folds: Iterable[Fold]) -> None:
    """See that the tables and their columns are there.

    Raises FoldError: they are not.
    """
    for each in folds:
        found = _types(conn, each)
        if not found:
            raise FoldError(
                f"`fold`: there is no table {each.table}.", todo="Make it, or name it with its schema: sales.org."
            )
        if missing := sorted(set(each.columns()) - found.keys()):
            raise FoldError(
                f"`fold`: the table {each.table} has no column {', '.join(missing)}.",
                todo="Add it, or correct `fold`.",
            )


def _types(conn: Connection, each: Fold) -> dict[str, str]:
    """The types of a table's columns."""
    name = sql.Identifier(*each.name).as_string(conn)
    return dict(conn.execute(statements(_FILE)["columns"], {"table": name}).fetchall())


@dataclass(frozen=True, slots=True)
class _Folder:
    """Writes into one table. Only the columns that are used are read as their types: others may have rules of their
    own."""

    conn: Connection
    fold: Fold
    types: Mapping[str, str]

    def write(self, rows: Sequence[_Row]) -> None:
        """Lock all rows first, in an order that two transactions share; then write, in layers without a row twice."""
        wheres = list(dict.fromkeys(row.where for row in rows))
        # Two spellings may be equal to Postgres: it tells, by the types' own order.
        ranks = dict(zip(wheres, (rank for _, rank in sorted(self._places("ranks", wheres))), strict=True))
        firsts = {ranks[where]: where for where in reversed(wheres)}
        self._places("lock", [firsts[rank] for rank in sorted(firsts)])
        for layer in _layers(rows, ranks):
            for deleted in (False, True):
                if part := [row for row in layer if row.deleted == deleted]:
                    self._write(part, deleted)

    def _write(self, rows: Sequence[_Row], deleted: bool) -> None:
        found = {place for place, _ in self._places("lock", [row.where for row in rows])}
        missing = [] if deleted else [row for place, row in enumerate(rows, start=1) if place not in found]
        if missing and not self.fold.insert:
            raise FoldError(
                f"`fold`: the table {self.fold.table} has no row for {_counted(missing)}, "
                f"matched by {', '.join(self.fold.where)}.",
                todo="Add the rows, correct `fold.where`, or set `insert: true` to have them made.",
                key=missing[0].key,
            )
        if found:
            self._execute("remove" if deleted and self.fold.deleted == "remove" else "write", rows, deleted)
        if missing:
            self._insert(missing)

    def _insert(self, missing: Sequence[_Row]) -> None:
        if self._execute("insert", missing, False) == len(missing):
            return
        found = {place for place, _ in self._places("lock", [row.where for row in missing])}
        if len(found) == len(missing):
            raise psycopg.errors.SerializationFailure("somebody else made a row that was missing a moment ago")
        lost = [row for place, row in enumerate(missing, start=1) if place not in found]
        raise FoldError(
            f"`fold`: the table {self.fold.table} takes no new row for {_counted(lost)}: another row has the same "
            "value in a column that must be unique, or a trigger keeps it out.",
            todo="Match by that column, or set it too.",
            key=lost[0].key,
        )

    def _places(self, name: str, wheres: Sequence[str]) -> list[tuple[int, int]]:
        """The places of wheres, counted from 1, of which the statement tells, each with a number."""
        return self.conn.execute(self._statement(name, ()), {"wheres": wheres}).fetchall()

    def _execute(self, name: str, rows: Sequence[_Row], deleted: bool) -> int:
        """How many rows were written."""
        values: Mapping[str, object] = self.fold.set
        if deleted:
            values = self.fold.deleted if isinstance(self.fold.deleted, Mapping) else {}
        asked = {"wheres": [row.where for row in rows], "values": [row.values for row in rows]}
        return self.conn.execute(self._statement(name, tuple(values)), asked).rowcount

    def _statement(self, name: str, sets: Sequence[str]) -> sql.Composed:
        where, comma = tuple(self.fold.where), sql.SQL(", ")
        old, new = [sql.Identifier(column) for column in where], [sql.Identifier(column) for column in sets]
        # By numbers: no column of the user's is called so, however long their names are.
        numbered = [sql.Identifier(f"new {number}") for number in range(len(new))]
        pairs = list(zip(new, numbered, strict=True))
        return sql.SQL(statements(_FILE)[name]).format(
            table=sql.Identifier(*self.fold.name),
            sought=self._typed(where),
            given=self._typed(sets),
            matches=sql.SQL(" and ").join(sql.SQL("target.{0} = wanted.{0}").format(column) for column in old),
            ordered=comma.join(sql.SQL("wanted.{}").format(column) for column in old),
            wanted=comma.join(sql.SQL("asked.{}").format(column) for column in old),
            sets=comma.join(sql.SQL("{} = wanted.{}").format(*pair) for pair in pairs),
            news=comma.join(sql.SQL("told.{} as {}").format(*pair) for pair in pairs),
            names=comma.join([*old, *new]),
            values=comma.join(
                [sql.SQL("asked.{}").format(column) for column in old]
                + [sql.SQL("told.{}").format(column) for column in new]
            ),
        )

    def _typed(self, columns: Sequence[str]) -> sql.Composable:
        """A list of columns with their types."""
        pairs = [(sql.Identifier(column), sql.SQL(self.types.get(column, "text"))) for column in columns]
        return sql.SQL(", ").join(sql.SQL("{} {}").format(*pair) for pair in pairs)


def _rows(each: Fold, changes: Sequence[Folding]) -> list[_Row]:
    """What is to be written, in the order in which the records came."""
    rows = []
    for change in sorted(changes, key=lambda change: change.turn):
        where = picked(change.raw, each.where.values())
        if None in where.values() or (change.deleted and each.deleted == "keep"):
            continue
        told = _json({column: where[path] for column, path in each.where.items()})
        rows.append(_Row(change.key, told, _values(each, change), change.deleted))
    return rows


def _layers(rows: Sequence[_Row], ranks: Mapping[str, int]) -> list[list[_Row]]:
    """Rows one after the other, as few layers as do the same: of writes that follow each other the last one stays."""
    ways: dict[int, list[_Row]] = {}
    for row in rows:
        way = ways.setdefault(ranks[row.where], [])
        if way and way[-1].deleted == row.deleted:
            way.pop()
        way.append(row)
    deepest = max(map(len, ways.values()))
    return [[ways[rank][depth] for rank in sorted(ways) if depth < len(ways[rank])] for depth in range(deepest)]


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
    return FoldError(
        f"`fold`: the table {each.table} refuses a value{rule}{column}: {type(exc).__name__}, SQLSTATE {exc.sqlstate}; "
        f"it was one of {len(rows):,} records, the first of which is {rows[0].key}.",
        todo="See that the columns' types and rules fit to the record's fields.",
        key=rows[0].key,
    )
