"""How long it takes in a running Airflow from the POST of a webhook until its row has changed and its event is there.

By what starts the run: the asset's watcher, the sensor, or the clock alone, every 15 s, where nobody hears of anything.
Real components on this machine: Postgres, `airflow-extract receiver`, Airflow's scheduler, triggerer, DAG processor and
API server with the LocalExecutor; nothing else is to be done. Each webhook is sent when no run is under way.

Prints the medians. Run it with `python benchmarks/webhook_latency.py`; it takes some minutes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from airflow_extract_provider.extract.sourcefile import load_sources
from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.extract.store.migrate import migrate
from airflow_extract_provider.testing.postgres import postgres_or_embedded
from demo.airflow_stack import AirflowStack
from tests.e2e import hooked, planted

COUNT = 7
MEASURED = ("watched", "sensed", "swept")


def main() -> int:
    """Start all of it, and measure one source after the other."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    with ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)
        server = running.enter_context(postgres_or_embedded(str(folder / "postgres")))
        store, sources = server.create_database("bench_store"), folder / "airflow" / f"sources{hooked.FOLDER}"
        apis = running.enter_context(hooked.serving())
        write(folder / "airflow", sources)
        migrate(connecting(store), load_sources(sources).values())
        fields = planted.store_fields(store)
        connections = {"extract_store": json.dumps({"conn_type": "postgres", **fields})}
        for name, api in apis.items():
            connections[f"{name}_api"] = json.dumps({"conn_type": "rest_api", "host": api.url, "password": "a token"})
        environment = {f"AIRFLOW_CONN_{name.upper()}": text for name, text in connections.items()}
        environment |= {"EXTRACT_SOURCES": str(folder / "airflow" / "sources")}
        environment["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] = "True"
        airflow = AirflowStack(folder / "airflow", server, "bench_airflow", folder / "airflow" / "dags", environment)
        running.enter_context(airflow)
        stage = running.enter_context(hooked.hooked(folder, sources, store, fields, apis, airflow.api))
        stage.begin(*MEASURED)
        print(f"from the POST of a webhook to its row and its event; swept: every {hooked.SWEEP} s")
        for name in MEASURED:
            print(f"  {stage.measured(name, COUNT)}", flush=True)
            airflow.api.pause(f"{name}_webhooks")
    return 0


def write(home: Path, sources: Path) -> None:
    """The DAG file, and the sources."""
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "hooked.py").write_text(hooked.dag())
    sources.mkdir()
    for name, text in hooked.sources().items():
        (sources / f"{name}.yaml").write_text(json.dumps(text))


if __name__ == "__main__":
    sys.exit(main())
