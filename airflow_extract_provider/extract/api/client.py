"""One request, one reply: the only place that asks an API for records.

::

    request ──► turn (quota) ──► login ──► transport ──► answer ──► page, refusal, or once more
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import urlsplit

import requests
import tenacity
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict

from airflow_extract_provider.extract.api.address import (
    LEFT_OUT,
    linked,
    login_in_position,
    without_secrets,
)
from airflow_extract_provider.extract.api.auth import Auth
from airflow_extract_provider.extract.api.cut import cut, cut_one
from airflow_extract_provider.extract.api.excerpt import excerpt, forms_of
from airflow_extract_provider.extract.api.limits import MemoryQuota, Quota, Turn, told
from airflow_extract_provider.extract.api.refusals import (
    is_limited,
    is_own,
    status_error,
    values_of,
    with_words,
)
from airflow_extract_provider.extract.api.transport import Answer, Bounds, Outgoing, Transport, Unanswered
from airflow_extract_provider.extract.api.words import is_page, words
from airflow_extract_provider.extract.errors import (
    ApiUnavailableError,
    QuotaSpentError,
    WrongAnswerError,
)
from airflow_extract_provider.extract.page import Halted, Page, Refused, Reply, Request
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["ApiClient", "pause"]

_log = logging.getLogger(__name__)

_REFUSALS = frozenset({400, 404, 410, 422})
_TRY_AGAIN = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})
_MAX_SKEW = timedelta(minutes=5)
_MOST_LIMITED = 20
"""How often in a row an API may say that it was asked too often, and when to ask again, until that is not believed."""
_SHORTEST = 0.0001
"""Seconds below which sleeping takes longer than what is waited for."""
_JSON = "application/json"


class ApiClient(Unshown):
    """Fetches pages of a source's objects over one keep-alive session, no faster than the quota allows.

    ``auth`` is the login; None: the session carries it. ``secrets`` are never shown, nor what ``auth`` says is secret.
    ``quota`` is shared with others of the source; None: its `limit` is kept for this client alone. ``longest_wait`` is
    how long, in seconds, a request may wait for its turn. ``requests`` counts what went out, retries included. One
    thread at a time may use a client.
    """

    def __init__(
        self,
        source: Source,
        session: requests.Session,
        base_url: str,
        *,
        auth: Auth | None = None,
        secrets: Collection[str] = (),
        quota: Quota | None = None,
        bounds: Bounds | None = None,
        tries: int = 5,
        longest_wait: float = 60.0,
    ) -> None:
        self._session, self._auth = session, auth
        self._base_url = base_url.rstrip("/")
        # A page out of a cache is an older look than it seems: what has changed since would be missed.
        self._headers = {"Accept": _JSON, "Cache-Control": "no-cache", **source.headers}
        self._own_secrets = forms_of(*secrets)
        self._quota = quota or MemoryQuota(source.limit)
        self._transport = Transport(session, bounds or Bounds())
        self._tries = tries
        self._longest_wait = longest_wait
        self._halted = threading.Event()
        self.requests = 0

    @property
    def left(self) -> float | None:
        """Which part of the quota is left, from 0 to 1, as far as it is known."""
        return self._quota.left

    def stop_with(self, stop: threading.Event) -> None:
        """From now on, once that is set, send nothing more: a wait ends at once, and whoever fetches gets Halted."""
        self._halted = stop

    def close(self) -> None:
        """Close the session, and the connections of login and quota. Whoever still fetches gets Halted."""
        self._halted.set()
        for each in (self._quota, self._auth, self._session):
            if each is not None:
                each.close()

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        """The page that answers a request, or the API's refusal of it (400, 404, 410, 422).

        A request with a `key` gives a page of that one record. No whole answer, 408, 425, 429, 5xx but 501 and 505, a
        403 that tells of a rate limit, and a 200 without a page in it are tried again with growing pauses; a POST too,
        since it only searches. What the API says of when to ask again is obeyed to the full. A login that can be
        renewed is, once.

        Raises QuotaSpentError: the next request's turn comes later than ``longest_wait``.
        Raises ApiUnavailableError: the tries are used up. Raises WrongAnswerError, RecordsPathError, BadRecordError: as
        :func:`~.cut.cut` and :func:`~.cut.cut_one`.
        Raises LoginError: 401 or 403. Raises what :meth:`.auth.Auth.admitted` and :meth:`.transport.Transport.send` do.
        Raises RequestRefusedError: a redirect, another 4xx, or a link that leads away from the API. Raises Halted.
        """
        asked = self._asked(object, request)
        for attempt in self._retrying(asked):
            with attempt:
                return self._tried(object, request, asked)
        raise AssertionError("tenacity ends in a return or an error")

    def _asked(self, object: ApiObject, request: Request) -> Outgoing:
        headers = CaseInsensitiveDict({**({} if request.body is None else {"Content-Type": _JSON}), **self._headers})
        headers.update(request.headers)
        url = self._base_url + request.path
        if request.link is not None:
            url = linked(url, request.link, self._sends_itself(), self._secrets())
        # A path filled by a template may hold a page token: people are shown the template.
        shown = object.path if request.key is None or object.by_key is None else object.by_key.path
        params = {} if request.link is not None else request.params
        if any(LEFT_OUT in value for value in (*params.values(), *request.headers.values(), request.body or "")):
            raise login_in_position()
        body = None if request.body is None else request.body.encode()
        return Outgoing(url, shown, request.page, request.method, params, headers, body)

    def _sends_itself(self) -> set[str]:
        sent = self._session.params
        return {*(sent if isinstance(sent, Mapping) else ()), *(self._auth.params if self._auth else ())}

    def _secrets(self) -> tuple[str, ...]:
        return (*self._own_secrets, *(self._auth.secrets if self._auth else ()))

    def _retrying(self, asked: Outgoing) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unanswered),
            stop=_Patience(self._tries),
            wait=_wait,
            sleep=partial(pause, self._halted),
            before_sleep=lambda state: _tell(state, asked),
            retry_error_callback=lambda state: _give_up(state, asked),
        )

    def _tried(self, object: ApiObject, request: Request, asked: Outgoing) -> Reply:
        answer, began_at = self._answer(object, asked)
        if answer.status != 200:
            said = self._said(object, asked, answer)
            if answer.status in _REFUSALS:
                return Refused(answer.status, said, is_own(answer), answer.age)
            raise status_error(answer, asked, said, self._secrets())
        try:
            page = self._page(object, request, answer, began_at)
        except WrongAnswerError as exc:
            if is_page(answer.body):
                raise
            raise _NoPage(with_words(exc, answer, self._said(object, asked, answer))) from None
        age = answer.age
        began_at = page.began_at - age
        page = replace(page, headers=answer.headers, path=urlsplit(asked.url).path, age=age, began_at=began_at)
        return without_secrets(page, self._secrets(), object.records)

    def _page(self, object: ApiObject, request: Request, answer: Answer, began_at: datetime) -> Page:
        if request.key is None:
            return cut(object, answer.body, began_at)
        return cut_one(object, answer.body, began_at, request.key)

    def _answer(self, object: ApiObject, asked: Outgoing) -> tuple[Answer, datetime]:
        """A whole answer, and an instant before the API looked the records up. Raises Unanswered: none of use."""
        turn, answer, sent, took = self._sent(asked)
        heard = told(answer.headers, datetime.now(timezone.utc))
        limited = is_limited(answer)
        if limited:
            until_reset = heard.reset if heard.pause is None and not heard.remaining else heard.pause
            heard = replace(heard, limited=True, pause=until_reset)
        self._quota.tell(turn, heard)
        if limited or answer.status in _TRY_AGAIN:
            # A pause of nothing is none: it would be asked again at once, and again.
            raise _Failed(self._failed(object, asked, answer), limited=limited, paused=bool(heard.pause))
        if answer.status == 401 and self._auth is not None and self._auth.refused():
            raise _Failed("the login had run out", limited=False, paused=True)
        return answer, _began_at(answer.headers, sent, took)

    def _sent(self, asked: Outgoing) -> tuple[Turn, Answer, datetime, timedelta]:
        """The answer to a request in its turn, when it was sent by our clock, and how long it took.

        A turn that was missed is another's by now, and one that was given before the API told somebody to wait is none
        any more: this process may have been held up, and to log in may have taken a while.
        """
        while True:
            turn, until = self._turn()
            with self._signed() as auth:
                if self._halted.is_set():
                    raise Halted
                if time.monotonic() > until or not self._quota.stands(turn):
                    continue
                sent, began = datetime.now(timezone.utc), time.monotonic()
                self.requests += 1
                answer = self._transport.send(asked, auth)
                return turn, answer, sent, timedelta(seconds=time.monotonic() - began)

    def _turn(self) -> tuple[Turn, float]:
        """This request's turn, waited for, and until when it may go out, on the monotonic clock."""
        turn = self._quota.turn(self._longest_wait)
        if turn.wait > self._longest_wait:
            raise _spent(turn.wait, self._longest_wait)
        due = time.monotonic() + turn.wait
        if turn.wait > _SHORTEST:
            pause(self._halted, turn.wait)
        return turn, math.inf if turn.grace is None else due + turn.grace

    @contextmanager
    def _signed(self) -> Iterator[AuthBase | None]:
        if self._auth is None:
            yield None
        else:
            with self._auth.admitted() as signer:
                yield signer

    def _failed(self, object: ApiObject, asked: Outgoing, answer: Answer) -> str:
        said = self._said(object, asked, answer)
        return f"status {answer.status} ({said})" if said else f"status {answer.status}"

    def _said(self, object: ApiObject, asked: Outgoing, answer: Answer) -> str:
        """The beginning of the API's own words, for people. What was asked is left out where an API repeats it: a page
        token may open somebody's data."""
        if object.private:
            return ""
        hidden = (*self._secrets(), *asked.params.values(), *values_of(asked))
        return excerpt(words(answer.status, answer.body), hidden)


