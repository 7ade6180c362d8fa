"""Runs DAGs by `dag.test()`, in a process of its own: it works on Airflow's database, in the process that calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Tried", "Trying", "trying"]

PROJECT = Path(__file__).resolve().parents[2]
_MARK = "tried: "


@dataclass(frozen=True)
class Tried:
    """How a run has ended: its state, those of its tasks, what they left, and all that was logged."""

    state: str
    tasks: Mapping[str, str]
    left: Mapping[str, Any]
    log: str


class Trying:
    """The process, as its starter sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._asked: IO[str] = process.stdin
        self._told: IO[str] = process.stdout

    def run(self, dag: str, conf: Mapping[str, Any] | None = None) -> Tried:
        """Run a DAG as a person does who calls `dag.test()` on it."""
        self._asked.write(json.dumps({"dag": dag, "conf": conf}) + "\n")
        self._asked.flush()
        log: list[str] = []
        for line in self._told:
            if line.startswith(_MARK):
                return Tried(log="".join(log), **json.loads(line.removeprefix(_MARK)))
            log.append(line)
        raise AssertionError("the process has ended:\n" + "".join(log[-40:]))


@contextmanager
def trying(home: Path, environment: Mapping[str, str]) -> Iterator[Trying]:
    """An Airflow of one process with a database in a file, below ``home``, whose folder `dags` holds the DAG files."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(PROJECT),
    }
    with (home / "airflow.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.dags.trying"],
            env={**kept, **own, **environment},
            cwd=home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield Trying(process)
        finally:
            process.kill()
            process.communicate()


def main() -> None:
    """Make the database, and run what is asked for, line by line."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.db import initdb

    initdb()
    for line in sys.stdin:
        asked = json.loads(line)
        # Anew: `dag.test()` renders the templates of the tasks in place, so that a second run would have the first's.
        bag = DagBag(dag_folder=os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
        found = _tried(bag.dags[asked["dag"]], asked["conf"])
        print(f"\n{_MARK}{json.dumps(found)}", flush=True)


def _tried(dag: Any, conf: Mapping[str, Any] | None) -> dict[str, Any]:
    run = dag.test(run_conf=conf)
    tasks = run.get_task_instances()
    left = {task.task_id: task.xcom_pull(task_ids=task.task_id) for task in tasks}
    return {"state": str(run.state), "tasks": {task.task_id: str(task.state) for task in tasks}, "left": left}


if __name__ == "__main__":
    main()
