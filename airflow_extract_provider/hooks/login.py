"""What a connection of type REST API says: the address, the login, the bounds. Nothing is taken from it unnamed."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from airflow.sdk.log import mask_secret

from airflow_extract_provider.extract.api.auth import (
    Auth,
    WithHeaders,
    basic_login,
    bearer_login,
    header_login,
    no_login,
    parameter_login,
)
from airflow_extract_provider.extract.api.endpoint import ClientAuth, TokenEndpoint
from airflow_extract_provider.extract.api.excerpt import forms_of
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
_SECRET = re.compile(r"(?i)password|secret|token|assertion")  # names of what a token URL wants beside the client
_LONGEST = 86_400.0
"""A day, in seconds: what is far longer is a slip, and what no clock can hold would end a task without a word."""
_LARGEST = 65_536.0
"""The same for an answer, in MiB."""


@dataclass(frozen=True, slots=True)
class Seed:
    """What begins the tokens of a connection: the refresh token that a person has put there; the client's secret."""

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
    extra = _extra(conn)
    if unknown := sorted(set(extra) - {*_FIELDS, *_NETWORK}):
        # The HTTP connection type would send them as headers: what was meant so must not be dropped in silence.
        raise _lacking(
            conn, f"has unknown fields in extra: {', '.join(unknown)}", f"Known: {', '.join((*_FIELDS, *_NETWORK))}"
        )
    headers, network = _headers(conn, extra), _network(conn, extra)
    way = extra.get("auth") or "bearer"
    if not isinstance(way, str) or way not in _WAYS:
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
    proxies = [secret for url in network.get("proxies", {}).values() for secret in _of_proxy(url)]
    # Of `Token abc` an API may repeat `abc` alone.
    bare = [value.rpartition(" ")[2] for value in headers.values()]
    beside = [value for name, value in _token_parameters(conn, extra).items() if _SECRET.search(name)]
    own = (conn.password or "", str(extra.get("refresh_token") or ""), *beside)
    return forms_of(*own, *headers.values(), *bare, *proxies)


def _of_proxy(url: str) -> tuple[str, ...]:
    """A proxy's password, as it stands in the URL and as it is, and the pair that is sent to it (RFC 7617). Where there
    is no password, the user name is the secret."""
    parts = _parts(url)
    shown = parts and (parts.password or parts.username)
    if parts is None or not shown:
        return ()
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return shown, unquote(shown), base64.b64encode(f"{user}:{password}".encode()).decode()


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
    parts = _parts(url) if "://" in url else None
    if parts is None or parts.scheme not in ("http", "https") or parts.username is not None:
        raise _lacking(conn, "has a `token_url` that is none", "Enter it whole: https://login.example.com/oauth/token")
    told = extra.get("client_auth") or "basic"
    client_auth: ClientAuth = "body" if told == "body" else "basic"
    if told != client_auth:
        raise _lacking(conn, "has an unknown `client_auth`", "Choose basic or body")
    client_id, scope, parameters = conn.login, str(extra.get("scope") or ""), _token_parameters(conn, extra)
    return lambda session: TokenEndpoint(
        session,
        url,
        client_id,
        secret,
        scope=scope,
        parameters=parameters,
        client_auth=client_auth,
        connection_id=conn.conn_id,
    )


# -- fields ------------------------------------------------------------------------------------------------------------


def _extra(conn: Connection) -> Mapping[str, Any]:
    """What Airflow cannot read it takes for nothing, with a line in the log: the login would be another one."""
    if not (conn.extra or "").strip():
        return {}
    try:
        found = json.loads(conn.extra or "")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _lacking(conn, "has an extra that is no JSON object", 'Write it so: {"auth": "bearer"}')
    # Airflow's own reading keeps values under telling names out of the log.
    return conn.extra_dejson


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
        except (ValueError, RecursionError):
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
    """Attributes for a session. One of the wrong form would end a task deep inside of a library."""
    found: dict[str, Any] = {}
    for name, (read, todo) in _NETWORK.items():
        if (value := extra.get(name)) in (None, ""):
            continue
        found[name] = read(value)
        if found[name] is None:
            raise _lacking(conn, f"has a wrong `{name}`", todo)
    return found


def _flag(value: Any) -> bool | None:
    """True or false, also as text, as the form has it; None: neither."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _verify(value: Any) -> bool | str | None:
    flag = _flag(value)
    return (value.strip() or None) if flag is None and isinstance(value, str) else flag


def _cert(value: Any) -> str | tuple[str, str] | None:
    """A file, or the files of certificate and key. JSON has lists only, and `requests` wants a pair."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value):
        return value[0], value[1]
    return None


def _proxies(value: Any) -> Mapping[str, str] | None:
    """Proxies by scheme; one URL is for all, as the form has it."""
    given = {"http": value, "https": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not all(isinstance(url, str) for url in given.values()):
        return None
    # An empty one keeps what the environment says from being used; `no_proxy` is a list of hosts.
    named = (url for name, url in given.items() if url.strip() and name != "no_proxy")
    return {name: url.strip() for name, url in given.items()} if all(map(_parts, named)) else None


_NETWORK: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "verify": (_verify, "Enter a file or folder of certificates, true, or false"),
    "cert": (_cert, "Enter a file, or two: certificate and key"),
    "proxies": (_proxies, 'Write a URL, or {"https": "http://proxy:3128"}'),
    "trust_env": (_flag, "Choose true or false"),
}


def _parts(url: str) -> SplitResult | None:
    """A URL in parts, one without a scheme as if it were of http; None: it is none."""
    try:
        parts = urlsplit(url.strip() if "://" in url else f"http://{url.strip()}")
        # Asked for here, since an odd port is found out only then.
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _base_url(conn: Connection) -> str:
    host = (conn.host or "").rstrip("/")
    if not host:
        raise _lacking(conn, "has no base URL", "Enter it as host, such as https://api.example.com")
    url = host if "://" in host else f"{conn.schema or 'https'}://{host}"
    parts = _parts(f"{url}:{conn.port}" if conn.port else url)
    if parts is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
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
        connect=_number(conn, extra, "connect_timeout", usual.connect, _LONGEST),
        read=_number(conn, extra, "timeout", usual.read, _LONGEST),
        total=_number(conn, extra, "total_timeout", usual.total, _LONGEST),
        size=math.ceil(_number(conn, extra, "max_size", usual.size / 2**20, _LARGEST) * 2**20),
    )


def _number(conn: Connection, extra: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= most:
        raise _lacking(conn, f"has a `{name}` that is no number above 0, up to {most:,.0f}", "Correct it")
    return number


def _lacking(conn: Connection, what: str, todo: str) -> ConnectionMissingError:
    return ConnectionMissingError(f"the connection {conn.conn_id!r} {what}.", todo=f"{todo}.")
