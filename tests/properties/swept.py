"""A world in which sweeps are run among all other walks, and which watches what they delete."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_extract_provider.extract.errors import TooManyDeletesError
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.walks.rebackfill import passes_by
from tests.properties.habits import Habits
from tests.properties.history import BOOKS, World
from tests.properties.steps import Change, Run

__all__ = ["Swept", "SweptHabits"]

_HAPPENED = {
    "history.things": ("applied_at",),
    f"{BOOKS}.sweep": ("began_at", "looked_at"),
    f"{BOOKS}.ledger": ("committed_at", "sent_at"),
    f"{BOOKS}.refetch": ("noted_at",),
}


@dataclass(frozen=True)
class SweptHabits(Habits):
    """An API whose copy is swept. ``readable``: its records can be read by key; else a sweep itself is the proof."""

    readable: bool = True

    def described(self) -> dict[str, Any]:
        """The source file's side. The guard lets everything go: a test of the proof must not hide behind it."""
        spec = {**super().described(), "sweep": {"every": "1h", "max_deletes": "100%"}}
        if not self.readable:
            del spec["by_key"]
        return spec


class Swept(World):
    """A world that knows of each record whether the API had it all the time.

    ``ever_empty``: the API had no record at all for a moment; a sweep that then sees nothing refuses to delete.
    """

    def __init__(self, connect: Connect, name: str, habits: SweptHabits) -> None:
        super().__init__(connect, name, habits)
        self.ever_empty = False
        self._begun: dict[int, datetime] = {}

    def change(self, change: Change) -> None:
        """Let something happen at the API."""
        super().change(change)
        self.ever_empty |= not self.api.ids

    def rest(self) -> None:
        """Nothing happens for two hours: whatever the books and the copy say happened, happened so long ago."""
        for table, columns in _HAPPENED.items():
            moved = ", ".join(f"{column} = {column} - interval '2 hours'" for column in columns)
            # The books also hold all the histories before this one.
            whose = "" if table == "history.things" else f" where source = '{self.name}'"
            self._looking.execute(f"update {table} set {moved}{whose}".encode())

    def run(self, plan: Run) -> BaseException | None:
        """Run as planned. What is deleted meanwhile, the API did not have all the time."""
        started, before = self.api.clock.now, self._gone()
        found = super().run(plan)
        if self.ever_empty and isinstance(found, TooManyDeletesError):
            found = None
        sweep = self._swept(started) if plan.walk == "rebackfill" else started
        for key in self._gone() - before:
            lasted = self._lasted(key[0], sweep, self.api.clock.now)
            assert not lasted, f"{plan.walk} has deleted {key[0]}, which the API had from {sweep} on"
        return found

    def alive(self) -> dict[str, Any]:
        """The copy: each key with its record."""
        return {key: data for key, (data, _, deleted) in self.stored().items() if not deleted}

    def _gone(self) -> set[tuple[str, int]]:
        """Deleted records, each with its revision: a record may be deleted twice."""
        return {(key, revision) for key, (_, revision, deleted) in self.stored().items() if deleted}

    def _swept(self, started: datetime) -> datetime:
        """An instant, on the API's clock, at which the newest sweep had not begun yet."""
        row = self._looking.execute(f"select max(number) from {BOOKS}.sweep where source = %s", [self.name]).fetchone()
        return started if row is None or row[0] is None else self._begun.setdefault(row[0], started)

    def _lasted(self, key: str, since: datetime, until: datetime) -> bool:
        """Whether the API had a record all the time between two instants."""
        versions = [version for version in self.api.history() if str(version.id) == key]
        gone = next((version.committed for version in versions if version.deleted), None)
        return bool(versions) and versions[0].committed <= since and (gone is None or gone > until)

    @property
    def proven(self) -> bool:
        """Whether what is gone is deleted by a sweep."""
        return self.object.by_key is not None or not passes_by(self.object)

    def assert_exact(self) -> None:
        """The copy is the API; but for what is gone there, where a sweep alone is no proof."""
        if not self.proven:
            super().assert_exact()
            return
        live, alive = self.api.live(), self.alive()
        differing = {key: (live.get(key), alive.get(key)) for key in live | alive if live.get(key) != alive.get(key)}
        assert not differing, f"at the API, and here: {differing}"
