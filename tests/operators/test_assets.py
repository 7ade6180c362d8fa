"""Objects as assets: a run that has changed something reports an event, one that has not reports none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias, TaskInstanceState
from airflow.serialization.serialized_objects import DagSerialization

from airflow_extract_provider.assets import alias_of, asset_of
from airflow_extract_provider.extract.errors import ExtractError, SinkRefusedError
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.incremental import IncrementalOperator
from airflow_extract_provider.testing.hostile import HostileApi
from tests.broker import Broker
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage
from tests.sinks.topics import create, received, unused_name
from tests.taskrun import Outcome, run_task

KIND = KINDS["page updated"]
EVENTS = ["created", {"changed": {"field": "value", "name": "value.changed"}}]
SUCCESS = TaskInstanceState.SUCCESS


class Shop(Stage):
    """A store behind an API with 45 things that can be asked for changes; ``over`` changes their description."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect, **over: Any) -> None:
        things = KIND.described(events=EVENTS, baseline="emit", **over)
        source = {"source": "shop", "connection": "shop_api", "objects": {"things": things}}
        super().__init__(parse_source(source, "shop.yaml"), api.url, "secret", dsn, connect)
        self.api = api

    def lap(self, run_id: str) -> Outcome:
        """Bring the changes."""
        return self.task(IncrementalOperator, run_id=run_id)


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """The API of each test."""
    with HostileApi(listings={"/things": KIND.served()}) as served:
        for _ in range(45):
            served.insert(value=1)
            served.clock.advance(1)
        yield served


@pytest.fixture
def shop(api: HostileApi, dsn: str, connect: Connect) -> Shop:
    """The scene of each test."""
    return Shop(api, dsn, connect)


def reported(outcome: Outcome) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The asset events that a success reports: alias, URI, and what they tell."""
    assert outcome.state is SUCCESS
    return [
        (event["source_alias_name"], event["dest_asset_key"]["uri"], event["extra"])
        for event in outcome.msg.outlet_events
    ]


def test_an_object_is_an_asset() -> None:
    """Found by what a person writes into a DAG; what names no object is refused when the DAG is parsed."""
    assert asset_of("crm", "contacts") == Asset("extract://crm/contacts")
    assert (asset_of("my_crm", "x1").uri, asset_of("my_crm", "x1").name) == ("extract://my_crm/x1",) * 2
    assert alias_of("crm") == AssetAlias("extract://crm")
    for wrong in ("extract://crm", "extract://crm/", "extract://crm/a/b", "extract://CRM/a", "extract://crm/a?b=1"):
        with pytest.raises(ValueError, match="extract://source/object"):
            Asset(wrong)


def test_a_run_with_changes_reports_them(shop: Shop) -> None:
    """How many of each kind, the events, and up to when the copy is complete. JSON values only."""
    ((alias, uri, extra),) = reported(shop.task(BackfillOperator, run_id="first"))
    assert (alias, uri) == ("extract://shop", "extract://shop/things")
    assert json.loads(json.dumps(extra)) == extra
    counts = {"created": 45, "updated": 0, "undeleted": 0, "deleted": 0, "regressed": 0, "events": 45}
    assert extra == {**counts, "complete_to": shop.xcom()["complete_to"]}
    assert datetime.fromisoformat(str(extra["complete_to"])).tzinfo is not None
    shop.api.update(3, 7, value=2)
    shop.api.clock.advance(5)
    ((_, _, extra),) = reported(shop.lap("a"))
    assert (extra["created"], extra["updated"], extra["events"]) == (0, 2, 2)


def test_a_run_without_changes_reports_nothing(shop: Shop) -> None:
    """It succeeds all the same, so that its DAG goes on."""
    shop.task(BackfillOperator, run_id="first")
    assert reported(shop.task(BackfillOperator, run_id="second")) == []
    assert reported(shop.lap("a")) == []
    assert reported(shop.lap("b")) == []


def test_slices_report_once(shop: Shop) -> None:
    """The success, with the changes of all slices; a reschedule reports nothing."""
    shop.api.every(1, lambda: time.sleep(0.02))
    slices = 0
    while (outcome := shop.task(BackfillOperator, run_for=0.0001)).state is not SUCCESS:
        assert not hasattr(outcome.msg, "outlet_events")
        slices += 1
    assert slices > 1
    ((_, _, extra),) = reported(outcome)
    assert (extra["created"], extra["events"]) == (45, 45)


def test_slices_that_give_way_report(shop: Shop) -> None:
    """A later slice finds the object held, and leaves the rest to the next run: what the earlier ones have changed is
    reported, though the walk is not complete. Where nothing has changed, the task is skipped."""
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    shop.hold()
    assert shop.task(BackfillOperator, next_run_at=due).state is TaskInstanceState.SKIPPED
    shop.let_go()
    shop.api.every(1, lambda: time.sleep(0.02))
    assert shop.task(BackfillOperator, run_for=0.0001, next_run_at=due).state is TaskInstanceState.UP_FOR_RESCHEDULE
    copied = shop.copied()
    assert 0 < copied < 45
    shop.hold()
    ((alias, uri, extra),) = reported(shop.task(BackfillOperator, run_for=0.0001, next_run_at=due))
    assert (alias, uri) == ("extract://shop", "extract://shop/things")
    assert (extra["created"], extra["events"], extra["complete_to"]) == (copied, copied, None)
    summary = shop.xcom()
    assert (summary["complete"], summary["created"], summary["records"]) == (False, copied, copied)
    assert summary["cursor_after"]["records"] == copied
    assert shop.task(BackfillOperator, run_id="other", next_run_at=due).state is TaskInstanceState.SKIPPED


def test_a_try_that_gives_way_reports(shop: Shop) -> None:
    """A try has failed after some pages; the next one is too late for the rest."""
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    shop.api.fault(3, "403")
    assert shop.task(BackfillOperator, next_run_at=due).state is TaskInstanceState.FAILED
    shop.hold()
    ((_, _, extra),) = reported(shop.task(BackfillOperator, try_number=2, next_run_at=due))
    assert extra["created"] == shop.copied() > 0


def test_a_failure_reports_nothing(shop: Shop) -> None:
    """The retry's success reports what both tries have changed."""
    shop.api.fault(3, "403")
    outcome = shop.task(BackfillOperator)
    assert outcome.state is TaskInstanceState.FAILED
    assert not hasattr(outcome.msg, "outlet_events")
    assert 0 < shop.copied() < 45
    ((_, _, extra),) = reported(shop.task(BackfillOperator, try_number=2))
    assert extra["created"] == 45


