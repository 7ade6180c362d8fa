"""The backfill DAG of a source: what a person asks for by its form, and windows of time by Airflow's *Run Backfill*."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import DAG, Param

from airflow_extract_provider.config import store_conn_id
from airflow_extract_provider.dag_templates.arguments import dag_arguments
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.operators.asked import FORM_WALKS, AskedOperator
from airflow_extract_provider.schedule import windows_of

__all__ = ["backfill_dag"]

_INSTANT = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,9})?)?"
    r"(Z|z|[+-]([01]\d|2[0-3]):?[0-5]\d)(?!\n)$"
)
"""An instant with its zone. The format `date-time` alone is checked only where a library for it is installed."""
_SELDOM = "Seldom needed"
"""The part of the form that is folded up at first. In its texts only bold is seen: code covers the next line."""


def backfill_dag(source: Source, default_args: Mapping[str, Any]) -> DAG:
    """The DAG that does what somebody asks for; and, where the API filters by time, reads windows of time."""
    windows, form = windows_of(source), _form(source)
    with DAG(
        dag_id=f"{source.source}_backfill",
        schedule=windows,
        catchup=False,
        # Without a schedule it does nothing unless asked to: paused, it would only make the first person wait. With
        # one, whether it is paused at first is left to Airflow, as for the sync.
        is_paused_upon_creation=None if windows is not None else False,
        params=form,
        **dag_arguments(source, "backfill", default_args),
        description=f"Copies {source.source} into Postgres, from the beginning or window by window",
        doc_md=_doc(source, windowed=windows is not None),
    ) as dag:
        for name in source.objects:
            AskedOperator(
                task_id=name,
                source=source,
                object=name,
                selected=f"{{{{ '{name}' in params.objects }}}}",
                chosen="{{ params.walk }}",
                window_from="{{ params.window_from or '' }}",
                window_to="{{ params.window_to or '' }}",
                page_size="{{ params.page_size or '' }}",
                max_deletes="{{ '' if params.max_deletes is none else params.max_deletes }}",
                reset=f"{{{{ params.reset == '{source.source}' }}}}",
                take_over="{{ params.take_over }}",
                trial="{{ params.dry_run }}",
                fields=list(form),
            )
    return dag


def _form(source: Source) -> dict[str, Param]:
    """What a person chooses when triggering; the schema makes Airflow refuse anything else.

    All have defaults: the runs by the schedule, and those of a backfill, have no form.
    """
    return {**_what(source), **_window(), **_how(source.source), **_seldom()}


def _what(source: Source) -> dict[str, Param]:
    names = list(source.objects)
    window = " For **window**, fill in From and To. **Run Backfill** reads windows, whatever stands here."
    walks = [walk for walk in FORM_WALKS if any(_can(walk, found) for found in source.objects.values())]
    return {
        "objects": Param(
            names,
            type="array",
            title="Objects",
            description_md="What to copy; all of them unless you take some away.",
            # The form makes a choice of `examples`; `items` is what is checked.
            examples=names,
            items={"type": "string", "enum": names},
            minItems=1,
            uniqueItems=True,
        ),
        "walk": Param(
            "backfill",
            type="string",
            enum=walks,
            title="Walk (walk)",
            description_md="An object that cannot be asked so is skipped." + window * ("window" in walks),
            values_display={walk: f"{walk}: {FORM_WALKS[walk]}" for walk in walks},
        ),
    }


def _window() -> dict[str, Param]:
    bounds: dict[str, Any] = {
        "type": ["null", "string"],
        "format": "date-time",
        "pattern": _INSTANT,
        # No keyword of JSON schema: Airflow's answer to a wrong value shows the schema, and a pattern is hard to read.
        "expected": "an instant with its zone, such as 2026-03-01T00:00:00Z",
    }
    return {
        "window_from": Param(
            None,
            **bounds,
            title="From (window_from)",
            description_md="For the walk **window**: where it begins, in the zone that this page shows times in.",
        ),
        "window_to": Param(
            None,
            **bounds,
            title="To (window_to)",
            description_md="For the walk **window**: where it ends. It is the first instant not to be read, and has "
            "passed.",
        ),
    }


def _how(name: str) -> dict[str, Param]:
    return {
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run (dry_run)",
            description_md="Send the first request only, store nothing, and tell in the log what the whole would take.",
        ),
        "reset": Param(
            "",
            # With "null", or the UI would not let anybody trigger who leaves it empty.
            type=["null", "string"],
            pattern=f"^({name})?(?!\\n)$",
            title="Start over (reset)",
            description_md=f"Leave it empty to go on where the walk stands. To read from the first page again, type "
            f"**{name}**. Nothing is stored twice. A window is read again though it is covered.",
        ),
    }


def _seldom() -> dict[str, Param]:
    return {
        "take_over": Param(
            False,
            type="boolean",
            title="Take over (take_over)",
            section=_SELDOM,
            description_md="Go on in place of another run that holds an object, instead of waiting for it. That run "
            "ends with FencedError.",
        ),
        "page_size": Param(
            None,
            type=["null", "integer"],
            minimum=2,
            title="Smaller pages (page_size)",
            section=_SELDOM,
            description_md="The most records of a page, for an API that struggles; never more than the source file "
            "says.",
        ),
        "max_deletes": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            title="Deletes allowed (max_deletes)",
            section=_SELDOM,
            description_md="For the walk **rebackfill**: how many records the sweep may delete; empty: as the source "
            "file says.",
        ),
    }


def _can(walk: str, found: ApiObject) -> bool:
    """Whether an object can be asked so."""
    able = {"incremental": found.incremental, "window": found.windowed, "by_key": found.by_key is not None}
    return able.get(walk, True)


def _doc(source: Source, *, windowed: bool) -> str:
    rows = "\n".join(_row(source, name, found) for name, found in source.objects.items())
    windows = _WINDOWS if windowed else ""
    return f"""\
