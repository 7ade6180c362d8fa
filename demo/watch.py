"""Watching Airflow while it works: runs that are triggered and awaited, what is committed meanwhile, and failures."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, TypeVar

import psycopg

from demo.airflow_api import FINISHED, AirflowApi, AirflowApiError, TaskInstance
from demo.progress import Progress
from demo.services import BACKFILL, OBJECTS, STRIPE_SYNC, SYNC, Services

RUN_SECONDS = 900.0
SYNC_SECONDS = 180.0

Found = TypeVar("Found", bool, str)
Run = tuple[str, str]
"""A DAG and one of its runs."""


class Watch:
    """Shows what is committed from now on, and tells of each failure once."""

    def __init__(self, services: Services, progress: Progress) -> None:
        """Begin at what is committed now; ``begin`` is the newest row of the ledger."""
        self._services, self._progress = services, progress
        self._api = services.airflow.api
        self._told: set[tuple[str, str, int]] = set()
        self.begin = self._newest_page()

    def backfill(self, reset: bool) -> tuple[Run, str]:
        """Trigger the backfill of all objects as a person would, and watch it; return its run and how it ended."""
        self._api.unpause(BACKFILL)
        source = BACKFILL.removesuffix("_backfill")
        run = (BACKFILL, self._api.trigger(BACKFILL, {"objects": list(OBJECTS), "reset": source if reset else ""}))
        again = ", from the start again" if reset else ""
        self._progress.say(f"triggered {BACKFILL} for {', '.join(OBJECTS)}{again}")
        self.begin = self._newest_page()
        return run, self._wait_for([run])

    def sweep(self) -> tuple[list[Run], str]:
        """Have all objects swept now, as a person would, and watch it; return the runs and how they ended.

        Triggered first, then switched on: the run that was asked for comes before one of the schedule.
        """
        asked = {STRIPE_SYNC: list(OBJECTS), SYNC: ["contacts"]}
        runs = [(dag, self._api.trigger(dag, {"sweep_now": objects})) for dag, objects in asked.items()]
        for dag, objects in asked.items():
            self._api.unpause(dag)
            self._progress.say(f"triggered {dag} with sweep_now: {', '.join(objects)}")
        return runs, self._wait_for(runs)

    def wait_for_sync(self, after: datetime) -> bool:
        """Wait for a run of the sync that began after an instant and has read all; return whether it succeeded."""

        def success() -> bool | None:
            for run in reversed(self._api.runs(SYNC)):
                if run["state"] not in FINISHED or began(run) < after:
                    continue
                if run["state"] == "failed":
                    return False
                if any(
                    report.get("walk") == "incremental" for _, report in reports(self._api, (SYNC, run["dag_run_id"]))
                ):
                    return True
            return None

        succeeded = self._until(success, [], SYNC_SECONDS, f"a run of {SYNC}")
        self._progress.say(f"a whole run of {SYNC} ended: {'success' if succeeded else 'failed'}")
        return succeeded

    def _wait_for(self, runs: list[Run]) -> str:
        """Watch runs to their end; return how they ended: as the first one that did not succeed, if there is one."""

        def state() -> str | None:
            states = [self._api.run(*run)["state"] for run in runs]
            if not all(each in FINISHED for each in states):
                return None
            return next((str(each) for each in states if each != "success"), "success")

        ended_as = self._until(state, runs, RUN_SECONDS, f"a run of {', '.join(dag for dag, _ in runs)}")
        self._progress.say(f"the run{'s' * (len(runs) > 1)} ended: {ended_as}")
        return ended_as

    def _until(self, look: Callable[[], Found | None], runs: list[Run], seconds: float, what: str) -> Found:
        until = time.monotonic() + seconds
        while (found := look()) is None:
            self._show(runs)
            if time.monotonic() > until:
                raise AirflowApiError(f"{what} has not ended after {seconds:.0f} s")
            time.sleep(0.7)
        self._show(runs)
        return found

    def _show(self, runs: list[Run]) -> None:
        """Show the tasks' states and what is committed."""
        newest = next(iter(self._api.runs(SYNC, most=1)), None)
        states: dict[str | None, str] = {}
        if newest is not None:
            states["contacts"] = newest["state"]
            runs = [*runs, (SYNC, newest["dag_run_id"])] if (SYNC, newest["dag_run_id"]) not in runs else runs
        for run in runs:
            tasks = self._api.task_instances(*run)
            self._tell_failures(run, tasks)
            if run[0] != SYNC:
                states |= {object_of(task): task.state or "waiting" for task in tasks if main(task)}
        with psycopg.connect(self._services.store) as connection:
            records: dict[str, int] = dict(connection.execute(COMMITTED, [self.begin]).fetchall())
        shown = (*(OBJECTS if any(dag != SYNC for dag, _ in runs) else ()), "contacts")
        self._progress.show(
            " · ".join(f"{name} {records.get(name, 0):,} {states.get(name, 'waiting')}" for name in shown)
        )

    def _tell_failures(self, run: Run, tasks: list[TaskInstance]) -> None:
        """Say once per try why a task failed; it may be tried again for minutes before the run fails."""
        dag, name = run
        for task in tasks:
            one = (name, task.task_id, task.try_number)
            if task.state not in ("failed", "up_for_retry") or one in self._told:
                continue
            self._told.add(one)
            why = self._api.complaints(dag, name, task.task_id, task.try_number, task.map_index)[-5:]
            words = "\n    ".join(why or ["its log says nothing"])
            self._progress.say(f"{dag} {task.task_id}, try {task.try_number}: {task.state}\n    {words}")

    def _newest_page(self) -> int:
        with psycopg.connect(self._services.store) as connection:
            row = connection.execute("select coalesce(max(sequence), 0) from extract.ledger").fetchone()
            return int(row[0]) if row else 0


