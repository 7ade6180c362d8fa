"""The keep: what it has told to be stored is, whatever crashes then; and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.types.json import Jsonb

from airflow_extract_provider.extract.errors import ExtractError, SchemaMissingError, StoreUnavailableError
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.grants import receiver_grants
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.extract.webhooks.inbox_writer import AsyncConnection, opened
from airflow_extract_provider.extract.webhooks.keeping import Bounds, Commit, PostgresKeep
from airflow_extract_provider.testing.postgres import EmbeddedPostgres, free_port
from tests.webhooks.kafka_stage import rows
from tests.webhooks.kept import QUICK, bodies, delivery, keeping, locked, named, outcomes, run, until

WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that may be killed; its data are on the disk when it says so."""
    tmp_path.chmod(0o755)
    # Its own writer of the log would make good what is left unwritten, ten seconds later at the latest.
    with EmbeddedPostgres(tmp_path / "server", {"wal_writer_delay": "10s"}) as server:
        yield server


@pytest.fixture
def own_dsn(own_server: EmbeddedPostgres) -> str:
    """The books, on it."""
    dsn = own_server.create_database("books")
    migrate(connecting(dsn), [])
    return dsn


def test_what_comes_at_once_shares_a_commit(dsn: str) -> None:
    """In the order in which it came, each as it is; while one commit is on its way the next ones gather."""
    commits: list[Commit] = []

    async def main() -> None:
        async with keeping(dsn, commits=commits) as keep:
            found = await asyncio.gather(*(keep.put(delivery(b"%d" % n)) for n in range(500)))
        assert found == [True] * 500

    run(main())
    assert bodies(dsn) == [b"%d" % n for n in range(500)]
    assert len(commits) <= 2
    assert sum(each.deliveries for each in commits) == 500
    assert sum(each.bytes for each in commits) == sum(len(b"%d" % n) for n in range(500))


def test_a_commit_is_bounded_by_count_and_bytes(dsn: str) -> None:
    """One delivery goes in whatever its size."""
    commits: list[Commit] = []

    async def main() -> None:
        async with keeping(dsn, Bounds(batch=3, batch_bytes=100), commits) as keep:
            sizes = [1] * 4 + [60, 60, 500, 1]
            await asyncio.gather(*(keep.put(delivery(b"x" * size)) for size in sizes))

    run(main())
    assert [(each.deliveries, each.bytes) for each in commits] == [(3, 3), (2, 61), (1, 60), (1, 500), (1, 1)]


def test_a_repeated_delivery_is_known(dsn: str) -> None:
    """In one commit, in another, by another receiver; another endpoint's is another one."""

    async def main() -> None:
        async with keeping(dsn) as one, keeping(dsn) as other:
            assert await outcomes(one.put(named(1)), one.put(named(1)), one.put(named(2))) == [True, False, True]
            assert await outcomes(other.put(named(1)), other.put(named(3))) == [False, True]
            assert await other.put(named(1, endpoint="carts"))
            assert await outcomes(one.put(delivery(b"{}")), one.put(delivery(b"{}"))) == [True, True]

    run(main())
    assert len(bodies(dsn)) == 6


def test_sources_and_headers_go_with_their_bodies(dsn: str) -> None:
    """Of several sources in one commit, with and without headers."""
    given = [Incoming(f"s{n % 2}", f"e{n % 3}", b"%d" % n, {"n": str(n)} if n % 2 else {}) for n in range(6)]

    async def main() -> None:
        async with keeping(dsn) as keep:
            await asyncio.gather(*(keep.put(each) for each in given))

    run(main())
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("select source, endpoint, body, headers from extract.inbox order by place").fetchall()
    assert rows == [(each.source, each.endpoint, each.body, each.headers) for each in given]


