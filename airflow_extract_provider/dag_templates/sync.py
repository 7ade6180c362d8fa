"""The sync DAG of a source: for each object what it needs, one task after the other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, TaskGroup

from airflow_extract_provider.assets import asset_of
from airflow_extract_provider.config import store_conn_id
from airflow_extract_provider.dag_templates.arguments import dag_arguments
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.by_key import ByKeyOperator
from airflow_extract_provider.operators.incremental import IncrementalOperator
from airflow_extract_provider.operators.rebackfill import RebackfillOperator
from airflow_extract_provider.operators.walk import WalkOperator
from airflow_extract_provider.schedule import next_run, schedule_of

__all__ = ["sync_dag"]


def sync_dag(source: Source, default_args: Mapping[str, Any]) -> DAG:
    """The DAG that keeps the copy equal to the API, by the source's `schedule`."""
    schedule = schedule_of(source.source, source.schedule)
    # Whether it is paused at first is left to Airflow, by default it is: it acts on its own, and should not before the
    # connections and tables are there. One run at a time: a second one would find its objects held by the first.
    with DAG(
        dag_id=f"{source.source}_sync",
        schedule=schedule,
        catchup=False,
        max_active_runs=1,
        # No backfill over intervals: it would ignore the bound above, and no task looks at an interval.
        allowed_run_types=["scheduled", "manual"],  # type: ignore[list-item]  # texts are converted
        params=_sync_form(source),
        user_defined_macros={"next_run": partial(next_run, schedule)},
        **dag_arguments(source, "sync", default_args),
        description=f"Keeps the copy of {source.source} in Postgres equal to the API",
        doc_md=_sync_doc(source),
    ) as dag:
        for name, found in source.objects.items():
            with TaskGroup(name):
                _chain(source, name, found)
    return dag


def _chain(source: Source, name: str, found: ApiObject) -> None:
    """An object's tasks, one after the other. What cannot be done now is left to the next run, so that neither a long
    walk nor a run of the backfill DAG keeps the source's other objects waiting."""
    given: dict[str, Any] = {
        "source": source,
        "object": name,
        "next_run_at": "{{ next_run(dag_run.run_after, dag.timezone) }}",
    }
    tasks: list[WalkOperator] = [BackfillOperator(task_id="backfill", **given)]
    if found.incremental:
        tasks.append(IncrementalOperator(task_id="incremental", **given))
    if found.by_key is not None:
        # What was noted is read also while the backfill is not complete and the task before is skipped.
        tasks.append(ByKeyOperator(task_id="by_key", trigger_rule="none_failed", **given))
    if found.sweep is not None:
        # Last, and whatever became of the others: neither must a record that cannot be read by key keep the sweeps from
        # beginning, nor a sweep that may not delete what it has not seen keep the others waiting until somebody looks.
        asked = {
            "reset": f"{{{{ '{name}' in params.sweep_now }}}}",
            "max_deletes": f"{{{{ params.max_deletes.get('{name}') }}}}",
        }
        tasks.append(RebackfillOperator(task_id="rebackfill", trigger_rule="all_done", **asked, **given))
    for before, after in pairwise(tasks):
        before >> after
    if found.sweep is not None:
        # A run is what its last tasks are: without this one it would be a success though others had failed.
        tasks >> EmptyOperator(task_id="outcome", trigger_rule="none_failed")


def _sync_form(source: Source) -> dict[str, Param]:
    """What a person may ask of one run; a scheduled one has the defaults."""
    swept = [name for name, found in source.objects.items() if found.sweep is not None]
    if not swept:
        return {}
    return {
        "sweep_now": Param(
            [],
            type="array",
            title="Sweep now (sweep_now)",
            description="Objects of which everything is read again in this run, whether that is due or not.",
            examples=swept,
            items={"type": "string", "enum": swept},
            uniqueItems=True,
        ),
        "max_deletes": Param(
            {},
            type="object",
            title="Deletes allowed (max_deletes)",
            properties={name: {"type": "integer", "minimum": 0} for name in swept},
            additionalProperties=False,
            description="When a sweep has stopped with TooManyDeletesError, and the records are gone indeed: how many "
            f'it may delete in this run, by object, such as {{"{swept[0]}": 100}}. Else as the source file says.',
        ),
    }


def _sync_doc(source: Source) -> str:
    rows = "\n".join(_sync_row(name, found) for name, found in source.objects.items())
    return f"""\
### {source.source}: sync

Keeps the copy in Postgres equal to the API, by the schedule `{source.schedule}`. Switch it on once the connections and
the tables are there.

- **`backfill`** copies an object from its first page to its last. Once that is done it does nothing.
- **`incremental`** brings what has changed since the last run, from a little before the instant up to which the copy is
  complete. Its result in XCom tells that instant (`complete_to`), the lag, and what it has created and updated.
- **`by_key`** reads records again of which a list could not tell the newest state.
- **`rebackfill`** sweeps an object when that is due: it reads everything again, finds changes that the API does not
  tell of, and deletes what is not there any more. If that were more than the source's `max_deletes`, it stops with
  TooManyDeletesError, and deletes nothing. Trigger the DAG with *Sweep now* not to wait, and with *Deletes allowed*
  once you know that the records are gone. Its report is in XCom (`sweep`), in its log, and in `extract.sweep`.
- **`outcome`** fails if one of them has.

One object's failure does not stop the others. A walk that takes longer works in slices and, when the next run is due,
leaves the rest to it; a task is *skipped* while another run, such as one of `{source.source}_backfill`, holds its
object. The log says so. For a first copy without such breaks, trigger `{source.source}_backfill`.

**Where each walk stands** is in the Variables `extract_{source.source}_<object>_<walk>_cursor`. Set `closed` of an
incremental one back to an earlier instant, and the next run brings again what has changed since then.

**To run another DAG when an object has changed,** schedule it on the object's asset, such as
`schedule=[Asset("{asset_of(source.source, next(iter(source.objects))).uri}")]`. A task that has changed nothing reports
no event of it.

API: connection `{source.connection}`. Store: connection `{store_conn_id()}`, with tables made by `airflow extract
migrate`.

| object | new and changed records | deleted records | read again by key |
|---|---|---|---|
{rows}
"""


def _sync_row(name: str, found: ApiObject) -> str:
    sweep = None if found.sweep is None else f"by `rebackfill`, every {found.sweep.cadence}"
    changed = sweep or "**not seen** after the backfill: the API cannot be asked"
    if found.incremental:
        changed = "by `incremental`" + (f"; all {sweep}" if sweep else "")
    # A tombstone comes with the changes: without these nobody asks for it.
    deleted = f"those with `{'.'.join(found.deleted)}`" if found.deleted and found.incremental else "**not seen**"
    if sweep:
        deleted = f"{deleted}; all {sweep}" if found.deleted and found.incremental else sweep
    return f"| {name} | {changed} | {deleted} | {'yes' if found.by_key else 'no'} |"
