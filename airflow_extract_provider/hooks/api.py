"""The connection type `rest_api`: where an API is and how to log in. It decides nothing about pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import requests
from airflow.providers.http.hooks.http import HttpHook

from airflow_extract_provider.extract.errors import ConnectionMissingError
from airflow_extract_provider.hooks.connection import find_connection
from airflow_extract_provider.hooks.login import Login, login_of

if TYPE_CHECKING:
    from airflow_extract_provider.extract.api.client import ApiClient
    from airflow_extract_provider.extract.cursor import Position
    from airflow_extract_provider.extract.source import ApiObject, Source
    from airflow_extract_provider.extract.walks.step import Step

__all__ = ["RestApiHook"]

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

    def __init__(self, rest_api_conn_id: str = default_conn_name) -> None:
        super().__init__(method="GET", http_conn_id=rest_api_conn_id)
        self.rest_api_conn_id = rest_api_conn_id

    def client(self, source: Source) -> ApiClient:
        """The engine's client for a source, logged in.

        Raises ConnectionMissingError: the connection is missing, or lacks what is needed.
        """
        from airflow_extract_provider.extract.api.client import ApiClient

        login = self._login()
        session = self._session(login)
        return ApiClient(source, session, login.base_url, secrets=login.secrets, timeout=login.timeout)

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
        client, step = self.client(alone), next(steps)
        while step.then is not None:
            assert isinstance(step.then, Request)  # these walks ask nothing of a store
            step = steps.send(client.fetch(object, step.then))
            yield step

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """A session with the login and ``headers``, for calls of one's own; prefer :meth:`client`.

        Raises ConnectionMissingError: as :meth:`client`.
        """
        login = self._login()
        # What the parent's `run` goes by.
        self.base_url, self._base_url_initialized = login.base_url, True
        self.merged_extra = {"timeout": login.timeout, "allow_redirects": False, **(extra_options or {})}
        session = self._session(login)
        session.headers.update(headers or {})
        return session

    def test_connection(self) -> tuple[bool, str]:
        """Send one request to the base URL, or to `test_path` below it, and tell in words what came of it."""
        try:
            login = self._login()
        except ConnectionMissingError as exc:
            return False, exc.what
        try:
            with self._session(login) as session:
                url = login.base_url + login.test_path
                response = session.get(url, timeout=login.timeout, allow_redirects=False, stream=True)
        except requests.RequestException as exc:
            # Only the kind of failure: the library's own words hold the whole URL.
            return False, f"No answer from {urlsplit(login.base_url).hostname} ({type(exc).__name__})."
        return _verdict(response.status_code, login.test_path)

    def _login(self) -> Login:
        return login_of(find_connection(self.rest_api_conn_id, _EXAMPLE))

    def _session(self, login: Login) -> requests.Session:
        session = requests.Session()
        if self.keep_alive_adapter is not None:
            session.mount(f"{urlsplit(login.base_url).scheme}://", self.keep_alive_adapter)
        session.auth = login.auth
        for name, value in login.network.items():
            setattr(session, name, value)
        return session


def _verdict(status: int, test_path: str) -> tuple[bool, str]:
    where = test_path or "the base URL"
    if status in (401, 403):
        return False, f"The API refuses the login (status {status} for {where})."
    if 300 <= status < 400:
        return False, f"The API redirects {where} (status {status}): enter the address it redirects to."
    if status < 300:
        return True, f"Status {status} for {where}."
    if status < 500 and not test_path:
        return True, f"The API answers (status {status} for {where}); enter a path to test with, to test the login too."
    return False, f"Status {status} for {where}."
