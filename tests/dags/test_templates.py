"""The DAGs that are made of sources: they load, they are the same every time, their form accepts what it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import DagRunInfo, TimeRestriction
from pendulum import UTC, DateTime

from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.sourcefile import load_sources, parse_source
from airflow_extract_provider.operators.asked import AskedOperator
from airflow_extract_provider.operators.relay import RelayEventsOperator
from airflow_extract_provider.operators.walk import WalkOperator

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATE = PROJECT / "dags" / "extract.py"
SHOP = """
source: shop
connection: shop_api
defaults: {records: data, pages: {by: token, take: next, send: cursor}}
objects:
  orders: {path: /orders, key: id}
  lines: {path: /lines, key: [order.id, number], table: order_lines}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DAGs folder as a user would make it: the template, and the sources beside it."""
    shutil.copy(TEMPLATE, tmp_path / "extract.py")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "shop.yaml").write_text(SHOP)
    return tmp_path


CRM = """
source: crm
connection: crm_api
objects:
  contacts:
    path: /contacts
    records: data
    key: id
    version: updated_at
    since: {send: since, inclusive: true}
    by_key: {path: "/contacts/{{ key }}"}
    pages: {by: token, take: next, send: cursor}
  notes: {path: /notes, records: data, key: id, pages: {by: single}}
"""


def made(folder: Path, text: str) -> dict[str, DAG]:
    """The DAGs of one source file."""
    (folder / "one.yaml").write_text(text)
    return make_dags(folder)


def decoded(dag: DAG) -> SerializedDAG:
    """The DAG as the scheduler has it."""
    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def walking(dag: DAG) -> list[Any]:
    """The tasks that do something."""
    return [task for task in dag.tasks if not isinstance(task, EmptyOperator)]


def bag(folder: Path) -> DagBag:
    """What the DAG processor makes of a folder."""
    return DagBag(dag_folder=str(folder))


def shop(folder: Path) -> DAG:
    """The shop's backfill DAG."""
    return make_dags(folder / "sources")["shop_backfill"]


