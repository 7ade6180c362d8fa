"""The connection type `rest_api`: where an API is and how to log in. It decides nothing about pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import requests
from airflow.providers.http.hooks.http import HttpHook
from requests import PreparedRequest
from requests.auth import AuthBase

from airflow_extract_provider.extract.api.address import redirected
from airflow_extract_provider.extract.api.auth import Auth, WithHeaders, no_login
from airflow_extract_provider.extract.api.excerpt import excerpt
from airflow_extract_provider.extract.api.transport import Answer, Outgoing, Transport, Unanswered, network_of
from airflow_extract_provider.extract.api.words import words
from airflow_extract_provider.extract.errors import ConnectionMissingError, ExtractError
from airflow_extract_provider.extract.unshown import Unshown
from airflow_extract_provider.hooks.connection import find_connection
from airflow_extract_provider.hooks.login import Login, Seed, login_of
from airflow_extract_provider.hooks.store import StoreHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_extract_provider.extract.api.client import ApiClient
    from airflow_extract_provider.extract.api.limits import Quota
    from airflow_extract_provider.extract.cursor import Position
    from airflow_extract_provider.extract.source import ApiObject, Source
    from airflow_extract_provider.extract.store.connection import Connect
    from airflow_extract_provider.extract.store.tokens import PostgresTokens
    from airflow_extract_provider.extract.walks.step import Step

__all__ = ["RestApiHook"]

_LOCKED = 600.0
"""Seconds for which a process that has stopped may keep others from renewing tokens, at least: a renewal fits in."""
_EXAMPLE = "--conn-type rest_api --conn-host https://api.example.com --conn-password TOKEN"


class RestApiHook(HttpHook):
    """An API behind a connection of type REST API.

    Unlike its parent it sends nothing of the connection's extra as headers, follows no redirects (they could carry the
    login to another host), and assumes https where the base URL names no scheme.
    """

    conn_name_attr = "rest_api_conn_id"
    default_conn_name = "rest_api_default"
    conn_type = "rest_api"
    hook_name = "REST API"

    def __init__(self, rest_api_conn_id: str = default_conn_name, *, connection: Connection | None = None) -> None:
        """``connection`` is for those who have it already; None: it is looked up when it is needed."""
        super().__init__(method="GET", http_conn_id=rest_api_conn_id)
        self.rest_api_conn_id = rest_api_conn_id
        self._given = connection

    def __reduce__(self) -> tuple[type[RestApiHook], tuple[str]]:
        # `get_conn` leaves the proxies in it, perhaps with a password, which does not belong into a pickle.
        return type(self), (self.rest_api_conn_id,)

    def client(
        self,
        source: Source,
        *,
        store: Connect | None = None,
        tokens: Connect | None = None,
        schema: str = "extract",
        longest_wait: float = 60.0,
        tries: int = 5,
    ) -> ApiClient:
        """The engine's client for a source, logged in; the caller closes it.

        ``store`` opens connections to the Postgres where the source's quota is kept for all tasks; None: the quota is
        this client's alone, and only a refresh token goes to the store: to the one that ``tokens`` opens, by default to
        that of the usual name. ``longest_wait`` is how long, in seconds, a request may wait for its turn, ``tries`` how
        often it is sent until the API counts as away.

        Raises ConnectionMissingError: the connection is missing, or lacks what is needed.
        """
        from airflow_extract_provider.extract.api.client import ApiClient

        login = self._login()
        return ApiClient(
            source,
            self._session(login),
            login.base_url,
            auth=self._auth(login, store or tokens, schema),
            secrets=login.secrets,
            quota=None if store is None else self._quota(source, store, schema),
            bounds=login.bounds,
            tries=tries,
            longest_wait=longest_wait,
        )

    def pages(
        self,
        object: ApiObject,
        position: Position | None = None,
        *,
        walk: Literal["backfill", "incremental"] = "backfill",
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Step]:
        """Read an object page by page, from a position (None: from the beginning) to its end.

        Each step holds a page's records and the position after it: given back here, it goes on from there. The last
        position of a reading, given to the walk ``incremental``, brings what has changed since it began. ``headers``
        are sent with each request, as a source's are.

        Raises what the engine's walks raise; BackfillFirstError: ``incremental`` needs a position to begin at.
        """
        from airflow_extract_provider.extract.page import Request
        from airflow_extract_provider.extract.source import Source
        from airflow_extract_provider.extract.walks.backfill import backfill, beginning
        from airflow_extract_provider.extract.walks.incremental import handed_off, incremental

        alone = Source(
            source="pages", connection=self.rest_api_conn_id, headers=headers or {}, objects={object.name: object}
        )
        if walk == "backfill":
            steps = backfill(object, position or beginning(object))
        else:
            steps = incremental(object, position or handed_off(object, None))
        step = next(steps)
        with closing(self.client(alone)) as client:
            while step.then is not None:
                assert isinstance(step.then, Request)  # these walks ask nothing of a store
                step = steps.send(client.fetch(object, step.then))
                yield step

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """A session with the login and ``headers``, for calls of one's own; prefer :meth:`client`.

        Raises ConnectionMissingError: as :meth:`client`; or the login is one by a refresh token. Its access token would
        be let go before the request has gone out, and be revoked under way by the renewal of another task.
        """
        login = self._login()
        if login.seed is not None:
            raise ConnectionMissingError(
                f"the connection {self.rest_api_conn_id!r} logs in by `refresh_token`: no session of one's own can.",
                todo=f"Use RestApiHook({self.rest_api_conn_id!r}).client(source), or .pages(object).",
            )
        session = self._session(login)
        # What the parent's `run` goes by.
        self.base_url, self._base_url_initialized = login.base_url, True
        given = {"timeout": (login.bounds.connect, login.bounds.read), "allow_redirects": False}
        self.merged_extra = {**given, **network_of(session), **(extra_options or {})}
        session.auth = _EachTime(self._auth(login, None, "extract"))
        session.headers.update(headers or {})
        return session

    def test_connection(self) -> tuple[bool, str]:
        """Send one request to the base URL, or to `test_path` below it, and tell in words what came of it.

        A refresh token is not tried: Airflow tests under another connection's name, and trying it would spend it.
        """
        try:
            login = self._login()
            with self._session(login) as session, closing(self._tried(login)) as auth:
                answer = self._tested(login, session, auth)
        except Unanswered as exc:
            return False, f"No answer: {exc.what}."
        except ExtractError as exc:
            return False, f"{exc.what} {exc.todo}"
        good, told = _verdict(answer, login)
        said = "" if good else excerpt(words(answer.status, answer.body), (*login.secrets, *auth.secrets))
        return good, f"{told} The API says: {said}" if said else told

    def _tried(self, login: Login) -> Auth:
        if login.seed is None:
            return self._auth(login, None, "extract")
        return WithHeaders(no_login(), login.headers)

    def _tested(self, login: Login, session: requests.Session, auth: Auth) -> Answer:
        asked = Outgoing(login.base_url + login.test_path, _shown(login), 1)
        with auth.admitted() as signer:
            return Transport(session, login.bounds).send(asked, signer)

    def _login(self) -> Login:
        return login_of(self._given or find_connection(self.rest_api_conn_id, _EXAMPLE))

    def _session(self, login: Login) -> requests.Session:
        session = _Session()
        # A cookie that an error page sets would go along from then on, and may log us out.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        if self.keep_alive_adapter is not None:
            session.mount(f"{urlsplit(login.base_url).scheme}://", self.keep_alive_adapter)
        for name, value in login.network.items():
            setattr(session, name, value)
        return session

    def _auth(self, login: Login, store: Connect | None, schema: str) -> Auth:
        def tokens(seed: Seed) -> PostgresTokens:
            from airflow_extract_provider.extract.store.tokens import PostgresTokens

            connect, bounds = store or StoreHook().connect, login.bounds
            # The lock of a request is kept for as long as the request may last.
            longest = timedelta(seconds=max(_LOCKED, bounds.connect + bounds.read + bounds.total + 60.0))
            secrets = (seed.refresh_token, seed.client_secret)
            return PostgresTokens(connect, schema, seed.connection_id, *secrets, longest=longest)

        # Of its own: the login's requests must not wait for, nor end, the API's keep-alive connection.
        return login.auth(self._session(login), tokens)

    def _quota(self, source: Source, store: Connect, schema: str) -> Quota:
        from airflow_extract_provider.extract.store.quota import PostgresQuota

        return PostgresQuota(store, schema, source.source, self.rest_api_conn_id, source.limit)


class _Session(requests.Session):
    """Follows no redirect, whoever uses it: its headers, the login among them, would go to the other host too."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Nowhere."""
        del resp
        return None