def test_headers_that_jsonb_cannot_hold_are_made_storable(dsn: str) -> None:
    """They do not keep the others from being stored."""
    values = ["a\x00b", "a\ud800b", "\\u0000", "\U0001f600", "\udfff\ud800", "plain"]

    async def main() -> None:
        async with keeping(dsn) as keep:
            await asyncio.gather(*(keep.put(delivery(b"{}", name=each)) for each in values))

    run(main())
    with psycopg.connect(dsn) as conn:
        stored = [name for (name,) in conn.execute("select headers->>'name' from extract.inbox order by place")]
    assert stored == ["a\ufffdb", "a\ufffdb", "\\u0000", "\U0001f600", "\ufffd\ufffd", "plain"]


def test_one_that_is_refused_does_not_fail_the_others(dsn: str) -> None:
    """It alone is told so."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("alter table extract.inbox add check (body not in ('17', '60'))")

    async def main() -> None:
        async with keeping(dsn) as keep:
            found = await outcomes(*(keep.put(delivery(b"%d" % n)) for n in range(100)))
            assert found == [ExtractError if n in (17, 60) else True for n in range(100)]
            assert keep.ready

    run(main())
    assert bodies(dsn) == [b"%d" % n for n in range(100) if n not in (17, 60)]


@pytest.mark.parametrize(("said", "counts"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")])
def test_each_commit_waits_for_the_disk(dsn: str, said: str, counts: str) -> None:
    """Whatever the database says, when it comes to the commit; what is stricter stays."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set synchronous_commit = {said}")
        conn.execute("create table public.seen (setting text)")
        conn.execute(
            "create function public.see() returns trigger language plpgsql as $$ begin "
            "insert into public.seen values (current_setting('synchronous_commit')); return null; end $$"
        )
        conn.execute(
            "create constraint trigger see after insert on extract.inbox deferrable initially deferred "
            "for each row execute function public.see()"
        )

    async def main() -> None:
        async with keeping(dsn) as keep:
            await keep.put(delivery(b"{}"))

    run(main())
    with psycopg.connect(dsn) as conn:
        inbox.put(conn, "extract", [delivery(b"{}")])
        assert conn.execute("select setting from public.seen").fetchall() == [(counts,)] * 2
        assert conn.execute("show synchronous_commit").fetchone() == (said,)


def test_what_was_told_is_there_after_a_crash(own_server: EmbeddedPostgres, own_dsn: str) -> None:
    """The server is killed at once, and commits of this role do not wait for the disk: another's is lost."""
    with psycopg.connect(own_server.dsn(), autocommit=True) as conn:
        conn.execute("create role careless login superuser")
        conn.execute("alter role careless set synchronous_commit = off")
    dsn = own_dsn.replace("postgres@", "careless@")

    async def main() -> None:
        async with keeping(dsn) as keep:
            assert await keep.put(delivery(b"kept"))
            with psycopg.connect(dsn) as conn:
                conn.execute("insert into extract.inbox (source, endpoint, body) values ('shop', 'orders', 'lost')")
                conn.commit()
                own_server.kill()

    run(main())
    own_server.start()
    assert bodies(own_dsn) == [b"kept"]


def test_while_the_store_is_away_everybody_is_told_at_once(own_server: EmbeddedPostgres, own_dsn: str) -> None:
    """Who waits, and who comes later; nothing gathers. When it is back, so is the keep."""
    stored: list[int] = []

    async def main() -> None:
        async with keeping(own_dsn, QUICK) as keep:
            assert await keep.put(delivery(b"before"))
            own_server.kill()
            # The session may live on for a moment, and store what comes, without the server that began it.
            told = await outcomes(*(keep.put(delivery(b"meanwhile")) for _ in range(100)))
            assert {*told} <= {True, StoreUnavailableError}
            stored.append(list(told).count(True))
            await until(lambda: not keep.ready)
            assert set(await outcomes(*(keep.put(delivery(b"meanwhile")) for _ in range(100)))) == {
                StoreUnavailableError
            }
            assert not keep._queue
            own_server.start()  # by this thread: the server ends with the one that has started it
            await until(lambda: keep.ready)
            assert await keep.put(delivery(b"after"))

    run(main())
    first, *between, last = bodies(own_dsn)
    assert (first, last) == (b"before", b"after")
    # Whoever was told that it is not known may be there too.
    assert stored[0] <= len(between) <= 100


