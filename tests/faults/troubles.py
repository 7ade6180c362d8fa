"""What can go wrong between a client and an API: each trouble lasts until the run gives up or gets through, then it is
repaired and the next run must be exact. The table in docs/faults.md is made of these.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest.mock import patch

import requests
from psycopg import sql

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.endpoint import TokenEndpoint
from airflow_extract_provider.extract.api.limits import MemoryQuota
from airflow_extract_provider.extract.api.oauth import ClientCredentials, RefreshToken
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.errors import (
    AnswerTooLargeError,
    ApiUnavailableError,
    CertificateError,
    ExtractError,
    LoginError,
    QuotaSpentError,
    RepeatedPageError,
    RequestRefusedError,
    TokenExpiredError,
    TokenLostError,
    UnorderedStreamError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.pipeline import Settings, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.tokens import PostgresTokens
from airflow_extract_provider.testing.hostile import Fault, HostileApi, Kind, Listing
from airflow_extract_provider.testing.login import LoginServer
from tests.faults.certificates import Authority

__all__ = ["BY_NAME", "OBJECT", "TROUBLES", "Played", "Trouble", "played"]

OBJECT = "contacts"
RECORDS = 45
BOOKS = "books"
BOUNDS = Bounds(connect=5.0, read=20.0, total=30.0, size=1 << 20)
_SPEC: Mapping[str, Any] = {
    "path": "/contacts",
    "records": "data",
    "key": "id",
    "version": "updated_at",
    "order": ["updated_at", "id"],
    "since": {"send": "since", "inclusive": True, "precision": "1us"},
    "pages": {"by": "token", "take": "next", "send": "cursor", "size": {"send": "limit", "max": 10}},
}
_BY_TOKEN = Listing("token", ("updated_at", "id"), "inclusive", page_max=10)
_MANY = 10**6
_numbers = itertools.count(1)


@dataclass
class Stage:
    """An API with its records, a source that describes it, and a store for the copy."""

    api: HostileApi
    source: Source
    connect: Connect
    authority: Authority
    sessions: ExitStack

    def client(self, url: str = "", *, verify: bool = True, **options: Any) -> ApiClient:
        """A client; ``verify`` False: it does not know the authority of our own."""
        session = self.sessions.enter_context(requests.Session())
        session.trust_env = False  # what the machine's own proxies make of it is another matter
        if verify:
            session.verify = str(self.authority.file)
        return ApiClient(self.source, session, url or self.api.url, **{"bounds": BOUNDS, **options})

    @contextmanager
    def login_server(self, **options: Any) -> Iterator[tuple[LoginServer, Callable[..., TokenEndpoint]]]:
        """A token endpoint, and what asks it."""
        with LoginServer(**options) as server, requests.Session() as session:
            session.trust_env = False
            yield server, lambda secret="secret": TokenEndpoint(session, server.url, "client", secret)


Broken: TypeAlias = Callable[[Stage], AbstractContextManager[ApiClient]]
"""While the block lasts, the client that it gives meets the trouble."""


@dataclass(frozen=True)
class Trouble:
    """``does`` is what the API does, in Markdown. ``ends``: the error that it comes to; None: the copy is exact.

    ``how`` the client goes on, where that is not in growing pauses. ``api``: options of the server, ``listing`` its
    listing, ``spec`` of the object (None leaves a key out), ``limit`` of the source. ``waits``: with real pauses.
    ``unbroken``: the client after the repair, which with ``restart`` starts over.
    """

    name: str
    does: str
    broken: Broken
    ends: type[ExtractError] | None = None
    how: str = ""
    api: Callable[[Authority], Mapping[str, Any]] = lambda authority: {}
    listing: Listing = _BY_TOKEN
    spec: Mapping[str, Any] = field(default_factory=dict)
    limit: str = ""
    waits: bool = False
    restart: bool = False
    unbroken: Callable[[Stage], ApiClient] = Stage.client


@dataclass(frozen=True)
class Played:
    """What came of a trouble. ``asked``: how often the page at which it stopped was asked for.

    ``wrong``: records that were missing, too many or other after the run that got through, and after the repair.
    """

    trouble: Trouble
    error: ExtractError | None
    asked: int
    wrong: tuple[int, int]


# -- ways to break it -------------------------------------------------------------------------------------------------


def always(fault: Fault | Kind, first: int = 2, **options: Any) -> Broken:
    """Each request from the ``first`` on gets this fault."""

    @contextmanager
    def broken(stage: Stage) -> Iterator[ApiClient]:
        stage.api.before(first, lambda: stage.api.faults(1, [fault], in_a_row=_MANY))
        yield stage.client(**options)
        stage.api.faults(0)

    return broken


def once(fault: Fault | Kind, number: int = 3) -> Broken:
    """One request gets this fault."""

    @contextmanager
    def broken(stage: Stage) -> Iterator[ApiClient]:
        stage.api.fault(number, fault)
        yield stage.client()

    return broken


def quiet(**options: Any) -> Broken:
    """Nothing is broken but what the API is like, and perhaps the client."""

    @contextmanager
    def broken(stage: Stage) -> Iterator[ApiClient]:
        yield stage.client(**options)

    return broken


@contextmanager
def _to_plain_port(stage: Stage) -> Iterator[ApiClient]:
    yield stage.client(stage.api.url.replace("http:", "https:"))


@contextmanager
def _to_closed_port(stage: Stage) -> Iterator[ApiClient]:
    gone = HostileApi()
    gone.close()
    yield stage.client(gone.url)


@contextmanager
def _renewing(stage: Stage) -> Iterator[ApiClient]:
    stage.api.fault(3, "401")
    with stage.login_server() as (_, endpoint):
        yield stage.client(auth=ClientCredentials(endpoint()))


@contextmanager
def _refused_fresh(stage: Stage) -> Iterator[ApiClient]:
    with stage.login_server() as (_, endpoint), always("401")(stage):
        yield stage.client(auth=ClientCredentials(endpoint()))


@contextmanager
def _unknown_client(stage: Stage) -> Iterator[ApiClient]:
    with stage.login_server() as (_, endpoint):
        yield stage.client(auth=ClientCredentials(endpoint("another secret")))


@contextmanager
def _lost_token(stage: Stage) -> Iterator[ApiClient]:
    with stage.login_server() as (server, endpoint):
        seed = server.log_in()
        server.revoke_all()
        with PostgresTokens(stage.connect, BOOKS, "crm_api", seed, "secret") as tokens:
            yield stage.client(auth=RefreshToken(endpoint(), tokens))


def _certified(*, verify: bool = True, **options: Any) -> Broken:
    """The address that is asked shows this certificate."""

    @contextmanager
    def broken(stage: Stage) -> Iterator[ApiClient]:
        with HostileApi(tls=stage.authority.server(**options)) as other:
            yield stage.client(other.url, verify=verify)

    return broken


# -- the troubles -----------------------------------------------------------------------------------------------------


def _pages(by: str) -> Mapping[str, Any]:
    """An object that asks for fifty records a page."""
    if by == "token":
        pages = {**_SPEC["pages"], "size": {"send": "limit", "max": 50}}
        return {"pages": pages}
    size = {"send": "per_page" if by == "page" else "limit", "max": 50}
    return {"since": None, "order": ["id"], "pages": {"by": by, "send": by, "size": size}}


def _status(kind: Kind, does: str) -> Trouble:
    return Trouble(kind, f"answers {kind}: {does}", always(Fault(kind, retry_after=None)), ApiUnavailableError)


def _no_page(kind: Kind, does: str) -> Trouble:
    return Trouble(kind, f"answers 200, {does}", always(kind), WrongAnswerError)


def _certificate(name: str, does: str, **options: Any) -> Trouble:
    return Trouble(name, f"has a certificate {does}", _certified(**options), CertificateError, api=_trusted)


def _trusted(authority: Authority) -> Mapping[str, Any]:
    return {"tls": authority.server()}


_BY_FILTER = "goes on by `since`"
_BY_ROWS = "goes on by what has come, not by what was asked for"
_NO_TLS = "speaks no TLS where `https` is asked for"
_SAYS_WHEN = "when the API says"
_NUMBERED = Listing("page", ("id",), page_max=10)
_OFFSETS = Listing("offset", ("id",), page_max=10)
_ORDERED: Mapping[str, Any] = {"since": None, "order": ["id"]}

TROUBLES: tuple[Trouble, ...] = (
    # No connection, no whole answer
    Trouble("dns", "has a name that is not known", quiet(url="http://nowhere.invalid"), ApiUnavailableError),
    Trouble("closed port", "does not listen", _to_closed_port, ApiUnavailableError),
    Trouble("reset", "resets the connection", always("reset"), ApiUnavailableError),
    Trouble(
        "stall",
        "takes the request and is silent",
        always(Fault("stall", seconds=60), first=1, bounds=Bounds(read=0.3)),
        ApiUnavailableError,
    ),
    Trouble(
        "slow",
        "sends a few bytes now and then, and does not come to an end",
        always(Fault("slow", seconds=60), first=1, bounds=Bounds(total=0.3)),
        ApiUnavailableError,
    ),
    Trouble("cut", "closes the connection in the middle of an answer", always("cut"), ApiUnavailableError),
    Trouble("not_gzip", "says gzip and sends something else", always("not_gzip"), ApiUnavailableError),
    Trouble("huge", "sends an answer larger than `max_size`", always(Fault("huge", size=8 << 20)), AnswerTooLargeError),
    # TLS
    Trouble("plain port", _NO_TLS, _to_plain_port, ApiUnavailableError),
    _certificate("self-signed", "signed by itself", by_itself=True),
    _certificate("unknown authority", "of an authority that is not trusted here", verify=False),
    Trouble("its file as verify", "the same, and `verify` names the authority's file", quiet(), api=_trusted),
    _certificate("expired certificate", "that has expired", expired=True),
    _certificate("wrong host", "made for another host", host="elsewhere.example"),
    # Asked too often
    Trouble(
        "429",
        "answers 429, and says when to come back",
        always(Fault("429", retry_after=1)),
        ApiUnavailableError,
        how=_SAYS_WHEN,
    ),
    Trouble("429 alone", "answers 429, and nothing more", always(Fault("429", retry_after=None)), ApiUnavailableError),
    Trouble(
        "403 as a limit",
        "answers 403 with `Retry-After`",
        always(Fault("403", retry_after=1)),
        ApiUnavailableError,
        how=_SAYS_WHEN,
    ),
    Trouble(
        "limit",
        "allows three requests a second, and tells of it",
        quiet(),
        how="waits until the quota is full again",
        api=lambda authority: {"limit": (3, 1.0), "rate_headers": "ietf"},
        waits=True,
    ),
    Trouble(
        "quota spent",
        "grants nothing for two hours",
        always(Fault("429", retry_after=7200)),
        QuotaSpentError,
        how="does not wait that long: stops",
        unbroken=lambda stage: stage.client(quota=MemoryQuota()),
    ),
    Trouble(
        "own limit spent",
        "is asked twice an hour at most, as `limit` says",
        quiet(),
        QuotaSpentError,
        how="does not wait that long: stops",
        limit="2/h",
        unbroken=lambda stage: stage.client(quota=MemoryQuota()),
    ),
    # Statuses that pass
    _status("408", "it waited too long for the request"),
    _status("425", "too early"),
    _status("500", "an error of its own"),
    _status("502", "a proxy has no answer"),
    _status("503", "not now"),
    _status("504", "a proxy gave up waiting"),
    # The login
    Trouble("401", "answers 401", always("401"), LoginError),
    Trouble(
        "401 to a new token",
        "answers 401 to a token that was just made, too",
        _refused_fresh,
        LoginError,
        how="with a new token",
    ),
    Trouble(
        "401 to an old token", "answers 401 to a token that was good before", _renewing, how="asks again with a new one"
    ),
    Trouble("403", "answers 403", always("403"), LoginError),
    Trouble("invalid client", "refuses the client at its token URL", _unknown_client, LoginError),
    Trouble("token lost", "does not know the refresh token any more", _lost_token, TokenLostError),
    # Refusals and redirects
    Trouble("404", "answers 404", always("404", first=1), RequestRefusedError),
    Trouble("410", "answers 410", always("410", first=1), RequestRefusedError),
    Trouble("422", "answers 422", always("422", first=1), RequestRefusedError),
    Trouble(
        "redirect",
        "redirects to another host",
        always(Fault("redirect", location="https://elsewhere.example/contacts")),
        RequestRefusedError,
    ),
    # 200, and no page
    _no_page("html", "and it is a page for people"),
    _no_page("csv", "and it is CSV"),
    _no_page("error_200", "and it tells of an error"),
    _no_page("empty", "and nothing is in it"),
    _no_page("truncated", "and the JSON breaks off"),
    _no_page("half_gzip", "and the gzip breaks off"),
    # Pages
    Trouble("expire", "does not know a page token any more", once("expire"), how=_BY_FILTER),
    Trouble(
        "expire without filter",
        "the same, of an object without `since`",
        once("expire"),
        TokenExpiredError,
        spec=_ORDERED,
        restart=True,
    ),
    Trouble("repeat_token", "gives the same token again", once("repeat_token"), how=_BY_FILTER),
    Trouble("repeat_page", "gives the same page again", once("repeat_page"), how=_BY_FILTER),
    Trouble(
        "repeat_token without filter",
        "one of these, of an object without `since`",
        always("repeat_token"),
        RepeatedPageError,
        spec=_ORDERED,
        restart=True,
    ),
    Trouble("misorder", "breaks the order that it promises", always("misorder"), UnorderedStreamError),
    Trouble("empty_page", "gives an empty page, and a token", once("empty_page"), how="goes on with the token"),
    Trouble("short_page", "gives half a page, and a token", once("short_page"), how="goes on with the token"),
    Trouble("cap, token", "gives ten records where fifty are asked for", quiet(), how=_BY_ROWS, spec=_pages("token")),
    Trouble("cap, page", "the same, by page numbers", quiet(), how=_BY_ROWS, listing=_NUMBERED, spec=_pages("page")),
    Trouble("cap, offset", "the same, by offsets", quiet(), how=_BY_ROWS, listing=_OFFSETS, spec=_pages("offset")),
)
BY_NAME: Mapping[str, Trouble] = {trouble.name: trouble for trouble in TROUBLES}


# -- playing ----------------------------------------------------------------------------------------------------------


def played(trouble: Trouble, connect: Connect) -> Played:
    """Run into the trouble, then repair it and run again, and compare the copy with the API."""
    spec = {name: value for name, value in {**_SPEC, **trouble.spec}.items() if value is not None}
    described: dict[str, Any] = {"source": f"crm{next(_numbers)}", "connection": "crm_api", "objects": {OBJECT: spec}}
    if trouble.limit:
        described["limit"] = trouble.limit
    source = parse_source(described, "test")
    migrate(connect, [source], BOOKS)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as sessions, _pauses(real=trouble.waits):
        authority = Authority(Path(folder))
        with HostileApi(listings={"/contacts": trouble.listing}, **trouble.api(authority)) as api:
            api.insert(RECORDS)
            stage = Stage(api, source, connect, authority, sessions)
            with trouble.broken(stage) as client:
                error = _error(stage, client)
                asked = client.requests - (0 if error is None else (error.page or 1) - 1)
            first = 0 if error is not None else _wrong(stage)
            if trouble.restart:
                api.expire_tokens()  # from the beginning on there are other tokens: one that has expired stays so
            repaired = trouble.unbroken(stage)
            again = _error(stage, repaired, reset=trouble.restart)
            assert again is None, f"after the repair: {again}"
            return Played(trouble, error, asked, (first, _wrong(stage)))


@contextmanager
def _pauses(*, real: bool) -> Iterator[None]:
    """Take the pauses between tries away, unless they are the point."""
    sleep = time.sleep if real else (lambda seconds: None)
    with (
        patch("tenacity.nap.time", SimpleNamespace(sleep=sleep)),
        patch("airflow_extract_provider.extract.api.client.pause", lambda halted, seconds: sleep(seconds)),
    ):
        yield


def _error(stage: Stage, client: ApiClient, *, reset: bool = False) -> ExtractError | None:
    try:
        summary = run(
            stage.source, OBJECT, postgres=stage.connect, client=client, reset=reset, settings=Settings(BOOKS)
        )
    except ExtractError as exc:
        return exc
    assert summary.complete
    return None


def _wrong(stage: Stage) -> int:
    """How many records are missing, too many, or not as the API has them."""
    table = sql.Identifier(*stage.source.table(OBJECT))
    with stage.connect() as conn:
        rows = conn.execute(sql.SQL("select key, data::text, deleted_at from {}").format(table)).fetchall()
    copy = {key: None if deleted_at else json.loads(data) for key, data, deleted_at in rows}
    live = stage.api.live()
    return sum(1 for key in {*copy, *live} if copy.get(key) != live.get(key))
