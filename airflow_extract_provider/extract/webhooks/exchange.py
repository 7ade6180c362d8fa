"""One request and its answer, as uvicorn exchanges them with the application.

What a webhook is answered is always the same few bytes, and its body is most often there already: both are handed over
at once. Everything else goes uvicorn's way.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

from httptools import parse_url
from uvicorn.protocols.http import httptools_impl

from airflow_extract_provider.extract.webhooks.answers import ANSWERS, CHALLENGE, Start
from airflow_extract_provider.extract.webhooks.inside import check
from airflow_extract_provider.extract.webhooks.offered import AT_ONCE

if TYPE_CHECKING:
    from uvicorn._types import ASGIVersions, HTTPScope

__all__ = ["Exchange"]

check()

_Headers = list[tuple[bytes, bytes]]
_ASGI: ASGIVersions = {"version": "3.0", "spec_version": "2.3"}
_CLOSE = (b"connection", b"close")
_LONGEST_KNOWN = 256
"""Bytes of an address that is kept for the next request. Strangers may send 32 KiB, which would be kept as well."""


class Exchange(httptools_impl.RequestResponseCycle):
    """A request that is being served. It offers its application :class:`~.offered.AtOnce`."""

    # The answers as they are sent, by the message that begins each, which lives as long as the process; and the headers
    # they were made with: uvicorn makes others each second, with another date.
    _lines: ClassVar[dict[int, bytes]] = {}
    _made_with: ClassVar[_Headers] = []
    _asked = False
    """Whether the body was asked for."""

    @classmethod
    def of(cls, link: httptools_impl.HttpToolsProtocol) -> Exchange:
        """The request whose head a connection has just read. Raises httptools' error: its address is none."""
        known = len(link.url) <= _LONGEST_KNOWN
        path, raw_path, query = (_known_address if known else _address)(link.url, link.root_path)
        version = link.parser.get_http_version()
        scope: HTTPScope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": link.parser.get_method().decode("ascii"),
            "scheme": link.scheme or "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": link.root_path,
            "headers": link.headers,
            "client": link.client,
            "server": link.server,
            "state": link.app_state.copy(),
        }
        # By their places, which are looked at beforehand: names would cost each request more than it has to do here.
        exchange = cls(
            scope,
            link.transport,
            link.flow,
            link.logger,
            link.access_logger,
            False,
            link.server_state.default_headers,
            asyncio.Event(),
            False,
            version != "1.0" and link.parser.should_keep_alive(),
            link.on_response_complete,
        )
        # Weakly, or each that is answered in another way would wait for the garbage collector, and its body with it.
        scope["extensions"] = {AT_ONCE: weakref.proxy(exchange)}
        return exchange

    async def receive(self) -> Any:
        """The next part of the body. A sender who waits until he is asked for it is, where nothing of it is there (RFC
        9110, 10.1.1: by HTTP/1.0 nobody does)."""
        if not self._asked:
            self._asked = True
            waits = self.more_body and not self.body and self.scope["http_version"] != "1.0"
            self.waiting_for_100_continue = waits and _is_awaited(self.scope["headers"])
        return await super().receive()

    def whole(self) -> bytes | None:
        """See :class:`~.offered.AtOnce`."""
        if self.more_body or self.disconnected or self.response_complete:
            return None
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        self.flow.resume_reading()
        return body

    def answer(self, start: Start) -> bool:
        """See :class:`~.offered.AtOnce`."""
        if not self.keep_alive or self.response_started or self.disconnected or self.flow.write_paused:
            return False
        if self.default_headers is not Exchange._made_with:
            Exchange._lines, Exchange._made_with = _lines(self.default_headers), self.default_headers
        line = Exchange._lines.get(id(start))
        if line is None:
            return False
        self.response_started = self.response_complete = True
        self.transport.write(line)
        self.message_event.set()
        self.on_response()
        return True


def _address(url: bytes, root: str) -> tuple[str, bytes, bytes]:
    """Path, raw path and query. Raises httptools' error: it is no address."""
    address = parse_url(url)
    raw_path: bytes = address.path
    path = raw_path.decode("ascii")
    path = unquote(path) if "%" in path else path
    return root + path, root.encode("ascii") + raw_path, address.query or b""


_known_address = lru_cache(128)(_address)


def _is_awaited(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the body comes only once it is asked for."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)


def _lines(more: _Headers) -> dict[int, bytes]:
    """The answers after which the connection stays open, written out."""
    starts = [each.start for each in (*ANSWERS.values(), CHALLENGE) if each.start is not None]
    return {id(start): _line(start, more) for start in starts if _CLOSE not in start["headers"]}


def _line(start: Start, more: Sequence[tuple[bytes, bytes]]) -> bytes:
    headers = b"".join(b"%b: %b\r\n" % each for each in (*more, *start["headers"]))
    return httptools_impl.STATUS_LINE[start["status"]] + headers + b"\r\n"
