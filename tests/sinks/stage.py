"""One kind of sink, with what its contract is checked by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.sink import Sink
from tests.sinks.topics import Received

__all__ = ["Stage"]


@dataclass(frozen=True)
class Stage:
    """``received`` is what a consumer finds. ``failing`` makes the next publish of what it returns fail."""

    sink: Sink
    received: Callable[[], Sequence[Received]]
    failing: Callable[[], Sequence[Event]]
