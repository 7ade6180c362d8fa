"""No secret and no field of a record is in a message or log, whatever goes wrong.

Marked secrets and values are planted wherever there can be some; then everything that a run leaves for people to see is
searched for them: the error as text, its repr, its pickled form, its traceback, and what was logged at any level.
"""

from __future__ import annotations

import base64
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from airflow_extract_provider.extract import errors
from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.cursor import AfterToken
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.testing.postgres import free_port
from tests.extract.scene import KEYED, TOKENS, Scene
from tests.loopback import Asked, Fault

MakeScene = Callable[..., Scene]

LOGIN = "marked/login+s3cret="
PARAM = "marked-param-s3cret"
VALUE = "marked-value"
NUMBER = "98765432109876543210"
TOKEN = "marked-token-of-a-page"
BODY = "marked-body"
PLACE = "marked-place"
DSN = "marked-dsn-s3cret"
SECRETS = [
    *(form for secret in (LOGIN, PARAM, DSN) for form in (secret, quote(secret, safe=""))),
    base64.b64encode(f"user:{LOGIN}".encode()).decode(),
]
MARKS = [
    *SECRETS,
    VALUE,
    NUMBER,
    TOKEN,
    BODY,
    PLACE,
]


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """All that the package logs, at any level, and what anybody logs at INFO and above; formatted as people see it."""
    lines: list[str] = []
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # urllib3 prints whole URLs at DEBUG, by design; nobody runs production at that level for all loggers.
            if record.name.startswith("airflow_extract_provider") or record.levelno >= logging.INFO:
                lines.append(formatter.format(record))

    handler, root, package = Keep(logging.DEBUG), logging.getLogger(), logging.getLogger("airflow_extract_provider")
    levels = root.level, package.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    package.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(levels[0])
    package.setLevel(levels[1])


def _found(where: str, text: str | bytes, marks: Sequence[str] = MARKS) -> list[str]:
    raw = text if isinstance(text, bytes) else text.encode()
    return [f"{mark} in {where}: {raw!r}" for mark in marks if mark.encode() in raw]


def _assert_clean(exc: ExtractError, logged: list[str], marks: Sequence[str] = MARKS) -> None:
    place = dict(exc.place)
    # The position is the one thing that holds a page token: it is what the cursor shows, and what a repair needs.
    place["position"] = None
    without = type(exc)(exc.what, kept=exc.kept, todo=exc.todo, **place)

    def _marked(where: str, text: str | bytes) -> list[str]:
        return _found(where, text, marks)

    assert [
        *_marked("str", str(exc)),
        *_marked("repr", repr(exc)),
        *_marked("args", repr(exc.args)),
        *_marked("pickle", pickle.dumps(without)),
        *_marked("traceback", "".join(traceback.format_exception(exc))),
        *(found for line in logged for found in _marked("log", line)),
    ] == []
    assert (exc.__cause__, exc.__suppress_context__) == (None, True)


@pytest.fixture
def planted(make_scene: MakeScene) -> MakeScene:
    """Makes scenes with secrets in the session and in the records."""

    def plant(spec: Any = TOKENS, **changes: Any) -> Scene:
        scene = make_scene(spec, **changes)
        scene.session.auth = ("user", LOGIN)
        scene.session.headers.update({"X-Api-Key": LOGIN, "Cookie": f"session={LOGIN}"})
        scene.session.params = {"api_key": PARAM}
        scene.api.rows = [b'{"id": "r%d", "n": "%s"}' % (number, VALUE.encode()) for number in range(25)]
        return scene

    return plant


def _arguments(scene: Scene, **arguments: Any) -> dict[str, Any]:
    client = ApiClient(
        scene.source, scene.session, scene.api.url, secrets=[LOGIN, PARAM], bounds=Bounds(2.0, 2.0), tries=scene.tries
    )
    often = scene.settings(log_every=timedelta(0), cursor_every=timedelta(0), batch=1)
    return {"client": client, "settings": often, **arguments}


def _stopped(scene: Scene, **arguments: Any) -> ExtractError:
    given = {"postgres": scene.connect, **_arguments(scene, **arguments)}
    with pytest.raises(ExtractError) as caught:
        run(scene.source, scene.object, **given)
    return caught.value


def _html(status: int = 200) -> Fault:
    return Fault(
        status,
        f"<html>{BODY} {VALUE} {LOGIN} {quote(LOGIN)} {PARAM}</html>".encode(),
        {"X-Request": BODY, "Set-Cookie": f"id={BODY}"},
    )


def _json(text: str, status: int = 200) -> Fault:
    return Fault(status, text.replace("BODY", BODY).replace("VALUE", VALUE).replace("TOKEN", TOKEN).encode())


