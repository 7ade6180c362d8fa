"""Whether a copy is what the source file describes: else what tells of it waits, and a person has to act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from airflow_extract_provider.extract.errors import (
    ExtractError,
    LeftBehindError,
    PositionMismatchError,
    SchemaMissingError,
)
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.store import inbox_run
from airflow_extract_provider.extract.store.claims import Claims
from airflow_extract_provider.extract.store.connection import Connection
from airflow_extract_provider.extract.store.filled import check_filled
from airflow_extract_provider.extract.store.migrate import check_table

__all__ = ["kept_waiting", "misfit", "unfit"]


def unfit(conn: Connection, schema: str, source: Source) -> dict[str, ExtractError]:
    """The objects that have no table as the source file describes it, and why: the others need not wait for it."""
    found: dict[str, ExtractError] = {}
    for name in source.told_of:
        try:
            check_table(conn, schema, source, name)
        except (SchemaMissingError, LeftBehindError) as exc:
            found[name] = exc.at(object=name)
    return found


def misfit(claims: Claims, source: Source, object: str, table: tuple[str, str] | None) -> ExtractError | None:
    """Why a copy is not what the source file describes, if it is not. ``table``: what the store knows as the object's
    own; the caller's transaction has asked for it."""
    if table not in (None, source.table(object)):
        return LeftBehindError(
            "the object's table was renamed, or its copy is in another one.",
            todo="Let the source file and the store agree: `airflow extract rename`.",
            source=source.source,
            object=object,
        )
    try:
        check_filled(claims.conn, claims.schema, source, object)
    except PositionMismatchError as exc:
        return exc
    return None


def kept_waiting(claims: Claims, source: Source, known: Iterable[str]) -> Mapping[str, ExtractError]:
    """The objects of which messages are parked, due or not, and whose copies do not fit; and why. Without those that
    are ``known`` for it."""
    asked = {*source.told_of} - {*known}
    names = inbox_run.parked(claims.conn, claims.schema, source.source, asked, source.webhooks)
    standing = claims.standing(names) if names else {}
    found = {name: misfit(claims, source, name, table) for name, (begun, table) in standing.items() if begun}
    return {name: why for name, why in found.items() if why is not None}
