"""Webhooks are applied as far as their versions prove them to be newer; anything else is read again by key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from airflow_extract_provider.extract.errors import (
    EventRefusedError,
    LeftBehindError,
    PositionMismatchError,
    SchemaMissingError,
    SinkUnavailableError,
)
from airflow_extract_provider.extract.events.event import Event
from airflow_extract_provider.extract.sinks.memory import MemorySink
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import claims
from airflow_extract_provider.testing.hostile_store import Version
from tests.crash.child import FileCursor
from tests.exactly_once.oracle import found
from tests.exactly_once.play import KIND
from tests.webhooks.hooked import ENDPOINT, Hooked, body


def latest(play: Hooked, n: int = 1) -> list[Version]:
    """The newest versions of the API's records."""
    return play.api.history()[-n:]


def by(play: Hooked) -> list[tuple[str, str]]:
    """What brought which changes, in their order."""
    return play.conn.execute("select by, kind from extract.brought order by at").fetchall()


def test_a_newer_version_is_stored(play: Hooked) -> None:
    """With its event, at once, and nothing is asked of the API; the poll behind it finds nothing new."""
    play.hook()
    play.api.update(3, value=77)
    play.put(*play.bodies(latest(play)))
    asked = play.api.count
    drained = play.drain()
    assert play.api.count == asked
    assert (drained.counts["updated"], drained.counts["applied"], drained.waiting, drained.noted) == (1, 1, 0, ())
    play.check()
    assert play.run().counts["updated"] == 0
    assert by(play) == [("webhook", "updated")]


def test_a_new_record_is_stored(play: Hooked) -> None:
    """And a tombstone is set by a deletion that is proven by reading."""
    play.hook()
    (key,) = play.api.insert(1, value=5)
    play.put(*play.bodies(latest(play)))
    assert play.drain().counts["created"] == 1
    play.check()
    play.api.delete(key)
    play.put(*play.bodies(latest(play)))
    drained = play.drain()
    assert (drained.counts["refetch"], drained.noted) == (1, ("things",))
    play.refetch()
    play.check()
    assert by(play) == [("webhook", "created"), ("webhook", "deleted")]


def test_late_twice_and_in_another_order(play: Hooked) -> None:
    """Older versions are passed over, and a record that is deleted is not brought back by an old webhook."""
    play.hook()
    for value in (61, 5, 99):
        play.api.update(3, value=value)
    first, second, third = latest(play, 3)
    play.put(*play.bodies([third]))
    play.drain()
    play.put(*play.bodies([first, second, third, third]))
    drained = play.drain()
    assert drained.counts["stale"] == 2
    assert drained.counts["updated"] == 0
    play.check()
    play.api.delete(3)
    play.put(*play.bodies(latest(play)))
    play.drain()
    play.refetch()
    play.put(*play.bodies([second]))
    assert play.drain().counts["refetch"] == 1
    play.refetch()
    play.check()
    assert play.count("shop.things", "key = '3' and deleted_at is not null") == 1


def test_several_versions_in_one_batch_are_several_changes(play: Hooked) -> None:
    """In the order of their versions, whatever that of the webhooks."""
    play.hook()
    for value in (61, 5, 99):
        play.api.update(3, value=value)
    first, second, third = latest(play, 3)
    play.put(*play.bodies([second, third, first]))
    assert play.drain().counts["updated"] == 3
    play.check()
    assert [value for kind, value in found(play.conn)["3"] if kind == "value.changed"] == [61, 5, 99]


def test_an_equal_version_with_another_value_is_read_again(play: Hooked) -> None:
    """Which of the two is newer, nobody can tell from here."""
    play.hook()
    play.api.update(3, touch=False, value=88)
    play.put(*play.bodies(latest(play)))
    assert play.drain().counts["refetch"] == 1
    play.refetch()
    play.check()


def test_another_spelling_is_no_news(play: Hooked) -> None:
    """The same record with other spaces, of the same version: nothing is asked or written."""
    play.hook()
    record = play.api.live()["3"]
    spelled = json.dumps({"type": "thing.updated", "data": dict(reversed(record.items()))}, indent=2).encode()
    before = play.conn.execute("select xmin, ctid, revision from shop.things where key = '3'").fetchall()
    play.put(spelled)
    drained = play.drain()
    assert drained.counts.get("refetch", 0) == 0
    assert play.conn.execute("select revision from shop.things where key = '3'").fetchall()[0][0] == before[0][2]
    play.check()


