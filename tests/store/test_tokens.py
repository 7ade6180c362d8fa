"""Shared tokens on a real Postgres and a real token endpoint: seeds, renewals, losses, and what two do at once."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta, timezone
from typing import Any

import psycopg
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.api.endpoint import TokenEndpoint
from airflow_extract_provider.extract.api.oauth import OnSecret, RefreshToken
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    ExtractError,
    LoginError,
    QuotaSpentError,
    StoreUnavailableError,
    TokenLostError,
)
from airflow_extract_provider.extract.store.connection import Connect, Connection, connecting, named_errors
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.store.tokens import PostgresTokens
from airflow_extract_provider.testing.hostile_faults import Answer
from airflow_extract_provider.testing.login import LoginServer
from airflow_extract_provider.testing.postgres import PostgresServer
from tests.store.applier import in_thread
from tests.ways import chosen, direct_only

LONG = timedelta(minutes=1)
CUT = (
    "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() "
    "and pid <> pg_backend_pid() and backend_type = 'client backend'"
)
"""Ends all connections but the one that asks."""

_ids = itertools.count()


class Login:
    """A connection `id` of a vendor, as a run has it; each use of it is a run of its own unless told otherwise."""

    def __init__(self, connect: Connect, server: LoginServer) -> None:
        self.connect, self.server = connect, server
        self.id = f"shop_{next(_ids)}"
        self.seed = server.log_in()
        self.secret: str | None = "secret"

    @contextmanager
    def run(
        self,
        connect: Connect | None = None,
        *,
        tries: int = 2,
        endpoint: type[TokenEndpoint] = TokenEndpoint,
        on_secret: OnSecret | None = None,
        **spans: timedelta,
    ) -> Iterator[Run]:
        """A run; ``spans`` are the tokens', a minute if nothing is said."""
        spans = {"longest": LONG, "saving": LONG, "passing": LONG, **spans}
        with requests.Session() as session, requests.Session() as own:
            session.trust_env = own.trust_env = False
            asked = endpoint(own, self.server.url, "client", self.secret, tries=tries)
            with PostgresTokens(connect or self.connect, "extract", self.id, self.seed, self.secret, **spans) as tokens:
                yield Run(session, RefreshToken(asked, tokens, on_secret), self.server.api_url)

    def get(self) -> list[int]:
        """The statuses of one request in a run of its own."""
        with self.run() as run:
            return run.get()


class Brisk(TokenEndpoint):
    """Says that it takes less long than it does."""

    @property
    def longest(self) -> float:
        """Too short a time, in seconds."""
        return 0.1


class Run:
    """A login in use."""

    def __init__(self, session: requests.Session, auth: RefreshToken, url: str) -> None:
        self.session, self.auth, self.url = session, auth, url

    def get(self) -> list[int]:
        """The statuses of a request, which is sent once more where the login says so, as the client does."""
        with self.auth.admitted() as signer:
            status = self.send(signer)
        return [status, *self.get()] if status == 401 and self.auth.refused() else [status]

    def send(self, signer: Any) -> int:
        """A request."""
        return self.session.get(self.url, auth=signer, timeout=10).status_code


@pytest.fixture(scope="module")
def dsn_of_tokens(postgres_server: PostgresServer) -> Iterator[str]:
    """One migrated database for all of these tests: making it takes longer than each of them."""
    name = f"tokens_{os.getpid()}"
    dsn = postgres_server.create_database(name)
    migrate(connecting(dsn), [])
    yield dsn
    postgres_server.drop_database(name)


@pytest.fixture
def connect(request: pytest.FixtureRequest, dsn_of_tokens: str) -> Connect:
    """Opens connections to the database, which holds no tokens."""
    pooled = chosen() == "pgbouncer"
    connect = connecting(request.getfixturevalue("pooler").dsn(dsn_of_tokens) if pooled else dsn_of_tokens)
    with connect() as conn:
        conn.execute("truncate extract.oauth_token")
    return connect