def chosen(folder: Path, conf: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a task sees of the form's values, after Airflow's check."""
    dag = shop(folder)
    found: Mapping[str, Any] = process_params(dag, dag.tasks[0], dict(conf), suppress_exception=False)
    return found


def test_the_template_loads_beside_its_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working directory is: Airflow's components have different ones."""
    monkeypatch.chdir("/")
    found = bag(folder)
    assert found.import_errors == {}
    assert set(found.dags) == {"shop_backfill", "shop_sync"}


def test_the_folder_can_be_configured(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EXTRACT_SOURCES leads elsewhere, and several sources give several DAGs."""
    others = tmp_path / "others"
    others.mkdir()
    for name in ("mine", "theirs"):
        (others / f"{name}.yaml").write_text(SHOP.replace("shop", name))
    monkeypatch.setenv("EXTRACT_SOURCES", str(others))
    assert set(bag(folder).dags) == {"mine_backfill", "mine_sync", "theirs_backfill", "theirs_sync"}


def test_a_wrong_source_is_an_import_error_with_its_reason(folder: Path) -> None:
    """The banner in the UI ends with the named error."""
    (folder / "sources" / "shop.yaml").write_text(SHOP.replace("take:", "tkae:"))
    (told,) = bag(folder).import_errors.values()
    assert "SourceError" in told
    assert "tkae" in told
    with pytest.raises(SourceError, match="tkae"):
        make_dags(folder / "sources")


def test_the_template_is_short_and_passes_the_safe_mode() -> None:
    """Airflow skips files without these words."""
    text = TEMPLATE.read_text()
    assert len(text.splitlines()) <= 30
    assert "airflow" in text
    assert "dag" in text


def test_a_task_for_each_object(folder: Path) -> None:
    """Plain tasks, independent of each other, retried with growing pauses; without a filter by time a person starts
    them, nothing else does."""
    dag = shop(folder)
    assert dag.task_ids == ["orders", "lines"]
    assert all(isinstance(task, AskedOperator) and not task.upstream_task_ids for task in dag.tasks)
    assert {(task.retries, task.retry_exponential_backoff) for task in dag.tasks} == {(3, 2.0)}
    assert {task.execution_timeout for task in dag.tasks} == {timedelta(minutes=90)}
    assert not dag.timetable.can_be_scheduled
    assert dag.is_paused_upon_creation is False
    assert dag.tags == {"extract", "shop", "backfill"}
    assert "| lines | `/lines` | order.id, number | `shop.order_lines` |" in (dag.doc_md or "")


@pytest.mark.parametrize(
    ("windows", "width"),
    [("", timedelta(days=1)), ('windows: "0 */6 * * *"', timedelta(hours=6)), ("windows: 2h", timedelta(hours=2))],
)
def test_windows_of_time(tmp_path: Path, windows: str, width: timedelta) -> None:
    """Where an object can be asked for a time, the intervals have the length that the file says: those of a text as
    schedule have none."""
    dag = made(tmp_path, CRM + windows)["crm_backfill"]
    timetable = decoded(dag).timetable
    assert timetable.can_be_scheduled
    earliest = DateTime(2026, 3, 1, tzinfo=UTC)
    info = timetable.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(earliest, None, catchup=True)
    )
    assert info is not None
    assert info.data_interval is not None
    assert info.data_interval.end - info.data_interval.start == width
    assert dag.is_paused_upon_creation is None
    assert dag.allowed_run_types is None, "a type of run that is left out starves the scheduler"
    assert "Run Backfill" in (dag.doc_md or "")


def test_no_windows(tmp_path: Path) -> None:
    """Switched off, or nothing to cut."""
    assert not made(tmp_path, CRM + "windows: null")["crm_backfill"].timetable.can_be_scheduled


def test_wrong_windows(tmp_path: Path) -> None:
    """As a wrong schedule."""
    with pytest.raises(SourceError, match="every now and then"):
        made(tmp_path, CRM + "windows: every now and then")


def test_owner_pool_and_tags(tmp_path: Path) -> None:
    """On all DAGs of the source; without them, the default pool: tasks of one that is missing would wait for ever."""
    dags = made(tmp_path, CRM + "owner: data team\npool: 3\ntags: [sales]")
    for dag in dags.values():
        assert {(task.owner, task.pool) for task in walking(dag)} == {("data team", "extract_crm")}
        assert {"extract", "crm", "sales"} < dag.tags
    assert {task.pool for dag in made(tmp_path, CRM).values() for task in dag.tasks} == {"default_pool"}


def test_the_relay(tmp_path: Path) -> None:
    """It runs when something has changed, and now and then; its consumer reads this source's events only."""
    dags = made(tmp_path, CRM + 'relay: {kafka: bus, topic: "crm.{object}"}')
    assert set(dags) == {"crm_sync", "crm_backfill", "crm_relay"}
    (task,) = dags["crm_relay"].tasks
    assert isinstance(task, RelayEventsOperator)
    told = (task.source, task.kafka_conn_id, task.topic, task.consumer)
    assert told == ("crm", "bus", "crm.{object}", "crm_relay")
    assert dags["crm_relay"].max_active_runs == 1
    assert decoded(dags["crm_relay"]).timetable.can_be_scheduled


ACCOUNTS = """
source: hub
accounts: {acme: acme_api, other: other_api}
pool: 2
objects:
  issues:
    path: /repos/{{ account }}/issues
    records: data
    key: id
    by_key: {path: "/repos/{{ account }}/issues/{{ key }}"}
    pages: {by: token, take: next, send: cursor}
  labels: {path: /labels, records: data, key: id, pages: {by: single}, schema: shared}
"""


def test_accounts(tmp_path: Path) -> None:
    """The same DAGs for each, with a connection, tables, cursors and a pool of its own."""
    dags = made(tmp_path, ACCOUNTS)
    assert set(dags) == {f"hub_{each}_{kind}" for each in ("acme", "other") for kind in ("sync", "backfill")}
    sources = load_sources(tmp_path)
    assert [(each.source, each.connection, each.pool_name) for each in sources.values()] == [
        ("hub_acme", "acme_api", "extract_hub_acme"),
        ("hub_other", "other_api", "extract_hub_other"),
    ]
    acme = sources["hub_acme"]
    assert acme.object("issues").path == "/repos/acme/issues"
    found = acme.object("issues").by_key
    assert found is not None
    assert found.path == "/repos/acme/issues/{{ key }}"
    assert (acme.table("issues"), acme.table("labels")) == (("hub_acme", "issues"), ("shared", "labels_acme"))
    assert "hub" in dags["hub_acme_sync"].tags


def test_accounts_over_a_preset(tmp_path: Path) -> None:
    """In place of the preset's connection."""
    text = "extends: stripe\nsource: pay\naccounts: {eu: stripe_eu, us: stripe_us}\n"
    assert set(made(tmp_path, text)) == {f"pay_{each}_{kind}" for each in ("eu", "us") for kind in ("sync", "backfill")}


def test_an_account_in_the_path_by_key_only(tmp_path: Path) -> None:
    """It needs accounts, too."""
    by_key = CRM.replace("/contacts/{{ key }}", "/{{ account }}/{{ key }}")
    with pytest.raises(SourceError, match="there are no `accounts`"):
        made(tmp_path, by_key)


def test_sources_of_one_name_or_table(tmp_path: Path) -> None:
    """Given as a mapping they are told apart as those of a folder: DAGs of one name would hide each other."""
    one = parse_source({**yaml.safe_load(CRM), "source": "a_b", "connection": "", "accounts": {"c": "x"}}, "one")
    other = parse_source({**yaml.safe_load(CRM), "source": "a", "connection": "", "accounts": {"b_c": "y"}}, "other")
    with pytest.raises(SourceError, match="a_b_c"):
        make_dags({"one": one, "other": other})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("accounts: {acme: acme_api, other: other_api}", "connection: one"), "uses `account`"),
        (("accounts: {", "connection: one\naccounts: {"), "either `connection`"),
        (("accounts: {acme: acme_api, other: other_api}\n", ""), "either `connection`"),
        (("{{ account }}/issues\n", "{{ account | upper }}/issues\n"), "in another way"),
        (("acme: acme_api", "Acme: acme_api"), "Acme"),
        (("schema: shared", f"schema: shared, table: {'long' * 15}"), "63 at most"),
    ],
)
def test_wrong_accounts(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    """They are refused when the file is read."""
    with pytest.raises(SourceError, match=told):
        made(tmp_path, ACCOUNTS.replace(*change))


@pytest.mark.parametrize("dag", ["shop_backfill", "shop_sync"])
def test_the_dag_is_the_same_every_time(dag: str, folder: Path) -> None:
    """Airflow makes a new version of a DAG whose form differs."""
    forms = [json.dumps(DagSerialization.serialize_dag(bag(folder).dags[dag]), sort_keys=True) for _ in "12"]
    assert forms[0] == forms[1]


def test_default_args_lie_over_the_retries(folder: Path) -> None:
    """What is not named stays as it is."""
    (task, *_) = make_dags(folder / "sources", default_args={"retries": 0, "owner": "me"})["shop_backfill"].tasks
    assert (task.retries, task.owner, task.retry_exponential_backoff) == (0, "me", 2.0)


def test_default_args_set_the_slices(folder: Path) -> None:
    """As docs/operations.md says."""
    dags = make_dags(folder / "sources", default_args={"run_for": 600, "pause": 120})
    tasks = [task for dag in dags.values() for task in dag.tasks]
    assert {(task.run_for, task.pause) for task in tasks if isinstance(task, WalkOperator)} == {(600, 120)}


UNTOUCHED = {
    "objects": ["orders", "lines"],
    "walk": "backfill",
    "window_from": None,
    "window_to": None,
    "dry_run": False,
    "reset": "",
    "take_over": False,
    "page_size": None,
    "max_deletes": None,
}


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"objects": ["lines"]},
        {"reset": "shop", "take_over": True, "dry_run": True},
        {"walk": "rebackfill", "max_deletes": 0, "page_size": 2},
        {"window_from": "2026-03-01T00:00:00Z", "window_to": "2026-03-02T00:00:00+01:00"},
    ],
)
def test_the_form_accepts(folder: Path, conf: dict[str, Any]) -> None:
    """All objects unless some are taken away."""
    assert chosen(folder, conf) == UNTOUCHED | conf