def test_without_versions_nothing_of_a_payload_is_stored(play: Hooked) -> None:
    """The record is read by its key, whatever the webhook said."""
    play.hook(version=None, since={**KIND.spec["since"], "field": "updated_at"})
    lie = {"type": "thing.updated", "data": {**play.api.live()["3"], "value": 1_000}}
    play.api.update(3, value=44)
    play.put(json.dumps(lie).encode())
    drained = play.drain()
    assert (drained.counts["refetch"], drained.counts.get("updated", 0)) == (1, 0)
    play.refetch()
    play.check()


def test_a_thin_webhook(play: Hooked) -> None:
    """Only an id: the record is read."""
    thin = {**ENDPOINT, "types": {"thing.*": {"object": "things", "key": "data.id"}}}
    play.hook(thin)
    play.api.update(3, value=55)
    play.put(*play.bodies(latest(play)))
    play.drain()
    play.refetch()
    play.check()
    assert by(play) == [("webhook", "updated")]


def test_a_deletion_that_nobody_can_ask_about(play: Hooked) -> None:
    """Where the API does not read by key the webhook is believed, but not an old one about a newer record."""
    told = {"thing.deleted": {"object": "things", "record": "data", "change": "deleted"}}
    play.hook({**ENDPOINT, "types": told}, by_key=None)
    gone, stays = latest(play, 2)
    play.api.delete(gone.id)
    play.api.update(stays.id, value=1)
    play.run()
    play.put(*(json.dumps({"type": "thing.deleted", "data": play.api.shown(each)}).encode() for each in (gone, stays)))
    drained = play.drain()
    assert (drained.counts["deleted"], drained.counts["stale"]) == (1, 1)
    play.check()


def test_before_the_first_backfill(play: Hooked) -> None:
    """It will read the record itself."""
    play.hook()
    spec = {**play.source, "source": "other"}
    play.store.migrate([parse_source(spec, "test")])
    play.source = spec
    with play.connect() as conn:
        conn.execute(
            "insert into extract.inbox (source, endpoint, body) values ('other', 'main', %s)",
            [body(play, latest(play)[0])],
        )
    assert play.drain().counts["before"] == 1
    assert play.count("other.things") == 0


