"""What a connection of type REST API says: the address, the login, the bounds. Nothing is taken from it unnamed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from airflow.sdk.log import mask_secret

from airflow_extract_provider.extract.api.auth import (
    Auth,
    WithHeaders,
    basic_login,
    bearer_login,
    forms_of,
    header_login,
    no_login,
    parameter_login,
)
from airflow_extract_provider.extract.api.endpoint import ClientAuth, TokenEndpoint
from airflow_extract_provider.extract.api.oauth import ClientCredentials, RefreshToken, Tokens
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.errors import ConnectionMissingError

if TYPE_CHECKING:
    import requests
    from airflow.sdk import Connection

__all__ = ["Login", "Seed", "login_of"]

_FIELDS = (
    "auth",
    "header_name",
    "parameter_name",
    "headers",
    "token_url",
    "scope",
    "token_parameters",
    "client_auth",
    "refresh_token",
    "connect_timeout",
    "timeout",
    "total_timeout",
    "max_size",
    "test_path",
)
_NETWORK = ("verify", "cert", "proxies", "trust_env")


@dataclass(frozen=True, slots=True)
class Seed:
    """What begins the tokens of a connection: the refresh token that a person has put there, and the client's secret."""

    connection_id: str
    refresh_token: str = field(repr=False)
    client_secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Login:
    """Where an API is and how to log in.

    ``base_url`` has no slash at its end. ``network`` are attributes for a session. ``secrets`` must not be shown, in
    none of the forms in which they travel. ``fixed`` is a login without tokens; else ``endpoint`` gives them, by
    ``seed`` where it is one of a refresh token.
    """

    base_url: str
    secrets: tuple[str, ...] = field(repr=False)
    bounds: Bounds
    test_path: str
    network: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    fixed: Auth | None = None
    endpoint: Callable[[requests.Session], TokenEndpoint] | None = field(default=None, repr=False)
    seed: Seed | None = None

    def auth(self, session: requests.Session, tokens: Callable[[Seed], Tokens]) -> Auth:
        """The login, for use by one thread. ``session`` asks for tokens, ``tokens`` keeps them between processes."""
        if self.fixed is not None:
            found = self.fixed
        else:
            assert self.endpoint is not None, "a login is fixed, or by tokens"
            endpoint = self.endpoint(session)
            found = (
                ClientCredentials(endpoint, mask_secret)
                if self.seed is None
                else RefreshToken(endpoint, tokens(self.seed), mask_secret)
            )
        return WithHeaders(found, self.headers) if self.headers else found


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
    headers, network = _headers(conn, extra), _network(conn, extra)
    way = extra.get("auth") or "bearer"
    if way not in _WAYS:
        raise _lacking(conn, "has an unknown `auth`", f"Choose one of: {', '.join(_WAYS)}")
    found = _WAYS[way](conn, extra)
    secrets = (*_kept(conn, extra, headers, network), *(found["fixed"].secrets if "fixed" in found else ()))
    for secret in secrets:
        mask_secret(secret)
    return Login(
        base_url=_base_url(conn),
        secrets=secrets,
        bounds=_bounds(conn, extra),
        test_path=_test_path(conn, extra),
        network=network,
        headers=headers,
        **found,
    )


def _kept(
    conn: Connection, extra: Mapping[str, Any], headers: Mapping[str, str], network: Mapping[str, Any]
) -> tuple[str, ...]:
    """All of a connection that must not be shown, whether it is used or not."""
    proxies = [urlsplit(str(url)).password or "" for url in (network.get("proxies") or {}).values()]
    return forms_of(conn.password or "", str(extra.get("refresh_token") or ""), *headers.values(), *proxies)


# -- ways to log in ----------------------------------------------------------------------------------------------------


