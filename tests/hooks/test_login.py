"""What a connection of type REST API says: each field counts, a wrong one is named, and no value is ever shown."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk import Connection
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.errors import AnswerTooLargeError, ConnectionMissingError, LoginError
from airflow_extract_provider.extract.page import Page, Request
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.hooks.api import RestApiHook
from airflow_extract_provider.hooks.login import Login, login_of
from airflow_extract_provider.testing.login import LoginServer
from tests.extract.scene import KEYED
from tests.loopback import LoopbackApi
from tests.taskrun import ApiServer

SECRET = "marked-secret+4711"
SEED = "marked-seed-4711"
HEADER = "marked-header-4711"
PROXY = "marked/proxy-4711"
SOURCE = parse_source(
    {
        "source": "shop",
        "connection": "shop_api",
        "objects": {
            "things": KEYED,
            "listed": {
                "path": "/l",
                "records": "data",
                "key": "id",
                "pages": {"by": "token", "take": "next", "send": "c"},
            },
        },
    },
    "shop.yaml",
)
OAUTH = {"auth": "refresh_token", "token_url": "https://login.example.com/token", "refresh_token": SEED}


def connection(extra: Any = None, **fields: Any) -> Connection:
    """A connection with a password, but for the fields that are given."""
    text = extra if isinstance(extra, str) else json.dumps(extra or {})
    known = {"conn_type": "rest_api", "host": "https://api.example.com", "password": SECRET, "extra": text}
    return Connection(conn_id="shop_api", **{**known, **fields})


def login(extra: Any = None, **fields: Any) -> Login:
    """What such a connection says."""
    return login_of(connection(extra, **fields))


@pytest.fixture
def server() -> Iterator[LoginServer]:
    """A token endpoint, and an API that takes its tokens."""
    with LoginServer(client_secret=SECRET) as served:
        yield served


def oauth(server: LoginServer, extra: dict[str, Any]) -> ApiServer:
    """An Airflow with a connection that logs in at the server."""
    known = {"conn_type": "rest_api", "host": server.api_url, "login": "client", "password": SECRET}
    return ApiServer(connections={"shop_api": {**known, "extra": json.dumps({"token_url": server.url, **extra})}})


def masked(airflow: ApiServer) -> set[str]:
    """The texts that Airflow was told to keep out of logs."""
    return {msg.value for msg in airflow.of("MaskSecret") if isinstance(msg.value, str)}


def ask(client: ApiClient) -> None:
    """Ask for one page, which must come."""
    listed = SOURCE.object("listed")
    assert isinstance(client.fetch(listed, Request("/l")), Page)


@pytest.mark.parametrize("client_auth", ["basic", "body", None])
def test_client_credentials(server: LoginServer, client_auth: str | None) -> None:
    """A token for the client's own name, asked for once by each client, with scope and parameters of the vendor's; the
    token is told to Airflow, which masks it."""
    more = {"scope": "read", "token_parameters": "audience=https://api.example.com&a=%26", "client_auth": client_auth}
    airflow = oauth(server, {"auth": "client_credentials", **more})
    with airflow.serving():
        client = RestApiHook("shop_api").client(SOURCE)
        ask(client)
        ask(client)
        client.close()
    (asked,) = server.asked
    wanted = {"grant_type": "client_credentials", "scope": "read", "audience": "https://api.example.com", "a": "&"}
    in_form = {"client_id": "client", "client_secret": SECRET} if client_auth == "body" else {}
    assert asked == {**wanted, **in_form}
    assert (server.uses, server.renewals) == (2, 1)
    assert {SECRET, quote(SECRET, safe=""), server.tokens[0]} <= masked(airflow)


def test_a_password_beside_the_client(server: LoginServer) -> None:
    """Some token URLs want one: it is told to Airflow, which masks it, and shown nowhere."""
    airflow = oauth(
        server, {"auth": "client_credentials", "token_parameters": {"username": "me", "password": "Ex7+ra"}}
    )
    with airflow.serving():
        client = RestApiHook("shop_api").client(SOURCE)
        ask(client)
        client.close()
    assert {"Ex7+ra", "Ex7%2Bra"} <= masked(airflow)
    assert "Ex7" not in repr(client)


def test_a_client_that_is_refused(server: LoginServer) -> None:
    """By the token endpoint: the error tells its registered code, and neither its words nor the secret."""
    airflow = oauth(server, {"auth": "client_credentials"})
    airflow.connections["shop_api"] = {**airflow.connections["shop_api"], "password": f"{SECRET}-old"}
    with airflow.serving(), pytest.raises(LoginError, match="invalid_client") as caught:
        ask(RestApiHook("shop_api").client(SOURCE))
    assert SECRET not in str(caught.value)
    assert "unknown client" not in str(caught.value)


def test_a_refresh_token_begins_once(server: LoginServer, dsn: str, connect: Connect) -> None:
    """The connection only seeds the tokens; they live in the store, and the next client goes on with them. A call
    without a store of its own finds the one of the usual name."""
    migrate(connect, [SOURCE])
    parts = conninfo_to_dict(dsn)
    renamed = {
        "host": parts["host"],
        "login": parts["user"],
        "password": parts.get("password"),
        "port": parts.get("port"),
    }
    seed = server.log_in()
    airflow = oauth(server, {"auth": "refresh_token", "refresh_token": seed})
    airflow.connections["extract_store"] = {"conn_type": "postgres", "schema": parts["dbname"], **renamed}
    with airflow.serving():
        for store in (connect, connect, None):
            client = RestApiHook("shop_api").client(SOURCE, store=store)
            ask(client)
            client.close()
    assert [asked["refresh_token"] for asked in server.asked] == [seed]
    assert (server.uses, server.renewals, server.revoked_uses) == (3, 1, [])
    assert {SECRET, *server.tokens[:2]} <= masked(airflow)
    with connect() as conn:
        assert conn.execute("select connection, number from extract.oauth_token").fetchall() == [("shop_api", 1)]


@pytest.mark.parametrize("headers", [{"X-Key": HEADER, "X-More": "m"}, json.dumps({"X-Key": HEADER, "X-More": "m"})])
@pytest.mark.parametrize("way", ["bearer", "none"])
def test_secret_headers(api: LoopbackApi, headers: Any, way: str) -> None:
    """Beside any login, as an object or as the text that a form holds; never shown."""
    airflow = ApiServer(
        connections={
            "shop_api": {
                "conn_type": "rest_api",
                "host": api.url,
                "password": SECRET,
                "extra": json.dumps({"auth": way, "headers": headers}),
            }
        }
    )
    with airflow.serving():
        RestApiHook("shop_api").client(SOURCE).fetch(SOURCE.object("things"), Request("/keyed"))
    sent = api.asked[0].headers
    assert (sent["X-Key"], sent["X-More"]) == (HEADER, "m")
    assert sent.get("Authorization") == (f"Bearer {SECRET}" if way == "bearer" else None)
    assert HEADER in masked(airflow)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("verify", "/etc/ca.pem", "/etc/ca.pem"),
        ("verify", " False ", False),
        ("verify", "true", True),
        ("verify", False, False),
        ("cert", "/client.pem", "/client.pem"),
        ("cert", ["/client.pem", "/client.key"], ("/client.pem", "/client.key")),
        ("proxies", " http://proxy:3128 ", {"http": "http://proxy:3128", "https": "http://proxy:3128"}),
        ("proxies", "proxy:3128", {"http": "proxy:3128", "https": "proxy:3128"}),
        ("proxies", {"https": "http://proxy:1", "no_proxy": "a,b"}, {"https": "http://proxy:1", "no_proxy": "a,b"}),
        ("proxies", {"https": ""}, {"https": ""}),
        ("trust_env", "false", False),
        ("trust_env", True, True),
        ("trust_env", "", None),
        ("verify", None, None),
    ],
)
def test_settings_of_the_network(name: str, value: Any, found: Any) -> None:
    """A form has texts only, JSON has no pairs; what is empty counts as not there."""
    assert login({name: value}).network.get(name) == found
    assert (name in login({name: value}).network) == (found is not None)


def test_the_connections_proxy_goes_before_the_environments(api: LoopbackApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real request through a real proxy, logged in to as its URL says. HTTP_PROXY of the worker does not count."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    url = api.url.replace("://", f"://me:{quote(PROXY, safe='')}@")
    known = {"conn_type": "rest_api", "host": "http://api.invalid", "password": SECRET}
    airflow = ApiServer(connections={"shop_api": {**known, "extra": json.dumps({"proxies": url})}})
    with airflow.serving():
        RestApiHook("shop_api").client(SOURCE).fetch(SOURCE.object("things"), Request("/keyed"))
    pair = base64.b64encode(f"me:{PROXY}".encode()).decode()
    assert (api.asked[0].headers["Host"], api.asked[0].headers["Proxy-Authorization"]) == (
        "api.invalid",
        f"Basic {pair}",
    )
    assert {PROXY, quote(PROXY, safe=""), pair} <= masked(airflow)


def test_bounds() -> None:
    """As numbers or their texts; what is empty is as usual."""
    given = {"connect_timeout": "1.5", "timeout": 2, "total_timeout": 3, "max_size": "0.5"}
    assert login(given).bounds == Bounds(1.5, 2.0, 3.0, 512 * 1024)
    assert login({"timeout": None, "max_size": ""}).bounds == Bounds() == Bounds(10.0, 60.0, 300.0, 100 * 2**20)


def test_a_bound_reaches_the_client(api: LoopbackApi) -> None:
    """An answer above `max_size` is refused; the error says which field to raise."""
    api.rows = [json.dumps({"id": "r", "text": "x" * 2000}).encode()]
    known = {"conn_type": "rest_api", "host": api.url, "password": SECRET, "extra": '{"max_size": 0.001}'}
    with ApiServer(connections={"shop_api": known}).serving(), pytest.raises(AnswerTooLargeError, match="`max_size`"):
        RestApiHook("shop_api").client(SOURCE).fetch(SOURCE.object("things"), Request("/keyed"))


@pytest.mark.parametrize(
    ("extra", "fields", "told"),
    [
        ({}, {"password": None}, "no password, where `bearer`"),
        ({"auth": "header"}, {}, "no `header_name`"),
        ({"auth": "header", "header_name": "X"}, {"password": None}, "no password, where `header`"),
        ({"auth": "parameter"}, {}, "no `parameter_name`"),
        ({"auth": "parameter", "parameter_name": " "}, {}, "no `parameter_name`"),
        ({"auth": "basic"}, {}, "no user name"),
        ({"auth": SECRET}, {}, "unknown `auth`"),
        ({"auth": [SECRET]}, {}, "unknown `auth`"),
        ({"auth": "client_credentials"}, {"login": None}, "no client id"),
        ({"auth": "client_credentials"}, {"login": "me"}, "no `token_url`"),
        ({"auth": "client_credentials", "token_url": "https://x"}, {"login": "me", "password": ""}, "no password"),
        ({**OAUTH, "token_url": f"login.example.com/{SECRET}"}, {"login": "me"}, "`token_url` that is none"),
        ({**OAUTH, "token_url": f"ftp://{SECRET}"}, {"login": "me"}, "`token_url` that is none"),
        ({**OAUTH, "token_url": f"https://me:{SECRET}@example.com"}, {"login": "me"}, "`token_url` that is none"),
        ({**OAUTH, "token_url": f"https://[{SECRET}"}, {"login": "me"}, "`token_url` that is none"),
        ({**OAUTH, "refresh_token": None}, {"login": "me"}, "no `refresh_token`"),
        ({**OAUTH, "refresh_token": {"a": SECRET}}, {"login": "me"}, "no `refresh_token`"),
        ({**OAUTH, "client_auth": SECRET}, {"login": "me"}, "unknown `client_auth`"),
        ({**OAUTH, "token_parameters": SECRET.replace("+", "")}, {"login": "me"}, "`token_parameters` that are none"),
        ({**OAUTH, "token_parameters": {"a": [SECRET]}}, {"login": "me"}, "`token_parameters` that are none"),
        ({"Authorization": f"Bearer {SECRET}"}, {}, "unknown fields in extra: Authorization"),
        ({"headers": SECRET}, {}, "`headers` that are no JSON object"),
        ({"headers": "[" * 100_000}, {}, "`headers` that are no JSON object"),
        ({"headers": {"X": 1, "Y": SECRET}}, {}, "`headers` that are no JSON object"),
        ({"headers": {"X": ""}}, {}, "`headers` that are no JSON object"),
        ({"headers": False}, {}, "`headers` that are no JSON object"),
        ({"verify": {"file": SECRET}}, {}, "wrong `verify`"),
        ({"verify": 1}, {}, "wrong `verify`"),
        ({"cert": [SECRET]}, {}, "wrong `cert`"),
        ({"cert": {"file": SECRET}}, {}, "wrong `cert`"),
        ({"trust_env": SECRET}, {}, "wrong `trust_env`"),
        ({"proxies": f"http://me:{SECRET}@:3128"}, {}, "wrong `proxies`"),
        ({"proxies": f"http://me:{SECRET}@proxy:port"}, {}, "wrong `proxies`"),
        ({"proxies": [SECRET]}, {}, "wrong `proxies`"),
        ({"proxies": {"https": 3128}}, {}, "wrong `proxies`"),
        ({"connect_timeout": -1}, {}, "`connect_timeout` that is no number above 0"),
        ({"timeout": SECRET}, {}, "`timeout` that is no number above 0"),
        ({"timeout": "nan"}, {}, "`timeout` that is no number above 0"),
        ({"total_timeout": 1e300}, {}, "`total_timeout` that is no number above 0, up to 86,400"),
        ({"total_timeout": 10**400}, {}, "`total_timeout` that is no number above 0"),
        ({"max_size": True}, {}, "`max_size` that is no number above 0, up to 65,536"),
        ({"max_size": {"MiB": SECRET}}, {}, "`max_size` that is no number above 0"),
        ({"test_path": f"https://{SECRET}"}, {}, "`test_path` that does not begin with a slash"),
        ({"test_path": [SECRET]}, {}, "`test_path` that does not begin with a slash"),
        (f'{{"auth": "{SECRET}', {}, "an extra that is no JSON object"),
        (f'["{SECRET}"]', {}, "an extra that is no JSON object"),
        ({}, {"host": None}, "no base URL"),
        ({}, {"host": f"https://me:{SECRET}@example.com"}, "login inside the base URL"),
        ({}, {"host": f"https://example.com/?key={SECRET}"}, "base URL that is none"),
        ({}, {"host": f"https://[{SECRET}"}, "base URL that is none"),
        ({}, {"host": f"https://example.com:{SECRET}"}, "base URL that is none"),
        ({}, {"host": "ftp://example.com"}, "base URL that is none"),
    ],
)
def test_what_a_connection_lacks(
    extra: Any, fields: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names connection and field, says what to enter, and never shows a value; nothing else is logged."""
    with pytest.raises(ConnectionMissingError) as caught:
        login(extra, **fields)
    message = str(caught.value)
    assert told in message
    assert "'shop_api'" in message
    assert caught.value.todo
    assert len(message.splitlines()) == 2
    assert [mark for mark in (SECRET, SEED) if mark in message + caplog.text] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: login({"headers": {"X-Key": HEADER}, "proxies": f"http://me:{SEED}@proxy:1"}),
        lambda: login({"auth": "basic"}, login="me"),
        lambda: login({"auth": "parameter", "parameter_name": "key"}),
        lambda: login(OAUTH, login="client"),
        lambda: login(OAUTH, login="client").seed,
        lambda: login({**OAUTH, "auth": "client_credentials"}, login="client"),
    ],
)
def test_a_login_is_not_shown(make: Callable[[], object]) -> None:
    """In a traceback or a debugger: its repr tells the address and the bounds, and no secret in any form."""
    forms = [form for mark in (SECRET, SEED, HEADER) for form in (mark, quote(mark, safe=""))]
    shown = repr(make()) + str(make())
    assert [form for form in [*forms, base64.b64encode(f"me:{SECRET}".encode()).decode()] if form in shown] == []
    assert "Login(base_url='https://api.example.com'" in shown or "Seed(connection_id='shop_api'" in shown


def test_what_is_secret(tmp_path: Path) -> None:
    """Whether it is used or not: a person may have entered it before choosing another way to log in."""
    given = {**OAUTH, "auth": "none", "headers": {"X": HEADER}, "verify": str(tmp_path)}
    assert {SECRET, quote(SECRET, safe=""), SEED, HEADER} <= set(login(given).secrets)
    # Without a password the user name is the key, as with Stripe.
    assert "sk_1" in login({"auth": "basic"}, login="sk_1", password=None).secrets