class _Failed(Unanswered):
    """An answer that may be another one next time. ``limited``: the API was asked too often. ``paused``: when to ask
    again is not ours to choose: the quota knows what the API has said, or there is no reason to wait."""

    def __init__(self, what: str, *, limited: bool, paused: bool) -> None:
        super().__init__(what)
        self.limited, self.paused = limited, paused


class _Patience:
    """Gives up after so many failures. Those of an API that says when to ask again, and is obeyed, count apart."""

    def __init__(self, tries: int) -> None:
        self._failed, self._obeyed, self._tries = 0, 0, tries

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        exc = _failure(state)
        if isinstance(exc, _Failed) and exc.limited and exc.paused:
            self._obeyed += 1
        else:
            self._failed += 1
        return self._failed >= self._tries or self._obeyed >= _MOST_LIMITED


class _NoPage(Unanswered):
    """Status 200 and no page, as from a gateway that is being restarted. ``error`` is what it is if it stays so."""

    def __init__(self, error: WrongAnswerError) -> None:
        super().__init__(error.what.rstrip("."))
        self.error = error


_backoff = tenacity.wait_exponential_jitter(multiplier=0.5, max=20.0)


def _wait(state: tenacity.RetryCallState) -> float:
    exc = _failure(state)
    return 0.0 if isinstance(exc, _Failed) and exc.paused else _backoff(state)


