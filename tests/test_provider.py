"""What Airflow knows about the package, asked from Airflow."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import Connection, task
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_extract_provider import get_provider_info as module
from airflow_extract_provider.assets import asset_of, checked_uri
from airflow_extract_provider.extract.api.transport import Bounds
from airflow_extract_provider.get_provider_info import get_provider_info
from airflow_extract_provider.hooks import login
from airflow_extract_provider.hooks.api import RestApiHook

FORM = {
    "auth",
    "client_auth",
    "connect_timeout",
    "header_name",
    "headers",
    "max_size",
    "parameter_name",
    "proxies",
    "refresh_token",
    "scope",
    "test_path",
    "timeout",
    "token_parameters",
    "token_url",
    "total_timeout",
    "verify",
}
WAYS = ["bearer", "basic", "header", "parameter", "client_credentials", "refresh_token", "none"]


@pytest.fixture(scope="module")
def manager() -> ProvidersManager:
    """Airflow's own list of providers."""
    return ProvidersManager()  # type: ignore[no-untyped-call]  # Airflow's


def test_the_provider_is_listed(manager: ProvidersManager) -> None:
    """Under the distribution's name, with its version."""
    provider = manager.providers["airflow-extract-provider"]
    assert provider.data["name"] == "Extract"
    assert provider.version == version("airflow-extract-provider")
    (entry,) = [entry for entry in entry_points(group="apache_airflow_provider") if "extract" in entry.value]
    assert entry.load() is get_provider_info


def test_the_connection_type_leads_to_the_hook() -> None:
    """Its name in the UI, its button, and its class."""
    manager = ProvidersManagerTaskRuntime()  # type: ignore[no-untyped-call]  # Airflow's
    hook = manager.hooks["rest_api"]
    assert hook is not None
    assert (hook.hook_name, hook.connection_type) == ("REST API", "rest_api")
    assert hook.hook_class_name == f"{RestApiHook.__module__}.{RestApiHook.__qualname__}"
    assert hook.connection_id_attribute_name == RestApiHook.conn_name_attr
    assert hook.connection_testable


def _widgets(manager: ProvidersManager) -> dict[str, Any]:
    prefix = "extra__rest_api__"
    found = manager.connection_form_widgets.items()
    return {name.removeprefix(prefix): widget for name, widget in found if name.startswith(prefix)}


def test_the_connection_form(manager: ProvidersManager) -> None:
    """Fields, choices and labels as Airflow has understood them."""
    widgets = _widgets(manager)
    assert set(widgets) == FORM
    schemas = {name: widget.field["schema"] for name, widget in widgets.items()}
    assert schemas["auth"]["enum"] == WAYS == list(login._WAYS)
    assert schemas["client_auth"]["enum"] == ["basic", "body"]
    # What may hold a secret is not shown while it is entered.
    hidden = {name for name, schema in schemas.items() if schema.get("format") == "password"}
    assert hidden == {"headers", "proxies", "refresh_token"}
    behaviour = manager.field_behaviours["rest_api"]
    assert behaviour["hidden_fields"] == ["schema", "port"]
    assert behaviour["relabeling"]["host"] == "Base URL"


def test_the_form_and_the_hook_know_the_same_fields(manager: ProvidersManager) -> None:
    """What the form offers is understood; what it does not offer is entered as JSON."""
    assert {*login._FIELDS, *login._NETWORK} - FORM == {"cert", "trust_env"}
    empty = {name: widget.field["schema"].get("default") for name, widget in _widgets(manager).items()}
    conn = Connection(conn_id="x", conn_type="rest_api", host="h", password="secret", extra=json.dumps(empty))
    assert login.login_of(conn).bounds == Bounds()


def test_the_commands_are_known(manager: ProvidersManager) -> None:
    """`airflow extract` comes from this package."""
    assert "airflow-extract-provider" in manager.cli_command_providers


def test_every_module_that_is_named_exists() -> None:
    """A wrong name in the dictionary passes Airflow's own checks."""
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            for name in entry["python-modules"]:
                importlib.import_module(name)


def test_the_decorator_is_known() -> None:
    """`@task.consume_events` comes from this package."""
    assert callable(task.consume_events)
    assert task.consume_events.__module__ == "airflow_extract_provider.decorators.consume_events"


def test_the_assets_are_known() -> None:
    """Airflow checks their URIs, and makes them for who collects lineage."""
    manager = ProvidersManagerTaskRuntime()  # type: ignore[no-untyped-call]  # Airflow's
    assert manager.asset_uri_handlers["extract"] is checked_uri
    assert manager.asset_factories["extract"] is asset_of


def test_the_description_is_a_literal() -> None:
    """One dictionary to read; nothing is computed, so nothing can fail in Airflow's processes."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    (returned,) = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    assert returned is not None
    assert ast.literal_eval(returned) == get_provider_info()


def test_discovery_is_light() -> None:
    """Each of Airflow's processes loads this: it brings nothing with it but the standard library's typing."""
    code = (
        "import sys; before = set(sys.modules); import airflow_extract_provider.get_provider_info as m;"
        "m.get_provider_info(); print(' '.join(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    root = str(Path(str(module.__file__)).parents[1])
    command = [sys.executable, "-S", "-c", code]  # -S: what the environment's .pth files load is not ours
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": root})
    assert set(done.stdout.split()) <= {"__future__", "airflow_extract_provider", *sys.stdlib_module_names}
