"""HTTP as uvicorn speaks it, with bounds on what a stranger may send before the application is asked, and on how long.

uvicorn with httptools bounds neither heads nor trailers, in size or in time, adds trailers to the headers that the
application sees, and leaves a connection open that never sends a byte. Here a head, what is sent around a body (the
sizes and extensions of chunks, trailers), and the time of each are bounded; trailers end here. What is beyond a bound
is answered, and the connection closed. There is a bound on connections too: see :mod:`~.crowd`.

It reaches into uvicorn: what it needs is looked at when it is imported.
"""

from __future__ import annotations

import asyncio
import http
from collections import Counter
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT as _HIGH
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_extract_provider.extract.webhooks.crowd import Crowd
from airflow_extract_provider.extract.webhooks.exchange import Exchange
from airflow_extract_provider.extract.webhooks.guards import Guards

__all__ = ["GuardedProtocol"]


# Plain numbers: an enum's members are found slowly, and each request is in all of them.
_IDLE, _HEAD, _BODY, _OVER = range(4)
"""What a connection is at: between requests, in a head, in what comes behind it; over: what comes is not looked at."""


class _Refused(Exception):
    """What came is beyond a bound. ``status`` is answered, and ``why`` counted."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


_NEVER = float("inf")
_REASONS = ("around", "crowded", "head", "malformed", "pipelined", "silent", "slow", "unread", "upgrade")
_TAKEN = b"HTTP/1.1 2"  # so the answer to a delivery begins


class GuardedProtocol(HttpToolsProtocol):
    """A connection. ``guards`` are the bounds of all; ``refusals`` counts what was refused before the application was
    asked, in this process, by its reason."""

    guards: ClassVar[Guards] = Guards()
    refusals: ClassVar[Counter[str]] = Counter(dict.fromkeys(_REASONS, 0))
    crowd: ClassVar[Crowd] = Crowd()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._phase = _IDLE
        self._messages = 0
        self._fed = self._later = self._got = self._around = 0
        self._begun = 0.0
        self._due = self._unread = self._fires = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._known, self.rests_since = False, 0.0
        super().__init__(*args, **kwargs)
        self._rests = self.timeout_keep_alive

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Nothing has come yet: that has its time as well."""
        self._raw = transport
        self.url = b""
        self.headers = []
        self._lingering = _Lingering(transport, self)
        super().connection_made(self._lingering)  # type: ignore[arg-type]  # all of it that is used
        self.rests_since = self.loop.time()
        self._expect(self.rests_since + self.guards.head_within)
        self.crowd.rests(self)
        if len(self.crowd) > self.guards.connections:
            self.refusals["crowded"] += 1
            least: Any = self.crowd.least(self)
            least.cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of it."""
        self.crowd.leave(self)
        self._end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)
        # Nobody looks at them any more; but until the garbage collector did, which is late, they would hold bodies.
        self.pipeline.clear()
        self.cycle = None  # type: ignore[assignment]
        self._lingering.let_go()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's is None: then the connection is closed
        """Nothing more comes. Who has said all that he had to say may wait for his answer: then it is closed."""
        cycle: Any = self.cycle
        waits = self._phase == _IDLE and cycle is not None and not cycle.response_complete
        if waits:
            cycle.keep_alive = False
        return waits

    def shutdown(self) -> None:
        """The server stops: who is answered already is not waited for."""
        if self._phase == _OVER:
            self._raw.abort()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """Answers are not read: they would pile up."""
        super().pause_writing()
        self._unread = self.loop.time() + self.guards.written_within
        self._arm(self._unread)

    def resume_writing(self) -> None:
        """They are read again."""
        super().resume_writing()
        self._unread = _NEVER

    def close(self) -> None:
        """Close the connection. Where something is being sent still, the answer goes out first and the rest is read
        and thrown away for a moment: or the system would send a reset, which wipes out the answer unread."""
        if self._phase == _OVER:
            return
        unfinished = self._phase != _IDLE
        self._end()
        if unfinished and self._raw.can_write_eof() and not self._raw.is_closing():
            self._raw.write_eof()
            self.flow.resume_reading()
        else:
            self._raw.close()
        self._expect(self.loop.time() + self.guards.closed_within)

    def _end(self) -> None:
        self._phase = _OVER
        # The application may be about to answer an earlier request: uvloop raises where nobody is left.
        self.transport.write = _drop  # type: ignore[method-assign, assignment]
        # What was read until now is not needed any more, but would be held as long as the connection is.
        self.parser, self.headers, self.url = None, [], b""  # type: ignore[assignment]
        cycle: Any = self.cycle
        if cycle is not None and cycle.response_complete:
            cycle.body = bytearray()

    # --- how many there are

    def on_response_complete(self) -> None:
        """It rests from now on, unless the next request is there already."""
        self.server_state.total_requests += 1
        self.rests_since = self.loop.time()
        if self._phase == _OVER or self.transport.is_closing():
            return
        if not self._known:
            self.crowd.rests(self)
            crowded = 2 * len(self.crowd) > self.guards.connections
            self.timeout_keep_alive = min(self._rests, self.guards.stranger_rests) if crowded else self._rests
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase == _IDLE:
            self._expect(self.rests_since + self.timeout_keep_alive)

    def write_as_stranger(self, data: bytes) -> None:
        """Write an answer, and see whether it tells that a delivery was taken; once one was, no answer is looked at."""
        if data.startswith(_TAKEN) and not self.pipeline and self.cycle.scope["method"] == "POST":
            self._known, self.timeout_keep_alive = True, self._rests
            self.crowd.trust(self)
            self.transport.write = self._raw.write  # type: ignore[method-assign]
        self._raw.write(data)

    @property
    def at_work(self) -> bool:
        """Whether a whole request is being served, or its answer is on the way out."""
        cycle: Any = self.cycle
        unanswered = self._phase != _BODY and cycle is not None and not cycle.response_complete
        return unanswered or bool(self.pipeline) or self._raw.is_closing()

    def cut_off(self) -> None:
        """Close it at once; it does not count from now on, though the loop tells of it later."""
        self.crowd.leave(self)
        self._forget()
        self._end()
        self._raw.abort()

    # --- what comes

    def data_received(self, data: bytes) -> None:
        """Read it, and see whether what is unfinished is within its bounds. What came whole at once pays for nothing:
        no more than one reading of the socket is in memory."""
        phase, messages, got = self._phase, self._messages, self._got
        if phase == _OVER:
            return
        self._fed = len(data) + (self._fed if phase == _HEAD else 0)
        try:
            self.parser.feed_data(data)
            # A body that has come to its end begins no head.
            if self._phase != _IDLE or (phase == _IDLE and self._messages == messages):
                self._look(len(data), phase, self._messages == messages, got)
        except _Refused as exc:
            self._refuse(exc)
        except httptools.HttpParserUpgrade:
            self._refuse(_Refused(400, "upgrade"))
        except httptools.HttpParserError as exc:
            self._refuse(_own(exc))

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._phase = _HEAD
        self._messages += 1
        self.url, self.headers = b"", []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer is not for the application: it would take it for a header that was there, and checked, before."""
        if self._phase == _HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole. Raises _Refused."""
        if self._fed > self.guards.head or len(self.headers) > self.guards.headers:
            self._measure()
        # The parser would take what follows for something else than a body.
        if self.parser.should_upgrade():
            raise _Refused(400, "upgrade")
        if len(self.pipeline) >= self.guards.pipelined:
            raise _Refused(400, "pipelined")
        # It fails where the address is none: then there is no request, and what is answered is still the head.
        self._begin(Exchange.of(self))
        self._phase = _BODY
        self._got = self._around = 0

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._got += len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > _HIGH:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is whole: from here on it is the application's time."""
        self._phase = _IDLE
        self._due = _NEVER
        cycle = self.cycle
        if cycle.response_complete:  # before all of it had come
            self._expect(self.loop.time() + self.timeout_keep_alive)
        else:
            cycle.more_body = False
            cycle.message_event.set()

    def _begin(self, exchange: Exchange) -> None:
        """Hand a request to the application; not before an earlier one was answered."""
        before: Any = self.cycle
        self.cycle = exchange
        if before is None or before.response_complete:
            self._start_asgi_task(exchange, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    # --- bounds

    def _look(self, size: int, phase: int, same: bool, got: int) -> None:
        """Something is unfinished after ``size`` bytes more, which came in a ``phase`` of the ``same`` request, or of
        one before it. Raises _Refused."""
        cycle: Any = self.cycle
        if self._phase == _IDLE and cycle is not None and not cycle.response_complete:
            return  # an empty line, behind a request that waits for its answer
        if phase == _IDLE or not same:
            self._begun, self._later = self.loop.time(), 0
        elif phase == _HEAD:
            self._later += size
        else:
            self._around += size - (self._got - got)
        if self._phase == _BODY:
            if self._around > self.guards.around + self._got:
                raise _Refused(400, "around")
            self._expect(self._begun + self.guards.request_within)
            return
        self._phase = _HEAD
        if self._later > self.guards.head:
            raise _Refused(431, "head")
        self._measure()
        self._expect(self._begun + self.guards.head_within)

    def _measure(self) -> None:
        # The smallest take forty times their room on the wire.
        if len(self.headers) > self.guards.headers:
            raise _Refused(431, "head")
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.guards.head:
            raise _Refused(431, "head")

    def _refuse(self, refused: _Refused) -> None:
        """Answer and close. Where an earlier request waits for its answer, this one would be taken for it: then only
        close; whoever sent it sends it again."""
        self.refusals[refused.why] += 1
        cycle: Any = self.cycle
        if self._phase == _BODY:
            answer = not self.pipeline and not cycle.response_started
        else:
            answer = cycle is None or cycle.response_complete
        if answer:
            self._raw.write(_answer(refused.status, self.server_state.default_headers))
        self._forget()
        if self._phase == _IDLE:
            self._phase = _HEAD  # what was refused is not at its end
        self.close()

    def _forget(self) -> None:
        """The application gets no more of what was begun."""
        cycle: Any = self.cycle
        self.pipeline.clear()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    # --- time: one timer, which is not touched while requests come whole

    def _expect(self, due: float) -> None:
        self._due = due
        self._arm(due)

    def _arm(self, due: float) -> None:
        if due < self._fires:
            if self._timer is not None:
                self._timer.cancel()
            self._fires = due
            self._timer = self.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer, self._fires = None, _NEVER
        now = self.loop.time()
        if now < min(self._due, self._unread):
            self._arm(min(self._due, self._unread))
        elif self._phase == _OVER:
            self._raw.abort()
        elif now >= self._unread:
            self.refusals["unread"] += 1
            self.cut_off()
        elif self._phase == _IDLE:
            self.refusals["silent"] += not self._messages
            self.close()
        elif self.flow.read_paused:
            # It is we who do not read, as long as an earlier request of his waits for its answer.
            self._begun = now
            self._expect(now + self.guards.head_within)
        else:
            self._refuse(_Refused(408, "slow"))


class _Lingering:
    """The transport, as uvicorn uses it; closing it is the protocol's business."""

    def __init__(self, transport: asyncio.Transport, protocol: GuardedProtocol) -> None:
        self._transport, self.close = transport, protocol.close
        self.write = protocol.write_as_stranger
        self._protocol: GuardedProtocol | None = protocol

    def let_go(self) -> None:
        """The connection is gone."""
        self._protocol, self.close, self.write = None, self._transport.close, _drop

    def is_closing(self) -> bool:
        """No new request is taken."""
        return self._protocol is None or self._protocol._phase == _OVER or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _own(exc: httptools.HttpParserError) -> _Refused:
    """What was raised within the parser, if it is ours. It holds on to where it was raised: with a name there, both
    would hold each other."""
    return exc.__context__ if isinstance(exc.__context__, _Refused) else _Refused(400, "malformed")


def _drop(data: bytes) -> None:
    del data


def _answer(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    phrase = http.HTTPStatus(status).phrase.encode()
    lines = [b"HTTP/1.1 %d %b" % (status, phrase), *(b"%b: %b" % each for each in headers)]
    return b"\r\n".join([*lines, b"content-length: 0", b"connection: close", b"", b""])
