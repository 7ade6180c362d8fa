"""The hash map behind an Airflow connection: what of it is used, and what is said when it cannot be."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import ConnectionMissingError, SourceError
from airflow_extract_provider.extract.hashes.hash_map import HashMapAwayError
from airflow_extract_provider.extract.hashes.redis import RedisHashMap
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.hooks.redis import hash_map_of, redis_hash_map
from tests.extract.scene import KEYED
from tests.faults.certificates import Authority
from tests.redis_server import RedisServer, running
from tests.taskrun import ApiServer

SECRET = "marked-secret-4711"


def airflow(extra: Mapping[str, Any] | None = None, **fields: Any) -> ApiServer:
    """An API server that knows the connection `hashes`."""
    told = {"conn_type": "redis", "host": "127.0.0.1", **fields, "extra": json.dumps(extra or {})}
    return ApiServer(connections={"hashes": told})


def opened(extra: Mapping[str, Any] | None = None, **fields: Any) -> RedisHashMap:
    """The map behind such a connection."""
    with airflow(extra, **fields).serving():
        return redis_hash_map("hashes")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis with a login."""
    with running() as found:
        found.tell("ACL", "SETUSER", "map", "on", f">{SECRET}", "~extract:*", "+@all")
        yield found


def keys_in(server: RedisServer, db: int) -> list[bytes]:
    """What stands in one of its databases."""
    with contextlib.closing(server.client(db=db)) as asked:
        found: Any = asked.keys()
        return list(found)


def test_the_login_and_the_database_are_used(server: RedisServer) -> None:
    """As the Redis provider uses them, whose form leaves other fields in the extra."""
    extra = {"db": 3, "cluster": False, "startup_nodes": None, "ssl": False, "ssl_cert_reqs": "required", "ours": 1}
    server.tell("FLUSHALL")
    map = opened(extra, port=server.port, login="map", password=SECRET)
    map.enter("copy", "one", 1)
    map.close()
    assert keys_in(server, 3) == [b"extract:hashes:copy"]
    assert keys_in(server, 0) == []


@pytest.mark.parametrize("password", [None, "", "None", "false"])
def test_without_a_login(server: RedisServer, password: str | None) -> None:
    """Words that forms leave are no password."""
    map = opened({"db": "4"}, port=server.port, password=password)
    map.enter("copy", "one", 1)
    map.clear()
    map.close()


def test_a_wrong_login_is_found_when_a_run_enters(server: RedisServer) -> None:
    """The run goes on without the map. Nothing shows the password."""
    map = opened(port=server.port, login="map", password=SECRET + "!")
    with pytest.raises(HashMapAwayError) as away:
        map.enter("copy", "one", 1)
    assert SECRET not in f"{away.value}{map!r}"
    map.close()


def test_a_missing_connection_tells_how_to_make_it() -> None:
    """The message holds the command."""
    with (
        ApiServer().serving(),
        pytest.raises(ConnectionMissingError, match="connections add hashes --conn-type redis"),
    ):
        redis_hash_map("hashes")


@pytest.mark.parametrize(
    ("fields", "extra", "said"),
    [
        ({"host": None}, {}, "names no host"),
        ({}, {"cluster": True}, "cluster"),
        ({}, {"cluster": "True"}, "cluster"),
        ({}, {"db": SECRET}, "`db`"),
        ({}, {"db": -1}, "`db`"),
        ({}, {"db": True}, "`db`"),
        ({}, {"ssl": SECRET}, "`ssl`"),
        ({}, {"ssl_check_hostname": 2}, "`ssl_check_hostname`"),
        ({}, {"ssl_cert_reqs": SECRET}, "`ssl_cert_reqs`"),
    ],
)
def test_fields_that_cannot_be_used(fields: Mapping[str, Any], extra: Mapping[str, Any], said: str) -> None:
    """Named when the map is opened, without their values."""
    with pytest.raises(ConnectionMissingError, match=said) as refused:
        opened(extra, **fields)
    assert SECRET not in str(refused.value)


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install. The Redis provider is not asked for."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "airflow_extract_provider.extract.hashes.redis")
    with pytest.raises(SourceError, match=r"airflow-extract-provider\[redis\]"):
        opened()


@pytest.mark.parametrize(("hash", "made"), [({}, False), ({"map": {"redis": "hashes"}}, True)])
def test_the_map_of_an_object(server: RedisServer, hash: Mapping[str, Any], made: bool) -> None:
    """Where its config names one. Otherwise no connection is asked for."""
    things = {**KEYED, "hash": hash}
    source = parse_source({"source": "shop", "connection": "none", "objects": {"things": things}}, "shop.yaml")
    with airflow(port=server.port).serving() as served, hash_map_of(source.object("things")) as map:
        assert (map is not None) == made
    assert bool(served.of("GetConnection")) == made


class _Forwarding(socketserver.BaseRequestHandler):
    """Takes the bytes of a TLS connection to a port, and back."""

    server: _Tls

    def handle(self) -> None:
        try:
            inside = self.server.context.wrap_socket(self.request, server_side=True)
        except OSError:
            return  # the client did not trust it
        with inside, socket.create_connection(("127.0.0.1", self.server.port)) as behind:
            while True:
                ready = [inside] if inside.pending() else select.select([inside, behind], [], [])[0]
                for one in ready:
                    if not (told := one.recv(65_536)):
                        return
                    (behind if one is inside else inside).sendall(told)


class _Tls(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        self.context, self.port = context, port


@contextlib.contextmanager
def tls_before(server: RedisServer, context: ssl.SSLContext) -> Iterator[int]:
    """A port that speaks TLS: not every redis-server does."""
    with _Tls(context, server.port) as tls:
        threading.Thread(target=tls.serve_forever, args=(0.05,), daemon=True).start()
        yield int(tls.server_address[1])
        tls.shutdown()


@pytest.mark.parametrize(
    ("extra", "good"),
    [
        ({"ssl_ca_certs": "ours"}, True),
        ({"ssl_ca_certs": "ours", "ssl_check_hostname": "true"}, True),
        ({}, False),
        ({"ssl_cert_reqs": "none"}, True),
        ({"ssl_cert_reqs": "none", "ssl_check_hostname": True}, True),
        ({"ssl_ca_certs": "missing.pem"}, False),
    ],
)
def test_tls(server: RedisServer, tmp_path: Path, extra: Mapping[str, Any], good: bool) -> None:
    """The certificate is checked unless the connection says otherwise."""
    authority = Authority(tmp_path)
    told = {**extra, "ssl": True}
    if extra.get("ssl_ca_certs") == "ours":
        told["ssl_ca_certs"] = str(authority.file)
    with tls_before(server, authority.server()) as port:
        map = opened(told, port=port)
        if good:
            map.enter("copy", "one", 1)
        else:
            with pytest.raises(HashMapAwayError):
                map.enter("copy", "one", 1)
        map.close()
