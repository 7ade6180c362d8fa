"""A checked connection with an object's fence: what a walk needs before its first request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from airflow_extract_provider.extract.errors import ExtractError, FencedError, StoreUnavailableError
from airflow_extract_provider.extract.settings import Runner, Settings
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import fields
from airflow_extract_provider.extract.store.connection import Connect, Connection, named_errors
from airflow_extract_provider.extract.store.fence import Fence, Scope, acquire, hold, release
from airflow_extract_provider.extract.store.migrate import check

__all__ = ["held", "walk_held"]


@contextmanager
def walk_held(
    source: Source, object: str, postgres: Connect, runner: Runner, take_over: bool, settings: Settings
) -> Iterator[tuple[Connection, Fence]]:
    """A checked connection, with the fence held; given back at the end, whatever the end is."""

    def see(conn: Connection) -> None:
        check(conn, settings.schema, source, object)
        fields.check(conn, source.object(object).fold)

    with held(source.source, object, postgres, runner, take_over, settings, see) as found:
        yield found


@contextmanager
def held(
    source: str,
    object: str,
    postgres: Connect,
    runner: Runner,
    take_over: bool,
    settings: Settings,
    see: Callable[[Connection], None] | None = None,
) -> Iterator[tuple[Connection, Fence]]:
    """The same of an object by its names; ``see`` looks at what must be there before the fence is taken."""
    # One walk at a time per object: without versions two concurrent looks at a record cannot be told apart (A, B, A).
    # With them too, since `version` may be added or taken away while a run lives, and both must meet at one fence.
    scope = Scope(source, object, "*")
    fence: Fence | None = None
    with named_errors():
        conn = postgres()
    try:
        conn.autocommit = True
        if see is not None:
            see(conn)
        fence = acquire(
            conn,
            settings.schema,
            scope,
            runner.identity,
            runner.label,
            silent_after=settings.silent_after,
            take_over=take_over,
            idle_timeout=settings.idle_timeout,
        )
        yield conn, fence
    except psycopg.Error as exc:
        raise _named(exc, postgres, settings, fence) from None
    finally:
        with suppress(psycopg.Error):
            if fence is not None and not conn.closed:
                release(conn, settings.schema, fence)
        conn.close()


def _named(exc: psycopg.Error, postgres: Connect, settings: Settings, fence: Fence | None) -> ExtractError:
    """What an error of Postgres means for this run.

    When the connection went away, the walk may have been taken over meanwhile: a process that was stopped in
    mid-transaction wakes up to find just this. A new connection tells.
    """
    try:
        with named_errors():
            raise exc
    except StoreUnavailableError as lost:
        if fence is None:
            return lost
        try:
            with named_errors(), postgres() as conn:
                conn.autocommit = True
                hold(conn, settings.schema, fence)
        except FencedError as fenced:
            return fenced
        except ExtractError:
            return lost
        return lost
    except ExtractError as named:
        return named
