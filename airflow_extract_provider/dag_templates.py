"""Makes the DAGs of a source: everything in them follows from its file.

Nothing is read at parse time but those files, and nothing in a DAG depends on the clock or the machine: Airflow makes a
new version of a DAG whenever its form differs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, TaskGroup

from airflow_extract_provider.assets import asset_of
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.operators.backfill import BackfillOperator
from airflow_extract_provider.operators.by_key import ByKeyOperator
from airflow_extract_provider.operators.incremental import IncrementalOperator
from airflow_extract_provider.operators.rebackfill import RebackfillOperator
from airflow_extract_provider.operators.walk import WalkOperator
from airflow_extract_provider.schedule import next_run, schedule_of

__all__ = ["make_dags"]

_RETRIES: Mapping[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
}


def make_dags(
    sources: str | os.PathLike[str] | Mapping[str, Source], *, default_args: Mapping[str, Any] | None = None
) -> dict[str, DAG]:
    """The DAGs of some sources, by id: of each one its ``{source}_sync``, which runs by the source's `schedule`, and
    its ``{source}_backfill``, which runs when somebody asks for it.

    ``sources``: a folder of YAML files, relative to the file that calls, or sources by name. ``default_args`` are for
    all tasks, over the retries that are set here. Use it in a DAG file as ``globals().update(make_dags("sources"))``.

    Raises SourceError: a file is wrong, or the folder holds none.
    """
    if not isinstance(sources, Mapping):
        # The caller's file, not the working directory, which differs between Airflow's components.
        beside = Path(sys._getframe(1).f_globals.get("__file__", "")).parent
        sources = load_sources(beside / sources)
    arguments = {**_RETRIES, **(default_args or {})}
    made = [make(source, arguments) for source in sources.values() for make in (_sync_dag, _backfill_dag)]
    return {dag.dag_id: dag for dag in made}


def _sync_dag(source: Source, default_args: Mapping[str, Any]) -> DAG:
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
        default_args=dict(default_args),
        user_defined_macros={"next_run": partial(next_run, schedule)},
        tags=["extract", source.source, "sync"],
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

API: connection `{source.connection}`. Store: connection `extract_store`, with tables made by `airflow extract migrate`.

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


def _backfill_dag(source: Source, default_args: Mapping[str, Any]) -> DAG:
    # Without a schedule it does nothing unless asked to: paused, it would only make the first person wait.
    with DAG(
        dag_id=f"{source.source}_backfill",
        schedule=None,
        is_paused_upon_creation=False,
        params=_backfill_form(source),
        default_args=dict(default_args),
        tags=["extract", source.source, "backfill"],
        description=f"Copies {source.source} into Postgres, from the beginning",
        doc_md=_backfill_doc(source),
    ) as dag:
        for name in source.objects:
            BackfillOperator(
                task_id=name,
                source=source,
                object=name,
                selected=f"{{{{ '{name}' in params.objects }}}}",
                reset="{{ params.reset }}",
                take_over="{{ params.take_over }}",
            )
    return dag


def _backfill_form(source: Source) -> dict[str, Param]:
    """What a person chooses when triggering; the schema makes Airflow refuse anything else."""
    names = list(source.objects)
    return {
        "objects": Param(
            names,
            type="array",
            title="Objects",
            description="What to copy; all of them unless you take some away.",
            # The form makes a choice of `examples`; `items` is what is checked.
            examples=names,
            items={"type": "string", "enum": names},
            minItems=1,
            uniqueItems=True,
        ),
        "reset": Param(
            False,
            type="boolean",
            title="Start over (reset)",
            description="Read from the first page again, instead of going on: for what the sync does not see. "
            "Nothing is stored twice.",
        ),
        "take_over": Param(
            False,
            type="boolean",
            title="Take over (take_over)",
            description="Go on in place of another run that holds an object, instead of waiting for it. That run ends "
            "with FencedError.",
        ),
    }


def _backfill_doc(source: Source) -> str:
    rows = "\n".join(_row(source, name, found) for name, found in source.objects.items())
    return f"""\
### {source.source}: backfill

Copies each selected object into Postgres, from the first page to the last, in the API's own order.

- **Nothing is skipped:** the walk moves past a page only when its records are committed. When that cannot be kept, the
  task stops with an error that says why, and holds its cursor.
- **Trigger it again at any time:** it goes on where it stands. A page that is read twice changes nothing. Once an
  object is complete there is nothing to do: what has changed since is brought by `{source.source}_sync`, as far as the
  API can be asked for it. *Start over* reads everything again.
- **While another run holds an object,** such as one of the sync, its task waits (`up_for_reschedule`) and its log says
  for whom. *Take over* does not wait.
- **Where it stands** is in the Variables `extract_{source.source}_<object>_backfill_cursor`. Edit one back to an
  earlier value, and the walk goes on from there; delete it, and the walk starts over.
- **Long walks** work in slices, between which other tasks get their turn (`up_for_reschedule`).

API: connection `{source.connection}`. Store: connection `extract_store`, with tables made by `airflow extract migrate`.

| object | path | key | table |
|---|---|---|---|
{rows}
"""


def _row(source: Source, name: str, found: ApiObject) -> str:
    key = ", ".join(".".join(path) for path in found.key)
    return f"| {name} | `{found.path}` | {key} | `{'.'.join(source.table(name))}` |"
