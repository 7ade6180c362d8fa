"""What tells whether a record has changed: its bytes, then its value without what does not count; what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_extract_provider.extract.errors import BadRecordError
from airflow_extract_provider.extract.page import Record
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.store.target import Target
from airflow_extract_provider.extract.storing import HashName
from tests.store.applier import Applier, a_tombstone, in_thread, wait_until_blocked
from tests.store.test_shape import a_source, raw
from tests.ways import migrate

NAMES = get_args(HashName)
VOLATILE = {"exclude": ["stats.viewed_at", "url"]}
KEEPS = ["all", "none", ["a"]]
Make = Callable[..., Applier]


@pytest.fixture
def hashed(connect: Connect) -> Iterator[Make]:
    """Appliers on one table, each with the object's config as it was edited."""
    made: list[Applier] = []

    def make(hash: Any = "xxh3", **spec: Any) -> Applier:
        source = a_source(hash=hash, **spec)
        migrate(connect, [source])
        made.append(Applier(connect, "plain", f"w{len(made)}", source))
        return made[-1]

    yield make
    for each in made:
        each.conn.close()


def respelled(record: Record, times: int = 1) -> Record:
    """The same record in other bytes."""
    return replace(record, raw=record.raw.replace(b": ", b":" + b" " * (times + 1)))


def row(conn: Connection) -> dict[str, Any]:
    """The one row, with where it lies: whoever locks or writes it leaves a trace there."""
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        found = cursor.execute("select *, xmin::text, xmax::text, ctid::text from shop.plain").fetchone()
    assert found is not None
    return found


def told(found: dict[str, Any]) -> tuple[int, Any, Any]:
    """What moves with a change, and only then."""
    return found["revision"], found["applied_at"], found["deleted_at"]


def events(conn: Connection) -> list[str]:
    """The types of the events so far."""
    return [each for (each,) in conn.execute("select type from extract.outbox order by sequence")]


def rows_of_ledger(conn: Connection) -> int:
    """How many pages have been committed."""
    found = conn.execute("select count(*) from extract.ledger").fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.parametrize("by", NAMES)
@pytest.mark.parametrize("version", [None, "at"])
def test_a_third_spelling_is_not_written(hashed: Make, by: str, version: str | None) -> None:
    """The second one is locked, compared and learned; from then on no spelling leaves a trace but a ledger row."""
    one = hashed(by, version=version)
    record = raw(at="2026-01-01T00:00:00Z", amount=[1, {"b": "é", "a": None}])
    assert one.apply([record]) == {"created": 1}
    first = row(one.conn)
    assert first["canonical_hash"] is None
    assert one.apply([respelled(record)]) == {"unchanged": 1}
    second = row(one.conn)
    assert second["xmin"] != first["xmin"]
    assert told(second) == told(first)
    pages = rows_of_ledger(one.conn)
    for times in range(2, 5):
        assert one.apply([respelled(record, times)]) == {"unchanged": 1}
        assert row(one.conn) == second
    assert rows_of_ledger(one.conn) == pages + 3
    other = Record("k", respelled(record).raw.replace(b"null", b"false"))
    assert one.apply([other]) == {"updated": 1}
    assert row(one.conn)["data"]["amount"] == [1, {"b": "é", "a": False}]


def test_a_changed_record_is_known_at_once(hashed: Make) -> None:
    """A change brings the canonical hash: the next spelling is not written, among records that are."""
    one = hashed()
    one.apply([raw(a=1)])
    one.apply([raw(a=2)])
    before = row(one.conn)
    assert one.apply([raw("other", a=1), respelled(raw(a=2))]) == {"created": 1, "unchanged": 1}
    one.conn.execute("delete from shop.plain where key = 'other'")
    assert row(one.conn) == before


@pytest.mark.parametrize("spec", [{}, {"hash": VOLATILE}, {"keep": "none"}, {"hash": VOLATILE, "keep": ["a"]}])
def test_back_and_forth(hashed: Make, spec: Any) -> None:
    """A, B and A again are three states, in one transaction and in three, whatever their spellings."""
    one = hashed(**spec)
    looks = [raw(a=1, url="x"), raw(a=2, url="y"), respelled(raw(a=1, url="z")), respelled(raw(a=2), 3), raw(a=1)]
    for number, look in enumerate(looks, start=1):
        one.apply([look])
        assert row(one.conn)["revision"] == number
    one.apply_each([(look, "k") for look in looks[1:]])
    assert row(one.conn)["revision"] == 9


