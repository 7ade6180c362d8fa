"""Where an object's records and events go, as one frozen value that apply works by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from airflow_extract_provider.extract.events.detectors import Emitter
from airflow_extract_provider.extract.receiving import Grace
from airflow_extract_provider.extract.source import ApiObject, Source
from airflow_extract_provider.extract.store.birth import Born
from airflow_extract_provider.extract.store.brought import Brings
from airflow_extract_provider.extract.store.shape import AS_IT_IS, Shape
from airflow_extract_provider.extract.store.sweep import Sweep
from airflow_extract_provider.extract.storing import Fold

__all__ = ["Baseline", "Target"]

Baseline: TypeAlias = Literal["over", "silent", "marked"]
"""Whether what is stored now is what was found at first: no event tells of it, or one marked ``baseline``."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an object's records go, how they are stored there, and what becomes an event.

    ``sweep``: the open one, to which all keys that are seen are told. ``sweeps``: it is this walk's own, and its report
    tells what is changed. ``versioned``: records have versions. ``private``: they are personal data. ``brings`` what is
    changed, and by ``grace`` a webhook should have told of it; None: there are none, or it is the baseline.
    """

    schema: str
    source: str
    object: str
    table: tuple[str, str]
    shape: Shape = AS_IT_IS
    folds: tuple[Fold, ...] = ()
    emitter: Emitter | None = None
    baseline: Baseline = "over"
    versioned: bool = False
    private: bool = False
    sweep: Sweep | None = None
    sweeps: bool = False
    brings: Brings = "poll"
    grace: Grace | None = None

    @staticmethod
    def of(source: Source, object: str, schema: str, born: Born | None = None) -> Target:
        """The target that a source's config describes; ``born``: what is known of the copy, by default that its first
        backfill is done."""
        found, born = source.object(object), born or Born(0, filled=True)
        emitter = _emitter(source.source, found, born.number) if found.events else None
        baseline: Baseline = "over" if born.filled else "silent" if found.baseline == "silent" else "marked"
        shape, kinds = Shape.of(found), (found.version is not None, found.private)
        made = Target(schema, source.source, object, source.table(object), shape, found.fold, emitter, baseline, *kinds)
        # What was found at first, no webhook could have told of.
        return replace(made, grace=source.grace(object) if born.filled else None)

    @property
    def whose(self) -> tuple[str, str, str]:
        """Bookkeeping schema, source and object."""
        return self.schema, self.source, self.object

    @property
    def detects(self) -> bool:
        """Whether changes are looked at for events. In a silent baseline only for what edges remember."""
        return self.emitter is not None and (self.baseline != "silent" or bool(self.emitter.remembers))

    @property
    def needs_old(self) -> bool:
        """Whether the stored record is needed beside the one that comes."""
        folds_deleted = any(each.deleted != "keep" for each in self.folds)
        return folds_deleted or self.sweeps or (self.emitter is not None and self.detects and self.emitter.needs_before)


def _emitter(source: str, object: ApiObject, birth: int) -> Emitter:
    # In the outbox an event stands only if its change does.
    told_early = object.publish != "outbox"
    exclude = object.hash.exclude
    return Emitter.of(source, object.name, object.events, birth, object.keep, exclude=exclude, told_early=told_early)
