"""Databases for tests, made quickly: each test has one of its own, so that what it does can be anything."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types
import psycopg
from psycopg import sql

from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import EmbeddedPostgres, PostgresServer

__all__ = ["Databases", "databases_on", "lone_server", "room", "stopped"]

MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 4 << 30
"""In bytes. In a container there are often 64 MB only."""


def room() -> Path | None:
    """Memory that is used as a disk, where there is enough of it; None: the usual place for temporary files.

    A new database is 300 files: on a disk they cost more time than most of the tests themselves.
    """
    try:
        return MEMORY if shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED else None
    except OSError:
        return None


class Databases:
    """Makes databases: empty ones, and copies of one in which the books have been made."""

    def __init__(self, server: PostgresServer, admin: Connection) -> None:
        self._server, self._admin = server, admin
        self._numbers = itertools.count()
        # Copied as files, not through the log: a fraction of the time. It asks for a checkpoint, which on a server of
        # somebody else's may take longer than that.
        self._how = sql.SQL("strategy file_copy" if isinstance(server, EmbeddedPostgres) else "")
        self._books = self._unused_name()
        migrate(connecting(self._create(self._books, "template1")), [])
        # Postgres copies no database that somebody is connected to, be it only to clean it up.
        text = sql.SQL("alter database {} with allow_connections false")
        self._admin.execute(text.format(sql.Identifier(self._books)))

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The address of a database with nothing in it."""
        yield from self._lent("template1")

    @contextmanager
    def with_books(self) -> Iterator[str]:
        """The address of a database in which the schema `extract` is up to date."""
        yield from self._lent(self._books)

    def close(self) -> None:
        """Remove what the copies were made of."""
        self._drop(self._books)

    def _lent(self, template: str) -> Iterator[str]:
        name = self._unused_name()
        try:
            yield self._create(name, template)
        finally:
            self._drop(name)

    def _unused_name(self) -> str:
        return f"test_{os.getpid()}_{next(self._numbers)}"

    def _create(self, name: str, template: str) -> str:
        text = sql.SQL("create database {} template {} {}")
        self._admin.execute(text.format(sql.Identifier(name), sql.Identifier(template), self._how))
        return self._server.dsn(name)

    def _drop(self, name: str) -> None:
        self._admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextmanager
def lone_server(**settings: str) -> Iterator[EmbeddedPostgres]:
    """A server for one test alone: it may be killed, set otherwise, or measured, since nobody else writes on it.

    On the one that the others share, the autovacuum of databases that stay writes many megabytes of log at any time.
    """
    with tempfile.TemporaryDirectory(prefix="extract-tests-", dir=room()) as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(folder, {"fsync": "off", **settings}) as server:
            yield server


@contextmanager
def stopped(server: EmbeddedPostgres) -> Iterator[None]:
    """Within: all processes of a server stand still, as on a machine that hangs."""
    parent = psutil.Process(server.pid)
    parent.suspend()  # first: it begins no others then
    children = parent.children(recursive=True)
    for each in children:
        with suppress(psutil.NoSuchProcess):  # the session of somebody who has just gone
            each.suspend()
    try:
        yield
    finally:
        for each in (*children, parent):
            with suppress(psutil.NoSuchProcess):
                each.resume()


@contextmanager
def databases_on(server: PostgresServer) -> Iterator[Databases]:
    """Databases on a server, for as long as the block lasts."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        made = Databases(server, admin)
        yield made
        made.close()
