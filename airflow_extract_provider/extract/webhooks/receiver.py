"""Receives webhooks: reads one, verifies it, has it kept, and only then answers 2xx. It never looks into the body.

A bare ASGI callable for ``POST /webhooks/{source}/{endpoint}``. A query string is part of what some APIs sign, and
means nothing else; a slash at the end makes it another path. Nothing of a request is logged but where it came and what
became of it.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import Any, Protocol, TypeAlias

import msgspec

from airflow_extract_provider.extract.errors import EventRefusedError, ExtractError, FixConfig, TryAgain
from airflow_extract_provider.extract.incoming import Incoming, Keep
from airflow_extract_provider.extract.receiving import Endpoint
from airflow_extract_provider.extract.webhooks.answers import ANSWERS, CHALLENGE, END, Outcome
from airflow_extract_provider.extract.webhooks.gathering import Gathering
from airflow_extract_provider.extract.webhooks.offered import AtOnce, offered
from airflow_extract_provider.extract.webhooks.signatures import Refusal, Signed, Verifier

__all__ = ["Counts", "Door", "Receiver", "Room"]

_log = logging.getLogger(__name__)

_LOGGED_EVERY = 60.0
"""Seconds after which the same fault is logged again."""
_DIGITS = 15
"""Of a body's declared size; one with more is too large in any case."""
_UUID, _BINARY = msgspec.msgpack.Decoder(uuid.UUID).decode, b"\xc4\x10"
"""Makes a UUID of sixteen bytes, in a seventh of the time that its own constructor takes."""
_AWAY, _BUSY, _FAILED = (ANSWERS[each] for each in ("away", "busy", "failed"))
_LARGE, _UNKNOWN = (ANSWERS[each] for each in ("large", "unknown"))
_STORED, _DUPLICATE = ANSWERS["stored"], ANSWERS["duplicate"]
_OLD_OR_NEW = {Refusal.OLD: ANSWERS["old"], Refusal.FUTURE: ANSWERS["future"]}

_WHY = {
    Refusal.WRONG: "no secret that is accepted makes its signature.",
    Refusal.OLD: "its signature is right, but older than `tolerance`.",
    Refusal.FUTURE: "its signature is right, but further ahead than `ahead`: a clock is wrong.",
}

_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[Any], Awaitable[None]]
_Scope: TypeAlias = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Door:
    """One endpoint of a source. ``secrets`` is asked at each delivery: the secrets that are accepted now."""

    source: str
    endpoint: str
    spec: Endpoint
    secrets: Callable[[], Sequence[str]]


class Counts(Protocol):
    """Where requests are counted."""

    def count(self, source: str, endpoint: str, kind: str, seconds: float | None = None) -> None:
        """A request became a ``kind`` of :data:`~.answers.ANSWERS`, so many seconds after its head was read. At a path
        that is no endpoint's, source and endpoint are empty."""
        ...


@dataclass(frozen=True, slots=True)
class Room:
    """How many deliveries, and how many bytes of their bodies, are held at once; beyond them 503. Half of the bytes are
    for bodies of which only a part has come."""

    deliveries: int = 10_000
    bytes: int = 256 << 20