@pytest.fixture
def login(connect: Connect) -> Iterator[Callable[..., Login]]:
    """Makes logins at a server of some habits."""
    servers: list[LoginServer] = []

    def make(**habits: Any) -> Login:
        servers.append(LoginServer(**habits).__enter__())
        return Login(connect, servers[-1])

    yield make
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the pauses between tries away."""
    noted: list[float] = []
    monkeypatch.setattr(TokenEndpoint, "_sleep", lambda endpoint, seconds: noted.append(seconds))
    return noted


# --- Seeds and renewals -----------------------------------------------------------------------------------------------


def test_tokens_outlive_a_run(login: Callable[..., Login], conn: Connection) -> None:
    """The seed is spent once. Later runs use what is stored, and renew it when it has nearly run out."""
    found = login(lives=100.0)
    assert [found.get() for _ in range(3)] == [[200]] * 3
    assert found.server.renewals == 1
    conn.execute("update extract.oauth_token set renew_at = renew_at - interval '91 seconds'")
    assert found.get() == [200]
    assert found.server.renewals == 2
    row = conn.execute("select number, expires_at - renewed_at, spending from extract.oauth_token").fetchone()
    assert row is not None
    assert (row[0], row[2]) == (2, None)
    assert timedelta(seconds=95) < row[1] <= timedelta(seconds=100)
    assert found.server.revoked_uses == []


def test_a_refresh_token_may_stay(login: Callable[..., Login]) -> None:
    """An endpoint that gives no new refresh token takes the old one again (RFC 6749, section 6)."""
    found = login(rotates=False)
    assert found.get() == [200]
    found.server.revoke_access()
    assert found.get() == [401, 200]
    assert {fields["refresh_token"] for fields in found.server.asked} == {found.seed}


def test_one_renewal_for_all_who_were_refused(login: Callable[..., Login]) -> None:
    """Two runs get 401 for the same token: one renews it, the other uses what that one got."""
    found = login()
    with found.run() as one, found.run() as two:
        assert (one.get(), two.get()) == ([200], [200])
        with one.auth.admitted() as first, two.auth.admitted() as second:
            found.server.revoke_access()
            assert (one.send(first), two.send(second)) == (401, 401)
        assert (one.auth.refused(), two.auth.refused()) == (True, True)
        assert (one.get(), two.get()) == ([200], [200])
    assert found.server.renewals == 2


def test_a_new_token_that_is_refused(login: Callable[..., Login]) -> None:
    """It is not renewed again: the API refuses more than the token. Later, when it was good for a while, it is."""
    found = login()
    with found.run() as run:
        assert run.get() == [200]
        found.server.revoke_access()
        found.server.before_sending = lambda number: found.server.revoke_access()
        assert run.get() == [401, 401]
        found.server.before_sending = lambda number: number
        assert run.get() == [200]
    assert found.server.renewals == 3


def test_a_new_seed_is_followed(login: Callable[..., Login], conn: Connection) -> None:
    """A person has logged in anew: what is stored is forgotten. A run that still has the earlier seed must not bring it
    back: it says so, and the newer one stays. Its next try reads the connection anew."""
    found = login()
    old = found.seed
    assert found.get() == [200]
    found.seed = found.server.log_in()
    assert found.get() == [200]
    assert [fields["refresh_token"] for fields in found.server.asked] == [old, found.seed]
    new, found.seed = found.seed, old
    with pytest.raises(ApiUnavailableError, match="was replaced by a newer one"):
        found.get()
    found.seed = new
    assert found.get() == [200]
    assert found.server.renewals == 2


def test_only_the_last_seeds_are_kept(login: Callable[..., Login], conn: Connection) -> None:
    """The row does not grow."""
    found = login()
    for _ in range(18):
        found.seed = found.server.log_in()
        assert found.get() == [200]
    assert conn.execute("select cardinality(former) from extract.oauth_token").fetchone() == (16,)


# --- Losses -----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_not_accepted(login: Callable[..., Login]) -> None:
    """The error says so, names connection and field, and is there again at once, without asking the API. A new seed
    ends that."""
    found = login()
    assert found.get() == [200]
    found.server.revoke_all()
    for _ in range(3):
        with pytest.raises(TokenLostError) as caught:
            found.get()
        assert f"does not accept the refresh token of the connection '{found.id}' any more" in caught.value.what
        assert f"into the field `refresh_token` of the connection '{found.id}'" in caught.value.todo
    assert len(found.server.asked) == 2
    found.seed = found.server.log_in()
    assert found.get() == [200]


@pytest.mark.parametrize("is_spent", [False, True])
def test_a_refusal_that_passes(
    login: Callable[..., Login], conn: Connection, is_spent: bool, pauses: list[float]
) -> None:
    """An account that was locked by mistake, an address that was not allowed: after an hour the refresh token is tried
    again. One that was spent by a run that has ended stays lost, until a person deletes the row."""
    found = login(rotates=False)
    answers = [Answer(503, b"")] * is_spent + [Answer(400, b'{"error": "invalid_grant"}')]
    found.server.fault = lambda number, fields: answers[number - 1] if number <= len(answers) else None
    ago = "update extract.oauth_token set lost_at = now() - %s::interval"
    for passed in ("0 min", "59 min", "61 min") if is_spent else ("0 min", "59 min"):
        conn.execute(ago, [passed])
        with pytest.raises(TokenLostError, match="was spent" if is_spent else "does not accept"):
            found.get()
    assert len(found.server.asked) == len(answers)
    conn.execute("delete from extract.oauth_token" if is_spent else ago, None if is_spent else ["61 min"])
    assert [found.get(), found.get()] == [[200], [200]]
    assert found.server.renewals == 1


@pytest.mark.parametrize("told", [{"token_type": "mac"}, {"access_token": None}, {"error": "odd"}])
def test_an_answer_without_use(login: Callable[..., Login], conn: Connection, told: dict[str, Any]) -> None:
    """The new refresh token in it is the only one that counts: it is kept, and the next run goes on with it. A token of
    no type is one of the usual type."""
    found = login(ends_family=True)
    found.server.told = lambda fields: {**fields, **told}
    with pytest.raises(LoginError), found.run() as run:
        run.get()
    assert {found.server._refresh[found.seed].successor} <= set(run.auth.secrets)
    assert not _noted(conn)
    found.server.told = lambda fields: {name: value for name, value in fields.items() if name != "token_type"}
    assert found.get() == [200]
    assert (found.server.renewals, found.server.reused) == (2, 0)


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_an_answer_that_does_not_arrive(login: Callable[..., Login], grace: float, pauses: list[float]) -> None:
    """The token is spent and the connection breaks: it is tried again at once. Where that is too late, the error says
    that it was spent, since when it is."""
    found = login(grace=grace)
    found.server.fault = _spend_once(found.server)
    if grace:
        assert found.get() == [200]
    else:
        for _ in range(2):
            with pytest.raises(TokenLostError, match=r"was spent at 20\d\d-.* UTC by a run that ended before"):
                found.get()
    assert len(found.server.asked) == 2
    assert len(pauses) == 1


def _spend_once(server: LoginServer) -> Callable[..., Answer | None]:
    """The endpoint does its work at the next request, and the connection breaks."""
    next_one = len(server.asked) + 1

    def fault(number: int, fields: dict[str, str]) -> Answer | None:
        if number != next_one:
            return None
        server._granted(1, server._refresh[fields["refresh_token"]])
        return Answer(200, b"", sent="reset")

    return fault


def test_a_token_that_may_be_revoked_is_not_sent(login: Callable[..., Login], conn: Connection) -> None:
    """A run is refused a token that would live for long, and ends between the renewal and its storing: the renewal has
    revoked the token for all others too, and they do not try it."""
    found = login(grace=60.0)
    assert found.get() == [200]
    found.server.fault = _spend_once(found.server)
    with found.run(tries=1) as run:
        assert run.get() == [200]
        assert run.auth.refused()
        for get in (run.get, found.get):
            with pytest.raises(ApiUnavailableError):
                get()
    _later(conn)
    assert found.get() == [200]
    assert (found.server.renewals, found.server.revoked_uses) == (3, [])


@pytest.mark.parametrize("answer", [Answer(200, b"<html>"), Answer(503, b""), Answer(200, b"", sent="reset")])
def test_what_may_be_spent_is_noted(
    login: Callable[..., Login], answer: Answer, conn: Connection, pauses: list[float]
) -> None:
    """A run gives up without knowing: the note stays, and a later run tries once more; it does not wait for one that
    has said that it has ended."""
    found = login()
    found.server.fault = lambda number, fields: answer
    with pytest.raises((LoginError, ApiUnavailableError)):
        found.get()
    assert _noted(conn)
    found.server.fault = lambda number, fields: None
    conn.execute("update extract.oauth_token set not_before = null")
    assert found.get() == [200]
    assert not _noted(conn)


def test_a_doubt_remains(login: Callable[..., Login], conn: Connection) -> None:
    """A run spends the token and learns nothing. The next one is refused for another reason: that clears nothing up,
    and when the token turns out to be spent, the error tells since when."""
    found = login()
    found.server.fault = _spend_once(found.server)
    with found.run(tries=1) as run, pytest.raises(ApiUnavailableError):
        run.get()
    _later(conn)
    (since,) = conn.execute("select spending_since from extract.oauth_token").fetchall()[0]
    found.server.fault = lambda number, fields: Answer(401, b'{"error": "invalid_client"}')
    with pytest.raises(LoginError):
        found.get()
    assert _noted(conn)
    found.server.fault = lambda number, fields: None
    with pytest.raises(TokenLostError, match=f"was spent at {since.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"):
        found.get()


@pytest.mark.parametrize("code", ["invalid_client", "temporarily_out", None])
def test_what_was_refused_is_not_spent(login: Callable[..., Login], code: str | None, conn: Connection) -> None:
    """The client is refused, or nobody listens: no note stays that would tell of a loss later."""
    found = login()
    url = found.server.url
    if code is None:
        found.server.url = "http://127.0.0.1:9/token"
    found.server.fault = lambda number, fields: Answer(400, b'{"error": "%s"}' % str(code).encode())
    with pytest.raises(ApiUnavailableError if code is None else LoginError), found.run(tries=1) as run:
        run.get()
    assert not _noted(conn)
    found.server.url = url
    found.server.fault = lambda number, fields: None
    _later(conn)
    assert found.get() == [200]


def _later(conn: Connection) -> None:
    """A while has passed: who has left a note has ended, and the token endpoint may be asked again."""
    conn.execute("update extract.oauth_token set spending_until = now(), not_before = null")


def _noted(conn: Connection) -> bool:
    return conn.execute("select from extract.oauth_token where spending is not null").fetchone() is not None


# --- A token endpoint that is down ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(503, b""), ApiUnavailableError),
        (Answer(429, b"", {"Retry-After": "40"}), ApiUnavailableError),
        (Answer(429, b"", {"Retry-After": "3600"}), QuotaSpentError),
        (Answer(503, b"", {"Retry-After": "3600"}), QuotaSpentError),
    ],
)
def test_one_asks_for_all(
    login: Callable[..., Login],
    conn: Connection,
    answer: Answer,
    error: type[ExtractError],
    pauses: list[float],
) -> None:
    """What it says to one is said to all others, at once and in the same words, until it may be asked again. A long
    pause is an error that makes a task leave its slot until then."""
    found = login()
    found.server.fault = lambda number, fields: answer
    with pytest.raises(error) as caught:
        found.get()
    asked = len(found.server.asked)
    for _ in range(3):
        with pytest.raises(error) as again:
            found.get()
        assert again.value.what == caught.value.what
        assert again.value.until is not None
    assert len(found.server.asked) == asked
    left = conn.execute("select extract(epoch from not_before - now())::float8 from extract.oauth_token").fetchone()
    assert left is not None
    told = float(answer.headers.get("Retry-After", "30"))
    assert told - 20 < left[0] <= told
    found.server.fault = lambda number, fields: None
    _later(conn)
    assert found.get() == [200]
    assert conn.execute("select not_before, refusal, leaves_slot from extract.oauth_token").fetchall() == [(None,) * 3]


@pytest.mark.parametrize(("status", "goes_on"), [(429, True), (503, False)])
def test_the_last_minute_of_a_token(
    login: Callable[..., Login], conn: Connection, status: int, goes_on: bool, pauses: list[float]
) -> None:
    """Until its end a token goes out where no other can be had; but not one that may be revoked, since the endpoint may
    have heard."""
    found = login()
    assert found.get() == [200]
    conn.execute("update extract.oauth_token set renew_at = now()")
    found.server.fault = lambda number, fields: Answer(status, b"")
    asked = len(found.server.asked) + 2
    for _ in range(2):
        if goes_on:
            assert found.get() == [200]
        else:
            with pytest.raises(ApiUnavailableError):
                found.get()
    assert len(found.server.asked) == asked
    conn.execute("update extract.oauth_token set expires_at = now()")
    with pytest.raises(ApiUnavailableError):
        found.get()


def test_another_client_secret(login: Callable[..., Login]) -> None:
    """What is stored cannot be read with it: the error says so and nothing is spent; with a new seed all is well."""
    found = login()
    assert found.get() == [200]
    found.secret = "another"
    found.server._client = ("client", "another")
    with pytest.raises(TokenLostError, match="its client secret has changed"):
        found.get()
    assert len(found.server.asked) == 1
    found.seed = found.server.log_in()
    assert found.get() == [200]


def test_a_public_client(login: Callable[..., Login], conn: Connection) -> None:
    """Without a secret the key comes from the seed."""
    found = login(client_secret=None)
    found.secret = None
    assert [found.get(), found.get()] == [[200], [200]]
    assert found.server.asked[0]["client_id"] == "client"
    assert found.server.renewals == 1


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_nothing_of_a_token_is_shown(
    login: Callable[..., Login], conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the row, not in an error of any form, a log line or a repr; and the objects cannot be pickled."""
    caplog.set_level(logging.DEBUG, "airflow_extract_provider")
    found, shown = login(), []
    with found.run() as run:
        run.get()
        shown += [repr(run.auth), repr(run.auth._tokens), repr(run.auth._endpoint), repr(run.auth._known)]
        for each in (run.auth, run.auth._tokens, run.auth._endpoint):
            with pytest.raises(TypeError, match="is not pickled"):
                pickle.dumps(each)
        found.server.revoke_all()
        with pytest.raises(TokenLostError) as caught:
            run.get()
        assert {found.seed, *found.server.tokens, "secret"} <= set(run.auth.secrets)
    shown += [*map(str, conn.execute("select row_to_json(t) from extract.oauth_token t").fetchall()), caplog.text]
    shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value), str(pickle.dumps(caught.value))]
    row = conn.execute("select access_token, refresh_token, seed from extract.oauth_token").fetchone()
    assert row is not None
    shown += [bytes(each).decode(errors="replace") for each in row]
    assert [text for text in shown for token in found.server.tokens if token in text] == []
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_new_token_is_told_when_it_is_stored(login: Callable[..., Login], connect: Connect) -> None:
    """Who is told of secrets may be slow, or never answer: a task that ends meanwhile would take the token with it."""
    found, told = login(), dict[str, Any]()

    def tell(text: str) -> None:
        with connect() as other:
            told[text] = other.execute("select number, spending from extract.oauth_token").fetchone()

    with found.run(on_secret=tell) as run:
        assert run.get() == [200]
    assert told["secret"] is None
    access, refresh = found.server.tokens[1:]
    assert {told[found.seed], told[access], told[refresh]} == {(1, None)}
    assert set(told) <= set(run.auth.secrets)


