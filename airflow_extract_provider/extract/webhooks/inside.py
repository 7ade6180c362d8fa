"""uvicorn from the inside: what is reached into here is seen to be there, or the bounds would silently not hold."""

from __future__ import annotations

from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_extract_provider.extract.errors import FixConfig

__all__ = ["check"]

_METHODS = (
    "connection_lost",
    "connection_made",
    "data_received",
    "eof_received",
    "on_body",
    "on_header",
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "on_response_complete",
    "pause_writing",
    "resume_writing",
    "shutdown",
    "_start_asgi_task",
)
_ATTRIBUTES = (
    "access_logger",
    "app",
    "app_state",
    "client",
    "cycle",
    "flow",
    "headers",
    "logger",
    "loop",
    "parser",
    "pipeline",
    "root_path",
    "scheme",
    "server",
    "server_state",
    "timeout_keep_alive",
    "transport",
)
_METHODS_OF_CYCLE = ("receive", "run_asgi", "send")
_OF_CYCLE = (
    "body",
    "chunked_encoding",
    "default_headers",
    "disconnected",
    "expected_content_length",
    "flow",
    "keep_alive",
    "message_event",
    "more_body",
    "on_response",
    "response_complete",
    "response_started",
    "scope",
    "transport",
    "waiting_for_100_continue",
)

_ASKED = (
    "self",
    "scope",
    "transport",
    "flow",
    "logger",
    "access_logger",
    "access_log",
    "default_headers",
    "message_event",
    "expect_100_continue",
    "keep_alive",
    "on_response",
)
"""What a cycle is made of, in its order."""


def check(protocol: type[Any] = HttpToolsProtocol) -> None:
    """See that uvicorn is inside as it is known here. Raises FixConfig: it is not, and the bounds might not hold."""
    here = {*protocol.__init__.__code__.co_names}
    module = __import__(protocol.__module__, fromlist=["x"])
    cycle = getattr(module, "RequestResponseCycle", None)
    code = None if cycle is None else cycle.__init__.__code__
    of_cycle = set() if code is None else {*code.co_names}
    asked = () if code is None else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    missing = [each for each in _METHODS if not callable(getattr(protocol, each, None))]
    missing += [each for each in _ATTRIBUTES if each not in here]
    missing += [each for each in _OF_CYCLE if each not in of_cycle]
    missing += [each for each in _METHODS_OF_CYCLE if not callable(getattr(cycle, each, None))]
    missing += [] if asked == _ASKED else ["what a RequestResponseCycle is made of"]
    missing += [] if hasattr(module, "STATUS_LINE") else ["STATUS_LINE"]
    if missing:
        raise FixConfig(
            f"uvicorn {uvicorn.__version__} has changed inside ({', '.join(missing)}): what strangers send would not "
            f"be bounded.",
            todo="Install a version that this package was tested with, such as uvicorn 0.54.",
        )
