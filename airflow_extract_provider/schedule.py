"""When a source's DAGs run: the `schedule` and the `windows` of its file, checked, and the instant of the next run."""

from __future__ import annotations

import functools
from datetime import datetime, timedelta, timezone, tzinfo

from airflow.sdk import CronDataIntervalTimetable, DeltaDataIntervalTimetable
from airflow.sdk.bases.timetable import BaseTimetable
from pydantic import TypeAdapter, ValidationError

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.paging import Duration
from airflow_extract_provider.extract.source import Source

__all__ = ["next_run", "schedule_of", "windows_of"]

_PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@quarterly": "0 0 1 */3 *",
    "@yearly": "0 0 1 1 *",
}
_DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)
_FIELDS = 5
_ANY_DAY = datetime(2024, 1, 1, tzinfo=timezone.utc)


def schedule_of(source: str, text: str) -> str | timedelta:
    """What Airflow takes as a DAG's schedule: a cron expression with five fields, a preset, or a duration.

    Raises SourceError: the text is none of these, or names no day that ever comes.
    """
    if text in _PRESETS:
        return text
    try:
        every = _DURATION.validate_python(text)
    except ValidationError:
        if _is_cron(text):
            return text
        why = "is neither a cron expression, nor one of its presets, nor a duration"
    else:
        if every >= timedelta(seconds=1):
            return every
        why = "is less than a second"
    raise SourceError(
        f"the schedule {text!r} {why}.",
        todo=f'Write five fields such as "*/10 * * * *"; or {", ".join(_PRESETS)}; or a duration such as 10m or 30s.',
        source=source,
    )


def windows_of(source: Source) -> BaseTimetable | None:
    """What cuts time into the windows that the backfill DAG reads; None: there are none, since the API of none of the
    source's objects filters by time, or `windows` says so.

    Not a schedule as a text: to Airflow the intervals of these have no length
    (`[scheduler] create_cron_data_intervals`).

    Raises SourceError: as :func:`schedule_of`.
    """
    if source.windows is None or not any(found.windowed for found in source.objects.values()):
        return None
    found = schedule_of(source.source, source.windows)
    if isinstance(found, timedelta):
        return DeltaDataIntervalTimetable(found)
    return CronDataIntervalTimetable(found, timezone="UTC")


def next_run(schedule: str | timedelta, after: datetime, zone: tzinfo = timezone.utc) -> datetime:
    """When the run that follows the one of ``after`` is due; ``zone`` is that of the cron expression."""
    if isinstance(schedule, timedelta):
        return after + schedule
    return _next(_PRESETS.get(schedule, schedule), after.astimezone(zone))


@functools.cache
def _is_cron(text: str) -> bool:
    if len(text.split()) != _FIELDS:
        return False
    try:
        _next(text, _ANY_DAY)
    except ValueError:  # what croniter raises for fields that are none, and for a 30th of February
        return False
    return True


def _next(expression: str, after: datetime) -> datetime:
    # Airflow's own. Here, since a preset or a duration needs none of it while DAGs are parsed.
    from croniter import croniter  # type: ignore[import-untyped]

    found: datetime = croniter(expression, after).get_next(datetime)
    return found