# --- Postgres ---------------------------------------------------------------------------------------------------------


def test_a_lost_connection_costs_nothing(login: Callable[..., Login], conn: Connection) -> None:
    """Cut between requests, in the middle of one, and between an answer of the token endpoint and its storing: the run
    goes on, and the tokens are stored."""
    found = login()
    with found.run() as run:
        found.server.before_sending = lambda number: conn.execute(CUT)
        assert run.get() == [200]
        conn.execute(CUT)
        assert run.get() == [200]
        with run.auth.admitted() as signer:
            conn.execute(CUT)
            assert run.send(signer) == 200
        assert run.get() == [200]
    assert found.server.renewals == 1
    assert found.get() == [200]


def test_a_cut_connection_does_not_spend_twice(login: Callable[..., Login], conn: Connection) -> None:
    """The lock of a renewal is gone, and the vendor has not answered yet: another run does not try the token that is
    being spent. It waits for a moment, and stops then with an error that tells when to come again."""
    found = _due(login, conn, seeded=True, grace=0.0, ends_family=True)
    held, go = _held(found.server)
    renewal = in_thread(found.get)
    assert held.wait(30)
    conn.execute(CUT)
    with found.run(passing=timedelta()) as run, pytest.raises(StoreUnavailableError) as caught:
        run.get()
    (until, life) = conn.execute(
        "select spending_until, spending_until - spending_since from extract.oauth_token"
    ).fetchall()[0]
    assert caught.value.until == until
    assert f"Run again after {until.astimezone(timezone.utc):%H:%M:%S} UTC" in caught.value.todo
    # All tries, the last one's bounds, and the saving with what it may wait for its lock.
    assert (
        timedelta(seconds=-0.1) < life - (timedelta(seconds=120 + 10 + 30 + 30) + 1.1 * LONG) < timedelta(seconds=0.1)
    )
    patient = in_thread(found.get)
    go.set()
    assert (renewal.result(30), patient.result(30)) == ([200], [200])
    assert (found.server.renewals, found.server.reused, found.server.revoked_uses) == (2, 0, [])


