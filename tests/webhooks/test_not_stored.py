"""What Postgres does not store is told to nobody to be stored, and is in nobody's way: whatever is set on the table or
the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from airflow_extract_provider.extract.errors import (
    ExtractError,
    InboxFilteredError,
    SchemaMissingError,
    StoreRightsError,
    StoreUnavailableError,
)
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.webhooks.inbox_writer import CanceledError, opened
from airflow_extract_provider.extract.webhooks.keeping import Bounds, Commit, PostgresKeep
from tests.databases import lone_server
from tests.webhooks.kept import QUICK, bodies, delivery, keeping, locked, named, outcomes, run, until

BAD = b"bad"


def on_insert(dsn: str, does: str) -> None:
    """Before each row is stored, this is done."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            f"create function public.meddle() returns trigger language plpgsql as $$ begin {does}; return new; end $$"
        )
        conn.execute(
            "create trigger meddle before insert on extract.inbox for each row execute function public.meddle()"
        )


@pytest.mark.parametrize("rest", [True, False])
def test_what_is_kept_out_without_a_word(dsn: str, rest: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A trigger that passes no row, or only some: nobody whose row it kept out is told that it is stored, be it by a
    dedupe, after which it looks like one that was there before, or by none."""
    on_insert(dsn, "if new.body = 'bad' then return null; end if" if rest else "return null")
    good = True if rest else InboxFilteredError

    async def main() -> None:
        async with keeping(dsn) as keep:
            puts = [named(1), named(2, BAD), named(3), named(1), named(2, BAD)]
            found = await outcomes(*(keep.put(each) for each in puts))
            known = False if rest else InboxFilteredError
            assert found == [good, InboxFilteredError, good, known, InboxFilteredError]
            # Nobody knows which of them it was: they come again, and to apply one twice is harmless.
            found = await outcomes(keep.put(named(4)), keep.put(delivery(BAD)), keep.put(delivery(b"{}")))
            assert found == [good, InboxFilteredError, InboxFilteredError]
            assert await outcomes(keep.put(delivery(b"[]")), keep.put(named(5))) == [good, good]
            assert keep.ready

    run(main())
    assert bodies(dsn) == ([b"{}", b"{}", b"{}", b"{}", b"[]", b"{}"] if rest else [])
    assert caplog.text.count("tells no error: a trigger, a rule or a policy") == 1


def test_what_is_kept_out_is_an_error_for_who_stores_by_itself(dsn: str) -> None:
    """Then nothing is stored, or nothing confirmed: what was read from Kafka is not committed there."""
    on_insert(dsn, "if new.body = 'bad' then return null; end if")
    with psycopg.connect(dsn, autocommit=True) as conn:
        with pytest.raises(InboxFilteredError):
            inbox.put(conn, "extract", [delivery(b"{}"), delivery(BAD)])
        assert bodies(dsn) == []
        with pytest.raises(InboxFilteredError):
            inbox.put(conn, "extract", [named(1), named(2, BAD), named(1)])
        assert bodies(dsn) == []
        assert inbox.put(conn, "extract", [named(1), named(1)]) == [True, False]


@pytest.mark.parametrize("busy", [False, True])
def test_a_table_that_does_not_outlive_a_crash(dsn: str, busy: bool) -> None:
    """It is not begun with; and it is seen, whether nothing comes or very much."""

    async def main() -> None:
        async with keeping(dsn, QUICK) as keep:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("alter table extract.inbox set unlogged")
            if busy:
                begun = time.monotonic()
                while (told := await outcomes(keep.put(delivery(b"{}")))) == [True]:
                    assert time.monotonic() < begun + 30
                assert told == [StoreUnavailableError]
            await until(lambda: not keep.ready)
            with pytest.raises(StoreUnavailableError, match="unlogged: when Postgres crashes"):
                await keep.put(delivery(b"{}"))
        with pytest.raises(SchemaMissingError, match="unlogged"):
            async with keeping(dsn):
                pass
        with psycopg.connect(dsn, autocommit=True) as conn, pytest.raises(SchemaMissingError, match="unlogged"):
            inbox.look(conn, "extract")

    run(main())


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("raise exception 'no'", ExtractError),
        ("raise exception 'no' using errcode = '42501'", StoreRightsError),
        ("raise exception 'no' using errcode = '55000'", StoreUnavailableError),
        ("raise exception 'no' using errcode = '53000'", StoreUnavailableError),
        ("perform pg_sleep(60)", StoreUnavailableError),
    ],
)
def test_one_that_is_refused_is_in_nobodys_way(dsn: str, does: str, told: type[Exception]) -> None:
    """Whatever the name of its refusal: all others that come with it are stored at the first try, and the keep goes on
    as before."""
    on_insert(dsn, f"if new.body = 'bad' then {does}; end if")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set statement_timeout = '100ms'")
    commits: list[Commit] = []

    async def main() -> None:
        async with keeping(dsn, Bounds(batch=300), commits=commits) as keep:
            for _ in range(2):
                puts = [delivery(BAD if n in (17, 230) else b"%d" % n) for n in range(300)]
                assert await outcomes(*(keep.put(each) for each in puts)) == [
                    told if each.body == BAD else True for each in puts
                ]
                assert keep.ready

    run(main())
    assert sorted(bodies(dsn)) == sorted(2 * [b"%d" % n for n in range(300) if n not in (17, 230)])


def test_many_that_are_refused_are_in_nobodys_way(dsn: str) -> None:
    """Of one endpoint all, by a policy: those of the others come through in some tries, over the same connection."""
    on_insert(dsn, "if new.body = 'bad' then raise exception 'no' using errcode = '42501'; end if")

    async def main() -> None:
        async with keeping(dsn) as keep:
            writer = keep._inbox
            left, tries = [named(n, BAD if n % 2 else b"{}") for n in range(1000)], 0
            while any(each.body != BAD for each in left):
                found = await outcomes(*(keep.put(each) for each in left))
                assert {told for each, told in zip(left, found, strict=True) if each.body == BAD} == {StoreRightsError}
                left = [each for each, told in zip(left, found, strict=True) if told is not True]
                tries += 1
                assert tries <= 10
            assert keep._inbox is writer

    run(main())
    assert len(bodies(dsn)) == 500


def test_a_table_that_takes_nothing_any_more(dsn: str) -> None:
    """By an error of Postgres's own, at each statement: it is found by one, it is told that nothing can be stored, and
    who replaces a worker begins all the same."""

    async def main() -> None:
        async with keeping(dsn, QUICK) as keep:
            assert await keep.put(named(1))
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(
                    "create function public.refuse() returns trigger language plpgsql as "
                    "$$ begin perform nextval('public.tried'); raise exception 'no'; end $$"
                )
                conn.execute("create sequence public.tried")
                conn.execute(
                    "create trigger refuse before insert on extract.inbox for each statement execute function refuse()"
                )
                assert set(await outcomes(*(keep.put(named(n)) for n in range(500)))) == {ExtractError}
                assert not keep.ready
                assert conn.execute("select last_value < 10 from public.tried").fetchone() == (True,)
                replacing = PostgresKeep(lambda: opened(dsn), bounds=QUICK)
                await replacing.start(anyway=True)
                assert not replacing.ready
                await replacing.close()
                with pytest.raises(ExtractError):
                    await PostgresKeep(lambda: opened(dsn), bounds=QUICK).start()
                conn.execute("drop trigger refuse on extract.inbox")
            await until(lambda: keep.ready)
            assert await keep.put(named(2))

    run(main())


def test_what_is_stored_is_told_though_the_rest_cannot_be_seen(dsn: str) -> None:
    """Whether the others are there could not be looked for: they come again, and none is stored twice for it."""

    async def main() -> None:
        async with keeping(dsn) as keep:
            assert await keep.put(named(1))
            writer = keep._inbox
            assert writer is not None
            ask = writer._ask

            async def fails(name: str, asked: Mapping[str, Any]) -> list[tuple[Any, ...]]:
                if name == "confirm":
                    raise CanceledError("by somebody")
                return await ask(name, asked)

            writer._ask = fails  # type: ignore[method-assign]
            puts = [delivery(b"%d" % n) for n in range(20)]
            told = await outcomes(*(keep.put(each) for each in [*puts[:10], named(1), *puts[10:]]))
            assert told == [True] * 10 + [StoreUnavailableError] + [True] * 10

    run(main())
    assert sorted(bodies(dsn)) == sorted([b"{}", *(b"%d" % n for n in range(20))])


def test_where_nothing_is_taken_not_each_is_tried(dsn: str) -> None:
    """A right that is missing for all rows, by the table's policy: that is found by a few statements, not by two for
    each delivery."""
    on_insert(dsn, "perform nextval('public.tried'); raise exception 'no' using errcode = '42501'")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create sequence public.tried")

    async def main() -> None:
        async with keeping(dsn) as keep:
            found = await outcomes(*(keep.put(named(n)) for n in range(1000)))
            assert set(found) <= {StoreRightsError, StoreUnavailableError}

    run(main())
    with psycopg.connect(dsn) as conn:
        row = conn.execute("select last_value from public.tried").fetchone()
    assert row is not None
    assert row[0] <= 64


def test_a_close_in_the_midst_of_looking_for_it_tells_all(dsn: str) -> None:
    """Nobody is left waiting, though the server does not answer any more when it is asked what it takes."""
    on_insert(dsn, "raise exception 'no' using errcode = '42501'")

    async def main() -> None:
        async with keeping(dsn, Bounds(deadline=1.0)) as keep:
            assert keep._inbox is not None
            hangs = asyncio.Event()

            async def takes() -> bool:
                hangs.set()
                await asyncio.sleep(600)
                return True

            keep._inbox.takes = takes  # type: ignore[method-assign]
            puts = [asyncio.create_task(keep.put(delivery(b"{}"))) for _ in range(3)]
            await hangs.wait()
        assert await outcomes(*puts) == [StoreUnavailableError] * 3

    run(main())


@pytest.mark.parametrize("whose", ["the server's", "the server's, of transactions", "ours"])
def test_more_than_can_be_stored_in_time_is_stored_in_parts(dsn: str, whose: str) -> None:
    """Of two thousand, in each second a hundred could be stored in one go: those who are told that theirs is not send
    it again, and all come through; and afterwards as many go in one commit as before."""
    on_insert(dsn, "perform pg_sleep(0.005)")
    bounds = Bounds(deadline=0.5 if whose == "ours" else 10.0)
    if whose != "ours":
        with psycopg.connect(dsn, autocommit=True) as conn:
            if "transactions" in whose and conn.info.server_version < 170_000:
                pytest.skip("there is no transaction_timeout before Postgres 17")
            name = "transaction_timeout" if "transactions" in whose else "statement_timeout"
            conn.execute(f"alter database {conn.info.dbname} set {name} = '500ms'")
    commits: list[Commit] = []

    async def main() -> None:
        async with keeping(dsn, bounds, commits) as keep:
            left, tries = [named(n) for n in range(600)], 0
            while left:
                found = await outcomes(*(keep.put(each) for each in left))
                left = [each for each, told in zip(left, found, strict=True) if told is StoreUnavailableError]
                tries += 1
                if left:
                    await until(lambda: keep.ready)
            assert tries <= (1 if whose == "the server's" else 12)
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("drop trigger meddle on extract.inbox")
            for _ in range(12):
                await asyncio.gather(*(keep.put(delivery(b"[]")) for _ in range(1000)))

    run(main())
    with psycopg.connect(dsn) as conn:
        assert conn.execute("select count(*) from extract.inbox where dedupe is not null").fetchone() == (600,)
    assert commits[-1].deliveries >= 500


def test_an_idle_connection_that_was_ended_fails_nobody(dsn: str) -> None:
    """By a timeout for idle sessions, or by somebody: the next one is stored at once, since nothing was on its way."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set idle_session_timeout = '300ms'")

    async def main() -> None:
        async with keeping(dsn) as keep:
            for n in range(3):
                assert await keep.put(named(n))
                await asyncio.sleep(0.8)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"alter database {conn.info.dbname} reset idle_session_timeout")
        async with keeping(dsn) as keep:
            assert await keep.put(named(3))
            await asyncio.sleep(0.3)
            with psycopg.connect(dsn) as conn:
                conn.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid()"
                )
            assert await keep.put(named(4))

    run(main())
    assert len(bodies(dsn)) == 5


def test_a_restart_while_nothing_comes_fails_nobody() -> None:
    """The first webhook after it is stored, though the connection is of before it."""
    with lone_server() as server:
        dsn = server.dsn()
        migrate(connecting(dsn), [])

        async def main() -> None:
            async with keeping(dsn) as keep:
                assert await keep.put(named(1))
                await asyncio.sleep(0.3)
                server.stop()
                server.start()
                assert await keep.put(named(2))

        run(main())
        assert len(bodies(dsn)) == 2


def test_it_is_not_ready_before_something_can_be_stored(dsn: str) -> None:
    """While somebody holds a lock that only lets others read, such as who makes an index: the server answers, and the
    table is there."""

    async def main() -> None:
        async with keeping(dsn, QUICK) as keep:
            with locked(dsn, "share"):
                assert await outcomes(keep.put(named(1))) == [StoreUnavailableError]
                until_then = time.monotonic() + 4
                while time.monotonic() < until_then:
                    assert not keep.ready
                    await asyncio.sleep(0.05)
            await until(lambda: keep.ready)
            assert await keep.put(named(1))

    run(main())
