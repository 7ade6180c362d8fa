"""The REST API connection: what it sends, what it refuses, what it never shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import BackfillFirstError, ConnectionMissingError
from airflow_extract_provider.extract.page import Page, Request
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.hooks.api import RestApiHook
from airflow_extract_provider.testing.hostile import HostileApi
from tests.extract.scene import KEYED
from tests.hazards.kinds import KINDS
from tests.loopback import Fault, LoopbackApi
from tests.taskrun import ApiServer

SECRET = "marked-secret-4711"
SOURCE = parse_source(
    {
        "source": "shop",
        "connection": "shop_api",
        "headers": {"Shop-Version": "7"},
        "objects": {"things": KEYED},
    },
    "shop.yaml",
)
THINGS = SOURCE.object("things")


def server(api: LoopbackApi, extra: Mapping[str, Any] | None = None, **fields: Any) -> ApiServer:
    """An API server that knows the connection `shop_api`; by default with a token."""
    known = {"conn_type": "rest_api", "host": api.url, "password": SECRET, "extra": json.dumps(extra or {})}
    return ApiServer(connections={"shop_api": {**known, **fields}})


@pytest.mark.parametrize(
    ("extra", "fields", "header", "value"),
    [
        ({}, {}, "Authorization", f"Bearer {SECRET}"),
        ({"auth": "bearer"}, {"login": "ignored"}, "Authorization", f"Bearer {SECRET}"),
        ({"auth": "basic"}, {"login": "me"}, "Authorization", "Basic bWU6bWFya2VkLXNlY3JldC00NzEx"),
        ({"auth": "basic"}, {"login": "sk_1", "password": None}, "Authorization", "Basic c2tfMTo="),
        ({"auth": "header", "header_name": "X-Api-Key"}, {}, "X-Api-Key", SECRET),
        ({"auth": "none"}, {"password": None}, "Authorization", None),
    ],
)
def test_each_way_to_log_in(
    api: LoopbackApi, extra: dict[str, str], fields: dict[str, Any], header: str, value: str | None
) -> None:
    """The secret travels in the header that was chosen, the source's own headers beside it."""
    with server(api, extra, **fields).serving():
        reply = RestApiHook("shop_api").client(SOURCE).fetch(THINGS, Request("/keyed"))
    assert isinstance(reply, Page)
    (asked,) = api.asked
    assert asked.headers.get(header) == value
    assert asked.headers["Shop-Version"] == "7"


def test_no_field_of_the_connection_becomes_a_header(api: LoopbackApi) -> None:
    """The HTTP connection type sends each unknown extra, the secrets among them, as a header."""
    extra = {"auth": "none", "header_name": "X-Unused", "connect_timeout": 5, "timeout": "7.5", "test_path": "/tokens"}
    with server(api, extra).serving():
        RestApiHook("shop_api").client(SOURCE).fetch(THINGS, Request("/keyed"))
    sent = {name.lower() for name in api.asked[0].headers}
    assert sent == {"host", "user-agent", "accept-encoding", "accept", "cache-control", "connection", "shop-version"}