def test_locked_in_key_order_all_the_same(hashed: Make, conn: Connection, connect: Connect) -> None:
    """A record with another copy to come is locked with the first, before what comes behind it in key order."""
    one = hashed()
    for value in (1, 2):
        one.apply([raw("a", a=value), raw("b", a=value)])
    with connect() as other:
        other.execute("select from shop.plain where key = 'a' for update")
        pages = [respelled(raw("a", a=2)), raw("b", a=3)], [raw("a", a=4)]
        work = in_thread(lambda: one.apply(*pages))
        wait_until_blocked(conn, one.pid)
        assert conn.execute("select key from shop.plain where key = 'b' for update nowait").fetchone() == ("b",)
        other.rollback()
    assert work.result(10) == {"updated": 2, "unchanged": 1}


def test_volatile_fields(hashed: Make) -> None:
    """A change of nothing else is none: no lock, no write, no event, and `data` stays as it was; it comes with the next
    real change."""
    one = hashed(VOLATILE, events=["changed", "created"])
    assert one.apply([raw(a=1, url="x", stats={"viewed_at": 1, "sold": 1})])["created"] == 1
    before = row(one.conn)
    for look in (
        raw(a=1, url="y", stats={"viewed_at": 2, "sold": 1}),
        raw(a=1, stats={"sold": 1.0}),
        raw(stats={"sold": 1, "viewed_at": {"at": None}}, a=1, url=None),
    ):
        assert one.apply([look]) == {"unchanged": 1}
        assert row(one.conn) == before
    # An empty object is not the same as none, and a list is not looked into.
    others: list[Any] = [{}, None, [{"viewed_at": 1}], [{"viewed_at": 2}]]
    for number, stats in enumerate(others, start=2):
        assert one.apply([raw(a=1, url=f"{number}", stats=stats)])["updated"] == 1
        assert row(one.conn)["revision"] == number
        assert row(one.conn)["data"] == {"id": "k", "a": 1, "url": f"{number}", "stats": stats}
    assert events(one.conn) == ["shop.plain.created", *["shop.plain.changed"] * 4]


def test_the_order_of_what_is_excluded(hashed: Make) -> None:
    """Is no matter, nor that a field is named twice."""
    hashed({"exclude": ["url", "b"]}, keep=["a"]).apply([raw(a=1, url="x")])
    one = hashed({"exclude": ["b", "url", "b"]}, keep=["a"])
    before = row(one.conn)
    for url in ("x", "y"):
        assert one.apply([raw(a=1, url=url)]) == {"unchanged": 1}
        assert row(one.conn) == before


@pytest.mark.parametrize("by", NAMES)
def test_nothing_is_kept_but_hashes(hashed: Make, by: str) -> None:
    """They tell what counts from what does not without the record."""
    one = hashed({"by": by, **VOLATILE}, keep="none", columns={"a": "bigint"})
    one.apply([raw(a=1, b=1, url="x")])
    before = row(one.conn)
    assert one.apply([raw(b=1.0, a=1, url="y")]) == {"unchanged": 1}
    assert row(one.conn) == before
    assert one.apply([raw(a=1, b=2, url="y")]) == {"updated": 1}
    assert row(one.conn)["data"] == {}


def test_deleted_and_back(hashed: Make) -> None:
    """A tombstone counts whatever else it says; a record that comes back is news, though only what does not count is
    another."""
    one = hashed(VOLATILE)
    one.apply([raw(a=1, url="x")])
    assert one.apply([replace(raw(a=1, url="y"), deleted=True)]) == {"deleted": 1}
    gone = row(one.conn)
    assert gone["data"]["url"] == "x"
    for again in (replace(raw(a=1, url="z"), deleted=True), a_tombstone("k")):
        assert one.apply([again]) == {"unchanged": 1}
        assert row(one.conn) == gone
    assert one.apply([raw(a=1, url="y")]) == {"undeleted": 1}
    assert one.apply([], gone=("k",)) == {"deleted": 1}
    assert one.apply([raw(a=1, url="z")]) == {"undeleted": 1}
    assert (row(one.conn)["revision"], row(one.conn)["data"]["url"]) == (5, "z")


def test_a_column_is_added_to_a_known_record(hashed: Make) -> None:
    """Nothing has changed, but the row is not stored as it would be now: an equal value is no reason to leave it."""
    one = hashed()
    one.apply([raw(a=1)])
    one.apply([raw(a=2)])
    before = row(one.conn)
    assert hashed(columns={"a": "bigint"}).apply([respelled(raw(a=2))]) == {"unchanged": 1}
    assert told(row(one.conn)) == told(before)
    assert row(one.conn)["a"] == 2


