"""A Kinto for tests with an empty collection of contacts in it, the source that describes it, and its copy."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import psycopg
import requests

from airflow_extract_provider.extract.api.client import ApiClient
from airflow_extract_provider.extract.paging import NextLinkPages, PageSize
from airflow_extract_provider.extract.pipeline import Runner, Settings, Summary, WalkName, run
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import load_source
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import PostgresServer
from demo.kinto_contacts import PASSWORD, USER, Truth, create_contacts, truth
from demo.kinto_server import Kinto
from demo.verify import canonical

PROJECT = Path(__file__).resolve().parents[1]
_numbers = itertools.count()


@contextlib.contextmanager
def start_kinto(folder: Path, server: PostgresServer) -> Iterator[Kinto]:
    """Serve for as long as the block lasts; ``folder`` receives its settings and log, ``server`` its database."""
    name = f"kinto_{os.getpid()}_{next(_numbers)}"
    try:
        with Kinto(folder, server.create_database(name)) as kinto:
            create_contacts(kinto.url)
            yield kinto
    finally:
        server.drop_database(name)


def crm(page: int, late: timedelta | None = None) -> Source:
    """The demo's own source, with smaller pages: so that a walk has many of them, to be interrupted between."""
    source = load_source(PROJECT / "demo" / "sources" / "crm.yaml")
    contacts = source.object("contacts")
    assert isinstance(contacts.pages, NextLinkPages)
    pages = contacts.pages.model_copy(update={"size": PageSize(send="_limit", max=page)})
    changes = {"pages": pages, "late": contacts.late if late is None else late}
    return source.model_copy(update={"objects": {"contacts": contacts.model_copy(update=changes)}})


@dataclass(frozen=True)
class Copy:
    """A copy of the contacts at ``url`` in the database ``dsn``: how it is brought up to date, and what it holds."""

    url: str
    dsn: str
    source: Source

    def migrate(self) -> None:
        """Make its tables."""
        migrate(connecting(self.dsn), [self.source])

    def run(self, walk: WalkName, runner: str = "one") -> Summary:
        """Run a walk to its end, a page a transaction."""
        with requests.Session() as session:
            session.trust_env = False
            session.auth = (USER, PASSWORD)
            return run(
                self.source,
                "contacts",
                walk,
                postgres=connecting(self.dsn),
                client=ApiClient(self.source, session, self.url),
                runner=Runner(runner, f"the run called {runner}"),
                settings=Settings(batch=10, ahead=1),
            )

    def sync(self, runner: str = "one") -> Summary:
        """What has changed, and what was noted to be read again; the summary of the former."""
        summary = self.run("incremental", runner)
        self.run("by_key", runner)
        return summary

    def pages(self) -> int:
        """How many pages have been committed."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("select count(*) from extract.ledger where kind = 'page'").fetchone()
            return int(row[0]) if row else 0

    def held(self) -> Truth:
        """What it holds, by plain SQL."""
        found = Truth({}, {})
        question = "select key, data::text, version, deleted_at is not null from crm.contacts"
        with psycopg.connect(self.dsn) as connection:
            for key, data, version, deleted in connection.execute(question):
                if deleted:
                    found.deleted[key] = milliseconds(version)
                else:
                    found.live[key] = json.loads(data, parse_int=Decimal, parse_float=Decimal)
        return found

    def check_complete_to(self, kinto: Kinto, instant: datetime | None, never_here: Collection[str] = ()) -> None:
        """What was last changed up to this instant is here as it is there, while others write on; tombstones too, but
        not of what was deleted before the first request."""
        assert instant is not None
        here, there = self.held(), truth(kinto.dsn)
        upto = milliseconds(instant)
        for key, record in there.live.items():
            if int(str(record["last_modified"])) <= upto:
                assert canonical(here.live.get(key)) == canonical(record), key
        for key, deleted in there.deleted.items():
            # What was deleted and brought back since is neither: a tombstone goes when its id comes again.
            assert deleted > upto or key in never_here or here.deleted.get(key) == deleted, key


def milliseconds(instant: datetime) -> int:
    """An instant as Kinto writes it."""
    return (instant.astimezone(timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(milliseconds=1)


def texts(records: Truth) -> dict[str, str]:
    """The live records, each as one text: equal texts are equal JSON values, to the last digit."""
    return {key: canonical(record) for key, record in records.live.items()}