def test_a_server_that_does_not_answer_is_given_up(own_server: EmbeddedPostgres, own_dsn: str) -> None:
    """Stopped, not dead: its connections stay open."""
    stopped: list[int] = []

    def stop(conn: AsyncConnection) -> None:
        stopped.append(conn.info.backend_pid)
        os.kill(stopped[0], signal.SIGSTOP)

    async def main() -> None:
        conns: list[AsyncConnection] = []

        async def connect() -> AsyncConnection:
            conns.append(await opened(own_dsn))
            return conns[-1]

        keep = PostgresKeep(connect, bounds=QUICK)
        await keep.start()
        stop(conns[0])
        try:
            assert await outcomes(*(keep.put(delivery(b"{}")) for _ in range(10))) == [StoreUnavailableError] * 10
            await until(lambda: keep.ready)
            assert await keep.put(delivery(b"by another connection"))
        finally:
            os.kill(stopped[0], signal.SIGCONT)
            await keep.close()

    run(main())
    assert b"by another connection" in bodies(own_dsn)


def test_a_statement_that_takes_too_long_is_given_up(dsn: str) -> None:
    """On the server too: none is left there to store it later."""

    async def main() -> None:
        async with keeping(dsn, QUICK) as keep:
            with locked(dsn) as conn:
                assert await outcomes(keep.put(delivery(b"{}"))) == [StoreUnavailableError]
                left = "select count(*) from pg_locks where relation = 'extract.inbox'::regclass and not granted"
                await until(lambda: conn.execute(left).fetchone() == (0,))
            await until(lambda: keep.ready)
            assert await keep.put(delivery(b"later"))

    run(main())
    assert bodies(dsn) == [b"later"]


@pytest.mark.parametrize(
    ("bounds", "size"), [(Bounds(waiting=20), 1), (Bounds(waiting_bytes=20_000), 1_000)], ids=["count", "bytes"]
)
def test_only_so_many_wait(dsn: str, bounds: Bounds, size: int) -> None:
    """Whoever comes beyond them is told at once; those who wait are stored."""

    async def main() -> None:
        async with keeping(dsn, bounds) as keep:
            with locked(dsn):
                first = asyncio.create_task(keep.put(delivery(b"x" * 50_000)))
                await asyncio.sleep(0)
                await until(lambda: not keep._queue)
                # Larger than all that may wait together: one is always taken.
                waiting = [asyncio.create_task(keep.put(delivery(b"x" * size))) for _ in range(20)]
                await asyncio.sleep(0)
                assert (
                    await outcomes(*(keep.put(delivery(b"x" * size)) for _ in range(50)))
                    == [StoreUnavailableError] * 50
                )
                assert not any(each.done() for each in waiting)
            assert await outcomes(first, *waiting) == [True] * 21

    run(main())
    assert len(bodies(dsn)) == 21


def test_who_listens_is_told_now_and_then(dsn: str) -> None:
    """Not at each commit; a last time behind the last one."""

    async def main() -> None:
        async with keeping(dsn, Bounds(announce=0.3)) as keep:
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(f'listen "{inbox.channel("extract")}"')
                begun = time.monotonic()
                for n in range(100):
                    await keep.put(delivery(b"%d" % n))
                lasted = time.monotonic() - begun
                await asyncio.sleep(1.0)
                heard = [each.channel for each in conn.notifies(timeout=0.5)]
        assert set(heard) == {"extract.inbox"}
        assert 2 <= len(heard) <= 2 + lasted / 0.3

    run(main())