@pytest.mark.parametrize(
    "conf",
    [
        {"objects": ["customers"]},
        {"objects": []},
        {"objects": None},
        {"objects": "lines"},
        {"objects": ["lines", "lines"]},
        {"reset": "yes"},
        {"reset": True},
        {"reset": "shop and more"},
        {"reset": "shop\n"},
        {"take_over": None},
        {"walk": "window"},
        {"walk": "incremental"},
        {"walk": "by_key"},
        {"walk": None},
        {"page_size": 1},
        {"page_size": "ten"},
        {"max_deletes": -1},
        {"window_from": "2026-03-01T00:00:00"},
        {"window_from": "2026-03-01"},
        {"window_to": "yesterday"},
        {"window_to": "2026-13-01T00:00:00Z"},
        {"dry_run": "perhaps"},
    ],
)
def test_the_form_refuses(folder: Path, conf: dict[str, Any]) -> None:
    """Airflow answers 400 to what the schema refuses: a walk that none of the objects can do, a date without its zone,
    another word than the source's name."""
    with pytest.raises(ParamValidationError):
        chosen(folder, conf)


@pytest.mark.parametrize("kind", ["backfill", "sync"])
def test_the_form_can_be_sent_as_it_is(tmp_path: Path, kind: str) -> None:
    """The UI lets nobody trigger while a field is empty that does not take null."""
    text = CRM.replace("by_key:", "sweep: {every: 7d}\n    by_key:")
    dag = made(tmp_path, text)[f"crm_{kind}"]
    fields = {name: dag.params.get_param(name) for name in dag.params}
    assert fields
    empty = [name for name, field in fields.items() if field.value in (None, "")]
    assert [name for name in empty if "null" not in fields[name].schema["type"]] == []


