"""Instants as APIs write them: read exactly or not at all, and written so that nothing is asked for too late."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from functools import lru_cache
from typing import TypeAlias
from zoneinfo import ZoneInfo

import msgspec

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.paging import Timestamps

__all__ = ["Reading", "floored", "instant", "reading", "shown_from", "written"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND, _MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)
_UNITS = {"unix": _SECOND, "unix_ms": timedelta(milliseconds=1), "unix_us": timedelta(microseconds=1)}
_POWERS = {"unix": 6, "unix_ms": 3, "unix_us": 0}
"""By which power of ten a number of each unit is shifted to make microseconds."""
# Python's reader takes far more (20260101, week dates, dates alone). "+0000" is not in RFC 3339, but Salesforce's.
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?([Zz]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?",
    re.ASCII,
)
_LATER = tuple(
    timedelta(seconds=each) for each in (0, 0.001, 1, 60, 3600, 7200, 10_800, 86_400, 2 * 86_400, 32 * 86_400)
)
"""What is added to an upper bound until a format can say it: hours, since autumn repeats one or two."""
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")

_USUAL = re.compile(rb'"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{3}|\.\d{6})?Z"')
"""How most instants are written, in UTC: read in a third of the time."""
Reading: TypeAlias = Callable[[bytes], datetime | None]
"""From a JSON value to the instant that it spells, None when it is not written as declared."""


def instant(raw: bytes, timestamps: Timestamps) -> datetime | None:
    """The instant that a JSON value spells, in UTC; None when it is not written as declared. It never raises.

    What is finer than a microsecond is cut off towards the past, so two instants never change their order. A local
    time that its zone passes twice, or never, is not guessed: None.
    """
    return reading(timestamps.format, timestamps.zone)(raw)


@lru_cache(maxsize=256)
def reading(format: str, zone: str | None) -> Reading:
    """What reads the instants of a `format` and a `zone`, as in `timestamps`, as :func:`instant` does."""
    local = None if zone is None else ZoneInfo(zone)
    if format in _POWERS:
        return _unix_reading(_POWERS[format])
    parse = _rfc3339 if format == "rfc3339" else _pattern_reading(format)

    def read(raw: bytes) -> datetime | None:
        if parse is _rfc3339 and _USUAL.fullmatch(raw):
            try:
                return datetime.fromisoformat(raw[1:-1].decode())
            except ValueError:
                return None
        text = _text(raw)
        try:
            found = None if text is None else parse(text)
            # In UTC: an instant of the year 1 or 9999 may lie outside of all calendars elsewhere.
            return None if found is None else _placed(found, local)
        except (ValueError, OverflowError):
            return None

    return read


def _text(raw: bytes) -> str | None:
    if raw[:1] != b'"':
        return None
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _rfc3339(text: str) -> datetime | None:
    return datetime.fromisoformat(text.upper()) if _RFC3339.fullmatch(text) else None


def _pattern_reading(pattern: str) -> Callable[[str], datetime | None]:
    # Python reads the name of a zone (%Z) and then forgets it: the instant would be guessed.
    if "Z" in re.findall(r"%(.)", pattern):
        return lambda _: None
    return lambda text: datetime.strptime(text, pattern)  # noqa: DTZ007 - the zone is laid on by the caller


def _placed(found: datetime, local: ZoneInfo | None) -> datetime | None:
    """The instant in UTC, of the zone declared if it carries none itself."""
    if found.tzinfo is not None:
        return found.astimezone(timezone.utc)
    if local is None:
        return None
    first, second = found.replace(tzinfo=local, fold=0), found.replace(tzinfo=local, fold=1)
    return first.astimezone(timezone.utc) if first.utcoffset() == second.utcoffset() else None


def _unix_reading(power: int) -> Reading:
    def read(raw: bytes) -> datetime | None:
        if _NUMBER.fullmatch(raw):
            return _since_epoch(raw.decode(), power)
        text = _text(raw)
        return _since_epoch(text, power) if text is not None and _DIGITS.fullmatch(text) else None

    return read


def _since_epoch(digits: str, power: int) -> datetime | None:
    try:
        number = Decimal(digits)
    except InvalidOperation:  # an exponent beyond all measure
        return None
    if number.adjusted() + power > 18:  # after the year 9999; and such an integer could fill the memory
        return None
    sign, figures, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    # Shifted by its exponent, since a multiplication rounds to 28 digits.
    whole = Decimal((sign, figures, exponent + power)).to_integral_value(ROUND_FLOOR)
    try:
        return _EPOCH + timedelta(microseconds=int(whole))
    except OverflowError:
        return None


def floored(instant: datetime, precision: timedelta) -> datetime:
    """The last multiple of a precision, counted from 1970 in UTC, that is not after an instant. In UTC."""
    try:
        return _EPOCH + (instant - _EPOCH) // precision * precision
    except OverflowError:  # before the year 1
        return datetime.min.replace(tzinfo=timezone.utc)


def shown_from(at: datetime, timestamps: Timestamps) -> datetime:
    """The beginning of the second, or of the day or whatever else the API's instants can say, that an instant lies in:
    a record that shows no more than that may have changed at it, or after."""
    text = _written(floored(at, _SECOND), timestamps.format, timestamps.zone, _SECOND)
    read = instant(msgspec.json.encode(text), timestamps)
    # A local time that its zone has twice is not read.
    return at - timedelta(days=1) if read is None else min(read, at)


def written(instant: datetime, format: str, zone: str | None, precision: timedelta, *, upper: bool = False) -> str:
    """An instant as a filter sends it: never later than it is, whichever way the API reads the text; an ``upper``
    bound never earlier.

    ``format`` and ``zone`` are as in `timestamps`. It is floored to ``precision``, and to what ``format`` can say.
    RFC 3339 is written with Z, with as many decimals as the precision has.

    Raises SourceError: a pattern without %z, and no zone.
    """
    if upper:
        return _written_after(instant, format, zone, precision)
    return _written(floored(instant, precision), format, zone, precision)


def _written_after(at: datetime, format: str, zone: str | None, precision: timedelta) -> str:
    """An instant, or the first one after it that the format can say and that reads as no other."""
    stamps = Timestamps(format=format, zone=zone or "UTC")
    for later in _LATER:
        text = _written(floored(at + later + precision - _MICROSECOND, precision), format, zone, precision)
        found = instant(msgspec.json.encode(text), stamps)
        if found is not None and found >= at:
            return text
    raise SourceError(
        "the filter's upper bound cannot be written such that nothing before it is left out.",
        todo="Declare since.format: one that can say an hour or a day.",
    )


def _written(at: datetime, format: str, zone: str | None, precision: timedelta) -> str:
    if format in _UNITS:
        return str((at - _EPOCH) // _UNITS[format])
    if format == "rfc3339":
        finest = "milliseconds" if precision % _SECOND else "seconds"
        timespec = "microseconds" if precision % _UNITS["unix_ms"] else finest
        return at.replace(tzinfo=None).isoformat(timespec=timespec) + "Z"
    if zone is None and "z" not in re.findall(r"%(.)", format):
        raise SourceError(
            "an instant is to be written by a pattern that has no %z, and no zone is declared.",
            todo="Declare timestamps.zone: the zone that the API means, such as UTC.",
        )
    local = _local(at, zone)
    # On Linux, %Y writes the year 999 with three digits only.
    pattern = re.sub(r"%(.)", lambda part: f"{local.year:04d}" if part[1] == "Y" else part[0], format)
    return local.strftime(pattern)


def _local(at: datetime, zone: str | None) -> datetime:
    """An instant in a zone. In the first of two equal hours it is an hour earlier: read as the second, it would be
    later than it is."""
    local = ZoneInfo(zone or "UTC")
    try:
        here = at.astimezone(local)
        twice = _offset(here.replace(fold=0)) - _offset(here.replace(fold=1))
        return (at - twice).astimezone(local) if here.fold == 0 and twice > timedelta(0) else here
    except OverflowError:  # the first or the last day of the calendar
        return datetime.min.replace(tzinfo=local) if at.year == 1 else datetime.max.replace(tzinfo=local)


def _offset(local: datetime) -> timedelta:
    offset = local.utcoffset()
    assert offset is not None
    return offset
