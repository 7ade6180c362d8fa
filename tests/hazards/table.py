"""The README's table of all cells. ``python -m tests.hazards.table --write`` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.hazards.cell import Cell
from tests.hazards.cells import CELLS

__all__ = ["BEGIN", "END", "README", "table"]

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- hazard table: written by python -m tests.hazards.table --write -->"
END = "<!-- end of the hazard table -->"


def table() -> str:
    """The table in Markdown, a row for each cell, kind by kind."""
    head = ["| kind of pages | order | filter | hazard | ends |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(_row(cell) for cell in sorted(CELLS, key=lambda cell: cell.kind))])


def _row(cell: Cell) -> str:
    spec = cell.described
    order = ", ".join(spec.get("order", [])) or "none"
    ends = "exact" if cell.ends is None else f"`{cell.ends.__name__}`, held"
    return f"| {cell.kind} | {order} | {_filter(cell)} | {cell.hazard} | {ends} |"


def _filter(cell: Cell) -> str:
    since = cell.described.get("since")
    if since is None:
        return "none"
    precision = since["precision"]
    return (">=" if since["inclusive"] else ">") + ("" if precision == "1us" else f" {precision}")


def main() -> int:
    """Print the table, or write it into the README."""
    if "--write" not in sys.argv[1:]:
        print(table())
        return 0
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
