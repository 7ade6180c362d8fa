"""Reads ahead: the next page is asked for while the last ones are applied. How far is bounded, so memory is too."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from airflow_extract_provider.extract.cursor import Position
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.page import Halted, Reply, Request
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.walks.step import Answer, Ask, Step, Walk

__all__ = ["Arrived", "Client", "LowerClock", "Reader"]

_AFTER_THE_REQUEST = 0.003
"""Seconds, somewhat more than it takes to make and send a request (benchmarks/latency.py)."""

_BESIDE = 200
"""Bytes that a record takes beside its own: key, instants, the objects that hold them."""

_MOMENTS = 10
"""How many of these to wait at most while pages still come: a transaction for each of them costs more than what is done
to its records."""


class Client(Protocol):
    """What fetches pages. Only one thread uses it at a time."""

    @property
    def requests(self) -> int:
        """How many requests went out, retries included."""
        ...

    @property
    def left(self) -> float | None:
        """Which part of the quota is left, from 0 to 1; None: not known."""
        ...

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        """The reply to a request, or one of the errors that `ApiClient.fetch` raises, Halted among them."""
        ...

    def stop_with(self, stop: threading.Event) -> None:
        """From now on, once that is set, send nothing more: waits end, and whoever fetches gets Halted."""
        ...


@dataclass(frozen=True, slots=True)
class Arrived:
    """A step whose reply has come. ``sent_at`` is an instant on Postgres's clock before its request went out."""

    step: Step
    sent_at: datetime


class LowerClock:
    """Postgres's clock, without asking it: an instant that is certainly not later than its own.

    It was read at some moment and the monotonic clock runs on from there. A thousandth of what has passed since is
    taken off, since two clocks do not run equally fast. "Sent" may be judged too early, never too late.
    """

    def __init__(self, read: datetime) -> None:
        self.set(read)

    def set(self, read: datetime) -> None:
        """Start again from a reading of Postgres's clock that has just arrived."""
        self._base = (read, time.monotonic())

    def now(self) -> datetime:
        """An instant not later than Postgres's clock now. Aware."""
        read, at = self._base
        return read + timedelta(seconds=(time.monotonic() - at) * 0.999)


_Item: TypeAlias = Arrived | Ask | BaseException | None
"""None is the end."""


class _Waiting(queue.Queue[_Item]):
    """What has arrived and is not yet applied; full when its records have so many bytes. One page always has room."""

    def _init(self, _maxsize: int) -> None:
        self.queue: deque[_Item] = deque()
        self._weights: deque[int] = deque()
        self._weight = 0

    def _qsize(self) -> int:
        return self._weight

    def _put(self, item: _Item) -> None:
        # At least one, since a queue without weight counts as empty.
        weight = 1 + (_weight(item.step) if isinstance(item, Arrived) else 0)
        self.queue.append(item)
        self._weights.append(weight)
        self._weight += weight

    def _get(self) -> _Item:
        self._weight -= self._weights.popleft()
        return self.queue.popleft()


def _weight(step: Step) -> int:
    """The bytes of a page's records, those that were set aside too, and what a record takes beside its own."""
    sizes = [len(each.raw) for each in step.records] + [len(each.raw) for each in step.bad]
    return sum(sizes) + _BESIDE * len(sizes)


