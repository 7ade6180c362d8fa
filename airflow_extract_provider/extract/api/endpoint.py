"""Asks a token endpoint (RFC 6749, section 3.2) for tokens, and judges what it answers."""

from __future__ import annotations

import base64
import json
import logging
import math
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeAlias
from urllib.parse import quote_plus, urlencode

import requests
import tenacity
from tenacity.stop import stop_base

from airflow_extract_provider.extract.api.auth import Signer
from airflow_extract_provider.extract.api.excerpt import forms_of
from airflow_extract_provider.extract.api.limits import told
from airflow_extract_provider.extract.api.transport import Answer, Bounds, Outgoing, Transport, Unanswered
from airflow_extract_provider.extract.errors import (
    AnswerTooLargeError,
    ApiUnavailableError,
    ExtractError,
    LoginError,
    QuotaSpentError,
    RequestRefusedError,
)
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["Answered", "ClientAuth", "Denied", "Grant", "TokenEndpoint"]

_log = logging.getLogger(__name__)

ClientAuth: TypeAlias = Literal["basic", "body"]
"""How the client proves who it is (RFC 6749, section 2.3.1): by a header, or by two fields of the form."""

_SIZE = 1 << 20
_LONGEST_PAUSE = 60.0
"""Seconds that a task waits in its slot, with the login locked for all others, where the endpoint asks for a pause."""
_PAUSE = 30.0
"""Seconds for which an endpoint that gave no answer is left alone by all, where it says nothing of a pause."""
_MARGIN = 60.0
_LONGEST_LIFE = 10 * 366 * 86_400.0
_TRY_AGAIN = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})

_LOST = frozenset({"invalid_grant", "bad_refresh_token"})
"""The refresh token is not accepted. The second is GitHub's word for it, which comes with status 200
(github.com/orgs/community/discussions/24745)."""

_BEARER = frozenset({"bearer", "bot", "user"})
"""What a `token_type` is called that travels as RFC 6750 says. Slack names there whose token it is
(`OAuthV2TokenRefreshResponse` of github.com/slackapi/node-slack-sdk)."""

_WHO = "the token endpoint"
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
    """A token endpoint's no, an answer without use, or none at all. ``error`` is what to raise.

    ``lost``: it does not accept the refresh token. ``again``: that is its answer to a second try, and the first one may
    have been heard, and the token been spent by it. ``spent``: the token may be spent, and nothing is known of what was
    given for it. Without these nothing was spent. ``refresh`` is a new refresh token out of an answer that is of no
    other use: the old one is spent. ``pause``: for how many seconds nobody should ask again, None: that is not told.
    """

    error: ExtractError
    lost: bool = False
    again: bool = False
    spent: bool = False
    refresh: str | None = field(default=None, repr=False)
    pause: float | None = None


Answered: TypeAlias = Grant | Denied


class TokenEndpoint(Unshown):
    """A token endpoint, and the client that asks it.

    ``session`` has the connection's TLS and proxy settings, and no login. ``client_secret`` None: a public client.
    ``parameters`` go with each request, such as `audience`. ``bounds``: of one try; ``longest``: of all tries together,
    in seconds, but for the last one. ``connection_id`` is named in errors. One thread at a time uses it.
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
        connection_id: str = "",
    ) -> None:
        self._url, self._client_id, self._client_secret = url, client_id, client_secret
        self._fields = {**(parameters or {}), **({"scope": scope} if scope else {})}
        self._client_auth = client_auth
        self._session = session
        self._bounds = bounds or Bounds(connect=10.0, read=30.0, total=30.0, size=_SIZE)
        self._transport = Transport(session, self._bounds)
        self._tries, self._longest = tries, longest
        self._ended = threading.Event()
        self._who = f"{_WHO} of the connection {connection_id!r}" if connection_id else _WHO

    @property
    def secrets(self) -> Collection[str]:
        """The client's secret in the forms in which it travels."""
        return forms_of(self._client_secret or "", self._pair() if self._client_secret else "")

    @property
    def longest(self) -> float:
        """The longest time, in seconds, after which an answer may still come: of all tries and the last one."""
        return self._longest + self._bounds.connect + self._bounds.read + self._bounds.total

    def end(self) -> None:
        """Another thread may call it: what is under way is not sent again, and no pause is waited for any more."""
        self._ended.set()

    def close(self) -> None:
        """Close the session."""
        self.end()
        self._session.close()

    def client_credentials(self) -> Answered:
        """A token in the client's own name (RFC 6749, section 4.4)."""
        return self._asked({"grant_type": "client_credentials"})

    def refresh(self, token: str) -> Answered:
        """What there is for a refresh token (RFC 6749, section 6). It raises nothing: each end says what it means for
        the token."""
        return self._asked({"grant_type": "refresh_token", "refresh_token": token})

    def _asked(self, fields: Mapping[str, str]) -> Answered:
        asked, failed, heard, until = self._outgoing(fields), None, False, time.monotonic() + self._longest
        try:
            for attempt in self._retrying():
                with attempt:
                    tries = attempt.retry_state.attempt_number - 1
                    if tries and self._ended.is_set():
                        raise _given_up("this run has ended", tries)
                    # A process that was stopped in a pause: by now somebody else may have spent the token.
                    if tries and time.monotonic() > until:
                        raise _given_up("this process was held up", tries)
                    try:
                        return self._named(_judged(self._sent(asked), again=heard))
                    except _Failed as exc:
                        failed, heard = exc, heard or exc.heard
                        raise
        except ExtractError as exc:
            # What has not gone out spends nothing. A LoginError is an answer that cannot be used.
            return self._named(Denied(exc, spent=heard or isinstance(exc, LoginError), pause=_left_alone(exc, failed)))
        raise AssertionError("tenacity ends in a return or an error")

    def _named(self, found: Answered) -> Answered:
        """With the connection in the error: the API that a task asks is seldom at its token endpoint's address."""
        if isinstance(found, Grant):
            return found
        error = found.error
        what = error.what.replace(_WHO, self._who, 1)
        return replace(found, error=type(error)(what, kept=error.kept, todo=error.todo, **error.place))

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
            stop=tenacity.stop_after_attempt(self._tries) | tenacity.stop_before_delay(self._longest) | _SentAway(),
            wait=_wait,
            sleep=self._sleep,
            before_sleep=_tell,
            retry_error_callback=_give_up,
        )

    def _sleep(self, seconds: float) -> None:
        self._ended.wait(seconds)


