"""The login: what signs a request, and what must never be shown. Logins by token are in :mod:`.oauth`."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from urllib.parse import unquote_plus, urlencode, urlsplit, urlunsplit

from requests import PreparedRequest
from requests.auth import AuthBase

from airflow_extract_provider.extract.api.excerpt import forms_of
from airflow_extract_provider.extract.unshown import Unshown

__all__ = [
    "Auth",
    "FixedLogin",
    "Signer",
    "WithHeaders",
    "basic_login",
    "bearer_login",
    "header_login",
    "no_login",
    "parameter_login",
]


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
        Raises CertificateError: of where it asks for one. Raises StoreUnavailableError: of where tokens are kept.
        """
        ...

    def refused(self) -> bool:
        """The API has answered 401 to the last request: whether it should be sent again, with another token."""
        ...

    def close(self) -> None:
        """Close the connections that it has of its own."""
        ...


class Signer(Unshown, AuthBase):
    """Sets headers and query parameters; with neither it signs nothing.

    It is given to a request even then: without an `auth` of its own, `requests` takes one from ~/.netrc, and that one
    replaces the header. A query parameter replaces one of the same name, so that the link of an API that repeats the
    login does not send it twice.
    """

    def __init__(self, headers: Mapping[str, str] | None = None, params: Mapping[str, str] | None = None) -> None:
        self._headers, self._params = dict(headers or {}), dict(params or {})

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Sign a request that is ready to be sent."""
        request.headers.update(self._headers)
        if self._params:
            parts = urlsplit(str(request.url))
            others = [part for part in parts.query.split("&") if part and _name(part) not in self._params]
            request.url = urlunsplit(parts._replace(query="&".join([*others, urlencode(self._params)])))
        return request

    def __eq__(self, other: object) -> bool:
        # requests compares `auth` objects when it follows a redirect.
        return isinstance(other, Signer) and (self._headers, self._params) == (other._headers, other._params)

    __hash__ = None  # type: ignore[assignment]


class FixedLogin(Unshown):
    """A login that stays as it is: the same headers and query parameters on each request.

    ``secrets`` are those of its values that must not be shown, as they are; the forms in which they travel are found.
    """

    def __init__(
        self,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        secrets: Collection[str] = (),
    ) -> None:
        self._signer = Signer(headers, params)
        self._params = frozenset(params or {})
        self._secrets = forms_of(*secrets)

    @property
    def secrets(self) -> Collection[str]:
        """All that must not be shown."""
        return self._secrets

    @property
    def params(self) -> Collection[str]:
        """The names of the query parameters that it sends itself."""
        return self._params

    @contextmanager
    def admitted(self) -> Iterator[AuthBase]:
        """The same signer for every request."""
        yield self._signer

    def refused(self) -> bool:
        """Never: there is no other token."""
        return False

    def close(self) -> None:
        """It has no connection."""


class WithHeaders(Unshown):
    """A login, and secret headers beside it, such as a subscription key. Of one name the login's own header wins."""

    def __init__(self, login: Auth, headers: Mapping[str, str]) -> None:
        self._login, self._headers = login, dict(headers)
        self._secrets = forms_of(*headers.values())

    @property
    def secrets(self) -> Collection[str]:
        """Those of the login, and the headers' values."""
        return (*self._login.secrets, *self._secrets)

    @property
    def params(self) -> Collection[str]:
        """Those of the login."""
        return self._login.params

    @contextmanager
    def admitted(self) -> Iterator[AuthBase]:
        """Both sign. Raises what the login raises."""
        with self._login.admitted() as signer:
            yield _Both(Signer(self._headers), signer)

    def refused(self) -> bool:
        """As the login says."""
        return self._login.refused()

    def close(self) -> None:
        """Close those of the login."""
        self._login.close()


class _Both(Unshown, AuthBase):
    def __init__(self, first: AuthBase, second: AuthBase) -> None:
        self._first, self._second = first, second

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        signed: Any = self._second(self._first(request))
        found: PreparedRequest = signed
        return found


def no_login() -> FixedLogin:
    """None at all, whatever ~/.netrc says."""
    return FixedLogin()


def bearer_login(token: str) -> FixedLogin:
    """A token that was made once and for all (RFC 6750, section 2.1)."""
    return FixedLogin({"Authorization": f"Bearer {token}"}, secrets=[token])


def basic_login(user: str, password: str) -> FixedLogin:
    """User name and password (RFC 7617), as UTF-8. Where there is no password, the user name is the secret, as with
    Stripe's keys."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return FixedLogin({"Authorization": f"Basic {pair}"}, secrets=[password or user, pair])


def header_login(name: str, value: str) -> FixedLogin:
    """An API key in a header of its own."""
    return FixedLogin({name: value}, secrets=[value])


def parameter_login(name: str, value: str) -> FixedLogin:
    """An API key in a query parameter of its own."""
    return FixedLogin(params={name: value}, secrets=[value])


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0])
