"""Sources whose APIs filter by time, each with a HostileApi of its own: read by form, by intervals, by schedule."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow_extract_provider.testing.hostile import HostileApi, Listing
from demo.airflow_api import AirflowApi
from tests.hazards.kinds import KINDS

__all__ = ["DAGS", "DAY", "FOLDER", "dag", "kill_task", "of_days", "serving", "sources", "until", "wait_for_states"]

DAY = timedelta(days=1)
FOLDER = "_filtered"
"""Behind the folder of the other sources."""
DAGS = ("audited_backfill", "formed_backfill", "rounds_sync", "windowed_backfill")
KIND, UNFILTERED = KINDS["token updated"], KINDS["offset id"]
SMALL = {**KIND.spec["pages"], "size": {"send": "limit", "max": 2}}


def sources() -> dict[str, dict[str, Any]]:
    """The source files by name."""
    by_key = {"path": "/things/{{ key }}", "record": "@"}
    things = KIND.described(by_key=by_key, events=["created"])
    others = KIND.described(path="/others")
    sweep = {"every": "1s", "max_deletes": 500}
    changes = ["created", "deleted", {"changed": {"field": "value", "name": "value.changed"}}]
    kept = {**things, "sweep": sweep, "events": changes}
    # So small are its pages that it takes long.
    long = KIND.described(path="/long", pages=SMALL, sweep=sweep)
    found: dict[str, dict[str, Any]] = {
        "formed": {"objects": {"things": things, "others": UNFILTERED.described(path="/others")}, "windows": None},
        "windowed": {"objects": {"things": {**things, "baseline": "emit"}, "others": others}},
        "audited": {"objects": {"things": things}},
        "rounds": {"objects": {"things": kept, "long": long}, "schedule": "20s", "windows": None},
    }
    return {name: {"source": name, "connection": f"{name}_api", **each} for name, each in found.items()}


def dag() -> str:
    """A DAG file of a person's own: retries come soon, and one source works in slices of six seconds."""
    return f"""
import os
from datetime import timedelta
from pathlib import Path
from airflow_extract_provider.dag_templates import make_dags
from airflow_extract_provider.extract.sourcefile import load_sources

sources = load_sources(Path(os.environ["EXTRACT_SOURCES"] + "{FOLDER}"))
sliced = {{"rounds": sources.pop("rounds")}}
soon = {{"retry_delay": timedelta(seconds=2), "pause": 15}}
globals().update(make_dags(sources, default_args=soon))
globals().update(make_dags(sliced, default_args={{**soon, "run_for": 6}}))
"""


@contextmanager
def serving() -> Iterator[dict[str, HostileApi]]:
    """The APIs by source. Their clocks begin at midnight, six days ago."""
    today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    things, unfiltered = KIND.served(), UNFILTERED.served()
    beside: Mapping[str, Mapping[str, Listing]] = {
        "formed": {"/others": unfiltered},
        "windowed": {"/others": things},
        "audited": {},
        "rounds": {"/long": KIND.served(page_max=2)},
    }
    with ExitStack() as running:
        yield {
            name: running.enter_context(HostileApi(listings={"/things": things, **more}, start=today - 6 * DAY))
            for name, more in beside.items()
        }


def of_days(api: HostileApi, count: int, a_day: int) -> list[list[Any]]:
    """Insert so many records on each of the API's next days, and bring its clock to the present; returns their keys by
    day."""
    days = []
    for _ in range(count):
        begun = api.clock.now
        days.append(api.insert(a_day))
        api.clock.advance(DAY - (api.clock.now - begun))
    api.clock.advance(datetime.now(timezone.utc) - api.clock.now)
    return days


def until(found: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What is found, once it is something."""
    end = time.monotonic() + seconds
    while not (seen := found()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.3)
    return seen


def wait_for_states(api: AirflowApi, dag: str, run: str, states: Mapping[str, str]) -> None:
    """Until the tasks of a run are in these states."""

    def reached() -> bool:
        found = {task.task_id: task.state for task in api.task_instances(dag, run)}
        return all(found.get(name) == state for name, state in states.items())

    until(reached, f"{states} of {run}")


def kill_task(api: AirflowApi, dag: str, run: str, task: str) -> None:
    """kill -9 of the process that runs a task, which must be running."""
    (found,) = [each for each in api.task_instances(dag, run) if each.task_id == task]
    assert found.state == "running", found
    assert found.pid is not None
    os.kill(found.pid, signal.SIGKILL)