def test_the_tombstone_is_declared_later(hashed: Make) -> None:
    """The field that marks it has stood there before: now it is news."""
    one = hashed()
    one.apply([raw(gone=False)])
    one.apply([raw(gone=True)])
    assert one.apply([replace(raw(gone=True), deleted=True)]) == {"deleted": 1}


BAD = [
    (b'{"id": "k", "a": 1, "a": 1}', {}),
    (b'{"id": "k", "a": 1, "url": "\\u0000"}', {}),
    (b'{"id": "k", "a": 1, "url": {"b": 1, "b": 2}}', {}),
    (b'{"id": "k", "a": 1.0}', {"columns": {"a": "bigint"}}),
]


@pytest.mark.parametrize(("bad", "spec"), BAD)
def test_what_cannot_be_stored_is_no_respelling(hashed: Make, bad: bytes, spec: Any) -> None:
    """Though its value counts as equal: it stops the run, or is set aside, as ever."""
    one = hashed(VOLATILE, **spec)
    one.apply([raw(a=1)])
    before = row(one.conn)
    with pytest.raises(BadRecordError):
        one.apply([Record("k", bad)])
    assert one.apply([Record("k", bad), raw("l", a=1)], quarantine=True) == {"created": 1, "quarantined": 1}
    one.conn.execute("delete from shop.plain where key = 'l'")
    assert row(one.conn) == before


def test_what_postgres_refused_is_set_aside(hashed: Make) -> None:
    """A number beyond `jsonb`, where it does not count: with the others, when Postgres has refused one of them."""
    one = hashed(VOLATILE)
    one.apply([raw(a=1)])
    odd = [Record(key, b'{"id": "%s", "a": 1, "url": 1e200000}' % key.encode()) for key in ("k", "l")]
    assert one.apply(odd, quarantine=True) == {"quarantined": 2}
    assert row(one.conn)["revision"] == 1


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("exclude", [[], ["url"]])
@pytest.mark.parametrize(("first", "then"), [("xxh3", "md5"), ("md5", "xxh3"), ("sha256", "blake2b")])
def test_another_function(hashed: Make, keep: Any, exclude: list[str], first: str, then: str) -> None:
    """A row is hashed anew when its record is read next, once. That is no change and no event, a tombstone is left
    alone; a change is seen across it, also where only hashes are kept."""
    rules = ["created", "changed", "deleted", "undeleted"] if keep == "all" else ["created", "deleted", "undeleted"]
    spec = {"keep": keep, "events": rules}
    one = hashed({"by": first, "exclude": exclude}, **spec)
    one.apply([raw(a=1, b=1, url="x")])
    before, heard = row(one.conn), events(one.conn)
    two = hashed({"by": then, "exclude": exclude}, **spec)
    for look in (raw(a=1, b=1, url="x"), raw(a=1, b=1, url="x" if not exclude else "y")):
        assert two.apply([look]) == {"unchanged": 1}
    now = row(two.conn)
    assert now["raw_hash"] != before["raw_hash"]
    assert (told(now), now["data"], events(two.conn)) == (told(before), before["data"], heard)
    two.apply([raw(a=1, b=1, url="x")])
    assert row(two.conn) == now
    assert hashed({"by": first, "exclude": exclude}, **spec).apply([raw(a=1, b=2, url="x")])["updated"] == 1
    one = hashed({"by": first, "exclude": exclude}, **spec)
    one.apply([], gone=("k",))
    gone = row(one.conn)
    hashed({"by": then, "exclude": exclude}, **spec).apply([], gone=("k",))
    assert row(one.conn) == gone


def test_tombstones_are_not_hashed_anew(hashed: Make) -> None:
    """With a version too."""
    instant = "2026-01-01T00:00:00Z"
    tombstone = replace(a_tombstone("k", 1), raw=json.dumps({"id": "k", "at": instant}).encode())
    hashed(version="at").apply([tombstone])
    one = hashed("md5", version="at")
    gone = row(one.conn)
    assert one.apply([tombstone]) == {"unchanged": 1}
    assert row(one.conn) == gone


