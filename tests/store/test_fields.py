"""Fields folded into the user's own tables, in the transaction that stores the record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_extract_provider.extract.errors import FoldError
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store import fields
from airflow_extract_provider.extract.store.connection import Connect, Connection
from tests.store.applier import Applier, in_thread, wait_until_blocked
from tests.store.test_shape import a_source, raw
from tests.ways import migrate

FOLD = {"table": "org", "where": {"customer": "customer"}, "set": {"status": "status", "amount": "plan.amount"}}
TABLE = """create table org (id int generated always as identity, customer text primary key, status text,
           amount numeric, note text not null default 'mine')"""
Make = Callable[..., Applier]


@pytest.fixture
def folding(connect: Connect) -> Iterator[Make]:
    """Appliers whose object is folded into the table `org`."""
    made: list[Applier] = []
    with connect() as conn:
        conn.execute(TABLE)
        conn.execute("insert into org (customer, note) values ('c1', 'kept'), ('c2', 'kept')")

    def make(fold: Any = FOLD, **spec: Any) -> Applier:
        source = a_source(fold=fold, **spec)
        migrate(connect, [source])
        made.append(Applier(connect, "plain", f"w{len(made)}", source))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


def orgs(conn: Connection) -> dict[str, tuple[Any, ...]]:
    """Status, amount and note of each row by customer."""
    asked = "select customer, status, amount::text, note from org order by customer"
    return {row[0]: row[1:] for row in conn.execute(asked)}


def test_folds_changes_only(folding: Make) -> None:
    """What the record says stands in the row that it belongs to; the other columns and rows are left alone."""
    one = folding()
    one.apply([raw("a", customer="c1", status="active", plan={"amount": 1.10})])
    assert orgs(one.conn) == {"c1": ("active", "1.1", "kept"), "c2": (None, None, "kept")}
    one.conn.execute("update org set status = 'by hand'")
    one.apply([raw("a", customer="c1", status="active", plan={"amount": 1.10})])
    assert orgs(one.conn)["c1"][0] == "by hand"
    one.apply([raw("a", customer="c1", status="gone", plan=None), raw("b", status="belongs to none")])
    assert orgs(one.conn)["c1"] == ("gone", None, "kept")
    one.apply([], gone=("a",))
    assert orgs(one.conn)["c1"] == ("gone", None, "kept")


def test_the_last_one_stays(folding: Make) -> None:
    """Two records that belong to one row: the one that was applied last."""
    one = folding()
    one.apply([raw("a", customer="c1", status="1")], [raw("b", customer="c1", status="2")])
    assert orgs(one.conn)["c1"][0] == "2"
    one.apply([raw("b", customer="c1", status="3")], [raw("a", customer="c1", status="4")])
    assert orgs(one.conn)["c1"][0] == "4"


def test_a_missing_row(folding: Make) -> None:
    """It is an error that names table, record and columns, and nothing of the page is stored."""
    one = folding()
    with pytest.raises(FoldError, match="org has no row for the record b, matched by customer") as caught:
        one.apply([raw("a", customer="c1", status="x"), raw("b", customer="c9", status="secret")])
    assert caught.value.key == "b"
    assert "secret" not in str(caught.value)
    assert one.rows() == {}
    assert orgs(one.conn)["c1"][0] is None


def test_a_missing_row_is_made(folding: Make) -> None:
    """With `insert: true`; the columns that are not set have their defaults."""
    one = folding({**FOLD, "insert": True})
    one.apply([raw("a", customer="c1", status="x"), raw("b", customer="c9", status="y", plan={"amount": 2})])
    assert orgs(one.conn)["c9"] == ("y", "2", "mine")
    one.apply([raw("b", customer="c9", status="z")])
    assert orgs(one.conn)["c9"] == ("z", None, "mine")


def test_two_make_the_same_row(folding: Make, connect: Connect) -> None:
    """The second waits for the first, is done again, and finds the row there."""
    one, two = folding({**FOLD, "insert": True}), folding({**FOLD, "insert": True})
    with connect() as first, connect() as looker:
        looker.autocommit = True
        first.execute("insert into org (customer, status) values ('c9', 'first')")
        work = in_thread(lambda: two.apply([raw("b", customer="c9", status="second")]))
        wait_until_blocked(looker, two.pid)
        first.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            work.result(10)
    two.apply([raw("b", customer="c9", status="second")])
    assert orgs(one.conn)["c9"][0] == "second"


def test_another_unique_column(folding: Make) -> None:
    """A row that is missing, and cannot be made: named, and not tried for ever."""
    one = folding({**FOLD, "insert": True})
    one.conn.execute("create unique index on org (status)")
    one.apply([raw("a", customer="c1", status="x")])
    with pytest.raises(FoldError, match="takes no new row for the record b: another row has the same value") as caught:
        one.apply([raw("b", customer="c9", status="x")])
    assert caught.value.key == "b"


@pytest.mark.parametrize(
    ("deleted", "left"),
    [
        ("keep", ("active", None, "kept")),
        ("remove", None),
        ({"status": "deleted", "note": "x"}, ("deleted", None, "x")),
    ],
)
def test_a_deleted_record(folding: Make, deleted: Any, left: Any) -> None:
    """The row stays, goes, or is marked; by what was stored last, since a deletion tells no fields."""
    one = folding({**FOLD, "deleted": deleted, "insert": True})
    one.apply([raw("a", customer="c1", status="active")])
    one.apply([], gone=("a", "never seen"))
    assert orgs(one.conn).get("c1") == left
    one.apply([raw("a", customer="c1", status="back")])
    assert orgs(one.conn)["c1"][0] == "back"


def test_a_mapped_table(folding: Make) -> None:
    """A table of the user's, row by row a record, while ours keeps no data: its other columns are kept."""
    mapped = {
        "table": "public.org",
        "where": {"customer": "id"},
        "set": {"status": "status"},
        "insert": True,
        "deleted": "remove",
    }
    one = folding(mapped, keep=["id"])
    one.apply([raw("c1", status="a"), raw("c3", status="b")])
    one.conn.execute("update org set note = 'edited by hand' where customer = 'c3'")
    one.apply([raw("c3", status="c")])
    assert orgs(one.conn) == {
        "c1": ("a", None, "kept"),
        "c2": (None, None, "kept"),
        "c3": ("c", None, "edited by hand"),
    }
    one.apply([], gone=("c1",))
    assert set(orgs(one.conn)) == {"c2", "c3"}


