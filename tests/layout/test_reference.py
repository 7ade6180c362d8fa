"""docs/reference.md says what the code says; the commands and DAG files that the docs show are taken by Airflow."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from airflow.cli import cli_parser
from airflow.cli.cli_config import ActionCommand, GroupCommand
from airflow.dag_processing.dagbag import DagBag

from airflow_extract_provider.cli import get_extract_cli_commands
from tests.layout.reference import REFERENCE, reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {"PLACE": "7", "N": "5", "KIND": "backfill"}
"""What stands for a number or for one of several words where the docs show a command."""


def _dag_files() -> list[str]:
    found = [block for path in DOCS for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)]
    return [block for block in found if "DAG(" in block or "make_dags(" in block]


def _shown() -> list[str]:
    """Each `airflow extract ...` of the docs, in the text and in blocks, other than those in the reference."""
    found: dict[str, None] = {}
    for path in DOCS:
        if path != REFERENCE:
            text = path.read_text(encoding="utf-8")
            found |= dict.fromkeys(re.findall(r"^(?:\$ )?(airflow extract [^\n#]*)", text, flags=re.MULTILINE))
            found |= dict.fromkeys(" ".join(each.split()) for each in re.findall(r"`(airflow extract [^`]*)`", text))
    return [each.strip() for each in found]


def _spelled_out(shown: str) -> list[list[str]]:
    """What one may write for it: with what stands in brackets and without, and one of what stands between bars."""
    if shown.endswith(" ...") and tuple(shlex.split(shown)[1:-1]) in _names():  # a group of commands
        return [[*shlex.split(shown)[1:-1], "--help"]]
    inner = re.search(r"\[([^\[\]]*)\]|\(([^()]*\|[^()]*)\)", shown)
    if inner is None:
        command = shown.split(" | ")[0]  # what is done with its output is another program's business
        return [[WORDS.get(word, word) for word in shlex.split(command)[1:] if word != "..."]]
    choices = ["", *(inner[1].split("|"))] if inner[1] is not None else inner[2].split("|")
    whole = [f"{shown[: inner.start()]}{each.strip()}{shown[inner.end() :]}" for each in choices]
    return [words for each in whole for words in _spelled_out(each)]


def _names() -> set[tuple[str, ...]]:
    """All commands and groups of them."""
    found: set[tuple[str, ...]] = set()

    def walk(command: ActionCommand | GroupCommand, before: tuple[str, ...]) -> None:
        name = (*before, command.name)
        found.add(name)
        for each in command.subcommands if isinstance(command, GroupCommand) else ():
            walk(each, name)

    for command in get_extract_cli_commands():
        walk(command, ())
    return found


def test_the_reference_is_what_the_code_says() -> None:
    """Written anew, it is the same: run `make docs` where it is not."""
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_every_command_is_in_the_reference() -> None:
    """Each that does something, with its own heading."""
    text = REFERENCE.read_text(encoding="utf-8")
    assert {"migrate", "schema", "coverage"} <= {name[-1] for name in _names()}
    groups = {name[:-1] for name in _names()}
    assert [name for name in _names() - groups if f"### `airflow {' '.join(name)}`\n" not in text] == []


@pytest.mark.parametrize("shown", _shown())
def test_every_command_that_is_shown_is_taken(shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By Airflow's own parser, in each way that it can be read; a command that is only named is there."""
    if tuple(shlex.split(shown)[1:]) in _names():
        return
    for words in _spelled_out(shown):
        assert _code(words) == 0, capsys.readouterr().err


def _code(words: list[str]) -> int | str | None:
    try:
        cli_parser.get_parser().parse_args(words)
    except SystemExit as exc:
        return exc.code
    return 0


def test_commands_are_read_in_each_way() -> None:
    """What the docs put in brackets and between bars."""
    found = {" ".join(words) for words in _spelled_out("airflow extract a [S [O]] (PLACE ... | --all)")}
    assert found == {f"extract a{places} {which}" for places in ("", " S", " S O") for which in ("7", "--all")}


@pytest.mark.parametrize("block", _dag_files(), ids=lambda block: block.splitlines()[0])
def test_every_dag_file_that_is_shown_loads(block: str, tmp_path: Path) -> None:
    """Copied into the DAGs folder, beside the sources of the demo."""
    (tmp_path / "sources").mkdir()
    for path in (ROOT / "demo" / "sources").glob("*.yaml"):
        (tmp_path / "sources" / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    imports = "" if "import make_dags" in block else "from airflow_extract_provider.dag_templates import make_dags\n"
    (tmp_path / "shown.py").write_text(f"{imports}{block}", encoding="utf-8")
    bag = DagBag(dag_folder=str(tmp_path), safe_mode=False)
    assert bag.import_errors == {}
    assert bag.dags