def _held(server: LoginServer) -> tuple[threading.Event, threading.Event]:
    """An answer is held back, and may go."""
    held, go = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        held.set()
        go.wait(30)

    server.before_sending = hold
    return held, go


def test_a_note_that_has_waited_is_made_anew(login: Callable[..., Login], conn: Connection) -> None:
    """A renewal waits for its lock, behind a process that is stopped, until its note is nearly over: what it would tell
    others of its end would be wrong."""
    found = login()
    actor = Actor(found, conn, None)
    while not _noted(conn):
        actor.step()
    conn.execute("update extract.oauth_token set spending_until = spending_until - interval '1 minute'")
    left: list[Any] = []
    asked = "select spending_until - clock_timestamp() from extract.oauth_token"
    found.server.before_sending = lambda number: left.extend(conn.execute(asked).fetchall()[0])
    while not actor.ended:
        actor.step()
    actor.join()
    assert actor.statuses == [200]
    assert left[0] > timedelta(seconds=190) + LONG


@direct_only
def test_a_server_that_only_reads(login: Callable[..., Login], connect: Connect, conn: Connection) -> None:
    """A failover between the vendor's answer and its storing: the server that is left, and the first one that is found
    after it, only read. It is tried until one takes it. The error of others names it."""
    found, opened = login(), list[Connection]()
    default = f"alter database {conn.info.dbname} {{}} default_transaction_read_only"

    def counted() -> Connection:
        if len(opened) == 3:
            conn.execute(default.format("reset").encode())
        opened.append(connect())
        return opened[-1]

    def fail_over(number: int) -> None:
        opened[0].execute("set transaction read only")
        conn.execute(f"{default.format('set')} = on".encode())

    found.server.before_sending = fail_over
    try:
        with found.run(counted) as run:
            assert run.get() == [200]
            assert len(opened) == 4
            conn.execute(f"{default.format('set')} = on".encode())
            with connect() as other, pytest.raises(StoreUnavailableError, match="only reads"), named_errors():
                other.execute("truncate extract.oauth_token")
    finally:
        conn.execute(default.format("reset").encode())
    assert found.get() == [200]
    assert found.server.renewals == 1


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_renewal_outlives_a_crash_of_the_server(
    login: Callable[..., Login], dsn_of_tokens: str, conn: Connection, is_cut: bool
) -> None:
    """Whatever the database's or the role's default is, its commits wait for the disk; those of the saving too."""
    found, settings = login(), list[Any]()

    class Watched(psycopg.Connection[Any]):
        def commit(self) -> None:
            settings.extend(self.execute("show synchronous_commit").fetchall())
            super().commit()

    if is_cut:
        found.server.before_sending = lambda number: conn.execute(CUT)
    with found.run(lambda: Watched.connect(dsn_of_tokens, options="-c synchronous_commit=off")) as run:
        assert run.get() == [200]
    assert settings == [("on",)] * 2


