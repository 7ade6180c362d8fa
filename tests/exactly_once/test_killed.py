"""kill -9 at each step between "begin" and "cursor saved", for the outbox and for Kafka; in half of the cases the API
changes the record between the kill and the next run."""

from __future__ import annotations

from collections import defaultdict

from airflow_extract_provider.extract.sinks.kafka import KafkaSink
from tests.broker import Broker
from tests.crash.stage import wait_until
from tests.exactly_once.dying import IN_TRANSACTION, STEPS
from tests.exactly_once.oracle import found
from tests.exactly_once.play import Play, check_exact
from tests.sinks.topics import Received, create, received, unused_name


def killed_at_each_step(play: Play) -> None:
    """Each step twice: the API stays, or changes before the next run."""
    for changes_again in (False, True):
        for step in STEPS:
            play.change()
            play.live(step)
            if changes_again:
                play.change_again()
            play.live(None)


def test_outbox(play: Play) -> None:
    """The outbox holds exactly the true events, in order per key; none of the silent backfill's."""
    play.prepare()
    assert found(play.conn) == {}
    killed_at_each_step(play)
    told, true = found(play.conn), play.true_events()
    assert told == true
    assert sum(map(len, true.values())) > 150
    print(f"{2 * len(STEPS)} lives killed, {sum(map(len, told.values()))} events, exactly the true ones")


def test_kafka(play: Play, broker: Broker) -> None:
    """Every true event, in order per key; a repeat has the same id; beyond these only what was published by a life
    that died before its commit."""
    play.kafka, play.topic = broker.config, create(broker, unused_name())
    play.prepare(KafkaSink(play.kafka, play.topic), publish={"kafka": "test", "topic": play.topic})
    assert received(broker, play.topic) == []
    killed_at_each_step(play)
    messages, untrue = check_exact(play, broker)
    by_id: defaultdict[str, list[Received]] = defaultdict(list)
    for message in messages:
        by_id[message.id].append(message)
    for same in by_id.values():
        assert len({(each.key, each.attributes["type"], each.attributes["revision"]) for each in same}) == 1
    repeated = {id for id, same in by_id.items() if len(same) > 1}
    # Edges carry no state: told in vain with one value and then truly with another, they have one id.
    assert repeated | untrue == play.in_vain
    assert repeated
    assert untrue
    print(
        f"{len(messages)} messages, {len(by_id)} ids: every true event, in order per key; {len(repeated)} came again "
        f"with the same id, {len(untrue - repeated)} were published by a life that died before its commit, and are not "
        "true"
    )


def test_stopped_while_it_holds_locks(play: Play) -> None:
    """Wherever a process stops within its transaction, Postgres ends it in time: its locks are free, and another run
    brings exactly the true events."""
    play.prepare()
    for step in IN_TRANSACTION:
        play.change()
        with play.stopped(step, seconds=1.0):
            wait_until(lambda: not _sessions(play), seconds=10)
            play.run(runner=f"behind the one that stopped, {step}", take_over=True)
    assert found(play.conn) == play.true_events()


def _sessions(play: Play) -> list[tuple[str, ...]]:
    """The server's transactions of others: a pooler keeps the session itself."""
    return play.conn.execute(
        "select state, query from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend' and xact_start is not null"
    ).fetchall()
