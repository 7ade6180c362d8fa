"""The HTTP of a ``HostileApi``: one thread for each connection, kept alive, all closed at the end."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from airflow_extract_provider.testing.hostile_faults import Answer
from airflow_extract_provider.testing.hostile_pages import Asked

__all__ = ["WireServer"]

# With this option a closed socket sends a reset, not an end.
_RESET = struct.pack("ii", 1, 0)


class WireServer(ThreadingHTTPServer):
    """Serves ``answer`` on a free loopback port from ``start`` until ``stop``."""

    # The end waits for all threads, so that none outlives the test.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.errors: list[BaseException] = []
        self._open: set[socket.socket] = set()
        self._stopping = False
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        """Serve from a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, end those there are, wait for their threads."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        with self._guard:
            self._stopping = True
            for connection in self._open:
                _hang_up(connection)
        self.server_close()

    def opened(self, connection: socket.socket) -> None:
        """Remember a connection. One that came while the server stops ends at once."""
        with self._guard:
            self._open.add(connection)
            if self._stopping:
                _hang_up(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._guard:
            self._open.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Keep errors for ``errors``; that a client went away is none."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: else each answer waits for a delayed acknowledgement, 40 ms.
    wbufsize = 1 << 20
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._wire.opened(self.connection)

    def finish(self) -> None:
        self._wire.closed(self.connection)
        with contextlib.suppress(ConnectionError):
            super().finish()

    @property
    def _wire(self) -> WireServer:
        return cast("WireServer", self.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        params = dict(parse_qsl(url.query, keep_blank_values=True))
        asked = Asked(self.command, unquote(url.path), params, dict(self.headers.items()), self._read())
        self._send(self._wire.answer(asked))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve

    def _read(self) -> Any:
        sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            return json.loads(sent) if sent else None
        except ValueError:
            return sent.decode(errors="replace")

    def _send(self, answer: Answer) -> None:
        if answer.sent == "nothing":
            self._reset()
            return
        self.send_response_only(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            whole = answer.sent == "whole"
            self.wfile.write(answer.body if whole else answer.body[: len(answer.body) // 2])
        self.wfile.flush()
        if answer.sent == "half":
            self.close_connection = True

    def _reset(self) -> None:
        """Close the connection here and now: a later shutdown would end it in good order."""
        self.close_connection = True
        self._wire.closed(self.connection)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        socket.close(self.connection.detach())


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
