"""The store's connection: a plain psycopg 3 connection to a real Postgres, and errors that show no password."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.extract.errors import ConnectionMissingError, StoreUnavailableError
from airflow_extract_provider.hooks.store import StoreHook
from airflow_extract_provider.hooks.store_async import AsyncStoreHook
from airflow_extract_provider.testing.postgres import free_port
from tests.taskrun import ApiServer

SECRET = "marked-secret-4711"


def server(dsn: str, extra: dict[str, Any] | None = None, **fields: Any) -> ApiServer:
    """An API server that knows the connection `extract_store`."""
    parts = conninfo_to_dict(dsn)
    port = parts.get("port")
    known: dict[str, Any] = {
        "conn_type": "postgres",
        "host": parts.get("host"),
        "port": int(str(port)) if port else None,
        "login": parts.get("user"),
        "password": parts.get("password"),
        "schema": parts.get("dbname"),
        "extra": json.dumps(extra or {}),
    }
    return ApiServer(connections={"extract_store": {**known, **fields}})


def test_a_plain_connection(dsn: str) -> None:
    """Rows are tuples and lists are arrays, whatever cursor the Airflow connection asks for."""
    with server(dsn, {"cursor": "dictcursor", "application_name": "wing"}).serving():
        conn = StoreHook().connect()
    with conn:
        assert conn.execute("select %s::int[], current_setting('application_name')", [[1, 2]]).fetchone() == (
            [1, 2],
            "wing",
        )
        assert not conn.autocommit
        assert conn.prepare_threshold == 5


def test_no_prepared_statements_behind_a_pooler(dsn: str) -> None:
    """`prepare_threshold: null` reaches psycopg."""
    with server(dsn, {"prepare_threshold": None}).serving(), StoreHook().connect() as conn:
        assert conn.prepare_threshold is None


def test_one_of_several_hosts_says_nothing(dsn: str) -> None:
    """It takes connections, and is not waited for until whoever needs the store gives up: the next one is asked."""
    port = int(str(conninfo_to_dict(dsn)["port"]))
    try:
        silent = socket.create_server(("127.0.0.2", port))
    except OSError:
        pytest.skip("this server listens on all addresses: none is left for a silent one beside it")

    async def main() -> float:
        begun = time.monotonic()
        async with await AsyncStoreHook().connect_often() as conn:
            await conn.execute("select 1")
        return time.monotonic() - begun

    both = "127.0.0.2,127.0.0.1"
    with silent:
        for extra, most in ({}, 9.0), ({"connect_timeout": 2}, 3.9):
            with server(dsn, extra, host=both).serving():
                assert 1.9 < asyncio.run(main()) < most


def test_each_call_opens_another(dsn: str) -> None:
    """The engine may need a second one after a loss; the Airflow connection is looked up once."""
    with server(dsn).serving() as known:
        hook = StoreHook()
        with hook.connect() as one, hook.connect() as two:
            assert one.info.backend_pid != two.info.backend_pid
    assert len(known.of("GetConnection")) == 1


def test_a_missing_connection_tells_how_to_make_it() -> None:
    """The message holds the command."""
    with (
        ApiServer().serving(),
        pytest.raises(ConnectionMissingError, match="connections add extract_store --conn-type"),
    ):
        StoreHook().connect()


def test_an_unknown_option_is_an_error_of_the_connection(dsn: str) -> None:
    """What libpq does not know is told without values."""
    with server(dsn, {"nonsense": SECRET}).serving(), pytest.raises(ConnectionMissingError) as caught:
        StoreHook().connect()
    assert SECRET not in str(caught.value)


def test_no_server_there() -> None:
    """Tried again later, and the password is not shown."""
    nowhere = f"host=127.0.0.1 port={free_port()} user=me password={SECRET} dbname=x"
    with server(nowhere).serving(), pytest.raises(StoreUnavailableError) as caught:
        StoreHook().connect()
    assert SECRET not in str(caught.value)
    assert not isinstance(caught.value.__cause__, psycopg.Error)
