"""The operator that applies webhooks, in Airflow's own task runner: with HostileApi and a real Postgres."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, TaskInstanceState

from airflow_extract_provider.extract.errors import (
    ConnectionMissingError,
    ExtractError,
    PositionMismatchError,
    RequestRefusedError,
    SinkRefusedError,
    SourceError,
    TryAgain,
)
from airflow_extract_provider.extract.incoming import Incoming
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store import inbox
from airflow_extract_provider.extract.store.connection import Connect, Connection
from airflow_extract_provider.extract.webhooks.drain import drain
from airflow_extract_provider.operators.apply_inbox import ApplyInboxOperator
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.failing import TaskFailed
from airflow_extract_provider.testing.hostile import Fault, HostileApi
from airflow_extract_provider.testing.hostile_store import Version
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage
from tests.taskrun import Outcome
from tests.test_stats import listening

KIND = KINDS["token updated"]
SUCCESS, RESCHEDULED = TaskInstanceState.SUCCESS, TaskInstanceState.UP_FOR_RESCHEDULE
DEFERRED, RETRY = TaskInstanceState.DEFERRED, TaskInstanceState.UP_FOR_RETRY
EVENTS = ["created", "deleted", {"changed": {"field": "value", "name": "value.changed"}}]
BY_KEY = {"path": "/things/{{ key }}", "record": "@"}
ENDPOINT: dict[str, Any] = {
    "verify": "github",
    "secret": "none",
    "type": "type",
    "types": {
        "thing.deleted": {"object": "things", "key": "data.id", "change": "deleted"},
        "thing.thin": {"object": "things", "key": "data.id"},
        "thing.*": {"object": "things", "record": "data"},
        "other.thin": {"object": "others", "key": "data.id"},
    },
}
PAUSE = 300


def described(**over: Any) -> dict[str, Any]:
    """The source file: two objects, of which the webhooks of one are thin."""
    things = KIND.described(by_key=BY_KEY, events=EVENTS, **over)
    others = KIND.described(path="/others", by_key={**BY_KEY, "path": "/others/{{ key }}"})
    objects = {"things": things, "others": others}
    return {"source": "shop", "connection": "shop_api", "objects": objects, "webhooks": {"main": ENDPOINT}}


class Shop(Stage):
    """A store with a copy of an API that sends webhooks; the two objects are lists of the same records."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect, conn: Connection, **over: Any) -> None:
        super().__init__(parse_source(described(**over), "shop.yaml"), api.url, "secret", dsn, connect)
        self.api, self.conn, self.connect = api, conn, connect
        api.insert(14, value=1)
        api.clock.advance(60)
        for object in ("things", "others"):
            assert self.task(BackfillOperator, object=object, run_id="first").state is SUCCESS
        api.requests.clear()

    def send(self, *types: str, of: Version | None = None) -> None:
        """The webhooks of a version, by default of the newest one: ``thing.thin`` and the like hold its id only."""
        version = of or self.api.history()[-1]
        for each in types:
            whole = each.startswith("thing.") and not each.endswith(("thin", "deleted"))
            data = self.api.shown(version, "/things") if whole else {"id": version.id}
            self.put(json.dumps({"type": each, "data": data}).encode())

    def put(self, body: bytes) -> None:
        """A delivery comes in."""
        inbox.put(self.conn, "extract", [Incoming("shop", "main", body)])

    def operator_of(self, **arguments: Any) -> ApplyInboxOperator:
        """The task."""
        with DAG("shop_webhooks", schedule=None):
            return ApplyInboxOperator(task_id="apply", **{"source": self.source, **arguments})

    def apply(
        self, conf: Mapping[str, Any] | None = None, of_run: Mapping[str, Any] | None = None, **how: Any
    ) -> Outcome:
        """Run the task once, and what Airflow does behind its report."""
        return self.run_operator(self.operator_of(**how), conf, **{"finished": True, **(of_run or {})})

    def applied(self, **how: Any) -> dict[str, Any]:
        """The same, which must succeed; returns its result."""
        outcome = self.apply(**how)
        assert outcome.state is SUCCESS, outcome.error
        found: dict[str, Any] = self.xcom()
        assert json.loads(json.dumps(found)) == found
        return found

    def events(self) -> list[tuple[str, str]]:
        """Key and type of what is in the outbox."""
        return self.ask("select key, type from extract.outbox order by sequence")

    def count(self, table: str) -> int:
        """How many rows there are."""
        return int(self.ask(f"select count(*) from extract.{table}")[0][0])

    def assert_equal(self) -> None:
        """The copy is the API."""
        assert self.copy() == self.api.live("/things")


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """The API of each test."""
    with HostileApi(seed=5, listings={"/things": KIND.served(), "/others": KIND.served()}) as served:
        yield served


