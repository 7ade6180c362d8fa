"""Hashes in Redis: one hash per copy, for all processes that sync it.

Each call is one script on the server (redis.lua), in pieces of a thousand keys that go out together: what it looks at
cannot change before it writes. The script asks first which life of the server this is (6 µs on Redis 7.0 and 8.2, 4 on
6.2): one that was killed may come back with what had been taken out, and a client that reconnects does not notice. When
entries go, nothing is lost but time: by eviction, FLUSHALL, a restart, a failover.

An entry takes about 110 bytes for a key of 16 characters (90 in Redis 8). The login needs EVAL, EVALSHA, INFO, HGET,
HMGET, HSET, HDEL, EXPIRE and UNLINK on keys that begin with the prefix, and SELECT for a database other than 0. A
cluster is not served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from hashlib import sha1
from importlib import resources
from itertools import chain
from typing import Any, Literal, TypeAlias, TypeVar
from uuid import uuid4

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from airflow_extract_provider.extract.hashes.hash_map import HashMapAwayError, Looked, Marker
from airflow_extract_provider.extract.hashes.marker import claimed, known, looked
from airflow_extract_provider.extract.unshown import Unshown

__all__ = ["RedisHashMap", "client"]

_T = TypeVar("_T")
_Arguments: TypeAlias = tuple[Any, ...]
_MOST_KEYS = 1_000
"""In one script: others wait for it about a millisecond. Lua hands 8,000 arguments on at most."""
_SCRIPTS = {
    "enter": ("life", "enter"),
    "look": ("life", "entered", "marking", "look"),
    "claim": ("life", "entered", "marking", "claim"),
    "learn": ("life", "entered", "learn"),
}


def client(*, timeout: timedelta = timedelta(seconds=3), **settings: Any) -> Redis:
    """A client as the map needs it: bytes in and out, nothing sent twice, no answer waited for longer than ``timeout``.
    ``settings`` are redis-py's: where the server is, the login."""
    seconds = timeout.total_seconds()
    fixed: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "protocol": 2,
    }
    return Redis(**{**settings, **fixed})


class RedisHashMap(Unshown):
    """Keeps its entries in Redis under ``prefix``, for ``keep`` after they were last used. It closes the client, which
    was made by `client`."""

    def __init__(self, client: Redis, *, prefix: str = "extract:", keep: timedelta = timedelta(days=30)) -> None:
        self._client, self._prefix, self._keep = client, prefix, int(keep.total_seconds())
        self._key = b""
        self._number = 0
        self._born: bytes | None = None

    def enter(self, copy: str, identity: str, number: int) -> bool:
        """Begin a run."""
        key = f"{self._prefix}hashes:{copy}".encode()
        again = self._born is not None and (self._key, self._number) == (key, number)
        self._key, self._number, self._born = key, number, None
        before = number - (not again)
        ((self._born, kept),) = self._run("enter", [(identity.encode(), before, number, uuid4().hex, self._keep)])
        return bool(kept)

    def look(self, keys: Sequence[str]) -> Looked:
        """What is known."""
        marker = looked(self._number)
        answers = self._run("look", [(*self._entered(), marker, *map(_field, some)) for some in _pieces(keys)])
        if None in answers:
            # Dropped since this run began, if only before the last piece.
            return Looked(marker, [None] * len(keys))
        return Looked(marker, list(chain.from_iterable(answers)))

    def claim(self, keys: Sequence[str]) -> Marker:
        """Take entries out."""
        marker = claimed(self._number)
        self._run("claim", [(*self._entered(), marker, *map(_field, some)) for some in _pieces(keys)])
        return marker

    def learn(self, marker: Marker, hashes: Mapping[str, bytes | None]) -> None:
        """Put in what is stored."""
        told = [(_field(key), b"" if hash is None else known(hash)) for key, hash in hashes.items()]
        calls = [(*self._entered(), marker, *chain.from_iterable(some)) for some in _pieces(told)]
        self._run("learn", calls)

    def clear(self) -> None:
        """Drop all that is kept of the copy."""
        self._entered()
        with self._named_errors():
            self._client.unlink(self._key)

    def close(self) -> None:
        """End the connections; the entries stay."""
        self._client.close()

    def _entered(self) -> tuple[bytes, int]:
        """What each script is told first.

        Raises HashMapAwayError: no run has begun.
        """
        if self._born is None:
            raise HashMapAwayError("no run has entered the hash map")
        return self._born, self._keep

    def _run(self, name: str, calls: Sequence[_Arguments]) -> list[Any]:
        """The answers of a script to each of these calls, which go out together."""
        text, digest = _script(name)
        with self._named_errors():
            answers = self._sent("evalsha", digest, calls)
            # A server that does not know the script has not begun it.
            unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            again = self._sent("eval", text, [calls[at] for at in unknown])
            for at, answer in zip(unknown, again, strict=True):
                answers[at] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    def _sent(self, command: Literal["eval", "evalsha"], script: str, calls: Sequence[_Arguments]) -> list[Any]:
        if not calls:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for arguments in calls:
            getattr(pipeline, command)(script, 1, self._key, *arguments)
        return list(pipeline.execute(raise_on_error=False))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raises HashMapAwayError in place of the library's errors, which may tell what must not be shown."""
        try:
            yield
        except (RedisError, OSError) as exc:
            # Redis repeats the arguments of a command that it does not know: the login, keys of records.
            said = str(exc).partition(", with args")[0]
            password = self._client.get_connection_kwargs().get("password")
            said = said.replace(password, "***") if password else said
            raise HashMapAwayError(f"Redis cannot be used ({type(exc).__name__}): {said}") from None


@cache
def _script(name: str) -> tuple[str, str]:
    """A script and its digest, by which the server knows it."""
    parts = {}
    for part in (resources.files(__package__) / "redis.lua").read_text(encoding="utf-8").split("-- name: ")[1:]:
        title, _, body = part.partition("\n")
        parts[title.strip()] = body
    text = "".join(parts[each] for each in _SCRIPTS[name])
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


def _field(key: str) -> bytes:
    """A key as a field's name. What is no text for Postgres may be asked for, and is not known."""
    return key.encode("utf-8", "surrogatepass")


def _pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for at in range(0, len(items), _MOST_KEYS):
        yield items[at : at + _MOST_KEYS]
