"""What a connection of type REST API says: the address, the login, the timeouts. Nothing is taken from it unnamed."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk.log import mask_secret
from requests import PreparedRequest
from requests.auth import AuthBase, HTTPBasicAuth

from airflow_extract_provider.extract.errors import ConnectionMissingError

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["Login", "login_of"]

_WAYS = ("bearer", "basic", "header", "none")
_FIELDS = ("auth", "header_name", "connect_timeout", "timeout", "test_path")
_NETWORK = ("verify", "cert", "proxies", "trust_env")


class _Header(AuthBase):
    """A login in one header; without a name no login at all.

    It is set even then, and not merely as a session's header: without an `auth` of its own, `requests` takes one from
    ~/.netrc, and that one wins.
    """

    def __init__(self, name: str | None = None, value: str = "") -> None:
        self._name, self._value = name, value

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        if self._name:
            request.headers[self._name] = self._value
        return request


@dataclass(frozen=True, slots=True)
class Login:
    """Where an API is and how to log in.

    ``base_url`` has no slash at its end. ``timeout`` is (to connect, between two bytes), in seconds. ``network`` are
    attributes for a session. ``secrets`` must not be shown, in none of the forms in which they travel.
    """

    base_url: str
    auth: AuthBase
    secrets: tuple[str, ...]
    timeout: tuple[float, float]
    test_path: str
    network: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Login({self.base_url!r})"


def login_of(conn: Connection) -> Login:
    """The login that a connection describes.

    Raises ConnectionMissingError: a field is missing, wrong or unknown; the message names it, never its value.
    """
    extra = conn.extra_dejson
    if unknown := sorted(set(extra) - {*_FIELDS, *_NETWORK}):
        # The HTTP connection type would send them as headers: what was meant so must not be dropped in silence.
        raise _lacking(
            conn, f"has unknown fields in extra: {', '.join(unknown)}", f"Known: {', '.join((*_FIELDS, *_NETWORK))}"
        )
    auth, secrets = _auth(conn, extra)
    for secret in secrets:
        mask_secret(secret)
    return Login(
        base_url=_base_url(conn),
        auth=auth,
        secrets=secrets,
        timeout=(_seconds(conn, extra, "connect_timeout", 10.0), _seconds(conn, extra, "timeout", 60.0)),
        test_path=_test_path(conn, extra),
        network={name: extra[name] for name in _NETWORK if extra.get(name) is not None},
    )


def _auth(conn: Connection, extra: Mapping[str, Any]) -> tuple[AuthBase, tuple[str, ...]]:
    way, login, password = extra.get("auth") or "bearer", conn.login or "", conn.password or ""
    if way not in _WAYS:
        raise _lacking(conn, "has an unknown `auth`", f"Choose one of: {', '.join(_WAYS)}")
    if way == "none":
        return _Header(), ()
    if way == "basic":
        if not login:
            raise _lacking(conn, "has no user name, which `basic` needs", "Enter it as login")
        pair = base64.b64encode(f"{login}:{password}".encode()).decode()
        # Where there is no password, the user name is the secret, as with Stripe's keys.
        return HTTPBasicAuth(login.encode(), password.encode()), (password or login, pair)
    if not password:
        raise _lacking(conn, f"has no password, where `{way}` takes its secret from", "Enter the token there")
    if way == "bearer":
        return _Header("Authorization", f"Bearer {password}"), (password,)
    if not extra.get("header_name"):
        raise _lacking(conn, "has no `header_name`, which `header` needs", "Enter the header's name, such as X-Api-Key")
    return _Header(str(extra["header_name"]), password), (password,)


def _base_url(conn: Connection) -> str:
    host = (conn.host or "").rstrip("/")
    if not host:
        raise _lacking(conn, "has no base URL", "Enter it as host, such as https://api.example.com")
    url = host if "://" in host else f"{conn.schema or 'https'}://{host}"
    parts = urlsplit(f"{url}:{conn.port}" if conn.port else url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _lacking(
            conn, "has a base URL that is none", "Enter scheme, host and perhaps a path: https://api.example.com/v2"
        )
    if parts.username is not None:
        raise _lacking(conn, "has a login inside the base URL", "Enter it as login and password")
    return parts.geturl()


def _test_path(conn: Connection, extra: Mapping[str, Any]) -> str:
    path = extra.get("test_path") or ""
    if path and not (isinstance(path, str) and path.startswith("/")):
        raise _lacking(conn, "has a `test_path` that does not begin with a slash", "Enter a path, such as /v1/account")
    return str(path)


def _seconds(conn: Connection, extra: Mapping[str, Any], name: str, default: float) -> float:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise _lacking(conn, f"has a `{name}` that is no number of seconds above 0", "Correct it")
    return seconds


def _lacking(conn: Connection, what: str, todo: str) -> ConnectionMissingError:
    return ConnectionMissingError(f"the connection {conn.conn_id!r} {what}.", todo=f"{todo}.")
