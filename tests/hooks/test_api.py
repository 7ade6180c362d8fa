"""The REST API connection: what it sends, what it refuses, what it never shows."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection
from urllib3.exceptions import InsecureRequestWarning

from airflow_extract_provider.extract.errors import ApiUnavailableError, BackfillFirstError, ConnectionMissingError
from airflow_extract_provider.extract.page import Page, Request
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.hooks.api import RestApiHook
from airflow_extract_provider.testing.hostile import HostileApi
from airflow_extract_provider.testing.login import LoginServer
from tests.extract.scene import KEYED
from tests.faults.certificates import Authority
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
        ({"auth": "parameter", "parameter_name": "key"}, {}, "Authorization", None),
        ({"auth": "none"}, {"password": None}, "Authorization", None),
    ],
)
def test_each_way_to_log_in(
    api: LoopbackApi, extra: dict[str, str], fields: dict[str, Any], header: str, value: str | None
) -> None:
    """The secret travels in the header or parameter that was chosen, the source's own headers beside it."""
    with server(api, extra, **fields).serving():
        reply = RestApiHook("shop_api").client(SOURCE).fetch(THINGS, Request("/keyed"))
    assert isinstance(reply, Page)
    (asked,) = api.asked
    assert asked.headers.get(header) == value
    assert asked.headers["Shop-Version"] == "7"
    assert asked.params == ({"key": SECRET} if extra.get("auth") == "parameter" else {})


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


def test_a_wrong_field_is_told_before_anything_is_asked(api: LoopbackApi) -> None:
    """Whichever way the connection is used."""
    with server(api, {"timeout": SECRET}).serving():
        hook = RestApiHook("shop_api")
        for use in (lambda: hook.client(SOURCE), hook.get_conn, lambda: next(hook.pages(THINGS))):
            with pytest.raises(ConnectionMissingError, match="`timeout`"):
                use()
        good, told = hook.test_connection()
    assert (good, "`timeout`" in told, SECRET in told) == (False, True, False)
    assert api.asked == []


def test_no_session_of_ones_own_by_a_refresh_token(api: LoopbackApi) -> None:
    """It could not keep others from renewing until the answer is there: the error names what can. Nothing is spent."""
    extra = {"auth": "refresh_token", "refresh_token": "seed", "token_url": f"{api.url}/token"}
    with server(api, extra, login="me").serving():
        hook = RestApiHook("shop_api")
        for use in (hook.get_conn, lambda: hook.run("/keyed")):
            with pytest.raises(ConnectionMissingError, match="`refresh_token`") as caught:
                use()
            assert "RestApiHook('shop_api').client(source)" in caught.value.todo
    assert api.asked == []


def test_a_connection_that_is_given_is_not_looked_up(api: LoopbackApi) -> None:
    """Where Airflow cannot be asked; it does not travel in a pickle."""
    given = Connection(conn_id="shop_api", conn_type="rest_api", host=api.url, password=SECRET)
    hook = RestApiHook("shop_api", connection=given)
    with closing(hook.client(SOURCE)) as client:
        assert isinstance(client.fetch(THINGS, Request("/keyed")), Page)
    assert SECRET.encode() not in pickle.dumps(hook)
    with ApiServer().serving(), pytest.raises(ConnectionMissingError):
        pickle.loads(pickle.dumps(hook)).client(SOURCE)


@pytest.mark.parametrize("tries", [1, 2])
def test_how_often_it_is_tried(api: LoopbackApi, tries: int) -> None:
    """A person who waits wants to know sooner."""
    api.fault = lambda number, asked: Fault(503)
    with server(api).serving():
        client = RestApiHook("shop_api").client(SOURCE, tries=tries)
    with closing(client), pytest.raises(ApiUnavailableError):
        client.fetch(THINGS, Request("/keyed"))
    assert len(api.asked) == tries


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


def test_a_session_of_ones_own_carries_the_login_nowhere_else(api: LoopbackApi) -> None:
    """Its redirects are given back, and no cookie that an answer sets goes along afterwards."""
    with LoopbackApi() as elsewhere:
        headers = {"Location": f"{elsewhere.url}/keyed", "Set-Cookie": "session=anonymous"}
        api.fault = lambda number, asked: Fault(302, b"", headers)
        with server(api, {"headers": {"X-Second": SECRET}}).serving():
            session = RestApiHook("shop_api").get_conn()
            statuses = [session.get(f"{api.url}/keyed", timeout=5).status_code for _ in range(2)]
            session.close()
    assert statuses == [302, 302]
    assert elsewhere.asked == []
    assert [asked.headers.get("Cookie") for asked in api.asked] == [None, None]


def test_an_error_page_sets_no_cookie(api: LoopbackApi) -> None:
    """With the cookie of a page to sign in, the next request would be somebody else's."""
    api.fault = lambda number, asked: Fault(503, b"", {"Set-Cookie": "session=anonymous"}) if number == 1 else None
    with server(api).serving():
        RestApiHook("shop_api").client(SOURCE).fetch(THINGS, Request("/keyed"))
    assert [asked.headers.get("Cookie") for asked in api.asked] == [None, None]


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
        (200, "", True, "Status 200 for the base URL."),
        (404, "", True, "enter a path to test with"),
        (404, "/v1/account", False, "Status 404 for /v1/account."),
        (401, "/v1/account", False, "refuses the login (status 401 for /v1/account)."),
        (403, "", False, "refuses the login"),
        (301, "", False, "redirects the base URL (status 301) to another path: enter the address"),
        (500, "", False, "Status 500"),
        (200, f"/v1/account?key={SECRET}", True, "Status 200 for /v1/account."),
    ],
)
def test_the_test_button(api: LoopbackApi, status: int, test_path: str, good: bool, told: str) -> None:
    """One real request, and words about what came of it: the API's own, too, without what is secret."""
    api.fault = lambda number, asked: Fault(status, f"key {SECRET} is odd".encode(), {"Location": f"/{SECRET}"})
    with server(api, {"test_path": test_path}).serving():
        verdict = RestApiHook("shop_api").test_connection()
    assert verdict[0] is good
    assert told in verdict[1]
    assert ('The API says: "key *** is odd"' in verdict[1]) is not good
    assert SECRET not in verdict[1]
    assert [asked.path for asked in api.asked] == [test_path.partition("?")[0] or "/"]


