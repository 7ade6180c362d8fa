"""What Airflow knows about the package, asked from Airflow."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import task
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_extract_provider import get_provider_info as module
from airflow_extract_provider.assets import asset_of, checked_uri
from airflow_extract_provider.get_provider_info import get_provider_info
from airflow_extract_provider.hooks.api import RestApiHook

FORM = {"auth", "header_name", "connect_timeout", "timeout", "test_path"}


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


def test_the_connection_form(manager: ProvidersManager) -> None:
    """Fields, choices and labels as Airflow has understood them."""
    prefix = "extra__rest_api__"
    widgets = {
        name.removeprefix(prefix): widget
        for name, widget in manager.connection_form_widgets.items()
        if name.startswith(prefix)
    }
    assert set(widgets) == FORM
    assert widgets["auth"].field["schema"]["enum"] == ["bearer", "basic", "header", "none"]
    behaviour = manager.field_behaviours["rest_api"]
    assert behaviour["hidden_fields"] == ["schema", "port"]
    assert behaviour["relabeling"]["host"] == "Base URL"


def test_the_commands_are_known(manager: ProvidersManager) -> None:
    """`airflow extract` comes from this package."""
    assert "airflow-extract-provider" in manager.cli_command_providers


def test_every_module_that_is_named_exists() -> None:
    """A wrong name in the dictionary passes Airflow's own checks."""
    info = get_provider_info()
    for kind in ("hooks", "operators", "triggers"):
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
