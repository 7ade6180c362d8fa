"""The receiver's numbers as Prometheus reads them: those of all its workers, whichever of them is asked.

Each worker writes its sums into a file of its own in one folder; who is asked adds them up. The file of a worker that
has died stays, so that no counter goes back. prometheus_client has such a way too; it costs each delivery some
microseconds, where this costs it none.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from airflow_extract_provider.receiver.counts import BOUNDS, Counted

__all__ = ["Numbers", "Shared", "exposed"]

_STALE = 10.0
"""Seconds after which a worker that has written nothing is no longer there."""


@dataclass(slots=True)
class Numbers:
    """What a worker has counted, the ``totals`` of its keep, and whether that is there (``up``); what was ``refused``
    before it was a request, by the reason; whether it has ``ended`` in order, or is about to; its ``process``."""

    counted: Counted = field(default_factory=Counted)
    totals: Mapping[str, int] = field(default_factory=dict)
    up: bool = True
    refused: Mapping[str, int] = field(default_factory=dict)
    ended: bool = False
    process: int = field(default_factory=os.getpid)

    @property
    def runs(self) -> bool:
        """Whether its process is there; or another one, under its number."""
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, PermissionError):  # none, or somebody else's
            return False
        return True


class Shared:
    """The numbers of all workers, in a folder; without one those of this worker alone."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # Not its process id: one that died may have had the same.
        self._own = f"{uuid.uuid4().hex}.json"

    def show(self, own: Numbers) -> None:
        """Let the others know what this worker has counted; some times in :data:`_STALE`."""
        if self._folder is None:
            return
        new = self._folder / f"{self._own}.new"
        new.write_text(json.dumps(_told(own)), encoding="utf-8")
        # Whole or not at all: another worker may be reading it.
        new.replace(self._folder / self._own)

    def others(self) -> Iterator[tuple[Numbers, bool, bool]]:
        """What the other workers have counted, whether each is there and has told it lately, and whether it has
        died."""
        for path in sorted(self._folder.glob("*.json")) if self._folder is not None else ():
            if path.name != self._own:
                with path.open(encoding="utf-8") as file:
                    fresh = time.time() - os.fstat(file.fileno()).st_mtime < _STALE
                    numbers = _read(json.load(file))
                died = not numbers.ended and _is_dead(path.with_suffix(".died"), numbers)
                yield numbers, fresh and not numbers.ended and not died, died


def _is_dead(mark: Path, numbers: Numbers) -> bool:
    """Whether a worker has died. Once somebody has seen it, it stays so: another process may get its number."""
    if mark.exists():
        return True
    if numbers.runs:
        return False
    with suppress(OSError):  # a full disk: the next one who looks sees it too
        mark.touch()
    return True


def exposed(own: Numbers, shared: Shared) -> bytes:
    """All numbers in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_All(own, shared))
    return generate_latest(registry)


class _All(Collector):
    def __init__(self, own: Numbers, shared: Shared) -> None:
        self._sum, self._up, self._workers, self._died = Counted(), own.up, 1, 0
        self._totals, self._refused = dict(own.totals), Counter(own.refused)
        self._sum.add(own.counted)
        for each, alive, died in shared.others():
            self._sum.add(each.counted)
            self._refused.update(each.refused)
            self._totals |= {name: self._totals.get(name, 0) + count for name, count in each.totals.items()}
            self._died += died
            if alive:
                self._up, self._workers = self._up and each.up, self._workers + 1

    def collect(self) -> Iterator[Metric]:
        """The families, sorted within."""
        yield self._outcomes()
        yield self._seconds()
        yield self._not_asked()
        for name, says in _TOTALS.items():
            yield CounterMetricFamily(name, says, value=self._totals.get(name, 0))
        yield GaugeMetricFamily("extract_webhook_store_up", "1: all workers reach their store.", value=int(self._up))
        yield GaugeMetricFamily("extract_webhook_workers", "Workers that are there.", value=self._workers)
        died = "Workers that have ended without being told to."
        yield CounterMetricFamily("extract_webhook_workers_died", died, value=self._died)

    def _outcomes(self) -> Metric:
        labels = ("source", "endpoint", "outcome")
        found = CounterMetricFamily("extract_webhooks", "Requests to endpoints, by their outcome.", labels=labels)
        for key, count in sorted(self._sum.outcomes.items()):
            found.add_metric(key, count)
        return found

    def _not_asked(self) -> Metric:
        says = "What was refused before it was a request, by the reason."
        found = CounterMetricFamily("extract_webhook_refused", says, labels=("reason",))
        for reason, count in sorted(self._refused.items()):
            found.add_metric((reason,), count)
        return found

    def _seconds(self) -> Metric:
        labels = ("source", "endpoint")
        found = HistogramMetricFamily("extract_webhook_seconds", "Seconds from a request to its answer.", labels=labels)
        for place, (*within, total) in sorted(self._sum.seconds.items()):
            so_far, buckets = 0.0, []
            for bound, count in zip((*BOUNDS, "+Inf"), within, strict=True):
                so_far += count
                buckets.append((str(bound), so_far))
            found.add_metric(place, buckets, total)
        return found


_TOTALS = {
    "extract_webhook_bytes": "Bytes of bodies that were committed.",
    "extract_webhook_commits": "Commits of deliveries: those that come together share one.",
    "extract_webhook_deliveries": "Deliveries in these commits, with those that were stored before.",
}


def _told(numbers: Numbers) -> dict[str, Any]:
    return {
        "outcomes": [[*key, count] for key, count in numbers.counted.outcomes.items()],
        "seconds": [[*place, found] for place, found in numbers.counted.seconds.items()],
        "totals": dict(numbers.totals),
        "up": numbers.up,
        "refused": dict(numbers.refused),
        "ended": numbers.ended,
        "process": numbers.process,
    }


def _read(told: dict[str, Any]) -> Numbers:
    counted = Counted()
    for source, endpoint, kind, count in told["outcomes"]:
        counted.outcomes[source, endpoint, kind] = count
    counted.seconds |= {(source, endpoint): found for source, endpoint, found in told["seconds"]}
    return Numbers(counted, told["totals"], told["up"], told["refused"], told["ended"], told["process"])
