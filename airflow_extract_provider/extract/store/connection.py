"""Connections to Postgres, and its errors in our words."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import psycopg

from airflow_extract_provider.extract.errors import (
    ConnectionMissingError,
    ExtractError,
    SchemaMissingError,
    StoreRightsError,
    StoreUnavailableError,
)

__all__ = ["BACKEND", "CROSSED", "Connect", "Connection", "check_rules", "connecting", "cut", "named_errors", "opened"]

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Connect: TypeAlias = Callable[[], Connection]
"""Opens a new connection. The engine closes it, and may open another after a loss, to learn whether it is fenced."""

CROSSED = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
"""What Postgres raises to end one of two transactions that could not both go on: nothing was written, do it again."""

_ENDED = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)
"""What else ends a connection."""

BACKEND = "select pg_backend_pid()"
"""Tells the number of the session that runs it. Where the connection's own is another, a pooler is in between."""

_NO_DATABASE = re.compile(r'database "[^"]*" does not exist')
_MIGRATE = "Run `airflow extract migrate --sources FOLDER`."


def connecting(conninfo: str) -> Connect:
    """Opens connections to a libpq connection string or URI."""

    def connect() -> Connection:
        with named_errors():
            return opened(conninfo)

    return connect


def opened(conninfo: str = "", **options: Any) -> Connection:
    """A new connection, by a connection string or by options of libpq and psycopg.

    Behind a pooler it prepares no statement: each transaction may be another session, which does not know it. Unless
    ``prepare_threshold`` is given: then whoever gave it knows better. Raises psycopg's own errors.
    """
    if "prepare_threshold" in options:
        return psycopg.connect(conninfo, **options)
    conn: Connection = psycopg.connect(conninfo, **{**options, "autocommit": True})
    try:
        # A pooler gives its clients numbers of its own: no other sign of it is common to all of them.
        if conn.execute(BACKEND).fetchone() != (conn.info.backend_pid,):
            conn.prepare_threshold = None
        conn.autocommit = options.get("autocommit", False)
    except BaseException:
        conn.close()
        raise
    return conn


def check_rules(conn: Connection) -> None:
    """Have Postgres check now what it would check when the transaction ends (`deferrable initially deferred`), which is
    too late for events that have gone out until then. Raises psycopg's own errors."""
    conn.execute("set constraints all immediate")
    conn.execute("set constraints all deferred")


def cut(conn: psycopg.BaseConnection[Any]) -> None:
    """Shut a connection down below the driver: who waits for its server reads the end at once, and the server, that may
    not answer, is asked nothing more. It is still to be closed. Harmless if it is."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


@contextmanager
def named_errors(**place: Any) -> Iterator[None]:
    """Turn Postgres's errors into named ones.

    The server's detail, hint and context are left out: they quote values. Its main message is kept only where it names
    nothing but tables and columns.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as exc:
        raise StoreRightsError(
            f"Postgres refuses a statement: {_primary(exc)}.",
            todo="Grant what `airflow extract grants ROLE --sources FOLDER` prints; for `airflow-extract receiver` "
            "and `from-kafka` with `--receiver` or `--from-kafka` instead of the folder.",
            **place,
        ) from None
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedColumn) as exc:
        raise SchemaMissingError(f"Postgres: {_primary(exc)}.", todo=_MIGRATE, **place) from None
    except (psycopg.errors.LockNotAvailable, *CROSSED) as exc:
        held = isinstance(exc, psycopg.errors.LockNotAvailable)
        raise StoreUnavailableError(
            f"somebody else {'keeps rows locked' if held else 'writes the same rows'}, and did not let go in time.",
            todo="See in pg_stat_activity who waits for whom, then run again: the walk goes on where it stands.",
            **place,
        ) from None
    except psycopg.errors.ReadOnlySqlTransaction:
        raise _read_only(place) from None
    except psycopg.errors.ProgramLimitExceeded as exc:
        raise _refused(exc, place) from None
    except (psycopg.OperationalError, psycopg.InterfaceError, *_ENDED) as exc:
        raise _unreachable(exc, place) from None
    except psycopg.Error as exc:
        if exc.sqlstate is None and isinstance(exc, psycopg.ProgrammingError):
            raise ConnectionMissingError(
                "the connection to Postgres is written in a way that is not understood.",
                todo="Check the connection of the store: its host, port and options.",
                **place,
            ) from None
        raise _refused(exc, place) from None


def _read_only(place: Mapping[str, Any]) -> StoreUnavailableError:
    """For a while after a failover: from the server that was the first one until then, or one that is not yet."""
    return StoreUnavailableError(
        "Postgres only reads: this server is a standby, or its transactions are set to be read-only.",
        todo="Run again: after a failover this passes. If it stays so, let the store's connection lead to the server "
        "that writes (`target_session_attrs=read-write` finds it), and see its `default_transaction_read_only`.",
        **place,
    )


def _unreachable(exc: psycopg.Error, place: Mapping[str, Any]) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"Postgres is not reachable, or the connection was lost ({_operational(exc)}).",
        todo="Check the connection of the store and the server, then run again: the walk goes on where it stands.",
        **place,
    )


def _refused(exc: psycopg.Error, place: Mapping[str, Any]) -> ExtractError:
    rule = f" by {exc.diag.constraint_name}" if exc.diag.constraint_name else ""
    return ExtractError(
        f"Postgres refuses a statement{rule} ({type(exc).__name__}, SQLSTATE {exc.sqlstate}).",
        todo="Read the server's own log; its words are not shown here, since they may quote records.",
        **place,
    )


def _primary(exc: psycopg.Error) -> str:
    return exc.diag.message_primary or type(exc).__name__


def _operational(exc: psycopg.Error) -> str:
    """The kind of failure. The library's text is not used: it may hold the connection string."""
    if exc.sqlstate:
        return f"{type(exc).__name__}, SQLSTATE {exc.sqlstate}"
    text = str(exc).lower()
    for sign in (
        "connection refused",
        "timeout expired",
        "could not translate host name",
        "failed to resolve host",
        "no route to host",
        "network is unreachable",
        "password authentication failed",
        "is not permitted to log in",
        "no pg_hba.conf entry",
        "too many connections",
    ):
        if sign in text:
            return sign
    if _NO_DATABASE.search(text):
        return "there is no such database; without one in the connection, it is that of the user's name"
    return type(exc).__name__
