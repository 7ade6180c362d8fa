"""Asks a token endpoint (RFC 6749, section 3.2) for tokens, and judges what it answers."""

from __future__ import annotations

import base64
import json
import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias
from urllib.parse import quote_plus, urlencode

import requests
import tenacity

from airflow_extract_provider.extract.api.auth import Signer
from airflow_extract_provider.extract.api.excerpt import forms_of
from airflow_extract_provider.extract.api.limits import told
from airflow_extract_provider.extract.api.transport import Answer, Bounds, Outgoing, Transport, Unanswered
from airflow_extract_provider.extract.errors import (
    AnswerTooLargeError,
    ApiUnavailableError,
    ExtractError,
    LoginError,
    RequestRefusedError,
)
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["Answered", "ClientAuth", "Denied", "Grant", "TokenEndpoint"]

_log = logging.getLogger(__name__)

ClientAuth: TypeAlias = Literal["basic", "body"]
"""How the client proves who it is (RFC 6749, section 2.3.1): by a header, or by two fields of the form."""

_SIZE = 1 << 20
_LONGEST_PAUSE = 60.0
_MARGIN = 60.0
_LONGEST_LIFE = 10 * 366 * 86_400.0
_TRY_AGAIN = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})

_LOST = frozenset({"invalid_grant", "bad_refresh_token"})
"""The refresh token is not accepted. The second is GitHub's word for it, which comes with status 200
(github.com/orgs/community/discussions/24745)."""

_CLIENT = "Check the connection's client id and secret, and whether the vendor wants them in the form (`body`) or in a "
_CODES = {
    "invalid_request": "Check the connection's token URL and parameters against the vendor's documentation.",
    "invalid_client": f"{_CLIENT}header (`basic`).",
    "invalid_grant": "Log in anew at the vendor, and give the connection what it then shows.",
    "unauthorized_client": "Allow the client this way to log in at the vendor.",
    "unsupported_grant_type": "Choose another way to log in: the vendor does not know this one.",
    "invalid_scope": "Correct the connection's `scope`: the vendor does not know it, or does not allow it.",
}
"""The registered errors (RFC 6749, section 5.2), and what to do. Others are not shown: they might be anything."""

_UNSENT = frozenset(
    {
        "the connection is refused",
        "no connection within the timeout",
        "the host's name cannot be resolved",
        "the proxy cannot be reached, or refuses",
    }
)
"""What the transport says when nothing has gone out: a refresh token is unspent then. Of all else it may be spent."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token endpoint gives. ``lives`` is the access token's life in seconds, None: it is not told. ``refresh``
    is the next refresh token, None: the old one stays."""

    access: str = field(repr=False)
    lives: float | None = None
    refresh: str | None = field(default=None, repr=False)

    @property
    def renew_after(self) -> float | None:
        """After how many seconds it should be renewed: a minute before its end, or a tenth of its life if that is less,
        so that a request does not meet a token that runs out under way."""
        return None if self.lives is None else self.lives - min(_MARGIN, self.lives / 10)


@dataclass(frozen=True, slots=True)
class Denied:
    """A token endpoint's no, or no way to ask it: nothing was spent. ``error`` is what to raise.

    ``lost``: it does not accept the refresh token. ``again``: that is its answer to a second try, and the first one may
    have been heard, and the token been spent by it.
    """

    error: ExtractError
    lost: bool = False
    again: bool = False


Answered: TypeAlias = Grant | Denied


class TokenEndpoint(Unshown):
    """A token endpoint, and the client that asks it.

    ``session`` has the connection's TLS and proxy settings, and no login. ``client_secret`` None: a public client.
    ``parameters`` go with each request, such as `audience`. ``bounds``: of one try; ``longest``: of all tries together,
    in seconds, but for the last one. One thread at a time uses it.
    """

    def __init__(
        self,
        session: requests.Session,
        url: str,
        client_id: str,
        client_secret: str | None = None,
        *,
        scope: str = "",
        parameters: Mapping[str, str] | None = None,
        client_auth: ClientAuth = "basic",
        bounds: Bounds | None = None,
        tries: int = 4,
        longest: float = 120.0,
    ) -> None:
        self._url, self._client_id, self._client_secret = url, client_id, client_secret
        self._fields = {**(parameters or {}), **({"scope": scope} if scope else {})}
        self._client_auth = client_auth
        self._session = session
        self._transport = Transport(session, bounds or Bounds(connect=10.0, read=30.0, total=30.0, size=_SIZE))
        self._tries, self._longest = tries, longest

    @property
    def secrets(self) -> Collection[str]:
        """The client's secret in the forms in which it travels."""
        return forms_of(self._client_secret or "", self._pair() if self._client_secret else "")

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def client_credentials(self) -> Answered:
        """A token in the client's own name (RFC 6749, section 4.4). Raises as :meth:`refresh`."""
        return self._asked({"grant_type": "client_credentials"})

    def refresh(self, token: str) -> Answered:
        """What there is for a refresh token (RFC 6749, section 6).

        Raises ApiUnavailableError, LoginError: nothing of use came back, and the token may be spent.
        """
        return self._asked({"grant_type": "refresh_token", "refresh_token": token})

    def _asked(self, fields: Mapping[str, str]) -> Answered:
        asked, heard, until = self._outgoing(fields), False, time.monotonic() + self._longest
        try:
            for attempt in self._retrying():
                with attempt:
                    # A process that was stopped in a pause: by now somebody else may have spent the token.
                    if attempt.retry_state.attempt_number > 1 and time.monotonic() > until:
                        raise _given_up("this process was held up", attempt.retry_state.attempt_number - 1)
                    try:
                        return _judged(self._sent(asked), again=heard)
                    except _Failed as exc:
                        heard = heard or exc.heard
                        raise
        except ExtractError as exc:
            # What has not gone out spends nothing. A LoginError is an answer that cannot be used.
            if heard or isinstance(exc, LoginError):
                raise
            return Denied(exc)
        raise AssertionError("tenacity ends in a return or an error")

    def _outgoing(self, fields: Mapping[str, str]) -> Outgoing:
        body = {**self._fields, **fields}
        if self._client_secret is None or self._client_auth == "body":
            body["client_id"] = self._client_id
            if self._client_secret is not None:
                body["client_secret"] = self._client_secret
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        return Outgoing(self._url, "the token URL", 1, "POST", {}, headers, urlencode(body).encode())

    def _pair(self) -> str:
        """Both are encoded as in a form before they are joined (RFC 6749, section 2.3.1, with its erratum 4749)."""
        pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret or '')}"
        return base64.b64encode(pair.encode()).decode()

    def _sent(self, asked: Outgoing) -> Answer:
        """Raises _Failed: it may be sent again."""
        by_header = self._client_secret is not None and self._client_auth == "basic"
        headers = {"Authorization": f"Basic {self._pair()}"} if by_header else {}
        try:
            answer = self._transport.send(asked, Signer(headers))
        except Unanswered as exc:
            raise _Failed(exc.what, heard=exc.what not in _UNSENT) from None
        except AnswerTooLargeError:
            raise _useless(f"an answer of more than {_SIZE:,} bytes") from None
        except RequestRefusedError as exc:
            raise LoginError(
                exc.what, todo="Check the connection's token URL, client id and client secret, and its TLS settings."
            ) from None
        if answer.status in _TRY_AGAIN:
            pause = told(answer.headers, datetime.now(timezone.utc)).pause
            raise _Failed(f"status {answer.status}", heard=answer.status != 429, pause=pause)
        return answer

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Failed),
            stop=tenacity.stop_after_attempt(self._tries) | tenacity.stop_before_delay(self._longest),
            wait=_wait,
            before_sleep=_tell,
            retry_error_callback=_give_up,
        )


