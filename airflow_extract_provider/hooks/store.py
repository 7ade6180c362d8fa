"""The Postgres that records are copied into, behind an ordinary Postgres connection of Airflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from airflow.providers.postgres.hooks.postgres import PostgresHook

from airflow_extract_provider.extract.errors import ConnectionMissingError
from airflow_extract_provider.extract.store.connection import named_errors, opened
from airflow_extract_provider.hooks.connection import find_connection

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["StoreHook"]

_EXAMPLE = "--conn-type postgres --conn-host HOST --conn-schema DATABASE --conn-login USER --conn-password PASSWORD"

# Extras of the Postgres connection type that are no options of libpq, or would change what the engine gets back.
_NOT_OURS = frozenset({"autocommit", "context", "cursor_factory", "row_factory"})


class StoreHook(PostgresHook):
    """Opens psycopg 3 connections for the engine.

    Everything that PostgresHook reads from a connection counts here too (TLS, IAM), but for the kind of cursor. Behind
    a pooler such as PgBouncer no statement is prepared, unless the connection's extra sets ``prepare_threshold``.
    """

    conn_name_attr = "store_conn_id"
    default_conn_name = "extract_store"

    def __init__(self, store_conn_id: str = default_conn_name, *, connection: Connection | None = None) -> None:
        """``connection`` is for those who have it already; None: it is looked up when it is needed."""
        super().__init__(store_conn_id=store_conn_id, connection=connection)
        self._given = connection

    def __reduce__(self) -> tuple[type[StoreHook], tuple[str]]:
        # A connection holds a password, which does not belong into a pickle: it is looked up again.
        return type(self), (self.get_conn_id(),)

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection; the caller closes it.

        Not :meth:`get_conn`: that one registers JSON adapters under which lists are no arrays any more.

        Raises ConnectionMissingError: Airflow has no such connection, or it holds an option Postgres does not know.
        Raises StoreUnavailableError: no server there, or it refuses the login. Neither shows the password.
        """
        if self._given is None:
            self._given = find_connection(self.get_conn_id(), _EXAMPLE)
        arguments = self._arguments(self._given)
        with named_errors():
            try:
                return opened(**arguments)
            except psycopg.ProgrammingError:
                raise ConnectionMissingError(
                    f"the connection {self.get_conn_id()!r} has an option that Postgres does not know.",
                    todo="Correct its extra: only options of libpq and of PostgresHook belong there.",
                ) from None

    def _arguments(self, conn: Connection) -> dict[str, Any]:
        extra = conn.extra_dejson
        login, password, port = conn.login, conn.password, conn.port
        if extra.get("iam", False):
            login, password, port = self.get_iam_token(conn)
        options = {
            name: value
            for name, value in extra.items()
            if name not in self.ignored_extra_options and name not in _NOT_OURS
        }
        given = {"host": conn.host, "user": login, "password": password, "dbname": conn.schema, "port": port}
        return {**{name: value for name, value in given.items() if value is not None}, **options}
