"""A process that asks an API again and again by a login whose tokens are shared, there to be killed and stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import requests

from airflow_extract_provider.extract.api.endpoint import TokenEndpoint
from airflow_extract_provider.extract.api.oauth import RefreshToken
from airflow_extract_provider.extract.errors import ApiUnavailableError, ExtractError
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.tokens import PostgresTokens

__all__ = ["Asked", "get", "live", "started"]


@dataclass(frozen=True)
class Asked:
    """What a child is told. It ends after ``most`` requests, or as soon as the file ``stop`` is there."""

    who: str
    dsn: str
    url: str
    api_url: str
    seed: str
    stop: str
    most: int = 1_000_000
    longest: float = 60.0
    secret: str = "secret"
    id: str = "shop"

    @contextmanager
    def auth(self, session: requests.Session) -> Iterator[RefreshToken]:
        """The login; the token endpoint hears by the parameter `who` which process asks."""
        endpoint = TokenEndpoint(session, self.url, "client", self.secret, parameters={"who": self.who})
        longest = timedelta(seconds=self.longest)
        with PostgresTokens(
            connecting(self.dsn), "extract", self.id, self.seed, self.secret, longest=longest
        ) as tokens:
            yield RefreshToken(endpoint, tokens)


def get(session: requests.Session, auth: RefreshToken, url: str) -> list[int]:
    """The statuses of a request, which is sent once more where the login says so, as the client does."""
    statuses: list[int] = []
    while True:
        with auth.admitted() as signer:
            statuses.append(session.get(url, auth=signer, timeout=30).status_code)
        if statuses[-1] != 401 or not auth.refused():
            return statuses


def live(given: dict[str, Any], said: Connection) -> None:
    """Ask; at the end say how many requests went out with which status, or the error."""
    asked = Asked(**given)
    statuses: list[int] = []
    with requests.Session() as session:
        session.trust_env = False
        try:
            with asked.auth(session) as auth:
                while len(statuses) < asked.most and not Path(asked.stop).exists():
                    # On a slow machine such short-lived tokens run out before they are used: a run would be retried.
                    with suppress(ApiUnavailableError):
                        statuses += get(session, auth, asked.api_url)
        except ExtractError as exc:
            said.send({"error": type(exc).__name__, "message": str(exc)})
            return
    said.send({str(status): statuses.count(status) for status in set(statuses)})


def started(asked: Asked) -> dict[str, Any]:
    """As it travels to a process."""
    return asdict(asked)