FAULTS = {
    **{f"status {status}": _html(status) for status in (400, 401, 403, 404, 405, 409, 410, 422, 429, 500, 503)},
    "html": _html(),
    "an error object": _json(
        '{"error": {"message": "BODY", "login": "VALUE", "by": "' + LOGIN.replace("/", r"\/") + '"}}'
    ),
    "a message": _json('{"message": "BODY"}'),
    "truncated": _json('{"data": [{"id": "r1", "n": "VALUE"}, {"id'),
    "no json": _json("BODY VALUE"),
    "invalid utf-8": Fault(body=b'{"data": [{"n": "' + VALUE.encode() + b'\xff"}]}'),
    "cut": Fault(cut=60),
    "one object": _json('{"data": {"id": "r1", "n": "VALUE"}}'),
    "a map of records": _json('{"VALUE-1": {"n": 1}, "VALUE@b.example": 2}'),
    "a text": _json('{"data": "VALUE"}'),
    "records that are texts": _json('{"data": ["VALUE"], "next_cursor": null}'),
    "no key": _json('{"data": [{"n": "VALUE"}], "next_cursor": null}'),
    "a key that is an object": _json('{"data": [{"id": {"VALUE": "VALUE"}}], "next_cursor": null}'),
    "a key twice": _json('{"data": [{"id": "a", "n": "VALUE"}, {"id": "a", "n": "VALUE2"}], "next_cursor": null}'),
    "a name twice": _json('{"data": [{"id": "a", "VALUE-1": "VALUE", "VALUE-1": 1}], "next_cursor": null}'),
    "a NUL": _json('{"data": [{"id": "a", "n": "VALUE\\u0000"}], "next_cursor": null}'),
    "half a pair": _json('{"data": [{"id": "a", "n": "VALUE\\ud800"}], "next_cursor": null}'),
    "a huge number": _json('{"data": [{"id": "a", "VALUE": 1e200000}], "next_cursor": null}'),
    "a number beyond all measure": _json(
        '{"data": [{"id": "a", "n": 9e%s}], "next_cursor": null}'.replace("%s", NUMBER)
    ),
    "nested": _json('{"data": [{"id": "a", "n": ' + "[" * 9000 + '"VALUE"' + "]" * 9000 + '}], "next_cursor": null}'),
    "a token that is an object": _json('{"data": [], "next_cursor": {"TOKEN": "TOKEN"}}'),
    "a token with a NUL": _json('{"data": [], "next_cursor": "TOKEN\\u0000"}'),
    "a redirect": Fault(302, b"", {"Location": f"https://u:{PLACE}@h.example/{PLACE}?t={PLACE}#{PLACE}"}),
    "a redirect with the login": Fault(302, b"", {"Location": f"https://{PARAM}.example/tokens?k={quote(LOGIN)}"}),
    "a redirect nearby": Fault(307, b"", {"Location": f"/login;{PLACE}/{PLACE}?next={PLACE}"}),
    "a redirect to nowhere": Fault(302, b"", {"Location": f"http://[{PLACE}"}),
    "a redirect to another scheme": Fault(302, b"", {"Location": f"mailto:{PLACE}@{PLACE}"}),
    "a header that is none": Fault(500, b"", {"X-Odd": f"1\r\n{BODY} no colon"}),
    "a strange encoding": Fault(headers={"Content-Encoding": "gzip"}),
}


SPEAKS = [name for name in FAULTS if name.startswith("status")] + ["html", "an error object"]
"""Answers that are the API's own words, no page."""


@pytest.mark.parametrize("name", FAULTS)
def test_answers(name: str, planted: MakeScene, logged: list[str]) -> None:
    """Where records are personal data, neither the login nor the answer is told, only what is wrong with it."""
    scene = planted(TOKENS, private=True)
    scene.api.fault = lambda number, asked: FAULTS[name] if number >= 2 else None
    _assert_clean(_stopped(scene), logged)


@pytest.mark.parametrize("name", FAULTS)
def test_words_of_the_api(name: str, planted: MakeScene, logged: list[str]) -> None:
    """Where they are not, its words are told, however it repeats the login in them; what may be a page is not."""
    scene = planted()
    scene.api.fault = lambda number, asked: FAULTS[name] if number >= 2 else None
    exc = _stopped(scene)
    _assert_clean(exc, logged, SECRETS if name in SPEAKS else MARKS)
    assert (BODY in str(exc)) == (name in SPEAKS)


