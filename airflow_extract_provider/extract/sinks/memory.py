"""Events in a list: for tests of what is published, without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.events.event import Event

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps what is published in ``events``, in order.

    ``failures`` are raised by the next publishes, one each, instead of taking anything:
    ``sink.failures.append(SinkUnavailableError("down."))``.
    """

    def __init__(self, *, timeout: timedelta = timedelta(seconds=30)) -> None:
        self.timeout = timeout
        self.events: list[Event] = []
        self.failures: list[ExtractError] = []

    def publish(self, events: Sequence[Event]) -> None:
        """Keep them, or raise the next failure."""
        if self.failures:
            raise self.failures.pop(0)
        self.events.extend(events)

    def close(self) -> None:
        """Hold on to the events: they are what a test looks at."""
