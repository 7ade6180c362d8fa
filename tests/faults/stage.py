"""A large object on a hostile API, and runs of the engine against it that are compared in Postgres."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
from psycopg import sql

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.extract.errors import ExtractError
from airflow_extract_provider.extract.pipeline import Settings, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.hostile import Fault, HostileApi, Kind, Listing

__all__ = ["PAGE", "SPEC", "Large", "Outcome", "large"]

PAGE = 1000
SPEC: Mapping[str, Any] = {
    "path": "/things",
    "records": "data",
    "key": "id",
    "version": "updated_at",
    "order": ["updated_at", "id"],
    "since": {"send": "since", "inclusive": True, "precision": "1us"},
    "pages": {"by": "token", "take": "next", "send": "cursor", "size": {"send": "limit", "max": PAGE}},
}
_BOOKS = "books"
_MOST_RUNS = 60
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Outcome:
    """What came of a backfill, over all of its runs. ``stops`` are the errors of those that stopped, in order;
    ``requests`` came in at the API, ``faulted`` of them by kind; ``sent`` is what the clients counted."""

    stops: Sequence[ExtractError]
    requests: int
    sent: int
    faulted: Counter[Kind]

    @property
    def names(self) -> list[str]:
        """The classes of the errors, in order."""
        return [type(stop).__name__ for stop in self.stops]

    @property
    def stopped(self) -> str:
        """How often a run stopped, and by what, for people."""
        return f"stopped {len(self.stops)} times: {dict(Counter(self.names))}" if self.stops else "never stopped"


class Large:
    """``records`` on ``api``, and the same as a table, which each copy is compared with."""

    def __init__(self, api: HostileApi, connect: Connect, truth: str, records: int) -> None:
        self.api, self.connect, self.records = api, connect, records
        self.pages = -(-records // PAGE)
        self._truth = sql.Identifier(truth)
        api.insert(records)
        with connect() as conn:
            conn.execute(sql.SQL("create table {} (key text primary key, data jsonb not null)").format(self._truth))
            with conn.cursor().copy(sql.SQL("copy {} from stdin").format(self._truth)) as copy:
                for key, record in api.live().items():
                    copy.write_row((key, json.dumps(record)))
            conn.execute(sql.SQL("analyze {}").format(self._truth))

    def backfill(self, faults: Mapping[int, Fault | Kind], bounds: Bounds | None = None) -> Outcome:
        """Copy all into a table of its own, run after run until one is complete, and compare.

        ``faults`` are those of the requests, counted from 1 over all runs; each of them must have been given.
        """
        self.api.expire_tokens()  # the same place has another token now: one that expired in another test stays so
        given = sum(self.api.faulted.values())
        for number, fault in faults.items():
            self.api.fault(self.api.count + number, fault)
        with self._source() as source:
            outcome = self._runs(source, bounds or Bounds())
            assert self._differences(source) == 0, "the copy is not exact"
        assert sum(self.api.faulted.values()) - given >= len(faults), "there were fewer requests than faults"
        return outcome

    def _runs(self, source: Source, bounds: Bounds) -> Outcome:
        first, before = self.api.count, Counter(self.api.faulted)
        stops, sent = [], 0
        with requests.Session() as session:
            for _ in range(_MOST_RUNS):
                client = ApiClient(source, session, self.api.url, bounds=bounds)
                try:
                    summary = run(source, "things", postgres=self.connect, client=client, settings=Settings(_BOOKS))
                except ExtractError as exc:
                    stops.append(exc)
                else:
                    assert summary.complete
                    break
                finally:
                    sent += client.requests
            else:
                raise AssertionError(f"no end after {_MOST_RUNS} runs") from stops[-1]
        return Outcome(stops, self.api.count - first, sent, Counter(self.api.faulted) - before)

    @contextmanager
    def _source(self) -> Iterator[Source]:
        name = f"faults{next(_numbers)}"
        source = parse_source({"source": name, "connection": "none", "objects": {"things": dict(SPEC)}}, "test")
        migrate(self.connect, [source], _BOOKS)
        yield source
        with self.connect() as conn:
            conn.execute(sql.SQL("drop table {}").format(sql.Identifier(*source.table("things"))))

    def _differences(self, source: Source) -> int:
        """How many records are missing, too many, deleted, or other than at the API: equal as JSON values."""
        text = """
            select count(*) from {} as truth full join {} as copy using (key)
            where copy.data is distinct from truth.data or copy.deleted_at is not null or copy.revision <> 1
        """
        query = sql.SQL(text).format(self._truth, sql.Identifier(*source.table("things")))
        with self.connect() as conn:
            found = conn.execute(query).fetchone()
        assert found is not None
        return int(found[0])


@contextmanager
def large(connect: Connect, truth: str, records: int) -> Iterator[Large]:
    """A server with so many records, paged by tokens, ordered, and with a filter that can take a token's place."""
    listing = Listing("token", ("updated_at", "id"), filter="inclusive", page_max=PAGE)
    with HostileApi(listings={"/things": listing}) as api:
        yield Large(api, connect, truth, records)
