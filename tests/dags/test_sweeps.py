"""The sync DAG of a source that is swept: its chain, its form, its doc, and its tasks as they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import ParamValidationError

from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.extract.sourcefile import parse_source
from airflow_extract_provider.extract.store.connection import Connect
from airflow_extract_provider.operators.rebackfill import RebackfillOperator
from airflow_extract_provider.operators.walk import WalkOperator
from airflow_extract_provider.testing.hostile import HostileApi
from tests.hazards.kinds import KINDS
from tests.operators.stage import Stage

KIND = KINDS["page updated"]
BY_KEY = {"path": "/things/{{ key }}", "record": "@"}
DAILY: Mapping[str, Any] = {"every": "1d"}


def source(**objects: Any) -> Source:
    """A source of these objects, with a schedule."""
    found = objects or {
        "things": KIND.described(by_key=BY_KEY, sweep=DAILY, deleted="gone"),
        "lines": {name: value for name, value in KIND.described(path="/lines").items() if name != "since"}
        | {"order": ["created_at"], "sweep": {"every": "36h", "max_deletes": 500}},
        "others": KIND.described(path="/others"),
    }
    told = {"source": "shop", "connection": "shop_api", "schedule": "1m", "objects": found}
    return parse_source(told, "shop.yaml")


def sync_of(found: Source) -> DAG:
    """The sync DAG of a source."""
    return make_dags({found.source: found})[f"{found.source}_sync"]


def test_the_sweep_has_its_place_in_the_chain() -> None:
    """It is the last, and begins whatever became of the others: it may fail until somebody looks, and keeps none of the
    others waiting, nor they it. Behind it stands what a run's state goes by. Only where an object is swept."""
    tasks = sync_of(source()).tasks
    chains = {task.task_id: task.downstream_task_ids for task in tasks}
    assert chains == {
        "things.backfill": {"things.incremental", "things.outcome"},
        "things.incremental": {"things.by_key", "things.outcome"},
        "things.by_key": {"things.rebackfill", "things.outcome"},
        "things.rebackfill": {"things.outcome"},
        "things.outcome": set(),
        "lines.backfill": {"lines.rebackfill", "lines.outcome"},
        "lines.rebackfill": {"lines.outcome"},
        "lines.outcome": set(),
        "others.backfill": {"others.incremental"},
        "others.incremental": set(),
    }
    rules = {task.task_id: task.trigger_rule for task in tasks if task.task_id.startswith("things.")}
    assert rules == {
        "things.backfill": "all_success",
        "things.incremental": "all_success",
        "things.by_key": "none_failed",
        "things.rebackfill": "all_done",
        "things.outcome": "none_failed",
    }


def test_the_form_reaches_the_task() -> None:
    """Each object's task looks for its own name; without a sweep there is no form."""
    dag = sync_of(source())
    tasks = [task for task in dag.tasks if isinstance(task, RebackfillOperator)]
    assert [(task.object, task.reset, task.max_deletes) for task in tasks] == [
        ("things", "{{ 'things' in params.sweep_now }}", "{{ params.max_deletes.get('things') }}"),
        ("lines", "{{ 'lines' in params.sweep_now }}", "{{ params.max_deletes.get('lines') }}"),
    ]
    assert set(dag.params) == {"sweep_now", "max_deletes"}
    assert set(sync_of(source(others=KIND.described(path="/others"))).params) == set()


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"sweep_now": []},
        {"sweep_now": ["things"]},
        {"sweep_now": ["lines", "things"]},
        {"max_deletes": {}},
        {"max_deletes": {"lines": 0}},
        {"sweep_now": ["things"], "max_deletes": {"things": 100000, "lines": 7}},
    ],
)
def test_what_the_form_takes(conf: dict[str, Any]) -> None:
    """Some of the objects that are swept, and for each of them a number of deletes."""
    dag = sync_of(source())
    found: Mapping[str, Any] = process_params(dag, dag.tasks[0], dict(conf), suppress_exception=False)
    assert found == {"sweep_now": [], "max_deletes": {}, **conf}


@pytest.mark.parametrize(
    "conf",
    [
        {"sweep_now": ["others"]},
        {"sweep_now": ["nothing"]},
        {"sweep_now": ["things", "things"]},
        {"sweep_now": "things"},
        {"sweep_now": True},
        {"max_deletes": 7},
        {"max_deletes": {"things": -1}},
        {"max_deletes": {"things": "7"}},
        {"max_deletes": {"things": 7.5}},
        {"max_deletes": {"things": "10%"}},
        {"max_deletes": {"things": True}},
        {"max_deletes": {"things": None}},
        {"max_deletes": {"others": 7}},
    ],
    ids=str,
)
def test_what_the_form_refuses(conf: dict[str, Any]) -> None:
    """Before a run is made: objects that are not swept, one twice, what is no number."""
    dag = sync_of(source())
    with pytest.raises(ParamValidationError):
        process_params(dag, dag.tasks[0], conf, suppress_exception=False)


