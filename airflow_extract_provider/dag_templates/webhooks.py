"""The webhooks DAG of a source: brings what waits in the inbox into the records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, DeltaTriggerTimetable, Param

from airflow_extract_provider.assets import inbox_of
from airflow_extract_provider.config import store_conn_id
from airflow_extract_provider.dag_templates.arguments import dag_arguments
from airflow_extract_provider.extract.source import Source
from airflow_extract_provider.operators.apply_inbox import ApplyInboxOperator
from airflow_extract_provider.schedule import next_run
from airflow_extract_provider.sensors.inbox import InboxSensor

__all__ = ["webhooks_dag"]

_LONG_AGO = datetime(2026, 1, 1, tzinfo=timezone.utc)
_PLACES = r"^(all|[0-9]{1,18}( *, *[0-9]{1,18})*)?(?!\n)$"


def webhooks_dag(source: Source, default_args: Mapping[str, Any]) -> DAG:
    """The DAG that applies a source's webhooks, as `webhooks_by` says, and every `webhooks_every` in any case: that
    something has come is told at most once, and a run may fail."""
    form = _form()
    with DAG(
        dag_id=f"{source.source}_webhooks",
        schedule=_schedule(source),
        # Where runs follow each other: else the first has an interval of no length, and Airflow takes the second for
        # the same. By the clock there is none, so that not all sources begin in the same second.
        start_date=_LONG_AGO if source.webhooks_by == "sensor" else None,
        catchup=False,
        # Two of them would do each other no harm.
        max_active_runs=1,
        params=form,
        user_defined_macros={"next_run": partial(next_run, source.webhooks_every)},
        **dag_arguments(source, "webhooks", default_args),
        description=f"Applies the webhooks of {source.source} to the copy in Postgres",
        doc_md=_doc(source),
    ) as dag:
        by_sensor = source.webhooks_by == "sensor"
        # By a sensor one run follows the other: one that fails at once must not do so again and again.
        paced: dict[str, Any] = {"retry_policy": None} if by_sensor else {}
        apply = ApplyInboxOperator(
            task_id="apply",
            source=source,
            next_run_at="{{ next_run(dag_run.run_after, dag.timezone) }}",
            replay="{{ params.replay or '' }}",
            fields=list(form),
            **paced,
        )
        if by_sensor:
            deferrable = default_args.get("deferrable", True)
            wait = {"wait": source.webhooks_every, "deferrable": deferrable, **paced}
            InboxSensor(task_id="wait", source=source.source, endpoints=list(source.webhooks), **wait) >> apply
    return dag


def _schedule(source: Source) -> Any:
    every = DeltaTriggerTimetable(source.webhooks_every)
    if source.webhooks_by == "watcher":
        return AssetOrTimeSchedule(timetable=every, assets=inbox_of(source.source, endpoints=list(source.webhooks)))
    # The sensor waits for so long at most.
    return "@continuous" if source.webhooks_by == "sensor" else every


def _form() -> dict[str, Param]:
    return {
        "replay": Param(
            "",
            # With "null", or the UI would not let anybody trigger who leaves it empty.
            type=["null", "string"],
            pattern=_PLACES,
            # No keyword of JSON schema: Airflow's answer to a wrong value shows the schema.
            expected="nothing, all, or places such as 12, 15",
            title="Dead letters to try again (replay)",
            description_md="Leave it empty to apply what waits. Type **all**, or places such as **12, 15**, to try "
            "dead letters again, once what was wrong with them is mended: `airflow extract inbox dead list`.",
        ),
    }


_BY = {
    "watcher": "as they come (the triggerer watches the inbox, and starts a run)",
    "sensor": "as they come (the task `wait` waits for them, in the triggerer; one run follows the other)",
    "schedule": "by the schedule alone",
}


def _doc(source: Source) -> str:
    rows = "\n".join(
        f"| {endpoint} | {type} | {told.object} | {_reads(source, endpoint, type)} |"
        for endpoint, spec in source.webhooks.items()
        for type, told in spec.types.items()
    )
    return f"""\
### {source.source}: webhooks

Applies the webhooks that wait in the inbox: {_BY[source.webhooks_by]}, and every {source.webhooks_every} in any case.

- **The inbox is what counts,** not what has started a run: webhooks that a failed run has left are applied by the next
  one. Late, twice, or in another order, they change nothing about the copy: only a newer version is stored, and where
  that cannot be told the record is read by its key.
- **`{source.source}_sync` stays the foundation:** what no webhook tells of it finds.
- **A message that cannot be applied** is tried again, then a dead letter: the log warns of it, and the run succeeds.
  `airflow extract inbox dead list --source {source.source}` tells which, and why. Once that is mended, trigger this DAG
  with *Dead letters to try again*.
- **While another run holds an object,** such as one of `{source.source}_backfill`, what is to be read of it by key is
  left, and read later: the log says so, and `left` in XCom.

API: connection `{source.connection}`. Store: connection `{store_conn_id()}`.

| endpoint | type | object | |
|---|---|---|---|
{rows}
"""


def _reads(source: Source, endpoint: str, type: str) -> str:
    told = source.webhooks[endpoint].types[type]
    if told.change == "deleted":
        return "deleted"
    return "stored from the message" if source.pays(told) else "read by key"