def test_own_outlets_stay(shop: Shop) -> None:
    """Those of the task are kept, and reported as ever."""
    mine = Asset("mine")
    operator = shop.operator(BackfillOperator, outlets=[mine])
    assert operator.outlets == [mine, alias_of("shop")]
    outcome = run_task(operator, shop.airflow)
    assert [each.name for each in outcome.msg.task_outlets] == ["mine", "extract://shop"]
    assert len(reported(outcome)) == 1


def test_the_source_may_be_a_file(shop: Shop, tmp_path: Path) -> None:
    """Nothing is read when the DAG is parsed, so nothing can be declared: no asset event, and no error."""
    path = tmp_path / "shop.yaml"
    path.write_text(json.dumps({"source": "shop", "connection": "shop_api", "objects": {"things": KIND.described()}}))
    operator = shop.operator(BackfillOperator, source=path)
    assert operator.outlets == []
    assert reported(run_task(operator, shop.airflow)) == []
    assert shop.copied() == 45


def test_a_dag_can_be_scheduled_on_an_object() -> None:
    """As Airflow stores it."""
    with DAG("mail", schedule=[Asset("extract://shop/things")]) as dag:
        pass
    condition = json.dumps(DagSerialization.serialize_dag(dag)["timetable"])
    assert "extract://shop/things" in condition


# Events that go to Kafka.


def published(shop: Shop, broker: Broker, topic: str) -> list[str]:
    """The types of the events in the topic; nothing is in the outbox."""
    assert shop.ask("select count(*) from extract.outbox") == [(0,)]
    return [each.attributes["type"] for each in received(broker, topic)]


def test_an_object_publishes_to_kafka(api: HostileApi, dsn: str, connect: Connect, broker: Broker) -> None:
    """By the connection that it names, each event before its record is committed."""
    topic = create(broker, unused_name())
    shop = Shop(api, dsn, connect, publish={"kafka": "events", "topic": topic})
    extra = {**broker.config, "group.id": "me", "auto.offset.reset": "earliest"}
    shop.airflow.connections["events"] = {"conn_type": "kafka", "extra": json.dumps(extra)}
    ((_, _, told),) = reported(shop.task(BackfillOperator, run_id="first"))
    assert told["events"] == len(published(shop, broker, topic)) == 45
    api.update(3, value=2)
    api.clock.advance(5)
    assert shop.lap("a").state is SUCCESS
    assert len(published(shop, broker, topic)) == 46


def test_without_the_topic_no_record_is_stored(api: HostileApi, dsn: str, connect: Connect, broker: Broker) -> None:
    """The task fails for a person to act, and its connection is named when it is missing."""
    shop = Shop(api, dsn, connect, publish={"kafka": "events", "topic": unused_name()})
    missing = shop.task(BackfillOperator)
    assert "airflow connections add events --conn-type kafka" in str(missing.error)
    shop.airflow.connections["events"] = {"conn_type": "kafka", "extra": json.dumps(broker.config)}
    outcome = shop.task(BackfillOperator)
    error: ExtractError = getattr(outcome.error, "error")  # noqa: B009 - any exception
    assert isinstance(error, SinkRefusedError)
    assert outcome.state is TaskInstanceState.FAILED
    assert shop.copied() == 0
