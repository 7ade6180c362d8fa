"""Hashes in a dict: for a process that syncs again and again, and for tests without Redis.

What other processes have written it is told by the number of the run alone. An entry takes about 150 bytes for a key of
16 characters.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airflow_extract_provider.extract.hashes.hash_map import HashMapAwayError, Looked, Marker
from airflow_extract_provider.extract.hashes.marker import claimed, gives_way, hash_in, known, looked

__all__ = ["MemoryHashMap"]


@dataclass(slots=True, eq=False)
class _Copy:
    """One copy's entries since they began. ``number`` is the last run that has entered."""

    identity: str
    number: int
    entries: dict[str, bytes] = field(default_factory=dict, repr=False)


class MemoryHashMap:
    """Keeps its entries from run to run. Where two runs may be under way in one process, each has a map of its own with
    the same entries: `beside`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}
        self._name = ""
        self._number = 0
        self._copy: _Copy | None = None

    def beside(self) -> MemoryHashMap:
        """A map of the same entries, for another run."""
        other = MemoryHashMap()
        other._lock, other._copies = self._lock, self._copies
        return other

    def enter(self, copy: str, identity: str, number: int) -> bool:
        """Begin a run."""
        again = self._copy is not None and (self._name, self._number) == (copy, number)
        with self._lock:
            found = self._copies.get(copy)
            kept = found is not None and (found.identity, found.number) == (identity, number - (not again))
            if found is None or not kept:
                found = self._copies[copy] = _Copy(identity, number)
            found.number = number
        self._name, self._number, self._copy = copy, number, found
        return kept

    def look(self, keys: Sequence[str]) -> Looked:
        """What is known."""
        marker = looked(self._number)
        with self._lock:
            if (entries := self._entries()) is None:
                return Looked(marker, [None] * len(keys))
            stand = [entries.get(key) for key in keys]
            hashes = [hash_in(value) for value in stand]
            entries.update({key: marker for key, value in zip(keys, stand, strict=True) if gives_way(value, marker)})
        return Looked(marker, hashes)

    def claim(self, keys: Sequence[str]) -> Marker:
        """Take entries out."""
        marker = claimed(self._number)
        with self._lock:
            if (entries := self._entries()) is not None:
                entries.update({key: marker for key in keys if gives_way(entries.get(key), marker)})
        return marker

    def learn(self, marker: Marker, hashes: Mapping[str, bytes | None]) -> None:
        """Put in what is stored."""
        with self._lock:
            if (entries := self._entries()) is not None:
                for key in [key for key in hashes if entries.get(key) == marker]:
                    if (hash := hashes[key]) is None:
                        del entries[key]
                    else:
                        entries[key] = known(hash)

    def clear(self) -> None:
        """Drop all that is kept of the copy."""
        with self._lock:
            self._entries()
            self._copies.pop(self._name, None)

    def close(self) -> None:
        """Hold on to the entries: they are for the next run."""

    def _entries(self) -> dict[str, bytes] | None:
        """The entries, if they are those that this run has entered; None: they were dropped, or begun anew.

        Raises HashMapAwayError: no run has begun.
        """
        if self._copy is None:
            raise HashMapAwayError("no run has entered the hash map")
        return self._copy.entries if self._copies.get(self._name) is self._copy else None
