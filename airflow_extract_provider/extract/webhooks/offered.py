"""What a server may offer an application beside ``receive`` and ``send``: what is there already, it hands over at once.

It is an extension of ASGI, an entry of a request's scope (https://asgi.readthedocs.io/en/stable/extensions.html). A
server that does not know it is asked by ``receive`` and told by ``send``. It goes past whatever stands between server
and application: with a middleware that must see each message it is to be taken out of the scope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from airflow_extract_provider.extract.webhooks.answers import Start

__all__ = ["AT_ONCE", "AtOnce", "offered"]

AT_ONCE = "airflow_extract.at_once"
"""The extension's name."""


class AtOnce(Protocol):
    """What is offered."""

    def whole(self) -> bytes | None:
        """The whole body of the request, for once; None: it is not all there, and is to be received."""
        ...

    def answer(self, start: Start) -> bool:
        """Send an answer without a body; returns False if it is to be sent instead."""
        ...


class _Nothing:
    def whole(self) -> None:
        return None

    def answer(self, start: Start) -> bool:
        del start
        return False


_NOTHING = _Nothing()


def offered(scope: Mapping[str, Any]) -> AtOnce:
    """What is offered for a request; if need be, nothing."""
    extensions = scope.get("extensions")
    found: AtOnce = extensions.get(AT_ONCE, _NOTHING) if extensions else _NOTHING
    return found