def test_closing_waits_for_a_renewal(login: Callable[..., Login], conn: Connection) -> None:
    """A task is stopped, or fails, while the thread that reads waits for new tokens: they are stored before the login
    is closed. Nothing is renewed after that, and it is not waited for without an end."""
    found = login()
    held, go = _held(found.server)
    with found.run() as run:
        reader = in_thread(run.get)
        assert held.wait(30)
        closing = in_thread(run.auth.close)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        go.set()
        closing.result(30)
        assert conn.execute("select number, spending from extract.oauth_token").fetchall() == [(1, None)]
        assert reader.exception(30) is None or isinstance(reader.exception(), ApiUnavailableError)
        found.server.revoke_access()
        with pytest.raises(ApiUnavailableError, match="this run has ended"):
            run.get()
    assert (found.get(), found.server.renewals) == ([401, 200], 2)
    held.clear()
    go.clear()
    conn.execute("update extract.oauth_token set renew_at = now()")
    with found.run(endpoint=Brisk, saving=timedelta(seconds=0.3)) as run:
        reader = in_thread(run.get)
        assert held.wait(30)
        began = time.monotonic()
        run.auth.close()
        assert time.monotonic() - began < 15
        go.set()
        assert reader.exception(30) is None


def test_who_reads_is_told_that_its_run_has_ended(login: Callable[..., Login], dsn_of_tokens: str) -> None:
    """A login is closed while a thread has the lock and reads the tokens: it is not told that Postgres is away."""
    found = login()

    class Closed(psycopg.Connection[Any]):
        def execute(self, query: Any, *args: Any, **given: Any) -> psycopg.Cursor[Any]:
            if found.server.renewals and "select salt" in str(query):
                in_thread(run.auth.close).result(30)
            return super().execute(query, *args, **given)

    with found.run(lambda: Closed.connect(dsn_of_tokens)) as run:
        reader = in_thread(run.get)
        with pytest.raises(ApiUnavailableError, match="this run has ended"):
            reader.result(30)
    assert (found.get(), found.server.renewals) == ([200], 1)