def _no_login(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    del conn, extra
    return {"fixed": no_login()}


def _bearer(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    del extra
    return {"fixed": bearer_login(_password(conn, "bearer"))}


def _basic(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    del extra
    if not conn.login:
        raise _lacking(conn, "has no user name, which `basic` needs", "Enter it as login")
    return {"fixed": basic_login(conn.login, conn.password or "")}


def _header(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    password = _password(conn, "header")
    name = _needed(conn, extra, "header_name", "header", "Enter the header's name, such as X-Api-Key")
    return {"fixed": header_login(name, password)}


def _parameter(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    password = _password(conn, "parameter")
    name = _needed(conn, extra, "parameter_name", "parameter", "Enter the query parameter's name, such as api_key")
    return {"fixed": parameter_login(name, password)}


def _client_credentials(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    secret = _password(conn, "client_credentials")
    return {"endpoint": _endpoint(conn, extra, "client_credentials", secret)}


def _refresh_token(conn: Connection, extra: Mapping[str, Any]) -> dict[str, Any]:
    secret = conn.password or None
    todo = "Log in at the vendor, and enter the refresh token that it shows"
    seed = Seed(conn.conn_id, _needed(conn, extra, "refresh_token", "refresh_token", todo), secret)
    return {"endpoint": _endpoint(conn, extra, "refresh_token", secret), "seed": seed}


_WAYS: Mapping[str, Callable[[Connection, Mapping[str, Any]], dict[str, Any]]] = {
    "bearer": _bearer,
    "basic": _basic,
    "header": _header,
    "parameter": _parameter,
    "client_credentials": _client_credentials,
    "refresh_token": _refresh_token,
    "none": _no_login,
}


def _endpoint(
    conn: Connection, extra: Mapping[str, Any], way: str, secret: str | None
) -> Callable[[requests.Session], TokenEndpoint]:
    if not conn.login:
        raise _lacking(conn, f"has no client id, which `{way}` needs", "Enter it as login")
    url = _needed(conn, extra, "token_url", way, "Enter the vendor's endpoint for OAuth 2.0 tokens")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise _lacking(conn, "has a `token_url` that is none", "Enter it whole: https://login.example.com/oauth/token")
    told = extra.get("client_auth") or "basic"
    client_auth: ClientAuth = "body" if told == "body" else "basic"
    if told != client_auth:
        raise _lacking(conn, "has an unknown `client_auth`", "Choose basic or body")
    client_id, scope, parameters = conn.login, str(extra.get("scope") or ""), _token_parameters(conn, extra)
    return lambda session: TokenEndpoint(
        session, url, client_id, secret, scope=scope, parameters=parameters, client_auth=client_auth
    )


# -- fields ------------------------------------------------------------------------------------------------------------


def _password(conn: Connection, way: str) -> str:
    if not conn.password:
        raise _lacking(conn, f"has no password, where `{way}` takes its secret from", "Enter the secret there")
    return conn.password


def _needed(conn: Connection, extra: Mapping[str, Any], name: str, way: str, todo: str) -> str:
    value = extra.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _lacking(conn, f"has no `{name}`, which `{way}` needs", todo)
    return value.strip()


def _headers(conn: Connection, extra: Mapping[str, Any]) -> Mapping[str, str]:
    """The headers of the connection's own, from a JSON object or its text: a form has no field for objects."""
    value = extra.get("headers")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            value = False
    if value in (None, ""):
        return {}
    if not isinstance(value, dict) or not all(isinstance(each, str) and each for each in value.values()):
        raise _lacking(conn, "has `headers` that are no JSON object of texts", 'Write it so: {"X-Key": "..."}')
    return value


def _token_parameters(conn: Connection, extra: Mapping[str, Any]) -> Mapping[str, str]:
    """What else the token endpoint wants, from a JSON object or as in a URL."""
    value = extra.get("token_parameters") or ""
    if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
        return value
    try:
        return dict(parse_qsl(value, strict_parsing=True)) if value else {}
    except (ValueError, TypeError, AttributeError):
        raise _lacking(conn, "has `token_parameters` that are none", "Write them so: audience=...&scope=...") from None


def _network(conn: Connection, extra: Mapping[str, Any]) -> Mapping[str, Any]:
    found = {name: extra[name] for name in _NETWORK if extra.get(name) not in (None, "")}
    if isinstance(verify := found.get("verify"), str) and verify.strip().lower() in ("true", "false"):
        found["verify"] = verify.strip().lower() == "true"
    if isinstance(proxies := found.get("proxies"), str):
        # As the form has it: one proxy for all.
        found["proxies"] = {"http": proxies.strip(), "https": proxies.strip()}
    elif not isinstance(proxies or {}, dict):
        raise _lacking(conn, "has `proxies` that are none", 'Write a URL, or {"https": "http://proxy:3128"}')
    return found


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


def _bounds(conn: Connection, extra: Mapping[str, Any]) -> Bounds:
    usual = Bounds()
    return Bounds(
        connect=_number(conn, extra, "connect_timeout", usual.connect),
        read=_number(conn, extra, "timeout", usual.read),
        total=_number(conn, extra, "total_timeout", usual.total),
        size=int(_number(conn, extra, "max_size", usual.size / 2**20) * 2**20),
    )


def _number(conn: Connection, extra: Mapping[str, Any], name: str, default: float) -> float:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise _lacking(conn, f"has a `{name}` that is no number above 0", "Correct it")
    return number


def _lacking(conn: Connection, what: str, todo: str) -> ConnectionMissingError:
    return ConnectionMissingError(f"the connection {conn.conn_id!r} {what}.", todo=f"{todo}.")