def test_a_list_of_messages(play: Hooked) -> None:
    """Each is one of its own: an unreadable one does not keep the others from being applied."""
    listed = {**ENDPOINT, "messages": "@", "type": "kind", "types": {"c": {"object": "things", "key": "id"}}}
    play.hook(listed)
    play.api.update(3, value=1)
    play.api.update(4, value=2)
    play.put(json.dumps([{"kind": "c", "id": 3}, {"kind": "c"}, 5, {"kind": "c", "id": 4}]).encode())
    drained = play.drain()
    assert (drained.counts["messages"], drained.counts["applied"], drained.dead) == (4, 2, 2)
    play.refetch()
    play.check()
    told = play.conn.execute("select nth, reason from extract.inbox_parked where dead order by nth").fetchall()
    assert told == [(2, "the key `id` is missing or null"), (3, "the message is no object")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff{}", "the body is no UTF-8"),
        (b"<html>", "the body is no JSON"),
        (b"", "the body is no JSON"),
        (b'{"type": "thing.updated"}', "there is no record at `data`"),
        (b'{"type": "thing.updated", "data": {"id": 3, "updated_at": "soon"}}', "the version `updated_at` is no RFC"),
        (b'{"type": ["x"], "data": {}}', "the type or id is neither a text nor a number"),
        (b'{"type": "thing.deleted", "data": []}', "one of data.id lies below something"),
        (b"[" * 200_000, "the body is"),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter(play: Hooked, text: bytes, why: str) -> None:
    """With its reason, at once; the body stays in the inbox."""
    play.hook()
    play.api.update(3, value=61)
    play.put(text, *play.bodies(latest(play)))
    drained = play.drain()
    assert (drained.dead, drained.counts["updated"]) == (1, 1)
    ((told,),) = play.conn.execute("select reason from extract.inbox_parked").fetchall()
    assert told.startswith(why)
    assert play.count("extract.inbox", "body is not null") == 2


def test_an_id_that_comes_again_is_passed_over(play: Hooked) -> None:
    """And a type that is passed on becomes one event."""
    play.hook({**ENDPOINT, "id": "id", "forward": "thing.ending"})
    ending: dict[str, Any] = {"id": "evt_1", "type": "thing.ending", "data": play.api.live()["3"]}
    play.put(*[json.dumps(ending).encode()] * 2, json.dumps({**ending, "id": "evt_2", "type": "thing.odd"}).encode())
    drained = play.drain()
    assert (drained.counts["repeated"], drained.counts["forwarded"]) == (1, 1)
    play.put(json.dumps(ending).encode())
    assert play.drain().counts["repeated"] == 1
    rows = play.conn.execute("select type, key, object, data from extract.outbox").fetchall()
    assert rows == [("shop.thing.ending", "3", "things", ending)]


def test_a_type_that_the_file_learns_later(play: Hooked) -> None:
    """Sent again, under the same id, it is not taken for one that was applied."""
    paid = b'{"id": "evt_1", "type": "invoice.paid", "data": {"id": 3}}'
    play.hook({**ENDPOINT, "id": "id"})
    for expected in ({"unknown": 1}, {"forwarded": 1}, {"repeated": 1}):
        play.put(paid)
        assert expected.items() <= play.drain().counts.items()
        play.source["webhooks"]["main"] = {**ENDPOINT, "id": "id", "forward": ["invoice.*"]}
    assert play.count("extract.outbox", "type like '%invoice.paid'") == 1


def test_unknown_types_are_counted_and_named(play: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """Unless the config says that they tell nothing."""
    play.hook({**ENDPOINT, "ignore": "ping"})
    play.put(b'{"type": "other.updated"}', b'{"type": "ping"}')
    drained = play.drain()
    assert (drained.counts["unknown"], drained.counts["nothing"]) == (1, 1)
    assert "other.updated" in caplog.text
    told: dict[str, int] = dict(play.conn.execute("select kind, count from extract.inbox_count").fetchall())
    assert told == {"messages": 2, "unknown": 1}


def test_events_go_to_the_sink_of_their_object(play: Hooked) -> None:
    """Published before the commit: where the sink is away, nothing is stored, and the webhook waits."""
    play.hook()
    play.source["objects"]["things"]["publish"] = {"kafka": "none"}
    sink = MemorySink()
    play.api.update(3, value=61)
    play.put(*play.bodies(latest(play)))
    sink.failures.append(SinkUnavailableError("it is away.", todo="Wait."))
    with pytest.raises(SinkUnavailableError, match="it is away"):
        play.drain(sink_of=lambda _: sink)
    assert play.count("extract.inbox", "done_at is null") == 1
    assert play.count("shop.things", "revision > 1") == 0
    play.drain(sink_of=lambda _: sink)
    assert {each.key for each in sink.events} == {"3"}
    assert play.count("extract.outbox") == 0


def test_an_event_that_the_sink_refuses_is_its_message_own(play: Hooked) -> None:
    """The others are published, and stored."""
    play.hook()
    play.source["objects"]["things"]["publish"] = {"kafka": "none"}
    for key in (3, 4, 5):
        play.api.update(key, value=60 + key)
    play.put(*play.bodies(latest(play, 3)))

    class Picky(MemorySink):
        def publish(self, events: Sequence[Event]) -> None:
            if any(each.key == "4" for each in events):
                raise EventRefusedError("it is too large.", key="4")
            super().publish(events)

    sink = Picky()
    drained = play.drain(sink_of=lambda _: sink)
    assert (drained.counts["updated"], drained.counts["parked"], drained.waiting) == (2, 1, 1)
    assert {each.key for each in sink.events} == {"3", "5"}


def test_a_renamed_table_stops_it(play: Hooked) -> None:
    """Nothing is written under a name that the source file says no more."""
    play.hook()
    play.api.update(3, value=61)
    play.put(*play.bodies(latest(play)))
    play.source["objects"]["things"]["table"] = "others"
    with pytest.raises((LeftBehindError, SchemaMissingError)):
        play.drain()
    assert play.count("extract.inbox_parked", "not dead") == 1
    play.source["objects"]["things"]["table"] = "things"
    play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp()")
    assert play.drain().counts["updated"] == 1
    play.check()


@pytest.mark.parametrize("damage", ["missing", "without a column", "none of ours"])
def test_a_table_that_does_not_fit_stops_its_own_object(play: Hooked, damage: str) -> None:
    """What tells of others is applied, and what tells of it once the table is there: none is passed over as if the
    object had never been begun."""
    play.hook()
    play.source["objects"]["parts"] = {**play.source["objects"]["things"], "table": "parts"}
    types = {"part.*": {"object": "parts", "record": "data"}, **ENDPOINT["types"]}
    play.source["webhooks"]["main"] = {**ENDPOINT, "types": types}
    if damage != "missing":
        shape = "(like shop.things including all)" if damage == "without a column" else "(key text)"
        play.conn.execute(f"create table shop.parts {shape}")
    if damage == "without a column":
        play.conn.execute("alter table shop.parts drop column data")
    play.api.update(3, value=61)
    (sent,) = play.bodies(latest(play))
    play.put(sent, sent.replace(b"thing.", b"part."))
    with pytest.raises(SchemaMissingError) as failed:
        play.drain()
    assert failed.value.object == "parts"
    assert play.count("shop.things", "revision > 1") == 1
    assert play.conn.execute("select object, dead from extract.inbox_parked").fetchall() == [("parts", False)]
    if damage != "missing":
        play.conn.execute("drop table shop.parts")
    play.store.migrate([parse_source(play.source, "test")])
    cursor = FileCursor(play.cursor.with_suffix(".parts"), "one")
    play.run("backfill", name="parts", runner="other", cursor=cursor)
    play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp()")
    assert play.drain().waiting == 0
    assert play.count("shop.parts") == play.count("shop.things")


def test_bodies_are_fetched_as_far_as_they_fit(play: Hooked) -> None:
    """However many wait; one at least."""
    play.hook()
    for key in range(1, 9):
        play.api.update(key, value=key, note="x" * 5_000)
    play.put(*play.bodies(latest(play, 8)))
    drained = play.drain(most_bytes=1)
    assert (drained.deliveries, drained.counts["updated"]) == (8, 8)
    play.check()


def test_a_deletion_is_proof_only_with_a_newer_version(play: Hooked) -> None:
    """An equal one may be older than what is stored: the API is asked, and says that the record is there."""
    told = {"thing.deleted": {"object": "things", "record": "data", "change": "deleted"}}
    play.hook({**ENDPOINT, "types": told})
    stays, gone = latest(play, 2)
    later = {**play.api.shown(gone), "updated_at": "2026-03-02T00:00:00Z"}
    play.api.delete(gone.id)
    play.put(*(json.dumps({"type": "thing.deleted", "data": each}).encode() for each in (play.api.shown(stays), later)))
    drained = play.drain()
    assert (drained.counts["refetch"], drained.counts["deleted"]) == (1, 1)
    play.check()
    play.refetch()
    play.check()


def test_many_versions_of_one_record_go_into_several_transactions(play: Hooked) -> None:
    """In their order; what does not fit into one stays claimed by nobody."""
    play.hook()
    for value in range(50):
        play.api.update(3, value=value)
    play.put(*play.bodies(latest(play, 50)))
    drained = play.drain()
    assert (drained.deliveries, drained.counts["updated"]) == (50, 50)
    play.check()
    assert [value for kind, value in found(play.conn)["3"] if kind == "value.changed"] == [*range(50)]


def test_old_webhooks_are_deleted_once_they_are_applied(play: Hooked) -> None:
    """Not those that wait, or have a dead message; nor what is not old enough."""
    play.hook()
    play.api.update(3, value=1)
    play.put(*play.bodies(latest(play)), b"no JSON")
    play.drain()
    play.conn.execute("update extract.inbox set done_at = done_at - interval '31 days'")
    play.api.update(3, value=2)
    play.put(*play.bodies(latest(play)))
    play.drain()
    assert play.count("extract.inbox") == 2
    assert play.count("extract.inbox", "body = 'no JSON'") == 1
    assert play.count("extract.brought") == 2


def test_an_emptied_table_is_not_begun_by_a_webhook(play: Hooked) -> None:
    """One row in it would make the walks believe that the copy is what it was. What tells of others is applied; once
    the backfill has started over, so is what waited."""
    play.hook()
    play.conn.execute("truncate shop.things")
    play.api.update(3, value=61)
    play.put(*play.bodies(latest(play)))
    with pytest.raises(PositionMismatchError, match="is empty, but the ledger says"):
        play.drain()
    assert (play.count("shop.things"), play.count("extract.inbox_parked", "not dead")) == (0, 1)
    play.run("backfill", runner="anew", reset=True)
    play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp()")
    assert play.drain().waiting == 0
    alive: dict[str, Any] = dict(play.conn.execute("select key, data from shop.things").fetchall())
    assert alive == play.api.live()
    assert found(play.conn) == {}


@pytest.mark.parametrize("over", [{"key": ["id", "value"]}, {"params": {"other": "1"}}], ids=["key", "request"])
def test_a_copy_of_another_config_is_left_alone(play: Hooked, over: dict[str, Any]) -> None:
    """As the walks leave it, until somebody has decided."""
    play.hook()
    play.source["objects"]["things"] |= over
    play.api.update(3, value=61)
    play.put(*play.bodies(latest(play)))
    with pytest.raises(PositionMismatchError):
        play.drain()
    assert play.count("shop.things", "revision > 1") == 0
    assert play.count("shop.things") == 14


def test_what_fails_is_not_passed_on(play: Hooked) -> None:
    """Where a type is both applied and passed on: with the record, or not at all; and the others go on."""
    play.hook({**ENDPOINT, "forward": "thing.updated"})
    play.conn.execute("alter table shop.things add constraint odd check ((data ->> 'value')::int <> 66)")
    for key, value in ((3, 66), (3, 1), (4, 2)):
        play.api.update(key, value=value)
    play.put(*play.bodies(latest(play, 3)))
    drained = play.drain()
    assert (drained.counts["forwarded"], drained.counts["parked"], drained.waiting) == (1, 2, 2)
    parked = play.conn.execute("select tries, reason like '%CheckViolation%' from extract.inbox_parked order by place")
    assert parked.fetchall() == [(1, True), (0, False)]  # the one that failed, with why, and the one behind it
    play.conn.execute("alter table shop.things drop constraint odd")
    play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp() where due_at is not null")
    assert play.drain().counts["forwarded"] == 2
    asked = "select key, data -> 'data' ->> 'value' from extract.outbox where revision = 0 order by key, sequence"
    assert play.conn.execute(asked).fetchall() == [("3", "66"), ("3", "1"), ("4", "2")]


def test_records_that_cannot_be_folded_keep_no_others_waiting(play: Hooked) -> None:
    """However many of them there are."""
    play.conn.execute("create table public.org (id text primary key, value text check (value <> '66'))")
    fold = {"table": "public.org", "where": {"id": "id"}, "set": {"value": "value"}, "insert": True}
    play.hook(fold=fold)
    for key, value in ((3, 66), (4, 66)):
        play.api.update(key, value=value)
    play.put(*play.bodies(latest(play, 2)))
    for tries in range(1, 4):
        play.drain(tries=3)
        assert play.count("extract.inbox_parked", f"tries = {tries}") == 2
        play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp() where due_at is not null")
    assert play.count("extract.inbox_parked", "dead") == 2
    play.api.update(5, value=7)
    play.put(*play.bodies(latest(play)))
    assert play.drain().counts["updated"] == 1


def test_an_old_deletion_that_nobody_can_ask_about(play: Hooked) -> None:
    """Came before the record was stored as it is now: believed only if its version says so."""
    told = {"thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"}}
    play.hook({**ENDPOINT, "types": told}, by_key=None)
    play.put(b'{"type": "thing.deleted", "data": {"id": 3}}')
    play.api.update(3, value=61)
    play.api.clock.advance(60)
    play.run()
    assert play.drain().counts["stale"] == 1
    play.check()


def test_an_address_that_was_taken_out_of_the_file(play: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """What came to it waits, and is told of; it starts no run, and blocks no record of others."""
    play.hook({**ENDPOINT, "types": {"thing.*": {"object": "things", "key": "data.id"}}})
    play.api.update(3, value=61)
    play.put(*play.bodies(latest(play)), endpoint="former")
    play.conn.execute(
        "insert into extract.inbox_parked (place, nth, source, endpoint, object, key, tries, due_at) "
        "values (99, 1, 'shop', 'former', 'things', '3', 1, now())"
    )
    assert claims.waiting(play.conn, "extract", "shop", ["main"])[0] is False
    play.put(*play.bodies(latest(play)))
    drained = play.drain()
    assert (drained.counts["applied"], drained.waiting) == (1, 0)
    assert "2 webhooks at addresses that the source file does not describe" in caplog.text


def test_what_waits_for_a_person_is_told_by_each_run(play: Hooked) -> None:
    """Also by one in which none of it is due; as an error, or in the result of who has more to do first."""
    play.hook()
    play.api.update(3, value=61)
    play.put(*play.bodies(latest(play)))
    play.conn.execute("create table aside as table shop.things")
    play.conn.execute("truncate shop.things")
    for _ in range(2):
        with pytest.raises(PositionMismatchError):
            play.drain()
    assert play.count("extract.inbox_parked", "due_at > clock_timestamp()") == 1
    assert {name: type(why) for name, why in play.drain(raises=False).broken.items()} == {
        "things": PositionMismatchError
    }
    play.conn.execute("insert into shop.things select * from aside")
    play.conn.execute("update extract.inbox_parked set due_at = clock_timestamp()")
    drained = play.drain()
    assert (drained.counts["updated"], drained.broken) == (1, {})
