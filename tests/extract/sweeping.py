"""A scene whose copy is swept, and what a test sees of its books."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from psycopg import sql

from airflow_extract_provider.extract.errors import ApiUnavailableError
from airflow_extract_provider.extract.page import Reply, Request
from airflow_extract_provider.extract.reader import Client
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.testing.hostile import HostileApi, Listing
from tests.extract.scene import Scene

__all__ = ["BY_KEY", "Cursors", "Held", "Returning", "Sweeping"]

BY_KEY: Mapping[str, Any] = {"path": "/things/{{ key }}"}


class Returning(HostileApi):
    """An API whose records may return: the keys are k0001, k0002 and so on, but for those that are put back."""

    def __init__(self, listing: Listing, **how: Any) -> None:
        self._returning: list[str] = []
        super().__init__(seed=7, listings={"/things": listing}, keys=self._key, **how)

    def put_back(self, *keys: Any) -> None:
        """Insert records under keys that were deleted."""
        for key in keys:
            self._returning.append(key)
            assert self.insert() == [key]

    def _key(self, number: int) -> str:
        return self._returning.pop() if self._returning else f"k{number:04}"


class Cursors:
    """Cursors in memory, and every text that was ever shown."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.shown: list[str] = []

    def read(self, key: str) -> str | None:
        """The text stored under the key."""
        return self.texts.get(key)

    def write(self, key: str, text: str) -> None:
        """Store a text."""
        self.texts[key] = text
        self.shown.append(text)

    def put(self, text: str | None) -> None:
        """Let a person edit the one cursor that there is, or delete it."""
        (key,) = self.texts
        self.texts = {} if text is None else {key: text}


class Held:
    """A client that holds one reply back: the API has answered, ``meanwhile`` happens, then the run gets to see it."""

    def __init__(self, client: Client, number: int, meanwhile: Callable[[], object]) -> None:
        self._client, self._number, self._meanwhile = client, number, meanwhile
        self._fetched = 0

    @property
    def requests(self) -> int:
        return self._client.requests

    @property
    def left(self) -> float | None:
        return self._client.left

    def stop_with(self, stop: threading.Event) -> None:
        self._client.stop_with(stop)

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        reply = self._client.fetch(object, request)
        self._fetched += 1
        if self._fetched == self._number:
            self._meanwhile()
        return reply


class Sweeping(Scene):
    """A scene with sweeps. Each run is another runner's, unless it is told one."""

    def sweep(self, **how: Any) -> Mapping[str, Any]:
        """Begin a sweep, and read it to its end; returns its report."""
        summary = self.run(walk="rebackfill", **{"reset": True, **how})
        assert summary.complete
        assert summary.sweep is not None
        return summary.sweep

    def goes_on(self) -> Mapping[str, Any]:
        """Go on with the open sweep to its end; returns its report."""
        return self.sweep(reset=False)

    def cut(self, number: int, walk: str = "rebackfill", *, keys: int = 1, **how: Any) -> None:
        """A run that ends at its ``number``-th request, since the API does not answer it, nor so many ``keys`` that are
        read by key. All before is committed."""
        self.api.fault(self.api.count + number, "503", times=self.tries * keys)
        self.stops(ApiUnavailableError, walk=walk, **how)

    def rest(self, by: timedelta) -> None:
        """Nothing happens for so long: all that was stored and noted, was so much earlier."""
        self.execute("update {} set applied_at = applied_at - %s", self.table, values=[by])
        for name, columns in _INSTANTS.items():
            for column in columns:
                text = f"update {{}} set {column} = {column} - %s where source = %s"
                self.execute(text, self.book(name), values=[by, self.name])

    def execute(self, text: str, *parts: sql.Composable, values: Any = ()) -> list[tuple[Any, ...]]:
        """Do something by hand in the database; returns the rows, if there are any."""
        with self.connect() as conn:
            found = conn.execute(sql.SQL(text).format(*parts), values)
            return found.fetchall() if found.description is not None else []

    def book(self, name: str) -> sql.Identifier:
        """A table of the books."""
        return sql.Identifier(self.books, name)

    @property
    def table(self) -> sql.Identifier:
        """The record table."""
        return sql.Identifier(*self.source.table(self.object))

    def tombstones(self) -> set[str]:
        """The keys of deleted records."""
        return {row[0] for row in self.execute("select key from {} where deleted_at is not null", self.table)}

    def stamps(self) -> set[tuple[Any, ...]]:
        """Where and by which transaction each row was written last."""
        return set(self.execute("select key, xmin::text, ctid::text from {}", self.table))

    def noted(self) -> dict[str, str]:
        """The keys to be read again, and why."""
        asked = "select key, reason from {} where source = %s"
        return dict(self.execute(asked, self.book("refetch"), values=[self.name]))

    def sweeps(self) -> list[str]:
        """How each sweep stands, oldest first."""
        asked = """select case when given_up then 'given up' when ended_at is not null then 'ended'
                               when judged_at is not null then 'judged' else 'open' end
                   from {} where source = %s order by number"""
        return [row[0] for row in self.execute(asked, self.book("sweep"), values=[self.name])]


_INSTANTS = {
    "sweep": ("began_at", "looked_at"),
    "ledger": ("committed_at", "sent_at"),
    "refetch": ("noted_at",),
}
