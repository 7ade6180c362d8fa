"""Cursors as people see and edit them, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Shown"]


@dataclass
class Shown:
    """Cursors in memory. ``failing`` maps the number of a read or write, from 1, to what is raised instead of it."""

    texts: dict[str, str] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    reads: int = 0
    failing_reads: BaseException | None = None
    failing_writes: Mapping[int, BaseException] = field(default_factory=dict)
    after_write: bool = False

    def read(self, key: str) -> str | None:
        self.reads += 1
        if self.failing_reads is not None:
            raise self.failing_reads
        return self.texts.get(key)

    def write(self, key: str, text: str) -> None:
        self.written.append(text)
        failure = self.failing_writes.get(len(self.written))
        if failure is None or self.after_write:
            self.texts[key] = text
        if failure is not None:
            raise failure
