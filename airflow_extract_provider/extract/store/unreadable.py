"""Which records Postgres refuses as `jsonb`, and why: asked after it has refused a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.store.batch import Batch, coming, numbered
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.judge import Coming
from airflow_extract_provider.extract.store.shape import AS_IT_IS
from airflow_extract_provider.extract.store.statements import statement
from airflow_extract_provider.extract.store.storable import REFUSALS

__all__ = ["bad", "first_unreadable", "refused", "unreadable"]

_FILE = "apply.sql"


def bad(record: Coming, why: str) -> BadRecordError:
    """The error for a record that cannot be stored."""
    return BadRecordError(
        f"the record cannot be stored as it is: {why}.",
        todo="Ask the API's vendor to correct the record, or correct `columns`; nothing of this page was stored.",
        page=record.page,
        record=record.number,
        key=record.key,
    )


def first_unreadable(conn: Connection, batches: Sequence[Batch]) -> BadRecordError | None:
    """The first record that Postgres refuses as `jsonb`, and why; None: it takes them all. Asked after a DataError."""
    return next((bad(record, why) for record, why in unreadable(conn, batches)), None)


def refused(conn: Connection, raws: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """Which records, by their places, Postgres refuses as `jsonb`, and why, without their values.

    All are tried at once, then halves of those that are refused: no query per record.
    """
    waiting = [range(len(raws))] if raws else []
    while waiting:
        part = waiting.pop()
        try:
            with conn.transaction():
                conn.execute(statement(_FILE, "try", ""), {"data": [raws[at].decode() for at in part]})
        except REFUSALS as exc:
            if len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            # Behind a colon Postgres quotes the value.
            yield part[0], (exc.diag.message_primary or type(exc).__name__).partition(":")[0]


def unreadable(conn: Connection, batches: Sequence[Batch]) -> Iterator[tuple[Coming, str]]:
    """The records of a page that Postgres refuses, and why."""
    found = [
        coming(batch, record, number, AS_IT_IS.raw_hash) for batch in batches for number, record in numbered(batch)
    ]
    for at, why in refused(conn, [record.raw for record in found]):
        yield found[at], why
