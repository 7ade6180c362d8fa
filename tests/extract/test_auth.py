"""Logins over real HTTP: what is sent, what a token endpoint may answer, and what is never shown."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from airflow_extract_provider.extract.api.auth import (
    Auth,
    Signer,
    WithHeaders,
    basic_login,
    bearer_login,
    header_login,
    no_login,
    parameter_login,
)
from airflow_extract_provider.extract.api.endpoint import Denied, Grant, TokenEndpoint
from airflow_extract_provider.extract.api.oauth import ClientCredentials
from airflow_extract_provider.extract.errors import ApiUnavailableError, ExtractError, LoginError, QuotaSpentError
from airflow_extract_provider.testing.hostile_faults import Answer
from airflow_extract_provider.testing.login import LoginServer
from airflow_extract_provider.testing.postgres import free_port
from tests.loopback import LoopbackApi

SECRET = "s3cret+/ä="
TOKEN = "marked-token"
NEXT = "marked-token-2"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session as a connection has it."""
    with requests.Session() as found:
        yield found


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the pauses between the tries of a token endpoint away; they are noted here instead, in seconds."""
    noted: list[float] = []
    monkeypatch.setattr(TokenEndpoint, "_sleep", lambda endpoint, seconds: noted.append(seconds))
    return noted


@pytest.fixture
def server() -> Iterator[LoginServer]:
    """A token endpoint."""
    with LoginServer(client_secret=SECRET, lives=1000.0) as found:
        yield found


def sent(api: LoopbackApi, session: requests.Session, auth: Auth, query: str = "") -> Any:
    """A request as the API hears it."""
    with auth.admitted() as signer:
        session.get(f"{api.url}/keyed{query}", auth=signer)
    return api.asked[-1]


# --- Logins that stay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "header", "secrets"),
    [
        (no_login(), (None, None), ()),
        (bearer_login("t+1"), ("Authorization", "Bearer t+1"), ("t+1", "t%2B1")),
        (basic_login("me", "pw"), ("Authorization", "Basic bWU6cHc="), ("pw", "bWU6cHc=", "bWU6cHc%3D")),
        (basic_login("sk_1", ""), ("Authorization", "Basic c2tfMTo="), ("sk_1", "c2tfMTo=", "c2tfMTo%3D")),
        (header_login("X-Api-Key", "k/1"), ("X-Api-Key", "k/1"), ("k/1", "k%2F1", r"k\/1")),
    ],
)
def test_a_header(
    auth: Auth, header: tuple[str, str], secrets: tuple[str, ...], api: LoopbackApi, session: requests.Session
) -> None:
    """The login is in its header and nowhere else; its secrets are told in the forms in which they travel."""
    asked = sent(api, session, auth)
    assert asked.headers.get(header[0]) == header[1]
    assert ("Authorization" in asked.headers) == (header[0] == "Authorization")
    assert set(secrets) <= set(auth.secrets)
    assert (bool(secrets), list(auth.params), auth.refused()) == (bool(auth.secrets), [], False)


@pytest.mark.parametrize(
    "auth", [no_login(), bearer_login("t"), header_login("X-Key", "k"), parameter_login("key", "k")]
)
def test_a_netrc_file_does_not_replace_it(
    auth: Auth, api: LoopbackApi, session: requests.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests` takes a login from ~/.netrc for a request that has none."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password wrong")
    monkeypatch.setenv("NETRC", str(netrc))
    assert "Basic" not in sent(api, session, auth).headers.get("Authorization", "")


@given(query=st.lists(st.tuples(st.sampled_from(["a", "key", "k&y", "é"]), st.text(max_size=5)), max_size=4))
def test_a_query_parameter(query: list[tuple[str, str]]) -> None:
    """It is there once, whatever a link of the API repeats; all else stays as it is."""
    text = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in query)
    request = requests.Request("GET", f"http://api.example/x?{text}").prepare()
    before = parse_qsl(urlsplit(str(request.url)).query, keep_blank_values=True)
    Signer(params={"key": SECRET})(request)
    after = parse_qsl(urlsplit(str(request.url)).query, keep_blank_values=True)
    assert after == [*(pair for pair in before if pair[0] != "key"), ("key", SECRET)]


def test_a_query_parameter_travels(api: LoopbackApi, session: requests.Session) -> None:
    """The API hears it; its name is told, since links must not repeat it, and its forms in a URL are secrets."""
    auth = parameter_login("api key", SECRET)
    assert sent(api, session, auth, "?limit=3&api%20key=old").params == {"limit": "3", "api key": SECRET}
    assert list(auth.params) == ["api key"]
    assert {SECRET, quote(SECRET, safe=""), quote_plus(SECRET)} <= set(auth.secrets)


def test_headers_beside_any_login(api: LoopbackApi, session: requests.Session, server: LoginServer) -> None:
    """They are secrets, too. Of one name, the login's own wins."""
    more = {"X-Subscription": SECRET.replace("ä", "a"), "Authorization": "other"}
    endpoint = TokenEndpoint(session, server.url, "client", SECRET)
    for auth in (bearer_login("t"), parameter_login("key", "k"), ClientCredentials(endpoint)):
        both = WithHeaders(auth, more)
        asked = sent(api, session, both)
        assert asked.headers["X-Subscription"] == more["X-Subscription"]
        assert (asked.headers["Authorization"] == "other") == (list(auth.params) == ["key"])
        assert set(both.secrets) >= {*auth.secrets, *more.values()}
        assert list(both.params) == list(auth.params)


