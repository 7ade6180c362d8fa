"""Somebody who has an Airflow and the README: its lines are run in a clean environment, one after the other, until
records arrive; and those that take it out again."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from airflow_extract_provider.testing.postgres import PostgresServer
from demo.airflow_stack import AirflowStack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
CONTACTS: list[dict[str, Any]] = [
    {"id": n, "updated_at": f"2026-03-01T{n // 60:02}:{n % 60:02}:00Z", "name": f"n{n}"} for n in range(250)
]
COMPANIES: list[dict[str, Any]] = [{"id": f"c{n:03}", "name": f"company {n}"} for n in range(130)]


def block(mark: str) -> list[str]:
    """The lines of the README's code block behind a mark."""
    found = re.search(rf"<!-- {mark}: .*?-->\n```bash\n(.*?)```", README, flags=re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def source_file() -> str:
    """The README's first source file."""
    found = re.search(r"```yaml\n(# sources/crm.yaml\n.*?)```", README, flags=re.DOTALL)
    assert found is not None
    return found[1]


class Crm(http.server.BaseHTTPRequestHandler):
    """The API that the README's first source file describes."""

    def do_GET(self) -> None:
        """Contacts by tokens, since an instant; companies behind a key."""
        asked = urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(asked.query).items()}
        most = int(given.get("limit", 20))
        answer: dict[str, Any]
        if self.headers["Authorization"] != "Bearer the-token":
            self.send_error(401)
            return
        if asked.path == "/v1/contacts":
            rows = [row for row in CONTACTS if str(row["updated_at"]) >= given.get("updated_since", "")]
            begin = int(given.get("cursor", 0))
            more = begin + most < len(rows)
            answer = {"data": rows[begin : begin + most], "next_cursor": str(begin + most) if more else None}
        elif asked.path == "/v1/companies":
            rows = [row for row in COMPANIES if str(row["id"]) > given.get("starting_after", "")]
            answer = {"data": rows[:most], "has_more": len(rows) > most}
        else:
            self.send_error(404)
            return
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def crm() -> Iterator[str]:
    """The API, and its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Crm)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def clean_airflow(folder: Path) -> Path:
    """An environment with an Airflow and nothing else of ours; the path of its programs. The versions are those that
    everything here is tested with."""
    lock = (PROJECT / "requirements" / "dev.lock").read_text()
    pins = re.findall(r"^([a-z0-9._-]+==[^\\\n]+?) *\\?$", lock, flags=re.MULTILINE)
    (folder / "constraints.txt").write_text("\n".join(pins))
    uv = str(Path(sys.executable).parent / "uv")
    run([uv, "venv", "-q", "--seed", "--python", sys.executable, str(folder / "venv")])
    python = str(folder / "venv" / "bin" / "python")
    postgres = f"apache-airflow-providers-postgres=={version('apache-airflow-providers-postgres')}"
    airflow = [f"apache-airflow=={version('apache-airflow')}", postgres, "psycopg2-binary"]
    run([uv, "pip", "install", "-q", "--python", python, "-c", str(folder / "constraints.txt"), *airflow])
    told = run([python, "-I", "-c", "import importlib.util as u; print(u.find_spec('airflow_extract_provider'))"])
    assert told.strip() == "None"
    return folder / "venv" / "bin"


def run(command: list[str], **more: Any) -> str:
    """What a command writes; it must succeed."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    told: str = done.stdout
    assert done.returncode == 0, f"{command}: {told[-3000:]}"
    return told


class Newcomer:
    """Runs the README's lines, with this Airflow's settings, in a folder that holds what the README says to have."""

    def __init__(self, folder: Path, programs: Path, stack: AirflowStack, replaced: dict[str, str]) -> None:
        self._folder, self._replaced = folder, replaced
        self._environment = {**stack.environment, "PATH": f"{programs}:{os.environ['PATH']}"}
        self._environment |= {
            "PIP_CONSTRAINT": str(folder / "constraints.txt"),
            "STORE_PASSWORD": "",
            "CRM_TOKEN": "the-token",
        }

    def types(self, line: str) -> str:
        """A line of the README, as somebody types it."""
        for written, real in self._replaced.items():
            line = line.replace(written, real)
        return run(["bash", "-euo", "pipefail", "-c", line], env=self._environment, cwd=self._folder)


def test_the_readme_from_pip_install_to_records_and_back(
    postgres_server: PostgresServer, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """Each line as it stands there; only hosts and names of a person's own are replaced. Records arrive; taken out
    again, Airflow knows nothing of the package, and the copies are still there."""
    began = time.monotonic()
    programs = clean_airflow(tmp_path)
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=PROJECT)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "extract.py").write_text((PROJECT / "dags" / "extract.py").read_text())
    (tmp_path / "crm.yaml").write_text(source_file())
    store = postgres_server.create_database(f"newcomer_{os.getpid()}_store")
    home = tmp_path / "home"
    (home / "dags").mkdir(parents=True)
    paused = {"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True"}
    stack = AirflowStack(
        home, postgres_server, f"newcomer_{os.getpid()}_airflow", home / "dags", paused, str(programs / "python")
    )
    parts = conninfo_to_dict(store)
    with crm() as url:
        replaced = {
            "https://api.example.com": url,
            "db.example.com": f"{parts['host']}" + (f" --conn-port {parts['port']}" if "port" in parts else ""),
            "--conn-schema copy": f"--conn-schema {parts['dbname']}",
            "--conn-login extract": f"--conn-login {parts['user']}",
            '"$STORE_PASSWORD"': f"'{parts.get('password') or 'none'}'",
        }
        *lines, last = block("newcomer")
        newcomer = Newcomer(tmp_path, programs, stack, replaced)
        newcomer.types(lines[0])
        try:
            stack.launch()
            for line in lines[1:]:
                newcomer.types(line)
            stack.wait_until_healthy()
            stack.api.wait_for_dag("crm_sync")
            newcomer.types(last)
            copied(store)
            (first, *_) = stack.api.runs("crm_sync")
            assert stack.api.wait_for_run("crm_sync", first["dag_run_id"]) == "success"
        finally:
            stack.stop()
        assert "airflow-extract-provider" in newcomer.types("airflow providers list")
        (home / "dags" / "extract.py").unlink()
        for line in block("goodbye"):
            newcomer.types(line)
        assert "airflow-extract-provider" not in newcomer.types("airflow providers list")
    copied(store)
    measured(f"The README from `pip install` to the copies and back: {time.monotonic() - began:.0f} s")


def copied(store: str, seconds: float = 240) -> None:
    """Wait until the copies are there, record by record."""
    rows: list[dict[str, Any]] = [*CONTACTS, *COMPANIES]
    wanted = {str(row["id"]): row for row in rows}
    found: dict[str, Any] = {}
    until = time.monotonic() + seconds
    with psycopg.connect(store, autocommit=True) as conn:
        while time.monotonic() < until:
            tables = "select key, data from crm.contacts union all select key, data from crm.companies"
            found = dict(conn.execute(tables).fetchall())
            if found == wanted:
                return
            time.sleep(0.5)
    raise AssertionError(f"{len(found)} of {len(wanted)} records have arrived")
