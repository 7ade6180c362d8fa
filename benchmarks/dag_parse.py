"""What it costs to parse a DAG file with 20 sources, and with 100, beyond Airflow's own import.

Prints the CPU time of importing the package and of making the DAGs, and fails (exit code 1) if that is above its
budget, or if anything happens but reading files: a socket, a written file, a process. Run it with
`python benchmarks/dag_parse.py [SOURCES ...]`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
ROUNDS = 7
COUNTS = (20, 100)
PACKAGE, EACH = 100, 10
"""The budget in ms: what importing the package may cost, and each source."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename")
SOURCE = """
source: source{number:02}
connection: source{number:02}_api
headers: {{Accept-Language: en}}
defaults:
  records: data
  key: id
  pages: {{by: token, take: next_cursor, send: cursor, size: {{send: limit, max: 100}}}}
objects:
  customers: {{path: /v1/customers, order: [-created]}}
  products: {{path: /v1/products}}
  plans: {{path: /v1/plans, params: {{active: true}}}}
  invoices: {{path: /v1/invoices, version: updated_at}}
  lines: {{path: /v1/lines, key: [invoice.id, number]}}
"""


def main() -> int:
    """Measure in fresh processes, and print a table for each number of sources."""
    counts = [int(text) for text in sys.argv[1:]] or COUNTS
    return max(_table(count) for count in counts)


def measured(count: int, rounds: int) -> list[dict[str, Any]]:
    """What so many fresh processes tell of a DAG file with so many sources: ms of CPU for `import`, `parse` and
    parsing `again`, the number of `dags`, and the `acts` beside reading files."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "sources"
        sources.mkdir()
        for number in range(count):
            (sources / f"source{number:02}.yaml").write_text(SOURCE.format(number=number))
        return [_in_a_fresh_process(folder, sources) for _ in range(rounds)]


def _table(count: int) -> int:
    found, budget = measured(count, ROUNDS), PACKAGE + EACH * count
    total = statistics.median(each["import"] + each["parse"] for each in found)
    dags = found[0]["dags"]
    print(f"{count} sources, {dags} DAGs; median of {ROUNDS} fresh processes, CPU beyond Airflow's own import")
    for what in ("import", "parse", "again"):
        print(f"  {what:<8}{statistics.median(each[what] for each in found):7.0f} ms")
    print(f"  {'total':<8}{total:7.0f} ms   budget {budget:.0f} ms   {'ok' if total < budget else 'OVER'}")
    acts = sorted({act for each in found for act in each["acts"]})
    print("  beside reading files: " + ("; ".join(acts) if acts else "nothing"))
    return 1 if acts or total >= budget else 0


def _in_a_fresh_process(folder: str, sources: Path) -> dict[str, Any]:
    command = [sys.executable, "-B", __file__, "--once"]
    environment = {
        **os.environ,
        "AIRFLOW_HOME": folder,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "EXTRACT_SOURCES": str(sources),
        "PYTHONPATH": str(PROJECT),
    }
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def once() -> None:
    """In a fresh process: import Airflow as its DAG processor has, then watch and measure what comes on top."""
    with contextlib.redirect_stdout(io.StringIO()):
        from airflow.dag_processing import dagbag  # noqa: F401
        from airflow.sdk import DAG, BaseOperator, Param, RetryPolicy  # noqa: F401
    acts: list[str] = []
    sys.addaudithook(lambda event, args: _watch(acts, event, args))
    began = time.process_time()
    import airflow_extract_provider.dag_templates  # noqa: F401

    imported = time.process_time()
    dags = _parse()
    parsed = time.process_time()
    _parse()
    again = time.process_time()
    seconds = {"import": imported - began, "parse": parsed - imported, "again": again - parsed}
    print(json.dumps({**{name: value * 1000 for name, value in seconds.items()}, "dags": dags, "acts": acts}))


def _parse() -> int:
    """Run the template as a DAG file is run; returns how many DAGs it holds."""
    path = PROJECT / "dags" / "extract.py"
    module: dict[str, Any] = {"__file__": str(path), "__name__": "extract"}
    exec(compile(path.read_text(), path, "exec"), module)
    return sum(type(each).__name__ == "DAG" for each in module.values())


def _watch(acts: list[str], event: str, args: Any) -> None:
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
        acts.append(f"open {args[0]} for writing")
    elif event.startswith(FORBIDDEN):
        acts.append(event)


if __name__ == "__main__":
    if sys.argv[1:] == ["--once"]:
        once()
    else:
        sys.exit(main())
