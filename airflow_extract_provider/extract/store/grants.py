"""The least rights of the role that runs: what `airflow extract grants` prints, and the docs show."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import LiteralString

from psycopg import sql

from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.storing import Fold

__all__ = ["RIGHTS", "from_kafka_grants", "grants", "receiver_grants"]

RIGHTS: Mapping[str, Sequence[str]] = {
    "birth": ("select", "insert", "update"),
    "brought": ("select", "insert", "update", "delete"),
    "consumer": ("select", "insert", "update"),
    "coverage": ("select",),
    "covered": ("select",),
    "events": ("select",),
    "fence": ("select", "insert", "update"),
    "gaps": ("select",),
    "hash_map": ("select", "insert", "update"),
    "inbox": ("select", "insert", "update", "delete"),
    "inbox_count": ("select", "insert", "update", "delete"),
    "inbox_parked": ("select", "insert", "update", "delete"),
    "inbox_report": ("select", "insert", "update"),
    "inbox_seen": ("select", "insert", "delete"),
    "ledger": ("select", "insert", "update"),
    "migration": ("select",),
    "oauth_token": ("select", "insert", "update"),
    "outbox": ("select", "insert", "update", "delete"),
    "outbox_head": ("select", "update"),
    "owner": ("select", "insert", "delete"),
    "parked": ("select", "insert", "update", "delete"),
    "quarantine": ("select", "insert", "update"),
    "quota": ("select", "insert", "update"),
    "refetch": ("select", "insert", "update", "delete"),
    "rule_state": ("select", "insert", "update"),
    "sweep": ("select", "insert", "update"),
    "sweep_seen": ("select", "insert", "delete"),
    "webhook_audit": ("select",),
}
"""What walks and consumers do with each table and view of the bookkeeping. Commands that tidy up need more."""

_RECORDS = ("select", "insert", "update")
_NUMBERED = (
    "-- If a column of it is serial, the role also needs usage on that sequence; an identity column needs nothing."
)
_ORDER: tuple[LiteralString, ...] = ("usage", "select", "insert", "update", "delete")


def grants(role: str, sources: Iterable[Source], schema: str = "extract") -> str:
    """The statements that give a role the rights to run these sources, and no other; to be run by the tables' owner.

    No right to create, none to a table of somebody else's but those that the sources fold fields into. Which sequences
    these take numbers from only the database knows: a comment behind the table says what it may need.
    """
    tables: dict[tuple[str, ...], set[str]] = {(schema, name): {*rights} for name, rights in RIGHTS.items()}
    filled: set[tuple[str, ...]] = set()
    for source in sources:
        for name, found in source.objects.items():
            tables.setdefault(source.table(name), set()).update(_RECORDS)
            for fold in found.fold:
                tables.setdefault(fold.name, set()).update(_folded(fold))
                filled |= {fold.name} if fold.insert else set()
    schemas = dict.fromkeys(name[:-1] for name in tables if len(name) > 1)
    lines = [_granted({"usage"}, "schema ", schemas, role)]
    for table, rights in tables.items():
        lines += [_granted(rights, "", [table], role), *([_NUMBERED] if table in filled else [])]
    return "\n".join(lines) + "\n"


def receiver_grants(role: str, schema: str = "extract") -> str:
    """The statements that give a role the rights of a webhook receiver: it can store webhooks and count them, and read
    none. To be run by the tables' owner."""
    text = sql.SQL(
        "grant usage on schema {schema} to {role};\n"
        "grant insert, select (source, endpoint, dedupe) on {schema}.inbox to {role};\n"
        "grant select, insert, update on {schema}.inbox_count to {role};\n"
    )
    return text.format(schema=sql.Identifier(schema), role=sql.Identifier(role)).as_string()


def from_kafka_grants(role: str, schema: str = "extract") -> str:
    """The same for a role that brings webhooks from Kafka: it can also mark one as done, and store why nobody can read
    it."""
    text = sql.SQL(
        "grant usage on schema {schema} to {role};\n"
        "grant insert, select (place, source, endpoint, dedupe), update (done_at) on {schema}.inbox to {role};\n"
        "grant insert on {schema}.inbox_parked to {role};\n"
        "grant select, insert, update on {schema}.inbox_count to {role};\n"
    )
    return text.format(schema=sql.Identifier(schema), role=sql.Identifier(role)).as_string()


def _folded(fold: Fold) -> set[str]:
    """What is done with a table that fields are folded into."""
    return {"select", "update", *(["insert"] if fold.insert else []), *(["delete"] if fold.deleted == "remove" else [])}


def _granted(rights: Collection[str], kind: LiteralString, names: Iterable[tuple[str, ...]], role: str) -> str:
    told = sql.SQL(", ").join(sql.SQL(each) for each in _ORDER if each in rights)
    to = sql.SQL(", ").join(sql.Identifier(*name) for name in names)
    return sql.SQL("grant {} on {}{} to {};").format(told, sql.SQL(kind), to, sql.Identifier(role)).as_string()
