"""What brought each stored change of the objects that webhooks tell of: by this one sees which webhooks never came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from airflow_extract_provider.extract.receiving import Grace
from airflow_extract_provider.extract.store.arrays import Instants, Numbers, Texts, instants
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.statements import sparse, statement

__all__ = ["Brings", "Heard", "News", "note", "tell"]

_FILE = "brought.sql"

Brings: TypeAlias = Literal["webhook", "poll", "sweep", "refetch"]
"""What can bring a change: ``poll`` is a backfill, an incremental walk or a window."""


class News(msgspec.Struct, frozen=True):
    """A stored change: the record's key, and the stored copy's revision after it."""

    key: str
    revision: int
    version: datetime | None
    kind: str


class Heard(msgspec.Struct, frozen=True):
    """What a webhook told of: a record, in a version where it holds one, or that it is gone."""

    key: str
    version: datetime | None
    received_at: datetime
    gone: bool = False


def note(
    conn: Connection, whose: tuple[str, str, str], news: Mapping[Brings, Sequence[News]], grace: Grace | None
) -> None:
    """Note changes by what brought them, in their transaction. ``grace``: how long a webhook of them may take; None:
    nobody asks. ``whose`` as of a target."""
    told = [(by, each) for by, changes in news.items() for each in changes]
    if grace is None or not told:
        return
    schema, source, object = whose
    asked = {
        "source": source,
        "object": object,
        "graces": sparse([grace.of(each.kind) for _, each in told]),
        "keys": Texts([each.key for _, each in told]),
        "revisions": Numbers([each.revision for _, each in told]),
        "versions": instants([each.version for _, each in told]),
        "kinds": Texts([each.kind for _, each in told]),
        "by": Texts([by for by, _ in told]),
    }
    conn.execute(statement(_FILE, "note", schema), asked)


def tell(conn: Connection, whose: tuple[str, str, str], heard: Sequence[Heard]) -> None:
    """Note that webhooks have come of changes that something else had brought before."""
    if not heard:
        return
    schema, source, object = whose
    ordered = sorted(heard, key=lambda each: (each.key, each.received_at))
    asked = {
        "source": source,
        "object": object,
        "keys": Texts([each.key for each in ordered]),
        "versions": instants([each.version for each in ordered]),
        "received": Instants([each.received_at for each in ordered]),
        "gone": sparse([each.gone for each in ordered]),
    }
    conn.execute(statement(_FILE, "tell", schema), asked)
