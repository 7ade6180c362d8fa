"""What a sender is answered, by what became of the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["ANSWERS", "CHALLENGE", "END", "Outcome", "Start"]

Start: TypeAlias = Mapping[str, Any]
"""The message that begins an answer."""

_RETRY_AFTER = 5
"""Seconds after which a sender may try again. Most have a plan of their own."""


# Compared by what it is, not by what is in it: an enum's members are found and hashed more slowly than all the rest of
# a request's bookkeeping takes.
@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a request: ``kind`` is the word it is counted by, ``says`` it in a sentence; ``start`` begins the
    answer, None: there is nobody to answer."""

    kind: str
    says: str
    start: Start | None = None

    @property
    def status(self) -> int | None:
        """The status that is sent."""
        return None if self.start is None else self.start["status"]


def _start(status: int, *more: tuple[bytes, bytes]) -> Start:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *more]}


_CLOSE = (b"connection", b"close")
"""Where the whole body was not read: the connection cannot serve a next request, or should not."""
_LATER = (b"retry-after", b"%d" % _RETRY_AFTER)

_ALL = (
    # 200 and not 204: there are senders to whom nothing else is a success.
    Outcome("stored", "it is on the disk", _start(200)),
    Outcome("duplicate", "the same delivery, by the endpoint's `dedupe`, is on the disk already", _start(200)),
    # Of a refused signature no more is told than that it is refused.
    Outcome("forged", "it has no signature, or one that none of the secrets made", _start(401)),
    Outcome("old", "the signature is right, but was made too long ago", _start(401)),
    Outcome("future", "the signature is right, but from too far in the future: a clock is wrong", _start(401)),
    Outcome("malformed", "its `content-length` is no number", _start(400, _CLOSE)),
    Outcome("unknown", "there is no endpoint at this path", _start(404, _CLOSE)),
    Outcome("method", "another method than POST", _start(405, (b"allow", b"POST"), _CLOSE)),
    Outcome("slow", "its body did not come in time", _start(408, _CLOSE)),
    Outcome("large", "its body is larger than `max_bytes`, or than the Kafka topic takes", _start(413, _CLOSE)),
    Outcome("encoded", "its body is compressed", _start(415, (b"accept-encoding", b"identity"), _CLOSE)),
    Outcome("failed", "a fault of the receiver's, which its log names", _start(500, _CLOSE)),
    Outcome("transfer", "it is transferred in another way than in chunks", _start(501, _CLOSE)),
    Outcome("away", "the store cannot take it now; or whether it did is not known", _start(503, _LATER)),
    Outcome("busy", "more comes at once than is held in memory", _start(503, _LATER, _CLOSE)),
    Outcome("cut", "the connection was lost before the whole body was there: nothing of it is kept"),
)
ANSWERS: Mapping[str, Outcome] = {each.kind: each for each in _ALL}
CHALLENGE = Outcome(
    "forged",
    ANSWERS["forged"].says,
    _start(401, (b"www-authenticate", b'Basic realm="webhooks", charset="UTF-8"')),
)
"""Where user and password are expected: there are senders who send them only when they are asked to."""
END: Mapping[str, Any] = {"type": "http.response.body", "body": b""}
"""The message that ends each answer; no answer has a body."""
