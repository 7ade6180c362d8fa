"""A second run beside a first one: while one waits for Postgres, the other reads. To Postgres they are two runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

from airflow_extract_provider.extract.store.connection import Connection, cut

__all__ = ["Lane", "Second"]

_log = logging.getLogger(__name__)

_LET_GO_SECONDS = 5.0


class Lane(Protocol):
    """A run over a connection of its own."""

    conn: Connection

    def work(self, until: float, stopped: Callable[[], bool]) -> None:
        """Work until nothing is left, or until then by the monotonic clock, or until it is told to stop."""
        ...


_Lane = TypeVar("_Lane", bound=Lane)


@dataclass(slots=True)
class Second(Generic[_Lane]):
    """Makes a run over a new connection, once it is to begin, and has it work in a thread of its own. ``run`` is what
    it has made: then it tells what was done. Where there is no room for another connection or thread, there is none:
    it only makes things faster."""

    make: Callable[[Connection], _Lane]
    connected: Callable[[], AbstractContextManager[Connection]]
    run: _Lane | None = None
    _begun: bool = False
    _failed: BaseException | None = None
    _work: Callable[[], None] = lambda: None
    _halted: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @contextmanager
    def around(self, until: float, stop: threading.Event) -> Iterator[None]:
        """Within, the first one works. The second one ends with it if it fails, whatever it is that is raised in it;
        otherwise it is waited for, and what it raised is raised."""
        self._work = partial(self._run, until, lambda: stop.is_set() or self._halted.is_set())
        try:
            yield
            self._join()
        except BaseException:
            self._halted.set()
            self._let_go()
            raise
        if self._failed is not None:
            raise self._failed

    def begin(self) -> None:
        """Let it begin, unless it has."""
        if self._begun:
            return
        self._begun = True
        thread = threading.Thread(target=self._work, name="drain", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            _log.info("webhooks are applied by one connection: there may be no more threads now")
        else:
            self._thread = thread

    def _run(self, until: float, stopped: Callable[[], bool]) -> None:
        with ExitStack() as opened:
            try:
                conn = opened.enter_context(self.connected())
            except Exception as exc:
                _log.info("webhooks are applied by one connection: another cannot be opened (%s)", type(exc).__name__)
                return
            try:
                self.run = self.make(conn)
                self.run.work(until, stopped)
            except BaseException as exc:
                self._failed = exc

    def _join(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            return
        if self.run is None:
            # It has not even connected, and that may take long: when it has, it finds that it is over.
            self._halted.set()
        else:
            self._thread.join()

    def _let_go(self) -> None:
        """Wait for the batch that is under way, but not for long: cut off, it is as if it had not been claimed."""
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._thread.join(_LET_GO_SECONDS)
        finally:
            if self._thread.is_alive() and self.run is not None:
                cut(self.run.conn)
