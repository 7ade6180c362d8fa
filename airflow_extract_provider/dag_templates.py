"""Makes the DAGs of a source: everything in them follows from its file.

Nothing is read at parse time but those files, and nothing in a DAG depends on the clock or the machine: Airflow makes a
new version of a DAG whenever its form differs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param

from airflow_extract_provider.extract.source import ApiObject, Source, load_sources
from airflow_extract_provider.operators.backfill import BackfillOperator

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
    """The DAGs of some sources, by id; at present one backfill DAG each.

    ``sources``: a folder of YAML files, relative to the file that calls, or sources by name. ``default_args`` are for
    all tasks, over the retries that are set here. Use it in a DAG file as ``globals().update(make_dags("sources"))``.

    Raises SourceError: a file is wrong, or the folder holds none.
    """
    if not isinstance(sources, Mapping):
        # The caller's file, not the working directory, which differs between Airflow's components.
        beside = Path(sys._getframe(1).f_globals.get("__file__", "")).parent
        sources = load_sources(beside / sources)
    made = [_backfill_dag(source, {**_RETRIES, **(default_args or {})}) for source in sources.values()]
    return {dag.dag_id: dag for dag in made}


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
            title="Start over",
            description="Read from the first page again, instead of going on. Needed to bring changes once an object "
            "is complete. Nothing is stored twice.",
        ),
        "take_over": Param(
            False,
            type="boolean",
            title="Take over",
            description="Go on in place of another run that reads the same object now. That run ends with FencedError.",
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
  object is complete there is nothing to do: *Start over* reads it again, to bring what has changed since.
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
