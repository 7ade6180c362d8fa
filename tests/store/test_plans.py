"""The plans of the statements that run for every page: by index, whatever the size of the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_extract_provider.extract.store.connection import Connection, connecting
from airflow_extract_provider.extract.store.rows import composed
from airflow_extract_provider.extract.store.statements import statement
from tests.databases import Databases
from tests.store.applier import SOURCE
from tests.ways import migrate

TABLE = ("shop", "plain")
COUNT = 20_000
EPOCH = datetime(2026, 3, 1, tzinfo=timezone.utc)
KEYS = [f"k{number:05}" for number in range(0, COUNT, COUNT // 100)]
WALK = {"source": "shop", "object": "plain", "walk": "backfill", "ledger_part": ""}
FENCE = {**WALK, "part": "", "number": 1}
COMING = {"keys": KEYS, "versions": [], "hashes": [b"x"] * len(KEYS), "deleted": [], "also": []}
ROWS = {"ledger": "backfill", "entries": '[{"kind": "page", "cause": "", "position": {}, "records": 1, "counts": {}}]'}
LOCK = {"keys": KEYS, "old": True, "part": False, "counted": b""}
COLUMNS = {**COMING, "data": ["{}"] * len(KEYS), "canonical": [], "typed": []}


@pytest.fixture(scope="module")
def large(databases: Databases) -> Iterator[Connection]:
    """20,000 records, as many ledger rows of five walks, analysed."""
    with databases.with_books() as address, connecting(address)() as conn:
        migrate(connecting(address), [SOURCE])
        conn.autocommit = True
        series = f"from generate_series(0, {COUNT - 1}) as n"
        for text in (
            "insert into shop.plain (key, data, raw_hash, applied_at)"
            f" select 'k' || lpad(n::text, 5, '0'), jsonb_build_object('n', n), 'x', now() {series}",
            "insert into extract.ledger (source, object, walk, kind, position, shown)"
            " select 'shop', 'plain', case n % 5 when 0 then 'backfill' else 'other' || n % 5 end,"
            f" case n when 0 then 'start' else 'page' end, jsonb_build_object('place', n), n % 10 = 0 {series}",
            f"insert into extract.fence (source, object, walk, number) select 'shop', 'o' || n, 'backfill', 1 {series}",
            f"insert into extract.birth select 'shop', 'o' || n, 1, 1 {series}",
            "insert into extract.rule_state (source, object, rule, key, made, fired)"
            # So many that a look at all of them would take long: its rows are small.
            " select 'shop', 'plain', rule, 'k' || lpad(n::text, 5, '0'), 'x', true"
            f" {series}, unnest('{{a,b,c,d,e}}'::text[]) as rule",
            f"insert into extract.refetch (source, object, key, reason) select 'shop', 'plain', 'k' || n, 'x' {series}",
            "insert into extract.quarantine (source, object, number, raw, digest, why, sent_at)"
            f" select 'shop', 'plain', 1, 'x', n::text::bytea, 'x', now() {series}",
            # One object after the other: the end of the primary key holds other walks' rows only.
            "insert into extract.ledger (source, object, walk, kind, cause, position)"
            f" select 'shop', 'later', 'backfill', 'page', 'run' || n % 100, '{{}}' {series}",
            "analyze",
        ):
            conn.execute(text.encode())
        yield conn


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Kind, table and estimated rows of each scan in a plan."""
    if "Relation Name" in plan and "Scan" in plan["Node Type"]:
        yield plan["Node Type"], plan["Relation Name"], plan["Plan Rows"]
    for below in plan.get("Plans", []):
        yield from scans(below)


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        (
            "apply.sql",
            "compare",
            {**COMING, **FENCE, **ROWS, "plain": True, "idle": "60s", "sweep": 1, "own": True, "seen": KEYS},
        ),
        ("apply.sql", "lock", LOCK),
        ("apply.sql", "write", {**COLUMNS, "differs": []}),
        ("detect.sql", "known", {**WALK, "rules": ["a", "b"], "made": ["x", "y"], "keys": KEYS}),
        ("birth.sql", "born", WALK),
        ("apply.sql", "delete", {"keys": KEYS, "versions": [None] * len(KEYS), "hashes": [b"x"] * len(KEYS)}),
        ("refetch.sql", "due", {**WALK, "limit": 100}),
        ("refetch.sql", "lock", {**WALK, "keys": KEYS}),
        ("refetch.sql", "settle", {**WALK, "keys": KEYS, "numbers": [1] * len(KEYS)}),
        ("quarantine.sql", "take", {"ids": list(range(1, 101))}),
        ("quarantine.sql", "delete", {"ids": list(range(1, 101))}),
        ("quarantine.sql", "stored", {"keys": KEYS}),
        ("fence.sql", "hold", FENCE),
        ("fence.sql", "release", FENCE),
        ("ledger.sql", "head", WALK),
        ("ledger.sql", "totals", {**WALK, "cause": "run7"}),
        ("ledger.sql", "row", {**WALK, "sequence": 5}),
        ("ledger.sql", "show", {"sequence": 5}),
        ("coverage.sql", "covers", {**WALK, "start": EPOCH, "until": EPOCH + timedelta(days=1)}),
    ],
)
def test_by_index(large: Connection, file: str, name: str, values: dict[str, Any], generic: bool) -> None:
    """No scan of a whole table, neither for these values nor in the plan that a prepared statement keeps."""
    text = composed(name, "extract", TABLE) if file == "apply.sql" else statement(file, name, "extract", TABLE)
    with large.transaction(force_rollback=True):
        large.execute(f"set local plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
        with large.cursor() as cursor:
            row = cursor.execute(
                "explain (format json) " + text.as_string(), values, binary=True, prepare=True
            ).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    found = list(scans(plan[0]["Plan"]))
    assert found
    assert [scan for scan in found if scan[0] == "Seq Scan"] == []


def test_head_reads_one_row(large: Connection) -> None:
    """Where a walk stands is found by reading one end of its index: not by sorting the walk's rows, nor past the rows
    of all other walks that were written later."""
    text = statement("ledger.sql", "head", "extract").as_string()
    row = large.execute("explain (analyze, format json, timing off) " + text, WALK).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert (plan["Node Type"], plan["Plans"][0]["Node Type"]) == ("Limit", "Index Scan")
    assert plan["Plans"][0]["Actual Rows"] == 1
    assert plan["Plans"][0].get("Rows Removed by Filter", 0) == 0


def test_due_reads_what_it_returns(large: Connection) -> None:
    """The oldest notes are found by reading the beginning of the index, not by sorting all that were noted."""
    text = statement("refetch.sql", "due", "extract").as_string()
    row = large.execute("explain (analyze, format json, timing off) " + text, {**WALK, "limit": 10}).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert (plan["Node Type"], plan["Plans"][0]["Node Type"]) == ("Limit", "Index Scan")
    assert plan["Plans"][0]["Actual Rows"] == 10


def test_locked_in_key_order(large: Connection) -> None:
    """Rows are locked after they have been brought into key order: the lock stands above the sort or the index scan."""
    text = composed("lock", "extract", TABLE).as_string()
    row = large.execute("explain (format json) " + text, LOCK, binary=True).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert plan["Node Type"] == "LockRows"
    assert plan["Plans"][0]["Node Type"] in ("Sort", "Index Scan")
