"""The demo's two rounds: everything from the beginning, then once more while others write; each judged at its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

import psycopg

from demo.airflow_api import FINISHED, AirflowApi, AirflowApiError, TaskInstance
from demo.events import compare, expected, outbox, polled_steps, steps, untold_contacts
from demo.kinto_contacts import State, Truth, truth_over_http, writing
from demo.progress import Progress
from demo.services import BACKFILL, OBJECTS, SYNC, Services
from demo.stripe_changes import changing
from demo.table import Work, print_events, print_table
from demo.verify import Listing, listings, verify, verify_contacts

RUN_SECONDS = 900.0
SYNC_SECONDS = 180.0
# Kinto's `late` in sources/crm.yaml, and its `Date`, which has whole seconds.
SETTLE = timedelta(seconds=5 + 1.2)
STRIPE_PAUSE = 0.03
KINTO_PAUSE = 0.3

Found = TypeVar("Found", bool, str)


@dataclass(frozen=True)
class Look:
    """All that both APIs held at a moment at which nobody wrote."""

    stripe: dict[str, Listing]
    contacts: Truth


def first_round(services: Services, progress: Progress) -> tuple[Look, bool]:
    """Copy all that is there; return it, and whether every object is equal."""
    progress.say("round 1: everything, from the beginning")
    begin = now()
    services.airflow.api.unpause(SYNC)
    progress.say(f"switched on {SYNC}, which runs every 15 s")
    watching = Watch(services, progress)
    run, state = watching.backfill(reset=False)
    synced = watching.wait_for_sync(begin)
    there = look(services, progress)
    equal = judge(services, there, begin, [run])
    silent = not outbox(services.store)
    progress.say(f"the outbox is {'empty: what was there at first is no news' if silent else 'NOT empty'}")
    return there, equal and silent and state == "success" and synced


def second_round(services: Services, progress: Progress, before: Look) -> bool:
    """Copy while others write, and once more when they are done; return whether all is equal, and told as events.

    ``before`` is what the APIs hold at the beginning.
    """
    kinto, stripe = services.kinto.url, services.stripe.url
    progress.say("round 2: others write in both APIs while all is read again")
    begin, watching = now(), Watch(services, progress)
    with (
        writing(kinto, seed=2, own=services.contacts, pause=KINTO_PAUSE) as written,
        changing(stripe, seed=2, pause=STRIPE_PAUSE) as changed,
    ):
        first, state = watching.backfill(reset=True)
        synced = watching.wait_for_sync(begin)
    stopped = now()
    batches, operations = sum(each.batches for each in written), sum(each.operations for each in written)
    progress.say(f"the writers stopped: {operations:,} operations in {batches:,} batches in Kinto, by four at once;")
    progress.say(f"in localstripe: {', '.join(f'{what} {count}' for what, count in sorted(changed.items()))}")
    # Nothing in localstripe tells what has changed: what was read before its change is seen by reading it again.
    second, again = watching.backfill(reset=True)
    settled = watching.wait_for_sync(stopped + SETTLE)
    after = look(services, progress)
    equal = judge(services, after, begin, [first, second])
    told = judge_events(services, before, after, [each for writer in written for each in writer.states])
    return equal and told and (state, again) == ("success", "success") and synced and settled


def look(services: Services, progress: Progress) -> Look:
    """Read both APIs in full."""
    progress.say("reading both APIs in full, with plain HTTP")
    return Look(listings(services.stripe.url), truth_over_http(services.kinto.url))


def judge(services: Services, there: Look, begin: datetime, backfills: list[str]) -> bool:
    """Compare, print the table with the work done since ``begin``; return whether every object is equal."""
    api = services.airflow.api
    verdicts = verify(there.stripe, services.store) + verify_contacts(there.contacts, services.store)
    work: dict[str, Work] = {}
    syncs = [run["dag_run_id"] for run in api.runs(SYNC) if (ended(run) or begin) > begin]
    for dag, runs in ((BACKFILL, backfills), (SYNC, syncs)):
        for run in runs:
            for name, report in reports(api, dag, run):
                work.setdefault(name, Work()).add(report)
    print_table(verdicts, work)
    return all(verdict.equal for verdict in verdicts)


def judge_events(services: Services, before: Look, after: Look, log: list[State]) -> bool:
    """Compare the outbox with what the scripts changed, print the table; return whether all is told.

    ``log`` is what Kinto answered to the writers.
    """
    events = outbox(services.store)
    seen = {(each.key, each.at) for each in events if each.object == "contacts" and each.at is not None}
    found = {name: steps(before.stripe[name], after.stripe[name]) for name in OBJECTS}
    found["contacts"] = polled_steps(before.contacts, log, after.contacts, seen)
    verdicts = compare(expected(found), events)
    untold = untold_contacts(services.store)
    print_events(verdicts, events)
    explain(before, after, len(log), seen)
    if untold:
        print(f"{len(untold):,} contacts have a stored change without an event: {', '.join(untold[:3])}, ...")
    return all(verdict.equal for verdict in verdicts) and not untold


def explain(before: Look, after: Look, written: int, seen: set[tuple[str, int]]) -> None:
    """Say what the events are compared with."""
    unseen = after.contacts.deleted.keys() - before.contacts.live.keys() - {key for key, _ in seen}
    print("by the scripts: in localstripe, what differs between two full listings; each such thing was changed once;")
    print(f"  in Kinto, where {len(seen):,} of {written:,} states were seen, what these tell, joined end to end;")
    print(f"  {len(unseen):,} contacts came and went between two looks: stored as deleted, but no news", flush=True)


class Watch:
    """Shows what is committed from now on, and tells of each failure once."""

    def __init__(self, services: Services, progress: Progress) -> None:
        """Begin at what is committed now."""
        self._services, self._progress = services, progress
        self._api = services.airflow.api
        self._told: set[tuple[str, str, int]] = set()
        self._begin = self._newest_page()

    def backfill(self, reset: bool) -> tuple[str, str]:
        """Trigger the backfill of all objects as a person would, and watch it; return its run and how it ended."""
        self._api.unpause(BACKFILL)
        run = self._api.trigger(BACKFILL, {"objects": list(OBJECTS), "reset": reset})
        again = ", from the start again" if reset else ""
        self._progress.say(f"triggered {BACKFILL} for {', '.join(OBJECTS)}{again}")
        self._begin = self._newest_page()

        def state() -> str | None:
            found = self._api.run(BACKFILL, run)["state"]
            return str(found) if found in FINISHED else None

        ended_as = self._until(state, run, RUN_SECONDS, f"run {run} of {BACKFILL}")
        self._progress.say(f"the run ended: {ended_as}")
        return run, ended_as

    def wait_for_sync(self, after: datetime) -> bool:
        """Wait for a run of the sync that began after an instant and has read all; return whether it succeeded."""

        def success() -> bool | None:
            for run in reversed(self._api.runs(SYNC)):
                if run["state"] not in FINISHED or began(run) < after:
                    continue
                if run["state"] == "failed":
                    return False
                if any(
                    report.get("walk") == "incremental" for _, report in reports(self._api, SYNC, run["dag_run_id"])
                ):
                    return True
            return None

        succeeded = self._until(success, None, SYNC_SECONDS, f"a run of {SYNC}")
        self._progress.say(f"a whole run of {SYNC} ended: {'success' if succeeded else 'failed'}")
        return succeeded

    def _until(self, look: Callable[[], Found | None], run: str | None, seconds: float, what: str) -> Found:
        until = time.monotonic() + seconds
        while (found := look()) is None:
            self._show(run)
            if time.monotonic() > until:
                raise AirflowApiError(f"{what} has not ended after {seconds:.0f} s")
            time.sleep(0.7)
        self._show(run)
        return found

    def _show(self, run: str | None) -> None:
        """Show the tasks' states and what is committed."""
        tasks = self._api.task_instances(BACKFILL, run) if run else []
        self._tell_failures(BACKFILL, run, tasks)
        states = {object_of(task): task.state or "waiting" for task in tasks}
        newest = next(iter(self._api.runs(SYNC, most=1)), None)
        if newest is not None:
            states["contacts"] = newest["state"]
            self._tell_failures(SYNC, newest["dag_run_id"], self._api.task_instances(SYNC, newest["dag_run_id"]))
        with psycopg.connect(self._services.store) as connection:
            records: dict[str, int] = dict(connection.execute(COMMITTED, [self._begin]).fetchall())
        shown = (*(OBJECTS if run else ()), "contacts")
        self._progress.show(
            " · ".join(f"{name} {records.get(name, 0):,} {states.get(name, 'waiting')}" for name in shown)
        )

    def _tell_failures(self, dag: str, run: str | None, tasks: list[TaskInstance]) -> None:
        """Say once per try why a task failed; it may be tried again for minutes before the run fails."""
        for task in tasks:
            one = (run or "", task.task_id, task.try_number)
            if task.state not in ("failed", "up_for_retry") or one in self._told:
                continue
            self._told.add(one)
            why = self._api.complaints(dag, one[0], task.task_id, task.try_number, task.map_index)[-5:]
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


def reports(api: AirflowApi, dag: str, run: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what each task of a run reported about its work, with its object."""
    found = []
    for task in api.task_instances(dag, run):
        name = object_of(task)
        report = api.xcom(dag, run, task.task_id, map_index=task.map_index) if name else None
        if name and isinstance(report, dict):
            found.append((name, report))
    return found


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
