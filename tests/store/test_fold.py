"""Coverage as the ledger tells it, and folding, which must not change it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from airflow_extract_provider.extract.cursor import AfterKey, Position
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.coverage import Interval, coverage
from airflow_extract_provider.extract.store.fold import fold
from airflow_extract_provider.extract.store.ledger import Entry, Ledger
from tests.store.applier import EPOCH, SOURCE, Applier, a_record, in_thread
from tests.ways import migrate

EXAMPLES = 1000 if os.environ.get("EXTRACT_SOAK") else 80
MONTH = timedelta(days=30)
BACKFILL = Ledger("extract", "shop", "plain", "backfill")
INCREMENTAL = Ledger("extract", "shop", "plain", "incremental")


class Row(NamedTuple):
    """A ledger row of a made-up history. Instants are minutes; ``days`` is how long ago it was committed."""

    walk: str
    kind: str = "page"
    complete: bool = False
    since: int | None = None
    closed: int | None = None
    days: int = 60
    shown: bool = False
    part: str = ""
    records: int = 1


def at(minutes: int | None) -> datetime | None:
    return None if minutes is None else EPOCH + timedelta(minutes=minutes)


def write(conn: Connection, rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows):
        position = Position(AfterKey(f"k{number}"), complete=row.complete, since=at(row.since), closed=at(row.closed))
        conn.execute(
            "insert into extract.ledger"
            " (source, object, walk, part, kind, position, records, counts, committed_at, shown)"
            " values ('shop', 'plain', %s, %s, %s, %s, %s, %s, clock_timestamp() - %s::interval, %s)",
            [
                *(row.walk, row.part, row.kind, Jsonb(position.as_json()), row.records),
                *(Jsonb({"created": row.records}), timedelta(days=row.days), row.shown),
            ],
        )


def expected(rows: Sequence[Row]) -> list[tuple[int | None, int, bool]]:
    """Covered intervals and gaps, the slow and simple way."""
    spans = []
    for walk in {row.walk for row in rows}:
        own = [row for row in rows if row.walk == walk and not row.part]
        begun = max((n for n, row in enumerate(own) if row.kind in ("start", "reset")), default=0)
        spans += [
            (-1 if row.since is None else row.since, row.closed)
            for row in own[begun:]
            if row.kind == "page" and row.complete and row.closed is not None and (row.since or -1) <= row.closed
        ]
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    gaps = [(end, start, True) for (_, end), (start, _) in itertools.pairwise(joined)]
    told = [(None if start < 0 else start, end, False) for start, end in joined]
    return sorted([*told, *gaps], key=lambda each: (each[1], each[2]))


def told(conn: Connection) -> list[Interval]:
    return sorted(coverage(conn, "extract", "shop", "plain"), key=lambda each: (each.end, each.gap))


def standing(conn: Connection) -> list[Any]:
    """What must be the same after folding: where each walk stands and was begun, what its cursor shows, the sums."""
    asked = [
        "select walk, part, max(sequence), max(sequence) filter (where shown) is null,"
        " sum(records), sum(coalesce(pages, (kind = 'page')::int)), sum((counts ->> 'created')::bigint),"
        " min(coalesce(since, committed_at)) from extract.ledger group by 1, 2 order by 1, 2",
        "select sequence from extract.ledger where kind in ('start', 'reset', 'edit') order by 1",
        "select max(sequence) from extract.ledger where shown group by walk, part order by 1",
    ]
    heads = [ledger.head(conn) for ledger in (BACKFILL, INCREMENTAL)]
    return [*[conn.execute(text.encode()).fetchall() for text in asked], heads, told(conn)]


instants = st.none() | st.integers(0, 12)
histories = st.lists(
    st.builds(
        Row,
        walk=st.sampled_from(["backfill", "incremental"]),
        kind=st.sampled_from(["page"] * 12 + ["start", "reset", "edit"]),
        complete=st.booleans(),
        since=instants,
        closed=instants,
        days=st.sampled_from([60, 60, 60, 1]),
        shown=st.sampled_from([False, False, True]),
        part=st.sampled_from(["", "", "", "p"]),
        records=st.integers(0, 2_000_000_000),
    ),
    max_size=25,
)


@pytest.fixture
def books(connect: Connect, conn: Connection) -> Connection:
    """A connection to a migrated database."""
    migrate(connect, [SOURCE])
    return conn


@given(history=histories, later=histories)
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_folding_changes_nothing_that_counts(books: Connection, history: list[Row], later: list[Row]) -> None:
    """Coverage is the union of the completed laps since the last start; folded, folded again, gone on with and folded
    once more, coverage, gaps, sums, and where each walk stands are the same."""
    books.execute("delete from extract.ledger")
    rows: list[Row] = []
    for part in (history, later):
        write(books, part)
        rows += part
        before = standing(books)
        wanted = [(at(start), at(end), gap) for start, end, gap in expected(rows)]
        assert [(each.start, each.end, each.gap) for each in before[-1]] == wanted
        fold(books, "extract", MONTH)
        assert standing(books) == before
        assert fold(books, "extract", MONTH) == 0
        assert standing(books) == before
    foldable = books.execute(
        "select kind in ('page', 'fold') and committed_at < now() - interval '30 days'"
        " and sequence < max(sequence) over all_of and sequence is distinct from"
        " max(sequence) filter (where shown) over all_of, walk, part"
        " from extract.ledger window all_of as (partition by walk, part) order by walk, part, sequence"
    ).fetchall()
    assert not [pair for pair in itertools.pairwise(foldable) if pair[0][0] and pair[0] == pair[1]]


def test_a_year_of_laps_is_one_row(books: Connection) -> None:
    """An incremental walk that never failed: one interval, one row, and the newest."""
    laps = [Row("incremental", "page", True, minute, minute + 1) for minute in range(500)]
    write(books, [Row("incremental", "start"), *laps])
    assert fold(books, "extract", MONTH) == 498
    assert books.execute("select kind, pages, records from extract.ledger order by sequence").fetchall() == [
        ("start", None, 1),
        ("fold", 499, 499),
        ("page", None, 1),
    ]
    assert [(each.start, each.end, each.gap) for each in told(books)] == [(EPOCH, at(500), False)]


def test_young_rows_stay(books: Connection) -> None:
    """Only what is older than asked is folded."""
    write(books, [Row("backfill", days=days) for days in (60, 50, 40, 20, 10, 0)])
    assert fold(books, "extract", timedelta(days=100)) == 0
    assert fold(books, "extract", MONTH) == 2
    assert fold(books, "extract", timedelta(0)) == 2


def test_a_gap_and_its_end(books: Connection) -> None:
    """A hole is told with its ends; the walk that closes it makes it vanish; a reset takes its own walk's laps away."""
    write(books, [Row("backfill", "start"), Row("backfill", "page", True, None, 10)])
    write(books, [Row("incremental", "start"), Row("incremental", "page", True, 20, 30)])
    spans = [(each.start, each.end, each.gap) for each in told(books)]
    assert spans == [(None, at(10), False), (at(10), at(20), True), (at(20), at(30), False)]
    write(books, [Row("incremental", "page", True, 5, 25)])
    assert [(each.start, each.end, each.gap) for each in told(books)] == [(None, at(30), False)]
    write(books, [Row("incremental", "reset")])
    assert [(each.start, each.end, each.gap) for each in told(books)] == [(None, at(10), False)]
    assert coverage(books, "extract", "shop", "things") == []