# Of Stripe's objects the records read, of the contacts the changes: the sync reads the newest ones again and again.
COMMITTED = """
    select object, (case when source = 'stripe' then sum(records) else sum(changes) end)::bigint
    from extract.ledger, lateral (
        select coalesce(sum(value::bigint), 0) as changes from jsonb_each_text(counts)
        where key in ('created', 'updated', 'undeleted', 'deleted')
    ) as counted
    where sequence > %s group by source, object
"""


def object_of(task: TaskInstance) -> str | None:
    """Return which object a task works on; the object's name is its id, or a part of it."""
    return next((part for part in task.task_id.split(".") if part in (*OBJECTS, "contacts")), None)


def main(task: TaskInstance) -> bool:
    """Tell whether it is the task that a person looks at: the object's only one, or its sweep."""
    return "." not in task.task_id or task.task_id.endswith(".rebackfill")


def reports(api: AirflowApi, run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Return what each task of a run reported about its work, with its object."""
    found = []
    for task in api.task_instances(*run):
        name = object_of(task)
        report = api.xcom(*run, task.task_id, map_index=task.map_index) if name else None
        if name and isinstance(report, dict):
            found.append((name, report))
    return found


def sweeps_said(api: AirflowApi, runs: Iterable[Run]) -> list[str]:
    """Return the line in which each sweep of these runs says in its task's log what it has found."""
    tasks = [(run, task) for run in runs for task in api.task_instances(*run) if task.task_id.endswith(".rebackfill")]
    logs = [api.messages(*run, task.task_id, task.try_number, task.map_index) for run, task in tasks]
    return [line for log in logs for line in log if " sweep   done: " in line]


def began(run: dict[str, Any]) -> datetime:
    """Return when a run began, or the beginning of time if it has not."""
    return instant(run["start_date"]) or datetime.min.replace(tzinfo=timezone.utc)


def ended(run: dict[str, Any]) -> datetime | None:
    """Return when a run ended, or None if it has not."""
    return instant(run["end_date"])


def instant(text: str | None) -> datetime | None:
    """Read an instant as Airflow's API writes it."""
    return None if text is None else datetime.fromisoformat(text)


def now() -> datetime:
    """Return this machine's clock, which is Airflow's too."""
    return datetime.now(timezone.utc)