def test_the_form_offers_what_the_api_can_do(tmp_path: Path) -> None:
    """Windows where it filters by time, changes where it can be asked for them."""
    walks = made(tmp_path, CRM)["crm_backfill"].params.get_param("walk").schema["enum"]
    assert walks == ["backfill", "incremental", "window", "rebackfill", "by_key"]


WEBHOOKS = """
webhooks:
  main:
    verify: github
    secret: crm_hooks
    type: type
    types: {contact.deleted: {object: contacts, key: id, change: deleted}, "*": {object: contacts, record: data}}
"""


def webhooks(folder: Path, more: str = "") -> DAG:
    """The DAG that applies the webhooks of the CRM."""
    return made(folder, CRM + WEBHOOKS + more)["crm_webhooks"]


def test_without_webhooks_there_is_no_dag_of_them(tmp_path: Path) -> None:
    """With them there is one of each account."""
    assert set(made(tmp_path, CRM)) == {"crm_sync", "crm_backfill"}
    assert set(made(tmp_path, CRM + WEBHOOKS)) == {"crm_sync", "crm_backfill", "crm_webhooks"}
    text = CRM.replace("connection: crm_api", "accounts: {eu: one, us: two}") + WEBHOOKS
    assert {name for name in made(tmp_path, text) if "webhooks" in name} == {"crm_eu_webhooks", "crm_us_webhooks"}


def test_webhooks_by_a_watcher(tmp_path: Path) -> None:
    """The inbox is watched for this source, and the clock starts it in any case, every five minutes."""
    dag = webhooks(tmp_path)
    assert dag.task_ids == ["apply"]
    assert (dag.max_active_runs, dag.catchup, dag.is_paused_upon_creation) == (1, False, None)
    stored = json.dumps(DagSerialization.serialize_dag(dag))
    assert "extract://crm/webhooks/inbox" in stored
    assert "triggers.inbox.InboxTrigger" in stored
    assert due_after(dag) == timedelta(minutes=5)
    assert due_after(webhooks(tmp_path, "webhooks_every: 30s")) == timedelta(seconds=30)
    assert "| main | contact.deleted | contacts | deleted |" in (dag.doc_md or "")