class _EachTime(Unshown, AuthBase):
    """Signs each request of a session of one's own as it is sent."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        with self._auth.admitted() as signer:
            signed: PreparedRequest = signer(request)
        return signed


def _shown(login: Login) -> str:
    # A key may have been put behind the path, where it does not belong.
    return login.test_path.partition("?")[0] or "the base URL"


def _verdict(answer: Answer, login: Login) -> tuple[bool, str]:
    """Whether the connection is good, and why."""
    status, where = answer.status, _shown(login)
    told = f"(status {status} for {where})"
    if 300 <= status < 400:
        to = redirected(login.base_url + login.test_path, where, answer.headers.get("location", ""), login.secrets)
        return False, f"The API redirects {where} (status {status}){to}: enter the address it redirects to."
    if login.seed is not None:
        why = "The refresh token was not tried: that would spend it."
        return status < 500, f"The API answers without a login {told}. {why}"
    if status in (401, 403):
        return False, f"The API refuses the login {told}."
    is_markup = answer.body.lstrip()[:1] == b"<"
    if is_markup and status < 300 and login.test_path:
        return False, f"That is no API, or a page to sign in {told}: HTML or XML, not JSON."
    if status < 300 and not is_markup:
        return True, f"Status {status} for {where}."
    if status < 500 and not login.test_path:
        return True, f"The API answers {told}; enter a path to test with, to test the login too."
    return False, f"Status {status} for {where}."
