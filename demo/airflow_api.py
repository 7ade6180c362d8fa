"""Airflow's REST API, as far as the demo and the end-to-end tests speak it: what one clicks, as methods."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests

FINISHED = ("success", "failed")


class AirflowApiError(RuntimeError):
    """Airflow refused a request, or what was waited for did not come."""


@dataclass(frozen=True)
class TaskInstance:
    """One task of one run as Airflow sees it at this moment; ``state`` is None until it is scheduled."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    pid: int | None


class AirflowApi:
    """A person's session at one Airflow; ids are those shown in the UI."""

    def __init__(self, url: str, username: str, password: str) -> None:
        """Prepare; the login happens at the first request."""
        self.url = url
        self._login = {"username": username, "password": password}
        self._session = requests.Session()
        # The machine's proxy settings are not meant for loopback.
        self._session.trust_env = False

    def health(self) -> dict[str, str | None]:
        """Return the state of each component by name; empty while nobody answers."""
        try:
            answer = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=30)
            return {name: (part or {}).get("status") for name, part in answer.json().items()}
        except (requests.ConnectionError, requests.Timeout, ValueError):
            return {}

    def dag_is_known(self, dag: str) -> bool:
        """Tell whether the DAG can be triggered; raise Airflow's words if a file is broken."""
        if self._call("GET", f"/dags/{dag}", missing_ok=True) is not None:
            return True
        broken = self._call("GET", "/importErrors")["import_errors"]
        if broken:
            raise AirflowApiError("\n".join(f"{error['filename']}: {error['stack_trace']}" for error in broken))
        return False

    def wait_for_dag(self, dag: str, seconds: float = 120) -> None:
        """Return when the DAG can be triggered."""
        until = time.monotonic() + seconds
        while not self.dag_is_known(dag):
            if time.monotonic() > until:
                raise AirflowApiError(f"the DAG {dag} did not appear within {seconds:.0f} s")
            time.sleep(0.5)

    def dags(self) -> list[str]:
        """Return the ids of all DAGs."""
        return [dag["dag_id"] for dag in self._call("GET", "/dags?limit=1000")["dags"]]

    def unpause(self, dag: str) -> None:
        """Let the DAG's runs start."""
        self._call("PATCH", f"/dags/{dag}?update_mask=is_paused", {"is_paused": False})

    def pause(self, dag: str) -> None:
        """Let no further run of the DAG start; those that run go on."""
        self._call("PATCH", f"/dags/{dag}?update_mask=is_paused", {"is_paused": True})

    def trigger(self, dag: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run as the button does, without a logical date, and return its id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self._call("POST", f"/dags/{dag}/dagRuns", body)["dag_run_id"])

    def run(self, dag: str, run: str) -> dict[str, Any]:
        """Return a run with its ``state``, ``conf``, ``start_date`` and so on."""
        found: dict[str, Any] = self._call("GET", f"/dags/{dag}/dagRuns/{_part(run)}")
        return found

    def runs(self, dag: str, most: int = 100) -> list[dict[str, Any]]:
        """Return the newest runs of a DAG, newest first, as :meth:`run` does."""
        place = f"/dags/{dag}/dagRuns?order_by=-run_after&limit={most}"
        found: list[dict[str, Any]] = self._call("GET", place)["dag_runs"]
        return found

    def wait_for_run(self, dag: str, run: str, seconds: float = 300) -> str:
        """Return the state in which the run ended: success or failed."""
        until = time.monotonic() + seconds
        while (state := self.run(dag, run)["state"]) not in FINISHED:
            if time.monotonic() > until:
                raise AirflowApiError(f"run {run} of {dag} is still {state} after {seconds:.0f} s")
            time.sleep(0.5)
        return str(state)

    def set_run_state(self, dag: str, run: str, state: str) -> None:
        """Mark a run failed or successful, as the UI's menu does."""
        self._call("PATCH", f"/dags/{dag}/dagRuns/{_part(run)}?update_mask=state", {"state": state})

    def task_instances(self, dag: str, run: str) -> list[TaskInstance]:
        """Return the tasks of a run."""
        answer = self._call("GET", f"/dags/{dag}/dagRuns/{_part(run)}/taskInstances?limit=1000")
        return [
            TaskInstance(task["task_id"], task["map_index"], task["state"], task["try_number"] or 0, task.get("pid"))
            for task in answer["task_instances"]
        ]

    def plan_backfill(self, dag: str, first: str, last: str, **options: Any) -> list[str]:
        """Return the logical dates of the runs that *Run Backfill* would make; arguments as :meth:`backfill`."""
        body = {"dag_id": dag, "from_date": first, "to_date": last, **options}
        return [run["logical_date"] for run in self._call("POST", "/backfills/dry_run", body)["backfills"]]

    def backfill(self, dag: str, first: str, last: str, **options: Any) -> int:
        """Start what *Run Backfill* starts, and return its id.

        A run is made for each interval that begins from ``first`` to ``last``. ``options`` are `dag_run_conf`,
        `reprocess_behavior` ("none", "failed", "completed"), `max_active_runs`, `run_backwards`.
        """
        body = {"dag_id": dag, "from_date": first, "to_date": last, **options}
        return int(self._call("POST", "/backfills", body)["id"])

    def end_backfill(self, backfill: int) -> None:
        """Have a backfill be over, so that the next may begin: Airflow finds that out only after half a minute; it may
        just have done so.

        None of its runs begins any more: those that are cleared stay queued.
        """
        self._call("PUT", f"/backfills/{backfill}/cancel", passed_over=requests.codes.conflict)

    def clear(self, dag: str, run: str, tasks: list[str] | None = None) -> None:
        """Clear tasks of a run (all of them if none are named), so that they run again."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run, "task_ids": tasks}
        self._call("POST", f"/dags/{dag}/clearTaskInstances", body)

    def log(self, dag: str, run: str, task: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the messages of a task's log, one per line, each with all that Airflow has noted beside it."""
        return "\n".join(_log_line(entry) for entry in self._log(dag, run, task, try_number, map_index))

    def messages(self, dag: str, run: str, task: str, try_number: int = 1, map_index: int = -1) -> list[str]:
        """Return the messages of a task's log alone, as a person reads them."""
        entries = self._log(dag, run, task, try_number, map_index)
        return [str(entry["event"]) for entry in entries if isinstance(entry, dict)]

    def complaints(self, dag: str, run: str, task: str, try_number: int = 1, map_index: int = -1) -> list[str]:
        """Return what a task's log says from warnings upward, as a person would read it."""
        return [
            text
            for entry in self._log(dag, run, task, try_number, map_index)
            if isinstance(entry, dict) and entry.get("level") in ("warning", "error", "critical")
            for text in (entry["event"], *map(_exception, entry.get("error_detail") or []))
        ]

    def _log(self, dag: str, run: str, task: str, try_number: int, map_index: int) -> list[Any]:
        place = f"{_task(dag, run, task)}/logs/{try_number}?full_content=true&map_index={map_index}"
        content: list[Any] = self._call("GET", place)["content"]
        return content

    def xcom(self, dag: str, run: str, task: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return what a task left for others, or None if it left nothing."""
        place = f"{_task(dag, run, task)}/xcomEntries/{_part(key)}?deserialize=true&map_index={map_index}"
        entry = self._call("GET", place, missing_ok=True)
        return None if entry is None else entry["value"]

    def xcom_keys(self, dag: str, run: str, task: str) -> list[str]:
        """Return the names of what a task left for others."""
        entries = self._call("GET", f"{_task(dag, run, task)}/xcomEntries")["xcom_entries"]
        return [entry["key"] for entry in entries]

    def variables(self) -> dict[str, str]:
        """Return all Variables; those with telling names come masked."""
        found = self._call("GET", "/variables?limit=1000")["variables"]
        return {variable["key"]: variable["value"] for variable in found}

    def variable(self, key: str) -> str | None:
        """Return a Variable, or None if there is none of that name."""
        found = self._call("GET", f"/variables/{_part(key)}", missing_ok=True)
        return None if found is None else str(found["value"])

    def set_variable(self, key: str, value: str) -> None:
        """Write a Variable, new or not."""
        body = {"key": key, "value": value}
        if self.variable(key) is None:
            self._call("POST", "/variables", body)
        else:
            self._call("PATCH", f"/variables/{_part(key)}", body)

    def delete_variable(self, key: str) -> None:
        """Remove a Variable if it is there."""
        self._call("DELETE", f"/variables/{_part(key)}", missing_ok=True)

    def create_pool(self, name: str, slots: int) -> None:
        """Make a pool, in which no more tasks run at once than it has slots; deferred ones take none."""
        self._call("POST", "/pools", {"name": name, "slots": slots, "include_deferred": False})

    def create_connection(self, conn_id: str, conn_type: str, **fields: Any) -> None:
        """Store a connection: host, login, password, port, schema, extra (a JSON text)."""
        self._call("POST", "/connections", {"connection_id": conn_id, "conn_type": conn_type, **fields})

    def delete_connection(self, conn_id: str) -> None:
        """Remove a connection if it is there."""
        self._call("DELETE", f"/connections/{_part(conn_id)}", missing_ok=True)

    def answer(self, place: str) -> Any:
        """Return what there is at a place below the API's own path, decoded and otherwise as it is."""
        return self._call("GET", place)

    def _call(
        self, method: str, place: str, body: Any = None, missing_ok: bool = False, passed_over: int | None = None
    ) -> Any:
        if "Authorization" not in self._session.headers:
            self._log_in()
        answer = self._session.request(method, f"{self.url}/api/v2{place}", json=body, timeout=60)
        if answer.status_code == (requests.codes.not_found if missing_ok else passed_over):
            return None
        if not answer.ok:
            raise AirflowApiError(f"{method} {place}: {answer.status_code} {answer.text[:1000]}")
        return answer.json() if answer.content else None

    def _log_in(self) -> None:
        answer = self._session.post(f"{self.url}/auth/token", json=self._login, timeout=30)
        if not answer.ok:
            raise AirflowApiError(f"no login as {self._login['username']}: {answer.status_code}")
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _part(name: str) -> str:
    return quote(name, safe="")


def _task(dag: str, run: str, task: str) -> str:
    return f"/dags/{dag}/dagRuns/{_part(run)}/taskInstances/{_part(task)}"


def _log_line(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    rest = {name: value for name, value in entry.items() if name not in ("event", "timestamp", "level")}
    return f"{entry.get('event')} {rest}" if rest else str(entry.get("event"))


def _exception(detail: Any) -> str:
    return f"{detail['exc_type']}: {detail['exc_value']}"