def test_webhooks_by_a_sensor(tmp_path: Path) -> None:
    """It waits in the triggerer, as long as a sweep may be off; one run follows the other, so every error is paced by
    retries. `default_args` may let it wait elsewhere."""
    dag = webhooks(tmp_path, "webhooks_by: sensor\nwebhooks_every: 2m")
    wait, apply = (cast("Any", dag.get_task(name)) for name in ("wait", "apply"))
    assert wait.downstream_task_ids == {"apply"}
    assert (wait.wait, wait.deferrable, wait.source) == (timedelta(minutes=2), True, "crm")
    assert [task.retry_policy for task in (wait, apply)] == [None, None]
    assert {task.retries for task in (wait, apply)} == {3}
    assert decoded(dag).timetable.active_runs_limit == 1
    first, second = runs_of(dag)
    assert first.logical_date != second.logical_date, "Airflow takes one of the same date for the same run"
    (tmp_path / "one.yaml").write_text(CRM + WEBHOOKS + "webhooks_by: sensor")
    dag = make_dags(tmp_path, default_args={"deferrable": False})["crm_webhooks"]
    assert cast("Any", dag.get_task("wait")).deferrable is False


def test_webhooks_by_the_schedule_alone(tmp_path: Path) -> None:
    """Nothing is watched."""
    dag = webhooks(tmp_path, "webhooks_by: schedule")
    assert "InboxTrigger" not in json.dumps(DagSerialization.serialize_dag(dag))
    assert due_after(dag) == timedelta(minutes=5)


def runs_of(dag: DAG) -> tuple[DagRunInfo, DagRunInfo]:
    """The first two runs that the scheduler makes."""
    found = decoded(dag)
    first = found.next_dagrun_info(last_automated_run_info=None)
    assert first is not None
    second = found.next_dagrun_info(last_automated_run_info=first)
    assert second is not None
    return first, second


def due_after(dag: DAG) -> timedelta:
    """How long after a run the next one is due by the clock."""
    first, second = runs_of(dag)
    return second.run_after - first.run_after


@pytest.mark.parametrize("every", ["0s", "5", "often", "500ms"])
def test_wrong_intervals_of_webhooks(tmp_path: Path, every: str) -> None:
    """Refused when the file is read."""
    with pytest.raises(SourceError, match="webhooks_every"):
        webhooks(tmp_path, f"webhooks_every: {every}")


@pytest.mark.parametrize("by", ["watcher", "sensor", "schedule"])
def test_the_webhooks_dag_is_the_same_every_time(tmp_path: Path, by: str) -> None:
    """Airflow makes a new version of a DAG whose form differs."""
    forms = [
        json.dumps(DagSerialization.serialize_dag(webhooks(tmp_path, f"webhooks_by: {by}")), sort_keys=True)
        for _ in "12"
    ]
    assert forms[0] == forms[1]


@pytest.mark.parametrize("replay", ["", None, "all", "12", "12, 15", "1,2 , 3"])
def test_the_form_of_webhooks_accepts(tmp_path: Path, replay: str | None) -> None:
    """Nothing, all dead letters, or those at some places."""
    dag = webhooks(tmp_path)
    found = process_params(dag, dag.tasks[0], {"replay": replay}, suppress_exception=False)
    assert found == {"replay": replay}
    assert "null" in dag.params.get_param("replay").schema["type"]


@pytest.mark.parametrize("replay", ["All", "-1", "12,", "1 2", "all, 3", "12\n", 12, ["12"], "1" * 19])
def test_the_form_of_webhooks_refuses(tmp_path: Path, replay: Any) -> None:
    """Airflow answers 400."""
    dag = webhooks(tmp_path)
    with pytest.raises(ParamValidationError):
        process_params(dag, dag.tasks[0], {"replay": replay}, suppress_exception=False)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Airflow reads .airflowignore by it
def test_the_webhooks_dag_by_hand_is_short_and_loads(folder: Path) -> None:
    """Copied beside the sources. Where it lies, Airflow does not look."""
    by_hand = PROJECT / "dags" / "by_hand" / "webhooks.py"
    assert len(by_hand.read_text().splitlines()) <= 30
    shutil.copy(by_hand, folder)
    (folder / "sources" / "crm.yaml").write_text(CRM + WEBHOOKS)
    found = bag(folder)
    assert found.import_errors == {}
    assert found.dags["crm_events"].task_ids == ["apply"]
    assert "InboxTrigger" in json.dumps(DagSerialization.serialize_dag(found.dags["crm_events"]))
    assert "crm_events" not in DagBag(dag_folder=str(by_hand.parents[1])).dags