### {source.source}: backfill

Does what you ask for: *Trigger* opens a form. Without changing anything there it copies each object into Postgres, from
the first page to the last, in the API's own order.

- **Nothing is skipped:** a walk moves past a page only when its records are committed. When that cannot be kept, the
  task stops with an error that says why, and holds its cursor.
- **Trigger it again at any time:** it goes on where it stands. A page that is read twice changes nothing. Once an
  object is complete there is nothing to do: what has changed since is brought by `{source.source}_sync`, as far as the
  API can be asked for it. *Start over* reads everything again.
- **Not sure?** *Dry run* sends one request an object, stores nothing, and tells how many pages and requests it takes.
- **While another run holds an object,** such as one of the sync, its task waits (`up_for_reschedule`) and its log says
  for whom. *Take over* does not wait.
- **Where it stands** is in the Variables `extract_{source.source}_<object>_backfill_cursor`. Edit one back to an
  earlier value, and the walk goes on from there; delete it, and the walk starts over.
- **Long walks** work in slices, between which other tasks get their turn (`up_for_reschedule`).
{windows}
API: connection `{source.connection}`. Store: connection `{store_conn_id()}`, with tables made by `airflow extract
migrate`.

| object | path | key | table |
|---|---|---|---|
{rows}
"""


_WINDOWS = """
**Windows of time.** *Run Backfill* over a range of dates reads what changed in each interval, for the objects whose API
filters by time; the others are skipped. It moves no other walk's cursor. What the copy is complete for already costs
nothing, unless you fill in *Start over*, or choose to reprocess. By its schedule the DAG reads the last closed window
again, as an audit, of objects whose backfill has come to its end: switch it on for that, or leave it paused.
"""


def _row(source: Source, name: str, found: ApiObject) -> str:
    key = ", ".join(".".join(path) for path in found.key)
    return f"| {name} | `{found.path}` | {key} | `{'.'.join(source.table(name))}` |"
