"""``make mutants``: one line of a law is broken at a time, and the tests must notice. A survivor is a missing test.

Each mutant is applied to a copy of the checkout in which the tests named beside it run until one fails; before that
they must all pass unchanged. Ends with 1 when a mutant survives. `python -m tests.mutants [WORDS]` runs those whose
name holds one of the words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutant import Mutant
from tests.mutants_of_the_copy import COPY
from tests.mutants_of_webhooks import WEBHOOKS

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = "airflow_extract_provider/extract"
LIMIT = 600.0
"""Seconds for the tests beside one mutant; all of them, which run once before, have as many for each file or folder."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the first test that failed; None: it survived."""

    killer: str | None
    seconds: float


MUTANTS: tuple[Mutant, ...] = (*COPY, *WEBHOOKS)


def main() -> int:
    """Run the mutants, and print what became of each."""
    words = sys.argv[1:]
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    targets = sorted({test for mutant in chosen for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="extract-mutants-") as folder:
        copy = Path(folder) / "project"
        _copied(copy)
        print(f"unchanged: {' '.join(targets)}", flush=True)
        if (found := _verdict(copy, targets, LIMIT * len(targets))).killer is not None:
            print(f"the tests fail without any mutant: {found.killer}")
            return 1
        print(f"unchanged: all pass ({found.seconds:.0f} s)\n\n{'law':<24}{'mutant':<62}{'seconds':>8}   noticed by")
        survivors = 0
        for mutant in chosen:
            found = _tried(copy, mutant)
            survivors += found.killer is None
            print(f"{mutant.law:<24}{mutant.name:<62}{found.seconds:8.0f}   {found.killer or 'SURVIVED'}", flush=True)
    print(f"\n{len(chosen)} mutants, {len(chosen) - survivors} noticed, {survivors} survived")
    return 1 if survivors else 0


def _copied(copy: Path) -> None:
    """What git knows of, as it stands now."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    for name in names:
        if (PROJECT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, copy / name)


def _tried(copy: Path, mutant: Mutant) -> Verdict:
    path = copy / PACKAGE / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: the line stands {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return _verdict(copy, mutant.tests, LIMIT)
    finally:
        path.write_text(text, encoding="utf-8")


def _verdict(copy: Path, tests: Sequence[str], limit: float) -> Verdict:
    """The first test that fails. One that never ends, or all of them in so many seconds, is a failure too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=no"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    done = subprocess.Popen(
        [*command, "--timeout=120", *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told, _ = done.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        done.kill()
        done.communicate()
        return Verdict("none: the tests do not end", time.monotonic() - began)
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Verdict(None, seconds)
    failed = [line for line in told.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Verdict(failed[0].split(" ", 1)[1].split(" - ")[0] if failed else told.strip().splitlines()[-1], seconds)


if __name__ == "__main__":
    sys.exit(main())
