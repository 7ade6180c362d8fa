"""What a run that applies webhooks asks of the store besides: which records it has to read, what it has changed, and
since when nobody was told of changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import statement

__all__ = ["Unreported", "changed", "noted", "opened", "parked", "reported", "unreported"]

_FILE = "inbox_run.sql"


@dataclass(frozen=True, slots=True)
class Unreported:
    """Since when webhooks of a source have changed what no asset event has told of, by Postgres's clock; ``number`` is
    raised with each such change. ``looked_at``: when this was read; what is read of the changes then is not older."""

    source: str
    number: int
    since: datetime
    looked_at: datetime


def noted(conn: Connection, schema: str, source: str) -> Mapping[str, int]:
    """Of which objects webhooks have asked for records to be read by their keys, now or before; and how many."""
    return dict(conn.execute(statement(_FILE, "noted", schema), {"source": source}).fetchall())


def changed(
    conn: Connection, schema: str, source: str, objects: Collection[str], since: datetime
) -> Mapping[str, Counter[str]]:
    """What webhooks have changed of these objects since then, by kind; read by key or not, by whichever run."""
    asked = {"source": source, "objects": sorted(objects), "since": since}
    found: dict[str, Counter[str]] = {}
    for object, kind, count in conn.execute(statement(_FILE, "changed", schema), asked):
        found.setdefault(object, Counter())[kind] = count
    return found


def opened(conn: Connection, schema: str, source: str) -> None:
    """Note that something was changed, or may be from now on, of which nobody was told; in the transaction of the
    changes, or in one before it. Whoever dies behind it has not told of them."""
    conn.execute(statement(_FILE, "opened", schema), {"source": source})


def unreported(conn: Connection, schema: str, source: str) -> Unreported | None:
    """Since when there are changes that nobody was told of; None: there are none."""
    row = conn.execute(statement(_FILE, "unreported", schema), {"source": source}).fetchone()
    return None if row is None else Unreported(source, *row)


def reported(conn: Connection, schema: str, told: Unreported, since: datetime | None = None) -> None:
    """Note that all which was changed until then is told of; or, with ``since``, what was changed before that instant.
    Where more has been changed meanwhile nothing is noted: rather tell twice than never."""
    conn.execute(statement(_FILE, "reported", schema), {"source": told.source, "number": told.number, "since": since})


def parked(
    conn: Connection, schema: str, source: str, objects: Iterable[str], endpoints: Iterable[str]
) -> Collection[str]:
    """Of which of these objects any message waits that has come to these addresses; dead letters do not wait."""
    asked = {"source": source, "objects": sorted(objects), "endpoints": sorted(endpoints)}
    return [object for (object,) in conn.execute(statement(_FILE, "parked", schema), asked)]
