"""The pictures in docs/shots: each is shown, each that is shown is there; and `make shots` says what it lacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOTS = sorted((ROOT / "docs" / "shots").glob("*"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LARGEST = 250_000
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_PNG = b"\x89PNG\r\n\x1a\n"


def _shown() -> dict[Path, str]:
    """The pictures that the documents show, and what stands in their place for those who do not see them."""
    return {
        (document.parent / name).resolve(): words
        for document in DOCUMENTS
        for words, name in _IMAGE.findall(document.read_text(encoding="utf-8"))
    }


def test_each_picture_is_shown_and_each_shown_one_is_there() -> None:
    """None lies about, none is missing, and each has its words."""
    shown = _shown()
    assert SHOTS
    assert set(SHOTS) == set(shown)
    assert all(shown.values())


@pytest.mark.parametrize("picture", SHOTS, ids=lambda picture: picture.name)
def test_each_picture_is_small(picture: Path) -> None:
    """A PNG that a page of documentation can bear."""
    assert picture.read_bytes().startswith(_PNG)
    assert picture.stat().st_size <= LARGEST


def test_without_a_browser_it_says_how_to_get_one() -> None:
    """Before anything is started."""
    environment = {**os.environ, "CHROMIUM": "/nowhere/chromium"}
    command = [sys.executable, "-m", "demo.shots"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "apt-get install" in ended.stderr
    assert "CHROMIUM=" in ended.stderr
