"""What operators are given: values, or the texts that templates make of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow_extract_provider.extract.errors import SourceError

__all__ = ["count", "flag", "instant", "interval", "named"]

_FLAGS = {"true": True, "false": False}


def flag(name: str, value: bool | str) -> bool:
    """A boolean. Raises SourceError: it is neither true nor false."""
    if isinstance(value, bool):
        return value
    found = _FLAGS.get(str(value).strip().lower())
    if found is None:
        raise SourceError(f"the operator's `{name}` is neither true nor false.", todo="Correct the DAG.")
    return found


def count(name: str, value: int | str | None) -> int | None:
    """A number of things, or its text; None where a template finds none. Raises SourceError: it is no such number."""
    text = str(value).strip()
    if value is None or text in ("", "None"):
        return None
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise SourceError(f"the operator's `{name}` is no number: 0, 1, 2 ...", todo="Correct the DAG, or the form.")
    return int(text)


def named(name: str, value: object) -> None:
    """See that a name is one: a template that finds nothing gives "None", or an empty text, which names nothing and
    would fit nothing. Raises SourceError: it is none."""
    if value is not None and (not isinstance(value, str) or value.strip() in ("", "None")):
        raise SourceError(f"the operator's `{name}` is {value!r}: that names nothing.", todo="Correct the DAG.")


def interval(name: str, value: timedelta | float | str, least: timedelta = timedelta.min) -> timedelta:
    """A duration, in seconds where it is a number. Raises SourceError: it is none, or shorter than the ``least``."""
    try:
        found = value if isinstance(value, timedelta) else timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        found = None
    if found is None or found < least:
        why = "no number of seconds" if found is None else f"less than {least.total_seconds():g} seconds"
        raise SourceError(f"the operator's `{name}` is {why}.", todo="Correct the DAG.")
    return found


def instant(name: str, value: datetime | str | None) -> datetime | None:
    """An aware instant. Raises SourceError: it is none, or has no zone."""
    if value is None:
        return None
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise SourceError(f"the operator's `{name}` is no instant with a zone.", todo="Correct the DAG.")
    return found
