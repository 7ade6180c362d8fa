"""An API, a source that describes it, and a store: what a test of the engine needs, and how both ends are compared.

The comparison shares no code with the engine: JSON as Python reads it, numbers as decimals, every digit counts.
"""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
import requests
from psycopg import sql

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.cursor import Cursor, Position
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.pipeline import Settings, Summary, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import HostileApi
from tests.loopback import LoopbackApi

__all__ = ["KEYED", "TOKENS", "Scene", "exact", "rows"]

_numbers = itertools.count(1)

KEYED: Mapping[str, Any] = {
    "path": "/keyed",
    "records": "data",
    "key": "id",
    "pages": {"by": "last_key", "send": "starting_after", "more": "has_more", "size": {"send": "limit", "max": 10}},
}
TOKENS: Mapping[str, Any] = {
    "path": "/tokens",
    "records": "data",
    "key": "id",
    "pages": {"by": "token", "take": "next_cursor", "send": "cursor", "size": {"send": "limit", "max": 10}},
}


def rows(count: int) -> list[bytes]:
    """So many records with distinct keys, in no order of text or number."""
    return [b'{"id": "r%d", "n": %d}' % (number * 7919 % 100003, number) for number in range(count)]


def exact(raw: bytes | str) -> Any:
    """A JSON value such that two of them are equal in Python only if they are equal as JSON, to the last digit."""
    return _tagged(json.loads(raw, parse_int=Decimal, parse_float=Decimal))


def _tagged(value: Any) -> Any:
    # To Python, true equals 1.
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    if isinstance(value, dict):
        return {name: _tagged(item) for name, item in value.items()}
    return value


class Scene:
    """One object of one source over ``api``, with tables of its own in a shared database.

    ``books`` is the bookkeeping schema, by default one of its own. ``spec`` is the object as in a source file; it may
    be changed before :meth:`migrate` or a run. Methods start the engine or look at what it left; none changes a record.
    """

    object = "things"

    def __init__(
        self, api: LoopbackApi | HostileApi, connect: Connect, spec: Mapping[str, Any], books: str | None = None
    ) -> None:
        number = next(_numbers)
        self.api: Any = api
        self.connect = connect
        self.spec: dict[str, Any] = dict(spec)
        self.name = f"scene{number}"
        self.books = books or f"{self.name}_books"
        self.session = requests.Session()
        self.tries = 2
        self._looking: Connection | None = None

    @property
    def source(self) -> Source:
        """The source as the spec says now."""
        return parse_source({"source": self.name, "connection": "none", "objects": {self.object: self.spec}}, "test")

    def migrate(self, **arguments: Any) -> None:
        """Make the books and the record table."""
        migrate(self.connect, [self.source], self.books, **arguments)

    def settings(self, **changes: Any) -> Settings:
        """Settings with the scene's own books."""
        return Settings(schema=self.books, **changes)

    def client(self) -> ApiClient:
        """A client without patience. Each run has its own: an earlier run's reader may still wait for an answer."""
        return ApiClient(self.source, self.session, self.api.url, bounds=Bounds(2.0, 2.0), tries=self.tries)

    def run(self, **arguments: Any) -> Summary:
        """Run the engine to its end."""
        given: dict[str, Any] = {"postgres": self.connect, "settings": self.settings(), **arguments}
        if "client" not in given:
            given["client"] = self.client()
        return run(self.source, self.object, **given)

    def stops(self, kind: type[ExtractError], **arguments: Any) -> ExtractError:
        """Run the engine; it must stop with exactly this error, told as it should be. Returns the error."""
        with pytest.raises(ExtractError) as caught:
            self.run(**arguments)
        exc = caught.value
        assert type(exc) is kind, exc
        assert exc.source == self.name
        assert exc.object == self.object
        _check_telling(exc)
        return exc

    def stored(self) -> dict[str, Any]:
        """The record table: each key with its record."""
        table = sql.Identifier(*self.source.table(self.object))
        found = self._look(sql.SQL("select key, data::text from {}").format(table))
        return {key: exact(data) for key, data in found}

    def alive(self) -> dict[str, Any]:
        """The records that are not deleted."""
        table = sql.Identifier(*self.source.table(self.object))
        found = self._look(sql.SQL("select key, data from {} where deleted_at is null").format(table))
        return dict(found)

    def revisions(self) -> set[int]:
        """Which revisions the stored records have."""
        table = sql.Identifier(*self.source.table(self.object))
        return {row[0] for row in self._look(sql.SQL("select revision from {}").format(table))}

    def served(self) -> dict[str, Any]:
        """What the API holds: each key with its record."""
        return {self.api.key_of(raw): exact(raw) for raw in self.api.rows}

    def ledger(self) -> list[Cursor]:
        """The rows of the ledger, oldest first."""
        text = sql.SQL("select sequence, position from {}.ledger where source = {} order by sequence")
        found = self._look(text.format(sql.Identifier(self.books), self.name))
        return [Cursor(sequence, Position.from_json(position)) for sequence, position in found]

    def assert_whole(self) -> None:
        """The table holds exactly the pages that the ledger says were committed, nothing more and nothing less.

        For an API whose records do not change while it is read.
        """
        ledger = self.ledger()
        committed = ledger[-1].position.records if ledger else 0
        assert self.stored() == {self.api.key_of(raw): exact(raw) for raw in self.api.rows[:committed]}

    def assert_exact(self) -> None:
        """The table equals the API."""
        assert self.stored() == self.served()

    def assert_exact_after_repair(self, **arguments: Any) -> Summary:
        """Nothing is ordered of the API any more: one run, and the table equals the API."""
        self.api.fault = lambda number, asked: None
        summary = self.run(**arguments)
        assert summary.complete
        self.assert_exact()
        return summary

    def close(self) -> None:
        """Close the session and the connection."""
        self.session.close()
        if self._looking is not None:
            self._looking.close()

    def _look(self, query: sql.Composed) -> list[tuple[Any, ...]]:
        if self._looking is None:
            self._looking = self.connect()
            self._looking.autocommit = True
        return self._looking.execute(query).fetchall()


def _check_telling(exc: ExtractError) -> None:
    """A few lines: what, what was kept, what to do, where to read on; and it survives the way between processes."""
    lines = str(exc).splitlines()
    assert len(lines) <= 5
    assert all(len(line) < 400 for line in lines)
    assert exc.todo
    assert exc.kept
    assert lines[-1].endswith(f"docs/errors.md#{type(exc).anchor}")
    back = pickle.loads(pickle.dumps(exc))
    assert type(back) is type(exc)
    assert (str(back), back.place) == (str(exc), exc.place)
    assert (back.source, back.page, back.record, back.key) == (exc.source, exc.page, exc.record, exc.key)