def test_nobody_waits_for_ever(login: Callable[..., Login], conn: Connection) -> None:
    """A lock that is never let go is an error by name; and a request, held up for too long after it was signed, is
    signed anew when the API refuses it."""
    found = login()
    longest = timedelta(seconds=0.3)
    with found.run(longest=longest) as slow, found.run() as other:
        assert slow.get() == [200]
        began = time.monotonic()
        with slow.auth.admitted() as signer:
            # As an API does that ends a token early.
            other.get()
            other.auth.refused()
            assert other.get() == [200]
            assert 0.25 < time.monotonic() - began < 20
            assert slow.send(signer) == 401
        assert slow.auth.refused()
        assert slow.get() == [200]
    assert len(found.server.revoked_uses) == 1
    with conn.transaction():
        held = "select pg_advisory_xact_lock(hashtextextended(%s, 0))"
        conn.execute(held, [f"airflow_extract_provider.oauth_token extract {found.id}"])
        with pytest.raises(StoreUnavailableError, match="did not let go"), found.run(longest=longest) as run:
            run.get()


# --- Two at once, step by step ----------------------------------------------------------------------------------------


class _Died(BaseException):
    """A process that was killed."""


class Actor:
    """A run in a thread, which does one step at a time: a statement, a commit, a request."""

    def __init__(self, login: Login, watcher: Connection, dies_at: int | None) -> None:
        self.watcher, self.dies_at = watcher, dies_at
        self.steps, self.ended, self.pids = 0, False, set[int]()
        self.statuses: list[int] = []
        self.error: BaseException | None = None
        self._may, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.is_blocked = False
        self._thread = threading.Thread(target=self._run, args=(login,))
        self._thread.start()
        self._arrived.acquire()

    def gate(self) -> None:
        """The actor's side: wait until the next step may be done."""
        self._arrived.release()
        self._may.acquire()
        if self.steps - 1 == self.dies_at:
            raise _Died

    def step(self) -> None:
        """Let it do a step: returns once it has, has ended, or waits for a lock."""
        if not self.is_blocked:
            self.steps += 1
            self._may.release()
        self.is_blocked = False
        until = time.monotonic() + 30
        while not self._arrived.acquire(timeout=0.002):
            assert time.monotonic() < until
            if self._waits():
                self.is_blocked = True
                return

    def _waits(self) -> bool:
        asked = "select from pg_stat_activity where pid = any(%s) and wait_event_type = 'Lock'"
        return self.watcher.execute(asked, [list(self.pids)]).fetchone() is not None

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self, login: Login) -> None:
        try:
            with login.run(_gated(login.connect, self)) as run:
                self._use(run)
        except (_Died, ExtractError) as exc:
            self.error = exc
        self.ended = True
        self._arrived.release()

    def _use(self, run: Run) -> None:
        with run.auth.admitted() as signer:
            self.gate()
            self.statuses.append(run.send(signer))
            self.gate()


