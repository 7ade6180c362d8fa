"""The repository keeps its own promises: what ships, what is documented, what must not be in any file."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import airflow_extract_provider.extract as engine
from airflow_extract_provider.extract import errors
from airflow_extract_provider.extract.errors import ExtractError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "airflow_extract_provider"
KINDS = [getattr(errors, name) for name in errors.__all__]


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _headings(document: str) -> set[str]:
    return {line.lstrip("#").strip() for line in (ROOT / document).read_text().splitlines() if line.startswith("#")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_leads_to_its_place_in_the_docs(kind: type[ExtractError]) -> None:
    """A message ends with an anchor that exists, under which the class is named."""
    assert kind.anchor in _headings("docs/errors.md")
    if kind.__subclasses__() == [] or kind is ExtractError:
        assert f"`{kind.__name__}`" in (ROOT / "docs/errors.md").read_text()
    assert str(kind("x.")).endswith(f"docs/errors.md#{kind.anchor}")


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    """The tree at the top of errors.py is the real one."""
    drawn = set(re.findall(r"\b[A-Z]\w+(?:Error|Again|Config|Look)\b", errors.__doc__ or ""))
    assert drawn == set(errors.__all__)


def test_the_wheel_holds_statements_and_presets(tmp_path: Path) -> None:
    """Everything that is read at run time is in the wheel, nothing of demo and tests is."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    data = {f.relative_to(ROOT).as_posix() for kind in ("*.sql", "*.yaml", "py.typed") for f in PACKAGE.rglob(kind)}
    assert data
    assert data <= held
    assert not [name for name in held if name.startswith(("demo/", "tests/", "benchmarks/"))]


def test_public_names_are_sorted_and_there() -> None:
    """Each module's __all__ is sorted and can be imported."""
    for info in pkgutil.walk_packages(engine.__path__, engine.__name__ + "."):
        module = importlib.import_module(info.name)
        names = getattr(module, "__all__", [])
        assert names == sorted(names), info.name
        assert [name for name in names if not hasattr(module, name)] == [], info.name


def test_no_file_names_a_registry_or_a_machine() -> None:
    """Lock files and all others hold no registry's address and no path of somebody's machine."""
    registry = re.compile(r"https?://[^\s\"']*(?:/simple/|/packages/|/maven2/|\.whl|\.tar\.gz)")
    machine = re.compile(r"(?<![\w.$}/])/(?:root|work|home|Users)/[\w.-]+")
    wrong = []
    for path in _tracked():
        if path == Path(__file__).resolve() or path.suffix in {".png", ".whl"}:
            continue
        text = path.read_text(encoding="utf-8")
        wrong += [f"{path.relative_to(ROOT)}: {found}" for found in (*registry.findall(text), *machine.findall(text))]
    assert wrong == []


def test_no_room_has_a_name_that_tells_nothing() -> None:
    """No module is called utils, helpers, common, base or misc."""
    nameless = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    assert [path for path in _tracked() if path.suffix == ".py" and path.stem in nameless] == []


def test_modules_and_functions_stay_small() -> None:
    """A module fits in one's head (400 lines), a function on a screen (40 lines, unless it is one literal)."""
    large = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if text.count("\n") > 400:
            large.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                one_literal = all(isinstance(part, ast.Expr | ast.Return) for part in node.body)
                if lines > 40 and not one_literal:
                    large.append(f"{path.name}:{node.name}: {lines} lines")
    assert large == []


def test_presets_are_in_the_readme() -> None:
    """The README's table names every shipped preset."""
    readme = (ROOT / "README.md").read_text()
    assert [f.stem for f in (PACKAGE / "sources").glob("*.yaml") if f"`{f.stem}`" not in readme] == []
