"""What a walk says about each reply, and what it asks next."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.page import Record, Reply, Request

__all__ = ["Step", "Walk"]


@dataclass(frozen=True, slots=True)
class Step:
    """Of the reply just sent in: the records to apply and the position once they are committed.

    ``then`` is the next request; None: the walk is complete.
    """

    records: tuple[Record, ...]
    position: Position
    then: Request | None


Walk: TypeAlias = Generator[Step, Reply, None]