@pytest.fixture
def shop(api: HostileApi, dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of each test. The log lines count as a task's do: from INFO on."""
    logger = logging.getLogger("airflow_extract_provider")
    before = logger.level
    logger.setLevel(logging.INFO)
    with connect() as conn:
        conn.autocommit = True
        yield Shop(api, dsn, connect, conn)
    logger.setLevel(before)


def failed(outcome: Outcome, kind: type[ExtractError]) -> ExtractError:
    """The engine's error that ended the task."""
    assert isinstance(outcome.error, TaskFailed)
    assert isinstance(outcome.error.error, kind)
    assert outcome.tracebacks == []
    return outcome.error.error


def reported(outcome: Outcome) -> dict[str, Mapping[str, Any]]:
    """What the asset events of a success tell, by URI."""
    assert outcome.state is SUCCESS
    return {event["dest_asset_key"]["uri"]: event["extra"] for event in outcome.msg.outlet_events}


def test_the_template_fields_are_the_attributes(shop: Shop) -> None:
    """Exactly these may be templates; the constructor stores them unchanged."""
    given: dict[str, Any] = {name: f"{{{{ {name} }}}}" for name in ApplyInboxOperator.template_fields}
    operator = ApplyInboxOperator(task_id="x", source=shop.source, **given)
    assert {name: getattr(operator, name) for name in given} == given


def test_webhooks_are_applied(shop: Shop) -> None:
    """What is newer is stored with its events, and nothing is asked of the API, nor logged in to it. The result tells
    of it, and the asset of the object that has changed."""
    shop.airflow.connections.pop("shop_api")
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    outcome = shop.apply()
    shop.assert_equal()
    assert shop.events() == [("3", "value.changed")]
    found = shop.xcom()
    assert (found["deliveries"], found["updated"], found["waiting"], found["dead"]) == (1, 1, 0, 0)
    assert (found["by_key"], found["left"], shop.api.count) == ({}, {}, 0)
    ((uri, extra),) = reported(outcome).items()
    assert uri == "extract://shop/things"
    assert (extra["updated"], extra["created"], extra["events"], extra["complete_to"]) == (1, 0, 1, None)


def test_nothing_to_do(shop: Shop) -> None:
    """It succeeds, and reports nothing; so does what came twice."""
    assert shop.applied()["deliveries"] == 0
    shop.send("thing.updated")
    outcome = shop.apply()
    assert reported(outcome) == {}
    assert shop.xcom()["applied"] == 1


def test_what_is_thin_is_read_by_key(shop: Shop) -> None:
    """In the same task, object by object; both report."""
    shop.api.update(3, value=7)
    shop.send("thing.thin", "other.thin")
    outcome = shop.apply()
    shop.assert_equal()
    found = shop.xcom()
    assert found["noted"] == ["others", "things"]
    assert {name: each["updated"] for name, each in found["by_key"].items()} == {"things": 1, "others": 1}
    assert {uri: extra["updated"] for uri, extra in reported(outcome).items()} == {
        "extract://shop/others": 1,
        "extract://shop/things": 1,
    }
    assert sorted(each.path for each in shop.api.requests) == ["/others/3", "/things/3"]
    assert shop.count("refetch") == 0


def test_a_deletion_is_proven_and_told(shop: Shop) -> None:
    """By reading; the asset tells of it."""
    shop.api.delete(3)
    shop.send("thing.deleted")
    ((_, extra),) = reported(shop.apply()).items()
    assert extra["deleted"] == 1
    shop.assert_equal()
    assert shop.events() == [("3", "shop.things.deleted")]


def test_notes_of_an_earlier_run_are_read(shop: Shop) -> None:
    """It died between applying and reading: the next one finds the notes, though nothing has come since. Those that no
    webhook has asked for are the walks' own."""
    shop.api.update(3, value=7)
    shop.send("thing.thin")
    login = shop.airflow.connections.pop("shop_api")
    failed(shop.apply(), ConnectionMissingError)
    shop.airflow.connections["shop_api"] = login
    assert shop.count("refetch") == 1
    shop.ask(
        "insert into extract.refetch (source, object, key, reason) values ('shop', 'others', '5', 'x') returning 1"
    )
    assert list(shop.applied(of_run={"run_id": "next"})["by_key"]) == ["things"]
    shop.assert_equal()
    assert shop.ask("select object from extract.refetch") == [("others",)]


def test_an_object_that_another_run_holds(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """What is stored from the message is stored all the same; what is to be read stays noted, and the log and the
    result say so. The next run reads it."""
    shop.hold()
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    shop.api.update(4, value=8)
    shop.send("thing.thin", "other.thin")
    found = shop.applied()
    assert found["updated"] == 1
    assert list(found["by_key"]) == ["others"]
    assert "the other run" in found["left"]["things"]
    assert "shop/things   what webhooks told of is not read yet" in caplog.text
    assert shop.copied() == 14
    assert shop.count("refetch") == 1
    shop.let_go()
    assert shop.applied(of_run={"run_id": "next"})["left"] == {}
    shop.assert_equal()


def test_a_quota_that_is_spent_is_waited_for(shop: Shop) -> None:
    """Without a slot; then first what has come meanwhile is applied. What was changed before that is reported too."""
    shop.api.fault(1, Fault("429", retry_after=PAUSE))
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    shop.api.update(4, value=8)
    shop.send("thing.thin")
    outcome = shop.apply(deferrable=False)
    assert outcome.state is RESCHEDULED
    assert PAUSE - 30 < (outcome.msg.reschedule_date - datetime.now(timezone.utc)).total_seconds() <= PAUSE
    deferred = shop.apply(deferrable=True)
    assert deferred.state is DEFERRED
    assert deferred.msg.next_method == "execute_after_waiting"
    shop.ask("delete from extract.quota returning 1")
    outcome = shop.apply(of_run={"resumed": ("execute_after_waiting", {})})
    ((_, extra),) = reported(outcome).items()
    assert extra["updated"] == 2
    shop.assert_equal()


def test_a_quota_that_is_spent_until_the_next_run(shop: Shop) -> None:
    """What cannot be read before that is left to it: other webhooks need not wait. It says so."""
    shop.api.fault(1, Fault("429", retry_after=PAUSE))
    shop.api.update(4, value=8)
    shop.send("thing.thin", "other.thin")
    due = datetime.now(timezone.utc) + timedelta(seconds=60)
    found = shop.applied(next_run_at=due.isoformat())
    assert set(found["left"]) == {"things", "others"}
    assert "no request is granted" in found["left"]["things"]
    assert shop.count("refetch") == 2


def test_one_object_that_cannot_be_read_keeps_no_other_waiting(shop: Shop) -> None:
    """Its error ends the task when the others were read."""
    shop.api.fault(1, "422")
    shop.api.update(3, value=7)
    shop.send("thing.thin", "other.thin")
    error = failed(shop.apply(), RequestRefusedError)
    assert error.object == "things"
    assert shop.ask("select object from extract.refetch") == [("things",)]
    assert shop.ask("select data ->> 'value' from shop.others where key = '3'") == [("7",)]


def test_a_retry_reports_what_the_try_before_has_changed(shop: Shop) -> None:
    """That one applied a webhook, and then failed to read another."""
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    shop.send("other.thin")
    login = shop.airflow.connections.pop("shop_api")
    assert shop.apply().state is RETRY
    shop.airflow.connections["shop_api"] = login
    found = reported(shop.apply(of_run={"try_number": 2}))
    assert {uri: extra["updated"] for uri, extra in found.items()} == {
        "extract://shop/others": 1,
        "extract://shop/things": 1,
    }
    assert reported(shop.apply(of_run={"run_id": "next"})) == {}


@pytest.mark.parametrize("taken", [False, True])
def test_a_run_reports_what_a_failed_one_has_changed(shop: Shop, taken: bool) -> None:
    """That one applied a webhook, and then failed for good, or died before Airflow took its success. The clocks of
    Airflow and Postgres have nothing to do with it, and nothing is told again after that."""
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    if taken:
        assert list(reported(shop.apply(of_run={"run_id": "one", "finished": False}))) == ["extract://shop/things"]
    else:
        shop.send("other.thin")
        login = shop.airflow.connections.pop("shop_api")
        assert shop.apply(of_run={"run_id": "one", "should_retry": False}).state is TaskInstanceState.FAILED
        shop.airflow.connections["shop_api"] = login
    shop.ask("update extract.brought set at = at - interval '1 day' returning 1")
    shop.ask("update extract.inbox_report set since = since - interval '1 day' returning 1")
    found = reported(shop.apply(of_run={"run_id": "two"}))
    assert found["extract://shop/things"]["updated"] == 1
    assert reported(shop.apply(of_run={"run_id": "three"})) == {}


def test_what_is_committed_behind_a_report_is_told_by_the_next_one(shop: Shop) -> None:
    """Another run, which dies later, has changed something when this one had begun to report."""
    shop.api.update(3, value=7)
    shop.send("thing.updated")

    def beside(_: object) -> None:
        shop.api.update(4, value=8)
        shop.send("thing.updated")
        drain(shop.source, postgres=shop.connect)

    first = shop.apply(of_run={"run_id": "one"}, on_success_callback=beside)
    assert list(reported(first)) == ["extract://shop/things"]
    ((uri, extra),) = reported(shop.apply(of_run={"run_id": "two"})).items()
    assert (uri, extra["updated"]) == ("extract://shop/things", 2)
    assert reported(shop.apply(of_run={"run_id": "three"})) == {}


def test_an_object_that_is_held_for_long_is_not_reported_again_and_again(shop: Shop) -> None:
    """What waits for it keeps no run from having told of the rest."""
    shop.hold()
    shop.api.update(3, value=7)
    shop.send("thing.thin", "thing.updated")
    assert list(reported(shop.apply(of_run={"run_id": "one"}))) == ["extract://shop/things"]
    shop.hold()
    assert reported(shop.apply(of_run={"run_id": "two"})) == {}
    shop.let_go()
    assert shop.apply(of_run={"run_id": "three"}).state is SUCCESS
    shop.assert_equal()


def test_a_report_that_cannot_be_noted(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """The success stands; the log says that the next run tells the same again."""
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    away = "alter table extract.inbox_report rename to away"
    first = shop.apply(of_run={"run_id": "one"}, on_success_callback=lambda _: shop.conn.execute(away))
    assert list(reported(first)) == ["extract://shop/things"]
    shop.conn.execute("alter table extract.away rename to inbox_report")
    assert "reports the same changes again" in caplog.text
    assert list(reported(shop.apply(of_run={"run_id": "two"}))) == ["extract://shop/things"]


def test_a_copy_that_does_not_fit_keeps_nothing_else_waiting(shop: Shop) -> None:
    """What is to be read of other objects is read before the task fails; and it fails while any message waits, though
    none is due."""
    shop.api.update(3, value=7)
    shop.send("thing.updated", "other.thin")
    shop.conn.execute("truncate shop.things")
    for run_id in ("one", "two"):
        error = failed(shop.apply(of_run={"run_id": run_id}), PositionMismatchError)
        assert error.object == "things"
        assert shop.ask("select data ->> 'value' from shop.others where key = '3'") == [("7",)]
    assert shop.ask("select object from extract.inbox_parked where due_at > clock_timestamp()") == [("things",)]
    shop.ask("delete from extract.inbox_parked returning 1")
    assert shop.apply(of_run={"run_id": "three"}).state is SUCCESS


def test_slices(shop: Shop) -> None:
    """What takes longer is done in slices, at no try; the notes are read in each, and nothing is left."""
    for key in range(1, 13):
        shop.api.update(key, value=key)
        shop.send("thing.updated" if key % 3 else "thing.thin")
    slices = 0
    while (outcome := shop.apply(limit=1, run_for=0, pause=40)).state is not SUCCESS:
        assert outcome.state is RESCHEDULED
        assert outcome.msg.reschedule_date - datetime.now(timezone.utc) > timedelta(seconds=20)
        slices += 1
        shop.airflow.began = datetime.now(timezone.utc)
    assert slices == 11
    shop.assert_equal()


def test_a_stopped_task_is_no_success(shop: Shop) -> None:
    """SIGTERM ends it after the batch; the retry applies the others."""
    for key in range(1, 9):
        shop.api.update(key, value=key)
        shop.send("thing.updated")
    shop.conn.execute("create function public.slow() returns trigger language plpgsql as $$ begin"
                      " perform pg_sleep(0.2); return new; end $$")  # fmt: skip
    shop.conn.execute("create trigger slow before update on shop.things for each row execute function public.slow()")
    over = threading.Event()

    def stop() -> None:
        """Once something is applied: a busy machine is long in beginning."""
        with shop.connect() as conn:
            conn.autocommit = True
            done = "select from extract.inbox where done_at is not null"
            while not over.wait(0.01) and conn.execute(done).fetchone() is None:
                pass
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        outcome = shop.apply(limit=1)
    finally:
        over.set()
        thread.join()
    assert "stopped" in str(failed(outcome, TryAgain))
    assert outcome.state is RETRY
    left = shop.ask("select count(*) from extract.inbox where done_at is null")[0][0]
    assert 0 < left < 8
    shop.conn.execute("drop trigger slow on shop.things")
    assert shop.applied()["updated"] == left
    shop.assert_equal()


def test_dead_letters_are_warned_of_and_replayed(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """They fail no task. The log names the command; the run's form tries again what is meant, once."""
    shop.put(b"{broken")
    shop.put(b"[also broken")
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    assert shop.applied()["dead"] == 2
    assert "`airflow extract inbox dead list --source shop`" in caplog.text
    ((first,), (second,)) = shop.ask("select place from extract.inbox_parked where dead order by place")
    shop.ask(f'update extract.inbox set body = \'{{"type": "x"}}\' where place in ({first}, {second}) returning 1')
    found = shop.applied(replay=f" {first} ")
    assert (sum(found["replayed"].values()), found["dead"]) == (1, 1)
    found = shop.applied(replay="all")
    assert (sum(found["replayed"].values()), found["dead"]) == (1, 0)
    assert shop.applied(replay="all")["replayed"] == {}
    assert "replayed" not in shop.applied(replay="")


def test_a_dead_letter_is_replayed_once_by_a_run(shop: Shop) -> None:
    """Whichever of its tries and slices comes to it; what dies again stays dead, until the task is cleared or another
    run is asked for it."""
    shop.put(b"{broken")
    shop.applied()
    store = shop.airflow.connections.pop("extract_store")
    failed(shop.apply(replay="all"), ConnectionMissingError)
    shop.airflow.connections["extract_store"] = store
    shop.airflow.began = datetime.now(timezone.utc)
    replayed: list[tuple[dict[str, Any], int]] = [
        ({"try_number": 2}, 1),
        ({"try_number": 2}, 0),
        ({"try_number": 3}, 0),
        ({"try_number": 4, "cleared": 3}, 1),
        ({"try_number": 5, "cleared": 3}, 0),
        ({"run_id": "other"}, 1),
    ]
    for of_run, count in replayed:
        found = shop.applied(replay="all", of_run=of_run)
        assert (sum(found["replayed"].values()), found["dead"]) == (count, 1)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"replay": "some"}, "`replay`"),
        ({"replay": "1, x"}, "`replay`"),
        ({"replay": [-1]}, "`replay`"),
        ({"run_for": "long"}, "`run_for`"),
        ({"pause": "x"}, "`pause`"),
        ({"next_run_at": "2026-01-01"}, "`next_run_at`"),
        ({"backoff": "x"}, "`backoff`"),
        ({"conf": {"repaly": "all"}, "fields": ["replay"]}, "'repaly'"),
    ],
)
def test_what_cannot_be_is_refused(shop: Shop, given: dict[str, Any], name: str) -> None:
    """A named error, before anything is applied."""
    shop.send("thing.updated")
    assert name in str(failed(shop.apply(**given), SourceError))
    assert shop.ask("select count(*) from extract.inbox where done_at is null") == [(1,)]


