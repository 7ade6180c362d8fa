"""What the receiver is told: plain values, which travel to its workers. No secret is among them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the receiver works, whoever runs it.

    ``keep`` is where webhooks are kept: the inbox in Postgres, or the Kafka ``topic`` behind the connection
    ``kafka_conn_id``. ``public_url`` is the address as those know it who send, for APIs that sign it. ``numbers`` is a
    folder in which the workers of one receiver share their metrics; None: there is one worker.
    """

    sources: Path
    store_conn_id: str = "extract_store"
    schema: str = "extract"
    keep: Literal["postgres", "kafka"] = "postgres"
    kafka_conn_id: str = "kafka_default"
    topic: str = "extract.webhooks"
    public_url: str | None = None
    secrets_every: timedelta = timedelta(seconds=60)
    numbers: Path | None = None
