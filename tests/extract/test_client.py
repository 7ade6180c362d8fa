"""The client over real HTTP: searches by POST, links, reads by key; and nothing of them in a message or log."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.templates import by_key_request, request
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    BadRecordError,
    ExtractError,
    LoginError,
    QuotaSpentError,
    RequestRefusedError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.page import Halted, Page, Refused, Request
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source

LOGIN = "s3cret-login"
EMPTY = b'{"data": [], "next": null}'


@dataclass
class Heard:
    """A request as it came in, to the letter."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Listener:
    """A server that writes down what it hears. ``answer`` (number from 1, heard) gives status, headers and body."""

    url: str = ""
    heard: list[Heard] = field(default_factory=list)
    answer: Callable[[int, Heard], tuple[int, Mapping[str, str], bytes]] = lambda number, heard: (200, {}, EMPTY)


@contextmanager
def listening() -> Iterator[Listener]:
    """A listener on a port of its own."""
    listener = Listener()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            listener.heard.append(Heard(self.command, self.path, dict(self.headers.items()), body))
            status, headers, answer = listener.answer(len(listener.heard), listener.heard[-1])
            # Not the library's own Date beside one that is ordered.
            (self.send_response_only if "Date" in headers else self.send_response)(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    listener.url = f"http://127.0.0.1:{server.server_port}"
    yield listener
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """The API."""
    with listening() as found:
        yield found


@pytest.fixture
def elsewhere() -> Iterator[Listener]:
    """A server that is not the API."""
    with listening() as found:
        yield found


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session with a login."""
    with requests.Session() as found:
        found.headers["Authorization"] = f"Bearer {LOGIN}"
        yield found


def made(headers: Mapping[str, str] | None = None, **spec: Any) -> Source:
    """A source with one object."""
    usual = {"path": "/things", "records": "data", "key": "id", "pages": {"by": "link_header"}}
    objects = {"things": {**usual, **spec}}
    return parse_source({"source": "crm", "connection": "c", "headers": headers or {}, "objects": objects}, "test")


def fetched(
    url: str, session: requests.Session, asked: Request, source: Source | None = None, **options: Any
) -> Page | Refused:
    """The reply to a request."""
    source = source or made()
    client = ApiClient(source, session, url, bounds=Bounds(2.0, 2.0), tries=options.pop("tries", 2), **options)
    return client.fetch(source.object("things"), asked)


def page(url: str, session: requests.Session, asked: Request, source: Source | None = None) -> Page:
    """The page that answers a request."""
    found = fetched(url, session, asked, source)
    assert isinstance(found, Page)
    return found


# --- Searches by POST -------------------------------------------------------------------------------------------------

SEARCH: dict[str, Any] = {
    "request": "POST /search/{{ token }}",
    "params": {"a": "1"},
    "headers": {"X-Page": "{{ page }}"},
    "body": '{"after": {{ token | json }}, "name": "é"}',
    "pages": {"by": "token", "take": "next"},
}


def search(**changes: Any) -> Source:
    """A source whose object is a search by POST."""
    spec = {"records": "data", "key": "id", **SEARCH, **changes}
    return parse_source({"source": "crm", "connection": "c", "objects": {"things": spec}}, "test")


def test_a_search_is_posted(listener: Listener, session: requests.Session) -> None:
    """Method, path, parameters, headers and body go out as the templates say; the body as UTF-8 JSON."""
    source = search()
    asked = request(source.object("things"), {"token": "t/1", "page": 3}, {"cursor": "c&d"}, 3)
    page(listener.url + "/base/", session, asked, source)
    heard = listener.heard[0]
    assert (heard.method, heard.target) == ("POST", "/base/search/t%2F1?a=1&cursor=c%26d")
    assert heard.body == '{"after": "t/1", "name": "é"}'.encode()
    assert heard.headers["Content-Type"] == "application/json"
    assert heard.headers["Accept"] == "application/json"
    assert heard.headers["X-Page"] == "3"
    assert heard.headers["Authorization"] == f"Bearer {LOGIN}"


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
def test_headers_of_source_and_object(name: str, listener: Listener, session: requests.Session) -> None:
    """The object's headers lie over the source's, and those over our own, however they are spelled."""
    source = made({"accept": "application/vnd.a+json", name: "text/a", "X-A": "source", "X-B": "source"})
    page(listener.url, session, Request("/x", headers={"x-a": "object"}, method="POST", body="{}"), source)
    page(listener.url, session, Request("/x", headers={name.upper(): "text/b"}, method="POST", body="{}"), source)
    page(listener.url, session, Request("/x"), made())
    first, second, third = ({key.lower(): value for key, value in heard.headers.items()} for heard in listener.heard)
    assert (first["accept"], first["content-type"], first["x-a"], first["x-b"]) == (
        "application/vnd.a+json",
        "text/a",
        "object",
        "source",
    )
    assert second["content-type"] == "text/b"
    assert "content-type" not in third


def test_a_search_is_asked_again(listener: Listener, session: requests.Session, pauses: list[float]) -> None:
    """A search only reads: after a 503 it is sent once more, the same to the letter."""
    listener.answer = lambda number, heard: (503 if number == 1 else 200, {"Retry-After": "2"}, EMPTY)
    asked = Request("/x", {"a": "1"}, method="POST", body='{"q": 1}')
    assert page(listener.url, session, asked).records == ()
    first, second = listener.heard
    assert (first.method, first.target, first.body) == (second.method, second.target, second.body)
    assert [round(pause) for pause in pauses if pause > 1] == [2]


def test_a_header_that_no_http_can_carry(listener: Listener, session: requests.Session) -> None:
    """A token with a line break cannot smuggle in a header."""
    with pytest.raises(RequestRefusedError):
        fetched(listener.url, session, Request("/x", headers={"X-Token": "a\r\nX-Other: b"}))
    assert listener.heard == []


# --- What came with the answer ----------------------------------------------------------------------------------------


def test_a_page_has_the_answer_s_headers(listener: Listener, session: requests.Session) -> None:
    """By names in lower case."""
    listener.answer = lambda number, heard: (200, {"X-Next-Page": "T", "LINK": '</a>; rel="next"'}, EMPTY)
    found = page(listener.url, session, Request("/x"))
    assert (found.headers["x-next-page"], found.headers["link"]) == ("T", '</a>; rel="next"')
    assert all(name == name.lower() for name in found.headers)
    listener.answer = lambda number, heard: (200, {}, b'[{"id": 1}]')
    assert page(listener.url, session, Request("/x"), made(records="@")).rows == 1


# --- Links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("{url}/base/things?page=2", "/base/things?page=2"),
        ("{url}/v2/other?page=2&a=b%2Fc", "/v2/other?page=2&a=b%2Fc"),
        ("{url}", "/"),
        ("{url}?page=2#part", "/?page=2"),
        ("{shouted}/x?page=2", "/x?page=2"),
        ("http://someone:word@{host}/x?page=2", "/x?page=2"),
        ("http://elsewhere.example\\@{host}/x?page=2", "/x?page=2"),
        ("//{host}/x?page=2", "/x?page=2"),
        ("/x?page=2", "/x?page=2"),
        ("?page=2", "/base/things?page=2"),
        ("more?page=2", "/base/more?page=2"),
        ("{url}/x?cursor=a%3D%3D&cursor=b&empty=", "/x?cursor=a%3D%3D&cursor=b&empty="),
    ],
)
def test_links_within_the_api(link: str, target: str, listener: Listener, session: requests.Session) -> None:
    """A link is asked as it is, in place of path and parameters, on the API's own host."""
    host = urlsplit(listener.url).netloc
    text = link.format(url=listener.url, shouted=listener.url.replace("http", "HTTP"), host=host)
    page(listener.url + "/base", session, Request("/things", {"page": "1", "a": "1"}, link=text))
    heard = listener.heard[0]
    assert heard.target == target
    assert heard.headers["Host"] == host
    assert heard.headers["Authorization"] == f"Bearer {LOGIN}"


def test_a_link_that_repeats_the_login(listener: Listener, session: requests.Session) -> None:
    """What the session sends by itself is sent once, as the session has it: some APIs repeat it, or a stub of it."""
    session.params = {"api_key": "s3cret"}
    link = f"{listener.url}/x?page=2&api_key=***&api%5Fkey=s3cret&tag=a+b"
    page(listener.url, session, Request("/things", link=link))
    assert listener.heard[0].target == "/x?page=2&tag=a+b&api_key=s3cret"


def test_a_link_keeps_the_search(listener: Listener, session: requests.Session) -> None:
    """Method, headers and body go along with a link."""
    asked = Request("/x", method="POST", body='{"q": 1}', headers={"X-A": "b"}, link="/y?page=2")
    page(listener.url, session, asked)
    heard = listener.heard[0]
    assert (heard.method, heard.target, heard.body, heard.headers["X-A"]) == ("POST", "/y?page=2", b'{"q": 1}', "b")


@pytest.mark.parametrize(
    ("link", "host"),
    [
        ("{elsewhere}/x?token=s3cret-query", "{elsewhere}"),
        ("//{other}/x?token=s3cret-query", "{elsewhere}"),
        ("https://{host}/x?token=s3cret-query", "https://{host}"),
        ("http://127.0.0.1/x?token=s3cret-query", "http://127.0.0.1;"),
        ("http://{host}.elsewhere.example/?token=s3cret-query", None),
        ("http://{host}@elsewhere.example/s3cret-query", "http://elsewhere.example;"),
        ("http://s3cret-query:s3cret-query@elsewhere.example", "http://elsewhere.example;"),
        ("http://{host}\\@elsewhere.example/s3cret-query", "http://elsewhere.example;"),
        ("http://localhost:{port}/s3cret-query", "http://localhost:{port};"),
        ("http://s3cret-login.example/", "another host"),
        ("file:///etc/s3cret-query", None),
        ("javascript:s3cret-query", None),
        ("http://[s3cret-query", None),
        ("http://{host}x/s3cret-query", None),
        ("http://127.0.0.1:99999/s3cret-query", None),
    ],
)
def test_links_that_lead_away(
    link: str,
    host: str | None,
    listener: Listener,
    elsewhere: Listener,
    session: requests.Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another scheme, host or port never gets the login, nor any request at all; the message names it, no more."""
    own = urlsplit(listener.url)
    names = {
        "host": own.netloc,
        "port": own.port,
        "elsewhere": elsewhere.url,
        "other": urlsplit(elsewhere.url).netloc,
    }
    with caplog.at_level(logging.DEBUG), pytest.raises(RequestRefusedError) as caught:
        fetched(listener.url, session, Request("/x", link=link.format(**names)), secrets=[LOGIN])
    assert host is None or host.format(**names) in str(caught.value)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "s3cret" not in told
    assert caught.value.todo
    assert listener.heard == elsewhere.heard == []


@pytest.mark.parametrize("base", ["http://api.example", "http://api.example:80/v1", "HTTP://API.example/v1/"])
@pytest.mark.parametrize("link", ["http://api.example/a", "http://API.example:80/a", "HTTP://api.example:80/a"])
def test_one_host_in_other_words(base: str, link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capital letters and the usual port make no other host."""
    assert urlsplit(_sent_to(base, link, monkeypatch)).path == "/a"


def _sent_to(base: str, link: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL that a link is asked by."""
    sent: list[str] = []

    def send(self: requests.Session, prepared: requests.PreparedRequest, **options: Any) -> requests.Response:
        sent.append(str(prepared.url))
        raise requests.exceptions.InvalidSchema

    monkeypatch.setattr(requests.Session, "send", send)
    with requests.Session() as session, pytest.raises(RequestRefusedError):
        fetched(base, session, Request("/things", link=link))
    return sent[0] if sent else ""


_PARTS = st.sampled_from(
    ["http:", "https:", "/", "//", "\\", "@", ":", "?", "#", "..", "api.example", "evil.example", "8080", "%2f", "%40",
     " ", "\t", "\n", "\0", "a", "é", "。", "[", "]", ";"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(link=st.lists(_PARTS, max_size=9).map("".join))
@example(link="http:///evil.example/")
@example(link="////evil.example/")
@example(link="http:\\\\evil.example")
@example(link="\\\\evil.example")
@example(link=" http://evil.example")
@example(link="http://api.example:8080#@evil.example/")
def test_no_link_leads_away(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an API calls a link, nothing is ever sent to another host."""
    sent = _sent_to("http://api.example:8080/v1", link, monkeypatch)
    assert sent == "" or sent.startswith("http://api.example:8080/")


# --- Reading by key ---------------------------------------------------------------------------------------------------

BY_KEY: dict[str, Any] = {"by_key": {"path": "/things/{{ key }}", "record": "@"}}


@pytest.mark.parametrize("key", ["a", "a/b", "é😀", "a b+c%2F", "?x=1#y", "a\nb", "..."])
def test_a_key_arrives_as_itself(key: str, listener: Listener, session: requests.Session) -> None:
    """Whatever a key holds, the API hears that key, and its record is the answer."""
    source = made(**BY_KEY)
    raw = json.dumps({"id": key, "error": "a field"}).encode()
    listener.answer = _always(200, raw)
    found = page(listener.url, session, by_key_request(source.object("things"), key, 1), source)
    assert unquote(listener.heard[0].target.removeprefix("/things/")) == key
    assert listener.heard[0].target.count("/") == 2
    assert [(record.key, record.raw) for record in found.records] == [(key, raw)]


def test_answers_to_a_read_by_key(listener: Listener, session: requests.Session) -> None:
    """A refusal is left to the walk; another record, a list or nothing is never taken for the one."""
    source = made(**BY_KEY)
    asked = by_key_request(source.object("things"), "a", 1)
    for status in (404, 410):
        listener.answer = _always(status, b"{}")
        assert fetched(listener.url, session, asked, source) == Refused(status)
    for body, kind in ((b'{"id": "b"}', WrongAnswerError), (b"[]", BadRecordError), (b"", WrongAnswerError)):
        listener.answer = _always(200, body)
        with pytest.raises(kind):
            fetched(listener.url, session, asked, source)


def _always(status: int, body: bytes) -> Callable[[int, Heard], tuple[int, Mapping[str, str], bytes]]:
    return lambda number, heard: (status, {}, body)


# --- Secrets ----------------------------------------------------------------------------------------------------------

MARK = "marked"
ASKED = {
    "path": lambda source: request(source.object("things"), {"token": f"{MARK}-token"}, {"x": f"{MARK}-x"}, 2),
    "link": lambda source: Request("/things", link=f"/{MARK}/x?token={MARK}"),
    "key": lambda source: by_key_request(source.object("things"), f"{MARK}-key", 2),
}
ANSWERS: dict[str, tuple[int, Mapping[str, str], type[ExtractError]]] = {
    "401": (401, {}, LoginError),
    "405": (405, {}, RequestRefusedError),
    "503": (503, {}, ApiUnavailableError),
    "302 to itself": (302, {"Location": ""}, RequestRefusedError),
    "302 elsewhere": (302, {"Location": f"https://h.example/{MARK}?{MARK}"}, RequestRefusedError),
    "200 without JSON": (200, {}, WrongAnswerError),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("kind", ASKED)
def test_nothing_of_a_request_is_told(
    kind: str,
    name: str,
    listener: Listener,
    session: requests.Session,
    pauses: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither what a template inserted, nor a parameter, a body or a link is in a message, traceback or log."""
    status, headers, expected = ANSWERS[name]
    source = search(by_key={"path": "/things/{{ key }}"})
    asked = ASKED[kind](source)

    def answer(number: int, heard: Heard) -> tuple[int, Mapping[str, str], bytes]:
        return status, {**headers, **({"Location": heard.target} if name == "302 to itself" else {})}, b"Other words."

    listener.answer = answer
    caplog.set_level(logging.DEBUG, "airflow_extract_provider")
    caplog.set_level(logging.INFO)
    with pytest.raises(expected) as caught:
        fetched(listener.url, session, asked, source)
    assert MARK in listener.heard[0].target
    assert MARK not in "".join(traceback.format_exception(caught.value)) + repr(caught.value.args) + caplog.text
    if status in (405, 503):
        shown = "/things/{{ key }}" if kind == "key" else "/search/{{ token }}"
        assert shown in str(caught.value)


# --- Clocks and limits ------------------------------------------------------------------------------------------------


def dated(listener: Listener, session: requests.Session, date: str) -> datetime:
    """Since when a page counts as looked up whose answer has this Date."""
    listener.answer = lambda number, heard: (200, {"Date": date}, EMPTY)
    return page(listener.url, session, Request("/t")).began_at


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (timedelta(hours=-3), timedelta(hours=-3)),
        (timedelta(minutes=2), timedelta(minutes=2)),
        (timedelta(hours=4), timedelta(minutes=5)),
        (timedelta(days=30_000), timedelta(minutes=5)),
    ],
    ids=str,
)
def test_a_date_is_believed_as_far_as_it_is_safe(
    ahead: timedelta, expected: timedelta, listener: Listener, session: requests.Session
) -> None:
    """A clock that is behind costs pages read again; one that is far ahead would hide what changes until then."""
    before = datetime.now(timezone.utc)
    found = dated(listener, session, format_datetime(before + ahead, usegmt=True))
    assert before + expected - timedelta(seconds=5) < found <= datetime.now(timezone.utc) + expected


@pytest.mark.parametrize(
    "date",
    ["yesterday", "Thu, 26 Nov 2026 10:00:00", "Thu, 26 Nov 2026 10:00:00 -0000", f"Thu, 26 Nov {9**22} 10:00:00 GMT"],
)
def test_a_date_without_its_zone_is_none(date: str, listener: Listener, session: requests.Session) -> None:
    """Our own clock then, less what two clocks may differ by."""
    found = dated(listener, session, date)
    assert timedelta(minutes=5) <= datetime.now(timezone.utc) - found < timedelta(minutes=6)


def test_caches_stand_aside(listener: Listener, session: requests.Session) -> None:
    """A page from a cache is an older look than it seems."""
    page(listener.url, session, Request("/t"))
    assert listener.heard[0].headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("status", "headers"),
    [(403, {"Retry-After": "1"}), (403, {"X-RateLimit-Remaining": "0"}), (507, {}), (520, {}), (529, {})],
)
def test_what_passes_is_asked_again(
    status: int, headers: dict[str, str], listener: Listener, session: requests.Session, pauses: list[float]
) -> None:
    """Rate limits that come as 403, and the 5xx of proxies."""
    listener.answer = lambda number, heard: (200, {}, EMPTY) if number > 1 else (status, headers, b"")
    page(listener.url, session, Request("/t"))
    assert len(listener.heard) == 2
    assert max(pauses) > 0


@pytest.mark.parametrize("age", ["3600", "0", "", "-5", "old", "99999999999"])
def test_a_page_out_of_a_cache(age: str, listener: Listener, session: requests.Session) -> None:
    """It was looked up as much earlier as `Age` says: what changed since must not be judged older than it."""
    listener.answer = lambda number, heard: (200, {"Age": age} if age else {}, EMPTY)
    found = page(listener.url, session, Request("/t"))
    assert found.age == timedelta(seconds=3600 if age == "3600" else 0)
    assert (datetime.now(timezone.utc) - found.began_at > timedelta(seconds=3590)) == (age == "3600")


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (b"", True),
        (b'{"error": "gone"}', True),
        (b'"gone"', True),
        (b"default backend - 404", False),
        (b"<html>", False),
    ],
)
@pytest.mark.parametrize("status", [404, 410])
def test_whose_word_a_missing_record_is(
    status: int, body: bytes, own: bool, listener: Listener, session: requests.Session
) -> None:
    """A proxy's 404 while the API is away proves no deletion."""
    source = made(**BY_KEY)
    listener.answer = _always(status, body)
    asked = by_key_request(source.object("things"), "a", 1)
    found = fetched(listener.url, session, asked, source)
    assert isinstance(found, Refused)
    assert (found.status, found.own) == (status, own)


def test_failures_and_obeyed_pauses_are_counted_apart(
    listener: Listener, session: requests.Session, pauses: list[float]
) -> None:
    """An API that says when to come back six times, and fails once, is asked again all the same."""
    statuses = [429] * 6 + [502, 429, 200]
    listener.answer = lambda number, heard: (statuses[number - 1], {"Retry-After": "1"}, EMPTY)
    assert page(listener.url, session, Request("/t")).rows == 0
    assert len(listener.heard) == 9


@pytest.mark.parametrize(
    "headers", [{"X-RateLimit-Reset": "300"}, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9"}]
)
def test_a_reset_is_a_pause(headers: dict[str, str], listener: Listener, session: requests.Session) -> None:
    """A 429 without `Retry-After` that tells the reset: it is waited for, here longer than a task waits."""
    listener.answer = lambda number, heard: (429, headers, b"")
    with pytest.raises(QuotaSpentError):
        fetched(listener.url, session, Request("/t"), longest_wait=5.0)
    assert len(listener.heard) == 1


@pytest.mark.parametrize("waits", ["for its turn", "to ask again", "for the answer"])
def test_a_client_that_is_halted(waits: str, listener: Listener, session: requests.Session) -> None:
    """It ends its waiting at once and sends nothing more, whatever it waits for; what is under way may still come."""
    source, began, stop = made(), time.monotonic(), threading.Event()
    status, headers = {"for its turn": (429, {"Retry-After": "30"}), "to ask again": (503, {})}.get(waits, (200, {}))

    def answer(number: int, heard: Heard) -> tuple[int, Mapping[str, str], bytes]:
        if number == 1:
            threading.Timer(0.2, stop.set).start()
        if waits == "for the answer":
            stop.wait(30)
            time.sleep(0.3)
        return status, headers, EMPTY

    listener.answer = answer
    client = ApiClient(source, session, listener.url, bounds=Bounds(2, 2), tries=50)
    client.stop_with(stop)
    if waits == "for the answer":
        assert isinstance(client.fetch(source.object("things"), Request("/t")), Page)
    else:
        with pytest.raises(Halted):
            client.fetch(source.object("things"), Request("/t"))
    with pytest.raises(Halted):
        client.fetch(source.object("things"), Request("/t"))
    assert time.monotonic() - began < 5
    heard = len(listener.heard)
    time.sleep(0.1)
    assert len(listener.heard) == heard


@pytest.mark.parametrize(("status", "error"), [(403, LoginError), (501, RequestRefusedError)])
def test_what_does_not_pass(
    status: int, error: type[ExtractError], listener: Listener, session: requests.Session
) -> None:
    """A plain 403 is the login's, a 501 the request's."""
    listener.answer = lambda number, heard: (status, {}, b"")
    with pytest.raises(error):
        fetched(listener.url, session, Request("/t"))
    assert len(listener.heard) == 1
