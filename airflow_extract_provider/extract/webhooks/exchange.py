"""One request and its answer, as uvicorn exchanges them with the application.

What a webhook is answered is always the same few bytes, and what it is asked for is most often there already: both are
passed on as they are. Everything else goes uvicorn's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

from httptools import parse_url
from uvicorn.protocols.http import httptools_impl

from airflow_extract_provider.extract.webhooks.answers import ANSWERS, CHALLENGE, END, Start
from airflow_extract_provider.extract.webhooks.inside import check

if TYPE_CHECKING:
    from uvicorn._types import ASGIVersions, HTTPScope

__all__ = ["Exchange"]

check()

_Headers = list[tuple[bytes, bytes]]
_ASGI: ASGIVersions = {"version": "3.0", "spec_version": "2.3"}
_CLOSE = (b"connection", b"close")


class _Told:
    """What one awaits and has at once, without the coroutine that each request would pay for."""

    __slots__ = ("_what",)

    def __init__(self, what: Any) -> None:
        self._what = what

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self._what


_DONE = _Told(None)


class Exchange(httptools_impl.RequestResponseCycle):
    """A request that is being served. ``receive`` and ``send`` are to be awaited at once; they are no coroutines."""

    # The answers as they are sent, by the message that begins each, which lives as long as the process; and the headers
    # they were made with: uvicorn makes others each second, with another date.
    _lines: ClassVar[dict[int, bytes]] = {}
    _made_with: ClassVar[_Headers] = []
    _brief = False
    """Whether such an answer has gone out, and its end is awaited."""

    @classmethod
    def of(cls, link: httptools_impl.HttpToolsProtocol) -> Exchange:
        """The request whose head a connection has just read. Raises httptools' error: its address is none."""
        address = parse_url(link.url)
        raw_path: bytes = address.path
        path, root, version = raw_path.decode("ascii"), link.root_path, link.parser.get_http_version()
        scope: HTTPScope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": link.parser.get_method().decode("ascii"),
            "scheme": link.scheme or "http",
            "path": root + (unquote(path) if "%" in path else path),
            "raw_path": root.encode("ascii") + raw_path if root else raw_path,
            "query_string": address.query or b"",
            "root_path": root,
            "headers": link.headers,
            "client": link.client,
            "server": link.server,
            "state": link.app_state.copy(),
        }
        named = dict(link.headers)
        return cls(
            scope=scope,
            transport=link.transport,
            flow=link.flow,
            logger=link.logger,
            access_logger=link.access_logger,
            access_log=False,
            default_headers=link.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=b"expect" in named and _is_awaited(link.headers),
            keep_alive=version != "1.0" and link.parser.should_keep_alive(),
            on_response=link.on_response_complete,
        )

    def receive(self) -> Awaitable[Any]:  # type: ignore[override]  # awaited it is the same
        """The next part of the body."""
        waits = self.more_body or self.waiting_for_100_continue or not self.message_event.is_set()
        if waits or self.disconnected or self.response_complete:
            return super().receive()
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        self.flow.resume_reading()
        return _Told({"type": "http.request", "body": body, "more_body": False})

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]  # awaited it is the same
        """Send a part of the answer."""
        if self._brief:
            if message is END and not self.disconnected:
                self._brief, self.response_complete = False, True
                self.message_event.set()
                self.on_response()
                return _DONE
        elif self.keep_alive and not (self.response_started or self.disconnected or self.flow.write_paused):
            if self.default_headers is not Exchange._made_with:
                Exchange._lines, Exchange._made_with = _lines(self.default_headers), self.default_headers
            line = Exchange._lines.get(id(message))
            if line is not None:
                self.response_started = self._brief = True
                self.waiting_for_100_continue = self.chunked_encoding = False
                self.transport.write(line)
                return _DONE
        return super().send(message)


def _is_awaited(headers: _Headers) -> bool:
    """Whether the body comes only once it is asked for."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)


def _lines(more: _Headers) -> dict[int, bytes]:
    """The answers after which the connection stays open, written out."""
    starts = [each.start for each in (*ANSWERS.values(), CHALLENGE) if each.start is not None]
    return {id(start): _line(start, more) for start in starts if _CLOSE not in start["headers"]}


def _line(start: Start, more: Sequence[tuple[bytes, bytes]]) -> bytes:
    headers = b"".join(b"%b: %b\r\n" % each for each in (*more, *start["headers"]))
    return httptools_impl.STATUS_LINE[start["status"]] + headers + b"\r\n"