@pytest.mark.parametrize("auth", [basic_login("me", "pw-1"), parameter_login("k", "pw-1"), bearer_login("pw-1")])
def test_a_login_is_not_shown(auth: Auth) -> None:
    """Not by repr, and it cannot be pickled; nor can what signs."""
    with auth.admitted() as signer:
        for each in (auth, signer, WithHeaders(auth, {"X": "pw-1"})):
            assert "pw-1" not in repr(each)
            with pytest.raises(TypeError, match="is not pickled"):
                pickle.dumps(each)


# --- The token endpoint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["basic", "body", "public"])
def test_how_a_client_says_who_it_is(way: Any, session: requests.Session) -> None:
    """By a header whose parts are encoded as in a form, by two fields of the form, or, without a secret, by its id."""
    secret = None if way == "public" else SECRET
    with LoginServer(client_id="my client", client_secret=secret) as server:
        more: dict[str, Any] = {} if way == "public" else {"client_auth": way}
        endpoint = TokenEndpoint(
            session, server.url, "my client", secret, scope="a b", parameters={"audience": "x"}, **more
        )
        assert isinstance(endpoint.client_credentials(), Grant)
        (asked,) = server.asked
        assert (asked["grant_type"], asked["scope"], asked["audience"]) == ("client_credentials", "a b", "x")
        assert ("client_id" in asked, "client_secret" in asked) == (way != "basic", way == "body")
        pair = base64.b64encode(f"my+client:{quote_plus(SECRET)}".encode()).decode()
        assert (pair in endpoint.secrets, SECRET in endpoint.secrets) == (way != "public", way != "public")


def _answer(**fields: Any) -> Answer:
    found = {"access_token": TOKEN, "token_type": "bearer", **fields}
    return Answer(200, json.dumps({name: value for name, value in found.items() if value != "absent"}).encode())