def test_a_folded_place_can_be_gone_back_to_or_is_refused(books: Connection) -> None:
    """The place where a run of folded rows ended is still known, with its sequence number; those inside are not."""
    write(books, [Row("backfill", "start"), *[Row("backfill") for _ in range(6)]])
    sequences = [row[0] for row in books.execute("select sequence from extract.ledger order by 1")]
    last = BACKFILL.row(books, sequences[5])
    fold(books, "extract", MONTH)
    assert last is not None
    assert BACKFILL.row(books, sequences[5]) == last
    assert BACKFILL.covered(books, last.position) is not None
    assert BACKFILL.row(books, sequences[3]) is None
    assert BACKFILL.covered(books, Position(AfterKey("k3"))) is None


def test_beside_a_running_walk(applier: Callable[..., Applier], conn: Connection) -> None:
    """Neither waits for the other: not folding for a page under way, nor a page for a folding under way."""
    one = applier("plain")
    write(conn, [Row("backfill", shown=True) for _ in range(8)])
    with one.conn.transaction():
        one.apply([a_record("a")])
        assert in_thread(lambda: fold(conn, "extract", MONTH)).result(10) == 6
    with conn.transaction():
        write(conn, [Row("other") for _ in range(4)])
        fold(conn, "extract", timedelta(0))
        assert in_thread(lambda: one.apply([a_record("b")])).result(10) == {"created": 1}
        head = one.ledger.head(one.conn)
        assert head is not None
        in_thread(lambda: one.ledger.show(one.conn, head.sequence)).result(10)
    assert one.ledger.shown(conn) == head.sequence
    assert one.ledger.head(conn) == head


def test_two_foldings(books: Connection, connect: Connect) -> None:
    """The second waits for the first and finds nothing left: nothing is added up twice."""
    write(books, [Row("backfill") for _ in range(10)])
    with connect() as other:
        other.autocommit = True
        with books.transaction():
            assert fold(books, "extract", MONTH) == 8
            second = in_thread(lambda: fold(other, "extract", MONTH))
        assert second.result(10) == 0
    assert books.execute("select sum(records) from extract.ledger").fetchone() == (10,)


def test_while_pages_are_appended(applier: Callable[..., Applier], connect: Connect) -> None:
    """Folding again and again beside a walk that commits and shows its cursor: nothing is lost or counted twice."""
    one = applier("plain")
    with connect() as folder:
        folder.autocommit = True
        done = []

        def walk() -> None:
            for number in range(60):
                one.apply([a_record(f"k{number}")])
                head = one.ledger.head(one.conn)
                assert head is not None
                one.ledger.show(one.conn, head.sequence)
            done.append(True)

        walking = in_thread(walk)
        while not done and not walking.done():
            fold(folder, "extract", timedelta(0))
        walking.result(10)
        fold(folder, "extract", timedelta(0))
        found = folder.execute(
            "select sum(records), sum(coalesce(pages, 1)), sum((counts ->> 'created')::bigint), count(*)"
            " from extract.ledger"
        ).fetchone()
    assert found == (60, 60, 60, 2)


def test_entries_of_a_running_walk_are_page_rows(books: Connection) -> None:
    """What is appended by hand as a folded row without its sums is refused: the books stay readable."""
    entry = Entry("fold", Position(AfterKey()))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="ledger_folded"):
        BACKFILL.append(books, entry)
