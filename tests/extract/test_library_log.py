"""librdkafka says the same twenty times a second while a broker is away: it is logged once in a while."""

from __future__ import annotations

import logging

import pytest

from airflow_extract_provider.extract.sinks import librdkafka_log
from airflow_extract_provider.extract.sinks.librdkafka_log import LIBRARY_LOG


def test_each_thing_once_in_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs in numbers alone is the same; something else is logged; after a while the same is again."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(librdkafka_log, "_MOST", 3)
    with caplog.at_level(logging.WARNING):
        for ms in range(100):
            LIBRARY_LOG.error("%s [%s] %s", "FAIL", "producer-1", f"refused (after {ms}ms)")
        LIBRARY_LOG.error("%s [%s] %s", "FAIL", "producer-1", "timed out")
        now[0] += 61
        LIBRARY_LOG.error("%s [%s] %s", "FAIL", "producer-1", "refused (after 1ms)")
        for word in ("a", "b", "c", "d"):
            LIBRARY_LOG.error("another %s", word)
    assert [each.getMessage() for each in caplog.records] == [
        "FAIL [producer-1] refused (after 0ms)",
        "FAIL [producer-1] timed out",
        "FAIL [producer-1] refused (after 1ms)",
        *(f"another {word}" for word in ("a", "b", "c", "d")),
    ]