@pytest.mark.parametrize(
    ("answer", "lives", "refresh"),
    [
        (_answer(), None, None),
        (_answer(expires_in=3600, refresh_token="r", token_type="Bearer"), 3600.0, "r"),
        (_answer(expires_in="3600", refresh_token=None, token_type="BEARER"), 3600.0, None),
        (_answer(expires_in=0, refresh_token=""), None, None),
        (_answer(expires_in=-1), None, None),
        (_answer(expires_in=True), None, None),
        (_answer(expires_in="soon"), None, None),
        (_answer(expires_in=float("inf")), None, None),
        (_answer(expires_in=10**400), None, None),
        (_answer(expires_in=10**12), 10 * 366 * 86_400.0, None),
        (_answer(expires_in=[1]), None, None),
        (_answer(token_type="absent", refresh_token="r"), None, "r"),
        (_answer(token_type=None), None, None),
        (_answer(token_type="bot", refresh_token="r"), None, "r"),
        (_answer(refresh_token="\ud800"), None, None),
    ],
)
def test_grants(
    answer: Answer, lives: float | None, refresh: str | None, server: LoginServer, session: requests.Session
) -> None:
    """A life that is none counts as not told, a token of no type (LinkedIn) or of a bot (Slack) as a bearer's, and a
    refresh token that cannot be sent as none."""
    server.fault = lambda number, fields: answer
    found = TokenEndpoint(session, server.url, "client", SECRET).client_credentials()
    assert found == Grant(TOKEN, lives, refresh)
    assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    ("answer", "told", "refresh"),
    [
        (_answer(token_type="mac"), "`token_type` that is not `bearer`", None),
        (_answer(token_type=7, refresh_token=NEXT), "`token_type` that is not `bearer`", NEXT),
        (_answer(access_token="absent", refresh_token=NEXT), "no `access_token`", NEXT),
        (_answer(access_token=7), "no `access_token`", None),
        (_answer(access_token=f"{TOKEN}\r\nX: 1", refresh_token=NEXT), "no header can carry", NEXT),
        (Answer(200, f"<html>{TOKEN}</html>".encode()), "no `access_token`", None),
        (Answer(200, b""), "no `access_token`", None),
        (Answer(200, f'["{TOKEN}"]'.encode()), "no `access_token`", None),
        (Answer(200, b"[" * 100_000), "no `access_token`", None),
        (Answer(200, TOKEN.encode(), sent="endlessly", size=3 << 20), "more than 1,048,576 bytes", None),
    ],
)
def test_what_is_no_answer(
    answer: Answer,
    told: str,
    refresh: str | None,
    server: LoginServer,
    session: requests.Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A named error that quotes nothing; the refresh token may be spent, and the next one, if there is one, is kept."""
    server.fault = lambda number, fields: answer
    found = TokenEndpoint(session, server.url, "client", SECRET).refresh(TOKEN)
    assert isinstance(found, Denied)
    assert (type(found.error), found.spent, found.refresh) == (LoginError, True, refresh)
    assert told in found.error.what
    assert NEXT not in repr(found)
    _assert_clean(found.error, caplog)


@pytest.mark.parametrize(
    ("status", "error", "told", "lost"),
    [
        (400, "invalid_grant", "(invalid_grant)", True),
        (200, "bad_refresh_token", "(invalid_grant)", True),
        (401, "invalid_client", "(invalid_client)", False),
        (400, "unauthorized_client", "(unauthorized_client)", False),
        (400, "unsupported_grant_type", "(unsupported_grant_type)", False),
        (400, "invalid_scope", "(invalid_scope)", False),
        (400, "invalid_request", "(invalid_request)", False),
        (400, TOKEN, "(status 400)", False),
        (200, TOKEN, "an error of its own", False),
        (403, None, "(status 403)", False),
        (302, None, "(status 302)", False),
        (501, None, "(status 501)", False),
    ],
)
def test_refusals(
    status: int,
    error: str | None,
    told: str,
    lost: bool,
    server: LoginServer,
    session: requests.Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The registered code is shown and nothing else; a redirect is not followed. One code alone is a loss."""
    body = {"error": error, "error_description": TOKEN} if error else {"error_description": TOKEN}
    headers = {"Location": f"{server.url}?{TOKEN}"}
    server.fault = lambda number, fields: Answer(status, json.dumps(body).encode(), headers)
    found = TokenEndpoint(session, server.url, "client", SECRET).refresh(TOKEN)
    assert isinstance(found, Denied)
    assert (type(found.error), found.lost, found.again, found.spent) == (LoginError, lost, False, False)
    assert told in found.error.what
    assert found.error.todo
    assert len(server.asked) == 1
    _assert_clean(found.error, caplog)


def test_it_is_asked_again(server: LoginServer, session: requests.Session, pauses: list[float]) -> None:
    """After a break, a 5xx and a 429, with the pause that it asks for."""
    answers = [
        Answer(503, b"", {"Retry-After": "7"}),
        Answer(200, b"", sent="reset"),
        Answer(429, b"", {"Retry-After": "60"}),
    ]
    server.fault = lambda number, fields: answers[number - 1] if number <= 3 else None
    endpoint = TokenEndpoint(session, server.url, "client", SECRET)
    assert isinstance(endpoint.client_credentials(), Grant)
    assert (pauses[0], pauses[2]) == (7.0, 60.0)
    assert 0 < pauses[1] < 5


@pytest.mark.parametrize(
    ("answer", "heard"), [(Answer(503, b""), True), (Answer(200, b"", sent="reset"), True), (Answer(429, b""), False)]
)
def test_it_does_not_answer(
    answer: Answer,
    heard: bool,
    server: LoginServer,
    session: requests.Session,
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After the tries an error that says so. Where no try was heard, nothing was spent by them."""
    server.fault = lambda number, fields: answer
    endpoint = TokenEndpoint(session, server.url, "client", SECRET, tries=3)
    _unavailable(endpoint, heard, caplog)
    assert len(server.asked) == 3
    server.fault = lambda number, fields: answer if number == 4 else None
    found = endpoint.refresh(TOKEN)
    assert isinstance(found, Denied)
    assert (found.lost, found.again, found.pause) == (True, heard, None)


def test_nobody_listens(session: requests.Session, pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """What has not gone out has spent nothing."""
    endpoint = TokenEndpoint(session, f"http://127.0.0.1:{free_port()}/{TOKEN}", "client", SECRET, tries=2)
    _unavailable(endpoint, False, caplog)


def _unavailable(endpoint: TokenEndpoint, heard: bool, caplog: pytest.LogCaptureFixture) -> None:
    found = endpoint.refresh(TOKEN)
    assert isinstance(found, Denied)
    assert isinstance(found.error, ApiUnavailableError)
    assert (found.spent, found.lost, found.pause) == (heard, False, 30.0)
    _assert_clean(found.error, caplog)


@pytest.mark.parametrize(("status", "heard"), [(429, False), (503, True)])
def test_it_asks_for_a_long_pause(
    status: int, heard: bool, server: LoginServer, session: requests.Session, pauses: list[float]
) -> None:
    """It is not shortened, and not waited for in the slot: the error tells until when to leave it alone."""
    server.fault = lambda number, fields: Answer(status, b"", {"Retry-After": "3600"})
    endpoint = TokenEndpoint(session, server.url, "client", SECRET, connection_id="shop")
    found = endpoint.refresh(TOKEN)
    assert isinstance(found, Denied)
    assert isinstance(found.error, QuotaSpentError)
    assert (found.spent, found.pause, pauses, len(server.asked)) == (heard, 3600.0, [], 1)
    until = found.error.until
    assert until is not None
    assert timedelta(minutes=59) < until - datetime.now(timezone.utc) <= timedelta(hours=1)
    assert f"of the connection 'shop' gives no token before {until:%Y-%m-%d %H:%M:%S} UTC" in found.error.what
    with pytest.raises(QuotaSpentError), ClientCredentials(endpoint).admitted():
        pass


@pytest.mark.parametrize(
    "answer", [Answer(401, b'{"error": "invalid_client"}'), Answer(403, b""), Answer(200, b"{}"), Answer(503, b"")]
)
def test_the_connection_is_named(
    answer: Answer, server: LoginServer, session: requests.Session, pauses: list[float]
) -> None:
    """Whatever the token endpoint says: of a source's connections it may be any."""
    server.fault = lambda number, fields: answer
    found = TokenEndpoint(session, server.url, "client", SECRET, tries=1, connection_id="shop").refresh(TOKEN)
    assert isinstance(found, Denied)
    assert found.error.what.startswith("the token endpoint of the connection 'shop' ")


def test_a_process_that_was_held_up_asks_no_more(
    server: LoginServer, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two tries for longer than all of them may take: somebody else may have spent the token."""
    now = [0.0]
    monkeypatch.setattr("airflow_extract_provider.extract.api.endpoint.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(TokenEndpoint, "_sleep", lambda endpoint, seconds: now.__setitem__(0, now[0] + 500))
    server.fault = lambda number, fields: Answer(503, b"")
    found = TokenEndpoint(session, server.url, "client", SECRET).refresh(TOKEN)
    assert isinstance(found, Denied)
    assert "held up, after 1 tries" in found.error.what
    assert found.spent
    assert len(server.asked) == 1


def test_a_run_that_has_ended_asks_no_more(server: LoginServer, session: requests.Session) -> None:
    """It is stopped while it waits until it may ask again: it does not wait for that, and leaves the token alone."""
    endpoint = TokenEndpoint(session, server.url, "client", SECRET)

    def fault(number: int, fields: Any) -> Answer:
        endpoint.end()
        return Answer(429, b"", {"Retry-After": "50"})

    server.fault = fault
    found = endpoint.refresh(TOKEN)
    assert isinstance(found, Denied)
    assert "this run has ended, after 1 tries" in found.error.what
    assert (found.spent, len(server.asked)) == (False, 1)


def _assert_clean(exc: ExtractError, caplog: pytest.LogCaptureFixture) -> None:
    """No mark, and no library's own error behind it."""
    shown = [str(exc), repr(exc), str(pickle.dumps(exc)), caplog.text, "".join(traceback.format_exception(exc))]
    assert [text for text in shown if TOKEN in text or "s3cret" in text] == []
    assert exc.__cause__ is None


# --- Client credentials -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which tokens run out, in seconds."""
    now = [0.0]
    monkeypatch.setattr("airflow_extract_provider.extract.api.oauth.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def get(session: requests.Session, server: LoginServer) -> Callable[[Auth], int]:
    """The status of a request to the API behind the token endpoint."""

    def get(auth: Auth) -> int:
        with auth.admitted() as signer:
            return session.get(server.api_url, auth=signer).status_code

    return get


@pytest.mark.parametrize(("lives", "margin"), [(1000.0, 60.0), (100.0, 10.0), (None, None)])
def test_a_token_is_renewed_in_time(
    lives: float | None,
    margin: float | None,
    server: LoginServer,
    session: requests.Session,
    clock: list[float],
    get: Callable[[Auth], int],
) -> None:
    """A minute before its end, or a tenth of its life; one whose life is not told is used until it is refused."""
    server.lives = lives
    auth = ClientCredentials(TokenEndpoint(session, server.url, "client", SECRET))
    assert server.asked == []
    assert get(auth) == 200
    clock[0] += 10_000.0 if lives is None or margin is None else lives - margin - 0.01
    assert get(auth) == 200
    assert server.renewals == 1
    clock[0] += 0.02
    assert get(auth) == 200
    assert server.renewals == (1 if lives is None else 2)


def test_a_token_that_is_refused(
    server: LoginServer, session: requests.Session, get: Callable[[Auth], int], caplog: pytest.LogCaptureFixture
) -> None:
    """It is renewed once. One that is refused as soon as it was made is not: another would not be better."""
    noted: list[str] = []
    caplog.set_level(logging.DEBUG, "airflow_extract_provider")
    auth = ClientCredentials(TokenEndpoint(session, server.url, "client", SECRET), noted.append)
    assert get(auth) == 200
    server.revoke_access()
    assert (get(auth), auth.refused()) == (401, True)
    assert get(auth) == 200
    server.revoke_access()
    server.before_sending = lambda number: server.revoke_access()
    assert (get(auth), auth.refused()) == (401, True)
    assert (get(auth), auth.refused()) == (401, False)
    assert server.renewals == 3
    assert set(server.tokens) <= set(auth.secrets) == set(noted)
    assert [token for token in server.tokens if token in caplog.text + repr(auth)] == []


def test_a_client_that_is_refused(server: LoginServer, session: requests.Session, get: Callable[[Auth], int]) -> None:
    """The error says what to correct."""
    auth = ClientCredentials(TokenEndpoint(session, server.url, "client", "wrong"))
    with pytest.raises(LoginError, match=r"refuses the login \(invalid_client\)"):
        get(auth)
