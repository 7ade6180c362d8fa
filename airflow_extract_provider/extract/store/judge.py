"""Which of two copies of a record is newer: one coming in, one stored and locked (law: newer wins). A pure decision."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

__all__ = ["Coming", "Stored", "Verdict", "judge"]

Verdict: TypeAlias = Literal["unchanged", "write", "undelete", "stale", "refetch"]
"""``refetch``: not to be decided from here, the record must be read again by its key. ``stale``: older, left alone."""


@dataclass(frozen=True, slots=True)
class Coming:
    """A record on its way in. ``sent_at`` is Postgres's clock, read before its page was asked for.

    ``page`` and ``number`` (of the record on it) say where it came, for messages only.
    """

    key: str
    raw: bytes
    raw_hash: bytes
    version: datetime | None
    sent_at: datetime
    page: int | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored row; ``applied_at`` is Postgres's clock at its last change."""

    version: datetime | None
    raw_hash: bytes
    deleted_at: datetime | None
    applied_at: datetime


def judge(coming: Coming, stored: Stored) -> Verdict:
    """What to do with a record, given the row it meets under the row's lock.

    Without versions only one walk runs at a time and its pages are applied in the order in which they were sent, so
    what comes now is the newer one. With versions the later version wins; where versions cannot tell, a page sent after
    the row was applied is certainly the newer look, and anything else must be read again by key.
    """
    looked_after = coming.sent_at > stored.applied_at
    if stored.deleted_at is not None:
        return "undelete" if looked_after else "refetch"
    if coming.raw_hash == stored.raw_hash:
        return "unchanged"
    if coming.version is None or stored.version is None:
        return "write" if coming.version is stored.version or looked_after else "refetch"
    if coming.version > stored.version:
        return "write"
    if coming.version == stored.version:
        return "write" if looked_after else "refetch"
    return "refetch" if looked_after else "stale"
