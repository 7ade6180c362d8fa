"""What a sink must do. A third one is one file beside this, tested by the same suite."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.source import ApiObject

__all__ = ["Sink", "check_sink"]


class Sink(Protocol):
    """A place outside of Postgres that takes events.

    ``timeout`` is the longest that :meth:`publish` lasts. It is called inside the transaction that stores the records,
    and must be over before Postgres ends that one.
    """

    @property
    def timeout(self) -> timedelta: ...

    def publish(self, events: Sequence[Event]) -> None:
        """Hand events over, in this order per key, and return once each of them is known to be stored durably.

        After any error nothing of these is still under way: what was not acknowledged will not arrive later, so far as
        this process can know. The caller rolls back, and may publish the same again, with the same ids.

        Raises SinkUnavailableError: not acknowledged in time, try again. Raises EventRefusedError: the sink will never
        take one of them. Raises SinkRefusedError: it must be set up or allowed first.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def check_sink(object: ApiObject, sink: Sink | None, *, within: timedelta = timedelta(seconds=60)) -> None:
    """See that events go where the config says, and that a publication ends before Postgres ends its transaction, which
    it does when nothing has happened in it for ``within``.

    Raises SourceError: they do not.
    """
    outside = object.publish != "outbox"
    if object.events and outside and sink is None:
        raise SourceError("`publish` names a sink, but this run was given none.", todo="Pass the sink to the run.")
    if sink is not None and not outside:
        raise SourceError("this run was given a sink, but `publish` says outbox.", todo="Declare `publish`.")
    if sink is not None and sink.timeout >= within:
        raise SourceError(
            f"the sink may take {sink.timeout.total_seconds():.0f} s to publish, but Postgres ends a transaction in "
            f"which nothing has happened for {within.total_seconds():.0f} s.",
            todo="Shorten the sink's timeout.",
        )