def _tell(state: tenacity.RetryCallState, asked: Outgoing) -> None:
    exc = _failure(state)
    pause = state.next_action.sleep if state.next_action else 0.0
    when = f"in {pause:.1f} s" if pause else "when it is its turn"
    _log.info("%s page %d: %s; asking again %s", asked.shown, asked.page, exc.what, when)


def _give_up(state: tenacity.RetryCallState, asked: Outgoing) -> None:
    exc = _failure(state)
    if isinstance(exc, _NoPage):
        raise exc.error from None
    raise ApiUnavailableError(
        f"{exc.what}, after {state.attempt_number} tries of {asked.shown}.",
        todo="Run again later; the walk goes on where it stands. If it stays so, test the connection.",
    ) from None


def _failure(state: tenacity.RetryCallState) -> Unanswered:
    exc = state.outcome.exception() if state.outcome else None
    assert isinstance(exc, Unanswered)
    return exc


def _spent(wait: float, most: float) -> QuotaSpentError:
    until = datetime.now(timezone.utc) + timedelta(seconds=wait)
    return QuotaSpentError(
        f"no request is granted before {until:%Y-%m-%d %H:%M:%S} UTC, and a task waits {most:g} s at most.",
        todo="Nothing: an Airflow task comes back by itself. Elsewhere, run again then.",
        until=until,
    )


def pause(halted: threading.Event, seconds: float) -> None:
    """Sleep so long, or until the client is halted. Raises Halted."""
    if halted.wait(seconds):
        raise Halted


def _began_at(headers: Mapping[str, str], sent: datetime, took: timedelta) -> datetime:
    """An instant certainly before the API looked the records up, on its own clock if it tells it by `Date`.

    `Date` is when the answer was made, in whole seconds (RFC 9110, section 6.6.1): the look-up began no more than the
    request's duration earlier. Without it, or without its zone, our clock less the most that two clocks are taken to
    differ. One that is further ahead of our clock than that is not believed: what changes until then would be missed,
    and an instant that is too early costs only pages read again.
    """
    try:
        date = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError, OverflowError, IndexError):
        return sent - _MAX_SKEW
    return min(date, sent + _MAX_SKEW) - took if date.tzinfo else sent - _MAX_SKEW
