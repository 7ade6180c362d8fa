"""Sends one request and brings the whole answer, within bounds: what fails is told in words of our own."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import prepend_scheme_if_needed, select_proxy
from urllib3 import PoolManager
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_extract_provider.extract.errors import AnswerTooLargeError, CertificateError, RequestRefusedError
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["Answer", "Bounds", "Outgoing", "Transport", "Unanswered", "network_of"]

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how large an answer may be.

    ``connect`` is the longest time to connect, ``read`` the longest silence, ``total`` what a request may take until
    the whole answer is there, all in seconds; ``size`` the answer's most bytes, uncompressed.
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 300.0
    size: int = 100 << 20


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it goes out. ``shown`` is its path for people: nothing of a value, parameter or link is in it."""

    url: str
    shown: str
    page: int
    method: str = "GET"
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. The names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def age(self) -> timedelta:
        """How long it has been in a cache, which looked at the API so much earlier (RFC 9111, section 5.1)."""
        text = self.headers.get("age", "").strip()
        return timedelta(seconds=int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else timedelta(0)


class Unanswered(Exception):
    """A request without a usable answer, which may have one when it is sent again. ``what`` is in our words."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Transport(Unshown):
    """Sends requests over one keep-alive session. One thread at a time may use it."""

    def __init__(self, session: requests.Session, bounds: Bounds) -> None:
        self._session, self._bounds = session, bounds
        self._networks: dict[tuple[str, str], Mapping[str, Any]] = {}
        for adapter in session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                _tell_sockets(adapter.poolmanager)

    def send(self, asked: Outgoing, auth: AuthBase | None) -> Answer:
        """The answer, of whatever status. A redirect is an answer, too: it is not followed.

        Raises Unanswered: none came, or not all of it, or not in time.
        Raises CertificateError, AnswerTooLargeError. Raises RequestRefusedError: the request cannot be sent.
        """
        with (
            _in_our_words(asked),
            _watch.over(self._bounds.total) as watched,
            self._in_time(watched),
            self._opened(asked, auth) as response,
        ):
            watched.end = response.raw.shutdown
            body = self._body(asked, response)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, body)

    def _opened(self, asked: Outgoing, auth: AuthBase | None) -> requests.Response:
        request = requests.Request(
            asked.method, asked.url, params=dict(asked.params), data=asked.body, headers=asked.headers, auth=auth
        )
        # Of the environment nothing but the network counts, which is known by then; nor ~/.netrc, whose login would
        # replace ours.
        network = self._network(asked.url)
        trusts, self._session.trust_env = self._session.trust_env, False
        try:
            # Redirects are not followed: a session's own headers, a login among them, would go to the other host too.
            return self._session.send(
                self._session.prepare_request(request),
                timeout=(self._bounds.connect, self._bounds.read),
                allow_redirects=False,
                stream=True,
                **network,
            )
        finally:
            self._session.trust_env = trusts

    def _network(self, url: str) -> Mapping[str, Any]:
        """TLS and proxies for a URL. The environment is looked at once for each host: `requests` does it twice for each
        request, which takes as long as to send it."""
        origin = urlsplit(url)[:2]
        if origin not in self._networks:
            given = network_of(self._session)
            found = self._session.merge_environment_settings(url, given["proxies"], None, given["verify"], None)
            self._networks[origin] = {name: found[name] for name in ("verify", "cert", "proxies")}
            adapter, proxy = self._session.get_adapter(url), select_proxy(url, found["proxies"])
            if proxy and isinstance(adapter, HTTPAdapter):
                whole = prepend_scheme_if_needed(proxy, "http")  # type: ignore[no-untyped-call]  # requests'
                _tell_sockets(adapter.proxy_manager_for(whole))
        return self._networks[origin]

    @contextmanager
    def _in_time(self, watched: _Watched) -> Iterator[None]:
        try:
            yield
        except requests.RequestException:
            if not watched.fired:
                raise
        if watched.fired:
            raise Unanswered(f"the answer is not complete after {self._bounds.total:g} s")

    def _body(self, asked: Outgoing, response: requests.Response) -> bytes:
        announced = response.headers.get("Content-Length", "")
        if announced.isascii() and announced.isdigit() and int(announced) > self._bounds.size:
            raise self._too_large(asked)
        parts, size = [], 0
        try:
            for part in response.iter_content(_CHUNK):
                size += len(part)
                if size > self._bounds.size:
                    raise self._too_large(asked)
                parts.append(part)
        except ValueError:  # a size of a chunk that is no number
            raise Unanswered("the answer is garbled") from None
        return b"".join(parts)

    def _too_large(self, asked: Outgoing) -> AnswerTooLargeError:
        return AnswerTooLargeError(
            f"the answer of {asked.shown} is larger than {self._bounds.size:,} bytes.",
            todo="Ask for smaller pages (`pages.size.max`), or raise `max_size` of the connection.",
        )


def network_of(session: requests.Session) -> dict[str, Any]:
    """A session's own `verify` and `proxies`, to be given to a request: else those of the environment
    (REQUESTS_CA_BUNDLE, HTTPS_PROXY) would go before them. Where the session says nothing, they count."""
    return {"verify": None if session.verify is True else session.verify, "proxies": dict(session.proxies)}


@dataclass(slots=True, eq=False)
class _Watched:
    """An answer on its way, when it has to be there, on the monotonic clock, and how to end it."""

    until: float
    end: Callable[[], object] = lambda: None
    fired: bool = False


class _Watch(threading.local):
    """Ends answers that take too long in all: a server that sends a byte now and then never runs into a timeout between
    two of them. One thread for the whole process, which sleeps while nothing is read."""

    _changed = threading.Condition()
    _watched: ClassVar[set[_Watched]] = set()
    _sleeps: ClassVar[bool] = False
    _thread: ClassVar[threading.Thread | None] = None

    current: _Watched | None = None
    """What this thread waits for."""

    @contextmanager
    def over(self, seconds: float) -> Iterator[_Watched]:
        """Watch while an answer is waited for and read. Afterwards ``fired`` tells whether it was cut off."""
        self.current = found = _Watched(time.monotonic() + seconds)
        with self._changed:
            self._awake(found)
        try:
            yield found
        finally:
            self.current = None
            with self._changed:
                self._watched.discard(found)

    @classmethod
    def _awake(cls, new: _Watched) -> None:
        cls._watched.add(new)
        if cls._thread is None or not cls._thread.is_alive():
            # A process that was forked has no such thread, whatever it remembers; what is remembered is its parent's.
            cls._watched.intersection_update([new])
            cls._thread = threading.Thread(target=cls._run, name="watch answers", daemon=True)
            cls._thread.start()
        elif cls._sleeps:
            cls._changed.notify()

    @classmethod
    def _run(cls) -> None:
        with cls._changed:
            while True:
                now = time.monotonic()
                for late in [each for each in cls._watched if each.until <= now]:
                    cls._watched.discard(late)
                    late.fired = True
                    with suppress(Exception):  # the answer may just have come to its end
                        late.end()
                # Not woken for each answer, which would cost more than looking once in a while.
                cls._sleeps = not cls._watched
                cls._changed.wait(None if cls._sleeps else _LOOK_EVERY)


_LOOK_EVERY = 0.25
_watch = _Watch()


class _Telling:
    """A connection that tells the watch of its socket before it waits for an answer: a head may dribble, too."""

    sock: socket.socket

    def getresponse(self) -> Any:
        if _watch.current is not None:
            _watch.current.end = partial(self.sock.shutdown, socket.SHUT_RD)
        return super().getresponse()  # type: ignore[misc]  # of the connection it is mixed into


class _Http(HTTPConnectionPool):
    ConnectionCls = type("_HttpTelling", (_Telling, HTTPConnectionPool.ConnectionCls), {})


class _Https(HTTPSConnectionPool):
    ConnectionCls = type("_HttpsTelling", (_Telling, HTTPSConnectionPool.ConnectionCls), {})


def _tell_sockets(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Http, "https": _Https}


@contextmanager
def _in_our_words(asked: Outgoing) -> Iterator[None]:
    """Name what a library says of a failed request: its own text holds the whole URL, parameters included."""
    try:
        yield
    except requests.exceptions.SSLError as exc:
        raise _tls_failure(exc) from None
    except requests.exceptions.ConnectionError as exc:
        raise Unanswered(_connection_failure(exc)) from None
    except requests.exceptions.Timeout:
        raise Unanswered("no answer within the timeout") from None
    except requests.exceptions.ChunkedEncodingError:
        raise Unanswered("the answer broke off in the middle") from None
    except requests.exceptions.ContentDecodingError:
        raise Unanswered("the answer is not compressed in the way that it says") from None
    # OSError: a certificate file of the connection that is not there. ValueError: a login with a character that no
    # header can carry (it quotes the login), a redirect to nowhere.
    except (requests.exceptions.RequestException, OSError, ValueError) as exc:
        raise RequestRefusedError(
            f"the request to {asked.shown} cannot be sent, or its answer not be read ({type(exc).__name__}).",
            todo="Check the connection: its host, headers, `verify`, `cert` and `proxies`.",
        ) from None


_UNTRUSTED = {
    9: "is not valid yet",
    10: "has expired",
    18: "is signed by itself",
    19: "is signed by an authority that is not trusted here",
    20: "is signed by an authority that is not trusted here",
    62: "is made for another host",
    64: "is made for another address",
}
"""OpenSSL's results of a verification (X509_V_ERR_*, in its manual page X509_STORE_CTX_get_error)."""


def _tls_failure(exc: BaseException) -> Exception:
    found = _cause(exc, ssl.SSLCertVerificationError)
    if found is None:
        return Unanswered("the TLS connection failed")
    why = _UNTRUSTED.get(found.verify_code, "is not trusted")
    return CertificateError(
        f"the certificate that the API shows {why}.",
        todo="Check the connection's host; if the authority is your own, give its file as `verify`.",
    )


def _cause(exc: BaseException, kind: type[ssl.SSLCertVerificationError]) -> ssl.SSLCertVerificationError | None:
    """The error of that kind below another one: libraries put it into arguments as well as causes."""
    seen: list[object] = [exc]
    for each in seen:
        if isinstance(each, kind):
            return each
        if isinstance(each, BaseException) and len(seen) < 50:
            seen += [*each.args, each.__cause__, each.__context__, getattr(each, "reason", None)]
    return None


def _connection_failure(exc: requests.exceptions.ConnectionError) -> str:
    text = repr(exc)
    for sign, words in (
        ("ProxyError", "the proxy cannot be reached, or refuses"),
        ("NameResolution", "the host's name cannot be resolved"),
        ("ConnectTimeout", "no connection within the timeout"),
        ("refused", "the connection is refused"),
        ("reset", "the connection was reset"),
        ("Read timed out", "no answer within the timeout"),
    ):
        if sign in text:
            return words
    return "the connection failed"


class _WithoutAddress(logging.Filter):
    """urllib3 warns of broken headers and of retries with the whole URL, secrets among its parameters, and notes each
    request so at DEBUG: cut that off."""

    def filter(self, record: logging.LogRecord) -> bool:
        words, _, address = str(record.msg).partition(" (")
        if address and words in ("Failed to parse headers", "Retrying"):
            record.msg, record.args, record.exc_info = words, (), None
        elif record.levelno <= logging.DEBUG and isinstance(record.args, tuple):
            record.args = tuple(_pathless(each) for each in record.args)
        return True


def _pathless(told: object) -> object:
    """What a debug line tells, but for paths, which may hold keys and tokens; hosts stay."""
    return "/..." if isinstance(told, str) and told.startswith("/") and len(told) > 1 else told


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    logging.getLogger(_name).addFilter(_WithoutAddress())