def test_stored_is_stored_though_nobody_can_be_told(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """A role that may not notify: that is said once, and no webhook is told that it is not stored."""

    async def main() -> None:
        async with keeping(dsn.replace("postgres@", f"{role}@"), Bounds(announce=0.0)) as keep:
            for n in range(20):
                assert await keep.put(delivery(b"%d" % n))
                await asyncio.sleep(0.01)
            assert keep.ready

    role = f"mute_{free_port()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"create role {role} login")
        try:
            conn.execute(receiver_grants(role).replace("\n", " "))
            conn.execute("revoke execute on function pg_notify(text, text) from public")
            with caplog.at_level("WARNING", logger="airflow_extract_provider"):
                run(main())
        finally:
            conn.execute(f"drop owned by {role}")
            conn.execute(f"drop role {role}")
    assert len(bodies(dsn)) == 20
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "pg_notify" in caplog.text


def test_the_last_ones_are_told_when_it_is_closed(dsn: str) -> None:
    """However long it is until the next time."""

    async def main() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f'listen "{inbox.channel("extract")}"')
            async with keeping(dsn, Bounds(announce=3600)) as keep:
                await keep.put(delivery(b"1"))
                await keep.put(delivery(b"2"))
            assert len([*conn.notifies(timeout=1.0)]) == 2

    run(main())


def test_a_close_stores_what_waits(dsn: str) -> None:
    """And nothing more."""

    async def main() -> None:
        async with keeping(dsn) as keep:
            with locked(dsn):
                puts = [asyncio.create_task(keep.put(delivery(b"%d" % n))) for n in range(50)]
                await asyncio.sleep(0.1)
                closing = asyncio.create_task(keep.close())
                await asyncio.sleep(0.1)
            assert await outcomes(*puts) == [True] * 50
            await closing
            assert await outcomes(keep.put(delivery(b"late"))) == [StoreUnavailableError]
            assert not keep.ready

    run(main())
    assert len(bodies(dsn)) == 50


def test_who_gives_up_waiting_harms_nobody(dsn: str) -> None:
    """He may be stored all the same."""

    async def main() -> None:
        async with keeping(dsn) as keep:
            with locked(dsn):
                puts = [asyncio.create_task(keep.put(delivery(b"%d" % n))) for n in range(10)]
                await asyncio.sleep(0.1)
                for each in puts[::2]:
                    each.cancel()
            assert await outcomes(*puts) == [asyncio.CancelledError, True] * 5
            assert await keep.put(delivery(b"later"))

    run(main())


def test_a_lost_connection_is_found_while_nothing_comes(dsn: str) -> None:
    """The next webhook is not the one that finds it."""

    async def main() -> None:
        conns: list[AsyncConnection] = []

        async def connect() -> AsyncConnection:
            conns.append(await opened(dsn))
            return conns[-1]

        keep = PostgresKeep(connect, bounds=QUICK)
        await keep.start()
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(%s)", [conns[0].info.backend_pid])
        await until(lambda: len(conns) >= 2 and keep.ready)
        assert await keep.put(delivery(b"{}"))
        await keep.close()

    run(main())


def test_a_server_that_only_reads_is_away(dsn: str) -> None:
    """As after a failover, until the connection leads to the one that writes."""
    said = "alter database {} set default_transaction_read_only = {}"
    with psycopg.connect(dsn, autocommit=True, options="-c default_transaction_read_only=off") as conn:
        name = conn.info.dbname

        async def main() -> None:
            conn.execute(said.format(name, "on"))
            async with keeping(dsn, QUICK) as keep:
                assert not keep.ready
                assert await outcomes(keep.put(delivery(b"{}"))) == [StoreUnavailableError]
                conn.execute(said.format(name, "off"))
                await until(lambda: keep.ready)
                assert await keep.put(delivery(b"{}"))

        run(main())


def test_without_an_inbox_it_does_not_start(empty_dsn: str) -> None:
    """Somebody has to migrate first."""
    keep = PostgresKeep(lambda: opened(empty_dsn))
    with pytest.raises(SchemaMissingError):
        run(keep.start())