@pytest.mark.parametrize(("test_path", "good"), [("", True), ("/v1/account", False)])
def test_the_test_button_and_a_page_to_sign_in(api: LoopbackApi, test_path: str, good: bool) -> None:
    """Status 200 proves no login where HTML comes with it. A base URL may well have a page for people."""
    api.fault = lambda number, asked: Fault(200, b"\n<!doctype html><title>Sign in</title>")
    with server(api, {"test_path": test_path}).serving():
        verdict = RestApiHook("shop_api").test_connection()
    assert verdict[0] is good
    assert ("enter a path to test with" if good else 'HTML or XML, not JSON. The API says: "<!doctype') in verdict[1]


def test_the_test_button_tells_where_a_redirect_leads(api: LoopbackApi) -> None:
    """To the host that a person has to enter; not its path, which may hold a token of one use."""
    api.fault = lambda number, asked: Fault(308, b"", {"Location": "https://www.example.com/in?once=9876"})
    with server(api).serving():
        good, told = RestApiHook("shop_api").test_connection()
    assert not good
    assert told == (
        "The API redirects the base URL (status 308) to another path of https://www.example.com: "
        "enter the address it redirects to."
    )


def test_the_test_button_without_an_answer(api: LoopbackApi) -> None:
    """Nobody there, no such name, or nothing to test with: told in words too."""
    with server(api, host="http://127.0.0.1:1").serving():
        assert RestApiHook("shop_api").test_connection() == (False, "No answer: the connection is refused.")
    with server(api, host="https://api.invalid").serving():
        assert RestApiHook("shop_api").test_connection() == (False, "No answer: the host's name cannot be resolved.")
    with server(api, password=None).serving():
        good, told = RestApiHook("shop_api").test_connection()
    assert not good
    assert "no password" in told


def test_the_test_button_and_a_certificate_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not trusted until the connection names the authority's file. What the worker's environment says does not count
    then; and where nobody is to be checked, nobody is."""
    authority = Authority(tmp_path)
    (tmp_path / "others").mkdir()
    other = Authority(tmp_path / "others")
    with HostileApi(listings={"/things": KINDS["page updated"].served()}, tls=authority.server()) as hostile:

        def tested(**extra: str) -> tuple[bool, str]:
            known = {"conn_type": "rest_api", "host": hostile.url, "password": SECRET}
            extra = {"test_path": "/things", **extra}
            with ApiServer(connections={"shop_api": {**known, "extra": json.dumps(extra)}}).serving():
                return RestApiHook("shop_api").test_connection()

        good, told = tested()
        assert not good
        assert told.startswith("the certificate that the API shows is signed by an authority that is not trusted here.")
        assert "`verify`" in told
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.file))
        assert tested()[0] is False
        assert tested(verify=str(authority.file)) == (True, "Status 200 for /things.")
        with pytest.warns(InsecureRequestWarning):
            assert tested(verify="false") == (True, "Status 200 for /things.")
        good, told = tested(verify=str(tmp_path / "none.pem"))
        assert (good, "`verify`" in told) == (False, True)


@pytest.mark.parametrize(("status", "good"), [(401, True), (200, True), (302, False), (503, False)])
def test_the_test_button_spends_no_refresh_token(api: LoopbackApi, status: int, good: bool) -> None:
    """It can be used once, and Airflow tests under another connection's name: neither the token endpoint nor the store
    is asked. What is tested is the address, with the secret headers beside the login."""
    api.fault = lambda number, asked: Fault(status, SECRET.encode(), {"Location": "/x"})
    tokens = {"auth": "refresh_token", "token_url": f"{api.url}/token", "refresh_token": SECRET}
    with server(api, {**tokens, "headers": {"X-Key": "k"}}, login="client").serving() as airflow:
        verdict = RestApiHook("shop_api").test_connection()
    assert verdict[0] is good
    assert ("would spend it" in verdict[1]) is (status != 302)
    assert "refuses the login" not in verdict[1]
    assert SECRET not in verdict[1]
    (asked,) = api.asked
    assert (asked.path, asked.headers["X-Key"], asked.headers.get("Authorization")) == ("/", "k", None)
    assert [msg.conn_id for msg in airflow.of("GetConnection")] == ["shop_api"]


def test_the_test_button_tries_client_credentials() -> None:
    """They spend nothing: the token endpoint's no is told, and its yes is not enough."""
    with LoginServer(client_secret=SECRET) as login:
        tokens = {"auth": "client_credentials", "token_url": login.url, "test_path": "/things"}
        known = {"conn_type": "rest_api", "host": login.api_url, "login": "client", "extra": json.dumps(tokens)}
        for password, good, told in ((SECRET, True, "Status 200 for /things."), ("old", False, "invalid_client")):
            with ApiServer(connections={"shop_api": {**known, "password": password}}).serving():
                verdict = RestApiHook("shop_api").test_connection()
            assert (verdict[0], told in verdict[1]) == (good, True)
    assert (login.uses, login.renewals) == (1, 1)
