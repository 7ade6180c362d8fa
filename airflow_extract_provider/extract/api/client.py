"""One request, one reply: the only place that talks to an API."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
import tenacity

from airflow_extract_provider.extract.api.cut import cut
from airflow_extract_provider.extract.errors import ApiUnavailableError, LoginError, RequestRefusedError
from airflow_extract_provider.extract.page import Refused, Reply, Request
from airflow_extract_provider.extract.source import ApiObject, Source

__all__ = ["ApiClient"]

_log = logging.getLogger(__name__)

_REFUSALS = frozenset({400, 404, 410, 422})
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_SKEW = timedelta(minutes=5)
_LONGEST_WAIT = 60.0


class ApiClient:
    """Fetches pages of a source's objects over one keep-alive session.

    ``session`` carries the login; ``secrets`` are never shown. ``timeout`` is (to connect, between two bytes), in
    seconds. ``requests`` counts what went out, retries included. One thread at a time may use a client.
    """

    def __init__(
        self,
        source: Source,
        session: requests.Session,
        base_url: str,
        *,
        secrets: Collection[str] = (),
        timeout: tuple[float, float] = (10.0, 60.0),
        tries: int = 4,
    ) -> None:
        self._session = session
        self._base_url = base_url.rstrip("/")
        self._headers = {"Accept": "application/json", **source.headers}
        self._secrets = tuple(secret for secret in secrets if secret)
        self._timeout = timeout
        self._tries = tries
        self.requests = 0

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        """The page that answers a request, or the API's refusal of it (400, 404, 410, 422).

        No answer, 408, 425, 429 and 5xx are tried again with growing pauses, `Retry-After` obeyed up to a minute.

        Raises ApiUnavailableError: the tries are used up.
        Raises LoginError: 401 or 403. Raises RequestRefusedError: a redirect or another 4xx.
        Raises WrongAnswerError, RecordsPathError, BadRecordError: as :func:`~.cut.cut`.
        """
        sent = datetime.now(timezone.utc)
        began = time.monotonic()
        response = self._retrying()(self._send, request)
        if response.status_code in _REFUSALS:
            return Refused(response.status_code)
        self._check_status(response, request)
        took = timedelta(seconds=time.monotonic() - began)
        return cut(object, response.content, _began_at(response, sent, took))

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unanswered),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=_wait,
            before_sleep=_tell,
            retry_error_callback=_give_up,
        )

    def _send(self, request: Request) -> requests.Response:
        self.requests += 1
        try:
            # Redirects are not followed: a session's own headers, a login among them, would go to the other host too.
            response = self._session.get(
                self._base_url + request.path,
                params=dict(request.params),
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
            )
        except requests.exceptions.SSLError:
            raise _Unanswered("the TLS connection failed", request) from None
        except requests.exceptions.ConnectionError as exc:
            raise _Unanswered(_connection_failure(exc), request) from None
        except requests.exceptions.Timeout:
            raise _Unanswered("no answer within the timeout", request) from None
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
            raise _Unanswered("the answer broke off in the middle", request) from None
        # ValueError: a login with a character that no header can carry (it quotes the login), a redirect to nowhere.
        except (requests.exceptions.RequestException, ValueError) as exc:
            raise RequestRefusedError(
                f"the request cannot be sent, or its answer not be read ({type(exc).__name__}).",
                todo="Check the connection's host and headers.",
            ) from None
        if response.status_code in _TRY_AGAIN:
            raise _Unanswered(f"status {response.status_code}", request, _retry_after(response))
        return response

    def _check_status(self, response: requests.Response, request: Request) -> None:
        status = response.status_code
        if status in (401, 403):
            why = "does not accept the login" if status == 401 else "forbids this to the login"
            raise LoginError(
                f"the API {why} (status {status}).", todo="Correct the connection, or the rights behind it."
            )
        if 300 <= status < 400:
            raise RequestRefusedError(
                f"the API redirects {request.path} (status {status}){self._redirect(response, request)}.",
                todo="Give the connection the address it redirects to; following it here could leak the login.",
            )
        if status != 200:
            raise RequestRefusedError(
                f"the API answers {request.path} with status {status}.", todo="Check `path` and `params` of the object."
            )

    def _redirect(self, response: requests.Response, request: Request) -> str:
        """Where to. A path is shown only where it is the one that was asked for: others may hold one-time tokens."""
        try:
            target = urlsplit(response.headers.get("Location", ""))
        except ValueError:
            return ""
        host = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else ""
        same = target.path.rstrip("/") == urlsplit(self._base_url + request.path).path.rstrip("/")
        shown = f" to {host}{target.path}" if same else f" to another path{' of ' if host else ''}{host}"
        return "" if any(secret in shown for secret in self._secrets) else shown


class _Unanswered(Exception):
    """A request without a usable answer, for the retries; ``pause`` is what the API asks to wait, in seconds."""

    def __init__(self, what: str, request: Request, pause: float | None = None) -> None:
        super().__init__(what)
        self.what, self.request, self.pause = what, request, pause


class _WithoutAddress(logging.Filter):
    """urllib3 warns of broken headers and of retries with the whole URL, secrets among its parameters: cut that off."""

    def filter(self, record: logging.LogRecord) -> bool:
        words, _, address = str(record.msg).partition(" (")
        if address and words in ("Failed to parse headers", "Retrying"):
            record.msg, record.args, record.exc_info = words, (), None
        return True


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_WithoutAddress())

_backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=20.0)


def _wait(state: tenacity.RetryCallState) -> float:
    exc = _unanswered(state)
    return _backoff(state) if exc.pause is None else max(exc.pause, 0.0)


def _tell(state: tenacity.RetryCallState) -> None:
    exc = _unanswered(state)
    pause = state.next_action.sleep if state.next_action else 0.0
    _log.info("%s page %d: %s; asking again in %.1f s", exc.request.path, exc.request.page, exc.what, pause)


def _give_up(state: tenacity.RetryCallState) -> requests.Response:
    exc = _unanswered(state)
    raise ApiUnavailableError(
        f"{exc.what}, after {state.attempt_number} tries of {exc.request.path}.",
        todo="Run again later; the walk goes on where it stands. If it stays so, test the connection.",
    ) from None


def _unanswered(state: tenacity.RetryCallState) -> _Unanswered:
    exc = state.outcome.exception() if state.outcome else None
    assert isinstance(exc, _Unanswered)
    return exc


def _retry_after(response: requests.Response) -> float | None:
    """The pause that `Retry-After` asks for, in seconds, at most a minute (RFC 9110, section 10.2.3); None: none."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT)
    try:
        pause = (parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(pause, 0.0), _LONGEST_WAIT)


def _connection_failure(exc: requests.exceptions.ConnectionError) -> str:
    """What failed, in words of our own: the library's text holds the whole URL, parameters included."""
    text = repr(exc)
    for sign, words in (
        ("NameResolution", "the host's name cannot be resolved"),
        ("ConnectTimeout", "no connection within the timeout"),
        ("refused", "the connection is refused"),
        ("reset", "the connection was reset"),
        ("Read timed out", "no answer within the timeout"),
    ):
        if sign in text:
            return words
    return "the connection failed"


def _began_at(response: requests.Response, sent: datetime, took: timedelta) -> datetime:
    """An instant certainly before the API looked the records up, on its own clock if it tells it by `Date`.

    `Date` is when the answer was made, in whole seconds (RFC 9110, section 6.6.1): the look-up began no more than the
    request's duration earlier. Without it, our clock less the most that two clocks are taken to differ.
    """
    try:
        date = parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError, TypeError):
        return sent - _MAX_SKEW
    return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)) - took
