"""Instants: read exactly or not at all, and never written later than they are."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_extract_provider.extract.errors import SourceError
from airflow_extract_provider.extract.instants import floored, instant, written
from airflow_extract_provider.extract.paging import Timestamps

UTC = timezone.utc
RFC3339 = Timestamps()
SECOND, MILLISECOND, MICROSECOND = timedelta(seconds=1), timedelta(milliseconds=1), timedelta(microseconds=1)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Havana"]
PATTERNS = ["%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S%z", "%Y%m%d%H%M", "%d.%m.%Y"]


def _read(value: object, format: str = "rfc3339", zone: str | None = None) -> datetime | None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return instant(raw, Timestamps(format=format, zone=zone))


def _utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", _utc(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02t03:04:05z", _utc(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02 03:04:05Z", _utc(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05+02:00", _utc(2026, 1, 2, 1, 4, 5)),
        ("2026-01-02T03:04:05-05:30", _utc(2026, 1, 2, 8, 34, 5)),
        ("2026-01-02T03:04:05-00:00", _utc(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05.000+0000", _utc(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05.1Z", _utc(2026, 1, 2, 3, 4, 5, 100_000)),
        ("2026-01-02T03:04:05.12345Z", _utc(2026, 1, 2, 3, 4, 5, 123_450)),
        ("2026-01-02T03:04:05.123456789Z", _utc(2026, 1, 2, 3, 4, 5, 123_456)),
        ("2026-01-02T03:04:05.999999999999Z", _utc(2026, 1, 2, 3, 4, 5, 999_999)),
        ("1969-12-31T23:59:59.9999999Z", _utc(1969, 12, 31, 23, 59, 59, 999_999)),
        ("0001-01-01T00:00:00Z", _utc(1, 1, 1)),
        ("9999-12-31T23:59:59Z", _utc(9999, 12, 31, 23, 59, 59)),
        ("2024-02-29T00:00:00Z", _utc(2024, 2, 29)),
    ],
)
def test_rfc_3339(text: str, expected: datetime) -> None:
    """Zones, small letters, a space and any number of decimals: what is finer than a microsecond is cut off."""
    assert _read(text) == expected


def test_an_escaped_text() -> None:
    """How a text is spelled in JSON makes no difference."""
    assert _read(b'"2026-01-02T03:04:05\\u005a"') == _utc(2026, 1, 2, 3, 4, 5)


NOT_RFC3339 = [
    "yesterday", "", " ", "now", "02/01/2026", "2026-01-02", "20260101", "2026-W01", "2026-W01-1T00:00:00Z", "2026-001",
    "20260101T000000Z", "2026-01-01T00:00Z", "2026-01-01T00Z", "2026-01-01T000000Z", "2026-01-01_00:00:00Z",
    "2026-01-01T24:00:00Z", "2026-01-01T23:60:00Z", "2026-01-01T23:59:60Z", "2026-01-01T00:00:00,5Z",
    "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00+01", "2026-01-01T00:00:00+01:00:30", "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00:00 Z", " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z\n", "2026-02-30T00:00:00Z",
    "2026-00-01T00:00:00Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00", "2026-01-01T00:00:00 UTC", "٢٠٢٦-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-12:00", "1767225600",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_RFC3339)
def test_what_is_no_rfc_3339(text: str) -> None:
    """Days, weeks, local times, leap seconds and everything else that would have to be guessed is not read."""
    assert _read(text) is None


@pytest.mark.parametrize(
    "raw", [b"null", b"true", b"1767225600", b"1.5", b"{}", b"[]", b'"\\ud800"', b"", b'"', b"\xff"]
)
@pytest.mark.parametrize("format", ["rfc3339", "%Y-%m-%d"])
def test_what_is_no_text(raw: bytes, format: str) -> None:
    """Other values than texts are not read as one."""
    assert _read(raw, format, "UTC") is None


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-01-02T03:04:05", "UTC", _utc(2026, 1, 2, 3, 4, 5)),
        ("2026-01-02T03:04:05", "Europe/Berlin", _utc(2026, 1, 2, 2, 4, 5)),
        ("2026-07-02 03:04:05.5", "Europe/Berlin", _utc(2026, 7, 2, 1, 4, 5, 500_000)),
        ("2026-07-02T03:04:05Z", "Europe/Berlin", _utc(2026, 7, 2, 3, 4, 5)),
        ("2026-03-29T01:59:59", "Europe/Berlin", _utc(2026, 3, 29, 0, 59, 59)),
        ("2026-03-29T02:00:00", "Europe/Berlin", None),
        ("2026-03-29T02:59:59", "Europe/Berlin", None),
        ("2026-03-29T03:00:00", "Europe/Berlin", _utc(2026, 3, 29, 1)),
        ("2026-10-25T01:59:59", "Europe/Berlin", _utc(2026, 10, 24, 23, 59, 59)),
        ("2026-10-25T02:00:00", "Europe/Berlin", None),
        ("2026-10-25T02:59:59.999999", "Europe/Berlin", None),
        ("2026-10-25T03:00:00", "Europe/Berlin", _utc(2026, 10, 25, 2)),
        ("2026-10-25T02:30:00+01:00", "Europe/Berlin", _utc(2026, 10, 25, 1, 30)),
        ("0001-01-01T00:00:00", "Asia/Tokyo", None),
        ("9999-12-31T23:59:59", "America/New_York", None),
    ],
)
def test_local_times(text: str, zone: str, expected: datetime | None) -> None:
    """A declared zone is laid on times that carry none; those that it has twice, or never, are not guessed."""
    assert _read(text, zone=zone) == expected


@pytest.mark.parametrize(
    ("raw", "format", "expected"),
    [
        (b"1767225600", "unix", _utc(2026, 1, 1)),
        (b'"1767225600"', "unix", _utc(2026, 1, 1)),
        (b"1.7672256e9", "unix", _utc(2026, 1, 1)),
        (b"1767225600.5", "unix", _utc(2026, 1, 1, 0, 0, 0, 500_000)),
        (b'"1767225600.123456789"', "unix", _utc(2026, 1, 1, 0, 0, 0, 123_456)),
        (b"1767225600.9999999999999999999999999999999999999999", "unix", _utc(2026, 1, 1, 0, 0, 0, 999_999)),
        (b"-0.0000001", "unix", _utc(1969, 12, 31, 23, 59, 59, 999_999)),
        (b"-1", "unix", _utc(1969, 12, 31, 23, 59, 59)),
        (b"0", "unix", _utc(1970, 1, 1)),
        (b"1e-999999999", "unix", _utc(1970, 1, 1)),
        (b"1767225600123", "unix_ms", _utc(2026, 1, 1, 0, 0, 0, 123_000)),
        (b"1767225600123.4567", "unix_ms", _utc(2026, 1, 1, 0, 0, 0, 123_456)),
        (b"1767225600123456", "unix_us", _utc(2026, 1, 1, 0, 0, 0, 123_456)),
        (b"1767225600123456.9", "unix_us", _utc(2026, 1, 1, 0, 0, 0, 123_456)),
        (b"253402300799", "unix", _utc(9999, 12, 31, 23, 59, 59)),
        (b"253402300800", "unix", None),
        (b"-62135596800", "unix", _utc(1, 1, 1)),
        (b"-62135596800.1", "unix", None),
        (b"1767225600123", "unix", None),
        (b"1e999999999", "unix", None),
        (b"-1e999999999", "unix_us", None),
        (b"1e99999999999999999999", "unix", None),
        (b'"1e9"', "unix", None),
        (b'"+1"', "unix", None),
        (b'"1 767"', "unix", None),
        (b'""', "unix", None),
        (b'"1_000"', "unix", None),
        ('"١"'.encode(), "unix", None),
        (b'"2026-01-01T00:00:00Z"', "unix", None),
        (b"true", "unix", None),
        (b"null", "unix_ms", None),
    ],
)
def test_unix_times(raw: bytes, format: str, expected: datetime | None) -> None:
    """Numbers and texts of digits in the declared unit, exact to the microsecond, cut off towards the past."""
    assert _read(raw, format) == expected


@pytest.mark.parametrize(
    ("text", "pattern", "zone", "expected"),
    [
        ("02/01/2026 03:04:05", "%d/%m/%Y %H:%M:%S", "UTC", _utc(2026, 1, 2, 3, 4, 5)),
        ("20260101", "%Y%m%d", "America/New_York", _utc(2026, 1, 1, 5)),
        ("2026-01-01 05:00 PM", "%Y-%m-%d %I:%M %p", "UTC", _utc(2026, 1, 1, 17)),
        ("2026-01-01T00:00+0100", "%Y-%m-%dT%H:%M%z", None, _utc(2025, 12, 31, 23)),
        ("2026-01-01T00:00Z", "%Y-%m-%dT%H:%M%z", "Asia/Tokyo", _utc(2026, 1, 1)),
        ("Thu, 01 Jan 2026 00:00:00 GMT", "%a, %d %b %Y %H:%M:%S GMT", "UTC", _utc(2026, 1, 1)),
        ("2026-10-25 02:30", "%Y-%m-%d %H:%M", "Europe/Berlin", None),
        ("2026-03-29 02:30", "%Y-%m-%d %H:%M", "Europe/Berlin", None),
        ("2026-01-02T03:04:05Z", "%d/%m/%Y", "UTC", None),
        ("31/02/2026", "%d/%m/%Y", "UTC", None),
        ("01/01/2026 ", "%d/%m/%Y", "UTC", None),
        ("2026-01-01", "%Y-%m-%d %", "UTC", None),
    ],
)
def test_patterns(text: str, pattern: str, zone: str | None, expected: datetime | None) -> None:
    """What a pattern declares is read by it, and nothing else is."""
    assert _read(text, pattern, zone) == expected


def test_the_name_of_a_zone_is_never_read() -> None:
    """Python takes `%Z` and forgets it, so that "UTC" would be read as the time of the declared zone."""
    declared = Timestamps.model_construct(format="%Y-%m-%d %Z", zone="Asia/Tokyo")
    assert instant(b'"2026-01-01 UTC"', declared) is None


@given(raw=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(json.dumps).map(str.encode)))
@example(raw=b"1" * 5000)
@example(raw=b'"' + b"1" * 5000 + b'"')
def test_reading_never_raises(raw: bytes) -> None:
    """Whatever comes is an instant in UTC, or None."""
    for format in ("rfc3339", "unix", "unix_ms", "unix_us", *PATTERNS):
        found = _read(raw, format, "Europe/Berlin")
        assert found is None or found.utcoffset() == timedelta(0)


_DECIMALS = st.text("0123456789", min_size=1, max_size=12)


@given(times=st.lists(st.tuples(st.integers(0, 59), _DECIMALS), min_size=2))
def test_cutting_off_keeps_the_order(times: list[tuple[int, str]]) -> None:
    """Instants finer than a microsecond may become equal, but never change places."""
    times.sort(key=lambda time: (time[0], time[1].ljust(12, "0")))
    found = [_read(f"2026-01-01T00:00:{seconds:02}.{decimals}Z") for seconds, decimals in times]
    assert found == sorted(moment for moment in found if moment is not None)


@given(times=st.lists(st.decimals(-1000, 1000, places=9), min_size=2))
def test_cutting_off_numbers_keeps_the_order(times: list[Decimal]) -> None:
    """So may unix times, before 1970 too."""
    found = [_read(f"{time:f}".encode(), "unix") for time in sorted(times)]
    assert found == sorted(moment for moment in found if moment is not None)


# --- Writing ----------------------------------------------------------------------------------------------------------

MOMENT = _utc(2026, 1, 2, 3, 4, 5, 678_901)


@pytest.mark.parametrize(
    ("format", "zone", "precision", "expected"),
    [
        ("rfc3339", None, SECOND, "2026-01-02T03:04:05Z"),
        ("rfc3339", None, MILLISECOND, "2026-01-02T03:04:05.678Z"),
        ("rfc3339", None, timedelta(milliseconds=100), "2026-01-02T03:04:05.600Z"),
        ("rfc3339", None, MICROSECOND, "2026-01-02T03:04:05.678901Z"),
        ("rfc3339", None, timedelta(minutes=1), "2026-01-02T03:04:00Z"),
        ("rfc3339", None, timedelta(days=1), "2026-01-02T00:00:00Z"),
        ("rfc3339", "Europe/Berlin", SECOND, "2026-01-02T03:04:05Z"),
        ("unix", None, SECOND, "1767323045"),
        ("unix", None, MICROSECOND, "1767323045"),
        ("unix_ms", None, MILLISECOND, "1767323045678"),
        ("unix_ms", None, SECOND, "1767323045000"),
        ("unix_us", None, MICROSECOND, "1767323045678901"),
        ("%d/%m/%Y %H:%M:%S", "America/New_York", SECOND, "01/01/2026 22:04:05"),
        ("%Y-%m-%d", "UTC", SECOND, "2026-01-02"),
        ("%Y-%m-%dT%H:%M:%S%z", None, SECOND, "2026-01-02T03:04:05+0000"),
        ("%Y-%m-%dT%H:%M:%S%z", "Europe/Berlin", SECOND, "2026-01-02T04:04:05+0100"),
        ("100%% %Y", "UTC", SECOND, "100% 2026"),
    ],
)
def test_how_a_filter_is_written(format: str, zone: str | None, precision: timedelta, expected: str) -> None:
    """As the API writes its instants, floored to what it compares."""
    assert written(MOMENT, format, zone, precision) == expected


def test_early_instants() -> None:
    """Before 1970 numbers are floored too, and early years keep their four digits."""
    assert written(_utc(1969, 12, 31, 23, 59, 59, 1), "unix", None, MICROSECOND) == "-1"
    assert written(_utc(999, 1, 1), "%Y-%m-%d", "UTC", SECOND) == "0999-01-01"
    assert written(_utc(1, 1, 1), "rfc3339", None, SECOND) == "0001-01-01T00:00:00Z"


def test_a_pattern_without_zone_is_not_guessed() -> None:
    """A local time in no known zone could be later than what was meant."""
    with pytest.raises(SourceError, match=r"timestamps\.zone"):
        written(MOMENT, "%Y-%m-%d", None, SECOND)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (_utc(2026, 10, 24, 23, 59, 59), "2026-10-25 01:59:59"),
        (_utc(2026, 10, 25, 0, 0, 0), "2026-10-25 01:00:00"),
        (_utc(2026, 10, 25, 0, 59, 59), "2026-10-25 01:59:59"),
        (_utc(2026, 10, 25, 1, 0, 0), "2026-10-25 02:00:00"),
        (_utc(2026, 10, 25, 1, 30, 0), "2026-10-25 02:30:00"),
        (_utc(2026, 10, 25, 2, 0, 0), "2026-10-25 03:00:00"),
    ],
)
def test_the_hour_that_comes_twice(at: datetime, expected: str) -> None:
    """In its first pass the text would be read an hour too late by some: an earlier one is written."""
    assert written(at, "%Y-%m-%d %H:%M:%S", "Europe/Berlin", SECOND) == expected


PRECISIONS = st.sampled_from([MICROSECOND, MILLISECOND, timedelta(milliseconds=30), SECOND, timedelta(minutes=7)])
MOMENTS = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001


@given(at=MOMENTS, precision=PRECISIONS)
@example(at=datetime.min.replace(tzinfo=UTC), precision=timedelta(days=7))
def test_floored(at: datetime, precision: timedelta) -> None:
    """Never later, within the precision, and the same again when floored again."""
    found = floored(at, precision)
    assert timedelta(0) <= at - found < precision
    assert floored(found, precision) == found


@given(at=MOMENTS, precision=PRECISIONS, format=st.sampled_from(["rfc3339", "unix", "unix_ms", "unix_us"]))
def test_written_then_read(at: datetime, precision: timedelta, format: str) -> None:
    """What is sent is an instant not after the given one, and within what the API and the format can tell."""
    unit = {"unix": SECOND, "unix_ms": MILLISECOND}.get(format, MICROSECOND)
    text = written(at, format, None, precision)
    found = _read(text if format == "rfc3339" else text.encode(), format)
    assert found is not None
    assert found <= at
    assert at - found < precision + unit
    assert floored(at, precision) - found < unit


def _around(month: int, day: int) -> st.SearchStrategy[datetime]:
    return st.integers(-20_000_000, 20_000_000).map(lambda part: _utc(2026, month, day) + 5 * part * MILLISECOND)


@given(
    at=st.one_of(
        MOMENTS,
        # Around the hours that come twice, or never, in 2026.
        *(_around(*day) for day in ((10, 25), (3, 29), (11, 1), (3, 8), (4, 4), (10, 3))),
    ),
    precision=PRECISIONS,
    pattern=st.sampled_from(PATTERNS),
    zone=st.sampled_from(ZONES),
)
@example(at=datetime.min.replace(tzinfo=UTC), precision=SECOND, pattern=PATTERNS[0], zone="Asia/Tokyo")
@example(at=datetime.max.replace(tzinfo=UTC), precision=SECOND, pattern=PATTERNS[0], zone="Asia/Tokyo")
def test_a_local_time_is_never_too_late(at: datetime, precision: timedelta, pattern: str, zone: str) -> None:
    """However the API reads a local time that its zone has twice or never, it is not after the given instant."""
    text = written(at, pattern, zone, precision)
    local = datetime.strptime(text, pattern)  # noqa: DTZ007 - the zone is laid on below
    for fold in (0, 1):
        here = local if local.tzinfo else local.replace(tzinfo=ZoneInfo(zone), fold=fold)
        try:
            found = here.astimezone(UTC)
        except OverflowError:  # the last day of the calendar, or the first
            continue
        assert found <= at
        assert at - found < timedelta(days=2)