def _gated(connect: Connect, actor: Actor) -> Connect:
    """Opens connections that do nothing before it is their turn."""

    def gated() -> Connection:
        conn: Any = connect()
        actor.pids.add(conn.info.backend_pid)
        for name in ("execute", "commit"):
            setattr(conn, name, _after(actor, conn, getattr(conn, name)))
        found: Connection = conn
        return found

    return gated


def _after(actor: Actor, conn: Any, do: Callable[..., Any]) -> Callable[..., Any]:
    def gated(*args: Any) -> Any:
        try:
            actor.gate()
        except _Died:
            # As the kernel does for a killed process: the socket is closed, without a word.
            conn.pgconn.finish()
            raise
        return do(*args)

    return gated


def play(login: Login, watcher: Connection, order: Sequence[bool], dies_at: int | None) -> tuple[Actor, Actor]:
    """Two runs, step by step in this order, and then in turns; the first may die."""
    actors = Actor(login, watcher, dies_at), Actor(login, watcher, None)
    turns = itertools.chain(order, itertools.cycle([True, False]))
    while not all(actor.ended for actor in actors):
        actor = actors[0] if next(turns) else actors[1]
        if not actor.ended:
            actor.step()
            if isinstance(actor.error, _Died):
                _later(watcher)
    for actor in actors:
        actor.join()
    return actors


