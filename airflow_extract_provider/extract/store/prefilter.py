"""A hash map in front of the store: what it knows to be stored already is not looked up.

It may only ever know too little. A run that writes an object's rows takes their entries out before the commit; one that
has lost its map on the way moves the object's epoch in the same transaction, and nothing of the map is believed any
more. A run without a map is noticed by the number of its fence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import xxhash
from psycopg import sql

from airflow_extract_provider.extract.hashes.hash_map import HashMap, HashMapAwayError, Marker
from airflow_extract_provider.extract.source import ApiObject
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Prefilter"]

_log = logging.getLogger(__name__)
_FILE = "prefilter.sql"


class Prefilter:
    """One run's use of a hash map. Where the map cannot be reached the run goes on without it, and only reads more."""

    def __init__(self, schema: str, source: str, object: str, map: HashMap | None) -> None:
        self._schema, self._whose, self._map = schema, {"source": source, "object": object}, map
        self._lost = False
        self._looked: Marker | None = None
        self._claimed: Marker | None = None

    def enter(self, conn: Connection, table: tuple[str, str], object: ApiObject, birth: int, number: int) -> None:
        """Begin a run that holds the object's fence, which has this ``number``; ``birth`` is that of the copy."""
        if self._map is None:
            return
        conn.execute(statement(_FILE, "enter", self._schema), self._whose)
        row = conn.execute(statement(_FILE, "epoch", self._schema), self._whose).fetchone()
        asked = {"table": sql.Identifier(*table).as_string(conn)}
        life = conn.execute(statement(_FILE, "life", self._schema), asked).fetchone()
        assert row is not None
        assert life is not None
        config = xxhash.xxh64_hexdigest(object.model_dump_json(exclude={"events"}).encode())
        # Another config may read other versions of the same bytes, or store them in another form; not one of events.
        identity = ":".join((life[1], str(birth), str(row[0]), config))
        copy = f"{life[0]}/{self._schema}/{self._whose['source']}/{object.name}"
        try:
            self._map.enter(copy, identity, number)
        except HashMapAwayError as exc:
            self._lose(exc)

    def known(self, hashes: Mapping[str, bytes]) -> set[str]:
        """The keys of which the map knows that these hashes are stored. That counts only in a transaction that holds
        the fence."""
        self._looked = self._claimed = None
        if self._map is None or not hashes:
            return set()
        try:
            self._looked, found = self._map.look(list(hashes))
        except HashMapAwayError as exc:
            self._lose(exc)
            return set()
        return {key for (key, hash), known in zip(hashes.items(), found, strict=True) if known == hash}

    def claim(self, conn: Connection, keys: Iterable[str]) -> None:
        """Before the commit of a transaction that has written these rows: what the map knows of them is over."""
        written = list(keys)
        if written and self._map is not None:
            # Where commits are not waited for, a crash may take back what the map has learned.
            conn.execute(statement(_FILE, "durable", self._schema))
            try:
                self._claimed = self._map.claim(written)
            except HashMapAwayError as exc:
                self._lose(exc)
        if written and self._lost:
            conn.execute(statement(_FILE, "leave", self._schema), self._whose)

    def learn(self, read: Mapping[str, bytes], written: Mapping[str, bytes | None]) -> None:
        """After the commit: what was found to be stored, and what is stored now (None: deleted)."""
        told: tuple[tuple[Marker | None, Mapping[str, bytes | None]], ...]
        told = ((self._looked, dict(read)), (self._claimed, written))
        for marker, hashes in told:
            if self._map is not None and marker is not None and hashes:
                try:
                    self._map.learn(marker, hashes)
                except HashMapAwayError as exc:
                    self._lose(exc)

    def _lose(self, exc: HashMapAwayError) -> None:
        _log.warning("%s/%s: goes on without its hash map: %s", self._whose["source"], self._whose["object"], exc)
        self._map, self._lost = None, True
