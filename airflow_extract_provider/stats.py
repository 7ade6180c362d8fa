"""What a run has done, as metrics, by Airflow's own means: StatsD, Datadog or OpenTelemetry, whichever is set up."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow.sdk import conf
from airflow.sdk.observability import stats

if TYPE_CHECKING:
    from airflow_extract_provider.extract.progress import Summary
    from airflow_extract_provider.extract.webhooks.drain import Drained

__all__ = ["COUNTERS", "DRAINED", "GAUGES", "LEFT", "emit", "emit_drained"]

_log = logging.getLogger(__name__)

COUNTERS = ("records", "created", "updated", "deleted", "requests")
GAUGES = ("lag_seconds", "quota_left")
DRAINED = ("messages", "applied", "repeated", "stale", "unknown", "refetch", "events")
LEFT = ("waiting", "dead")


def emit(summary: Summary) -> None:
    """Emit what a slice has done, and how far behind its object is. Metrics that cannot be sent stop no walk."""
    try:
        tags = {"source": summary.source, "object": summary.object, "walk": summary.walk}
        for prefix, tagged in _names(tags):
            for name in COUNTERS:
                if count := summary.slice.get(name, 0):
                    stats.incr(f"{prefix}.{name}", count, tags=tagged)
            for name in GAUGES:
                if (value := getattr(summary, name)) is not None:
                    stats.gauge(f"{prefix}.{name}", value, tags=tagged)
    except Exception as exc:
        _log.warning("metrics were not sent (%s)", type(exc).__name__)


def emit_drained(drained: Drained) -> None:
    """Emit what a slice has done with a source's webhooks, and how many wait and are dead. As :func:`emit`."""
    try:
        for prefix, tagged in _names({"source": drained.source}, "extract.webhooks"):
            for name in DRAINED:
                if count := drained.counts.get(name, 0):
                    stats.incr(f"{prefix}.{name}", count, tags=tagged)
            for name in LEFT:
                stats.gauge(f"{prefix}.{name}", getattr(drained, name), tags=tagged)
    except Exception as exc:
        _log.warning("metrics were not sent (%s)", type(exc).__name__)


def _names(tags: Mapping[str, str], first: str = "extract") -> list[tuple[str, dict[str, str] | None]]:
    """A name with tags, and, as long as Airflow writes such names too, one that says it all without them."""
    names: list[tuple[str, dict[str, str] | None]] = [(first, dict(tags))]
    if conf.getboolean("metrics", "legacy_names_on", fallback=True):
        # A dot would add a level to the name.
        parts = (stats.normalize_name_for_stats(value, log_warning=False).replace(".", "__") for value in tags.values())
        names.append((".".join((first, *parts)), None))
    return names