@pytest.mark.parametrize("by", NAMES)
@pytest.mark.parametrize("first", [[], ["url"], ["url", "stats.viewed_at"], ["b"]])
@pytest.mark.parametrize("then", [[], ["url"], ["stats"]])
def test_other_fields_are_excluded(hashed: Make, by: str, first: list[str], then: list[str]) -> None:
    """The same record is no change, in whatever bytes; from now on counts what counts now, and nothing else."""
    record: dict[str, Any] = {"a": 1, "b": 1, "url": "x", "stats": {"viewed_at": 1, "sold": 1}}
    one = hashed({"exclude": first}, events=["changed"])
    one.apply([raw(**record)])
    before = row(one.conn)
    two = hashed({"by": by, "exclude": then}, events=["changed"])
    for look in (raw(**record), respelled(raw(**record)), respelled(raw(**record), 2)):
        assert two.apply([look]) == {"unchanged": 1}
        assert told(row(two.conn)) == told(before)
    changes = 0
    for field, value in (("url", "y"), ("stats", {"viewed_at": 2, "sold": 1}), ("b", 2)):
        three = hashed({"exclude": then}, events=["changed"])
        record[field] = value
        changes += field not in then
        three.apply([raw(**record)])
        assert row(three.conn)["revision"] == 1 + changes
        assert len(events(three.conn)) == changes


def test_a_field_counts_again(hashed: Make) -> None:
    """Taken out of `exclude`: where the copy of it is out of date, that is a change; where it is not, there is none."""
    hashed(VOLATILE).apply([raw(a=1, url="x")])
    assert hashed(VOLATILE).apply([raw(a=1, url="y")]) == {"unchanged": 1}
    assert hashed().apply([raw(a=1, url="x")]) == {"unchanged": 1}
    assert hashed().apply([raw(a=1, url="y")]) == {"updated": 1}
    # Hashed anew, it is stored as it came: these bytes will not be looked at again.
    assert hashed({"by": "md5", **VOLATILE}).apply([raw(a=1, url="z")]) == {"unchanged": 1}
    one = hashed("md5")
    assert one.apply([raw(a=1, url="z")]) == {"unchanged": 1}
    assert (row(one.conn)["revision"], row(one.conn)["data"]["url"]) == (2, "z")


@pytest.mark.parametrize("by", NAMES)
def test_other_fields_are_excluded_where_a_part_is_kept(hashed: Make, by: str) -> None:
    """A record in the bytes that were stored is hashed anew; each later change is seen, also in what is not kept. Of
    one that comes in others what is kept is compared."""
    part = {"keep": ["a", "url"], "events": ["created", "deleted"]}
    hashed(**part).apply([raw("k", a=1, b=1, url="x")])
    one = hashed({"by": by, "exclude": ["url"]}, **part)
    before = row(one.conn)
    assert one.apply([raw("k", a=1, b=1, url="x")]) == {"unchanged": 1}
    assert told(row(one.conn)) == told(before)
    assert one.apply([raw("k", a=1, b=1, url="y")]) == {"unchanged": 1}
    assert one.apply([raw("k", a=1, b=2, url="y")]) == {"updated": 1}
    two = hashed({"by": by, "exclude": ["url", "c"]}, **part)
    assert two.apply([raw("k", a=1, b=2, url="z", c=1)]) == {"unchanged": 1}
    assert two.apply([raw("k", a=1, b=3, url="z", c=1)]) == {"updated": 1}
    three = hashed({"by": by, "exclude": ["url"]}, **part)
    assert three.apply([raw("k", a=2, b=3, url="z", c=1)]) == {"updated": 1}
    assert row(three.conn)["data"] == {"a": 2, "url": "z"}
    assert events(three.conn) == ["shop.plain.created"]


@pytest.mark.parametrize(("field", "value", "counts"), [("a", 2, 1), ("url", "y", 0), ("n", {"w": 2}, 1), ("b", 2, 0)])
@pytest.mark.parametrize("then", ["all", ["a", "b"], ["n", "b"], ["a", "n.w"]])
def test_all_is_changed_at_once(hashed: Make, field: str, value: Any, counts: int, then: Any) -> None:
    """What is kept, what counts and the function: that is no change, and of what was kept all changes are seen."""
    record: dict[str, Any] = {"a": 1, "b": 1, "url": "x", "n": {"w": 1, "v": 1}, "o": {"p": 1}}
    hashed(keep=["a", "url", "n.w", "o.q", "never"]).apply([raw(**record)])
    one = hashed({"by": "blake2b", "exclude": ["url"]}, keep=then)
    before = row(one.conn)
    one.apply([raw(**{**record, field: value})])
    assert row(one.conn)["revision"] == before["revision"] + counts
    assert one.apply([respelled(raw(**{**record, field: value, "url": "z"}))]) == {"unchanged": 1}
    other = hashed({"by": "md5", "exclude": ["b"]}, keep="all")
    assert other.apply([respelled(raw(**{**record, field: value}), 2)]) == {"unchanged": 1}


