"""The stripe preset on a real API that nobody here wrote; after a deleted record it starts again at record one."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.page import Reply, Request
from airflow_extract_provider.extract.pipeline import run
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from demo.localstripe_server import LocalStripe
from demo.seed import KEY, Stripe
from demo.verify import as_text, by_key, fingerprints, listed, rows

SOURCE = load_source(Path(__file__).resolve().parents[2] / "demo" / "sources" / "stripe.yaml")
CUSTOMERS = 350


@pytest.fixture
def stripe(tmp_path: Path) -> Iterator[LocalStripe]:
    """A fake Stripe with customers enough for four pages."""
    with LocalStripe(tmp_path) as server:
        filler = Stripe(server.url)
        for number in range(CUSTOMERS):
            filler.create("customers", {"name": f"customer {number}"})
        yield server


class Meddler:
    """A client before whose third request somebody deletes the record it is to start after, and those around it."""

    def __init__(self, client: ApiClient, stripe: Stripe, keys: list[str], around: int) -> None:
        self._client, self._stripe, self._keys, self._around = client, stripe, keys, around
        self._fetched = 0
        self.deleted: list[str] = []
        self.asked: list[str | None] = []

    @property
    def requests(self) -> int:
        """What went out."""
        return self._client.requests

    @property
    def left(self) -> float | None:
        """What the quota has left."""
        return self._client.left

    def stop_with(self, stop: threading.Event) -> None:
        """End its waits with that."""
        self._client.stop_with(stop)

    def fetch(self, object: ApiObject, request: Request) -> Reply:
        """The reply, after the deletions."""
        self._fetched += 1
        after = request.params.get("starting_after")
        self.asked.append(after)
        if self._fetched == 3 and after is not None:
            at = self._keys.index(after)
            self.deleted = self._keys[max(at - self._around, 0) : at + 1 + self._around]
            for key in self.deleted:
                self._stripe.delete("customers", key)
        return self._client.fetch(object, request)


@pytest.mark.parametrize("around", [0, 1, 20, 110], ids=lambda around: f"{2 * around + 1} deleted")
def test_deleted_anchors_lose_nothing(stripe: LocalStripe, connect: Connect, dsn: str, around: int) -> None:
    """However many records around the walk's place are deleted, every one that is left arrives, each once."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {KEY}"
    keys = list(by_key(listed(session, stripe.url, "customers")))
    client = Meddler(ApiClient(SOURCE, session, stripe.url), Stripe(stripe.url), keys, around)
    migrate(connect, [SOURCE])
    summary = run(SOURCE, "customers", postgres=connect, client=client)
    left = fingerprints(as_text(by_key(listed(session, stripe.url, "customers"))))
    with psycopg.connect(dsn) as connection:
        copy = fingerprints(rows(connection, "stripe", "customers"))
    assert summary.complete
    assert client.deleted
    assert len(left) == CUSTOMERS - len(client.deleted)
    assert {key: copy.get(key) for key in left} == left
    assert set(copy) - set(left) <= set(client.deleted)
    assert len(client.asked) <= 30
