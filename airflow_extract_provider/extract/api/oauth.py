"""Logins by tokens that run out: OAuth 2.0 (RFC 6749), by client credentials or by a refresh token.

::

    API request ──► ClientCredentials ─────────────────► TokenEndpoint     the token is in memory
                └─► RefreshToken ──► Tokens (Postgres) ─► TokenEndpoint     the tokens are shared by all processes

Many vendors' refresh tokens can be used once: what is given for one must be stored before anything else happens, and by
one process alone. That is the business of :class:`Tokens`; here is only what is asked and answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

from requests.auth import AuthBase

from airflow_extract_provider.extract.api.auth import Signer
from airflow_extract_provider.extract.api.endpoint import Answered, Denied, Grant, TokenEndpoint
from airflow_extract_provider.extract.api.excerpt import forms_of
from airflow_extract_provider.extract.errors import ApiUnavailableError, StoreUnavailableError
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["ClientCredentials", "OnSecret", "RefreshToken", "Renewing", "Tokens"]

OnSecret: TypeAlias = Callable[[str], None]
"""Is told each token as soon as it is known, so that it can be kept out of logs."""

Renewing: TypeAlias = Callable[[str], Answered]
"""Spends a refresh token: what the token endpoint gives for it. It raises nothing that the engine knows."""

_ROUNDS = 5


class Tokens(Protocol):
    """The tokens of one login, shared by all processes that use it. One thread at a time uses it."""

    @property
    def saving(self) -> float:
        """For how long, in seconds, it tries to store what was given, where that fails."""
        ...

    def access(self, refused: str | None) -> AbstractContextManager[str | None]:
        """The access token, which nobody renews until the block ends. None: it must be renewed first, since there is
        none, it has nearly run out, it is the ``refused`` one, or a renewal is under way.

        Raises StoreUnavailableError.
        """
        ...

    def renew(self, refused: str | None, ask: Renewing, longest: float) -> None:
        """Renew it, unless somebody else has done so meanwhile, or it lasts until it can be. ``ask`` is called at most
        once, and takes ``longest`` seconds at most.

        Raises TokenLostError: the refresh token is not accepted, and there is no other.
        Raises ApiUnavailableError, QuotaSpentError: the token endpoint has told somebody so a short while ago; or this
        run's refresh token is not the newest. Raises StoreUnavailableError; also while it is not known whether somebody
        else is renewing it. Raises the error of a :class:`.endpoint.Denied`.
        """
        ...

    def close(self) -> None:
        """Close the connection to where they are kept."""
        ...


class _Known(Unshown):
    """All tokens that were seen. What is noted is kept out of our own texts at once, and out of others' when told."""

    def __init__(self, endpoint: TokenEndpoint, on_secret: OnSecret | None) -> None:
        self._on_secret = on_secret
        self._forms: dict[str, None] = {}
        self._untold: list[str] = []
        self._add(endpoint.secrets)
        self.tell()

    @property
    def secrets(self) -> Collection[str]:
        return tuple(self._forms)

    def note(self, answered: Answered) -> Answered:
        if isinstance(answered, Grant):
            self.note_text(answered.access)
        self.note_text(answered.refresh or "")
        return answered

    def note_text(self, token: str) -> None:
        if token and token not in self._forms:
            self._add(forms_of(token))

    def tell(self) -> None:
        untold, self._untold = self._untold, []
        if self._on_secret is not None:
            for form in untold:
                self._on_secret(form)

    def _add(self, forms: Collection[str]) -> None:
        self._forms |= dict.fromkeys(forms)
        self._untold += forms


class _ByToken(Unshown):
    """What both logins have in common: the endpoint, and the tokens that were seen."""

    def __init__(self, endpoint: TokenEndpoint, on_secret: OnSecret | None) -> None:
        self._endpoint = endpoint
        self._known = _Known(endpoint, on_secret)
        self._is_fresh = False

    @property
    def secrets(self) -> Collection[str]:
        """The client's secret, and all tokens seen."""
        return self._known.secrets

    @property
    def params(self) -> Collection[str]:
        """None."""
        return ()