def test_a_mere_respelling(folding: Make) -> None:
    """The same record with its fields in another order is no change: what was edited by hand stays."""
    one = folding()
    one.apply([raw("a", customer="c1", status="x")])
    one.conn.execute("update org set status = 'by hand'")
    one.apply([raw("a", status="x", customer="c1")])
    assert orgs(one.conn)["c1"][0] == "by hand"


def test_columns_with_rules_of_their_own(folding: Make) -> None:
    """Columns that are not folded into may be of any type; names may be as long as Postgres allows."""
    long = ["a" * 60 + "1", "a" * 60 + "2"]
    one = folding({**FOLD, "set": {long[0]: "status", long[1]: "plan.amount"}, "insert": True})
    one.conn.execute("create domain filled as text not null")
    one.conn.execute(f"alter table org add strict filled default 'x', add {long[0]} text, add {long[1]} int")
    one.apply([raw("a", customer="c1", status="x", plan={"amount": 3}), raw("b", customer="c9")])
    one.apply([raw("a", customer="c1", status="y", plan={"amount": 4})])
    found = one.conn.execute(f"select strict, {long[0]}, {long[1]} from org order by customer").fetchall()
    assert found == [("x", "y", 4), ("x", None, None), ("x", None, None)]


def test_a_value_that_is_refused(folding: Make) -> None:
    """By the type of the user's column, or by a rule of its table: named, without the value, nothing stored."""
    one = folding()
    with pytest.raises(FoldError, match="the table org refuses a value") as caught:
        one.apply([raw("a", customer="c1", plan={"amount": "much"})])
    assert "much" not in str(caught.value)
    one.conn.execute("alter table org add constraint small check (amount < 10)")
    with pytest.raises(FoldError, match="refuses a value by small"):
        one.apply([raw("a", customer="c1", plan={"amount": 11})])
    assert one.rows() == {}


CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["c1", "c2", 1, "1"]), st.sampled_from(["x", "y", None])),
    min_size=2,
    max_size=7,
)


@given(changes=CHANGES, deleted=st.sampled_from(["keep", "remove", {"note": "gone"}]), watched=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_at_once_as_one_by_one(folding: Make, connect: Connect, changes: Any, deleted: Any, watched: bool) -> None:
    """Whatever arrives in one transaction, the rows are as after one transaction each; `1` and `"1"` are one row."""
    migrate(connect, [a_source()])
    with connect() as conn:
        outcomes = []
        for at_once in (True, False):
            conn.execute("truncate org, shop.plain, extract.outbox, extract.birth")
            conn.execute("insert into org (customer, note) values ('c1', 'mine'), ('1', 'mine')")
            conn.commit()
            one = folding({**FOLD, "deleted": deleted, "insert": True}, **({"events": ["deleted"]} if watched else {}))
            pages = [how_it_comes(*change) for change in changes]
            for batch in [pages] if at_once else [[page] for page in pages]:
                one.apply_each(batch)
            outcomes.append((orgs(one.conn), one.rows()))
            one.conn.close()
        assert outcomes[0] == outcomes[1]


def how_it_comes(key: str, customer: Any, status: str | None) -> tuple[Record | None, str]:
    """A record, or, without a status, that there is none of this key."""
    return (None if status is None else raw(key, customer=customer, status=status)), key


@pytest.mark.parametrize(
    ("fold", "told"),
    [
        ({**FOLD, "table": "nowhere.org"}, "there is no table nowhere.org"),
        ({**FOLD, "set": {"statuss": "status"}}, "has no column statuss"),
        ({**FOLD, "deleted": {"gone": True}}, "has no column gone"),
    ],
)
def test_what_is_missing_is_named(folding: Make, fold: Any, told: str) -> None:
    """Before anything is read."""
    one = folding()
    with pytest.raises(FoldError, match=told):
        fields.check(one.conn, a_source(fold=fold).object("plain").fold)


def test_no_deadlock(folding: Make, connect: Connect) -> None:
    """Many records in every order, folded into few rows by several at once."""
    appliers = [folding({**FOLD, "insert": True}) for _ in range(4)]
    with connect() as conn:
        conn.execute("insert into org (customer) select 'c' || n from generate_series(3, 20) as n")
    barrier = threading.Barrier(4)

    def work(one: Applier, number: int) -> None:
        barrier.wait()
        for turn in range(15):
            page = [raw(f"{number}-{n}", customer=f"c{(n * 7 + number) % 20 + 1}", status=f"{turn}") for n in range(20)]
            one.apply(page[: 10 + number], page[10 + number :])

    for each in [in_thread(lambda one=one, n=n: work(one, n)) for n, one in enumerate(appliers)]:  # type: ignore[misc]
        each.result(60)
    assert {status for status, *_ in orgs(appliers[0].conn).values()} == {"14"}
