"""What a sweep tells of the records that it writes: what the API had not told, and what the other walks had missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from airflow_extract_provider.extract.events.change import ChangeKind, differing
from airflow_extract_provider.extract.exact import read
from airflow_extract_provider.extract.page import FieldPath

__all__ = ["Audit"]

_MOST = 100
"""Fields that are told of one record: it may have as many as it likes."""


@dataclass(slots=True)
class Audit:
    """Counts what one transaction of a sweep has changed.

    ``complete_to``: up to when the incremental walk had said that all is there; None: there is none. ``versioned``: the
    object's records have versions. ``keep``: what is kept of them and may be named, None for all; ``exclude``: what
    does not count.
    """

    complete_to: datetime | None
    versioned: bool
    keep: Collection[FieldPath] | None
    exclude: Collection[FieldPath] = ()
    counts: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)

    def created(self, version: datetime | None) -> None:
        """A record that the copy did not have."""
        self.counts["new"] += 1
        if self._should_have_come(version):
            self.counts["missed"] += 1

    def deleted(self, *, by_key: bool) -> None:
        """A record was deleted; ``by_key``: the API was asked for it."""
        self.counts["deleted"] += 1
        if by_key:
            self.counts["confirmed"] += 1

    def changed(
        self,
        kind: ChangeKind,
        version: datetime | None,
        known: datetime | None,
        before: str | None,
        after: bytes,
        *,
        partly: bool = False,
    ) -> None:
        """A stored record was another one. ``known`` is the version that was stored, ``before`` the copy's text,
        ``partly``: that was made when less was kept."""
        if kind == "undeleted":
            self.counts["returned"] += 1
            return
        self.counts["changed"] += 1
        if self.versioned and version == known:
            self.counts["silent"] += 1
            self._name(before, after, partly=partly)
        elif self._should_have_come(version):
            self.counts["late"] += 1

    def _should_have_come(self, version: datetime | None) -> bool:
        return self.complete_to is not None and version is not None and version < self.complete_to

    def _name(self, before: str | None, after: bytes, *, partly: bool) -> None:
        """Count the fields that differ, of those that are kept and count."""
        if before is None or self.keep == ():
            return
        known = read(before.encode())
        keep = [(name,) for name in known] if partly else self.keep
        self.fields.update(differing(known, read(after), keep, exclude=self.exclude)[:_MOST])
