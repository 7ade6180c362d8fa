"""One request, one reply: the only place that talks to an API."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, unquote_plus, urljoin, urlsplit, urlunsplit

import requests
import tenacity
from requests.structures import CaseInsensitiveDict

from airflow_extract_provider.extract.api.cut import cut, cut_one
from airflow_extract_provider.extract.errors import ApiUnavailableError, LoginError, RequestRefusedError
from airflow_extract_provider.extract.page import Refused, Reply, Request
from airflow_extract_provider.extract.source import ApiObject, Source

__all__ = ["ApiClient"]

_log = logging.getLogger(__name__)

_REFUSALS = frozenset({400, 404, 410, 422})
_TRY_AGAIN = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})
_MAX_SKEW = timedelta(minutes=5)
_LONGEST_WAIT = 60.0
_JSON = "application/json"
_PORTS = {"http": 80, "https": 443}


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
        # A page out of a cache is an older look than it seems: what has changed since would be missed.
        self._headers = {"Accept": _JSON, "Cache-Control": "no-cache", **source.headers}
        self._secrets = tuple(secret for secret in secrets if secret)
        self._timeout = timeout
        self._tries = tries
        self.requests = 0

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        """The page that answers a request, or the API's refusal of it (400, 404, 410, 422).

        A request with a `key` gives a page of that one record. No answer, 408, 425, 429, 5xx but 501 and 505, and a 403
        that tells of a rate limit are tried again with growing pauses, `Retry-After` obeyed up to a minute; a POST too,
        since it only searches.

        Raises ApiUnavailableError: the tries are used up.
        Raises LoginError: 401 or 403.
        Raises RequestRefusedError: a redirect, another 4xx, or a link that leads away from the API.
        Raises WrongAnswerError, RecordsPathError, BadRecordError: as :func:`~.cut.cut` and :func:`~.cut.cut_one`.
        """
        asked = self._asked(object, request)
        sent = datetime.now(timezone.utc)
        began = time.monotonic()
        response = self._retrying()(self._send, asked)
        if response.status_code in _REFUSALS:
            return Refused(response.status_code)
        self._check_status(response, asked)
        took = timedelta(seconds=time.monotonic() - began)
        began_at = _began_at(response, sent, took)
        body = response.content
        page = cut(object, body, began_at) if request.key is None else cut_one(object, body, began_at, request.key)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return replace(page, headers=headers, path=urlsplit(asked.url).path)

    def _asked(self, object: ApiObject, request: Request) -> _Asked:
        headers = CaseInsensitiveDict({**({} if request.body is None else {"Content-Type": _JSON}), **self._headers})
        headers.update(request.headers)
        url = self._base_url + request.path
        if request.link is not None:
            url = self._linked(url, request.link)
        # A path filled by a template may hold a page token: people are shown the template.
        shown = object.path if request.key is None or object.by_key is None else object.by_key.path
        return _Asked(request, url, {} if request.link is not None else request.params, headers, shown)

    def _linked(self, url: str, link: str) -> str:
        """The URL of a link, relative to ``url``, on the API's own host: elsewhere the login would leak.

        Raises RequestRefusedError: it leads to another scheme, host or port, or nowhere.
        """
        own = urlsplit(url)
        try:
            target = urlsplit(urljoin(url, link))
            origin = _origin(target)
        except ValueError:
            raise RequestRefusedError(
                "the link to the next page is no URL.", todo="Check where `pages` finds the link."
            ) from None
        if origin != _origin(own):
            raise RequestRefusedError(
                f"the link to the next page leads to {self._host(target)}; the login is not sent there.",
                todo="If that is the API's right address, give it to the connection.",
            )
        # Of the link only path and query are taken, so that no other reading of its host can matter.
        return urlunsplit((own.scheme, own.netloc, target.path or "/", self._unsent(target.query), ""))

    def _unsent(self, query: str) -> str:
        """A link's query without what the session itself sends: some APIs repeat the login in their links."""
        sent = self._session.params
        names = set(sent) if isinstance(sent, Mapping) else set()
        return "&".join(part for part in query.split("&") if unquote_plus(part.partition("=")[0]) not in names)

    def _host(self, target: SplitResult) -> str:
        shown = f"{target.scheme}://{target.netloc.rpartition('@')[2]}"
        return "another host" if any(secret in shown for secret in self._secrets) else shown

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unanswered),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=_wait,
            before_sleep=_tell,
            retry_error_callback=_give_up,
        )

    def _send(self, asked: _Asked) -> requests.Response:
        self.requests += 1
        body = asked.request.body
        try:
            # Redirects are not followed: a session's own headers, a login among them, would go to the other host too.
            response = self._session.request(
                asked.request.method,
                asked.url,
                params=dict(asked.params),
                data=None if body is None else body.encode(),
                headers=asked.headers,
                timeout=self._timeout,
                allow_redirects=False,
            )
        except requests.exceptions.SSLError:
            raise _Unanswered("the TLS connection failed", asked) from None
        except requests.exceptions.ConnectionError as exc:
            raise _Unanswered(_connection_failure(exc), asked) from None
        except requests.exceptions.Timeout:
            raise _Unanswered("no answer within the timeout", asked) from None
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
            raise _Unanswered("the answer broke off in the middle", asked) from None
        # ValueError: a login with a character that no header can carry (it quotes the login), a redirect to nowhere.
        except (requests.exceptions.RequestException, ValueError) as exc:
            raise RequestRefusedError(
                f"the request cannot be sent, or its answer not be read ({type(exc).__name__}).",
                todo="Check the connection's host and headers.",
            ) from None
        if response.status_code in _TRY_AGAIN or _is_limited(response):
            raise _Unanswered(f"status {response.status_code}", asked, _retry_after(response))
        return response

    def _check_status(self, response: requests.Response, asked: _Asked) -> None:
        status = response.status_code
        if status in (401, 403):
            why = "does not accept the login" if status == 401 else "forbids this to the login"
            raise LoginError(
                f"the API {why} (status {status}).", todo="Correct the connection, or the rights behind it."
            )
        if 300 <= status < 400:
            raise RequestRefusedError(
                f"the API redirects {asked.shown} (status {status}){self._redirect(response, asked)}.",
                todo="Give the connection the address it redirects to; following it here could leak the login.",
            )
        if status != 200:
            raise RequestRefusedError(
                f"the API answers {asked.shown} with status {status}.", todo="Check `path` and `params` of the object."
            )

    def _redirect(self, response: requests.Response, asked: _Asked) -> str:
        """Where to. A path is shown only where it is the object's own: others may hold one-time tokens."""
        try:
            target = urlsplit(response.headers.get("Location", ""))
        except ValueError:
            return ""
        host = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else ""
        own = urlsplit(self._base_url + asked.shown).path.rstrip("/")
        same = target.path.rstrip("/") == own == urlsplit(asked.url).path.rstrip("/")
        shown = f" to {host}{target.path}" if same else f" to another path{' of ' if host else ''}{host}"
        return "" if any(secret in shown for secret in self._secrets) else shown


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as it goes out. ``shown`` is its path for people: nothing of a value, parameter or link is in it."""

    request: Request
    url: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    shown: str


class _Unanswered(Exception):
    """A request without a usable answer, for the retries; ``pause`` is what the API asks to wait, in seconds."""

    def __init__(self, what: str, asked: _Asked, pause: float | None = None) -> None:
        super().__init__(what)
        self.what, self.asked, self.pause = what, asked, pause


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
    _log.info("%s page %d: %s; asking again in %.1f s", exc.asked.shown, exc.asked.request.page, exc.what, pause)


def _give_up(state: tenacity.RetryCallState) -> requests.Response:
    exc = _unanswered(state)
    raise ApiUnavailableError(
        f"{exc.what}, after {state.attempt_number} tries of {exc.asked.shown}.",
        todo="Run again later; the walk goes on where it stands. If it stays so, test the connection.",
    ) from None


def _unanswered(state: tenacity.RetryCallState) -> _Unanswered:
    exc = state.outcome.exception() if state.outcome else None
    assert isinstance(exc, _Unanswered)
    return exc


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, which tell whether two URLs lead to the same server. Raises ValueError: an odd port."""
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)


def _is_limited(response: requests.Response) -> bool:
    """Whether a 403 is the answer to too many requests, as GitHub sends it ("Rate limits for the REST API")."""
    headers = response.headers
    return response.status_code == 403 and ("Retry-After" in headers or headers.get("X-RateLimit-Remaining") == "0")


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
    request's duration earlier. Without it, or without its zone, our clock less the most that two clocks are taken to
    differ. One that is further ahead of our clock than that is not believed: what changes until then would be missed,
    and an instant that is too early costs only pages read again.
    """
    try:
        date = parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError, TypeError):
        return sent - _MAX_SKEW
    return min(date, sent + _MAX_SKEW) - took if date.tzinfo else sent - _MAX_SKEW
