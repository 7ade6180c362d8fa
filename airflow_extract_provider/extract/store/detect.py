"""From changes that were stored, under their rows' locks, to events; what edges remember is kept in Postgres."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from airflow_extract_provider.extract.events.change import Change
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.store.target import Target

__all__ = ["detect"]

_FILE = "detect.sql"


def detect(conn: Connection, target: Target, changes: Sequence[Change]) -> list[Event]:
    """The events of changes, one of each key, in the order of the changes. What edges remember of these keys is read
    and written.

    Raises DetectorError: a rule failed on a change.
    """
    if target.emitter is None or not changes:
        return []
    known = _known(conn, target, changes)
    events: list[Event] = []
    learned: dict[str, Mapping[str, bool]] = {}
    for change in changes:
        found = target.emitter.detect(change, known.get(change.key, {}), silent=target.baseline == "silent")
        events += found.events
        if found.state:
            learned[change.key] = found.state
    _remember(conn, target, learned)
    if target.baseline == "silent":
        return []
    return [replace(event, baseline=True) for event in events] if target.baseline == "marked" else events


def _known(conn: Connection, target: Target, changes: Sequence[Change]) -> Mapping[str, Mapping[str, bool]]:
    """What the edges remember of these keys, by key and rule."""
    assert target.emitter is not None
    if not target.emitter.remembers:
        return {}
    rules, made = zip(*target.emitter.remembers, strict=True)
    asked = {**_whose(target), "rules": list(rules), "made": list(made), "keys": [change.key for change in changes]}
    known: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for key, rule, fired in conn.execute(statement(_FILE, "known", target.schema), asked):
        known[key][rule] = fired
    return known


def _remember(conn: Connection, target: Target, learned: Mapping[str, Mapping[str, bool]]) -> None:
    """Each key's row of the record table is locked, so nobody else writes what is remembered of it."""
    if not learned:
        return
    assert target.emitter is not None
    made = dict(target.emitter.remembers)
    rows = [(rule, key, made[rule], fired) for key, told in learned.items() for rule, fired in told.items()]
    rows.sort(key=lambda row: (row[1], row[0]))
    asked: dict[str, Any] = _whose(target)
    asked |= {"rules": [row[0] for row in rows], "keys": [row[1] for row in rows]}
    asked |= {"made": [row[2] for row in rows], "fired": [row[3] for row in rows]}
    conn.execute(statement(_FILE, "remember", target.schema), asked)


def _whose(target: Target) -> dict[str, Any]:
    return {"source": target.source, "object": target.object}
