"""Cursors as Airflow Variables, for a command: beside no task, it asks Airflow's REST API."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from airflow_extract_provider.extract.api.auth import Signer
from airflow_extract_provider.extract.errors import CursorShadowedError, CursorUnreadableError
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["ApiLogin", "RestCursors", "login_from"]

_MASK = "***"
_SECONDS = 30
TOKEN, USERNAME, PASSWORD = (f"AIRFLOW_EXTRACT_API_{name}" for name in ("TOKEN", "USERNAME", "PASSWORD"))


class ApiLogin(Unshown):
    """How a command logs in at Airflow's REST API: by a token, or by name and password, for which it gets one."""

    def __init__(self, token: str | None = None, username: str | None = None, password: str | None = None) -> None:
        self.token, self.username, self.password = token, username, password

    def __bool__(self) -> bool:
        return bool(self.token or (self.username and self.password))


def login_from(environment: Mapping[str, str]) -> ApiLogin:
    """The login that the environment holds."""
    return ApiLogin(environment.get(TOKEN), environment.get(USERNAME), environment.get(PASSWORD))


class RestCursors(Unshown):
    """A store of cursors behind Airflow's REST API, at ``url``.

    An absence counts only if the API says of this very Variable that it was not found, and its list, asked for it, is
    empty: a proxy or a wrong address answers 404, too. Everything else proves nothing.
    """

    def __init__(self, url: str, login: ApiLogin) -> None:
        self._url, self._login = url.rstrip("/"), login
        self._session = requests.Session()
        self._signer: Signer | None = None
        self._away: str | None = None

    @property
    def shown_url(self) -> str:
        """The address, without a login that it may hold."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def read(self, key: str) -> str | None:
        """The Variable's text; None only when it is proven that there is none.

        Raises CursorUnreadableError: it may be there, but cannot be read; also where Airflow masks it.
        Raises CursorShadowedError: an environment variable or a secrets backend, as they are here, hides it.
        """
        _refuse_hidden(key)
        answer = self._ask("GET", key)
        if answer.status_code == requests.codes.not_found:
            self._prove_absent(key, answer)
            return None
        found = self._json(key, answer)
        text = found.get("value") if isinstance(found, dict) and found.get("key") == key else None
        if not isinstance(text, str):
            raise _unreadable(key, "Airflow's answer holds no value")
        if _MASK in text:
            raise _unreadable(
                key,
                "Airflow masks it, because of a word in its name",
                todo=f"Airflow's own commands mask nothing: `airflow variables get {key}`, and `set` or `delete`.",
            )
        return text

    def write(self, key: str, text: str) -> None:
        """Store the text, and read it back.

        Raises CursorUnreadableError, CursorShadowedError.
        """
        body = {"key": key, "value": text}
        answer = self._ask("PATCH", key, body, {"update_mask": "value"})
        if answer.status_code == requests.codes.not_found:
            self._prove_absent(key, answer)
            answer = self._ask("POST", None, body, about=key)
        self._json(key, answer)
        found = self.read(key)
        # Airflow's API writes JSON anew when it is asked for it.
        if found is None or not _same(found, text):
            raise _unreadable(key, "what was written was not read back: look at it before the next run")

    def delete(self, key: str) -> None:
        """Delete the Variable; afterwards it is proven that there is none, whether there was one or not.

        Raises CursorUnreadableError, CursorShadowedError.
        """
        answer = self._ask("DELETE", key)
        if answer.status_code not in (requests.codes.no_content, requests.codes.not_found):
            self._json(key, answer)
        if self.read(key) is not None:
            raise _unreadable(key, "it is still there after it was deleted: something has written it meanwhile")

    def _prove_absent(self, key: str, answer: requests.Response) -> None:
        told = _decoded(answer)
        if not isinstance(told, dict) or key not in str(told.get("detail")):
            raise _unreadable(key, "the answer is 404, but not one of Airflow's about it: is this its address?")
        listed = self._json(
            key, self._ask("GET", None, None, {"variable_key_pattern": key, "limit": "1000"}, about=key)
        )
        found = listed.get("variables") if isinstance(listed, dict) else None
        if not isinstance(found, list) or any(isinstance(each, dict) and each.get("key") == key for each in found):
            raise _unreadable(key, "Airflow says that it is not there, and lists it")

    def _ask(
        self,
        method: str,
        key: str | None,
        body: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        about: str = "",
    ) -> requests.Response:
        about = key or about
        if self._signer is None:
            self._signer = Signer({"Authorization": f"Bearer {self._login.token or self._token(about)}"})
        place = "/api/v2/variables" + (f"/{quote(key, safe='')}" if key else "")
        return self._send(about, method, place, self._signer, json=body, params=params)

    def _token(self, about: str) -> str:
        if not self._login:
            raise _unreadable(about, f"there is no login: set {TOKEN}, or {USERNAME} and {PASSWORD}")
        given = {"username": self._login.username, "password": self._login.password}
        answer = self._send(about, "POST", "/auth/token", Signer(), json=given)
        told = _decoded(answer)
        token = told.get("access_token") if isinstance(told, dict) else None
        if answer.status_code not in (requests.codes.ok, requests.codes.created) or not isinstance(token, str):
            raise _unreadable(about, f"Airflow gives no token for {USERNAME} and {PASSWORD} ({answer.status_code})")
        return token

    def _send(self, about: str, method: str, place: str, signer: Signer, **given: Any) -> requests.Response:
        if self._away is None:
            try:
                # Not behind a redirect: the login would go to wherever it leads. The signer, since one of ~/.netrc
                # would replace a header of the session.
                return self._session.request(
                    method, f"{self._url}{place}", timeout=_SECONDS, allow_redirects=False, auth=signer, **given
                )
            except (requests.RequestException, UnicodeError) as exc:
                # Nor is it waited for again, for each of many cursors.
                self._away = type(exc).__name__
        raise _unreadable(about, f"Airflow's API does not answer ({self._away})")

    def _json(self, key: str, answer: requests.Response) -> Any:
        if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
            raise _unreadable(
                key, f"Airflow's API refuses the login, or its rights on Variables ({answer.status_code})"
            )
        if answer.status_code not in (requests.codes.ok, requests.codes.created):
            raise _unreadable(key, f"Airflow's API answers {answer.status_code}")
        return _decoded(answer)


def _decoded(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _same(found: str, text: str) -> bool:
    try:
        return bool(json.loads(found) == json.loads(text))
    except ValueError:
        return found == text


def _refuse_hidden(key: str) -> None:
    from airflow.configuration import ensure_secrets_loaded
    from airflow.secrets.metastore import MetastoreBackend

    name = f"AIRFLOW_VAR_{key.upper()}"
    if name in os.environ:
        raise _shadowed(key, f"the environment variable {name}")
    for backend in ensure_secrets_loaded():
        if isinstance(backend, MetastoreBackend):
            continue
        try:
            found = backend.get_variable(key)
        except Exception as exc:  # whatever it is: tasks would ask it, too
            raise _unreadable(key, f"{type(backend).__name__} does not answer ({type(exc).__name__})") from None
        if found is not None:
            raise _shadowed(key, type(backend).__name__)


def _shadowed(key: str, by: str) -> CursorShadowedError:
    return CursorShadowedError(
        f"the Variable {key} is hidden by {by}: what is written to it is never read.",
        kept="everything; nothing was written.",
        todo=f"Remove the other definition of {key}.",
    )


def _unreadable(
    key: str, why: str, todo: str = "Run the command again once Airflow's API answers, and takes the login."
) -> CursorUnreadableError:
    return CursorUnreadableError(
        f"the Variable {key} is not usable now: {why}.", kept="everything; the ledger holds the position.", todo=todo
    )