FOLD = {"table": "org", "where": {"customer": "id"}, "set": {"status": "a"}, "insert": True}


@pytest.mark.parametrize("keep", ["all", ["b"]])
def test_what_people_have_edited(hashed: Make, conn: Connection, keep: Any) -> None:
    """Another function, and other fields that count, are no reason to fold again; only that a change may have passed
    unseen is one."""
    conn.execute("create table org (customer text primary key, status text)")
    hashed(keep=keep, fold=FOLD).apply([raw("c", a="x", url=1)])
    conn.execute("update org set status = 'by hand'")
    for hash in ("md5", "xxh3", {"by": "sha256", "exclude": "url"}, VOLATILE):
        one = hashed(hash, keep=keep, fold=FOLD)
        for look in (raw("c", a="x", url=1), respelled(raw("c", a="x", url=1)), raw("c", a="x", url=1)):
            assert one.apply([look]) == {"unchanged": 1}
            assert conn.execute("select status from org").fetchone() == ("by hand",)
    hashed({"exclude": ["url", "d"]}, keep=keep, fold=FOLD).apply([raw("c", a="y", url=2)])
    assert conn.execute("select status from org").fetchone() == ("y",)


def test_rows_of_earlier_releases(hashed: Make) -> None:
    """The usual hashes are stored as they always were: nothing is hashed anew when this package is."""
    bare, part = hashed(), hashed(keep=["a"])
    record = raw(b=1.0, a=1)
    usual, some = bare.target.shape, part.target.shape
    assert usual.raw_hash(record.raw).hex() == "fc8b870684af3ce85a8d3a0d82989147"
    assert usual.canonical(record.raw).hex() == "fab12b3d641c4671625ecf09dfcabae3"
    assert some.raw_hash(record.raw)[16:].hex() == "65948d8985f3ed34"
    assert some.canonical(record.raw)[16:].hex() == "c9d8e5b814c36166"


CONFIGS = st.builds(
    lambda by, exclude, keep: {"hash": {"by": by, "exclude": exclude}, "keep": keep},
    st.sampled_from(NAMES),
    st.sampled_from([[], ["url"], ["n.v"], ["n"], ["url", "n.v"]]),
    st.sampled_from(KEEPS),
)
FIELDS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"a": st.integers(1, 2)},
    optional={
        "url": st.integers(1, 2),
        "n": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"v": st.integers(1, 2), "w": st.integers(1, 2)})),
    },
)
RECORDS = st.builds(lambda fields, times: respelled(raw(**fields), times), FIELDS, st.integers(0, 1))
LOOKS = st.lists(RECORDS, min_size=1)
EDITS = st.lists(st.tuples(CONFIGS, LOOKS), min_size=1, max_size=4)


def counted(record: Record, exclude: list[str]) -> Any:
    """What counts of a record."""
    value = json.loads(record.raw)
    for path in exclude:
        *above, last = path.split(".")
        held = value.get(above[0]) if above else value
        if isinstance(held, dict):
            held.pop(last, None)
    return value


@given(edits=EDITS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changes_are_what_counts(hashed: Make, edits: list[tuple[dict[str, Any], list[Record]]]) -> None:
    """However often the file is edited: what counts now has changed, or else there is no change; and where the record
    is kept, `data` is that of the bytes that were hashed."""
    one = hashed()
    one.conn.execute("truncate shop.plain")
    one.apply([edits[0][1][0]])
    stored = edits[0][1][0]
    before: tuple[list[str], Any] = ([], "all")
    for config, looks in edits:
        one.target = Target.of(a_source(**config), "plain", "extract")
        exclude, keep = config["hash"]["exclude"], config["keep"]
        for look in looks:
            expected = counted(look, exclude) != counted(stored, exclude)
            # Where other fields counted, and only a part was kept, nobody can know it all.
            known = before[1] == "all" or before[0] == exclude or look.raw == stored.raw
            revision = row(one.conn)["revision"]
            one.apply([look])
            now = row(one.conn)
            changed = now["revision"] - revision
            assert changed == expected if known else changed <= expected
            if now["raw_hash"] == one.target.shape.raw_hash(look.raw):
                stored, before = look, (exclude, keep)
            if before[1] == "all":
                assert now["data"] == json.loads(stored.raw)
