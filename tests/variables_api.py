"""Airflow's REST API of Variables on loopback, as far as cursors are asked for; written from its answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["Answer", "VariablesApi"]

Answer = tuple[int, Any]
_PLACE = "/api/v2/variables"


class VariablesApi:
    """Serves ``values`` by key, masked where ``masked`` says so. ``fault`` (method, path) answers something else; a
    text is sent as it is. ``asked`` are method, path and the Authorization header of each request.

    ``token`` is what the login ``username`` and ``password`` get, and what must be sent.
    """

    token, username, password = "a-token-4711", "ada", "a-password-4711"

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.masked: set[str] = set()
        self.asked: list[tuple[str, str, str | None]] = []
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: Any) -> Answer:
        """The answer to a request."""
        parts = urlsplit(target)
        authorization = headers.get("Authorization")
        self.asked.append((method, parts.path, authorization))
        if (ordered := self.fault(method, parts.path)) is not None:
            return ordered
        if parts.path == "/auth/token":
            right = body == {"username": self.username, "password": self.password}
            return (201, {"access_token": self.token}) if right else (401, {"detail": "Invalid credentials"})
        if authorization != f"Bearer {self.token}":
            return 401, {"detail": "Not authenticated"}
        if parts.path == _PLACE:
            return self._all(method, dict(parse_qsl(parts.query)), body)
        key = unquote(parts.path.removeprefix(f"{_PLACE}/"))
        if key not in self.values:
            return 404, {"detail": f"The Variable with key: `{key}` was not found"}
        if method == "DELETE":
            del self.values[key]
            return 204, None
        if method == "PATCH":
            self.values[key] = body["value"]
        return 200, self._told(key)

    def _all(self, method: str, params: Mapping[str, str], body: Any) -> Answer:
        if method == "POST":
            if body["key"] in self.values:
                return 409, {"detail": "already exists"}
            self.values[body["key"]] = body["value"]
            return 201, self._told(body["key"])
        found = [self._told(key) for key in self.values if params.get("variable_key_pattern", "") in key]
        return 200, {"variables": found, "total_entries": len(found)}

    def _told(self, key: str) -> dict[str, Any]:
        try:
            value = json.dumps(json.loads(self.values[key]))
        except ValueError:
            value = self.values[key]
        return {"key": key, "value": "***" if key in self.masked else value, "description": None, "is_encrypted": True}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, told = api.answer(self.command, self.path, dict(self.headers), body)
                text = told if isinstance(told, str) else "" if told is None else json.dumps(told)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", text)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PATCH = do_DELETE = _serve

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