class Reader:
    """Drives a walk in a thread of its own, and hands over what arrives, in order.

    ``ahead``: it asks for no more while pages wait whose records have so many bytes.
    """

    def __init__(self, object: ApiObject, walk: Walk, client: Client, clock: LowerClock, ahead: int) -> None:
        self._object, self._walk, self._client, self._clock = object, walk, client, clock
        self._queue = _Waiting(ahead)
        self._answers: queue.Queue[Answer] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read {object.name}", daemon=True)
        self._failed: BaseException | None = None
        self._age = timedelta(0)
        self._ended = False
        self.cut_off = False
        """Whether the walk had more to ask when it was stopped. Known at the end."""

        self.question: Ask | None = None
        """What the walk asks of the store; set when everything that came before it has been handed over."""

        self.finished: Position | None = None
        """The walk's last position where the store told its end: all before it was committed, and no page comes."""

    def start(self) -> None:
        """Send the first request."""
        self._client.stop_with(self._stop)
        self._thread.start()

    def stop(self) -> None:
        """Send no further request, and wait for none. What is under way may still arrive."""
        self._stop.set()

    def arrived(self, most: int, seconds: float) -> Iterator[Arrived]:
        """What has arrived, up to ``most`` records; waits ``seconds`` for the first. Nothing: not yet, or the end.

        An error of the walk or the client is raised only when everything that came before it has been handed over.
        """
        if self._failed is not None:
            raise self._failed
        records = 0
        while not self._ended and records < most and self.question is None:
            alive = self._thread.is_alive()
            try:
                item = self._taken(seconds if not records else 0.0)
            except queue.Empty:
                # After a stop the thread may end without a word, when there was no room left for one.
                self._ended = not alive and self._queue.empty()
                return
            seconds = 0.0
            if item is None:
                self._ended = True
            elif isinstance(item, BaseException):
                self._failed, self._ended = item, True
            elif isinstance(item, Ask):
                self.question = item
            else:
                records += len(item.step.records)
                yield item

    def _taken(self, seconds: float) -> _Item:
        """The next item; waits for it so long. Raises Empty."""
        with suppress(queue.Empty):
            return self._queue.get_nowait()
        item = self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        if isinstance(item, Arrived):
            self._linger()
        return item

    def _linger(self) -> None:
        """Whoever had to wait, waits for the API: its next request shall go out before this thread wants the processor,
        and of a quick one the next pages may come along. It is kept from nothing meanwhile."""
        waiting = 0
        for _ in range(_MOMENTS):
            time.sleep(_AFTER_THE_REQUEST)
            before, waiting = waiting, self._queue.qsize()
            if waiting == before or self._queue.full():
                return

    def answer(self, answer: Answer) -> None:
        """Answer the walk's question: all that came before it must have been committed."""
        self.question = None
        self._answers.put(answer)

    @property
    def ended(self) -> bool:
        """Whether everything has been handed over: the walk is complete, was stopped, or failed."""
        return self._ended and self._failed is None

    def _run(self) -> None:
        try:
            step = next(self._walk)
            while step.then is not None and not self._stop.is_set():
                sent_at = self._clock.now()
                asked, moved = step.then, self._moved(step.then)
                if moved is None:
                    break
                step = moved
                if isinstance(asked, Ask) and step.then is None:
                    self.finished = step.position
                elif not isinstance(asked, Ask) or not step.empty:
                    self._put(Arrived(step, sent_at - self._age))
            self.cut_off = step.then is not None
            self._put(None)
        except BaseException as exc:
            self._put(exc)

    def _moved(self, then: Request | Ask) -> Step | None:
        """The walk's next step; None: as :meth:`_reply`. What fails is told to the walk, which may have another way."""
        try:
            reply = self._reply(then)
        except ExtractError as exc:
            return self._walk.throw(exc)
        return None if reply is None else self._walk.send(reply)

    def _reply(self, then: Request | Ask) -> Reply | Answer | None:
        """What was asked for; None: stopped while waiting for an answer."""
        if isinstance(then, Request):
            return self._fetched(then)
        self._put(then)
        while not self._stop.is_set():
            with suppress(queue.Empty):
                return self._answers.get(timeout=0.1)
        return None

    def _fetched(self, request: Request) -> Reply | None:
        """The reply; None: stopped."""
        try:
            reply = self._client.fetch(self._object, request)
        except Halted:
            if not self._stop.is_set():
                raise  # somebody has closed the client: that is no end
            return None
        except ExtractError as exc:
            raise exc.at(page=request.page) from None
        # A page out of a cache was looked up earlier than it was asked for.
        self._age = reply.age
        return reply

    def _put(self, item: _Item) -> None:
        """Wait for room, but not for ever: nobody may be left to take it."""
        while True:
            try:
                self._queue.put(item, timeout=0.5)
                return
            except queue.Full:
                if self._stop.is_set():
                    return
