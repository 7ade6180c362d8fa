"""What stands in a hash map: hashes, and markers in their place.

::

    h <hash>                       known: gives way to a claim
    l <number of the run> <uuid>   looked for: gives way to a look or a claim of the same run or a later one
    c <number of the run> <uuid>   claimed: the same, but not to a look of the same run

redis.lua reads the same form.
"""

from __future__ import annotations

from typing import NewType
from uuid import uuid4

__all__ = ["Marker", "claimed", "gives_way", "hash_in", "known", "looked"]

Marker = NewType("Marker", bytes)
"""Of one look or one claim: no other is equal to it."""

_KNOWN, _LOOK, _CLAIM = b"h", b"l", b"c"
_NUMBER = slice(1, 17)


def known(hash: bytes) -> bytes:
    """A hash as it stands in a map."""
    return _KNOWN + hash


def hash_in(value: bytes | None) -> bytes | None:
    """The hash that stands there; None: nothing, or a marker."""
    return value[1:] if value is not None and value.startswith(_KNOWN) else None


def looked(number: int) -> Marker:
    """A new marker of a look, by the run of that number."""
    return _new(_LOOK, number)


def claimed(number: int) -> Marker:
    """A new marker of a claim."""
    return _new(_CLAIM, number)


def gives_way(value: bytes | None, marker: Marker) -> bool:
    """Whether a marker may be put where this stands.

    Nothing of a later run is displaced by one that was taken over. A claim is not by a look of its own run either: its
    transaction may not be committed yet, and who looks now may still read the old row. If the marker were that look's,
    it could tell of the old row after the commit.
    """
    if value is None:
        return True
    if value.startswith(_KNOWN):
        return marker.startswith(_CLAIM)
    theirs, ours = int(value[_NUMBER]), int(marker[_NUMBER])
    return theirs < ours or (theirs == ours and (marker.startswith(_CLAIM) or value.startswith(_LOOK)))


def _new(kind: bytes, number: int) -> Marker:
    return Marker(b"%s%016d%s" % (kind, number, uuid4().bytes))
