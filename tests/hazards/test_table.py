"""The hazard table: kinds of pages, orders and filters times what APIs do to those who read them. Each cell ends with a
copy that equals the API, or with its named error and the walk held; and it fails once its defence is switched off.
"""

from __future__ import annotations

from collections import Counter

import pytest

from airflow_extract_provider.extract.store.connection import Connect
from tests.hazards.cell import Cell, played
from tests.hazards.cells import CELLS
from tests.hazards.defences import DEFENCES
from tests.hazards.table import BEGIN, END, README, table

each_cell = pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])


@each_cell
def test_ends_as_it_must(cell: Cell, store: Connect) -> None:
    """Nothing is lost, stale or invented; or the run stops by name, what was read before is stored, and once the API
    behaves again the next run goes on from there."""
    verdict = played(cell, store)
    assert verdict.outcome == "exact", f"{verdict.outcome}: {verdict.why}"


@each_cell
def test_fails_without_its_defence(cell: Cell, store: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the one defence switched off that the cell is there for, it goes wrong, in the way that it says."""
    DEFENCES[cell.defence](monkeypatch)
    verdict = played(cell, store)
    assert verdict.outcome == cell.without, f"{verdict.outcome}, not {cell.without}: {verdict.why}"


def test_no_cell_is_there_twice() -> None:
    """Names are distinct, and each defence is one that some cell needs."""
    assert [name for name, count in Counter(cell.name for cell in CELLS).items() if count > 1] == []
    assert {cell.defence for cell in CELLS} == set(DEFENCES)


def test_readme_lists_the_cells() -> None:
    """The README holds the table as the cells are now."""
    written = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert written == table(), "run `python -m tests.hazards.table --write`"
