"""The bounds on what a connection may send, and on how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Guards"]


@dataclass(frozen=True, slots=True)
class Guards:
    """The bounds. ``head`` in bytes, from the method to the empty line, and how many ``headers`` are in it; ``around``
    a body in bytes, beside eight for each byte of it; how many requests may be ``pipelined`` behind an unanswered one.
    In seconds: ``head_within`` its first byte (or the connection) until it is whole, ``request_within`` until the body
    is; ``written_within`` an answer must begin to be read; ``closed_within`` a connection is gone. ``connections`` may
    be open; above half of them, one over which no delivery was taken is closed after ``stranger_rests`` seconds.
    """

    head: int = 32 << 10
    headers: int = 100
    around: int = 16 << 10
    pipelined: int = 16
    head_within: float = 10.0
    request_within: float = 30.0
    written_within: float = 10.0
    closed_within: float = 2.0
    connections: int = 1000
    stranger_rests: int = 5