def test_it_starts_before_the_store(caplog: pytest.LogCaptureFixture) -> None:
    """It says once that the store is away, and nothing of the connection."""
    dsn = f"postgresql://user:hushhush@127.0.0.1:{free_port()}/none"

    async def main() -> None:
        async with keeping(dsn, QUICK) as keep:
            assert not keep.ready
            with pytest.raises(StoreUnavailableError) as caught:
                await keep.put(delivery(b"{}"))
            assert "hushhush" not in str(caught.value)
            await asyncio.sleep(1.0)

    run(main())
    assert len(caplog.records) == 1
    assert "hushhush" not in caplog.text


def test_two_receivers_do_not_end_each_other(dsn: str) -> None:
    """Postgres ends one of two statements that store the same ones in another order: nothing was written, it is done
    again."""

    async def main() -> None:
        async with keeping(dsn) as keep:
            with psycopg.connect(dsn) as other:
                # It looks for the circle last, so the keep's is the one that is ended.
                other.execute("set deadlock_timeout = '1min'")
                inbox.put(other, "extract", [named(1)])
                puts = [asyncio.create_task(keep.put(named(n))) for n in (2, 1)]
                await until(lambda: rows(dsn, WAITING) == [(1,)])
                crossing = asyncio.to_thread(inbox.put, other, "extract", [named(2)])
                assert await crossing == [True]
                other.commit()
            assert await outcomes(*puts) == [False, False]

    run(main())
    with psycopg.connect(dsn) as conn:
        ends = "select deadlocks from pg_stat_database where datname = current_database()"
        row = conn.execute(ends).fetchone()
        assert row is not None
        assert row[0] >= 1


def test_the_statement_takes_nothing_too(dsn: str) -> None:
    """By it a command looks whether tables and rights are there."""
    with psycopg.connect(dsn) as conn:
        assert inbox.put(conn, "extract", []) == []
        conn.execute("select %s", [Jsonb({})])


# --- a standby that has to have it too


@contextlib.contextmanager
def standby_down(dsn: str) -> Iterator[None]:
    """Within: each commit waits for a standby that is not there."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("alter system set synchronous_standby_names = 'standby_that_is_down'")
        conn.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            conn.execute("alter system reset synchronous_standby_names")
            conn.execute("select pg_reload_conf()")


def test_what_no_standby_has_is_not_told_to_be_stored(own_dsn: str) -> None:
    """The server takes the deadline's end for leave to go on without the standby: it answers as if all were well. Nor
    is a second try known by the row that the first one left."""

    async def main() -> None:
        async with keeping(own_dsn, QUICK) as keep:
            assert await keep.put(named(1))
            with standby_down(own_dsn):
                await asyncio.sleep(1.0)
                for _ in range(2):
                    await until(lambda: keep.ready)
                    assert await outcomes(keep.put(named(2))) == [StoreUnavailableError]
            await until(lambda: keep.ready)
            assert await keep.put(named(3))

    run(main())
    with psycopg.connect(own_dsn) as conn:
        assert conn.execute("select count(*) from extract.inbox").fetchone() == (3,)


@pytest.mark.parametrize("heard", ["notice", "error"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
def test_somebody_ends_the_wait_for_a_standby(own_dsn: str, heard: str, again: bool) -> None:
    """Before the deadline: all that tells of it is a warning, which a role may ask not to be sent."""
    cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"

    async def main() -> None:
        keep = PostgresKeep(lambda: opened(own_dsn, options=f"-c client_min_messages={heard}"))
        await keep.start()
        try:
            if again:
                assert await keep.put(named(1))
            async with await opened(own_dsn) as other:
                with standby_down(own_dsn):
                    await asyncio.sleep(1.0)
                    told = asyncio.create_task(keep.put(named(1)))
                    while not (await (await other.execute(cancel)).fetchall()):
                        await asyncio.sleep(0.05)
                    assert await outcomes(told) == [StoreUnavailableError]
        finally:
            await keep.close()

    run(main())