class _Failed(Exception):
    """No answer of use. ``heard``: the endpoint may have acted on the request; ``pause``: when to ask again, in s."""

    def __init__(self, what: str, *, heard: bool, pause: float | None = None) -> None:
        super().__init__(what)
        self.what, self.heard, self.pause = what, heard, pause


_backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=20.0)


def _wait(state: tenacity.RetryCallState) -> float:
    pause = _failure(state).pause
    return _backoff(state) if pause is None else min(pause, _LONGEST_PAUSE)


def _tell(state: tenacity.RetryCallState) -> None:
    pause = state.next_action.sleep if state.next_action else 0.0
    _log.info("token endpoint: %s; asking again in %.1f s", _failure(state).what, pause)


def _give_up(state: tenacity.RetryCallState) -> None:
    raise _given_up(_failure(state).what, state.attempt_number) from None


def _given_up(what: str, tries: int) -> ApiUnavailableError:
    return ApiUnavailableError(
        f"the token endpoint gives no token: {what}, after {tries} tries.",
        todo="Run again later; the walk goes on where it stands. If it stays so, check the connection's token URL.",
    )


def _failure(state: tenacity.RetryCallState) -> _Failed:
    exc = state.outcome.exception() if state.outcome else None
    assert isinstance(exc, _Failed)
    return exc


def _judged(answer: Answer, *, again: bool) -> Answered:
    """A grant (RFC 6749, section 5.1) or a no (section 5.2). Neither body nor description is ever shown.

    Raises LoginError: status 200, and no grant; a token may have been made and spent for it.
    """
    found = _object(answer.body)
    code = found.get("error")
    if isinstance(code, str) and (code in _CODES or code in _LOST):
        return Denied(_refusal(code), lost=code in _LOST, again=again)
    if answer.status not in (200, 201):
        return Denied(
            LoginError(
                f"the token endpoint refuses the login (status {answer.status}).",
                todo="Check the connection's token URL and client: there is no registered error code in the answer.",
            )
        )
    if code is not None:
        return Denied(LoginError("the token endpoint answers with an error of its own.", todo=_CODES["invalid_client"]))
    return _grant(found)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _grant(found: Mapping[str, Any]) -> Grant:
    access, kind, refresh = found.get("access_token"), found.get("token_type"), found.get("refresh_token")
    if not isinstance(access, str) or not access:
        raise _useless("no `access_token`, or no JSON")
    if not _is_sendable(access):
        raise _useless("an `access_token` that no header can carry")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise _useless("a `token_type` that is not `bearer`")
    return Grant(access, _lives(found.get("expires_in")), refresh if isinstance(refresh, str) and refresh else None)


def _is_sendable(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token


def _lives(told: object) -> float | None:
    """An access token's life in seconds. What cannot be one counts as nothing told: then a 401 tells its end."""
    if isinstance(told, bool) or not isinstance(told, int | float | str):
        return None
    try:
        seconds = float(told)
    except (ValueError, OverflowError):
        return None
    return min(seconds, _LONGEST_LIFE) if math.isfinite(seconds) and seconds > 0 else None


def _refusal(code: str) -> LoginError:
    shown, todo = (code, _CODES[code]) if code in _CODES else ("invalid_grant", _CODES["invalid_grant"])
    return LoginError(f"the token endpoint refuses the login ({shown}).", todo=todo)


def _useless(what: str) -> LoginError:
    return LoginError(
        f"the token endpoint answers with {what}.",
        todo="Check the connection's token URL: it must be the vendor's endpoint for OAuth 2.0 tokens.",
    )