def test_the_doc_tells_how_often() -> None:
    """A row for each object."""
    doc = sync_of(source()).doc_md or ""
    assert "| things | by `incremental`; all by `rebackfill`, every 1d |" in doc
    assert "| lines | by `rebackfill`, every 36h | by `rebackfill`, every 36h | no |" in doc
    assert "| others | by `incremental` | **not seen** | no |" in doc


class Shop(Stage):
    """The sync DAG with its API, store and Airflow."""

    def __init__(self, api: HostileApi, dsn: str, connect: Connect) -> None:
        things = {"things": KIND.described(by_key=BY_KEY, sweep=DAILY)}
        super().__init__(source(**things), api.url, "secret", dsn, connect)
        self.api = api

    def sync(self, run_id: str, **conf: Any) -> dict[str, str]:
        """Run all tasks of the DAG in order, whatever comes of them; returns their states."""
        # Made anew: a task's templates are rendered in place.
        tasks = [task for task in sync_of(self.source).tasks if isinstance(task, WalkOperator)]
        return {task.task_id: self.run_operator(task, conf, run_id=run_id).state.value for task in tasks}

    def report(self) -> Any:
        """What the last sweep has told; None: the last run's task had nothing to do."""
        results = [msg.value for msg in self.airflow.of("SetXCom") if msg.key == "return_value"]
        return [each for each in results if each["walk"] == "rebackfill"][-1].get("sweep")

    def rest(self) -> None:
        """A day goes by."""
        self.ask(
            "with read as (update extract.sweep set began_at = began_at - interval '1 d')"
            "update extract.ledger set committed_at = committed_at - interval '1 d' returning 1"
        )


@pytest.fixture
def shop(dsn: str, connect: Connect) -> Iterator[Shop]:
    """The scene of the tests that run tasks."""
    with HostileApi(listings={"/things": KIND.served()}) as api:
        api.insert(60)
        api.clock.advance(60)
        yield Shop(api, dsn, connect)


def test_the_copy_is_kept_equal(shop: Shop) -> None:
    """Without a sweep silent changes and deletes are not seen; when it is due, or asked for, they are."""
    assert set(shop.sync("first").values()) == {"success"}
    for run, conf in (("due", {}), ("asked for", {"sweep_now": ["things"]})):
        shop.api.update(*shop.api.ids[3:5], touch=False)
        shop.api.update(shop.api.ids[7])
        shop.api.insert(1)
        shop.api.delete(*shop.api.ids[10:12])
        shop.api.clock.advance(60)
        assert set(shop.sync(f"not {run}").values()) == {"success"}
        assert shop.report() is None
        assert len(shop.copy().keys() - shop.api.live().keys()) == 2
        if not conf:
            shop.rest()
        assert set(shop.sync(run, **conf).values()) == {"success"}
        told = {"changed": 2, "silent": 2, "new": 0, "deleted": 2, "confirmed": 2}
        assert told.items() <= shop.report().items()
        assert shop.copy() == shop.api.live()


def test_a_sweep_that_may_not_delete(shop: Shop) -> None:
    """It fails until somebody says how many; the other walks go on meanwhile. What is allowed to one object is not to
    another."""
    shop.sync("first")
    shop.api.delete(*shop.api.ids[:20])
    shop.rest()
    states = shop.sync("due")
    assert states == {
        "things.backfill": "success",
        "things.incremental": "success",
        "things.by_key": "success",
        "things.rebackfill": "failed",
    }
    assert len(shop.copy()) == 60
    assert shop.sync("again")["things.rebackfill"] == "failed"
    assert set(shop.sync("allowed", max_deletes={"things": 20}).values()) == {"success"}
    assert shop.report()["deleted"] == 20
    assert shop.copy() == shop.api.live()


def test_while_a_person_backfills_the_sweep_is_skipped(shop: Shop) -> None:
    """And while the backfill has not come to its end."""
    shop.hold()
    assert set(shop.sync("held", sweep_now=["things"]).values()) == {"skipped"}
    shop.let_go()
    shop.api.fault(shop.api.count + 2, "401", times=9)
    states = shop.sync("half", sweep_now=["things"])
    assert (states["things.backfill"], states["things.rebackfill"]) == ("failed", "skipped")
    # The API lets us in again.
    while shop.api.faulted["401"] < 9:
        shop.sync(f"refused {shop.api.count}")
    assert set(shop.sync("whole", sweep_now=["things"]).values()) == {"success"}
    assert shop.report()["seen"] == 60
