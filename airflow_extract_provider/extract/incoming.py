"""A webhook that was verified, on its way into the inbox."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

import msgspec

__all__ = ["Incoming", "Keep"]


class Incoming(msgspec.Struct, frozen=True):
    """A verified delivery: its body as it came, and the headers that its endpoint keeps (their names in lower case).

    ``dedupe`` is a digest of the endpoint, the delivery's id and the body; None: whatever comes is stored.
    ``received_at`` (aware) is when it came; None: when it is stored.
    """

    source: str
    endpoint: str
    body: bytes
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    dedupe: uuid.UUID | None = None
    received_at: datetime | None = None


class Keep(Protocol):
    """Where deliveries are kept: the inbox in Postgres, or a Kafka topic on the way to it."""

    async def put(self, incoming: Incoming) -> bool:
        """Store a delivery durably; returns whether it is new (False: it is stored already; a place that cannot tell
        says True). What a crash does after the return, it is not lost.

        Raises ExtractError, most often StoreUnavailableError: it is not stored, or that is not known.
        """
        ...
