"""One line that is broken on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True)
class Mutant:
    """A breakage of a law: ``old`` stands in ``file`` (below the engine) exactly once, and becomes ``new``."""

    law: str
    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]