def test_a_source_without_webhooks(shop: Shop) -> None:
    """A named error."""
    plain = shop.source.model_copy(update={"webhooks": {}})
    assert "`webhooks`" in str(failed(shop.apply(source=plain), SourceError))


def test_a_source_file(shop: Shop, tmp_path: Path) -> None:
    """It is read when the task runs; such a task reports no asset event."""
    path = tmp_path / "shop.yaml"
    path.write_text(json.dumps(described()))
    shop.api.update(3, value=7)
    shop.send("thing.updated")
    assert reported(shop.apply(source=str(path))) == {}
    shop.assert_equal()


def test_a_sink_is_asked_before_anything_is_applied(api: HostileApi, dsn: str, connect: Connect) -> None:
    """An object that publishes to Kafka, over a connection that cannot: the webhook waits."""
    with connect() as conn:
        conn.autocommit = True
        shop = Shop(api, dsn, connect, conn)
        kafka = parse_source(described(publish={"kafka": "bus", "topic": "things"}), "shop.yaml")
        shop.airflow.connections["bus"] = {"conn_type": "kafka", "extra": json.dumps({"no.such.setting": "x"})}
        shop.api.update(3, value=7)
        shop.send("thing.updated")
        failed(shop.apply(source=kafka), SinkRefusedError)
        assert shop.ask("select count(*) from extract.inbox where done_at is null") == [(1,)]


