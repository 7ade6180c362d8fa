"""What a walk says about each reply, and what it asks next: of the API, or of the store."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.page import Record, Reply, Request, SetAside

__all__ = ["Absent", "Answer", "Ask", "Due", "DueKey", "Step", "Walk"]


@dataclass(frozen=True, slots=True)
class Due:
    """Asked of the store: which keys must be read again, ``limit`` at most. Answered once all before is committed."""

    limit: int


@dataclass(frozen=True, slots=True)
class Absent:
    """Asked of the store when a sweep has read everything: which records has it not seen? ``limit`` at most, where the
    walk has to delete them; where they can be read by key, they are noted for that, and the answer holds none."""

    limit: int


Ask: TypeAlias = Due | Absent
"""What is asked of the store. It answers once all before is committed."""


@dataclass(frozen=True, slots=True)
class DueKey:
    """A key to be read again, and the number of its note: what is noted anew meanwhile has a higher one."""

    key: str
    number: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The store's answer: the oldest notes first. ``before``: what is absent was stored before that instant."""

    due: tuple[DueKey, ...]
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Of the reply just sent in: the records to apply and the position once they are committed.

    ``then`` is what to ask next; None: the walk is complete. ``gone`` are keys that the API says are not there,
    ``bad`` what was set aside, ``settled`` the notes that this step fulfils: its records were read by key. ``absent``:
    what is gone was stored before that instant (Postgres's clock), and was not seen since in a complete sweep.
    """

    records: tuple[Record, ...]
    position: Position
    then: Request | Ask | None
    gone: tuple[str, ...] = ()
    bad: tuple[SetAside, ...] = ()
    settled: tuple[DueKey, ...] = ()
    absent: datetime | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it to apply."""
        return not (self.records or self.gone or self.bad or self.settled)


Walk: TypeAlias = Generator[Step, Reply | Answer, None]