@pytest.mark.parametrize("private", [True, False])
def test_keys_of_personal_data(private: bool, planted: MakeScene, logged: list[str]) -> None:
    """A key may be somebody's address: with `private` it is in no message, log or attribute; without, people see it."""
    scene = planted(KEYED, version="at", private=private)
    scene.api.rows = [f'{{"id": "{VALUE}@b{n}", "at": "2026-01-01T00:00:00Z"}}'.encode() for n in range(15)]
    odd = _json('{"data": [{"id": "VALUE@b", "at": "soon"}], "has_more": false}')
    scene.api.fault = lambda number, asked: odd if number > 1 else None
    exc = _stopped(scene)
    seen = [
        found for line in [*logged, str(exc), repr(exc), repr(exc.place)] for found in _found("text", line, [VALUE])
    ]
    assert bool(seen) is not private


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"version": "at"}, f'"at": "{VALUE}"'),
        ({"order": ["at"]}, f'"at": "{VALUE}"'),
        ({"order": ["at"]}, f'"at": {{"{VALUE}": 1}}'),
        ({"key": ["id", "at.b"]}, f'"at": "{VALUE}"'),
    ],
)
def test_fields_that_are_read(changes: Any, value: str, planted: MakeScene, logged: list[str]) -> None:
    """A version, an order field or a part of a key that cannot be read is named, not quoted."""
    scene = planted(TOKENS, **changes)
    scene.api.rows = [b'{"id": "a", ' + value.encode() + b"}"]
    _assert_clean(_stopped(scene), logged)


def test_an_order_that_is_not_kept(planted: MakeScene, logged: list[str]) -> None:
    """The values that are out of order are not told, only the place."""
    scene = planted(TOKENS, order=["at"])
    scene.api.rows = [b'{"id": "%d", "n": "%s", "at": %d}' % (n, VALUE.encode(), 5 - n) for n in range(4)]
    exc = _stopped(scene)
    assert type(exc) is errors.UnorderedStreamError
    _assert_clean(exc, logged)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_page_tokens(length: int, planted: MakeScene, logged: list[str]) -> None:
    """Page tokens may be keys to somebody's data: they are told nowhere but in the cursor and the position."""
    scene = planted()

    def circle(number: int, asked: Asked) -> Fault:
        return _json(f'{{"data": [{{"id": "{number}", "n": "VALUE"}}], "next_cursor": "TOKEN{number % length}"}}')

    scene.api.fault = circle
    exc = _stopped(scene)
    assert type(exc) is errors.RepeatedPageError
    _assert_clean(exc, logged)
    assert [row for row in scene.ledger() if isinstance(row.position.place, AfterToken) and row.position.place.token]


def test_a_token_that_has_expired(planted: MakeScene, logged: list[str]) -> None:
    """The refused token is not told."""
    scene = planted()
    first = _json('{"data": [{"id": "1", "n": "VALUE"}], "next_cursor": "TOKEN"}')
    gone = _json("There is no TOKEN here.", 404)
    scene.api.fault = lambda number, asked: first if number == 1 else gone
    exc = _stopped(scene)
    assert type(exc) is errors.TokenExpiredError
    _assert_clean(exc, logged)


@pytest.mark.parametrize("login", [f"{LOGIN}\n", f"{LOGIN}\u2603", f" {LOGIN}"])
def test_a_login_that_cannot_be_sent(login: str, planted: MakeScene, logged: list[str]) -> None:
    """A login that no header can carry is refused by libraries that quote it; the error does not."""
    scene = planted()
    scene.session.headers["X-Api-Key"] = login
    scene.api.fault = lambda number, asked: _html(401)
    _assert_clean(_stopped(scene), logged)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{LOGIN}@127.0.0.1:1",
        f"http://user:{PARAM}@127.0.0.1:1",
        f"http://{PARAM}.invalid:1",
        f"https://127.0.0.1:1/{PARAM}",
        f"http://127.0.0.1:none/{PARAM}",
        f"nothing://{PARAM}",
        PARAM,
        f"http://[{PARAM}",
        f"http://{'x' * 70}.example/{PARAM}",
        f"http://.{PARAM}./",
        f"http://*.{PARAM}",
    ],
)
def test_addresses(url: str, planted: MakeScene, logged: list[str]) -> None:
    """An address that cannot be reached, or is none, may hold a secret too: it is not told."""
    scene = planted()
    scene.session.trust_env = False
    client = ApiClient(scene.source, scene.session, url, secrets=[LOGIN, PARAM], bounds=Bounds(2.0, 2.0), tries=2)
    exc = _stopped(scene, client=client)
    assert type(exc) in (errors.ApiUnavailableError, errors.RequestRefusedError)
    _assert_clean(exc, logged)


