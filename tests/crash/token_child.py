"""A process that asks an API again and again by a login whose tokens are shared, there to be killed and stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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


class _Brisk(TokenEndpoint):
    """Says that it takes less long than it may: who finds the note of one that was killed waits for no more than a
    moment, where it is three minutes otherwise. A renewal that lives holds its lock, however long it takes."""

    @property
    def longest(self) -> float:
        """Too short a time, in seconds."""
        return 0.2


@dataclass(frozen=True)
class Asked:
    """What a child is told. It ends after ``most`` requests, or as soon as the file ``stop`` is there. ``saving`` is
    far shorter than it is by default, so that somebody's death is found out at once."""

    who: str
    dsn: str
    url: str
    api_url: str
    seed: str
    stop: str
    most: int = 1_000_000
    longest: float = 60.0
    saving: float = 0.5
    secret: str = "secret"
    id: str = "shop"

    @contextmanager
    def auth(self, session: requests.Session) -> Iterator[RefreshToken]:
        """The login; the token endpoint hears by the parameter `who` which process asks."""
        endpoint = _Brisk(session, self.url, "client", self.secret, parameters={"who": self.who})
        longest, saving = timedelta(seconds=self.longest), timedelta(seconds=self.saving)
        with PostgresTokens(
            connecting(self.dsn), "extract", self.id, self.seed, self.secret, longest=longest, saving=saving
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
    """Ask; at the end say how many requests ended with which status or passing error, or the error it ended with."""
    asked = Asked(**given)
    ends: Counter[str] = Counter()
    with requests.Session() as session:
        session.trust_env = False
        try:
            with asked.auth(session) as auth:
                while ends.total() < asked.most and not Path(asked.stop).exists():
                    # On a slow machine such short-lived tokens run out before they are used: a run would be retried.
                    try:
                        ends.update(map(str, get(session, auth, asked.api_url)))
                    except ApiUnavailableError:
                        ends["ApiUnavailableError"] += 1
        except ExtractError as exc:
            said.send({"error": type(exc).__name__, "message": str(exc)})
            return
    said.send(dict(ends))


def started(asked: Asked) -> dict[str, Any]:
    """As it travels to a process."""
    return asdict(asked)
