"""Which of two copies of a record is newer: one coming in, one stored and locked (law: newer wins). A pure decision."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

__all__ = ["Coming", "Stored", "Verdict", "judge"]

Verdict: TypeAlias = Literal["unchanged", "write", "regress", "undelete", "delete", "retold", "stale", "refetch"]
"""``refetch``: not to be decided from here, the record must be read again by its key. ``stale``: older, left alone.
``regress``: written though its version is older, the API has gone back. ``retold``: another tombstone of what is
deleted already; its version is kept, nothing else changes."""

_Age: TypeAlias = Literal["newer", "older", "back", "unknown"]


class Coming(msgspec.Struct, frozen=True):
    """A record on its way in. ``sent_at`` is Postgres's clock, read before its page was asked for.

    ``deleted``: it is a tombstone, or proof by a read by key that there is none. ``by_key``: it was asked for by its
    key. ``absent``: a complete sweep has not seen it, which began at ``sent_at``. ``page`` and ``number`` (of the
    record on it) say where it came, for messages only. ``turn`` tells in which order records came, where somebody asks.
    ``told``: a webhook says so, of whatever age; ``final``: that it is gone, and nobody can ask the API by its key.
    """

    key: str
    raw: bytes
    raw_hash: bytes
    version: datetime | None
    sent_at: datetime
    page: int | None = None
    number: int | None = None
    deleted: bool = False
    by_key: bool = False
    absent: bool = False
    turn: int = 0
    told: bool = False
    final: bool = False


class Stored(msgspec.Struct, frozen=True):
    """The stored row; ``applied_at`` is Postgres's clock at its last change."""

    version: datetime | None
    raw_hash: bytes
    deleted_at: datetime | None
    applied_at: datetime


def judge(coming: Coming, stored: Stored) -> Verdict:
    """What to do with a record, given the row it meets under the row's lock.

    Without versions only one walk runs at a time and its pages are applied in the order in which they were sent, so
    what comes now is the newer one. With versions the later version wins; where versions cannot tell, a page sent after
    the row was applied is certainly the newer look, and anything else must be read again by key. What was read by key
    after the row was applied is the API's last word; read before, it decides nothing. What a sweep has not seen is gone
    if it was stored before the sweep began.
    """
    if coming.told:
        return _told(coming, stored)
    if stored.deleted_at is not None:
        return _beside_tombstone(coming, stored)
    if coming.absent:
        # Stored after the sweep had begun, it need not be on the pages that it had read by then.
        return "delete" if coming.sent_at > stored.applied_at else "unchanged"
    if coming.raw_hash == stored.raw_hash and not coming.deleted:
        # The same record: another version of it has been read by another `version` or `timestamps`.
        return "unchanged" if coming.version == stored.version else "write"
    age = _age(coming, stored)
    if age == "newer":
        return "delete" if coming.deleted else "write"
    if age == "back" and coming.by_key:
        return "delete" if coming.deleted else "regress"
    return "stale" if age == "older" and not coming.by_key else "refetch"


def _told(coming: Coming, stored: Stored) -> Verdict:
    """What a webhook is worth, which may have been sent long ago: only a newer version is proof. A record is read again
    where versions do not tell, and so is a deletion, or anything that comes of a record that is deleted."""
    if stored.deleted_at is not None:
        return "unchanged" if coming.deleted else "refetch"
    known = coming.version is not None and stored.version is not None
    if known and coming.version > stored.version:  # type: ignore[operator]
        return "delete" if coming.deleted else "write"
    older = known and coming.version < stored.version  # type: ignore[operator]
    if coming.deleted and not coming.final:
        return "refetch"
    if coming.deleted:
        # Nobody can be asked: what was stored after the webhook had come is newer, unless the versions say otherwise.
        before = coming.sent_at <= stored.applied_at
        return "stale" if older or (before and not known) else "delete"
    if known and coming.raw_hash == stored.raw_hash and coming.version == stored.version:
        return "unchanged"
    return "stale" if older else "refetch"


def _beside_tombstone(coming: Coming, stored: Stored) -> Verdict:
    """Only what was sent after the deletion was applied brings a record back, whatever its version."""
    if not coming.deleted:
        return "undelete" if coming.sent_at > stored.applied_at else "refetch"
    if coming.version is None or coming.raw_hash == stored.raw_hash:
        return "unchanged"
    return "retold" if stored.version is None or coming.version >= stored.version else "unchanged"


def _age(coming: Coming, stored: Stored) -> _Age:
    """How old what comes is beside what is stored. ``back``: an older version, certainly seen later."""
    looked_after = coming.sent_at > stored.applied_at
    if coming.version is None or stored.version is None:
        in_order = coming.version is stored.version and not coming.by_key
        return "newer" if in_order or looked_after else "unknown"
    if coming.version == stored.version:
        # A tombstone with the version of the record comes after it.
        return "newer" if coming.deleted or looked_after else "unknown"
    if coming.version > stored.version:
        return "newer"
    return "back" if looked_after else "older"
