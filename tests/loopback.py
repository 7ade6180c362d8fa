"""A paged API on loopback with faults to order. Its paging is written apart from the client's: it shares no code."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

__all__ = ["Asked", "Fault", "LoopbackApi"]


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """An answer to give instead of the right one. ``body`` None: the right body, with this status and these headers.

    ``cut`` closes the connection after so many bytes of the body, though more are announced.
    """

    status: int = 200
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self.connections, self._guard = 0, threading.Lock()
        super().__init__(*args)

    def process_request(self, *args: Any) -> None:
        with self._guard:
            self.connections += 1
        super().process_request(*args)

    def shutdown_request(self, *args: Any) -> None:
        super().shutdown_request(*args)
        with self._guard:
            self.connections -= 1


class LoopbackApi:
    """Serves ``rows`` (each a record's own bytes) by `starting_after` under /keyed, by token under /tokens.

    ``key_of`` reads a row's key for `starting_after`. ``cap`` is the server's own largest page. Called for each
    request: ``before`` (number, asked), to change the rows or wait, and ``fault`` (number, asked), to answer something
    else. Requests are numbered from 1 and kept in ``asked``. A `starting_after` that is unknown starts again at record
    one, as localstripe does; with ``refuse_unknown`` it gets status 400, as Stripe does.
    """

    def __init__(self, rows: Sequence[bytes | Mapping[str, Any]] = ()) -> None:
        self.rows: list[bytes] = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        self.cap = 1000
        self.delay = 0.0
        self.refuse_unknown = False
        self.asked: list[Asked] = []
        self.before: Callable[[int, Asked], None] = lambda number, asked: None
        self.fault: Callable[[int, Asked], Fault | None] = lambda number, asked: None
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def connections(self) -> int:
        """How many are open: none of a process that has died, once all that it had asked is in ``asked``."""
        return self._server.connections

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def key_of(self, row: bytes) -> str:
        """A row's key."""
        return str(json.loads(row, parse_int=str)["id"])

    def delete(self, *keys: str) -> None:
        """Remove rows by key."""
        with self.lock:
            self.rows = [row for row in self.rows if self.key_of(row) not in keys]

    def answer(self, asked: Asked) -> Fault:
        """The right answer, or the one that was ordered."""
        with self.lock:
            self.asked.append(asked)
            number = len(self.asked)
            self.before(number, asked)
            ordered = self.fault(number, asked)
            if ordered is None:
                return self.right(asked)
            body = self.right(asked).body if ordered.body is None else ordered.body
        return Fault(ordered.status, body, ordered.headers, ordered.cut)

    def right(self, asked: Asked) -> Fault:
        """The right answer, whatever is ordered."""
        with self.lock:
            return self._keyed(asked) if asked.path == "/keyed" else self._tokens(asked)

    def _keyed(self, asked: Asked) -> Fault:
        start, after = 0, asked.params.get("starting_after")
        if after is not None:
            keys = [self.key_of(row) for row in self.rows]
            if after not in keys and self.refuse_unknown:
                return Fault(400, b'{"error": {"param": "starting_after"}}')
            start = keys.index(after) + 1 if after in keys else 0
        end = min(start + min(int(asked.params.get("limit", "10")), self.cap), len(self.rows))
        more = b"true" if end < len(self.rows) else b"false"
        return Fault(200, b'{"data": [' + b",".join(self.rows[start:end]) + b'], "has_more": ' + more + b"}")

    def _tokens(self, asked: Asked) -> Fault:
        start = int(asked.params.get("cursor", "t0")[1:])
        end = min(start + min(int(asked.params.get("limit", "10")), self.cap), len(self.rows))
        token = b'"t%d"' % end if end < len(self.rows) else b"null"
        return Fault(200, b'{"data": [' + b",".join(self.rows[start:end]) + b'], "next_cursor": ' + token + b"}")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one packet: else each answer waits for a delayed acknowledgement, 40 ms.
            wbufsize = 1 << 20

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                found = api.answer(Asked(url.path, dict(parse_qsl(url.query)), dict(self.headers.items())))
                time.sleep(api.delay)
                body = found.body or b""
                self.send_response(found.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: found.cut])
                self.wfile.flush()
                if found.cut is not None:
                    self.close_connection = True

        return Handler
