"""The Redis that an object's hash map is kept in, behind a connection of the Redis provider's type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_extract_provider.extract.errors import ConnectionMissingError, SourceError
from airflow_extract_provider.hooks.connection import find_connection

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_extract_provider.extract.hashes.hash_map import HashMap
    from airflow_extract_provider.extract.hashes.redis import RedisHashMap
    from airflow_extract_provider.extract.source import ApiObject

__all__ = ["hash_map_of", "redis_hash_map"]

_EXAMPLE = "--conn-type redis --conn-host HOST --conn-port 6379 --conn-password PASSWORD"
_PORT = 6379
_FLAGS = ("ssl", "ssl_check_hostname")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_REQUIREMENTS = ("required", "optional", "none")


@contextmanager
def hash_map_of(object: ApiObject, *, connection: Connection | None = None) -> Iterator[HashMap | None]:
    """The hash map that an object's config names, closed at the end; None: it names none. Raises as
    :func:`redis_hash_map`."""
    named = object.hash.map
    if named is None:
        yield None
        return
    found = redis_hash_map(named.redis, connection=connection)
    try:
        yield found
    finally:
        found.close()


def redis_hash_map(conn_id: str, *, connection: Connection | None = None) -> RedisHashMap:
    """A hash map in that Redis; the caller closes it. Nothing is sent before a run enters it.

    The connection's extra is what the Redis provider takes, which need not be installed. ``connection`` is for those
    who have it already.

    Raises ConnectionMissingError: Airflow has no such connection, or a field of it cannot be used; the message names
    the field, never its value. Raises SourceError: redis-py is not installed.
    """
    try:
        from airflow_extract_provider.extract.hashes.redis import RedisHashMap, client
    except ModuleNotFoundError as exc:
        if exc.name != "redis":
            raise
        raise SourceError(
            f"`hash` names the Redis {conn_id!r}, but redis-py is not installed.",
            todo="pip install 'airflow-extract-provider[redis]'",
        ) from None
    found = find_connection(conn_id, _EXAMPLE) if connection is None else connection
    return RedisHashMap(client(**_settings(conn_id, found)))


def _settings(conn_id: str, conn: Connection) -> dict[str, Any]:
    """What redis-py is told. Fields that only others know are left out."""
    extra = conn.extra_dejson
    if not conn.host:
        raise _unusable(conn_id, "names no host", "Enter one")
    if _flag(conn_id, extra, "cluster"):
        raise _unusable(conn_id, "is one to a cluster", "Name a Redis that is none")
    told = {
        "host": conn.host,
        "port": conn.port or _PORT,
        "db": _db(conn_id, extra),
        "username": conn.login or None,
        # As the Redis provider reads it: a form leaves these words where there is none.
        "password": None if str(conn.password).lower() in ("none", "false", "") else conn.password,
    }
    return {**told, **_tls(conn_id, extra)}


def _tls(conn_id: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {name: extra[name] for name in _FILES if extra.get(name)}
    told |= {name: flag for name in _FLAGS if (flag := _flag(conn_id, extra, name)) is not None}
    required = extra.get("ssl_cert_reqs") or "required"
    if required not in _REQUIREMENTS:
        raise _unusable(conn_id, "has a wrong `ssl_cert_reqs`", f"Choose one of: {', '.join(_REQUIREMENTS)}")
    if required == "none":
        # A name cannot be checked in a certificate that is not.
        told["ssl_check_hostname"] = False
    return {**told, "ssl_cert_reqs": required}


def _db(conn_id: str, extra: Mapping[str, Any]) -> int:
    value = extra.get("db")
    if value in (None, ""):
        return 0
    if isinstance(value, bool) or not str(value).isdecimal():
        raise _unusable(conn_id, "has a wrong `db`", "Enter the number of the database")
    return int(value)


def _flag(conn_id: str, extra: Mapping[str, Any], name: str) -> bool | None:
    """True or false, also as text; None: it says neither."""
    value = extra.get(name)
    if value in (None, ""):
        return None
    known = {"true": True, "false": False}.get(str(value).strip().lower())
    if known is None:
        raise _unusable(conn_id, f"has a wrong `{name}`", "Choose true or false")
    return known


def _unusable(conn_id: str, what: str, todo: str) -> ConnectionMissingError:
    return ConnectionMissingError(f"the Redis connection {conn_id!r} {what}.", todo=f"{todo}.")