class Receiver:
    """The endpoints as an ASGI application.

    :param public_url: the receiver's address as the senders know it, for APIs that sign it; None: as the request says.
    :param patience: how long the body of a request may take.
    """

    def __init__(
        self,
        doors: Iterable[Door],
        keep: Keep,
        counts: Counts,
        *,
        public_url: str | None = None,
        patience: timedelta = timedelta(seconds=10),
        room: Room = Room(),
    ) -> None:
        self._ways = {way.path: way for way in (_Way(door, public_url) for door in doors)}
        self._put, self._count, self._most = keep.put, counts.count, room.deliveries
        # Each has its half: what nobody has verified yet turns away nothing that is genuine.
        self._gathering, self._most_bytes = Gathering(patience.total_seconds(), room.bytes // 2), room.bytes // 2
        self._deliveries = self._bytes = 0
        self._logged: dict[tuple[str, str, str], float] = {}

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one request."""
        begun = time.perf_counter()
        if scope["type"] != "http":
            await _close(scope, send)
            return
        path, root = scope["path"], scope.get("root_path")
        way = self._ways.get(path.removeprefix(root) if root else path)
        at_once = offered(scope)
        answer = _UNKNOWN if way is None else await self._served(way, scope, at_once, receive)
        source, endpoint = ("", "") if way is None else way.place
        self._count(source, endpoint, answer.kind, time.perf_counter() - begun)
        if answer.start is not None and not at_once.answer(answer.start):
            await send(answer.start)
            await send(END)

    async def _served(self, way: _Way, scope: _Scope, at_once: AtOnce, receive: _Receive) -> Outcome:
        """What becomes of a request to an endpoint."""
        given = scope["headers"]
        headers = dict(given)
        if len(headers) != len(given):
            headers = _joined(given)
        refused = way.refused(scope["method"], headers)
        if refused is not None:
            return refused
        if self._deliveries >= self._most:
            return _BUSY
        size = 0
        self._deliveries += 1
        try:
            # What is there already is taken without a clock, which would cost as much as all else here.
            whole = at_once.whole()
            body = await self._gathering.body(receive, way.most) if whole is None else whole
            if isinstance(body, Outcome):
                return body
            if len(body) > way.most:
                return _LARGE
            if self._bytes and self._bytes + len(body) > self._most_bytes:
                return _BUSY
            size = len(body)
            self._bytes += size
            incoming = way.judged(scope, headers, body)
            if isinstance(incoming, Refusal):
                return self._forged(way, incoming, headers)
            return _STORED if await self._put(incoming) else _DUPLICATE
        except Exception as exc:
            return self._fault(way, exc)
        finally:
            self._deliveries -= 1
            self._bytes -= size

    def _fault(self, way: _Way, exc: Exception) -> Outcome:
        if isinstance(exc, TryAgain | FixConfig):
            return _AWAY  # the keep itself says what is the matter, once
        if isinstance(exc, EventRefusedError):
            # Its size is in what it says: by that, each would be another fault.
            self._log(way, "too large", f"cannot be received: {exc.what} {exc.todo}")
            return _LARGE
        what = exc.what if isinstance(exc, ExtractError) else _where(exc)
        self._log(way, what, f"cannot be received: {what}")
        return _FAILED

    def _forged(self, way: _Way, refusal: Refusal, headers: Mapping[bytes, bytes]) -> Outcome:
        """The sender is told no more than that it is refused; whoever set the endpoint up can read why."""
        why = way.why(refusal, headers)
        self._log(way, why, f"are refused: {why}", logging.INFO)
        return way.refusals[refusal]

    def _log(self, way: _Way, fault: str, what: str, level: int = logging.ERROR) -> None:
        """Say what is the matter, once in a while for each fault."""
        about, now = (way.source, way.endpoint, fault), time.monotonic()
        if now - self._logged.get(about, float("-inf")) >= _LOGGED_EVERY:
            self._logged[about] = now
            _log.log(level, "webhooks of %s/%s %s", way.source, way.endpoint, what)


class _Way:
    """A door, with everything worked out that is the same for all its deliveries."""

    def __init__(self, door: Door, public_url: str | None) -> None:
        spec = door.spec
        self.source, self.endpoint = self.place = door.source, door.endpoint
        self.most, self._verify, self._secrets = spec.max_bytes, Verifier(spec.verify), door.secrets
        self.path = f"/webhooks/{door.source}/{door.endpoint}"
        forged = CHALLENGE if spec.verify.algorithm == "basic" else ANSWERS["forged"]
        self.refusals = {each: _OLD_OR_NEW.get(each, forged) for each in Refusal}
        self._url = None if public_url is None else public_url.rstrip("/") + self.path
        self._signs_url = spec.verify.signs_url
        self._kept = spec.kept_headers
        self._signature = spec.verify.reads
        self._of_id = ", or its id holds what stands beside it in the `template`" if spec.verify.id else ""
        self._told_apart = spec.dedupe.headers if spec.dedupe else ()
        # One id and one body under another type is another message.
        self._typed = spec.type.headers if spec.dedupe and spec.type else ()
        # What is the same for all is digested once. With the endpoint: no two of them share a digest.
        same = (self.path, *spec.dedupe.texts) if spec.dedupe else ()
        self._seed = hashlib.blake2b(b"".join(map(_measured, same)), digest_size=16) if same else None
        read = {*spec.verify.reads, *spec.kept_headers, *self._told_apart}
        read |= {"host"} if self._signs_url and public_url is None else set()
        self._read = [(name.encode(), name) for name in sorted(read)]

    def refused(self, method: str, headers: Mapping[bytes, bytes]) -> Outcome | None:
        """Why a request is refused before its body is read."""
        if method != "POST":
            return ANSWERS["method"]
        if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
            return ANSWERS["transfer"]
        if b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() != b"identity":
            return ANSWERS["encoded"]
        declared = headers.get(b"content-length")
        if declared is None:
            return None
        if not declared.isdigit():
            return ANSWERS["malformed"]
        return _LARGE if len(declared) > _DIGITS or int(declared) > self.most else None

    def judged(self, scope: _Scope, given: Mapping[bytes, bytes], body: bytes) -> Incoming | Refusal:
        """Verify a delivery."""
        headers = {name: given[raw].decode("latin-1") for raw, name in self._read if raw in given}
        url = self._url_of(scope, headers) if self._signs_url else ""
        refusal = self._verify(self._secrets(), Signed(scope["method"], url, headers, body, time.time()))
        if refusal is not None:
            return refusal
        kept = {name: headers[name] for name in self._kept if name in headers} if self._kept else {}
        return Incoming(self.source, self.endpoint, body, kept, self._dedupe(headers, body))

    def why(self, refusal: Refusal, given: Mapping[bytes, bytes]) -> str:
        """What is wrong, for a person; nothing of what was sent."""
        if refusal is Refusal.MISSING:
            missing = [name for name in self._signature if not given.get(name.encode(), b"").strip()]
            return f"it has no {', '.join(missing)}."
        if refusal is Refusal.MALFORMED:
            headers = ", ".join(self._signature)
            return f"it is not signed as the endpoint's `verify` says ({headers}){self._of_id}."
        return _WHY[refusal]

    def _url_of(self, scope: _Scope, headers: Mapping[str, str]) -> str:
        """The URL as the sender knows it."""
        url = self._url
        if url is None:
            path = scope.get("raw_path") or scope["path"].encode()
            url = f"{scope.get('scheme', 'http')}://{headers.get('host', '')}{path.decode('latin-1')}"
        query = scope.get("query_string", b"").decode("latin-1")
        return f"{url}?{query}" if query else url

    def _dedupe(self, headers: Mapping[str, str], body: bytes) -> uuid.UUID | None:
        """A digest of what is the same for each try of a delivery, of its type as far as headers tell it, and of the
        body; None where a header that tells tries apart is missing."""
        if self._seed is None:
            return None
        digest = self._seed.copy()
        for name in self._told_apart:
            value = headers.get(name)
            if not value:
                return None
            digest.update(_measured(value))
        for name in self._typed:
            digest.update(_measured(headers.get(name, "")))
        digest.update(body)
        return _UUID(_BINARY + digest.digest())


def _joined(given: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers of which one was given twice: its values are joined, as HTTP says."""
    found: dict[bytes, bytes] = {}
    for name, value in given:
        found[name] = found[name] + b", " + value if name in found else value
    return found


async def _close(scope: _Scope, send: _Send) -> None:
    """No WebSocket leads here, and whatever else there may be is not answered."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})


def _measured(text: str) -> bytes:
    """With its length: `a` and `bc` are not `ab` and `c`."""
    raw = text.encode()
    return b"%d:%b" % (len(raw), raw)


def _where(exc: Exception) -> str:
    """Which fault, and where in the code; not its message, which may quote a request."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at = "" if trace is None else f" at {PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return type(exc).__name__ + at
