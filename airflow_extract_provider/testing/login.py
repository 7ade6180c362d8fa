"""A real token endpoint on loopback (OAuth 2.0, RFC 6749), with an API behind it that takes its tokens.

It has the habits that cost logins: refresh tokens that can be used once, renewals that revoke the access token before,
and servers that end everything when a spent token comes again. What was done with it is counted on its side.

    with LoginServer(client_secret="s3cret") as server:
        seed = server.log_in()                      # the refresh token that a person gets
        endpoint = TokenEndpoint(session, server.url, "client", "s3cret")
        ...
        assert server.revoked_uses == []            # no request came with a token that a renewal had revoked
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, unquote_plus

from airflow_extract_provider.testing.hostile_faults import Answer
from airflow_extract_provider.testing.hostile_pages import Asked
from airflow_extract_provider.testing.hostile_wire import WireServer

__all__ = ["LoginServer"]

_TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path


@dataclass
class _Token:
    """``family``: which log-in it comes from; 0: from none."""

    family: int
    revoked: bool = False


@dataclass
class _Access(_Token):
    """``until``: on the monotonic clock."""

    until: float = 0.0


@dataclass
class _Refresh(_Token):
    """``spent_at``: on the monotonic clock; None: it is not. ``successor`` is what was given for it last."""

    spent_at: float | None = None
    successor: str = ""


class LoginServer:
    """The server. Use it in a ``with`` block.

    ``lives``: an access token's life in seconds, None: it is not told; ``leeway``: for how much longer it is taken all
    the same. ``rotates``: each refresh token can be used once and is answered with the next; False: it stays.
    ``revokes``: a renewal ends the access tokens before. ``grace``: for so many seconds a spent refresh token is taken
    again, as long as its successor is not used; that one ends. ``ends_family``: a spent refresh token that comes again
    ends all tokens that came from the same log-in (RFC 9700, section 4.14.2). ``takes``: how long, in seconds, the API
    works at a request.

    Set at any time: ``before_sending`` is called with an answer's number (from 1) when it is made and its tokens count,
    and before it is sent; ``told`` is called with an answer's fields, once its tokens count, and gives those that are
    sent; ``fault`` is called with a request's number and fields, and may give another answer.

    Counted: ``renewals`` (answers with new tokens), ``asked`` (requests to the endpoint), ``under_way`` (requests that
    the API works at), ``uses`` (those answered to a good token), ``revoked_uses`` (when, on the monotonic clock, one
    came with a revoked token, or still had it when it was answered), ``reused`` (spent refresh tokens that came again).
    ``tokens`` are all that were ever made.
    """

    def __init__(
        self,
        *,
        client_id: str = "client",
        client_secret: str | None = "secret",  # noqa: S107 - a loopback server's
        lives: float | None = 3600.0,
        leeway: float = 0.0,
        rotates: bool = True,
        revokes: bool = True,
        grace: float = 0.0,
        ends_family: bool = False,
        takes: float = 0.0,
    ) -> None:
        self._client = (client_id, client_secret)
        self.lives, self.leeway, self.takes, self.grace = lives, leeway, takes, grace
        self._rotates, self._revokes, self._ends_family = rotates, revokes, ends_family
        self.before_sending: Callable[[int], object] = lambda number: number
        self.told: Callable[[Mapping[str, object]], Mapping[str, object]] = lambda fields: fields
        self.fault: Callable[[int, Mapping[str, str]], Answer | None] = lambda number, fields: None  # noqa: ARG005
        self.asked: list[Mapping[str, str]] = []
        self.tokens: list[str] = []
        self.revoked_uses: list[float] = []
        self.renewals = self.uses = self.under_way = self.reused = 0
        self._families = 0
        self._access: dict[str, _Access] = {}
        self._refresh: dict[str, _Refresh] = {}
        self._lock = threading.RLock()
        self._wire = WireServer(self._answer)
        self.api_url = f"http://127.0.0.1:{self._wire.server_port}"
        self.url = self.api_url + _TOKEN_PATH

    def __enter__(self) -> Self:
        self._wire.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.stop()
        if exc is None and self._wire.errors:
            raise self._wire.errors[0]

    def log_in(self) -> str:
        """A person logs in and allows the client: the first refresh token."""
        with self._lock:
            self._families += 1
            return self._new_refresh(self._families)

    def revoke_all(self) -> None:
        """A person takes everything back."""
        with self._lock:
            for each in self._all():
                each.revoked = True

    def revoke_access(self) -> None:
        """All access tokens end; refresh tokens stay good."""
        with self._lock:
            for each in self._access.values():
                each.revoked = True

    def check(self, authorization: str | None) -> bool:
        """Whether an API lets this header in; a revoked token is counted."""
        with self._lock:
            found = self._access.get((authorization or "").removeprefix("Bearer "))
            if found is not None and found.revoked:
                self.revoked_uses.append(time.monotonic())
            return found is not None and not found.revoked and time.monotonic() < found.until

    # -- HTTP ---------------------------------------------------------------------------------------------------

    def _answer(self, asked: Asked) -> Answer:
        if asked.path != _TOKEN_PATH:
            return self._api(asked)
        fields = dict(parse_qsl(asked.body or "", keep_blank_values=True))
        with self._lock:
            self.asked.append(fields)
            number = len(self.asked)
        ordered = self.fault(number, fields)
        if ordered is not None:
            return ordered
        with self._lock:
            status, told = self._token(asked, fields)
            renewal = self.renewals
        if status == 200:
            self.before_sending(renewal)
            told = self.told(told)
        return _json(status, told)

    def _api(self, asked: Asked) -> Answer:
        header = _header(asked, "authorization")
        if not self.check(header):
            return _json(401, {"error": "unauthorized"})
        with self._lock:
            self.under_way += 1
        self._wire.pause(self.takes)
        with self._lock:
            self.under_way -= 1
        # A renewal in the middle of a request: some APIs look at the token again before they answer.
        if not self.check(header):
            return _json(401, {"error": "unauthorized"})
        with self._lock:
            self.uses += 1
        return _json(200, {"data": [], "next": None})

    def _token(self, asked: Asked, fields: Mapping[str, str]) -> tuple[int, Mapping[str, object]]:
        if self._client_of(asked, fields) != self._client:
            return 401, {"error": "invalid_client", "error_description": "unknown client"}
        if fields.get("grant_type") == "client_credentials":
            return 200, self._granted(0, None)
        if fields.get("grant_type") != "refresh_token":
            return 400, {"error": "unsupported_grant_type"}
        token = fields.get("refresh_token", "")
        found = self._refresh.get(token)
        if found is None or found.revoked or not self._may_spend(found):
            return 400, {"error": "invalid_grant", "error_description": f"{token} is not good"}
        return 200, self._granted(found.family, found)

    def _client_of(self, asked: Asked, fields: Mapping[str, str]) -> tuple[str, str | None]:
        header = _header(asked, "authorization") or ""
        if header.startswith("Basic "):
            name, _, secret = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
            return unquote_plus(name), unquote_plus(secret)
        return fields.get("client_id", ""), fields.get("client_secret")

    # -- tokens -------------------------------------------------------------------------------------------------

    def _may_spend(self, found: _Refresh) -> bool:
        if found.spent_at is None:
            return True
        self.reused += 1
        successor = self._refresh[found.successor]
        if time.monotonic() - found.spent_at < self.grace and successor.spent_at is None:
            successor.revoked = True
            return True
        if self._ends_family:
            for each in self._all():
                each.revoked = each.revoked or each.family == found.family
        return False

    def _granted(self, family: int, spent: _Refresh | None) -> Mapping[str, object]:
        self.renewals += 1
        if spent is not None and self._revokes:
            for each in self._access.values():
                each.revoked = each.revoked or each.family == family
        access = self._made("access")
        until = float("inf") if self.lives is None else time.monotonic() + self.lives + self.leeway
        self._access[access] = _Access(family, until=until)
        answer: dict[str, object] = {"access_token": access, "token_type": "Bearer"}
        if self.lives is not None:
            answer["expires_in"] = self.lives
        if spent is not None and self._rotates:
            # Its grace begins when it is spent, and not anew each time it is used in it.
            spent.spent_at = time.monotonic() if spent.spent_at is None else spent.spent_at
            spent.successor = self._new_refresh(family)
            answer["refresh_token"] = spent.successor
        return answer

    def _all(self) -> list[_Token]:
        return [*self._access.values(), *self._refresh.values()]

    def _new_refresh(self, family: int) -> str:
        token = self._made("refresh")
        self._refresh[token] = _Refresh(family)
        return token

    def _made(self, kind: str) -> str:
        self.tokens.append(f"{kind}-{len(self.tokens)}-{secrets.token_hex(8)}")
        return self.tokens[-1]


def _header(asked: Asked, name: str) -> str | None:
    return {each.lower(): value for each, value in asked.headers.items()}.get(name)


def _json(status: int, body: Mapping[str, object]) -> Answer:
    return Answer(status=status, body=json.dumps(body).encode(), headers={"Cache-Control": "no-store"})
