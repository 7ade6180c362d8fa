"""A run that applies webhooks dies by kill -9 between any two steps, and beside others: nothing is lost, told twice, or
taken in another order."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from collections import defaultdict
from datetime import timedelta
from typing import Any

from airflow_extract_provider.extract.store import dead
from tests.exactly_once.oracle import found
from tests.forked import processes
from tests.webhooks.dying import live
from tests.webhooks.hooked import ENDPOINT, Hooked
from tests.webhooks.test_stream import astray

TYPED: dict[str, Any] = {"columns": {"note": "bigint"}}
FORWARDED = {**ENDPOINT, "id": "id", "forward": "thing.ending"}


def started(play: Hooked, statement: int | None, **how: Any) -> Any:
    """A life that has begun."""
    process = processes.Process(target=live, args=(play.source, play.dsn, statement, how))
    process.start()
    return process


def changed(play: Hooked, chance: random.Random) -> None:
    """Two records change, one of them twice, one is new, one is gone; and their webhooks, one of them twice."""
    before = len(play.api.history())
    one, other, gone = chance.sample(play.api.ids, 3)
    for key in (one, one, other):
        play.api.update(key, value=chance.randrange(100))
    play.api.insert(1, value=chance.randrange(100))
    play.api.delete(gone)
    versions = play.api.history()[before:]
    chance.shuffle(versions)
    ending = json.dumps({"id": f"evt-{before}", "type": "thing.ending", "data": {"id": one}}).encode()
    # The record of the ending is none that can be stored: it is passed on, and nothing else.
    play.put(*play.bodies([*versions, versions[0]]), ending, ending)


def test_between_any_two_steps(play: Hooked) -> None:
    """Before each statement of a run that applies everything there is; another run then goes on."""
    types = {**ENDPOINT["types"], "thing.ending": {"object": "things", "key": "data.id"}}
    play.hook({**FORWARDED, "types": types})
    chance = random.Random(5)
    for statement in itertools.count(1):
        changed(play, chance)
        life = started(play, statement)
        life.join(60)
        play.drain()
        play.refetch()
        play.check_beside_endings()
        if life.exitcode == 0:
            break
        assert life.exitcode == -signal.SIGKILL, statement
    assert statement > 20
    assert play.count("extract.outbox", "type = 'shop.thing.ending'") == statement
    assert play.count("extract.inbox", "done_at is null") == play.count("extract.inbox_parked") == 0


def test_three_at_once_that_die(play: Hooked) -> None:
    """Two runs for events and a timed one, each killed somewhere, again and again, beside an incremental walk."""
    play.hook()
    chance = random.Random(6)
    lives = [started(play, chance.randrange(5, 60), limit=7) for _ in range(3)]
    with play.beside("incremental"):
        for _ in range(25):
            before = len(play.api.history())
            for _ in range(8):
                play.api.update(chance.choice(play.api.ids), value=chance.randrange(100))
            play.put(*play.bodies(astray(play.api.history()[before:], chance)))
            for nth, life in enumerate(lives):
                if life.exitcode is not None:
                    lives[nth] = started(play, chance.randrange(5, 60), limit=7)
    for life in lives:
        life.join(60)
    play.come_to_rest()
    play.check()
    assert play.count("extract.inbox", "done_at is null") == play.count("extract.inbox_parked") == 0


def test_a_poison_message_among_good_ones(play: Hooked) -> None:
    """It is tried again, and ends in the dead letters with its reason, while the others go on; after a fix it is
    replayed, and what came later of its record stays."""
    play.hook(**TYPED)
    for key in range(1, 9):
        play.api.update(key, value=key, note="no number" if key == 4 else 1)
    play.put(*play.bodies(play.api.history()[-8:]))
    how: dict[str, Any] = {"tries": 3, "backoff": timedelta(0)}
    first = play.drain(**how)
    assert first.counts["updated"] == 7
    for _ in range(5):
        play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp() where not dead")
        last = play.drain(**how)
    assert (last.dead, last.waiting) == (1, 0)
    ((key, tries, reason),) = play.conn.execute("select key, tries, reason from extract.inbox_parked where dead")
    assert (key, tries) == ("4", 3)
    assert "does not fit into the column note" in reason
    play.source["objects"]["things"].pop("columns")
    with play.connect() as conn:
        conn.autocommit = True
        assert dead.replay(conn, "extract", "shop") == {"things": 1}
    assert play.drain(**how).counts["updated"] == 1
    play.check()
    assert play.count("extract.inbox_parked") == 0


def test_a_poison_message_keeps_the_order_of_its_key(play: Hooked) -> None:
    """Without versions, what came later of its record waits behind it; that of others does not."""
    types = {
        "thing.ending": {"object": "things", "key": "data.id"},
        "thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"},
    }
    play.hook({**FORWARDED, "forward": ["thing.ending", "thing.deleted"], "types": types})
    play.conn.execute("""
        create function public.refuse() returns trigger language plpgsql as $$ begin
            if new.key = '4' and new.type = 'shop.thing.deleted' then raise exception 'not this one'; end if;
            return new;
        end $$""")
    play.conn.execute("create trigger refuse before insert on extract.outbox for each row execute function refuse()")
    for n, (key, type) in enumerate([(4, "ending"), (4, "deleted"), (4, "ending"), (5, "ending"), (4, "ending")]):
        play.put(json.dumps({"id": f"evt-{n}", "type": f"thing.{type}", "data": {"id": key}}).encode())
    drained = play.drain(limit=2)
    assert drained.counts["forwarded"] == 2
    assert play.count("extract.inbox_parked", "not dead") == 3
    play.conn.execute("drop trigger refuse on extract.outbox")
    play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp() where due_at is not null")
    for _ in range(5):
        play.drain()
    told = defaultdict(list)
    for key, id in play.conn.execute("select key, data ->> 'id' from extract.outbox order by sequence"):
        told[key].append(id)
    assert told == {"4": ["evt-0", "evt-1", "evt-2", "evt-4"], "5": ["evt-3"]}
    assert play.count("extract.inbox_parked") == 0


def test_a_run_that_stands_still_keeps_nothing_for_ever(play: Hooked) -> None:
    """Stopped in the middle of a transaction it holds its claims until Postgres ends it; then others go on."""
    from airflow_extract_provider.extract.settings import Settings

    play.hook()
    play.api.update(3, value=61)
    play.put(*play.bodies(play.api.history()[-1:]))
    with play.connect() as other:
        other.execute("select place from extract.inbox for update")
        assert play.drain().waiting == 1
        other.execute("select set_config('idle_in_transaction_session_timeout', '1s', true)")
        began = time.monotonic()
        while play.drain(settings=Settings(idle_timeout=timedelta(seconds=5))).waiting:
            assert time.monotonic() - began < 30
        other.close()
    play.check()
    assert [type for type, _ in found(play.conn)["3"]].count("value.changed") == 1
