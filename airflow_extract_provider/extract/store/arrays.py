"""Columns on their way to Postgres: lists of texts or bytes, in the binary form of arrays.

psycopg looks at each element for itself, which costs more than all else that is done to a record that has not changed.
The form is that of `array_recv` (PostgreSQL, src/backend/utils/adt/arrayfuncs.c): dimensions, whether there are nulls,
the element's type, then each one's length and bytes. A connection that was made before this was imported takes them as
plain lists.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

__all__ = ["Blobs", "Texts"]

_LENGTH = struct.Struct("!i").pack
_HEAD = struct.Struct("!iiIii").pack
_EMPTY = struct.Struct("!iiI").pack


class Texts(list[str]):
    """Texts, none of them None."""


class Blobs(list[bytes]):
    """Bytes, none of them None."""


def _array(element: int, items: Sequence[bytes]) -> bytes:
    if not items:
        return _EMPTY(0, 0, element)
    head = _HEAD(1, 0, element, len(items), 1)
    if len({len(item) for item in items}) == 1:
        # Hashes, and keys of most APIs: in one go.
        length = _LENGTH(len(items[0]))
        return head + length + length.join(items)
    return head + b"".join([part for item in items for part in (_LENGTH(len(item)), item)])


class _TextsDumper(Dumper):
    format = Format.BINARY
    oid = psycopg.adapters.types["text"].array_oid
    element: ClassVar[int] = psycopg.adapters.types["text"].oid

    def dump(self, obj: Texts) -> bytes:
        """The array."""
        return _array(self.element, [item.encode() for item in obj])


class _BlobsDumper(Dumper):
    format = Format.BINARY
    oid = psycopg.adapters.types["bytea"].array_oid
    element: ClassVar[int] = psycopg.adapters.types["bytea"].oid

    def dump(self, obj: Blobs) -> bytes:
        """The array."""
        return _array(self.element, obj)


psycopg.adapters.register_dumper(Texts, _TextsDumper)
psycopg.adapters.register_dumper(Blobs, _BlobsDumper)
