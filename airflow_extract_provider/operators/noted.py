"""Reads what webhooks have told of by its keys: the walk `by_key`, of one object after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_extract_provider import stats
from airflow_extract_provider.extract.errors import ExtractError, QuotaSpentError, WalkBusyError
from airflow_extract_provider.extract.source import Source

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from airflow_extract_provider.extract.api.client import ApiClient
    from airflow_extract_provider.extract.pipeline import Summary
    from airflow_extract_provider.extract.sinks.sink import Sink
    from airflow_extract_provider.extract.store.connection import Connect

__all__ = ["Noted", "Reading", "sinks_of"]

_log = logging.getLogger(__name__)

_SHORTEST = 60.0
"""Seconds that reading may take in any case: those notes would never be read that come behind a flood of webhooks."""
_TOLD = (
    "complete",
    "requests",
    "records",
    "created",
    "updated",
    "undeleted",
    "deleted",
    "regressed",
    "events",
    "seconds",
)
"""What of a walk's summary is told of each object."""


@dataclass(slots=True)
class Noted:
    """What became of the notes, by object: they were read, or ``left`` there, and why. ``spent``: until when the API
    grants nothing. ``failed``: the first error; the other objects were read all the same. ``busy``: another run holds
    an object, and may be reading it."""

    read: dict[str, Summary] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    spent: QuotaSpentError | None = None
    failed: ExtractError | None = None
    busy: bool = False

    @property
    def complete(self) -> bool:
        """Whether no walk was cut off."""
        return all(each.complete for each in self.read.values())

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        told = {name: each.as_dict() for name, each in self.read.items()}
        return {
            "by_key": {name: {kind: each[kind] for kind in _TOLD} for name, each in told.items()},
            "left": dict(self.left),
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """How notes are read: for whom (``runner``, a task instance's name and what people are shown of it), until when on
    the monotonic clock, None: to the end."""

    source: Source
    postgres: Connect
    client: Callable[[], AbstractContextManager[ApiClient]]
    sinks: Mapping[str, Sink | None]
    runner: tuple[str, str]
    until: float | None
    stop: threading.Event

    def read(self) -> Noted:
        """Read all that webhooks have told of, by whichever run. The API is asked, and logged in to, only if there is
        something."""
        from airflow_extract_provider.extract.settings import Settings
        from airflow_extract_provider.extract.store.connection import named_errors
        from airflow_extract_provider.extract.store.inbox_run import noted, opened

        found = Noted()
        with named_errors(), self.postgres() as conn:
            asked = noted(conn, Settings().schema, self.source.source)
            due = [name for name, each in self.source.objects.items() if name in asked and each.by_key is not None]
            if due:
                # Before anything is read: whatever becomes of this run, what it changes will be reported.
                opened(conn, Settings().schema, self.source.source)
        if due:
            with self.client() as client:
                for name in due:
                    self._read(name, client, found)
        return found

    def _read(self, name: str, client: ApiClient, found: Noted) -> None:
        if self.stop.is_set():
            return
        if found.spent is not None:
            found.left[name] = found.spent.what
            return
        try:
            found.read[name] = self._walk(name, client)
        except WalkBusyError as exc:
            found.busy = True
            self._leave(name, exc, found, "read by the next run, or by the `by_key` of who holds it")
        except QuotaSpentError as exc:
            found.spent = exc
            self._leave(name, exc, found, "read once requests are granted")
        except ExtractError as exc:
            _log.error("%s: %s", type(exc).__name__, exc)
            found.failed = found.failed or exc
        else:
            stats.emit(found.read[name])

    def _leave(self, name: str, exc: ExtractError, found: Noted, then: str) -> None:
        found.left[name] = exc.what
        _log.warning(
            "%s/%s   what webhooks told of is not read yet: %s It is %s", self.source.source, name, exc.what, then
        )

    def _walk(self, name: str, client: ApiClient) -> Summary:
        from airflow_extract_provider.extract.pipeline import Runner, run
        from airflow_extract_provider.hooks.redis import hash_map_of

        left = None if self.until is None else max(self.until - time.monotonic(), _SHORTEST)
        with hash_map_of(self.source.object(name)) as hash_map:
            return run(
                self.source,
                name,
                "by_key",
                postgres=self.postgres,
                client=client,
                runner=Runner(*self.runner),
                sink=self.sinks.get(name),
                hash_map=hash_map,
                run_for=None if left is None else timedelta(seconds=left),
                stop=self.stop,
            )


@contextmanager
def sinks_of(source: Source) -> Iterator[Mapping[str, Sink | None]]:
    """The sinks of the objects that webhooks tell of, by name, closed at the end; None: events go to the outbox."""
    from airflow_extract_provider.hooks.kafka import sink_of

    with ExitStack() as open:
        yield {name: open.enter_context(sink_of(source.object(name))) for name in source.told_of}