def test_metrics(shop: Shop) -> None:
    """What came of the messages, and what waits, by source."""
    shop.api.update(3, value=7)
    shop.send("thing.updated", "thing.thin")
    shop.put(b"{broken")
    with listening(tags=True) as heard:
        shop.applied()
        found = heard()
    assert found["airflow.extract.webhooks.messages,source=shop"] == "3|c"
    assert found["airflow.extract.webhooks.applied,source=shop"] == "2|c"
    assert found["airflow.extract.webhooks.dead,source=shop"] == "1|g"
    assert found["airflow.extract.webhooks.waiting,source=shop"] == "0|g"
    (asked,) = [name for name in found if name.startswith("airflow.extract.requests,")]
    assert {"object=things", "source=shop", "walk=by_key"} == {*asked.split(",")[1:]}


def test_two_at_once(shop: Shop) -> None:
    """While a walk goes on: nothing is applied twice, nothing is lost."""
    for key in range(1, 13):
        shop.api.update(key, value=key + 100)
        shop.send("thing.updated", "thing.thin")
    over = threading.Event()

    def beside() -> None:
        while not over.is_set():
            drain(shop.source, postgres=shop.connect, limit=2)
            time.sleep(0.01)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        shop.applied(limit=3)
    finally:
        over.set()
        thread.join()
    shop.applied()
    shop.assert_equal()
    assert sorted(shop.events()) == sorted((str(key), "value.changed") for key in range(1, 13))
