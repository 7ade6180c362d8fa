"""The table of docs/faults.md. ``python -m tests.faults.table --write`` plays all troubles and writes it anew."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from airflow_extract_provider.extract.store.connection import connecting
from airflow_extract_provider.testing.postgres import postgres_or_embedded
from tests.faults.troubles import OBJECT, TROUBLES, Played, played

__all__ = ["BEGIN", "DOCUMENT", "END", "first_line", "table"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
BEGIN = "<!-- fault table: written by python -m tests.faults.table --write -->"
END = "<!-- end of the fault table -->"
_TIMES = {1: "once", 2: "twice"}


def table(results: Iterable[Played]) -> str:
    """The table in Markdown, a row for each trouble."""
    head = ["| the API | the client | error | message | remedy |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(_row(result) for result in results)])


def first_line(result: Played) -> str:
    """The message's first line as it was, but for what is another one each time: the source's name, hosts, times."""
    line = str(result.error).splitlines()[0]
    line = re.sub(rf"\bcrm\d+/{OBJECT}\b", f"crm/{OBJECT}", line)
    line = re.sub(r"\b127\.0\.0\.1(:\d+)?", "api.example", line)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "2026-03-01 12:00:00 UTC", line)


def _row(result: Played) -> str:
    error = result.error
    if error is None:
        cells = [result.trouble.does, f"{result.trouble.how or 'goes on'}: exact", "", "", ""]
    else:
        name = f"[`{type(error).__name__}`](errors.md#{type(error).anchor})"
        cells = [result.trouble.does, _client(result), name, f"`` {first_line(result)} ``", error.todo]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _client(result: Played) -> str:
    how, again = result.trouble.how, result.asked - 1
    if again < 1:
        return how or "stops at once"
    return f"asks again {_TIMES.get(again, f'{again} times')} {how or 'in growing pauses'}, then stops"


def main() -> int:
    """Print the table, or write it into the document."""
    with tempfile.TemporaryDirectory(prefix="extract-faults-") as folder:
        Path(folder).chmod(0o755)
        with postgres_or_embedded(folder, {"fsync": "off"}) as server:
            server.drop_database("faults_table")
            connect = connecting(server.create_database("faults_table"))
            made = table(played(trouble, connect) for trouble in TROUBLES)
            server.drop_database("faults_table")
    if "--write" not in sys.argv[1:]:
        print(made)
        return 0
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