_ORDERS = st.lists(st.booleans(), max_size=30)


@direct_only
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=_ORDERS, seeded=st.booleans())
@example(order=[True] * 4 + [False] * 4, seeded=True)
@example(order=[True, False] * 10, seeded=False)
def test_two_renew_at_once(login: Callable[..., Login], conn: Connection, order: list[bool], seeded: bool) -> None:
    """In whatever order their steps come: one renewal, both requests are answered, none with a revoked token, and no
    refresh token is sent twice."""
    found = _due(login, conn, seeded=seeded, grace=0.0)
    before = found.server.renewals
    actors = play(found, conn, order, None)
    assert [actor.error for actor in actors] == [None, None]
    assert [actor.statuses for actor in actors] == [[200], [200]]
    assert (found.server.renewals - before, found.server.reused, found.server.revoked_uses) == (1, 0, [])


@direct_only
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=_ORDERS, dies_at=st.integers(0, 16), seeded=st.booleans(), grace=st.booleans())
@example(order=[True] * 9, dies_at=7, seeded=True, grace=False)
@example(order=[True] * 9, dies_at=8, seeded=True, grace=False)
def test_one_of_two_dies(
    login: Callable[..., Login], conn: Connection, order: list[bool], dies_at: int, seeded: bool, grace: bool
) -> None:
    """Killed at any step: the other one goes on, once the time of the note is over; or, where the token is spent,
    nothing is stored and the API does not take it again, it says just that. No request goes out with a revoked one."""
    found = _due(login, conn, seeded=seeded, grace=60.0 if grace else 0.0)
    _, other = play(found, conn, order, dies_at)
    if other.error is None:
        assert other.statuses == [200]
        assert found.server.reused <= grace
    else:
        assert not grace
        assert isinstance(other.error, TokenLostError)
        assert "was spent at" in other.error.what
        assert found.server.reused == 1
    assert found.server.revoked_uses == []


def _due(login: Callable[..., Login], conn: Connection, *, seeded: bool, grace: float, **habits: Any) -> Login:
    """A login whose next use renews: it is new, or its token has nearly run out."""
    found = login(grace=grace, **habits)
    if seeded:
        assert found.get() == [200]
        conn.execute("update extract.oauth_token set renew_at = now() where connection = %s", [found.id])
    return found


@direct_only
def test_a_loss_is_not_blamed_on_the_living(login: Callable[..., Login], conn: Connection) -> None:
    """Two find at once that the API does not accept the refresh token any more. The second meets the note of the first,
    who is alive and waits for its lock, and lets it pass: neither speaks of a run that has ended."""
    found = _due(login, conn, seeded=True, grace=0.0)
    found.server.revoke_all()
    # Both read; the first has the lock, the second waits for it; the first leaves its note, lets go and waits.
    actors = play(found, conn, [True] * 2 + [False] * 2 + [True, False] + [True] * 4, None)
    for actor in actors:
        assert isinstance(actor.error, TokenLostError)
        assert "does not accept" in actor.error.what
    assert len(found.server.asked) == 2


def test_a_death_is_found_at_every_step(login: Callable[..., Login], conn: Connection) -> None:
    """One alone is killed at each step in turn, then another run comes: the token is lost at the steps between the
    answer and the commit, and at no other."""
    ends = []
    for step in itertools.count():
        found = login()
        actor = Actor(found, conn, step)
        while not actor.ended:
            actor.step()
        actor.join()
        if actor.error is None:
            break
        _later(conn)
        with suppress(TokenLostError):
            ends.append((step, found.get() == [200]))
            continue
        ends.append((step, False))
    lost = [step for step, well in ends if not well]
    assert len(lost) == 2, "before the statement that stores, and before its commit"
    assert lost[1] == lost[0] + 1
    assert 0 < lost[0] < ends[-1][0]


def test_one_connection_is_enough(login: Callable[..., Login], connect: Connect) -> None:
    """A run keeps one connection; a pooler with one for each run never waits for a second."""
    opened: list[psycopg.Connection[Any]] = []

    def counted() -> Connection:
        opened.append(connect())
        return opened[-1]

    found = login()
    with found.run(counted) as run:
        run.get()
        found.server.revoke_access()
        run.get()
    assert len(opened) == 1
    assert opened[0].closed