def test_a_netrc_file_does_not_replace_the_login(
    api: LoopbackApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests` prefers ~/.netrc to a session's own Authorization header."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password wrong")
    monkeypatch.setenv("NETRC", str(netrc))
    with server(api).serving():
        RestApiHook("shop_api").client(SOURCE).fetch(THINGS, Request("/keyed"))
    with server(api, {"auth": "none"}).serving():
        RestApiHook("shop_api").client(SOURCE).fetch(THINGS, Request("/keyed"))
    assert [asked.headers.get("Authorization") for asked in api.asked] == [f"Bearer {SECRET}", None]


@pytest.mark.parametrize(
    ("extra", "fields", "told"),
    [
        ({}, {"password": None}, "no password"),
        ({"auth": "header"}, {}, "header_name"),
        ({"auth": "basic"}, {}, "no user name"),
        ({"auth": SECRET}, {}, "unknown `auth`"),
        ({"Authorization": f"Bearer {SECRET}"}, {}, "unknown fields in extra: Authorization"),
        ({"timeout": f"{SECRET}"}, {}, "timeout"),
        ({"connect_timeout": -1}, {}, "connect_timeout"),
        ({"test_path": f"https://{SECRET}"}, {}, "test_path"),
        ({}, {"host": None}, "no base URL"),
        ({}, {"host": f"https://me:{SECRET}@example.com"}, "login inside the base URL"),
        ({}, {"host": f"https://example.com/?key={SECRET}"}, "base URL that is none"),
        ({}, {"host": "ftp://example.com"}, "base URL that is none"),
    ],
)
def test_what_a_connection_lacks(api: LoopbackApi, extra: dict[str, Any], fields: dict[str, Any], told: str) -> None:
    """The error names connection and field, and never a value."""
    with server(api, extra, **fields).serving(), pytest.raises(ConnectionMissingError) as caught:
        RestApiHook("shop_api").client(SOURCE)
    assert told in str(caught.value)
    assert "shop_api" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert api.asked == []


def test_a_missing_connection_tells_how_to_make_it() -> None:
    """The message holds the command."""
    with (
        ApiServer().serving(),
        pytest.raises(ConnectionMissingError, match="airflow connections add shop_api --conn-type"),
    ):
        RestApiHook("shop_api").client(SOURCE)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "api.example.com"}, "https://api.example.com"),
        ({"host": "api.example.com", "schema": "http", "port": 8080}, "http://api.example.com:8080"),
        ({"host": "https://api.example.com/v2/"}, "https://api.example.com/v2"),
    ],
)
def test_the_base_url(api: LoopbackApi, fields: dict[str, Any], url: str) -> None:
    """Without a scheme it is https: the parent's http would send the secret in the open."""
    with server(api, **fields).serving():
        hook = RestApiHook("shop_api")
        hook.get_conn()
    assert hook.base_url == url


def test_network_settings_reach_the_session(api: LoopbackApi) -> None:
    """A certificate authority and a proxy of one's own, as with the HTTP connection type."""
    extra = {"verify": "/etc/ca.pem", "proxies": {"https": "http://proxy:3128"}, "trust_env": False}
    with server(api, extra).serving():
        session = RestApiHook("shop_api").get_conn({"X-Mine": "1"})
    assert (session.verify, session.proxies, session.trust_env) == (
        "/etc/ca.pem",
        {"https": "http://proxy:3128"},
        False,
    )
    assert session.headers["X-Mine"] == "1"


def test_the_parents_run_works_and_follows_no_redirect(api: LoopbackApi) -> None:
    """Calls of one's own go out with the login; a redirect, which could carry it elsewhere, is given back."""
    api.fault = lambda number, asked: Fault(302, b"", {"Location": "http://example.invalid/"})
    with server(api).serving():
        response = RestApiHook("shop_api").run("/keyed")
    assert response.status_code == 302
    assert api.asked[0].headers["Authorization"] == f"Bearer {SECRET}"


def test_pages_go_on_from_a_position(api: LoopbackApi) -> None:
    """Each step holds the position after it; given back, the rest comes."""
    api.rows = [json.dumps({"id": f"r{number:02}"}).encode() for number in range(25)]
    with server(api).serving():
        hook = RestApiHook("shop_api")
        first = next(hook.pages(THINGS))
        rest = list(hook.pages(THINGS, first.position, headers={"Shop-Version": "8"}))
    keys = [record.key for step in (first, *rest) for record in step.records]
    assert sorted(set(keys)) == [f"r{number:02}" for number in range(25)]
    assert rest[-1].position.complete
    assert api.asked[-1].headers["Shop-Version"] == "8"


def test_pages_bring_what_has_changed_since() -> None:
    """The last position of a reading is where the changes begin; without one there is no telling since when."""
    kind = KINDS["page updated"]
    things = parse_source(
        {"source": "shop", "connection": "shop_api", "objects": {"things": kind.described()}}, "x.yaml"
    )
    with HostileApi(listings={"/things": kind.served()}) as hostile:
        hostile.insert(25)
        hostile.clock.advance(5)
        known = {"conn_type": "rest_api", "host": hostile.url, "password": SECRET}
        with ApiServer(connections={"shop_api": known}).serving():
            hook, found = RestApiHook("shop_api"), things.object("things")
            with pytest.raises(BackfillFirstError):
                next(hook.pages(found, walk="incremental"))
            *_, last = hook.pages(found)
            hostile.update(7)
            hostile.insert()
            changed = list(hook.pages(found, last.position, walk="incremental"))
    assert {record.key for step in changed for record in step.records} == {"7", "26"}
    assert changed[-1].position.complete


@pytest.mark.parametrize(
    ("status", "test_path", "good", "told"),
    [
        (200, "", True, "Status 200 for the base URL"),
        (404, "", True, "enter a path to test with"),
        (404, "/v1/account", False, "Status 404 for /v1/account"),
        (401, "/v1/account", False, "refuses the login"),
        (301, "", False, "redirects"),
        (500, "", False, "Status 500"),
    ],
)
def test_the_test_button(api: LoopbackApi, status: int, test_path: str, good: bool, told: str) -> None:
    """One real request, and words about what came of it."""
    api.fault = lambda number, asked: Fault(status, SECRET.encode(), {"Location": f"/{SECRET}"})
    with server(api, {"test_path": test_path}).serving():
        verdict = RestApiHook("shop_api").test_connection()
    assert verdict[0] is good
    assert told in verdict[1]
    assert SECRET not in verdict[1]
    assert [asked.path for asked in api.asked] == [test_path or "/"]


def test_the_test_button_without_an_answer(api: LoopbackApi) -> None:
    """Nobody there, or nothing to test with: told in words too."""
    with server(api, host="http://127.0.0.1:1").serving():
        assert RestApiHook("shop_api").test_connection() == (False, "No answer: the connection is refused.")
    with server(api, password=None).serving():
        good, told = RestApiHook("shop_api").test_connection()
    assert not good
    assert "no password" in told