@pytest.mark.parametrize("hold", ["timeout", "refused", "tls"])
def test_connections_that_fail(hold: str, planted: MakeScene, logged: list[str]) -> None:
    """What libraries say of a failed connection holds the whole URL: it is said in other words."""
    scene = planted()
    urls = {
        "timeout": scene.api.url,
        "refused": f"http://127.0.0.1:{free_port()}",
        "tls": scene.api.url.replace("http", "https"),
    }
    scene.api.delay = 0.3 if hold == "timeout" else 0.0
    client = ApiClient(scene.source, scene.session, urls[hold], secrets=[PARAM], bounds=Bounds(0.1, 0.1), tries=2)
    exc = _stopped(scene, client=client)
    assert type(exc) is errors.ApiUnavailableError
    _assert_clean(exc, logged)


@pytest.mark.parametrize(
    "conninfo",
    [
        f"host=127.0.0.1 port={free_port()} user=u password={DSN} dbname=d connect_timeout=2",
        f"postgresql://u:{DSN}@127.0.0.1:{free_port()}/d?connect_timeout=2",
        f"postgresql://u:{DSN}@nowhere.invalid/d",
        f"postgresql://u:{DSN}@[broken/d",
        f"postgresql://u:{DSN}@h:port/d",
        f"password={DSN} and more",
        f"host=127.0.0.1 hots={DSN}",
        f"host=/{DSN} dbname=d",
    ],
)
def test_postgres_addresses(conninfo: str, planted: MakeScene, logged: list[str]) -> None:
    """A connection string that fails, or is none, is not told; nor is what the library says of it."""
    _assert_clean(_stopped(planted(), postgres=connecting(conninfo)), logged)


@pytest.mark.parametrize("login", ["nobody", "wrong database"])
def test_postgres_logins(login: str, planted: MakeScene, logged: list[str], scenes_dsn: str) -> None:
    """A refused login or a missing database is told without the login."""
    extra = {"nobody": {"user": DSN}, "wrong database": {"dbname": DSN}}[login]
    dsn = make_conninfo(scenes_dsn, **extra, password=DSN)
    _assert_clean(_stopped(planted(), postgres=connecting(dsn)), logged)


CONSTRAINTS = {
    "a check": "alter table {0} add constraint odd check (data->>'n' is null)",
    "a unique index": "create unique index on {0} ((data->>'n'))",
    "a cast": "create index on {0} (((data->>'n')::int))",
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_postgres_says(name: str, planted: MakeScene, logged: list[str]) -> None:
    """Constraints and indexes of the user's own may refuse records; Postgres quotes them, the error does not."""
    scene = planted()
    with scene.connect() as conn:
        table = sql.Identifier(*scene.source.table(scene.object))
        conn.execute(sql.SQL(CONSTRAINTS[name]).format(table))
    exc = _stopped(scene)
    _assert_clean(exc, logged)
    assert scene.stored() == {}


@pytest.mark.parametrize("spec", [KEYED, TOKENS], ids=["keyed", "tokens"])
def test_a_run_that_goes_well(spec: Any, planted: MakeScene, logged: list[str]) -> None:
    """Progress, retries and the end are told without login, tokens or values; page and key are."""
    scene = planted(spec)
    scene.api.fault = lambda number, asked: Fault(503, b"Come again.") if number in (1, 3) else None
    summary = run(scene.source, scene.object, postgres=scene.connect, **_arguments(scene))
    assert summary.complete
    assert [line for line in logged if "done" in line]
    assert [line for line in logged if "asking again" in line]
    assert [found for line in logged for found in _found("log", line)] == []


def test_a_header_that_urllib3_complains_about(planted: MakeScene, logged: list[str]) -> None:
    """An answer with a broken header makes urllib3 warn with the whole URL, parameters included: not while we ask."""
    scene = planted()
    scene.api.fault = lambda number, asked: Fault(headers={"X-Odd": f"1\r\n{BODY} no colon"})
    run(scene.source, scene.object, postgres=scene.connect, **_arguments(scene))
    assert [found for line in logged for found in _found("log", line)] == []


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "ExtractError"])
def test_errors_travel(name: str) -> None:
    """Every error survives the way between processes with all that it knows."""
    kind = getattr(errors, name)
    place = {"source": "s", "object": "o", "walk": "backfill", "page": 3, "record": 4, "key": "k", "position": {"a": 1}}
    exc = kind("what happened.", kept="all.", todo="Do this.", **place)
    back = pickle.loads(pickle.dumps(exc))
    assert type(back) is kind
    assert str(back) == str(exc)
    assert {name: getattr(back, name) for name in place} == place
    assert (back.what, back.kept, back.todo) == (exc.what, exc.kept, exc.todo)
