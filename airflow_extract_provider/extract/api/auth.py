"""The login: what signs a request, and what must never be shown."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Protocol

from requests.auth import AuthBase

__all__ = ["Auth"]


class Auth(Protocol):
    """A way to log in to an API. One thread at a time uses it."""

    @property
    def secrets(self) -> Collection[str]:
        """All that must not be shown, in each of the forms in which it travels; tokens too, once they are known."""
        ...

    @property
    def params(self) -> Collection[str]:
        """The names of the query parameters that it sends itself."""
        ...

    def admitted(self) -> AbstractContextManager[AuthBase]:
        """What signs one request; good until the block ends, which is when the answer has come.

        Raises LoginError, TokenLostError, ApiUnavailableError: it needs a token and does not get one.
        """
        ...

    def refused(self) -> bool:
        """The API has answered 401 to the last request: whether it should be sent again, with another token."""
        ...
