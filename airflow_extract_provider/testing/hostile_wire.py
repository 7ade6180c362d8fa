"""The HTTP of a ``HostileApi``: one thread for each connection, kept alive, all closed at the end."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from airflow_extract_provider.testing.hostile_faults import Answer
from airflow_extract_provider.testing.hostile_pages import Asked

__all__ = ["WireServer"]

# A slow answer's pause between two pieces, in seconds.
_TICK = 0.05

_FILLER = b"x" * (1 << 16)

# With this option a closed socket sends a reset, not an end.
_RESET = struct.pack("ii", 1, 0)


class WireServer(ThreadingHTTPServer):
    """Serves ``answer`` on a free loopback port from ``start`` until ``stop``, over TLS if ``tls`` says how."""

    # The end waits for all threads, so that none outlives the test.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, answer: Callable[[Asked], Answer], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self._tls = tls
        self.errors: list[BaseException] = []
        self._open: set[socket.socket] = set()
        self._stopping = threading.Event()
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
            self._stopping.set()
            for connection in self._open:
                _hang_up(connection)
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. The handshake is its own thread's: a client that is silent in it holds up nobody."""
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def opened(self, connection: socket.socket) -> None:
        """Remember a connection. One that came while the server stops ends at once."""
        with self._guard:
            self._open.add(connection)
            if self._stopping.is_set():
                _hang_up(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._guard:
            self._open.discard(connection)

    def pause(self, seconds: float) -> None:
        """Let real time go by; the server's end ends it."""
        if seconds > 0:
            self._stopping.wait(seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Keep errors for ``errors``; that a client went away, or does not trust the certificate, is none."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | ssl.SSLError):
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
        arrived = time.monotonic()
        url = urlsplit(self.path)
        params = dict(parse_qsl(url.query, keep_blank_values=True))
        asked = Asked(
            self.command, unquote(url.path), params, dict(self.headers.items()), self._read(), arrived=arrived
        )
        self._send(self._wire.answer(asked))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve

    def _read(self) -> Any:
        sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            return json.loads(sent) if sent else None
        except ValueError:
            return sent.decode(errors="replace")

    def _send(self, answer: Answer) -> None:
        if answer.sent == "reset":
            self._reset()
            return
        if answer.sent == "silence":
            self.close_connection = True
            self._wire.pause(answer.seconds)
            return
        endless = answer.sent == "endlessly"
        length = {"Transfer-Encoding": "chunked"} if endless else {"Content-Length": str(len(answer.body))}
        self.send_response_only(answer.status)
        for name, value in {"Content-Type": "application/json", **length, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(answer)
        self.wfile.flush()

    def _send_body(self, answer: Answer) -> None:
        match answer.sent:
            case "half":
                self.wfile.write(answer.body[: len(answer.body) // 2])
                self.close_connection = True
            case "slowly":
                self._dribble(answer.body, answer.seconds)
            case "endlessly":
                self._stream(answer.body, answer.size)
            case _:
                self.wfile.write(answer.body)

    def _dribble(self, body: bytes, seconds: float) -> None:
        ticks = max(min(round(seconds / _TICK), len(body)), 1)
        for tick in range(ticks):
            self._wire.pause(seconds / ticks)
            self.wfile.write(body[len(body) * tick // ticks : len(body) * (tick + 1) // ticks])
            self.wfile.flush()

    def _stream(self, start: bytes, size: int) -> None:
        """Send ``size`` bytes in chunks (RFC 9112, section 7.1); a client that has enough ends it by going away."""
        left = size
        while left > 0:
            piece = (start + _FILLER)[: min(left, len(_FILLER))]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            start, left = b"", left - len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """Close the connection here and now: a later shutdown would end it in good order."""
        self.close_connection = True
        self._wire.closed(self.connection)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        socket.close(self.connection.detach())


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
