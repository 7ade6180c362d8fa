"""Rules of the user's own tables that a webhook's record breaks: its own trouble, whenever and however they tell."""

from __future__ import annotations

import pytest

from airflow_extract_provider.extract.errors import BadRecordError, ExtractError
from airflow_extract_provider.extract.sinks.memory import MemorySink
from tests.webhooks.hooked import Hooked

TRIGGERS = {
    "a code of its own": "raise exception 'no' using errcode = 'UE001';",
    "no row found": "declare x int; begin select 1 into strict x where false; end;",
    "an assertion": "assert false;",
    "a refusal": "raise exception 'no';",
    "silence": "return null;",
}
LATER = "references public.plan deferrable initially deferred"


def odd_and_fine(play: Hooked) -> None:
    """Two webhooks, of which the first one breaks the rule."""
    for key, value in ((3, 66), (4, 7)):
        play.api.update(key, value=value)
        play.put(*play.bodies(play.api.history()[-1:]))


def becomes_a_dead_letter(play: Hooked, sink: MemorySink | None = None) -> None:
    """The other one is applied at the first try."""
    for nth in range(3):
        play.drain(tries=3, sink_of=lambda _: sink)
        assert play.count("shop.things", "revision > 1") == 1
        play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp() where due_at is not null")
        assert play.count("extract.inbox_parked", f"key = '3' and tries = {nth + 1}") == 1
    assert play.count("extract.inbox_parked", "dead") == 1
    assert play.count("extract.inbox", "done_at is null") == 0


@pytest.mark.parametrize("does", TRIGGERS)
def test_what_a_trigger_refuses(play: Hooked, does: str) -> None:
    """By whatever error, or without one."""
    play.hook()
    play.conn.execute(
        f"""create function public.refuse() returns trigger language plpgsql as $$
            begin if (new.data ->> 'value')::int = 66 then {TRIGGERS[does]} end if; return new; end $$"""
    )
    play.conn.execute(
        "create trigger odd before insert or update on shop.things for each row execute function public.refuse()"
    )
    odd_and_fine(play)
    becomes_a_dead_letter(play)


def test_a_new_row_that_a_trigger_swallows(play: Hooked) -> None:
    """A walk that meets it says so, and a webhook of it is a dead letter."""
    play.hook()
    play.conn.execute(
        """create function public.swallow() returns trigger language plpgsql as $$
           begin if (new.data ->> 'value')::int = 66 then return null; end if; return new; end $$"""
    )
    play.conn.execute("create trigger odd before insert on shop.things for each row execute function public.swallow()")
    (key,) = play.api.insert(1, value=66)
    play.put(*play.bodies(play.api.history()[-1:]))
    play.drain(tries=1)
    assert play.count("extract.inbox_parked", f"dead and key = '{key}'") == 1
    with pytest.raises(BadRecordError, match="a trigger or a rule of the record table") as failed:
        play.run()
    assert failed.value.key == str(key)


@pytest.mark.parametrize("published", [False, True])
def test_a_rule_that_is_checked_at_the_end(play: Hooked, published: bool) -> None:
    """As Django makes all foreign keys: the one that breaks it is found."""
    play.hook()
    play.conn.execute("create table public.plan (id text primary key)")
    play.conn.execute("insert into public.plan select x::text from generate_series(0, 60) as x")
    play.conn.execute(f"alter table shop.things add own text generated always as (data ->> 'value') stored {LATER}")
    odd_and_fine(play)
    if published:
        play.source["objects"]["things"]["publish"] = {"kafka": "none"}
    sink = MemorySink() if published else None
    becomes_a_dead_letter(play, sink)
    assert sink is None or {each.key for each in sink.events} == {"4"}
    assert play.count("extract.outbox", "key <> '4'") == 0


def test_a_walk_publishes_nothing_that_is_not_stored(play: Hooked) -> None:
    """Where Postgres would refuse the page only at its end, nobody has been told of its records."""
    play.hook()
    play.conn.execute("create table public.plan (id text primary key)")
    play.conn.execute("insert into public.plan values ('30')")
    play.conn.execute(f"alter table shop.things add own text generated always as (data ->> 'value') stored {LATER}")
    play.source["objects"]["things"]["publish"] = {"kafka": "none"}
    play.api.update(3, value=66)
    sink = MemorySink()
    with pytest.raises(ExtractError, match="things_own_fkey"):
        play.run(sink=sink)
    assert sink.events == []
    play.conn.execute("insert into public.plan values ('66')")
    play.run(sink=sink)
    assert {each.key for each in sink.events} == {"3"}


def test_a_folded_row_whose_rule_is_checked_at_the_end(play: Hooked) -> None:
    """The same of the user's own table."""
    play.conn.execute("create table public.plan (id text primary key)")
    play.conn.execute("insert into public.plan select x::text from generate_series(0, 60) as x")
    play.conn.execute(f"create table public.org (id text primary key, plan text {LATER})")
    play.hook(fold={"table": "public.org", "where": {"id": "id"}, "set": {"plan": "value"}, "insert": True})
    odd_and_fine(play)
    becomes_a_dead_letter(play)
    assert play.conn.execute("select plan from public.org where id in ('3', '4') order by id").fetchall() == [
        ("30",),
        ("7",),
    ]