class _Failed(Exception):
    """No answer of use. ``heard``: the endpoint may have acted on the request; ``pause``: when to ask again, in s."""

    def __init__(self, what: str, *, heard: bool, pause: float | None = None) -> None:
        super().__init__(what)
        self.what, self.heard, self.pause = what, heard, pause


_backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=20.0)


def _wait(state: tenacity.RetryCallState) -> float:
    pause = _failure(state).pause
    return _backoff(state) if pause is None else pause


class _SentAway(stop_base):
    """The endpoint asks for a pause that is too long for a slot and a lock."""

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        return (_failure(state).pause or 0.0) > _LONGEST_PAUSE


def _tell(state: tenacity.RetryCallState) -> None:
    pause = state.next_action.sleep if state.next_action else 0.0
    _log.info("token endpoint: %s; asking again in %.1f s", _failure(state).what, pause)


def _give_up(state: tenacity.RetryCallState) -> None:
    failed = _failure(state)
    if not _SentAway()(state):
        raise _given_up(failed.what, state.attempt_number) from None
    until = datetime.now(timezone.utc) + timedelta(seconds=failed.pause or 0.0)
    raise QuotaSpentError(
        f"{_WHO} gives no token before {until:%Y-%m-%d %H:%M:%S} UTC: {failed.what}.",
        todo="Nothing: an Airflow task comes back by itself. Elsewhere, run again then.",
        until=until,
    ) from None


def _left_alone(exc: ExtractError, failed: _Failed | None) -> float | None:
    """For how many seconds nobody should ask again."""
    if failed is None or not isinstance(exc, ApiUnavailableError | QuotaSpentError):
        return None
    return _PAUSE if failed.pause is None else failed.pause


def _given_up(what: str, tries: int) -> ApiUnavailableError:
    return ApiUnavailableError(
        f"{_WHO} gives no token: {what}, after {tries} tries.",
        todo="Run again later; the walk goes on where it stands. If it stays so, check the connection's token URL.",
    )


def _failure(state: tenacity.RetryCallState) -> _Failed:
    exc = state.outcome.exception() if state.outcome else None
    assert isinstance(exc, _Failed)
    return exc


def _judged(answer: Answer, *, again: bool) -> Answered:
    """A grant (RFC 6749, section 5.1), a no (section 5.2), or status 200 and no grant: a token may have been made and
    spent for it. Neither body nor description is ever shown."""
    found = _object(answer.body)
    code = found.get("error")
    if isinstance(code, str) and (code in _CODES or code in _LOST):
        return Denied(_refusal(code), lost=code in _LOST, again=again)
    if answer.status not in (200, 201):
        return Denied(
            LoginError(
                f"{_WHO} refuses the login (status {answer.status}).",
                todo="Check the connection's token URL and client: there is no registered error code in the answer.",
            ),
            again=again,
        )
    if code is not None:
        error = LoginError(f"{_WHO} answers with an error of its own.", todo=_CODES["invalid_client"])
        return Denied(error, again=again, refresh=_refresh(found))
    return _granted(found)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _granted(found: Mapping[str, Any]) -> Answered:
    """A grant. A new refresh token is one even where nothing else is: the old one is spent for it.

    Without a `token_type`, which RFC 6749 demands, it is bearer: LinkedIn's answers have none ("Refresh Tokens with
    OAuth 2.0" at learn.microsoft.com/linkedin).
    """
    access, kind = found.get("access_token"), found.get("token_type")
    if not isinstance(access, str) or not access:
        useless = "no `access_token`, or no JSON"
    elif not _is_sendable(access):
        useless = "an `access_token` that no header can carry"
    elif kind is not None and (not isinstance(kind, str) or kind.lower() not in _BEARER):
        useless = "a `token_type` that is not `bearer`"
    else:
        return Grant(access, _lives(found.get("expires_in")), _refresh(found))
    return Denied(_useless(useless), spent=True, refresh=_refresh(found))


def _refresh(found: Mapping[str, Any]) -> str | None:
    """The new refresh token. What UTF-8 cannot hold cannot be sent: that is none."""
    refresh = found.get("refresh_token")
    if not isinstance(refresh, str) or not refresh:
        return None
    try:
        refresh.encode()
    except UnicodeEncodeError:
        return None
    return refresh


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
    return LoginError(f"{_WHO} refuses the login ({shown}).", todo=todo)


def _useless(what: str) -> LoginError:
    return LoginError(
        f"{_WHO} answers with {what}.",
        todo="Check the connection's token URL: it must be the vendor's endpoint for OAuth 2.0 tokens.",
    )