class ClientCredentials(_ByToken):
    """A login in the client's own name (RFC 6749, section 4.4). Its token is in memory. It is renewed when it has
    nearly run out, or when the API refuses it."""

    def __init__(self, endpoint: TokenEndpoint, on_secret: OnSecret | None = None) -> None:
        super().__init__(endpoint, on_secret)
        self._token = ""
        self._good_until: float | None = None

    @contextmanager
    def admitted(self) -> Iterator[AuthBase]:
        """Signs with the token.

        Raises LoginError: the token endpoint refuses. Raises ApiUnavailableError: it does not answer.
        Raises QuotaSpentError: it asks to be left alone for longer than a minute.
        Raises CertificateError: it shows a certificate that is not trusted.
        """
        now = time.monotonic()
        self._is_fresh = not self._token or (self._good_until is not None and now >= self._good_until)
        if self._is_fresh:
            answered = self._known.note(self._endpoint.client_credentials())
            self._known.tell()
            if isinstance(answered, Denied):
                raise answered.error from None
            self._token = answered.access
            # From before the request: the token's life may have begun as early as that.
            self._good_until = None if answered.renew_after is None else now + answered.renew_after
        yield _bearer(self._token)

    def refused(self) -> bool:
        """Once: a token that is refused as soon as it was made will not get better by another one."""
        self._token = ""
        return not self._is_fresh

    def close(self) -> None:
        """Close the connection to the token endpoint."""
        self._endpoint.close()


class RefreshToken(_ByToken):
    """A login in the name of a person who has allowed it (RFC 6749, section 6). Its tokens are shared with others."""

    def __init__(self, endpoint: TokenEndpoint, tokens: Tokens, on_secret: OnSecret | None = None) -> None:
        super().__init__(endpoint, on_secret)
        self._tokens = tokens
        self._token: str | None = None
        self._refused: str | None = None
        self._granted: str | None = None
        self._renewing, self._is_closed = threading.Lock(), False

    @contextmanager
    def admitted(self) -> Iterator[AuthBase]:
        """Signs with the access token, which nobody renews until the block ends.

        Raises TokenLostError: a person has to log in again. Raises LoginError: the token endpoint refuses the client.
        Raises ApiUnavailableError: it does not answer, or its tokens run out sooner than they can be used; the refresh
        token of this run is not the newest; or the login is closed.
        Raises QuotaSpentError: it asks to be left alone for longer than a minute.
        Raises CertificateError: it shows a certificate that is not trusted. Raises StoreUnavailableError.
        """
        for _ in range(_ROUNDS):
            with self._told_when_closed(), self._tokens.access(self._refused) as token:
                if token is not None:
                    self._take(token)
                    yield _bearer(token)
                    return
            self._renew()
        raise ApiUnavailableError(
            f"after {_ROUNDS} renewals there is still no access token that lasts until it can be used.",
            todo="Run again later. If it stays so, ask the vendor for access tokens that live longer.",
        )

    def refused(self) -> bool:
        """Once: a token that is refused as soon as it was made will not get better by another one."""
        self._refused = self._token
        return not self._is_fresh

    def close(self) -> None:
        """Close the connections to the token endpoint and to where the tokens are kept; another thread may be using
        them. Afterwards nothing is renewed.

        A renewal that is under way comes to its end first: what a process closes before it ends would take a new
        refresh token with it, and nobody could log in any more. It is waited for as long as one may take.
        """
        self._is_closed = True
        self._endpoint.end()
        ended = self._renewing.acquire(timeout=self._endpoint.longest + self._tokens.saving)
        try:
            self._endpoint.close()
            self._tokens.close()
        finally:
            if ended:
                self._renewing.release()

    @contextmanager
    def _told_when_closed(self) -> Iterator[None]:
        """Whoever closes the login cuts the connection of a thread that reads: Postgres is not to blame for that.

        Raises ApiUnavailableError.
        """
        try:
            yield
        except StoreUnavailableError:
            if self._is_closed:
                raise _ended() from None
            raise

    def _renew(self) -> None:
        try:
            with self._renewing:
                if self._is_closed:
                    raise _ended()
                self._tokens.renew(self._refused, self._ask, self._endpoint.longest)
        finally:
            # Not before the new token is stored: whoever is told may be far away, slow, or gone.
            self._known.tell()

    def _take(self, token: str) -> None:
        self._known.note_text(token)
        self._known.tell()
        self._is_fresh, self._granted = token == self._granted, None
        self._token = token

    def _ask(self, refresh: str) -> Answered:
        self._known.note_text(refresh)
        answered = self._known.note(self._endpoint.refresh(refresh))
        self._granted = answered.access if isinstance(answered, Grant) else None
        return answered


def _ended() -> ApiUnavailableError:
    return ApiUnavailableError("this run has ended, and with it its login.", todo="Nothing: run again.")


def _bearer(token: str) -> Signer:
    """RFC 6750, section 2.1."""
    return Signer({"Authorization": f"Bearer {token}"})
