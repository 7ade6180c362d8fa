"""Columns on their way to Postgres: lists of texts, bytes, numbers or instants, in the binary form of arrays.

psycopg looks at each element for itself, which costs more than all else that is done to a record that has not changed.
The form is that of `array_recv` (PostgreSQL, src/backend/utils/adt/arrayfuncs.c): dimensions, whether there are nulls,
the element's type, then each one's length and bytes. A connection that was made before this was imported takes them as
plain lists.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from itertools import chain, repeat
from typing import ClassVar

import psycopg
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

from airflow_extract_provider.extract.store.statements import sparse

__all__ = ["Blobs", "Instants", "Numbers", "Texts", "instants"]

_LENGTH = struct.Struct("!i").pack
_HEAD = struct.Struct("!iiIii").pack
_EMPTY = struct.Struct("!iiI").pack
_EPOCH, _MICROSECOND = datetime(2000, 1, 1, tzinfo=timezone.utc), timedelta(microseconds=1)
"""An instant is sent as microseconds since then."""


class Texts(list[str]):
    """Texts, none of them None."""


class Blobs(list[bytes]):
    """Bytes, none of them None."""


class Numbers(list[int]):
    """Numbers of 64 bits, none of them None."""


class Instants(list[datetime]):
    """Instants (aware), none of them None."""


def instants(values: Sequence[datetime | None]) -> Sequence[datetime | None]:
    """A column of instants, of which some may be None."""
    known = [each for each in values if each is not None]
    return Instants(known) if len(known) == len(values) else sparse(values)


def _array(element: int, items: Sequence[bytes]) -> bytes:
    if not items:
        return _EMPTY(0, 0, element)
    head = _HEAD(1, 0, element, len(items), 1)
    if len({len(item) for item in items}) == 1:
        # Hashes, and keys of most APIs: in one go.
        length = _LENGTH(len(items[0]))
        return head + length + length.join(items)
    return head + b"".join([part for item in items for part in (_LENGTH(len(item)), item)])


def _numbers(element: int, items: Sequence[int]) -> bytes:
    if not items:
        return _EMPTY(0, 0, element)
    told = struct.pack("!" + "iq" * len(items), *chain.from_iterable(zip(repeat(8), items)))
    return _HEAD(1, 0, element, len(items), 1) + told


class _ArrayDumper(Dumper):
    """Dumps an array ``of`` a type that Postgres knows by that name."""

    format = Format.BINARY
    element: ClassVar[int]

    def __init_subclass__(cls, *, of: str) -> None:
        known = psycopg.adapters.types[of]
        cls.oid, cls.element = known.array_oid, known.oid


class _TextsDumper(_ArrayDumper, of="text"):
    def __init__(self, cls: type, context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        told = "ascii" if self.connection is None else self.connection.info.encoding
        # A database that knows no encoding takes whatever comes.
        self._encoding = "utf-8" if told == "ascii" else told

    def dump(self, obj: Texts) -> bytes:
        """The array."""
        encoding = self._encoding
        return _array(self.element, [item.encode(encoding) for item in obj])


class _BlobsDumper(_ArrayDumper, of="bytea"):
    def dump(self, obj: Blobs) -> bytes:
        """The array."""
        return _array(self.element, obj)


class _NumbersDumper(_ArrayDumper, of="int8"):
    def dump(self, obj: Numbers) -> bytes:
        """The array."""
        return _numbers(self.element, obj)


class _InstantsDumper(_ArrayDumper, of="timestamptz"):
    def dump(self, obj: Instants) -> bytes:
        """The array."""
        return _numbers(self.element, [(item - _EPOCH) // _MICROSECOND for item in obj])


psycopg.adapters.register_dumper(Texts, _TextsDumper)
psycopg.adapters.register_dumper(Blobs, _BlobsDumper)
psycopg.adapters.register_dumper(Numbers, _NumbersDumper)
psycopg.adapters.register_dumper(Instants, _InstantsDumper)
